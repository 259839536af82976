"""Exact copies that are smaller: exponents apart from signs and mantissas, which are noise.

Exponents of neighbours are alike, so they take a third of their bits; Zstandard's quickest level finds nearly all of it, and
is undone four times as fast as zlib's Huffman codes are. The other byte is kept as it is: nothing makes it smaller. Needs
``zstandard`` (extra ``codecs``).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from andes_sglang.kv_codecs.blocks import Bits, FloatKind, KvBlock, KvCodecError

__all__ = ["Lossless"]

Bytes = npt.NDArray[np.uint8]
_LENGTH = struct.Struct("<Q")
"""Bytes of the coded exponents, before them; 0: they are not coded."""
LEVEL = 1
"""Of Zstandard: higher ones find repetitions, of which there are none, and take longer (docs/benchmarks/kv-codecs.md)."""


class Lossless:
    """Of every 16 bits, NaN and infinity too."""

    def payload(self, block: KvBlock) -> bytes:
        exponents, rest = _planes(block.bits.reshape(-1), block.kind)
        coded: bytes = _zstandard().ZstdCompressor(level=LEVEL).compress(exponents.tobytes())
        if len(coded) >= len(exponents):
            return _LENGTH.pack(0) + exponents.tobytes() + rest.tobytes()
        return _LENGTH.pack(len(coded)) + coded + rest.tobytes()

    def block(self, payload: bytes, kind: FloatKind, shape: tuple[int, int, int, int]) -> KvBlock:
        count = int(np.prod(shape))
        (length,) = _LENGTH.unpack_from(payload)
        body = memoryview(payload)[_LENGTH.size :]
        exponents = _undone(body[:length], count) if length else body[:count]
        rest = body[length or count :]
        if not len(exponents) == len(rest) == count:
            raise KvCodecError(
                f"coded KV of {len(exponents)} and {len(rest)} bytes, where its header says {count} numbers"
            )
        planes = np.frombuffer(exponents, np.uint8), np.frombuffer(rest, np.uint8)
        return KvBlock(_joined(*planes, kind).reshape(shape), kind)


def _undone(coded: memoryview, count: int) -> bytes:
    """The ``count`` bytes that Zstandard has coded; no more are made than that."""
    zstandard = _zstandard()
    try:
        if zstandard.frame_content_size(coded) != count:
            raise KvCodecError(f"coded KV whose exponents are not the {count} that its header says")
        undone: bytes = zstandard.ZstdDecompressor().decompress(coded)
    except zstandard.ZstdError as error:
        raise KvCodecError(f"coded KV that cannot be read: {error}") from None
    return undone


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise KvCodecError("codec lossless needs zstandard: install andes-sglang[codecs]") from None
    return zstandard


def _planes(bits: Bits, kind: FloatKind) -> tuple[Bytes, Bytes]:
    """What is alike in neighbours, and the rest: a byte each of every number. BF16: the exponent, and sign with mantissa;
    F16: the high byte with the sign last, and the low one."""
    if kind is FloatKind.BF16:
        return (bits >> 7).astype(np.uint8), ((bits & 0x7F) | ((bits >> 8) & 0x80)).astype(np.uint8)
    high = bits >> 8
    return ((high << 1) | (high >> 7)).astype(np.uint8), bits.astype(np.uint8)


def _joined(first: Bytes, second: Bytes, kind: FloatKind) -> Bits:
    """The inverse of :func:`_planes`."""
    a, b = first.astype(np.uint16), second.astype(np.uint16)
    if kind is FloatKind.BF16:
        return np.asarray((a << 7) | (b & 0x7F) | ((b & 0x80) << 8), dtype=np.uint16)
    return np.asarray((((a >> 1) | ((a & 1) << 7)) << 8) | b, dtype=np.uint16)
