"""Traces and metrics by OTLP over HTTP: one set-up for gateway, operator and simulated engine.

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
    """To ``endpoint`` (``http://HOST:4318``, with or without ``/v1/traces``), or nowhere where it is None or empty.

    service, instance: ``service.name`` and ``service.instance.id`` of what is sent; scope: the instrumentation scope.
    """
    from opentelemetry import metrics, trace

    if not endpoint:
        return Otlp(trace.NoOpTracer(), metrics.NoOpMeter(scope))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    base = endpoint.rstrip("/").removesuffix(TRACES_PATH)
    resource = Resource.create({"service.name": service} | ({"service.instance.id": instance} if instance else {}))
    spans = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=base + TRACES_PATH, timeout=EXPORT_TIMEOUT_S)
    spans.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SPAN_INTERVAL_MS))
    if not with_metrics:
        return Otlp(spans.get_tracer(scope), metrics.NoOpMeter(scope), (spans,))
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    metric_exporter = OTLPMetricExporter(endpoint=base + METRICS_PATH, timeout=EXPORT_TIMEOUT_S)
    meters = MeterProvider([PeriodicExportingMetricReader(metric_exporter, METRIC_INTERVAL_MS)], resource)
    return Otlp(spans.get_tracer(scope), meters.get_meter(scope), (spans, meters))
