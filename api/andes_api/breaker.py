"""Whether a replica that has failed gets another request."""

from __future__ import annotations

import math

__all__ = ["CircuitBreaker"]

MAX_COOLDOWN_S = 60.0
"""Seconds; an engine restarts in about as long."""


class CircuitBreaker:
    """Opens after ``max_failures`` in a row, for ``cooldown_s`` doubling up to a minute; then one request may try. Pure: time
    is an argument (clock seconds)."""

    def __init__(self, max_failures: int, cooldown_s: float) -> None:
        self._max_failures, self._cooldown_s = max_failures, cooldown_s
        self.failures = 0
        self.open_until_s = -math.inf
        self._trying = False

    def allows(self, now_s: float) -> bool:
        return now_s >= self.open_until_s

    def succeeded(self) -> None:
        self.failures, self._trying = 0, False
        self.open_until_s = -math.inf

    def failed(self, now_s: float, *, enough: bool = False) -> None:
        """``enough``: it need not happen ``max_failures`` times. What fails while it is open counts no further."""
        if not (self.allows(now_s) or self._trying):
            return
        self._trying = False
        self.failures = max(self.failures + 1, self._max_failures) if enough else self.failures + 1
        beyond = self.failures - self._max_failures
        if beyond >= 0:
            self.open_until_s = now_s + min(MAX_COOLDOWN_S, self._cooldown_s * 2 ** min(beyond, 10))

    def trying(self, now_s: float) -> None:
        """A request goes out; after a cooldown it is the only one until its result is known."""
        if self.failures >= self._max_failures:
            self.open_until_s, self._trying = now_s + self._cooldown_s, True
