"""What an engine under a policy reports, and how SGLang's ``/metrics`` shows it.

The engine adapter and the simulated engine call an :class:`EngineMetrics`; :class:`PrometheusEngineMetrics` exposes what it
is told. Prometheus names, base units, no label by request; docs/metrics.md explains every name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from andes_sglang.latency import LatencyModel

__all__ = ["DECISION_BUCKETS_S", "QOE_BUCKETS", "EngineMetrics", "HostUse", "PrometheusEngineMetrics"]

DECISION_BUCKETS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1)
"""Seconds: from far below a decode step (5 to 30 ms) to several of them."""
QOE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""QoE, without unit: tenths, and finer where objectives lie (0.9 to 0.99)."""


@dataclass(frozen=True, slots=True)
class HostUse:
    """Copies between the KV pool and host memory since the start, and how full host memory is.

    written_bytes, loaded_bytes: copied each way. write_s, load_s: seconds of these copies (write_s: on a CPU only).
    waited_s: seconds of them that the engine stood still for (on a GPU without the waits inside a forward pass).
    hit_tokens: tokens loaded instead of computed, ahead_tokens of them before the admission. refused_tokens: tokens that
    found no room in host memory. used_tokens, capacity_tokens: in host memory now, and at most.
    """

    written_bytes: int = 0
    loaded_bytes: int = 0
    write_s: float = 0.0
    load_s: float = 0.0
    waited_s: float = 0.0
    hit_tokens: int = 0
    ahead_tokens: int = 0
    refused_tokens: int = 0
    used_tokens: int = 0
    capacity_tokens: int = 0


class EngineMetrics:
    """What an engine reports; this class drops it, as on an engine without ``--enable-metrics``."""

    def in_charge(self, policy: str) -> None:
        """``policy`` has made its first decision."""

    def decision(self, seconds: float) -> None:
        """A decision took ``seconds``, with the making of its input."""

    def preemption(self, mode: str, reason: str) -> None:
        """The policy took a request off. mode: park, release or offload; reason: one word of the policy's."""

    def retraction(self) -> None:
        """A request gave up its KV because the pool was full."""

    def resume(self, mode: str, recomputed_tokens: int) -> None:
        """A request runs again that was taken off in ``mode`` (also: retracted)."""

    def finished(self, qoe: float) -> None:
        """A stream has ended with this QoE in [0, 1], as generated."""

    def population(self, **counts: int) -> None:
        """Requests by state: running, parked, released, waiting."""

    def unpreemptible(self, running: int) -> None:
        """``running``: requests in the batch that a policy cannot take off."""

    def costs(self, latency: LatencyModel) -> None:
        """What the engine's iterations cost, as fitted, and how sure that is."""

    def host(self, use: HostUse) -> None:
        """Copies between the KV pool and host memory."""


