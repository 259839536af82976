"""What is booked of demand between reconciles, kept in ``status.memory``: rates by the minute, and work that was put off."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from andes_operator.growth import KEPT_MINUTES
from andes_operator.observe import Observation

__all__ = ["MINUTE_S", "Ledger"]

MINUTE_S = 60.0
"""Seconds."""
WORK_FADING_S = 600.0
"""Seconds in which a new mean of the work of a request replaces the old one: answers are long before they are known to be."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """at_s: of the last entry, Unix seconds; None: there is none. minute: the last whole one, since the epoch; minutes_rps:
    rates up to it, the latest last. work_s: of one request, in seconds of a replica; None: not known yet. backlog_s:
    replica-seconds of work that came and could not be done yet."""

    at_s: float | None = None
    minute: int = 0
    minutes_rps: tuple[float, ...] = ()
    work_s: float | None = None
    backlog_s: float = 0.0

    def enter(self, seen: Observation, work_s: float | None, rho: float | None) -> Ledger:
        """With what came since the last entry. work_s: of a request, by the latest sample; rho: done by one in a second."""
        elapsed_s = math.inf if self.at_s is None else max(0.0, seen.now_s - self.at_s)
        share = min(1.0, elapsed_s / WORK_FADING_S)
        mean_s = self.work_s
        if work_s is not None:
            mean_s = work_s if mean_s is None else mean_s + share * (work_s - mean_s)
        backlog_s = self.backlog_s
        if mean_s is not None and rho is not None and self.at_s is not None:
            came = self._came(seen, elapsed_s) * mean_s
            backlog_s = max(0.0, backlog_s + came - rho * seen.pods.ready * elapsed_s)
        if not seen.engine_requests:
            backlog_s = 0.0  # whatever was booked: nothing is left to do
        return replace(self._minutes(seen), at_s=seen.now_s, work_s=mean_s, backlog_s=backlog_s)

    def _came(self, seen: Observation, elapsed_s: float) -> float:
        """Readers' requests since the last entry; by the present rate where the record does not go back as far."""
        at_s = seen.now_s - elapsed_s
        if at_s < seen.complete_since_s:
            return seen.rate_rps * elapsed_s
        return float(sum(arrival_s > at_s for arrival_s in seen.reader_arrivals_s))

    def _minutes(self, seen: Observation) -> Ledger:
        last = int(seen.now_s // MINUTE_S) - 1
        first = max(last - KEPT_MINUTES + 1, self.minute + 1 if self.minutes_rps else 0)
        arrivals_s = seen.reader_arrivals_s
        added = []
        for minute in range(first, last + 1):
            begin_s = MINUTE_S * minute
            if begin_s >= seen.complete_since_s:
                came = bisect_right(arrivals_s, begin_s + MINUTE_S) - bisect_right(arrivals_s, begin_s)
                added.append(came / MINUTE_S)
            elif self.minutes_rps:
                added.append(seen.rate_rps)  # the record begins later: it cannot be known any more
        if not added and last < first:
            return self
        return replace(self, minute=max(last, self.minute), minutes_rps=(*self.minutes_rps, *added)[-KEPT_MINUTES:])

    def to_dict(self) -> dict[str, Any]:
        return {
            "at": self.at_s, "minute": self.minute, "requestsPerSecond": [float(f"{rate:.4g}") for rate in self.minutes_rps],
            "workSeconds": self.work_s, "backlogSeconds": round(self.backlog_s, 1),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Ledger:
        """Inverse of :meth:`to_dict`; empty where ``data`` is. Raises ``ValueError`` for what is not a number >= 0."""
        if not data:
            return cls()
        return cls(
            at_s=None if data.get("at") is None else _number(data["at"]),
            minute=int(_number(data["minute"])),
            minutes_rps=tuple(_number(rate) for rate in data["requestsPerSecond"]),
            work_s=None if data.get("workSeconds") is None else _number(data["workSeconds"]),
            backlog_s=_number(data["backlogSeconds"]),
        )


def _number(said: Any) -> float:
    number = float(said)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected a number >= 0, got {said!r}")
    return number
