"""What is known of a fleet at one reconcile: the reports of all gateways and the pods, merged and checked for trust.

:func:`merge` adds up what the gateways report (:mod:`andes_operator.gateway_report`) to an :class:`Observation`, which
carries a :class:`DataFault` where it must not be acted on. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from andes_operator.gateway_report import FleetReplica, GatewayReport, NamedPolicy, ObservedRequest, add_up
from andes_operator.names import Reason
from andes_operator.offline import OfflineWork
from andes_operator.pods import PodCounts, PodFailure
from andes_operator.spec import Figures
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.objective import Metric
from andes_sglang.sketch import DurationSketch, Sketch

__all__ = [
    "DataFault", "Observation", "PodCounts", "PodFailure", "merge",
]  # fmt: skip

Merged = TypeVar("Merged", bound=Sketch)
Reported = TypeVar("Reported", bound=Hashable)

CLOCK_TOLERANCE_S = 30.0
"""Seconds; a quarter of the default observation window: an error of that size still leaves most of it."""
STALE_AFTER_S = 60.0
"""Seconds; four reconciles at the default interval."""
MIN_FOREIGN, FOREIGN_SHARE = 10, 0.5
"""Requests that no gateway sent, and their share of the engines' load, above which the gateways' data says too little."""


@dataclass(frozen=True, slots=True)
class DataFault:
    """Why the data is not trusted and the scale is held."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Observation:
    """The fleet at ``now_s`` (Unix seconds). With ``fault`` the rest may be wrong and is not acted on.

    rate_rps: readers' requests/s over the last window. complete_since_s: ``recent``, requests in order of arrival, is
    complete from then on (Unix seconds). open_streams: of readers, waiting ones included. engine_requests: what the
    engines hold, by their own count where they report it, and what waits for one, but for
    what has no reader; an answer that a slow reader has not read to its end
    is no load. waiting: streams without a first token. policy, flags: what most engines report; routing_policy: what
    most gateways do. offline: batches."""

    now_s: float
    pods: PodCounts
    rate_rps: float = 0.0
    complete_since_s: float = math.inf
    open_streams: int = 0
    engine_requests: int = 0
    waiting: int = 0
    ended: Mapping[str, Sketch] = field(default_factory=dict)
    running: Mapping[str, Sketch] = field(default_factory=dict)
    ttft: Mapping[str, DurationSketch] = field(default_factory=dict)
    stall: Mapping[str, DurationSketch] = field(default_factory=dict)
    recent: Sequence[ObservedRequest] = ()
    streams_by_replica: Mapping[str, int] = field(default_factory=dict)
    policy: NamedPolicy | None = None
    routing_policy: NamedPolicy | None = None
    flags: EngineFlags | None = None
    offline: OfflineWork = field(default_factory=OfflineWork)
    fault: DataFault | None = None

    @property
    def last_arrival_s(self) -> float | None:
        """Unix seconds; None: no request in the whole record."""
        return self.recent[-1].arrival_s if self.recent else None

    @property
    def reader_arrivals_s(self) -> list[float]:
        """Of the record, when readers' requests came; what yields runs on what they leave over."""
        return [r.arrival_s for r in self.recent if not r.yields]

    @property
    def figures(self) -> Figures:
        """What readers got, by class, of the streams that ended in the window and of those open."""
        return {
            Metric.QOE: add_up([self.ended, self.running], Sketch),
            Metric.TTFT: self.ttft,
            Metric.STALL: self.stall,
        }


def merge(
    reports: Sequence[GatewayReport],
    pods: PodCounts,
    now_s: float,
    window_s: float,
    *,
    missing: Sequence[str] = (),
    broken: Sequence[str] = (),
) -> Observation:
    """One observation of all gateways' reports.

    missing: messages about gateways that did not answer; broken: about answers that could not be read. Where anything is
    missing, stale or contradictory, the observation carries the fault and what could be read.
    """
    requests = sorted((r for report in reports for r in report.requests), key=lambda r: r.arrival_s)
    replicas = [r for report in reports for r in report.replicas]
    complete_since_s = max((report.demand_since_s for report in reports), default=now_s)
    since_s = max(now_s - window_s, complete_since_s)
    streams, counts = _streams(replicas), _own_counts(replicas)
    held = sum(report.held for report in reports)
    ended, running = _readers_scores(reports, requests)
    ttft, stall = _readers_seconds(reports, requests)
    return Observation(
        now_s=now_s,
        pods=pods,
        rate_rps=_rate_rps(requests, since_s, now_s),
        complete_since_s=complete_since_s,
        open_streams=sum(streams.values()) + held,
        engine_requests=max(0, sum((streams | counts).values()) + held - _offline(replicas, counts, requests)),
        waiting=sum(r.waiting for r in replicas) + held,
        ended=ended,
        running=running,
        ttft=ttft,
        stall=stall,
        recent=tuple(requests),
        streams_by_replica=streams,
        policy=_engine_policy(replicas),
        flags=_engine_flags(replicas),
        routing_policy=_most_common(report.routing_policy for report in reports),
        offline=OfflineWork.merged(report.offline for report in reports),
        fault=_unread(reports, missing, broken) or _clock_fault(reports, now_s) or _contradiction(replicas, pods),
    )


