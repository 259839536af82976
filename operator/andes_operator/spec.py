"""What a QoETarget asks for, from its custom resource. The API server has checked it against schema and CEL rules; what it
cannot know is checked here, and every error names field and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from andes_operator.names import ALL_CLASSES, Mode, Statistic
from andes_sglang.sketch import Sketch

__all__ = ["Behavior", "Demand", "Objective", "ScaleTargetRef", "SpecError", "TargetSpec", "parse"]


class SpecError(ValueError):
    """A field of the custom resource that cannot be used: field, value, what to do."""


@dataclass(frozen=True, slots=True)
class ScaleTargetRef:
    api_version: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Objective:
    """``statistic`` of the QoE of the streams of ``class_name`` is to be at least ``value`` (in [0, 1]).

    at: the percentile in (0, 100) for Percentile (5: the QoE that 95 % of the streams reach), the QoE in [0, 1] for
    ShareAbove, None for Mean.
    """

    class_name: str
    statistic: Statistic
    value: float
    at: float | None = None

    def of(self, qoe: Sketch) -> float | None:
        """The statistic of these streams, in [0, 1]; None without any."""
        if self.statistic is Statistic.MEAN:
            return qoe.mean
        if self.statistic is Statistic.PERCENTILE:
            return qoe.quantile((self.at or 0.0) / 100.0)
        return qoe.share_at_least(self.at or 0.0)

    def among(self, classes: Mapping[str, Sketch]) -> float | None:
        """The statistic over ``classes`` (QoE by class name): of one class, or of all for ``*``; None without streams."""
        if self.class_name == ALL_CLASSES:
            return self.of(Sketch.merged(classes.values()))
        return self.of(classes[self.class_name]) if self.class_name in classes else None

    def __str__(self) -> str:
        what = {
            Statistic.MEAN: "mean QoE",
            Statistic.PERCENTILE: f"percentile {self.at:g} of QoE" if self.at is not None else "",
            Statistic.SHARE_ABOVE: f"share with QoE >= {self.at:g}" if self.at is not None else "",
        }[self.statistic]
        return f"{what} of {'all classes' if self.class_name == ALL_CLASSES else self.class_name}"


@dataclass(frozen=True, slots=True)
class Behavior:
    """How fast things may go. up_step, down_period_s: at most so many replicas more in a minute (None: no limit); at
    least so many seconds between two steps down. cold_start_s: None to learn it from the pods. idle_s: seconds without
    any request before the last replica goes, where none is allowed."""

    tick_s: float = 15.0
    window_s: float = 120.0
    margin: float = 0.01
    cold_start_s: float | None = None
    up_stabilization_s: float = 0.0
    up_step: int | None = None
    down_stabilization_s: float = 300.0
    down_period_s: float = 60.0
    idle_s: float = 600.0

    @property
    def history_s(self) -> float:
        """How far back requests tell what those to come are like, bursts included: five windows, at most ten minutes, but a
        whole window."""
        return max(self.window_s, min(600.0, 5 * self.window_s))


@dataclass(frozen=True, slots=True)
class Demand:
    """Where demand and QoE are read: a Service before the gateways (its pods are asked one by one), or Prometheus. With the
    latter the lengths of requests are not known and are given: prompt_tokens, output_tokens (means)."""

    service: str | None = None
    port: str | int | None = None
    prometheus_url: str | None = None
    prometheus_selector: str = ""
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class TargetSpec:
    ref: ScaleTargetRef
    objectives: tuple[Objective, ...]
    min_replicas: int
    max_replicas: int
    demand: Demand
    mode: Mode = Mode.AUTO
    profile: str = ""
    policy: str = ""
    policy_options: tuple[tuple[str, float], ...] = ()
    gpus_per_replica: float = 1.0
    baseline_replicas: int = 0
    behavior: Behavior = Behavior()

    def clamp(self, replicas: int) -> int:
        return min(max(replicas, self.min_replicas), self.max_replicas)


def parse(spec: Mapping[str, Any]) -> TargetSpec:
    """The ``spec`` of a QoETarget. Raises :class:`SpecError` naming field and value."""
    behavior, what_if, demand = spec.get("behavior") or {}, spec.get("whatIf") or {}, spec.get("demand") or {}
    up, down = behavior.get("scaleUp") or {}, behavior.get("scaleDown") or {}
    gateway, prometheus = demand.get("gateway") or {}, demand.get("prometheus") or {}
    ref = _need(spec, "scaleTargetRef")
    least, most = int(spec.get("minReplicas", 1)), int(_need(spec, "maxReplicas"))
    if not 0 <= least <= most:
        raise SpecError(f"spec.minReplicas {least} must be between 0 and spec.maxReplicas {most}")
    objectives = tuple(_objective(o, f"spec.objectives[{i}]") for i, o in enumerate(_need(spec, "objectives")))
    if not objectives:
        raise SpecError("spec.objectives is empty: name at least one")
    if bool(gateway) == bool(prometheus):
        raise SpecError("spec.demand: give exactly one of gateway and prometheus")
    cold_start = behavior.get("coldStartSeconds")
    up_step = up.get("maxReplicasPerMinute")
    defaults = Behavior()
    return TargetSpec(
        ref=ScaleTargetRef(*(str(_need(ref, key, "spec.scaleTargetRef")) for key in ("apiVersion", "kind", "name"))),
        objectives=objectives,
        min_replicas=least,
        max_replicas=most,
        mode=Mode(spec.get("mode", Mode.AUTO)),
        demand=Demand(
            service=gateway.get("service"),
            port=gateway.get("port"),
            prometheus_url=prometheus.get("url"),
            prometheus_selector=prometheus.get("selector", ""),
            prompt_tokens=float(prometheus.get("promptTokens", 0)),
            output_tokens=float(prometheus.get("outputTokens", 0)),
        ),
        profile=str(_need(what_if, "profile", "spec.whatIf")),
        policy=str(what_if.get("policy", "")),
        policy_options=tuple(sorted((str(k), float(v)) for k, v in (what_if.get("policyOptions") or {}).items())),
        gpus_per_replica=float(spec.get("gpusPerReplica", 1)),
        baseline_replicas=int(spec.get("baselineReplicas", most)),
        behavior=Behavior(
            tick_s=_seconds(behavior, "tickSeconds", defaults.tick_s),
            window_s=_seconds(behavior, "windowSeconds", defaults.window_s),
            margin=float(what_if.get("margin", defaults.margin)),
            cold_start_s=None if cold_start is None else float(cold_start),
            up_stabilization_s=_seconds(up, "stabilizationWindowSeconds", defaults.up_stabilization_s),
            up_step=None if up_step is None else int(up_step),
            down_stabilization_s=_seconds(down, "stabilizationWindowSeconds", defaults.down_stabilization_s),
            down_period_s=_seconds(down, "periodSeconds", defaults.down_period_s),
            idle_s=_seconds(down, "idleSeconds", defaults.idle_s),
        ),
    )


def _need(of: Mapping[str, Any], key: str, where: str = "spec") -> Any:
    if key not in of:
        raise SpecError(f"{where}.{key} is missing")
    return of[key]


def _seconds(of: Mapping[str, Any], key: str, default: float) -> float:
    value = float(of.get(key, default))
    if not (math.isfinite(value) and value >= 0):
        raise SpecError(f"spec.behavior: {key} must be seconds >= 0, got {value!r}")
    return value


def _objective(of: Mapping[str, Any], where: str) -> Objective:
    statistic = Statistic(_need(of, "statistic", where))
    field = {Statistic.PERCENTILE: "percentile", Statistic.SHARE_ABOVE: "threshold"}.get(statistic)
    at = None if field is None else float(_need(of, field, where))
    value = float(_need(of, "value", where))
    if not 0.0 <= value <= 1.0:
        raise SpecError(f"{where}.value must be in [0, 1], got {value!r}")
    return Objective(str(of.get("class", ALL_CLASSES)), statistic, value, at)
