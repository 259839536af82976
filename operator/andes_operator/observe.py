"""What is known at a tick: the reports of all gateways and the pods, merged, and judged for whether they can be trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from andes_operator.names import Reason
from andes_sglang.qoe import QoETarget
from andes_sglang.sketch import Sketch

__all__ = ["Fault", "FleetReplica", "Observation", "Pods", "Report", "Request", "merge"]

PolicyOptions = tuple[tuple[str, Any], ...]
CLOCK_TOLERANCE_S = 30.0
REFUSED = ("shed", "failed")
"""Outcomes of requests that no engine served."""
FOREIGN_LEAST, FOREIGN_SHARE = 10, 0.5


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the scale is held."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Request:
    """One request at a gateway. arrival_s: Unix seconds; lengths in tokens; done: its output_tokens are final;
    refused: nobody served it. target: what its reader expects; None where that is as its class says."""

    arrival_s: float
    class_name: str
    prompt_tokens: int
    output_tokens: int
    done: bool
    refused: bool = False
    target: QoETarget | None = None


@dataclass(frozen=True, slots=True)
class FleetReplica:
    """An engine as one gateway sees it: its streams there, those without a first token, and what others sent it. policy: that
    it says is in charge, and its options; requests: what it holds by its own count. None where it says nothing."""

    name: str
    healthy: bool
    draining: bool
    streams: int
    waiting: int
    others: int
    policy: tuple[str, PolicyOptions] | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one gateway says. now_s: its clock when it answered; received_s: ours. demand_since_s: its list of requests is
    complete from then on. ended, running: QoE per class of the streams that ended in the window, and of those open. held:
    requests that wait there for an engine."""

    gateway: str
    now_s: float
    received_s: float
    demand_since_s: float
    requests: tuple[Request, ...]
    ended: Mapping[str, Sketch]
    running: Mapping[str, Sketch]
    replicas: tuple[FleetReplica, ...]
    held: int = 0

    @classmethod
    def of(
        cls,
        gateway: str,
        demand: Mapping[str, Any],
        qoe: Mapping[str, Any],
        replicas: Mapping[str, Any],
        since_s: float,
        received_s: float,
    ) -> Report:
        """From the answers of ``/fleet/demand?since=since_s``, ``/fleet/qoe`` and ``/fleet/replicas``. Raises
        ``ValueError`` naming gateway and field."""
        try:
            requests = tuple(
                Request(
                    _number(r["arrival_s"]), str(r["class"]), int(_number(r["prompt_tokens"])),
                    int(_number(r["output_tokens"])), r["outcome"] == "done", r["outcome"] in REFUSED,
                    QoETarget(_number(r["ttft_target_s"]), _number(r["tds"])) if "tds" in r else None,
                )
                for r in demand["records"]
            )  # fmt: skip
            return cls(
                gateway=gateway,
                now_s=min(_number(demand["now_s"]), _number(qoe["now_s"])),
                received_s=received_s,
                demand_since_s=max(since_s, float(demand.get("complete_since_s") or since_s)),
                requests=requests,
                ended={name: Sketch.from_dict(sketch) for name, sketch in qoe["classes"].items()},
                running={name: Sketch.from_dict(sketch) for name, sketch in qoe["running"].items()},
                replicas=tuple(
                    FleetReplica(
                        str(r["name"]), bool(r["healthy"]), bool(r["draining"]), int(_number(r["streams"])),
                        int(_number(r["waiting"])), int(_number(r["others"])), _policy(r.get("policy")),
                        None if r.get("requests") is None else int(_number(r["requests"])),
                    )
                    for r in replicas["replicas"]
                ),
                held=int(_number(demand.get("held", 0))),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"gateway {gateway}: {type(error).__name__} {error}") from None


def _policy(said: Mapping[str, Any] | None) -> tuple[str, PolicyOptions] | None:
    if not said:
        return None
    if not all(isinstance(value, str | int | float) for value in said["options"].values()):
        raise ValueError(f"policy options: {said['options']!r}")
    return str(said["name"]), tuple(sorted(said["options"].items()))


