"""The autoscalers that ours is compared with: HPA and KEDA on one metric, a planner by rate, one that knows the future.

Each has ``interval_s`` (simulated seconds between two questions) and ``desired_replicas(fleet)``. A static fleet has none.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from andes_sglang.sim.autoscaling.scenario import FinishedRequests, Scenario, busy_rps
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.replica import Replica

__all__ = [
    "ClairvoyantAutoscaler",
    "MetricAutoscaler",
    "RatePlanner",
    "kv_utilisation",
    "open_requests",
    "waiting_requests",
]

STABILIZATION_S = 300.0
"""Clock seconds: Kubernetes' default ``behavior.scaleDown.stabilizationWindowSeconds`` (HPA, autoscaling/v2)."""


def kv_utilisation(replica: Replica) -> float:
    """Share of the KV pool in use, in [0, 1]."""
    return replica.kv_used_tokens / replica.engine.kv_capacity_tokens


def open_requests(replica: Replica) -> float:
    """Requests that the replica has not finished: running, waiting and parked."""
    return float(replica.open_requests)


def waiting_requests(replica: Replica) -> float:
    """Requests in the replica's queue."""
    return float(len(replica.waiting))


class _Stabilization:
    """Down to the largest figure of the last ``window_s``, up at once. The first figure is that of the fleet as it is found,
    as Kubernetes' autoscaler records it: a fleet that has just begun is not cut to what its first requests need."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._asked: deque[tuple[float, int]] = deque()

    def __call__(self, fleet: Fleet, replicas: int) -> int:
        now_s = fleet.now_s
        if not self._asked:
            self._asked.append((now_s, len(fleet.serving) + len(fleet.starting)))
        self._asked.append((now_s, replicas))
        while self._asked[0][0] < now_s - self.window_s:
            self._asked.popleft()
        return max(n for _, n in self._asked)


class MetricAutoscaler:
    """Kubernetes' horizontal pod autoscaler on one metric, which is also what KEDA sets up: ``ceil(sum of metric / target)``.

    metric: of one replica. min_replicas, max_replicas: bounds. interval_s: Kubernetes' sync period, 15 s by default.
    stabilization_s: how long the largest figure is kept when load falls. tolerance: no change while the metric is within this
    share of the target; Kubernetes' default is 0.1, the published tables are without (0). All seconds are simulated. Raises
    ``ValueError`` naming argument and value.
    """

    def __init__(
        self,
        target: float,
        metric: Callable[[Replica], float] = open_requests,
        *,
        min_replicas: int = 1,
        max_replicas: int = 1000,
        interval_s: float = 15.0,
        stabilization_s: float = STABILIZATION_S,
        tolerance: float = 0.0,
    ) -> None:
        if not target > 0:
            raise ValueError(f"target must be > 0, got {target!r}")
        if not 1 <= min_replicas <= max_replicas:
            raise ValueError(f"min_replicas must be between 1 and max_replicas {max_replicas!r}, got {min_replicas!r}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {tolerance!r}")
        self.target, self.metric, self.tolerance, self.interval_s = target, metric, tolerance, interval_s
        self.min_replicas, self.max_replicas = min_replicas, max_replicas
        self._stabilize = _Stabilization(stabilization_s)

    def desired_replicas(self, fleet: Fleet) -> int:
        total, serving = sum(self.metric(r) for r in fleet.replicas), len(fleet.serving)
        desired = math.ceil(total / self.target)
        if self.tolerance and abs(total / (serving * self.target) - 1.0) <= self.tolerance:
            desired = serving + len(fleet.starting)
        return self._stabilize(fleet, min(self.max_replicas, max(self.min_replicas, desired)))


class RatePlanner:
    """A planner by service level, as NVIDIA Dynamo's: the rate of the last minute over what a replica takes by its profile,
    at ``utilisation`` of that; up to twice as many while the mean TTFT of what ended is over its target; down to the largest
    figure of the last five minutes."""

    INTERVAL_S = 60.0
    """Clock seconds between two plans, and the window of the rate (Dynamo's ``adjustment-interval`` by default is 180)."""
    MIN_REQUESTS = 50
    """The window is longer where a minute has fewer requests: the mean of fewer lengths says little."""
    MAX_CORRECTION = 2.0
    """A queue that is being worked off makes TTFT grow without bound; twice the rate's own figure drains it."""

    def __init__(
        self, scenario: Scenario, finished: FinishedRequests, utilisation: float, *, max_replicas: int = 1000
    ) -> None:
        if not utilisation > 0:
            raise ValueError(f"utilisation must be > 0, got {utilisation!r}")
        self.scenario, self.finished, self.utilisation, self.max_replicas = (
            scenario,
            finished,
            utilisation,
            max_replicas,
        )
        self.interval_s = scenario.simulated_s(self.INTERVAL_S)
        self._stabilize = _Stabilization(scenario.simulated_s(STABILIZATION_S))

    def desired_replicas(self, fleet: Fleet) -> int:
        now_s = fleet.now_s
        recent = [request for _, request in self.scenario.recent(now_s, self.interval_s, self.MIN_REQUESTS)]
        if len(recent) < 2:
            return len(fleet.serving)
        window_s = now_s - recent[0].arrival_s
        each_rps = self.utilisation * busy_rps(self.scenario.engine, recent)
        needed = math.ceil(len(recent) / window_s * self.correction(now_s - window_s) / each_rps)
        return self._stabilize(fleet, min(self.max_replicas, max(1, needed)))

    def correction(self, since_s: float) -> float:
        """Mean of TTFT over its target of what ended since, in [1, ``MAX_CORRECTION``]; 1 where nothing ended."""
        late = [r.ttft_s / r.ttft_target_s for r in self.finished.since(since_s)]
        return min(self.MAX_CORRECTION, max(1.0, float(np.mean(late)))) if late else 1.0


class ClairvoyantAutoscaler:
    """Knows what will arrive: enough, at ``utilisation`` of what a replica takes, for the busiest stretch until a replica
    ordered now would serve; just in time, and gone at once. The limit for an autoscaler that plans by rate; no bound."""

    STRETCH_S = 600.0
    """Clock seconds over which a rate is taken: as the operator's history of requests, at most ten minutes."""
    MIN_STRETCH_S = 10.0
    """Simulated seconds: in a compressed day fewer have too few requests for a rate."""

    def __init__(self, scenario: Scenario, utilisation: float, *, max_replicas: int = 1000) -> None:
        if not utilisation > 0:
            raise ValueError(f"utilisation must be > 0, got {utilisation!r}")
        self.scenario, self.utilisation, self.max_replicas = scenario, utilisation, max_replicas
        self.interval_s = max(1.0, scenario.simulated_s(60.0))

    def desired_replicas(self, fleet: Fleet) -> int:
        return self.replicas_at(fleet.now_s)

    def replicas_at(self, now_s: float) -> int:
        scenario = self.scenario
        stretch_s = max(scenario.simulated_s(self.STRETCH_S), self.MIN_STRETCH_S)
        starts_s = now_s + np.arange(-0.5 * stretch_s, scenario.cold_start_s + stretch_s, 0.5 * stretch_s)
        stretches = [scenario.between(start, start + stretch_s) for start in starts_s]
        needed = [len(those) / stretch_s / busy_rps(scenario.engine, those) for those in stretches if those]
        return min(self.max_replicas, max(1, math.ceil(max(needed, default=0.0) / self.utilisation)))
