"""``/metrics`` and ``/v1/loads`` in SGLang's names, beside our own. Gauges are read from the replica at every scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from andes_sglang.sim.server.generation import Answer
from andes_sglang.sim.server.live import LiveReplica

__all__ = ["Exposition", "Gauges", "SGLangObserver"]

_TTFT = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
_E2E = (*_TTFT, 600, 1200, 1800, 2400)
_ITL = (
    0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080, 0.100, 0.200, 0.400, 0.600,
    0.800, 1.000, 2.000, 4.000, 6.000, 8.000,
)  # fmt: skip
"""SGLang's default buckets, in seconds."""

disable_created_metrics()  # SGLang shows none


class SGLangObserver:
    """What SGLang's tokenizer process counts; a collector, so that gaps between tokens are counted in bulk."""

    def __init__(self, model: str, registry: CollectorRegistry) -> None:
        self._labels = {"model_name": model, "engine_type": "unified"}
        names = tuple(self._labels)
        split = (*names, "is_streaming")

        def counter(name: str, says: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"sglang:{name}", says, labels, registry=registry)

        self._prompt = counter("prompt_tokens", "Number of prefill tokens processed.", split)
        self._generated = counter("generation_tokens", "Number of generation tokens processed.", split)
        self._requests = counter("num_requests", "Number of requests processed.", split)
        self._cached = counter("cached_tokens", "Number of cached prompt tokens by source.", (*names, "cache_source"))
        self._aborted = counter("num_aborted_requests", "Number of requests aborted.", names).labels(**self._labels)
        self._ttft = Histogram(
            "sglang:time_to_first_token_seconds", "Time to first token.", split, buckets=_TTFT, registry=registry
        )
        self._e2e = Histogram(
            "sglang:e2e_request_latency_seconds", "End-to-end latency.", split, buckets=_E2E, registry=registry
        )
        self._gaps = [0] * (len(_ITL) + 1)
        self._gaps_s = 0.0
        registry.register(self)

    def _split(self, answer: Answer) -> dict[str, str]:
        return {**self._labels, "is_streaming": "true" if answer.generation.stream else "false"}

    def tokens(self, count: int, gap_s: float) -> None:
        self._gaps[bisect_left(_ITL, gap_s)] += count
        self._gaps_s += count * gap_s

    def first(self, answer: Answer, ttft_s: float) -> None:
        self._ttft.labels(**self._split(answer)).observe(ttft_s)

    def ended(self, answer: Answer, e2e_s: float) -> None:
        if answer.aborted:
            self._aborted.inc()
            return
        split = self._split(answer)
        self._prompt.labels(**split).inc(answer.job.spec.prompt_tokens)
        self._generated.labels(**split).inc(answer.tokens)
        self._requests.labels(**split).inc()
        self._e2e.labels(**split).observe(e2e_s)
        if answer.cached_tokens:
            self._cached.labels(**self._labels, cache_source="device").inc(answer.cached_tokens)

    def collect(self) -> Iterator[Metric]:
        total, buckets = 0, []
        for bound, count in zip((*map(str, _ITL), "+Inf"), self._gaps, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(
            "sglang:inter_token_latency_seconds", "Time between tokens.", labels=tuple(self._labels)
        )
        family.add_metric(tuple(self._labels.values()), buckets, self._gaps_s)
        yield family


class Gauges:
    """What SGLang's scheduler process shows of its state; a collector."""

    def __init__(self, live: LiveReplica, model: str, registry: CollectorRegistry) -> None:
        self._live = live
        rank = {"tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
        self._labels = {"model_name": model, "engine_type": "unified", **rank}
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        names, values = tuple(self._labels), tuple(self._labels.values())
        for name, says, value in self._values():
            gauge = GaugeMetricFamily(f"sglang:{name}", says, labels=names)
            gauge.add_metric(values, value)
            yield gauge
        retracted = CounterMetricFamily("sglang:num_retracted_requests", "Requests retracted.", labels=names)
        retracted.add_metric(values, self._live.retractions)
        yield retracted
        yield GaugeMetricFamily(
            "andes_sim_lag_seconds", "by how much the simulated engine's process is too slow", self._live.lag_s
        )

    def _values(self) -> Iterator[tuple[str, str, float]]:
        live, replica = self._live, self._live.replica
        capacity, used, evictable = replica.engine.kv_capacity_tokens, replica.kv_used_tokens, replica.cache.evictable
        yield "num_running_reqs", "The number of running requests.", len(replica.running)
        yield "num_queue_reqs", "The number of requests in the waiting queue.", len(live.waiting())
        yield "gen_throughput", "The generation throughput (token/s).", live.tokens_per_s
        yield "cache_hit_rate", "The prefix cache hit rate.", live.cache_hit_ratio
        yield "token_usage", "The token usage.", used / capacity
        yield "full_token_usage", "The token usage for full attention layers.", used / capacity
        yield "num_used_tokens", "The number of used tokens.", used
        yield "kv_used_tokens", "Used token slots in the KV cache pool.", used
        yield "kv_evictable_tokens", "Evictable token slots in the KV cache pool.", evictable
        yield "kv_available_tokens", "Free token slots in the KV cache pool.", capacity - used - evictable
        yield "max_total_num_tokens", "Total number of tokens in the KV cache pool.", capacity


class Exposition:
    """Answers ``/metrics`` and ``/v1/loads``."""

    def __init__(self, live: LiveReplica, registry: CollectorRegistry) -> None:
        self._live = live
        self._registry = registry

    def page(self) -> tuple[bytes, str]:
        """The page and its media type."""
        live, replica = self._live, self._live.replica
        waiting = live.waiting()
        released = sum(answer.has_begun for answer in waiting)
        live.metrics.population(
            running=len(replica.running), parked=len(replica.parked), released=released, waiting=len(waiting) - released
        )
        if replica.policy is not None:
            live.metrics.costs(replica.latency)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def load(self) -> dict[str, Any]:
        """The core section of SGLang's load snapshot; the parked count as running, as under our plugin."""
        live, replica = self._live, self._live.replica
        capacity, used = replica.engine.kv_capacity_tokens, replica.kv_used_tokens
        waiting = live.waiting()
        pending = sum(answer.job.context_tokens for answer in waiting)
        return {
            "timestamp": live.now_s,
            "dp_rank": 0,
            "num_running_reqs": len(replica.running) + len(replica.parked),
            "num_waiting_reqs": len(waiting),
            "num_waiting_uncached_tokens": pending,
            "num_used_tokens": used,
            "num_total_tokens": used + pending,
            "num_active_tokens": used + pending,
            "max_total_num_tokens": capacity,
            "max_running_requests": replica.engine.max_running,
            "token_usage": round(used / capacity, 4),
            "gen_throughput": round(live.tokens_per_s, 2),
            "cache_hit_rate": round(live.cache_hit_ratio, 4),
            "utilization": 0.0,
        }
