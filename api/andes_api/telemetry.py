"""Traces: an HTTP server span open until the last byte, under it a client span per attempt; OTLP where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from andes_api import names

__all__ = ["Telemetry", "failed"]

_PROPAGATOR = TraceContextTextMapPropagator()


class Telemetry:
    """Spans to ``endpoint`` (OTLP over HTTP), or nowhere: then the caller's trace context is passed on as it came."""

    def __init__(self, endpoint: str | None, service_name: str) -> None:
        self._provider: Any = None
        if endpoint is None:
            self._tracer: trace.Tracer = trace.NoOpTracer()
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "andes-gateway", "service.instance.id": service_name})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("andes_api")

    def server_span(self, headers: Mapping[str, str], method: str, route: str) -> Span:
        attributes = {names.HTTP_METHOD: method, names.HTTP_ROUTE: route, names.URL_PATH: route}
        return self._tracer.start_span(f"{method} {route}", _PROPAGATOR.extract(headers), SpanKind.SERVER, attributes)

    def client_span(
        self, parent: Span, url: str, chat: bool, body: Mapping[str, Any], headers: MutableMapping[str, str]
    ) -> Span:
        """One attempt at ``url``; its context is put into ``headers``, so that the engine's spans join the trace."""
        operation = "chat" if chat else "text_completion"
        address = urlsplit(url)
        attributes: dict[str, Any] = {
            names.OPERATION: operation,
            names.PROVIDER: "sglang",
            names.REQUEST_STREAM: bool(body.get("stream")),
            names.SERVER_ADDRESS: address.hostname or "",
            names.SERVER_PORT: address.port or (443 if address.scheme == "https" else 80),
        }
        for name, field in (
            (names.REQUEST_MODEL, "model"),
            (names.REQUEST_MAX_TOKENS, "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"),
            (names.REQUEST_TEMPERATURE, "temperature"),
            (names.REQUEST_TOP_P, "top_p"),
        ):
            if isinstance(body.get(field), str | int | float):
                attributes[name] = body[field]
        span_name = f"{operation} {attributes.get(names.REQUEST_MODEL, '')}".strip()
        span = self._tracer.start_span(span_name, trace.set_span_in_context(parent), SpanKind.CLIENT, attributes)
        if span.get_span_context().is_valid:
            _PROPAGATOR.inject(headers, trace.set_span_in_context(span))
        return span

    def stop(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def failed(span: Span, kind: str) -> None:
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, kind))
