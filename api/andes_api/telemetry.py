"""Traces and metrics by OpenTelemetry's GenAI conventions: an HTTP server span open until the last byte, under it a client
span per attempt, and histograms; by OTLP over HTTP to where it is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from andes_api import names
from andes_api.stream import Stream
from andes_api.unread import UnreadRequest
from andes_sglang.telemetry import connect_otlp

__all__ = ["Telemetry", "failed", "with_traceparent"]

MAX_MODELS = 50
"""Models that metrics tell apart; the others are "other"."""
MAX_TRACEPARENT = 512
"""Characters; OpenTelemetry writes a line of log for each longer one, and callers choose it."""
MAX_NUMBER = 2**63 - 1
"""OTLP's largest; a larger one would lose every span that is sent with it."""
_B3 = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d]?))?(?:-[0-9a-f]{16})?")
MAX_PATH_CHARS = 200
_PROPAGATOR = TraceContextTextMapPropagator()


class Telemetry:
    """To ``endpoint``, or nowhere: then the caller's trace context is passed on as it came."""

    def __init__(self, endpoint: str | None, instance: str) -> None:
        self._otlp = connect_otlp(
            endpoint, service="andes-gateway", scope="andes_api", instance=instance, with_metrics=True
        )
        self._models: set[str] = set()
        self._tracer, meter = self._otlp.tracer, self._otlp.meter
        self._ttft = meter.create_histogram(
            names.METRIC_TTFT, "s", "from arrival to the first token", explicit_bucket_boundaries_advisory=names.TTFT_BUCKETS
        )  # fmt: skip
        self._tpot = meter.create_histogram(
            names.METRIC_TPOT, "s", "after the first token", explicit_bucket_boundaries_advisory=names.TPOT_BUCKETS
        )
        self._duration = meter.create_histogram(
            names.METRIC_DURATION, "s", "from arrival to the last byte",
            explicit_bucket_boundaries_advisory=names.DURATION_BUCKETS,
        )  # fmt: skip
        self._qoe = meter.create_histogram(
            names.METRIC_QOE,
            "1",
            "QoE as delivered to the socket",
            explicit_bucket_boundaries_advisory=names.QOE_BUCKETS,
        )

    def server_span(self, stream: Stream) -> Span:
        target = stream.expectation.target
        attributes: dict[str, Any] = {
            names.HTTP_METHOD: "POST",
            names.HTTP_ROUTE: stream.path,
            names.URL_PATH: stream.path,
            names.CLASS: stream.expectation.class_name,
            names.TTFT_TARGET: target.ttft_s,
            names.TDS_TARGET: target.tds,
        }
        context = _PROPAGATOR.extract(with_traceparent(stream.headers))
        return self._tracer.start_span(f"POST {stream.path}", context, SpanKind.SERVER, attributes)

    def unread(self, request: UnreadRequest, duration_s: float) -> None:
        """The span of a request that has not become a stream."""
        attributes: dict[str, Any] = {
            names.HTTP_METHOD: request.method,
            names.URL_PATH: request.path[:MAX_PATH_CHARS],
            names.HTTP_STATUS: request.status,
            names.OUTCOME: request.outcome,
        }
        if request.reason is not None:
            attributes[names.REASON] = request.reason
        context = _PROPAGATOR.extract(with_traceparent(request.headers))
        began_ns = round(request.arrival_s * 1e9)
        span = self._tracer.start_span(
            request.method or "HTTP", context, SpanKind.SERVER, attributes, start_time=began_ns
        )
        if request.status >= 400:
            span.set_attribute(names.ERROR_TYPE, str(request.status))
        if request.status >= 500:
            failed(span, str(request.status))
        span.end(began_ns + round(duration_s * 1e9))

    def client_span(self, stream: Stream, url: str, headers: MutableMapping[str, str]) -> Span:
        """One attempt at ``url``; its context is put into ``headers``, so that the engine's spans join the trace."""
        address, body = urlsplit(url), stream.body
        attributes: dict[str, Any] = {
            names.OPERATION: _operation(stream),
            names.PROVIDER: "sglang",
            names.REQUEST_STREAM: stream.streams,
            names.SERVER_ADDRESS: address.hostname or "",
            names.SERVER_PORT: address.port or (443 if address.scheme == "https" else 80),
        }
        model = body.get("model")
        if isinstance(model, str):
            attributes[names.REQUEST_MODEL] = model
        for name, field in (
            (names.REQUEST_MAX_TOKENS, "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"),
            (names.REQUEST_TEMPERATURE, "temperature"),
            (names.REQUEST_TOP_P, "top_p"),
        ):
            value = body.get(field)
            if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
                attributes[name] = value
        name = f"{_operation(stream)} {attributes.get(names.REQUEST_MODEL, '')}".strip()
        span = self._tracer.start_span(name, trace.set_span_in_context(stream.span), SpanKind.CLIENT, attributes)
        _PROPAGATOR.inject(headers, trace.set_span_in_context(span))
        return span

    def ended(self, stream: Stream, duration_s: float) -> None:
        """End the server span of a request that is over, and count it."""
        record, reader, span = stream.record, stream.receipt.reader, stream.span
        span.set_attributes({
            names.HTTP_STATUS: stream.status,
            names.OUTCOME: record.outcome,
            names.ATTEMPTS: stream.attempts,
            names.STALLS: reader.stalls,
            names.STALL_SECONDS: reader.stall_s,
        })  # fmt: skip
        if record.qoe is not None:
            span.set_attribute(names.QOE, record.qoe)
        if stream.expected is not None and stream.expected.wait is not None:
            span.set_attribute(names.FORECAST_WAIT, stream.expected.wait.ttft_s)
            if stream.first_s is not None:
                span.set_attribute(names.WAITED, stream.first_s)
        if record.thinking_s is not None:
            span.set_attributes({names.THOUGHT_TOKENS: stream.thought, names.THINKING_SECONDS: record.thinking_s})
        if stream.reason is not None:
            span.set_attribute(names.REASON, stream.reason)
        if record.ladder is not None and record.quality is not None:
            span.set_attributes({names.LADDER: record.ladder, names.QUALITY: record.quality})
        if stream.status >= 500:
            failed(span, str(stream.status))
        span.end()
        if not self._otlp.exports:
            return
        attributes = {
            names.OPERATION: _operation(stream),
            names.PROVIDER: "sglang",
            names.REQUEST_MODEL: self._model(stream),
            names.CLASS: stream.expectation.class_name,
        }
        self._duration.record(duration_s, attributes | {names.OUTCOME: record.outcome})
        if record.qoe is not None:
            self._qoe.record(record.qoe, attributes)
        if record.ttft_s is not None:
            self._ttft.record(record.ttft_s, attributes)
        if (tpot_s := stream.tpot_s) is not None:
            self._tpot.record(tpot_s, attributes)

    def _model(self, stream: Stream) -> str:
        """The model asked for; "other" where no engine has answered for it or there are too many."""
        model = stream.body.get("model")
        if not isinstance(model, str):
            return "other"
        if stream.status == 200 and len(self._models) < MAX_MODELS:
            self._models.add(model)
        return model if model in self._models else "other"

    def stop(self) -> None:
        """Send what is left."""
        self._otlp.stop()


def with_traceparent(headers: Mapping[str, str]) -> Mapping[str, str]:
    """``headers`` with W3C's ``traceparent`` in place of B3's one header or three, where it is not there already."""
    if "traceparent" in headers:
        too_long = len(headers["traceparent"]) > MAX_TRACEPARENT
        return {**headers, "traceparent": ""} if too_long else headers
    single = headers.get("b3") or "-".join(headers.get(f"x-b3-{name}", "") for name in ("traceid", "spanid", "sampled"))
    found = _B3.fullmatch(single.lower())
    if found is None:
        return headers
    trace_id, span_id, sampled = found.groups()
    return {**headers, "traceparent": f"00-{trace_id:0>32}-{span_id}-{'00' if sampled == '0' else '01'}"}


def failed(span: Span, kind: str) -> None:
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, kind))


def _operation(stream: Stream) -> str:
    return stream.endpoint.operation
