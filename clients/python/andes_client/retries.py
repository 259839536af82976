"""When a refused or failed request is asked again. Pure: what it waits for and when it gives up is decided here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import openai

__all__ = ["Retries", "Wait"]

FULL = (429, 503)
"""Statuses that say "come back", where they say when."""
PASSING = (408, 409, 429)
"""Refusals that need not last, as ``openai`` takes them; so are all from 500 on."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 8.0
"""Seconds after a failure that does not say how long, doubling."""


@dataclass(frozen=True)
class Wait:
    """seconds: until the next try. reason: for the reader."""

    seconds: float
    reason: str


@dataclass
class Retries:
    """Of one question. max_wait_s: seconds that its reader is willing to wait in all; attempts: failures, of connections or
    servers, after which it is asked again."""

    max_wait_s: float
    attempts: int
    waited_s: float = 0.0
    _failed: int = 0

    def after(self, error: Exception) -> Wait | None:
        """What to wait for after ``error``; None: give up."""
        wait = None
        if isinstance(error, openai.APIStatusError):
            wait = self._refused(error)
        elif isinstance(error, openai.APIConnectionError):
            wait = self._failure(None, "the server cannot be reached")
        if wait is None or self.waited_s + wait.seconds > self.max_wait_s:
            return None
        self.waited_s += wait.seconds
        return wait

    def _refused(self, error: openai.APIStatusError) -> Wait | None:
        status, headers = error.status_code, error.response.headers
        seconds = _seconds(headers)
        if headers.get("x-should-retry") == "false":
            return None
        if status in FULL and seconds is not None:
            return Wait(seconds, error.message)
        return self._failure(seconds, error.message) if status in PASSING or status >= 500 else None

    def _failure(self, seconds: float | None, reason: str) -> Wait | None:
        if self._failed >= self.attempts:
            return None
        self._failed += 1
        if seconds is None:
            seconds = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self._failed - 1))
        return Wait(seconds, reason)


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Until the time to come back: ``Retry-After`` in seconds or as a date, counted from the server's own, or OpenAI's
    ``retry-after-ms``."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        return seconds if 0 <= seconds < math.inf else None
    until_s = _date_s(headers.get("retry-after"))
    now_s = _date_s(headers.get("date"))
    return None if until_s is None else max(0.0, until_s - (time.time() if now_s is None else now_s))


def _date_s(text: str | None) -> float | None:
    """Of a date as HTTP writes it, in seconds since 1970."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError):
        return None
