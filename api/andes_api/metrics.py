"""Figures for Prometheus. Labels are few and bounded: classes, models that engines announce, replicas, outcomes; never a
user, a request or a name that a client chose."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from andes_api import names
from andes_api.stream import Stream
from andes_api.unread import UnreadRequest

__all__ = ["GatewayMetrics"]


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class GatewayMetrics:
    """One registry per gateway."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._open_kinds: set[tuple[str, str]] = set()
        by_class = ["class", "model"]
        self.requests = Counter(
            "andes_gateway_requests", "requests by how they ended", ["class", "model", "outcome"], registry=registry
        )
        self.shed = Counter("andes_gateway_shed", "requests refused", ["class", "model", "reason"], registry=registry)
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
        self.tasks = Gauge("andes_gateway_tasks", "asyncio tasks of this process", registry=registry)
        self.open = Gauge("andes_gateway_streams", "open streams", by_class, registry=registry)
        self.behind = Gauge(
            "andes_gateway_readers_behind", "readers who have not received what was sent to them", registry=registry
        )
        self.slow_readers = Counter(
            "andes_gateway_slow_readers", "streams whose reader fell behind what was sent", registry=registry
        )
        self.held = Gauge("andes_gateway_held", "requests that wait for an engine", ["model"], registry=registry)
        self.replica_up = Gauge("andes_gateway_replica_up", "1 when it may get streams", ["replica"], registry=registry)
        self.replica_streams = Gauge(
            "andes_gateway_replica_streams", "our open streams there", ["replica"], registry=registry
        )
        self.qoe = Histogram(
            "andes_gateway_request_qoe_ratio", "QoE as delivered to the socket", by_class, registry=registry,
            buckets=names.QOE_BUCKETS,
        )  # fmt: skip
        self.ttft = Histogram(
            "andes_gateway_time_to_first_token_seconds", "from arrival to the first token's delivery", by_class,
            registry=registry, buckets=names.TTFT_BUCKETS,
        )  # fmt: skip
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
        self.tokens.labels(*kind).inc(stream.receipt.reader.delivered if stream.streams else stream.tokens)
        self.duration.labels(*kind).observe(duration_s)
        if stream.receipt.received is not None:
            self.slow_readers.inc()
        if record.qoe is not None:
            self.qoe.labels(*kind).observe(record.qoe)
        if record.ttft_s is not None:
            self.ttft.labels(*kind).observe(record.ttft_s)
            self.stall.labels(*kind).observe(stream.receipt.reader.stall_s)
        if (tpot_s := stream.tpot_s) is not None:
            self.tpot.labels(*kind).observe(tpot_s)

    def unread(self, request: UnreadRequest, duration_s: float) -> None:
        """Count a request that has no class and no model because it has not become a stream."""
        self.requests.labels("", "", request.outcome).inc()
        if request.outcome == "shed" and request.reason is not None:
            self.shed.labels("", "", request.reason).inc()
        self.duration.labels("", "").observe(duration_s)

    def set_open(self, kinds: Iterable[tuple[str, str | None]]) -> None:
        """Class and model of every open stream."""
        counts = collections.Counter((cls, model or "") for cls, model in kinds)
        self._open_kinds |= counts.keys()
        for kind in self._open_kinds:
            self.open.labels(*kind).set(counts[kind])

    def set_held(self, counts: Mapping[str | None, int]) -> None:
        """Held requests by model; None: of a model that no engine has announced yet."""
        for model, count in counts.items():
            self.held.labels(model or "").set(count)

    def replicas(self, states: dict[str, tuple[bool, int]]) -> None:
        """(up, streams) by replica; those not named are forgotten."""
        self.replica_up.clear()
        self.replica_streams.clear()
        for name, (up, streams) in states.items():
            self.replica_up.labels(name).set(up)
            self.replica_streams.labels(name).set(streams)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """In the format that ``accept``, an HTTP header, asks for; its content type."""
        wanted = (
            OPENMETRICS if OPENMETRICS.partition(";")[0] in accept else ""
        )  # never what a caller wrote: versions fail
        encode, content_type = choose_encoder(wanted)
        return encode(self.registry), content_type