class PrometheusEngineMetrics(EngineMetrics):
    """Exposed by ``prometheus_client``. To be created inside the scheduler process, after SGLang has set up its multi-process
    directory. registry: None for prometheus_client's own."""

    def __init__(self, registry: Any = None) -> None:
        import prometheus_client

        where = {"registry": registry or prometheus_client.REGISTRY}
        Counter = partial(prometheus_client.Counter, **where)  # noqa: N806
        Gauge = partial(prometheus_client.Gauge, **where)  # noqa: N806
        Histogram = partial(prometheus_client.Histogram, **where)  # noqa: N806

        self._info = Gauge(
            "andes_policy_info", "1 for the policy in charge", ["policy"], multiprocess_mode="mostrecent"
        )
        self._decision = Histogram(
            "andes_decision_seconds", "time of one scheduling decision", buckets=DECISION_BUCKETS_S
        )
        self._preemptions = Counter("andes_preemptions", "preemptions chosen by the policy", ["mode", "reason"])
        self._retractions = Counter("andes_retractions", "requests retracted because KV ran out")
        self._resumes = Counter("andes_resumes", "preempted requests that run again", ["mode"])
        self._recomputed = Counter("andes_recomputed_tokens", "tokens prefilled again after a preemption")
        self._qoe = Histogram("andes_request_qoe", "QoE of finished streams as generated", buckets=QOE_BUCKETS)
        self._population: dict[str, int] = {}
        self._requests = Gauge("andes_requests", "requests by state", ["state"], multiprocess_mode="sum")
        self._unpreemptible = Gauge(
            "andes_unpreemptible_requests", "running requests that cannot be preempted", multiprocess_mode="sum"
        )
        self._cost = Gauge(
            "andes_cost_seconds", "fitted cost of an iteration", ["stage", "per"], multiprocess_mode="mostrecent"
        )
        self._cost_error = Gauge(
            "andes_cost_relative_error", "standard error of a typical iteration's cost", ["stage"],
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self._make_host = partial(_HostMetrics, Counter, Gauge)
        self._host: _HostMetrics | None = None

    def in_charge(self, policy: str) -> None:
        self._info.labels(policy=policy).set(1)

    def decision(self, seconds: float) -> None:
        self._decision.observe(seconds)

    def preemption(self, mode: str, reason: str) -> None:
        self._preemptions.labels(mode=mode, reason=reason).inc()

    def retraction(self) -> None:
        self._retractions.inc()

    def resume(self, mode: str, recomputed_tokens: int) -> None:
        self._resumes.labels(mode=mode).inc()
        self._recomputed.inc(recomputed_tokens)

    def finished(self, qoe: float) -> None:
        self._qoe.observe(qoe)

    def population(self, **counts: int) -> None:
        if counts != self._population:
            self._population = counts
            for state, count in counts.items():
                self._requests.labels(state=state).set(count)

    def unpreemptible(self, running: int) -> None:
        self._unpreemptible.set(running)

    def costs(self, latency: LatencyModel) -> None:
        for stage, fit, terms in (
            ("decode", latency.decode, ("iteration", "request", "context_token")),
            ("prefill", latency.prefill, ("iteration", "new_token", "prefix_token")),
            *([("load", latency.load, ("copy", "token"))] if latency.load.observations else []),
        ):
            for term, seconds in zip(terms, fit.coefficients, strict=True):
                self._cost.labels(stage=stage, per=term).set(seconds)
        for stage, error in zip(("decode", "prefill"), latency.uncertainty(), strict=True):
            self._cost_error.labels(stage=stage).set(error)

    def host(self, use: HostUse) -> None:
        if self._host is None:
            self._host = self._make_host()
        self._host.follow(use)


class _HostMetrics:
    """Of an engine with a host tier only: counters grow by what is new since the last :class:`HostUse`."""

    def __init__(self, counter: Any, gauge: Any) -> None:
        self._use = HostUse()
        self._bytes = counter("andes_host_copied_bytes", "KV copied between pool and host memory", ["direction"])
        self._copy = counter("andes_host_copy_seconds", "time of these copies", ["direction"])
        self._wait = counter("andes_host_wait_seconds", "time the engine stood still for copies")
        self._hits = counter("andes_host_hit_tokens", "tokens loaded from host memory instead of computed")
        self._ahead = counter("andes_host_ahead_tokens", "of these, tokens whose load began before the admission")
        self._refused = counter("andes_host_refused_tokens", "tokens that found no room in host memory")
        self._tokens = gauge("andes_host_tokens", "tokens of KV in host memory", ["what"], multiprocess_mode="sum")

    def follow(self, use: HostUse) -> None:
        before, self._use = self._use, use
        self._bytes.labels(direction="write").inc(use.written_bytes - before.written_bytes)
        self._bytes.labels(direction="load").inc(use.loaded_bytes - before.loaded_bytes)
        self._copy.labels(direction="write").inc(use.write_s - before.write_s)
        self._copy.labels(direction="load").inc(use.load_s - before.load_s)
        self._wait.inc(use.waited_s - before.waited_s)
        self._hits.inc(use.hit_tokens - before.hit_tokens)
        self._ahead.inc(use.ahead_tokens - before.ahead_tokens)
        self._refused.inc(use.refused_tokens - before.refused_tokens)
        self._tokens.labels(what="used").set(use.used_tokens)
        self._tokens.labels(what="capacity").set(use.capacity_tokens)
