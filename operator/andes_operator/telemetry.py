"""Metrics and traces of the operator's decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from andes_operator.names import Condition
from andes_sglang.telemetry import Otlp, connect_otlp

__all__ = ["Metrics", "tracer"]

TARGET = ["namespace", "target"]


class Metrics:
    """One registry per operator. Labels are targets: as many as there are QoETargets."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.ticks = Counter("andes_operator_ticks", "looks at a target, by outcome", ["reason"], registry=registry)
        self.failures = Counter("andes_operator_tick_failures", "looks that failed", ["kind"], registry=registry)
        self.tick_s = Histogram(
            "andes_operator_tick_seconds", "from the first question to the status", registry=registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60),
        )  # fmt: skip
        self.what_if_s = Histogram(
            "andes_operator_what_if_seconds", "forecast and what-if, waiting included", registry=registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60),
        )  # fmt: skip
        self.scaled = Counter(
            "andes_operator_scale_changes", "changes made", ["direction", "reason"], registry=registry
        )
        self.targets = Gauge("andes_operator_targets", "QoETargets at work", registry=registry)
        self.leading = Gauge("andes_operator_leading", "1 while this one writes", registry=registry)
        self.replicas = Gauge("andes_operator_replicas", "pods that exist", TARGET, registry=registry)
        self.recommended = Gauge(
            "andes_operator_recommended_replicas", "pods there should be", TARGET, registry=registry
        )
        self.ready = Gauge(
            "andes_operator_target_ready", "condition Ready, and its reason", [*TARGET, "reason"], registry=registry
        )
        self.demand = Gauge("andes_operator_demand_rps", "requests per second", [*TARGET, "kind"], registry=registry)
        self.load_factor = Gauge(
            "andes_operator_load_factor", "times the load that requests tell of, by what the engines hold", TARGET,
            registry=registry,
        )  # fmt: skip
        self.qoe = Gauge(
            "andes_operator_objective_ratio", "statistic of an objective", [*TARGET, "class", "statistic", "kind"],
            registry=registry,
        )  # fmt: skip

        self._series: dict[tuple[str, str], set[tuple[Gauge, tuple[str, ...]]]] = {}

    def forget(self, namespace: str, name: str) -> None:
        """A target that is gone."""
        for gauge, labels in self._series.pop((namespace, name), ()):
            gauge.remove(*labels)

    def observe(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """The figures of a status; what it does not know any more is taken away."""
        self.forget(namespace, name)

        def show(gauge: Gauge, value: float | None, *labels: str) -> None:
            if value is not None:
                whole = (namespace, name, *labels)
                gauge.labels(*whole).set(value)
                self._series.setdefault((namespace, name), set()).add((gauge, whole))

        for condition in status["conditions"]:
            if condition["type"] == Condition.READY:
                show(self.ready, condition["status"] == "True", condition["reason"])
        if "replicas" not in status:  # there was nothing to observe
            return
        show(self.replicas, status["replicas"])
        show(self.recommended, status["recommendedReplicas"])
        show(self.demand, status["demand"]["requestsPerSecond"], "observed")
        show(self.demand, status["demand"]["expectedRequestsPerSecond"], "expected")
        show(self.load_factor, status["demand"]["loadFactor"])
        for objective in status["objectives"]:
            for kind in ("current", "predicted", "target"):
                show(self.qoe, objective[kind], objective["class"], objective["statistic"], kind)

    def exposition(self) -> bytes:
        return bytes(generate_latest(self.registry))


def tracer(endpoint: str | None, instance: str) -> Otlp:
    """Spans to ``endpoint`` (OTLP over HTTP), or nowhere; to be stopped at the end."""
    return connect_otlp(endpoint, service="andes-operator", scope="andes_operator", instance=instance)
