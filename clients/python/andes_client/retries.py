"""When a refused or failed request is asked again. Pure: what it waits for and when it gives up is decided here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import openai

__all__ = ["Retries", "Wait"]

REFUSALS = (429, 503)
"""Statuses that say "come back": all that carry ``Retry-After`` are obeyed."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 8.0
"""Seconds after a connection that failed, doubling."""


@dataclass(frozen=True)
class Wait:
    """seconds: until the next try. reason: for the reader."""

    seconds: float
    reason: str


@dataclass
class Retries:
    """Of one question. max_wait_s: seconds that its reader is willing to wait in all; attempts: connections that may fail."""

    max_wait_s: float
    attempts: int
    waited_s: float = 0.0
    _failed: int = 0

    def after(self, error: Exception) -> Wait | None:
        """What to wait for after ``error``; None: give up."""
        wait = self._refused(error) if isinstance(error, openai.APIStatusError) else self._unreachable(error)
        if wait is None or self.waited_s + wait.seconds > self.max_wait_s:
            return None
        self.waited_s += wait.seconds
        return wait

    def _refused(self, error: openai.APIStatusError) -> Wait | None:
        if (
            error.status_code not in REFUSALS
            or (seconds := _seconds(error.response.headers.get("retry-after"))) is None
        ):
            return None
        return Wait(seconds, error.message)

    def _unreachable(self, error: Exception) -> Wait | None:
        if not isinstance(error, openai.APIConnectionError) or self._failed >= self.attempts:
            return None
        self._failed += 1
        return Wait(min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self._failed - 1)), "the server cannot be reached")


def _seconds(header: str | None) -> float | None:
    """Of a ``Retry-After``; a date, which no gateway of ours sends, counts as none."""
    try:
        seconds = float(header) if header is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
