"""Small copies for disk and other engines: deltas to an anchor, coarser with depth, coded arithmetically (CacheGen, arXiv
2310.07240, section 5).

The first of every ten tokens is an anchor. Anchors are rounded finely and coded as differences from one to the next; the
other tokens as differences from their anchor, as it will be decoded, rounded more coarsely the deeper their layer lies:
what is wrong in a late layer has little left to spoil. Where CacheGen takes distributions of numbers from a profile of the
model, here each channel names one of a few, so that a block needs nothing but itself.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.kv_codecs import rans
from andes_sglang.kv_codecs.blocks import FloatKind, Floats, KvBlock, KvCodecError, by_channel, by_token

__all__ = ["Anchored"]

Numbers = npt.NDArray[np.int32]
GROUP_TOKENS = 10
"""Of which the first is the anchor."""
COARSEST = {1: 0.125, 2: 0.25, 3: 0.5}
"""Step of the deltas in the first third of the layers, by level, times their root mean square in the layer; 3: CacheGen's."""
DEEPER = (1.0, 2.0, 3.0)
"""Times that, by third of the layers."""
ANCHOR_STEP = 0.25
"""Step of the anchors, times that of the deltas in the first third."""
SMALLEST_STEP = float(np.finfo(np.float32).smallest_normal)
"""Smaller numbers are 0: float32 has no quotients by them."""
LANES = 1024
_HEADER = struct.Struct("<III")
"""Bytes of the tables, numbers that no symbol stands for, words of the stream."""


