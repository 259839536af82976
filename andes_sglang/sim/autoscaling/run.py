"""One scenario under one autoscaler, to the end of the last answer: replica-hours paid, and what readers got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.autoscaling.scenario import FinishedRequests, Scenario
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Autoscaler, Fleet

__all__ = ["AutoscalingRun", "simulate_scenario"]

WINDOWS = 24
"""Parts of the scenario whose mean QoE is held to the objective: the hours of a day."""
SAMPLES = 240
"""Points of the timeline: ten an hour of a day."""
SATISFIED_QOE = 0.95
"""A request counts in ``share`` from here on."""


@dataclass(frozen=True, slots=True)
class AutoscalingRun:
    """replica_hours: simulated hours of replicas, starting and draining included. backlog_requests: open at the last arrival.
    windows: mean QoE of the requests that arrive in each part of the scenario; parts without requests are left out.
    timeline: ``(at_s, replicas)``, starting and draining included."""

    replica_hours: float
    max_replicas: int
    requests: int
    backlog_requests: int
    span_s: float
    end_s: float
    mean: float
    p5: float
    share: float
    windows: tuple[float, ...]
    timeline: tuple[tuple[float, int], ...]

    def met(self, target: float) -> float:
        """Share of windows whose mean QoE is at least ``target``."""
        return float(np.mean([value >= target for value in self.windows]))


def simulate_scenario(
    scenario: Scenario,
    policy: Callable[[], SchedulingPolicy | None],
    autoscaler: Autoscaler | None,
    *,
    replicas: int,
    engine: EngineModel | None = None,
    finished: FinishedRequests | None = None,
    routing_policy: RoutingPolicy | None = None,
    decision_interval_s: float = 0.0,
    progress: Callable[[float], None] | None = None,
    beside: Callable[[RequestRecord], None] = lambda _record: None,
) -> AutoscalingRun:
    """Serve all of ``scenario``, from ``replicas`` on. autoscaler: None for a static fleet. engine: what is served with, if
    not the scenario's (flags of an arm). finished: filled as requests end, for autoscalers that look at it. progress: told
    the share of the scenario that has arrived. beside: told of requests that are not the scenario's, with indices above its
    own: work without a reader that the autoscaler submits to replicas, in no figure but what replicas cost."""
    scores = np.zeros(len(scenario.requests))
    timeline: list[tuple[float, int]] = []

    def sink(record: RequestRecord) -> None:
        if record.index >= len(scores):
            beside(record)
            return
        scores[record.index] = record.qoe
        if finished is not None:
            finished.add(record)

    fleet = Fleet(
        engine or scenario.engine, policy, replicas=replicas, routing_policy=routing_policy or QoE(),
        autoscaler=autoscaler, start_s=scenario.cold_start_s, decision_interval_s=decision_interval_s, sink=sink,
    )  # fmt: skip
    every = max(1, len(scenario.requests) // SAMPLES)
    for number, spec in enumerate(scenario.requests):
        fleet.submit(spec)
        if number % every == 0:
            timeline.append((round(spec.arrival_s, 1), len(fleet.replicas) + len(fleet.starting)))
            if progress is not None:
                progress(spec.arrival_s / scenario.span_s)
    backlog = fleet.open_requests
    fleet.advance()
    return AutoscalingRun(
        replica_hours=fleet.replica_s / 3600.0, max_replicas=fleet.most, requests=len(scores), backlog_requests=backlog,
        span_s=scenario.span_s, end_s=fleet.now_s, mean=float(scores.mean()), p5=float(np.percentile(scores, 5)),
        share=float((scores >= SATISFIED_QOE).mean()), windows=_by_window(scenario, scores), timeline=tuple(timeline),
    )  # fmt: skip


def _by_window(scenario: Scenario, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    edges_s = np.linspace(0.0, scenario.span_s, WINDOWS + 1)
    window = np.clip(np.searchsorted(edges_s, scenario.arrivals_s, side="right") - 1, 0, WINDOWS - 1)
    return tuple(float(scores[window == k].mean()) for k in range(WINDOWS) if (window == k).any())
