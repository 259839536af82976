"""The token pacer: releases tokens at the reader's speed rather than in the engine's bursts. Pure: time is an argument."""

from __future__ import annotations

__all__ = ["Pacer"]


class Pacer:
    """When the reader of one stream wants its next tokens.

    The first token goes out as it comes; token k is due when its reader has digested the k - 1 before it, at ``tds``
    tokens/s (the digest time of Andes, section 3), or when it is delivered if that is later. A token goes out one to two
    ``interval_s`` before it is due, together with all that are due within that time: groups of one interval when ``tds`` is
    high, and none late for the scheduler's jitter.
    """

    def __init__(self, tds: float, interval_s: float) -> None:
        self._pace_s = 1.0 / tds
        self._interval_s = interval_s
        self._next_s = 0.0

    def due(self, delivered_s: float, tokens: int) -> float:
        """When ``tokens`` tokens that the engine delivered at ``delivered_s`` (clock seconds) are due."""
        due_s = max(delivered_s, self._next_s)
        self._next_s = due_s + tokens * self._pace_s
        return due_s

    def wait_s(self, due_s: float, now_s: float) -> float:
        """Seconds until what is due at ``due_s`` goes out."""
        return max(0.0, due_s - self._interval_s - now_s)

    def releases(self, due_s: float, now_s: float) -> bool:
        """Whether what is due at ``due_s`` goes out with what goes out at ``now_s``."""
        return due_s <= now_s + 2 * self._interval_s
