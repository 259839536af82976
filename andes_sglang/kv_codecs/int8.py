"""Eight bits a number: each channel (layer, head, dim) from its least to its greatest value in 255 steps, as ALISE keeps KV
in host memory (arXiv 2410.23537, section 3.3)."""

from __future__ import annotations

import numpy as np

from andes_sglang.kv_codecs.blocks import FloatKind, Floats, KvBlock, KvCodecError

__all__ = ["Int8"]

STEPS = 255


class Int8:
    """No number is further off than half a step of its channel, and the rounding to 16 bits."""

    def payload(self, block: KvBlock) -> bytes:
        values = block.floats()
        low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
        coded = np.rint((values - low) / _step(low, high)).astype(np.uint8)
        ends = KvBlock.of_floats(np.concatenate([low, high], axis=1), block.kind)
        return bytes(ends.bits.tobytes() + coded.tobytes())

    def block(self, payload: bytes, kind: FloatKind, shape: tuple[int, int, int, int]) -> KvBlock:
        layers, _, heads, dim = shape
        ends = np.frombuffer(payload, np.uint16, 2 * layers * heads * dim).reshape(layers, 2, heads, dim)
        coded = np.frombuffer(payload, np.uint8, offset=ends.nbytes)
        if coded.size != int(np.prod(shape)):
            raise KvCodecError(f"coded KV of {coded.size} numbers, where its header says {int(np.prod(shape))}")
        low, high = np.split(KvBlock(ends, kind).floats(), 2, axis=1)
        return KvBlock.of_floats(low + coded.reshape(shape) * _step(low, high), kind)


def _step(low: Floats, high: Floats) -> Floats:
    """Of each channel; 1 where all its values are the same."""
    step: Floats = (high - low) / np.float32(STEPS)
    return np.where(step > 0, step, np.float32(1.0))