class Anchored:
    """level: 1, the nearest, to 3, the smallest."""

    def __init__(self, level: int) -> None:
        self.level = level

    def payload(self, block: KvBlock) -> bytes:
        values = block.floats()
        fine, coarse = self._steps(values)
        anchors = np.rint(values[:, ::GROUP_TOKENS] / fine).astype(np.int32)
        deltas = np.rint((values - _anchors_of(anchors * fine, values.shape[1])) / coarse).astype(np.int32)
        between = np.diff(anchors, axis=1, prepend=0)
        coded = _code(by_channel(between), by_channel(_others(deltas)))
        steps = np.stack([fine, coarse]).astype(np.float32)
        return steps.tobytes() + coded

    def block(self, payload: bytes, kind: FloatKind, shape: tuple[int, int, int, int]) -> KvBlock:
        layers, tokens, heads, dim = shape
        steps = np.frombuffer(payload, np.float32, 2 * layers).reshape(2, layers, 1, 1, 1)
        count = len(range(0, tokens, GROUP_TOKENS))
        between, others = _decode(payload[steps.nbytes :], layers * heads * dim, count, tokens - count)
        with np.errstate(over="ignore", invalid="ignore"):  # of a payload that nothing here has made
            anchors = np.cumsum(by_token(between, (layers, count, heads, dim)), axis=1) * steps[0]
            values = _anchors_of(anchors.astype(np.float32), tokens)
            if tokens > count:
                values[:, _is_other(tokens)] += by_token(others, (layers, tokens - count, heads, dim)) * steps[1]
        if not np.isfinite(values).all():
            raise KvCodecError("coded KV that cannot be read: numbers that are not finite")
        return KvBlock.of_floats(values, kind)

    def _steps(self, values: Floats) -> tuple[Floats, Floats]:
        """Of anchors and deltas by layer, shape (layers, 1, 1, 1)."""
        layers, tokens = values.shape[:2]
        away = values - _anchors_of(values[:, ::GROUP_TOKENS], tokens)
        spread = np.sqrt(np.mean(np.square(away, dtype=np.float64), axis=(1, 2, 3), keepdims=True))
        spread = np.maximum(spread, 1e-4 * np.abs(values).max(axis=(1, 2, 3), keepdims=True))
        finest = COARSEST[self.level] * np.where(spread > 0, spread, 1.0)
        depth = np.array([DEEPER[len(DEEPER) * layer // layers] for layer in range(layers)]).reshape(-1, 1, 1, 1)
        fine, coarse = (
            np.maximum(step, SMALLEST_STEP).astype(np.float32) for step in (ANCHOR_STEP * finest, depth * finest)
        )
        return fine, coarse


def _anchors_of(anchors: Floats, tokens: int) -> Floats:
    """Each token's anchor: shape (layers, groups, heads, dim) as (layers, tokens, heads, dim)."""
    return np.repeat(anchors, GROUP_TOKENS, axis=1)[:, :tokens]


def _is_other(tokens: int) -> npt.NDArray[np.bool_]:
    return np.asarray(np.arange(tokens) % GROUP_TOKENS != 0)


def _others(values: Numbers) -> Numbers:
    return values[:, _is_other(values.shape[1])]


class _Lanes(NamedTuple):
    """Channels as they are coded: ``rounds`` of ``lanes`` each, the last filled up."""

    channels: int
    rounds: int
    lanes: int

    @classmethod
    def of(cls, channels: int) -> _Lanes:
        rounds = -(-channels // LANES)
        return cls(channels, rounds, -(-channels // rounds))

    def steps(self, rows: rans.Symbols, filling: int) -> rans.Symbols:
        """``rows`` of shape (channels, n) as (rounds * n, lanes)."""
        padded = np.full((self.rounds * self.lanes, rows.shape[1]), filling, dtype=np.uint8)
        padded[: self.channels] = rows
        turned = padded.reshape(self.rounds, self.lanes, rows.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(turned).reshape(-1, self.lanes)

    def rows(self, steps: rans.Symbols) -> rans.Symbols:
        """The inverse of :meth:`steps`."""
        turned = steps.reshape(self.rounds, -1, self.lanes).transpose(0, 2, 1)
        return np.ascontiguousarray(turned).reshape(self.rounds * self.lanes, -1)[: self.channels]


def _code(anchors: Numbers, others: Numbers) -> bytes:
    """Numbers of shape (channels, anchors) and (channels, others)."""
    numbers = np.concatenate([anchors, others], axis=1)
    large = np.abs(numbers) > rans.LARGEST
    symbols = np.where(large, 2 * rans.LARGEST + 1, numbers + rans.LARGEST).astype(np.uint8)
    count = anchors.shape[1]
    tables = np.stack([rans.best_tables(symbols[:, :count]), rans.best_tables(symbols[:, count:])])
    lanes = _Lanes.of(len(numbers))
    states, words = rans.encode(
        lanes.steps(symbols, rans.LARGEST), _table_steps(lanes, tables, numbers.shape[1], count)
    )
    named, escaped = zlib.compress(tables.tobytes(), 1), numbers[large].astype("<i4")
    header = _HEADER.pack(len(named), len(escaped), len(words))
    return header + named + bytes(escaped.tobytes()) + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def _table_steps(lanes: _Lanes, tables: rans.Symbols, length: int, count: int) -> rans.Symbols:
    """The tables of every number, the first ``count`` of each channel being anchors."""
    rows = np.repeat(tables.T, [count, length - count], axis=1)
    return lanes.steps(rows, 0)


def _decode(data: bytes, channels: int, anchors: int, others: int) -> tuple[Numbers, Numbers]:
    """What :func:`_code` was given."""
    lanes = _Lanes.of(channels)
    named, escapes, length = _HEADER.unpack_from(data)
    at = _HEADER.size
    named_tables = zlib.decompressobj().decompress(data[at : at + named], 2 * channels)
    tables = np.frombuffer(named_tables, np.uint8).reshape(2, channels)
    at += named
    escaped = np.frombuffer(data, "<i4", escapes, at)
    at += escaped.nbytes
    states = np.frombuffer(data, "<u4", lanes.lanes, at).astype(np.uint32)
    words = np.frombuffer(data, "<u2", length, at + states.nbytes)
    steps = rans.decode(states, words, _table_steps(lanes, tables, anchors + others, anchors))
    symbols = lanes.rows(steps)
    numbers = symbols.astype(np.int32) - rans.LARGEST
    numbers[symbols == 2 * rans.LARGEST + 1] = escaped
    return numbers[:, :anchors], numbers[:, anchors:]
