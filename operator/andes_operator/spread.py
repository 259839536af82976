"""Whose turn it is: what many targets do as often as each other is spread evenly over the interval, and is the same after a
restart. Pure.

Each has a place in an interval, by its name. Targets that were created together, or found together by an operator that has
just started, would otherwise be looked at and written together for ever.
"""

from __future__ import annotations

import zlib

__all__ = ["place", "turns", "until_turn_s"]


def place(name: str) -> float:
    """Of the interval, in [0, 1): the same everywhere."""
    return zlib.crc32(name.encode()) / 2**32


def turns(name: str, at_s: float, interval_s: float) -> int:
    """How many turns, one in each ``interval_s``, it has had by ``at_s``: more than before means that one has come since."""
    return int((at_s / interval_s - place(name)) // 1.0)


def until_turn_s(name: str, now_s: float, interval_s: float) -> float:
    """Seconds until its turn that is nearest to an interval from now: from half of one to one and a half; one, once it is in
    its place."""
    ahead = place(name) - now_s / interval_s
    return interval_s * (0.5 + (ahead - 0.5) % 1.0)
