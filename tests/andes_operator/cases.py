"""Targets, observations and predictions that tests of the pure rules begin with."""

from __future__ import annotations

import json
from typing import Any

from andes_operator.decide import ScaleDecision, decide
from andes_operator.gateway_report import ObservedRequest
from andes_operator.memory import Memory
from andes_operator.names import Mode
from andes_operator.observe import Observation, PodCounts
from andes_operator.spec import ClassObjective, DemandSource, ScaleTargetRef, ScalingBehavior, TargetSpec
from andes_operator.whatif import Prediction
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.sketch import DurationSketch, Sketch

TARGET = ClassObjective("*", QoEObjective(Statistic.SHARE_ABOVE, 0.95, 0.95))
SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(TARGET,),
    min_replicas=1,
    max_replicas=20,
    demand=DemandSource(service="gateway"),
    profile="h100-llama-3.1-8b",
    baseline_replicas=20,
    behavior=ScalingBehavior(down_stabilization_s=300, down_period_s=60, window_s=120),
)


def predicted(fewest: int | None, rate_rps: float = 5.0) -> Prediction:
    """As the what-if would answer: ``fewest`` replicas meet the objective, one fewer do not."""
    values = {n: (1.0 if fewest is not None and n >= fewest else 0.5,) for n in range(1, 51)}
    return Prediction(rate_rps, (TARGET,), 0.01, fewest, values)


def sketch(*scores: float) -> Sketch:
    made = Sketch()
    for score in scores:
        made.add(score)
    return made


def scores(*values: float) -> dict[str, Sketch]:
    return {"reading": sketch(*values)}


def seconds(*values: float) -> dict[str, DurationSketch]:
    made = DurationSketch()
    for value in values:
        made.add(value)
    return {"reading": made}


def pod(
    name: str, ip: str | None = None, *, ready: bool = True, made: int = 0, start_s: int = 40, **more: Any
) -> dict[str, Any]:
    """Created ``made`` minutes after eight, ready (or reported as not ready) ``start_s`` later."""
    at = f"2026-11-21T08:{made:02}:00Z"
    then = f"2026-11-21T08:{made + start_s // 60:02}:{start_s % 60:02}Z"
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": then}
    return {
        "metadata": {"name": name, "creationTimestamp": at, **more},
        "status": {"phase": "Running", "podIP": ip, "conditions": [condition]},
    }


def request_at(arrival_s: float) -> ObservedRequest:
    return ObservedRequest(arrival_s, "reading", 100, 50, True)


def seen(
    now_s: float, wanted: int, *, ready: int | None = None, existing: int | None = None, **more: Any
) -> Observation:
    """A busy fleet with its last request just now, unless ``more`` fields say otherwise; ``pods``: more of its pods."""
    counts = (wanted, wanted if existing is None else existing, wanted if ready is None else ready)
    pods = PodCounts(*counts, **more.pop("pods", {}))
    given = {"rate_rps": 5.0, "open_streams": 20, "recent": (request_at(now_s),), "complete_since_s": now_s - 600}
    return Observation(now_s, pods, **{**given, **more})


class Run:
    """Reconciles every 15 s; what is decided is there at the next one, and the memory goes through the status."""

    def __init__(self, replicas: int, spec: TargetSpec = SPEC) -> None:
        self.spec, self.replicas, self.now_s, self.memory = spec, replicas, 1_000_000.0, Memory()

    def step(self, prediction: Prediction | None, **more: Any) -> ScaleDecision:
        self.now_s += 15.0
        decision = decide(self.spec, seen(self.now_s, self.replicas, **more), prediction, self.memory)
        self.memory = Memory.from_dict(json.loads(json.dumps(decision.memory.to_dict())))
        if self.spec.mode is Mode.AUTO:
            self.replicas = decision.replicas
        return decision

    def for_s(self, seconds: float, prediction: Prediction | None, **more: Any) -> list[int]:
        return [self.step(prediction, **more).replicas for _ in range(int(seconds / 15))]
