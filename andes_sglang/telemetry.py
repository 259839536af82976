"""Traces and metrics by OTLP over HTTP or gRPC: one set-up for gateway, operator and simulated engine.

    otlp = connect_otlp("http://collector:4318", service="andes-gateway", scope="andes_api", instance="gateway-0")
    span = otlp.tracer.start_span("...")
    otlp.stop()

OpenTelemetry's SDK is imported only where there is an endpoint to send to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

__all__ = ["Otlp", "connect_otlp"]

EXPORT_TIMEOUT_S = 5
"""Seconds; a collector that does not answer must not hold up the end of a process."""
SPAN_INTERVAL_MS = 1000
METRIC_INTERVAL_MS = 15_000
"""Milliseconds between exports: a trace is there when its request is over, metrics as often as Prometheus scrapes."""
GRPC = ("grpc://", "grpcs://")
TRACES_PATH, METRICS_PATH = "/v1/traces", "/v1/metrics"


class Otlp:
    """tracer, meter: to record with; they do nothing where ``exports`` is False."""

    def __init__(self, tracer: Tracer, meter: Meter, providers: tuple[Any, ...] = ()) -> None:
        self.tracer, self.meter = tracer, meter
        self._providers = providers

    @property
    def exports(self) -> bool:
        return bool(self._providers)

    def stop(self) -> None:
        """Send what is left. Blocks for :data:`EXPORT_TIMEOUT_S` at most per kind."""
        for provider in self._providers:
            provider.shutdown()


def connect_otlp(
    endpoint: str | None, *, service: str, scope: str, instance: str | None = None, with_metrics: bool = False
) -> Otlp:
    """To ``endpoint`` (``http://HOST:4318``, with or without ``/v1/traces``, or ``grpc://HOST:4317``, ``grpcs://``, for which
    the package ``opentelemetry-exporter-otlp-proto-grpc`` is needed), or nowhere where it is None or empty.

    service, instance: ``service.name`` and ``service.instance.id`` of what is sent; scope: the instrumentation scope.
    """
    from opentelemetry import metrics, trace

    if not endpoint:
        return Otlp(trace.NoOpTracer(), metrics.NoOpMeter(scope))
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": service} | ({"service.instance.id": instance} if instance else {}))
    spans = TracerProvider(resource=resource)
    spans.add_span_processor(BatchSpanProcessor(_span_exporter(endpoint), schedule_delay_millis=SPAN_INTERVAL_MS))
    if not with_metrics:
        return Otlp(spans.get_tracer(scope), metrics.NoOpMeter(scope), (spans,))
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    meters = MeterProvider([PeriodicExportingMetricReader(_metric_exporter(endpoint), METRIC_INTERVAL_MS)], resource)
    return Otlp(spans.get_tracer(scope), meters.get_meter(scope), (spans, meters))


def _span_exporter(endpoint: str) -> Any:
    if endpoint.startswith(GRPC):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter(endpoint=_http(endpoint), timeout=EXPORT_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=_base(endpoint) + TRACES_PATH, timeout=EXPORT_TIMEOUT_S)


def _metric_exporter(endpoint: str) -> Any:
    if endpoint.startswith(GRPC):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

        return GrpcMetricExporter(endpoint=_http(endpoint), timeout=EXPORT_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter(endpoint=_base(endpoint) + METRICS_PATH, timeout=EXPORT_TIMEOUT_S)


def _base(endpoint: str) -> str:
    return endpoint.rstrip("/").removesuffix(TRACES_PATH)


def _http(endpoint: str) -> str:
    """As the gRPC exporter takes it: plain for http, TLS for https."""
    return "http" + endpoint.removeprefix("grpc")
