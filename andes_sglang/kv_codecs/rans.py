"""Arithmetic coding of many channels at once: range asymmetric numeral systems (Duda, arXiv 1311.2540), interleaved.

Symbols are small integers around 0, each channel's drawn from one of :data:`TABLES` two-sided geometric distributions, which
a byte of the channel names. The tables are made of whole numbers only, so that every machine has the same.

Lanes are coded side by side, each with a state of 32 bits; what a state has too much of goes out 16 bits at a time into one
common stream. A lane codes backwards what it decodes forwards.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST", "TABLES", "best_tables", "decode", "encode"]

Symbols = npt.NDArray[np.uint8]
States = npt.NDArray[np.uint32]
LARGEST = 127
"""A symbol stands for -127 to 127, as 0 to 254; 255 is what says that the number is too large to be one."""
SYMBOLS = 256
PRECISION = 14
"""Bits: frequencies of a table add up to two to this."""
TOTAL = 1 << PRECISION
LEAST_STATE = 1 << 16
RATIOS = (
    2, 4, 7, 11, 16, 22, 29, 37, 46, 56, 67, 79, 92, 104, 116, 128, 139, 149, 158, 167, 175, 183, 190, 197, 203, 209, 214,
    219, 224, 228, 232, 235, 238, 241, 243, 245, 247, 248, 249, 250, 251, 252, 253, 254, 255,
)  # fmt: skip
"""Of 256: how many times as likely a number is as the one nearer to 0, by table."""
TABLES = len(RATIOS)
_UNIT = 1 << 48


class _Tables(NamedTuple):
    """frequency, before: of each symbol and of all before it, shape (TABLES * SYMBOLS,). symbol: at each place, shape
    (TABLES * TOTAL,). bits: that each symbol takes, shape (TABLES, SYMBOLS)."""

    frequency: States
    before: States
    symbol: Symbols
    bits: npt.NDArray[np.float64]


@cache
def _tables() -> _Tables:
    rows = np.array([_frequencies(ratio) for ratio in RATIOS], dtype=np.uint32)
    before = np.cumsum(rows, axis=1, dtype=np.uint32) - rows
    symbol = np.concatenate([np.repeat(np.arange(SYMBOLS, dtype=np.uint8), row) for row in rows])
    return _Tables(rows.reshape(-1), before.reshape(-1), symbol, PRECISION - np.log2(rows))


def _frequencies(ratio: int) -> list[int]:
    """Each at least 1, so that nothing is impossible; 0, the likeliest, gets what rounding leaves."""
    weights = [_UNIT]
    for _ in range(LARGEST):
        weights.append(weights[-1] * ratio >> 8)
    whole = weights[0] + 2 * sum(weights[1:])
    side = [1 + weight * (TOTAL - SYMBOLS) // whole for weight in weights[1:]]
    middle = TOTAL - 2 * sum(side) - 1
    return [*reversed(side), middle, *side, 1]


def best_tables(symbols: Symbols) -> Symbols:
    """The table that codes each channel in the fewest bits, shape (channels,); symbols: shape (channels, tokens)."""
    channels = len(symbols)
    counts = np.bincount((np.arange(channels)[:, None] * SYMBOLS + symbols).reshape(-1), minlength=channels * SYMBOLS)
    bits = counts.reshape(channels, SYMBOLS) @ _tables().bits.T
    return np.asarray(np.argmin(bits, axis=1), dtype=np.uint8)


def encode(symbols: Symbols, tables: Symbols) -> tuple[States, npt.NDArray[np.uint16]]:
    """States of the lanes and the stream, for ``symbols`` of shape (steps, lanes) from ``tables`` of the same shape."""
    known = _tables()
    at = tables.astype(np.intp) * SYMBOLS + symbols
    frequency, before = known.frequency[at], known.before[at]
    state = np.full(symbols.shape[1], LEAST_STATE, dtype=np.uint32)
    words: list[npt.NDArray[np.uint16]] = []
    for step in range(len(symbols) - 1, -1, -1):
        f = frequency[step]
        full = (state >> (32 - PRECISION)) >= f
        words.append(state[full].astype(np.uint16))
        state[full] >>= 16
        whole, rest = np.divmod(state, f)
        state = (whole << PRECISION) + rest + before[step]
    return state, np.concatenate(words[::-1])


def decode(states: States, words: npt.NDArray[np.uint16], tables: Symbols) -> Symbols:
    """What :func:`encode` was given; tables: the same, shape (steps, lanes). ``IndexError`` where ``words`` end early."""
    known = _tables()
    symbols = np.empty(tables.shape, dtype=np.uint8)
    state, read = states.copy(), 0
    for step in range(len(tables)):
        table = tables[step].astype(np.intp)
        place = state & (TOTAL - 1)
        symbol = known.symbol[table * TOTAL + place]
        at = table * SYMBOLS + symbol
        state = known.frequency[at] * (state >> PRECISION) + place - known.before[at]
        short = np.flatnonzero(state < LEAST_STATE)
        if read + len(short) > len(words):
            raise IndexError(f"{len(words)} words, more are needed")
        state[short] = (state[short] << 16) | words[read : read + len(short)]
        read += len(short)
        symbols[step] = symbol
    return symbols
