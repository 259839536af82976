"""Codecs for KV that leaves the device: host memory, disk, other engines. Pure functions of arrays; no engine is known here.

    codec = make_codec("lossless")
    data = codec.encode(KvBlock(bits, FloatKind.BF16))  # bits: uint16, [layers, tokens, heads, dim]
    decode(data)  # the same block, bit by bit; of another codec one that is near

What each is worth, and to whom: docs/benchmarks/kv-codecs.md. :mod:`andes_sglang.kv_codecs.prices` says what the simulator is
told of them.
"""

from andes_sglang.kv_codecs.blocks import FloatKind, KvBlock, KvCodecError
from andes_sglang.kv_codecs.registry import CODECS, KvCodec, decode, make_codec

__all__ = ["CODECS", "FloatKind", "KvBlock", "KvCodec", "KvCodecError", "decode", "make_codec"]
