"""Exact copies that are smaller: exponents apart from signs and mantissas, which are noise.

Exponents of neighbours are alike, so they take a third of their bits; Huffman codes alone find nearly all of it. The other
byte is kept as it is where coding makes it no smaller.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from andes_sglang.kv_codecs.blocks import Bits, FloatKind, KvBlock

__all__ = ["Lossless"]

Bytes = npt.NDArray[np.uint8]
_LENGTH = struct.Struct("<Q")
"""Bytes of the coded exponents, before them; 0: they are not coded."""


class Lossless:
    """Of every 16 bits, NaN and infinity too."""

    def payload(self, block: KvBlock) -> bytes:
        exponents, rest = _planes(block.bits.reshape(-1), block.kind)
        coded = _huffman(exponents.tobytes())
        if len(coded) >= len(exponents):
            return _LENGTH.pack(0) + exponents.tobytes() + rest.tobytes()
        return _LENGTH.pack(len(coded)) + coded + rest.tobytes()

    def block(self, payload: bytes, kind: FloatKind, shape: tuple[int, int, int, int]) -> KvBlock:
        count = int(np.prod(shape))
        (length,) = _LENGTH.unpack_from(payload)
        body = memoryview(payload)[_LENGTH.size :]
        exponents = zlib.decompress(body[:length], wbits=-zlib.MAX_WBITS) if length else body[:count]
        rest = body[length or count :]
        planes = np.frombuffer(exponents, np.uint8), np.frombuffer(rest, np.uint8)
        return KvBlock(_joined(*planes, kind).reshape(shape), kind)


def _huffman(data: bytes) -> bytes:
    coder = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


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
