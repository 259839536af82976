"""The codecs by name, and the one decoder of all."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

from andes_sglang.kv_codecs.anchored import Anchored
from andes_sglang.kv_codecs.blocks import FloatKind, KvBlock, KvCodecError, framed, unframed
from andes_sglang.kv_codecs.int8 import Int8
from andes_sglang.kv_codecs.lossless import Lossless

__all__ = ["CODECS", "KvCodec", "decode", "make_codec"]


class _Coder(Protocol):
    """payload: the block without its header. block: what a payload says, of that kind and shape."""

    def payload(self, block: KvBlock) -> bytes: ...

    def block(self, payload: bytes, kind: FloatKind, shape: tuple[int, int, int, int]) -> KvBlock: ...


@dataclass(frozen=True, slots=True)
class KvCodec:
    """number: in the header of what it makes, and never given to another. lossless: every block comes back as it was."""

    name: str
    number: int
    coder: _Coder
    lossless: bool = False

    def encode(self, block: KvBlock) -> bytes:
        """Coded ``block``; :func:`decode` gives it back. Raises :class:`KvCodecError` for numbers that are not finite, which
        only ``lossless`` keeps."""
        return framed(self.number, block, self.coder.payload(block))


_ALL = (
    KvCodec("lossless", 1, Lossless(), lossless=True),
    KvCodec("int8", 2, Int8()),
    *(KvCodec(f"anchored-{level}", 2 + level, Anchored(level)) for level in (1, 2, 3)),
)
CODECS = {codec.name: codec for codec in _ALL}
"""By name; of the last three the first is the nearest to what was coded, the last the smallest."""
_NUMBERED = {codec.number: codec for codec in _ALL}


def make_codec(name: str) -> KvCodec:
    """Raises :class:`KvCodecError` naming what is not known."""
    if name not in CODECS:
        raise KvCodecError(f"codec {name!r}: not one of {', '.join(CODECS)}")
    return CODECS[name]


def decode(data: bytes) -> KvBlock:
    """The block that any codec has made ``data`` of. Raises :class:`KvCodecError` for what is none."""
    number, kind, shape, payload = unframed(data)
    if number not in _NUMBERED:
        raise KvCodecError(f"coded KV of a codec with number {number}, which this version does not know")
    try:
        return _NUMBERED[number].coder.block(payload, kind, shape)
    except KvCodecError:
        raise
    except (IndexError, ValueError, struct.error, zlib.error) as error:
        raise KvCodecError(f"coded KV that cannot be read: {error}") from None
