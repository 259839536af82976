"""What the engine reports of itself at intervals: requests by state, host memory, fitted costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from andes_sglang.adapter.records import StreamRecords
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics, HostUse

__all__ = ["COSTS_PERIOD_S", "REPORT_PERIOD_S", "Reports"]

REPORT_PERIOD_S = 0.1
"""Seconds between two reports of requests by state: far below any scrape interval, and next to nothing per iteration."""
COSTS_PERIOD_S = 2.0
"""Seconds between two reports of fitted costs: they change slowly, and each takes a fit."""


class Reports:
    """Sent to ``metrics``, no more often than their periods. host_use: None on an engine without a host tier."""

    def __init__(
        self,
        metrics: EngineMetrics,
        records: StreamRecords,
        *,
        latency: LatencyModel,
        host_use: Callable[[], HostUse] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._metrics = metrics
        self._records = records
        self._latency = latency
        self._host_use = host_use
        self._clock = clock
        self._due_s = 0.0
        self._costs_due_s = 0.0

    def send(self, *, running: Sequence[Any], parked: int, waiting: Sequence[Any], now: bool = False) -> None:
        """running, waiting: requests of batch and queue. parked: how many there are. now: even if a report was just sent."""
        now_s = self._clock()
        if now_s < self._due_s and not now:
            return
        self._due_s = now_s + REPORT_PERIOD_S
        released = sum(map(self._records.has_begun, waiting))
        self._metrics.population(
            running=len(running), parked=parked, released=released, waiting=len(waiting) - released
        )
        records = filter(None, map(self._records.find, running))
        self._metrics.unpreemptible(sum(not record.preemptible for record in records))
        if self._host_use is not None:
            self._metrics.host(self._host_use())
        if now_s >= self._costs_due_s:
            self._costs_due_s = now_s + COSTS_PERIOD_S
            self._metrics.costs(self._latency)
