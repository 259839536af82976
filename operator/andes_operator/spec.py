"""The ``spec`` of a QoETarget as typed values: :func:`parse` reads it and names field and value of what it cannot use.

The API server has already checked the resource against the CRD's schema and CEL rules. What these cannot express is checked
here: on servers without CEL, and for policy options, whose types the schema leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from andes_operator.allowance import Allowance, parse_allowance
from andes_operator.explain import SpecError, required, shown
from andes_operator.names import ALL_CLASSES, Mode
from andes_sglang.objective import LatencyObjective, Metric, Objective, QoEObjective, Statistic
from andes_sglang.sketch import DurationSketch, Sketch

__all__ = [
    "ClassObjective", "DemandSource", "Figures", "PolicyOptions", "ScaleTargetRef", "ScalingBehavior", "SpecError",
    "TargetSpec", "parse",
]  # fmt: skip

PolicyOptions = tuple[tuple[str, bool | int | float | str | None], ...]
"""Options of a scheduling or routing policy, sorted by name: hashable, so that observations can be counted by them."""

Figures = Mapping[Metric, Mapping[str, Any]]
"""What readers got: sketches by class name, :class:`Sketch` of scores, :class:`DurationSketch` of seconds."""

MEASURED = (Metric.QOE, Metric.TTFT, Metric.STALL)
"""What gateways report, and so what an objective can be about."""


@dataclass(frozen=True, slots=True)
class ScaleTargetRef:
    api_version: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class ClassObjective:
    """``objective`` for the streams of ``class_name``; of all classes together where that is ``*``."""

    class_name: str
    objective: Objective

    @property
    def metric(self) -> Metric:
        return self.objective.metric

    @property
    def value(self) -> float:
        """What the statistic of QoE should at least be, in [0, 1]; of a latency, at most, in seconds."""
        return self.objective.value

    def sketch(self, figures: Figures) -> Sketch:
        """Of the streams that count, what the objective is about."""
        found = figures.get(self.metric, {})
        kind = Sketch if self.metric is Metric.QOE else DurationSketch
        return kind.merged(s for name, s in found.items() if self.class_name in (ALL_CLASSES, name))

    def evaluate(self, figures: Figures) -> float | None:
        """The statistic over the streams that count; None without any."""
        return self.objective.of_sketch(self.sketch(figures))

    def shown(self, value: float) -> str:
        """A value of the statistic, in words."""
        return f"{value:.3f}" if self.metric is Metric.QOE else f"{value:.2f} s"

    @property
    def shown_target(self) -> str:
        return f"{self.value:g}" if self.metric is Metric.QOE else f"{self.value:g} s"

    def missed(self, value: float) -> str:
        """That ``value`` is not enough, in words."""
        side = "below" if self.metric is Metric.QOE else "above"
        return f"the {self} is {self.shown(value)}, {side} {self.shown_target}"

    def __str__(self) -> str:
        return f"{self.objective.words} of {'all classes' if self.class_name == ALL_CLASSES else self.class_name}"


@dataclass(frozen=True, slots=True)
class ScalingBehavior:
    """How often a target is reconciled and how fast its replicas may change; the field's default where none is given.

    tick_s: between two reconciles. window_s: over which QoE and demand are observed. margin: by how much the predicted
    statistic has to exceed the objective. cold_start_s: from the decision for a pod to its first request; None: learned from
    the pods. up_stabilization_s: how long a larger number has to be asked for. up_step: replicas that may be added in 60 s;
    None: no limit. down_stabilization_s: how long a smaller number has to be asked for. down_period_s: between two steps
    down. idle_s: without requests before the last replica goes, where ``minReplicas`` is 0.
    """

    tick_s: float = 15.0
    window_s: float = 120.0
    margin: float = 0.01
    cold_start_s: float | None = None
    up_stabilization_s: float = 0.0
    up_step: int | None = None
    down_stabilization_s: float = 120.0
    down_period_s: float = 60.0
    idle_s: float = 600.0

    @property
    def history_s(self) -> float:
        """How far back requests serve as samples of the demand to come: five windows, at most ten minutes, but at least one
        window."""
        return max(self.window_s, min(600.0, 5 * self.window_s))


@dataclass(frozen=True, slots=True)
class DemandSource:
    """Where demand and QoE are read: from the pods of the gateways' Service, or from Prometheus.

    model: whose, of the gateways' models; None: the one that the target's engines announce. Prometheus does not know the
    lengths of requests: ``prompt_tokens`` and ``output_tokens`` are their means.
    """

    service: str | None = None
    port: str | int | None = None
    prometheus_url: str | None = None
    prometheus_selector: str = ""
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    model: str | None = None


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """policy: to simulate in the what-if, empty: the one that the engines report; policy_options: of it.
    baseline_replicas: what would run without the operator, for the GPU-hours saved. allowance: what moves the bounds
    and the mode; bounds_why, paused: what it did at the time that :meth:`at` was asked for, empty: nothing.
    no_pool: no QoEPool names it, though its mode is Pooled."""

    ref: ScaleTargetRef
    objectives: tuple[ClassObjective, ...]
    min_replicas: int
    max_replicas: int
    demand: DemandSource
    mode: Mode = Mode.AUTO
    profile: str = ""
    policy: str = ""
    policy_options: PolicyOptions = ()
    gpus_per_replica: float = 1.0
    baseline_replicas: int = 0
    behavior: ScalingBehavior = ScalingBehavior()
    allowance: Allowance = field(default_factory=Allowance)
    bounds_why: str = ""
    paused: str = ""
    no_pool: bool = False

    def at(self, now_s: float) -> TargetSpec:
        """With the bounds and the mode that hold at ``now_s`` (Unix seconds)."""
        bounds = self.allowance.apply(self.min_replicas, self.max_replicas, self.gpus_per_replica, now_s)
        return replace(
            self,
            min_replicas=bounds.minimum,
            max_replicas=bounds.maximum,
            bounds_why=bounds.why,
            mode=self.mode if bounds.pause is None else Mode.ADVISORY,
            paused="" if bounds.pause is None else str(bounds.pause),
        )

    def clamp(self, replicas: int) -> int:
        """``replicas`` within the bounds."""
        return min(max(replicas, self.min_replicas), self.max_replicas)


def parse(spec: Mapping[str, Any]) -> TargetSpec:
    """The ``spec`` of a QoETarget. Raises :class:`SpecError` naming field and value."""
    what_if = spec.get("whatIf") or {}
    ref = required(spec, "scaleTargetRef")
    minimum, maximum = int(spec.get("minReplicas", 1)), int(required(spec, "maxReplicas"))
    if not 0 <= minimum <= maximum:
        raise SpecError(f"spec.minReplicas {minimum} must be between 0 and spec.maxReplicas {maximum}")
    objectives = tuple(_objective(o, f"spec.objectives[{i}]") for i, o in enumerate(required(spec, "objectives")))
    if not objectives:
        raise SpecError("spec.objectives is empty: name at least one")
    for i, objective in enumerate(objectives):
        if any(str(objective) == str(other) for other in objectives[:i]):
            raise SpecError(f"spec.objectives[{i}]: the {objective} is there twice, give one value for it")
    mode = spec.get("mode", Mode.AUTO)
    if mode not in list(Mode):
        raise SpecError(f"spec.mode must be one of {', '.join(Mode)}, got {shown(mode)}")
    gpus_per_replica = float(spec.get("gpusPerReplica", 1))
    api_version, kind, name = (str(required(ref, k, "spec.scaleTargetRef")) for k in ("apiVersion", "kind", "name"))
    return TargetSpec(
        ref=ScaleTargetRef(api_version, kind, name),
        objectives=objectives,
        min_replicas=minimum,
        max_replicas=maximum,
        mode=Mode(mode),
        demand=_demand(spec.get("demand") or {}),
        profile=str(required(what_if, "profile", "spec.whatIf")),
        policy=str(what_if.get("policy", "")),
        policy_options=_policy_options(what_if.get("policyOptions") or {}),
        gpus_per_replica=gpus_per_replica,
        baseline_replicas=int(spec.get("baselineReplicas", maximum)),
        behavior=_behavior(spec.get("behavior") or {}, what_if),
        allowance=parse_allowance(spec, minimum, maximum, gpus_per_replica),
    )


def _demand(demand: Mapping[str, Any]) -> DemandSource:
    gateway, prometheus = demand.get("gateway") or {}, demand.get("prometheus") or {}
    if bool(gateway) == bool(prometheus):
        raise SpecError("spec.demand: give exactly one of gateway and prometheus")
    return DemandSource(
        service=gateway.get("service"),
        port=gateway.get("port"),
        model=gateway.get("model"),
        prometheus_url=prometheus.get("url"),
        prometheus_selector=prometheus.get("selector", ""),
        prompt_tokens=float(prometheus.get("promptTokens", 0)),
        output_tokens=float(prometheus.get("outputTokens", 0)),
    )


def _behavior(behavior: Mapping[str, Any], what_if: Mapping[str, Any]) -> ScalingBehavior:
    up, down = behavior.get("scaleUp") or {}, behavior.get("scaleDown") or {}
    cold_start, up_step = behavior.get("coldStartSeconds"), up.get("maxReplicasPerMinute")
    defaults = ScalingBehavior()
    return ScalingBehavior(
        tick_s=_seconds(behavior, "tickSeconds", defaults.tick_s),
        window_s=_seconds(behavior, "windowSeconds", defaults.window_s),
        margin=float(what_if.get("margin", defaults.margin)),
        cold_start_s=None if cold_start is None else float(cold_start),
        up_stabilization_s=_seconds(up, "stabilizationWindowSeconds", defaults.up_stabilization_s),
        up_step=None if up_step is None else int(up_step),
        down_stabilization_s=_seconds(down, "stabilizationWindowSeconds", defaults.down_stabilization_s),
        down_period_s=_seconds(down, "periodSeconds", defaults.down_period_s),
        idle_s=_seconds(down, "idleSeconds", defaults.idle_s),
    )


def _policy_options(options: Mapping[str, Any]) -> PolicyOptions:
    """As given: what does not fit is an error of the what-if alone (:func:`andes_operator.prediction.check_options`)."""
    return tuple(sorted(options.items(), key=lambda option: option[0]))


def _objective(of: Mapping[str, Any], where: str) -> ClassObjective:
    statistic, metric = required(of, "statistic", where), of.get("metric", Metric.QOE)
    for name, said, known in (("statistic", statistic, Statistic), ("metric", metric, MEASURED)):
        if said not in list(known):
            raise SpecError(f"{where}.{name} must be one of {', '.join(known)}, got {shown(said)}")
    field = {Statistic.PERCENTILE: "percentile", Statistic.SHARE_ABOVE: "threshold"}.get(Statistic(statistic))
    at = None if field is None else float(required(of, field, where))
    value = "value" if metric == Metric.QOE else "seconds"
    wanted = float(required(of, value, where))
    class_name = str(of.get("class", ALL_CLASSES))
    try:
        if metric == Metric.QOE:
            return ClassObjective(class_name, QoEObjective(Statistic(statistic), wanted, at))
        if statistic != Statistic.PERCENTILE or at is None:
            raise SpecError(f"{where}.statistic of {metric} must be {Statistic.PERCENTILE}, got {shown(statistic)}")
        return ClassObjective(class_name, LatencyObjective(Metric(metric), wanted, at))
    except SpecError:
        raise
    except ValueError as error:
        name, _, said = str(error).partition(" ")
        raise SpecError(f"{where}.{ {'at': field, 'value': value}.get(name, name) } {said}") from None


def _seconds(of: Mapping[str, Any], key: str, default: float) -> float:
    value = float(of.get(key, default))
    if not (math.isfinite(value) and value >= 0):
        raise SpecError(f"spec.behavior: {key} must be seconds >= 0, got {shown(value)}")
    return value