def _rate_rps(requests: Iterable[ObservedRequest], since_s: float, now_s: float) -> float:
    """Of readers' requests."""
    return sum(r.arrival_s > since_s and not r.yields for r in requests) / max(1.0, now_s - since_s)


def _streams(replicas: Iterable[FleetReplica]) -> dict[str, int]:
    """Streams by engine: the sum over gateways."""
    streams: Counter[str] = Counter()
    for replica in replicas:
        streams[replica.name] += replica.streams
    return dict(streams)


def _own_counts(replicas: Iterable[FleetReplica]) -> dict[str, int]:
    """Requests by engine, of those that count themselves: the largest, gateways having asked at different times."""
    counts: dict[str, int] = {}
    for replica in replicas:
        if replica.requests is not None:
            counts[replica.name] = max(counts.get(replica.name, 0), replica.requests)
    return counts


def _engine_policy(replicas: Iterable[FleetReplica]) -> NamedPolicy | None:
    """The policy that most healthy engines run."""
    return _most_common(replica.policy for replica in replicas if replica.healthy)


def _engine_flags(replicas: Iterable[FleetReplica]) -> EngineFlags | None:
    """The flags that most healthy engines have."""
    return _most_common(replica.flags for replica in replicas if replica.healthy)


def _most_common(reported: Iterable[Reported | None]) -> Reported | None:
    counts = Counter(one for one in reported if one is not None)
    return max(counts, key=lambda one: counts[one], default=None)


def _offline(replicas: Sequence[FleetReplica], counts: Mapping[str, int], requests: Iterable[ObservedRequest]) -> int:
    """Requests without a reader among those that the engines hold: by the gateways' count, else by the record."""
    if all(r.offline is not None for r in replicas):
        return sum(r.offline or 0 for r in replicas if r.name in counts)
    return sum(bool(r.yields) and not r.done and not r.refused for r in requests)


def _readers_scores(reports: Sequence[GatewayReport], requests: Sequence[ObservedRequest]) -> list[dict[str, Sketch]]:
    """QoE by class, of what ended and of what is open."""
    parts = [r.ended for r in reports], [r.running for r in reports]
    return [_of_readers(part, Sketch, requests) for part in parts]


def _readers_seconds(
    reports: Sequence[GatewayReport], requests: Sequence[ObservedRequest]
) -> list[dict[str, DurationSketch]]:
    """By class, seconds to first tokens and of stalls."""
    parts = [r.ttft for r in reports], [r.stall for r in reports]
    return [_of_readers(part, DurationSketch, requests) for part in parts]


def _of_readers(
    parts: Iterable[Mapping[str, Merged]], kind: type[Merged], requests: Sequence[ObservedRequest]
) -> dict[str, Merged]:
    """All ``parts`` without classes whose requests all yield: they have no reader, and run on what readers leave over."""
    readers = {request.class_name for request in requests if not request.yields}
    offline = {request.class_name for request in requests} - readers
    return {name: sketch for name, sketch in add_up(parts, kind).items() if name not in offline}


def _unread(reports: Sequence[GatewayReport], missing: Sequence[str], broken: Sequence[str]) -> DataFault | None:
    if broken:
        return DataFault(Reason.DATA_CONTRADICTORY, "; ".join(broken))
    if missing or not reports:
        return DataFault(Reason.DATA_MISSING, "; ".join(missing) or "no gateway to ask")
    return None


def _clock_fault(reports: Iterable[GatewayReport], now_s: float) -> DataFault | None:
    for report in reports:
        age_s, skew_s = now_s - report.received_s, report.now_s - report.received_s
        if age_s > STALE_AFTER_S:
            return DataFault(Reason.DATA_STALE, f"the answer of gateway {report.gateway} is {age_s:.0f} s old")
        if abs(skew_s) > CLOCK_TOLERANCE_S:
            side = "ahead" if skew_s > 0 else "behind"
            return DataFault(
                Reason.DATA_STALE if skew_s < 0 else Reason.DATA_CONTRADICTORY,
                f"the clock of gateway {report.gateway} is {abs(skew_s):.0f} s {side}, or its answer is old",
            )
    return None


def _contradiction(replicas: Sequence[FleetReplica], pods: PodCounts) -> DataFault | None:
    if pods.ready and not any(r.healthy or r.streams for r in replicas):  # a busy engine may miss its health checks
        return DataFault(
            Reason.DATA_CONTRADICTORY, f"{pods.ready} replicas are ready, but no gateway finds a healthy one"
        )
    loads: dict[str, int] = {}
    for r in replicas:
        loads[r.name] = max(loads.get(r.name, 0), r.streams + (r.offline or 0) + r.others)
    load, foreign = sum(loads.values()), sum(loads.values()) - sum(r.streams + (r.offline or 0) for r in replicas)
    if foreign >= MIN_FOREIGN and foreign > FOREIGN_SHARE * load:
        return DataFault(
            Reason.DATA_CONTRADICTORY, f"the engines hold {load} requests of which no gateway sent {foreign}"
        )
    return None
