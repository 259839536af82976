"""Figures for Prometheus. Labels are few and bounded: classes, models that engines announce, replicas, outcomes; never a
user, a request or a name that a client chose."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from andes_api import names
from andes_api.stream import Stream
from andes_api.unread import UnreadRequest

__all__ = ["GatewayMetrics", "Levels"]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True, eq=False)
class Levels:
    """What holds at one moment. tasks: of asyncio. open: streams by class and model; held: requests that wait for an engine,
    by model. replicas: whether it may get streams, and ours there, by name. behind: readers who lack what was sent."""

    tasks: int = 0
    open: Mapping[tuple[str, str], int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    replicas: Mapping[str, tuple[bool, int]] = field(default_factory=dict)
    behind: int = 0

    @classmethod
    def merged(cls, parts: Iterable[Levels]) -> Levels:
        """Of all workers."""
        open_: collections.Counter[tuple[str, str]] = collections.Counter()
        held, up, streams = (collections.Counter[str]() for _ in range(3))
        tasks = behind = 0
        for part in parts:
            tasks += part.tasks
            behind += part.behind
            open_.update(part.open)
            held.update(part.held)
            up.update({name: accepts for name, (accepts, _) in part.replicas.items()})
            streams.update({name: count for name, (_, count) in part.replicas.items()})
        return cls(tasks, open_, held, {name: (up[name] > 0, streams[name]) for name in streams}, behind)

    def collect(self) -> Iterator[Metric]:
        """As Prometheus' gauges."""
        yield GaugeMetricFamily("andes_gateway_tasks", "asyncio tasks", self.tasks)
        yield GaugeMetricFamily("andes_gateway_readers_behind", "readers who lack what was sent to them", self.behind)
        by_class = GaugeMetricFamily("andes_gateway_streams", "open streams", labels=["class", "model"])
        for kind, count in self.open.items():
            by_class.add_metric(kind, count)
        held = GaugeMetricFamily("andes_gateway_held", "requests that wait for an engine", labels=["model"])
        for model, count in self.held.items():
            held.add_metric([model], count)
        up = GaugeMetricFamily("andes_gateway_replica_up", "1 when it may get streams", labels=["replica"])
        streams = GaugeMetricFamily("andes_gateway_replica_streams", "our open streams there", labels=["replica"])
        for name, (accepts, count) in self.replicas.items():
            up.add_metric([name], accepts)
            streams.add_metric([name], count)
        yield from (by_class, held, up, streams)


