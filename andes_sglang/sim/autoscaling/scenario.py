"""Demand on one kind of engine, and the clock that autoscalers run by.

A recorded day is too long to simulate, so it can be compressed: ``speed`` seconds of the autoscaler's clock pass in one
simulated second, and whatever an autoscaler does by the clock (intervals, stabilisation, cold start) is as much shorter.
Requests, engines and readers are not compressed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import capacity_rps
from andes_sglang.sim.whatif import work_s
from andes_sglang.workload import Rates, SyntheticWorkload, Workload, mean_length, readers_of

__all__ = ["FinishedRequests", "Scenario", "busy_rps"]

MAX_DISORDER_S = 5.0
"""Simulated seconds by which records may come out of order of end, for each replica is simulated on its own from one arrival
to the next; longer than nearly all gaps between arrivals of the recorded days."""


def busy_rps(engine: EngineModel, requests: Sequence[RequestSpec]) -> float:
    """Requests like ``requests`` in a second that keep one replica of ``engine`` busy."""
    return len(requests) / float(work_s(engine, requests).sum())


@dataclass(frozen=True)
class Scenario:
    """``requests`` in order of arrival (simulated seconds) for replicas of ``engine``. Raises ``ValueError``.

    speed: seconds of the autoscaler's clock in one simulated second. clock_cold_start_s: from the order of a replica to its
    first request, by the autoscaler's clock. past: ``(duration_s, rate_rps)`` of the windows before the first request, by the
    autoscaler's clock, oldest first; empty where nothing is known of the past.
    """

    requests: Sequence[RequestSpec]
    engine: EngineModel
    speed: float = 1.0
    clock_cold_start_s: float = 300.0
    past: Rates = ()

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("requests must not be empty")
        if not self.speed > 0:
            raise ValueError(f"speed must be > 0, got {self.speed!r}")
        if not self.clock_cold_start_s >= 0:
            raise ValueError(f"clock_cold_start_s must be >= 0 seconds, got {self.clock_cold_start_s!r}")

    @classmethod
    def of_day(
        cls, rates: Rates, engine: EngineModel, *, day: int, day_windows: int, peak_replicas: float, lengths: tuple[str, str],
        speed: float, seed: int, clock_cold_start_s: float = 300.0,
    ) -> Scenario:  # fmt: skip
        """Poisson arrivals of one day of ``rates`` (windows by the autoscaler's clock), with the days before it as past.

        day_windows: windows in a day. peak_replicas: rates are scaled so that the highest of the day keeps as many replicas
        busy, by :func:`~andes_sglang.sim.plan.capacity_rps`. lengths: of prompts and answers, as on the command line.
        """
        first, last = day * day_windows, (day + 1) * day_windows
        if not 0 <= day < len(rates) / day_windows:
            raise ValueError(f"day must be in [0, {len(rates) / day_windows:g}), got {day!r}")
        peak_rps = max(rate for _, rate in rates[first:last])
        scale = peak_replicas * capacity_rps(engine, mean_length(lengths[0]), mean_length(lengths[1])) / peak_rps
        past = tuple((seconds, rate * scale / speed) for seconds, rate in rates[:first])
        simulated: Rates = tuple((seconds / speed, rate * scale) for seconds, rate in rates[first:last])
        requests = list(SyntheticWorkload("day", simulated, *lengths, readers_of("reading"), seed))
        return cls(requests, engine, speed, clock_cold_start_s, past)

    @classmethod
    def of_requests(
        cls, workload: Workload, engine: EngineModel, *, every: int = 1, stretch: float = 1.0, speed: float, seed: int,
        clock_cold_start_s: float = 300.0,
    ) -> Scenario:  # fmt: skip
        """Every ``every``-th recorded request, its arrival ``stretch`` times as late, for readers drawn by ``seed``."""
        drawn = workload.with_readers(seed, ttft_s=None, tds=None, population="reading")
        picked = drawn.requests[(seed - 1) % every :: every]
        requests = [replace(r, arrival_s=r.arrival_s * stretch) for r in picked]
        return cls(requests, engine, speed, clock_cold_start_s)

    @cached_property
    def arrivals_s(self) -> Sequence[float]:
        return [r.arrival_s for r in self.requests]

    @cached_property
    def span_s(self) -> float:
        """Simulated seconds to the last arrival, rounded up."""
        return float(math.ceil(self.requests[-1].arrival_s))

    @property
    def clock_origin_s(self) -> float:
        """The autoscaler's clock at simulated second 0."""
        return sum(seconds for seconds, _ in self.past)

    def simulated_s(self, clock_s: float) -> float:
        """Seconds of the autoscaler's clock as simulated seconds."""
        return clock_s / self.speed

    @property
    def cold_start_s(self) -> float:
        """Simulated seconds from the order of a replica to its first request."""
        return self.simulated_s(self.clock_cold_start_s)

    def between(self, since_s: float, until_s: float) -> Sequence[RequestSpec]:
        """What arrives in [since_s, until_s)."""
        return self.requests[bisect_left(self.arrivals_s, since_s) : bisect_left(self.arrivals_s, until_s)]

    def recent(self, now_s: float, window_s: float, min_requests: int) -> list[tuple[int, RequestSpec]]:
        """What arrived in the ``window_s`` before ``now_s``, or the last ``min_requests``, with indices."""
        until = bisect_left(self.arrivals_s, now_s)
        first = max(0, min(bisect_left(self.arrivals_s, now_s - window_s), until - min_requests))
        return list(enumerate(self.requests[first:until], start=first))

    def rate_rps(self, now_s: float, window_s: float) -> float:
        """Arrivals a second in the ``window_s`` before ``now_s``, or since the beginning where that is shorter."""
        return len(self.between(now_s - window_s, now_s)) / max(1e-9, min(window_s, now_s))


@dataclass
class FinishedRequests:
    """Records of one run, about in order of end: an autoscaler's window on what readers got."""

    records: list[RequestRecord] = field(default_factory=list)

    def add(self, record: RequestRecord) -> None:
        self.records.append(record)

    def since(self, since_s: float) -> list[RequestRecord]:
        """Those that ended at ``since_s`` or later, the last one first."""
        recent = []
        for record in reversed(self.records):
            if record.end_s < since_s - MAX_DISORDER_S:
                break
            if record.end_s >= since_s:
                recent.append(record)
        return recent
