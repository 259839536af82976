"""The token pacer: releases tokens at the reader's speed rather than in the engine's bursts. Pure: time is an argument."""

from __future__ import annotations

__all__ = ["Pacer"]


class Pacer:
    """When the reader of one stream wants its next tokens.

    The first token goes out as it comes; token k is due when its reader has digested the k - 1 before it, at ``tds``
    tokens/s (the digest time of Andes, section 3), or when it is delivered if that is later. Tokens due within
    ``interval_s`` of each other go out together, early rather than late: none is ever held past its due time.
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

    def releases(self, due_s: float, now_s: float) -> bool:
        """Whether what is due at ``due_s`` goes out at ``now_s``."""
        return due_s <= now_s + self._interval_s