def _number(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected a number >= 0, got {value!r}")
    return number


@dataclass(frozen=True, slots=True)
class Pods:
    """The target's scale. wanted: ``spec.replicas``; there: pods that exist and are not going; ready: those that serve;
    going: those that still drain, on their GPUs."""

    wanted: int
    there: int
    ready: int
    going: int = 0

    @property
    def starting(self) -> int:
        """Supply on its way."""
        return max(0, max(self.wanted, self.there) - self.ready)


@dataclass(frozen=True, slots=True)
class Observation:
    """The fleet at ``now_s`` (Unix seconds). rate_rps: requests/s over the last ``window_s``. idle_s: since the last
    arrival, at least. open_streams: of readers; engine_requests: what the engines hold, by their own count where they say it,
    and what waits for one: an answer that a slow reader has not read to its end is no load. recent: requests in order of
    arrival. policy: of most engines that
    say theirs, with its options. With ``fault`` the rest may be wrong and is not acted on."""

    now_s: float
    pods: Pods
    rate_rps: float = 0.0
    idle_s: float = math.inf
    open_streams: int = 0
    engine_requests: int = 0
    waiting: int = 0
    ended: Mapping[str, Sketch] = field(default_factory=dict)
    running: Mapping[str, Sketch] = field(default_factory=dict)
    recent: Sequence[Request] = ()
    streams_by_replica: Mapping[str, int] = field(default_factory=dict)
    draining_replicas: frozenset[str] = frozenset()
    policy: tuple[str, PolicyOptions] | None = None
    fault: Fault | None = None

    @property
    def qoe(self) -> dict[str, Sketch]:
        """Per class, of the streams that ended in the window and of those open."""
        return merge_classes([self.ended, self.running])


def merge_classes(parts: Iterable[Mapping[str, Sketch]]) -> dict[str, Sketch]:
    parts = list(parts)
    names = sorted({name for part in parts for name in part})
    return {name: Sketch.merged(part[name] for part in parts if name in part) for name in names}


def merge(
    reports: Sequence[Report],
    pods: Pods,
    now_s: float,
    window_s: float,
    missing: Sequence[str] = (),
    broken: Sequence[str] = (),
    stale_after_s: float = 60.0,
) -> Observation:
    """One observation of all gateways' reports. missing: what did not answer; broken: answers that make no sense. Where
    anything is missing, stale or contradictory the observation carries the fault, and whatever could be read."""
    requests = sorted((r for report in reports for r in report.requests), key=lambda r: r.arrival_s)
    since_s = max([now_s - window_s, *(report.demand_since_s for report in reports)])
    span_s = max(1.0, now_s - since_s)
    streams: dict[str, int] = {}
    loads: dict[str, int] = {}
    counts: dict[str, int] = {}
    for report in reports:
        for r in report.replicas:
            streams[r.name] = streams.get(r.name, 0) + r.streams
            loads[r.name] = max(loads.get(r.name, 0), r.streams + r.others)
            if r.requests is not None:
                counts[r.name] = max(counts.get(r.name, 0), r.requests)
    ours = sum(streams.values())
    held = sum(report.held for report in reports)
    policies = Counter(r.policy for report in reports for r in report.replicas if r.healthy and r.policy)
    return Observation(
        now_s=now_s,
        pods=pods,
        rate_rps=sum(r.arrival_s > since_s for r in requests) / span_s,
        idle_s=now_s - requests[-1].arrival_s if requests else now_s - since_s,
        open_streams=ours + held,
        engine_requests=sum((streams | counts).values()) + held,
        waiting=sum(r.waiting for report in reports for r in report.replicas) + held,
        ended=merge_classes(report.ended for report in reports),
        running=merge_classes(report.running for report in reports),
        recent=tuple(requests),
        streams_by_replica=streams,
        policy=max(policies, key=lambda policy: policies[policy], default=None),
        draining_replicas=frozenset(r.name for report in reports for r in report.replicas if r.draining),
        fault=_fault(reports, pods, now_s, missing, broken, stale_after_s, ours, sum(loads.values())),
    )


def _fault(
    reports: Sequence[Report],
    pods: Pods,
    now_s: float,
    missing: Sequence[str],
    broken: Sequence[str],
    stale_after_s: float,
    ours: int,
    load: int,
) -> Fault | None:
    if broken:
        return Fault(Reason.DATA_CONTRADICTORY, "; ".join(broken))
    if missing or not reports:
        return Fault(Reason.DATA_MISSING, "; ".join(missing) or "no gateway to ask")
    for report in reports:
        if now_s - report.received_s > stale_after_s:
            age_s = now_s - report.received_s
            return Fault(Reason.DATA_STALE, f"what gateway {report.gateway} said is {age_s:.0f} s old")
        skew_s = report.now_s - report.received_s
        if abs(skew_s) > CLOCK_TOLERANCE_S:
            side = "ahead" if skew_s > 0 else "behind"
            return Fault(
                Reason.DATA_STALE if skew_s < 0 else Reason.DATA_CONTRADICTORY,
                f"the clock of gateway {report.gateway} is {abs(skew_s):.0f} s {side}, or its answer is old",
            )
    if pods.ready and not any(r.healthy for report in reports for r in report.replicas):
        return Fault(Reason.DATA_CONTRADICTORY, f"{pods.ready} replicas are ready, but no gateway finds a healthy one")
    if load - ours >= FOREIGN_LEAST and load - ours > FOREIGN_SHARE * load:
        return Fault(
            Reason.DATA_CONTRADICTORY, f"the engines hold {load} requests of which no gateway sent {load - ours}"
        )
    return None