class GatewayMetrics:
    """One registry per gateway. folder: where its workers keep their counts, as prometheus_client does; None: it is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self._folder = folder
        self._open_kinds: set[tuple[str, str]] = set()
        by_class = ["class", "model"]
        self.requests = Counter(
            "andes_gateway_requests", "requests by how they ended", ["class", "model", "outcome"], registry=registry
        )
        self.shed = Counter("andes_gateway_shed", "requests refused", ["class", "model", "reason"], registry=registry)
        self.ladders = Counter(
            "andes_gateway_ladder", "requests for a ladder by the model that answered", ["ladder", *by_class],
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter("andes_gateway_tokens", "tokens delivered", by_class, registry=registry)
        self.retries = Counter("andes_gateway_retries", "streams tried again before they began", registry=registry)
        self.resumes = Counter("andes_gateway_resumes", "streams continued on another replica", registry=registry)
        self.failures = Counter(
            "andes_gateway_upstream_failures", "attempts that a replica failed", ["replica"], registry=registry
        )
        self.full = Counter(
            "andes_gateway_upstream_full", "attempts that a replica had no room for", ["replica"], registry=registry
        )
        self.task_failures = Counter(
            "andes_gateway_task_failures", "failures of what runs in the background", ["task"], registry=registry
        )
        self.slow_readers = Counter(
            "andes_gateway_slow_readers", "streams whose reader fell behind what was sent", registry=registry
        )
        self.tool_calls = Counter(
            "andes_gateway_tool_calls", "calls of tools that ran here", ["tool", "outcome"], registry=registry
        )
        self.qoe = Histogram(
            "andes_gateway_request_qoe_ratio", "QoE as delivered to the socket", by_class, registry=registry,
            buckets=names.QOE_BUCKETS,
        )  # fmt: skip
        self.ttft = Histogram(
            "andes_gateway_time_to_first_token_seconds", "from arrival to the first token's delivery", by_class,
            registry=registry, buckets=names.TTFT_BUCKETS,
        )  # fmt: skip
        self.wait_forecasts = Counter(
            "andes_gateway_wait_forecasts", "first tokens beside the 90 % bounds of their forecast", ["class", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.thinking = Histogram(
            "andes_gateway_thinking_seconds", "from the first token of a thought to the first that was shown, per stream",
            by_class, registry=registry, buckets=names.DURATION_BUCKETS,
        )  # fmt: skip
        self.thought_tokens = Counter(
            "andes_gateway_thought_tokens", "generated before the answer and not shown", by_class, registry=registry
        )
        self.tpot = Histogram(
            "andes_gateway_time_per_output_token_seconds", "mean per stream, after the first token", by_class,
            registry=registry, buckets=names.TPOT_BUCKETS,
        )  # fmt: skip
        self.duration = Histogram(
            "andes_gateway_request_duration_seconds", "from arrival to the last byte", by_class, registry=registry,
            buckets=names.DURATION_BUCKETS,
        )  # fmt: skip
        self.stall = Histogram(
            "andes_gateway_stall_seconds", "time a reader waited inside the answer, per stream", by_class,
            registry=registry, buckets=names.DURATION_BUCKETS,
        )  # fmt: skip

    def ended(self, stream: Stream, duration_s: float) -> None:
        """Count a request that is over."""
        record, kind = stream.record, (stream.expectation.class_name, stream.record.model or "")
        self.requests.labels(*kind, record.outcome).inc()
        if record.outcome == "shed" and stream.reason is not None:
            self.shed.labels(*kind, stream.reason).inc()
        if record.ladder is not None and record.quality is not None:
            self.ladders.labels(record.ladder, *kind).inc()
        self.tokens.labels(*kind).inc(stream.receipt.reader.delivered if stream.streams else stream.tokens)
        self.duration.labels(*kind).observe(duration_s)
        if stream.receipt.received is not None:
            self.slow_readers.inc()
        if record.qoe is not None:
            self.qoe.labels(*kind).observe(record.qoe)
        if record.ttft_s is not None:
            self.ttft.labels(*kind).observe(record.ttft_s)
            self.stall.labels(*kind).observe(stream.receipt.reader.stall_s)
        if (outcome := stream.wait_outcome) is not None:
            self.wait_forecasts.labels(stream.expectation.class_name, outcome).inc()
        if stream.thought:
            self.thought_tokens.labels(*kind).inc(stream.thought)
        if record.thinking_s is not None:
            self.thinking.labels(*kind).observe(record.thinking_s)
        if (tpot_s := stream.tpot_s) is not None:
            self.tpot.labels(*kind).observe(tpot_s)

    def unread(self, request: UnreadRequest, duration_s: float) -> None:
        """Count a request that has no class and no model because it has not become a stream."""
        self.requests.labels("", "", request.outcome).inc()
        if request.outcome == "shed" and request.reason is not None:
            self.shed.labels("", "", request.reason).inc()
        self.duration.labels("", "").observe(duration_s)

    def exposition(self, accept: str, levels: Levels) -> tuple[bytes, str]:
        """In the format that ``accept``, an HTTP header, asks for, with ``levels``; its content type."""
        self._open_kinds |= levels.open.keys()
        open_ = {kind: levels.open.get(kind, 0) for kind in self._open_kinds}
        registry = CollectorRegistry()
        if self._folder is None:
            registry.register(self.registry)
        else:
            MultiProcessCollector(registry, str(self._folder))
        registry.register(replace(levels, open=open_))
        wanted = (
            OPENMETRICS if OPENMETRICS.partition(";")[0] in accept else ""
        )  # never what a caller wrote: versions fail
        encode, content_type = choose_encoder(wanted)
        return encode(registry), content_type
