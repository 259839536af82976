"""A block of KV, and how coded ones are framed."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Bits", "FloatKind", "Floats", "KvBlock", "KvCodecError", "by_channel", "by_token", "framed", "unframed"]

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)
_MAGIC = b"AKV1"
_HEADER = struct.Struct("<4sBBIIII")
"""Magic, codec, kind of float, layers, tokens, heads, dim."""
_CHECKSUM = struct.Struct("<I")
"""CRC-32 of the header and of what follows the checksum."""
_LARGEST_F16 = 65504.0
_LARGEST = 1e30
"""Of a number that is coded with a loss: arithmetic in float32 stays within its range."""
_MOST_A_BYTE = 256
"""Numbers for each byte of a payload: more than any codec gets into one (rans: 178)."""


class KvCodecError(ValueError):
    """A block that cannot be coded, or data that is no coded block; the text says what is wrong with it."""


class FloatKind(IntEnum):
    """What 16 bits mean. BF16: sign, 8 of exponent, 7 of mantissa; F16: sign, 5, 10."""

    BF16 = 0
    F16 = 1


@dataclass(frozen=True, slots=True)
class KvBlock:
    """Keys, or values, of consecutive tokens. bits: shape (layers, tokens, heads, dim), the 16 bits of each number. Raises
    :class:`KvCodecError` naming shape, type or kind."""

    bits: Bits
    kind: FloatKind

    def __post_init__(self) -> None:
        if self.bits.dtype != np.uint16 or self.bits.ndim != 4 or not self.bits.size:
            raise KvCodecError(
                f"bits must be uint16 of shape (layers, tokens, heads, dim), none of them 0, got {self.bits.dtype} of shape "
                f"{self.bits.shape}"
            )
        if not isinstance(self.kind, FloatKind):
            raise KvCodecError(f"kind must be one of {', '.join(map(str, FloatKind.__members__))}, got {self.kind!r}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        layers, tokens, heads, dim = self.bits.shape
        return layers, tokens, heads, dim

    @classmethod
    def of_floats(cls, values: Floats, kind: FloatKind) -> KvBlock:
        """Finite ``values``, shape (layers, tokens, heads, dim), rounded to the nearest number of ``kind``."""
        if kind is FloatKind.F16:
            return cls(np.clip(values, -_LARGEST_F16, _LARGEST_F16).astype(np.float16).view(np.uint16), kind)
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return cls(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), kind)

    def floats(self) -> Floats:
        """The numbers, shape (layers, tokens, heads, dim). Raises :class:`KvCodecError` where one is none, or above 1e30."""
        if self.kind is FloatKind.F16:
            values = self.bits.view(np.float16).astype(np.float32)
        else:
            values = (self.bits.astype(np.uint32) << 16).view(np.float32)
        usual = np.abs(values) <= _LARGEST  # and no NaN
        if not usual.all():
            layer, token, head, dim = np.argwhere(~usual)[0]
            raise KvCodecError(
                f"layer {layer}, token {token}, head {head}, dim {dim}: {values[layer, token, head, dim]}, which only codec "
                "lossless keeps"
            )
        return values


def by_channel(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Shape (layers, tokens, heads, dim) as (layers * heads * dim, tokens)."""
    layers, tokens, heads, dim = values.shape
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).reshape(layers * heads * dim, tokens)


def by_token(values: npt.NDArray[Number], shape: tuple[int, int, int, int]) -> npt.NDArray[Number]:
    """The inverse of :func:`by_channel`."""
    layers, tokens, heads, dim = shape
    return np.ascontiguousarray(values.reshape(layers, heads, dim, tokens).transpose(0, 3, 1, 2))


def framed(codec: int, block: KvBlock, payload: bytes) -> bytes:
    """``payload`` behind a header that says what is in it."""
    header = _HEADER.pack(_MAGIC, codec, block.kind, *block.shape)
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def unframed(data: bytes) -> tuple[int, FloatKind, tuple[int, int, int, int], bytes]:
    """Codec, kind of float, shape and payload of what :func:`framed` made. Raises :class:`KvCodecError` for anything else."""
    begins = _HEADER.size + _CHECKSUM.size
    if len(data) < begins or data[: len(_MAGIC)] != _MAGIC:
        raise KvCodecError(f"{len(data)} bytes that do not begin as coded KV does")
    _, codec, kind, layers, tokens, heads, dim = _HEADER.unpack_from(data)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    payload = data[begins:]
    if zlib.crc32(payload, zlib.crc32(data[: _HEADER.size])) != checksum:
        raise KvCodecError(f"{len(data)} bytes of coded KV that were cut or changed: the checksum does not match")
    if kind not in list(FloatKind):
        raise KvCodecError(f"coded KV of numbers of kind {kind}, which this version does not know")
    shape = layers, tokens, heads, dim
    if not 0 < math.prod(shape) <= _MOST_A_BYTE * len(payload):
        raise KvCodecError(f"coded KV of shape {shape}, which {len(payload)} bytes do not hold")
    return codec, FloatKind(kind), shape, payload
