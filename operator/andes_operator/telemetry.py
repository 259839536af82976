"""Prometheus metrics and OpenTelemetry traces of the operator's decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from andes_operator.names import POOLS, TARGETS, Condition, Metric
from andes_sglang.telemetry import Otlp, connect_otlp

__all__ = ["OperatorMetrics", "tracer"]

TARGET = ["namespace", "target"]
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
"""Edges of histograms: from an idle target on an idle API server to twice the time limit of a what-if."""
RENAMED = "deprecated, will be removed: use {}"


class OperatorMetrics:
    """One registry per operator. Labels are targets: their number is that of QoETargets."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, old_name: str, text: str, label: str) -> tuple[Counter, Counter]:
            """A counter, and the same by its former name."""
            renamed = Counter(old_name, RENAMED.format(f"{name}_total"), [label], registry=registry)
            return Counter(name, text, [label], registry=registry), renamed

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, registry=registry, buckets=SECONDS)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._reconciles = counter(
            "andes_operator_reconciles", "andes_operator_ticks", "reconciles of a target, by status.reason", "reason"
        )
        self._failures = counter(
            "andes_operator_reconcile_failures", "andes_operator_tick_failures",
            "failures: api (the API server), what_if (no prediction), table (no headroom), unexpected", "kind",
        )  # fmt: skip
        self._reconcile_s = (
            histogram("andes_operator_reconcile_seconds", "one reconcile, from the first request to the status"),
            histogram("andes_operator_tick_seconds", RENAMED.format("andes_operator_reconcile_seconds")),
        )
        self.what_if_s = histogram("andes_operator_what_if_seconds", "forecast and what-if, waiting included")
        self.scaled = Counter(
            "andes_operator_scale_changes", "changes of a scale", ["direction", "reason"], registry=registry
        )
        self.targets = gauge("andes_operator_targets", "QoETargets that are reconciled")
        self.leading = gauge("andes_operator_leading", "1 while this operator holds the lease")
        self.replicas = gauge("andes_operator_replicas", "pods that exist", *TARGET)
        self.supply = gauge(
            "andes_operator_engines", "engines by state: ready, starting, failing (no supply: see the conditions)",
            *TARGET, "state",
        )  # fmt: skip
        self.recommended = gauge("andes_operator_recommended_replicas", "replicas that were decided for", *TARGET)
        self.ready = gauge("andes_operator_target_ready", "condition Ready, and its reason", *TARGET, "reason")
        self.demand = gauge("andes_operator_demand_rps", "requests per second", *TARGET, "kind")
        self.load_factor = gauge(
            "andes_operator_load_factor", "simulated load over that of the requests, by what the engines hold", *TARGET
        )
        self.busy = gauge(
            "andes_operator_busy_replicas", "replicas' worth of work that has lasted: the base of headroom", *TARGET
        )
        self.surge = gauge("andes_operator_surge_ratio", "times that base that is prepared for", *TARGET)
        self.breach_s = gauge(
            "andes_operator_time_to_breach_seconds",
            "until readers would notice if the surge came now; absent where not within two cold starts",
            *TARGET,
        )
        self.gpu_hours = gauge(
            "andes_operator_gpu_hours",
            "held, and saved beside the baseline, since the target was created",
            *TARGET,
            "kind",
        )
        self.offline_tokens = gauge(
            "andes_operator_offline_pending_tokens", "tokens that batches still take, estimated", *TARGET
        )
        self.offline_replicas = gauge(
            "andes_operator_offline_replicas", "replicas that are there for a batch's deadline", *TARGET
        )
        self.slack_filled = gauge(
            "andes_operator_slack_filled_ratio",
            "share of what readers left over that batches used, of about a day",
            *TARGET,
        )
        self.qoe = gauge(
            "andes_operator_objective_ratio",
            "statistic of an objective, named with its percentile or threshold where a class has several",
            *TARGET,
            "class",
            "statistic",
            "kind",
        )
        self.latency = gauge(
            "andes_operator_objective_seconds", "percentile of an objective about TTFT or stalls",
            *TARGET, "class", "metric", "percentile", "kind",
        )  # fmt: skip
        self.pool_gpus = gauge(
            "andes_operator_pool_gpus", "GPUs that the members of a QoEPool hold", "namespace", "pool"
        )
        self.pool_price = gauge("andes_operator_pool_price_per_hour", "what they cost", "namespace", "pool")
        self.pool_ready = gauge(
            "andes_operator_pool_ready", "condition Ready of a QoEPool, and its reason", "namespace", "pool", "reason"
        )
        self._series: dict[tuple[str, str, str], set[tuple[Gauge, tuple[str, ...]]]] = {}

    def count_reconcile(self, reason: str) -> None:
        for each in self._reconciles:
            each.labels(reason).inc()

    def count_failure(self, kind: str) -> None:
        for each in self._failures:
            each.labels(kind).inc()

    def time_reconcile(self, seconds: float) -> None:
        for each in self._reconcile_s:
            each.observe(seconds)

    def show_pool(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """The figures of a QoEPool's status; series that it has no value for are removed."""
        self.forget_pool(namespace, name)
        for condition in status["conditions"]:
            if condition["type"] == Condition.READY:
                ready = condition["status"] == "True"
                self._show(POOLS, self.pool_ready, ready, namespace, name, condition["reason"])
        self._show(POOLS, self.pool_gpus, status.get("gpus"), namespace, name)
        self._show(POOLS, self.pool_price, status.get("pricePerHour"), namespace, name)

    def forget_pool(self, namespace: str, name: str) -> None:
        """Remove the series of a pool."""
        self._forget(POOLS, namespace, name)

    def forget(self, namespace: str, name: str) -> None:
        """Remove the series of a target."""
        self._forget(TARGETS, namespace, name)

    def _forget(self, kind: str, namespace: str, name: str) -> None:
        for gauge, labels in self._series.pop((kind, namespace, name), ()):
            gauge.remove(*labels)

    def _show(self, kind: str, gauge: Gauge, value: float | None, *labels: str) -> None:
        """labels: the first two are namespace and name of the resource."""
        if value is not None:
            gauge.labels(*labels).set(value)
            self._series.setdefault((kind, labels[0], labels[1]), set()).add((gauge, labels))

    def show(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """The figures of a status; series that it has no value for are removed."""
        self.forget(namespace, name)

        def show(gauge: Gauge, value: float | None, *labels: str) -> None:
            self._show(TARGETS, gauge, value, namespace, name, *labels)

        for condition in status["conditions"]:
            if condition["type"] == Condition.READY:
                show(self.ready, condition["status"] == "True", condition["reason"])
        if "replicas" not in status:  # the target could not be observed
            return
        show(self.replicas, status["replicas"])
        for state in ("ready", "starting", "failing"):
            show(self.supply, status[f"{state}Replicas"], state)
        show(self.recommended, status["recommendedReplicas"])
        show(self.demand, status["demand"]["requestsPerSecond"], "observed")
        show(self.demand, status["demand"]["expectedRequestsPerSecond"], "expected")
        show(self.load_factor, status["demand"]["loadFactor"])
        if (headroom := status["headroom"]) is not None:
            show(self.busy, headroom["busyReplicas"])
            show(self.surge, headroom["surge"])
        show(self.breach_s, status["timeToBreach"])
        for kind, hours in (("held", "gpuHours"), ("saved", "gpuHoursSaved")):
            show(self.gpu_hours, float(status[hours]), kind)
        slack = status["slack"]
        show(self.offline_tokens, slack["pendingTokens"])
        show(self.offline_replicas, slack["replicas"])
        show(self.slack_filled, None if slack["filled"] is None else float(slack["filled"].rstrip(" %")) / 100)
        for objective in status["objectives"]:
            for kind in ("current", "predicted", "target"):
                if objective["metric"] == Metric.QOE:
                    show(
                        self.qoe, objective[kind], objective["class"], _statistic(objective, status["objectives"]), kind
                    )
                else:
                    of = objective["class"], objective["metric"], f"{objective['at']:g}"
                    show(self.latency, objective[kind], *of, kind)

    def exposition(self) -> bytes:
        return bytes(generate_latest(self.registry))


def _statistic(objective: Mapping[str, Any], objectives: Sequence[Mapping[str, Any]]) -> str:
    """Of QoE: ``Percentile``, or ``Percentile 5`` where the class has others."""
    same = [o for o in objectives if all(o[name] == objective[name] for name in ("class", "metric", "statistic"))]
    return f"{objective['statistic']} {objective['at']:g}" if len(same) > 1 else str(objective["statistic"])


def tracer(endpoint: str | None, instance: str) -> Otlp:
    """Spans to ``endpoint`` (OTLP over HTTP), or nowhere; to be stopped at the end."""
    return connect_otlp(endpoint, service="andes-operator", scope="andes_operator", instance=instance)
