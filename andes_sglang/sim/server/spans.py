"""A span for every request, joined to its caller's trace, with what the scheduler did to it; by OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from andes_sglang.sim.server.generation import Answer, Generation
from andes_sglang.telemetry import connect_otlp

__all__ = ["OtlpSpans", "Spans"]

_QOE = "andes.qoe"
_PREEMPTIONS = "andes.preemptions"
_RETRACTIONS = "andes.retractions"
_PREEMPTED = "andes.preempted"
_RESUMED = "andes.resumed"
_MODE = "andes.preemption.mode"


class Spans:
    """What can be told; says nothing where tracing is off."""

    def began(self, generation: Generation, headers: Mapping[str, str]) -> None:
        """A request has come with these headers, ``traceparent`` perhaps among them."""

    def preempted(self, answer: Answer) -> None:
        """It was taken off: parked, released, or retracted for want of KV."""

    def resumed(self, answer: Answer) -> None:
        """It runs again."""

    def ended(self, answer: Answer) -> None:
        """Its last token is out, or it was aborted."""

    def stop(self) -> None:
        """Send what is left."""


class OtlpSpans(Spans):
    """To ``endpoint``, the full URL of a collector's ``/v1/traces``."""

    def __init__(self, endpoint: str, model: str) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._otlp = connect_otlp(endpoint, service="sglang", scope="andes_sglang.sim")
        self._tracer = self._otlp.tracer
        self._context = TraceContextTextMapPropagator().extract
        self._kind = trace.SpanKind.SERVER
        self._model = model
        self._open: dict[Generation, Any] = {}

    def began(self, generation: Generation, headers: Mapping[str, str]) -> None:
        attributes = {"gen_ai.provider.name": "sglang", "gen_ai.request.model": self._model}
        name, context = f"Req {generation.rid[:8]}", self._context(headers)
        self._open[generation] = self._tracer.start_span(name, context, self._kind, attributes)

    def preempted(self, answer: Answer) -> None:
        self._open[answer.generation].add_event(_PREEMPTED, {_MODE: answer.job.stopped or ""})

    def resumed(self, answer: Answer) -> None:
        self._open[answer.generation].add_event(_RESUMED)

    def ended(self, answer: Answer) -> None:
        generation = answer.generation
        if not generation.done or generation not in self._open:
            return
        span, jobs = self._open.pop(generation), [a.job for a in generation.answers]
        scores = [j.score().qoe for j in jobs]
        span.set_attributes({
            "gen_ai.usage.input_tokens": jobs[0].spec.prompt_tokens,
            "gen_ai.usage.output_tokens": sum(a.tokens for a in generation.answers),
            _QOE: float(np.mean(scores)),
            _PREEMPTIONS: sum(job.preemptions for job in jobs),
            _RETRACTIONS: sum(job.retractions for job in jobs),
        })  # fmt: skip
        span.end()

    def stop(self) -> None:
        self._otlp.stop()
