"""Admission as arithmetic: a forecast goes in, nothing or an error to send comes out."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from andes_api.admission import overload, retry_after_s
from andes_api.settings import ClassSettings
from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.stream_forecast import IncomingStream, OpenStreams, ReplicaView, forecast_stream, project_qoe

READER = QoETarget(1.0, 4.8)
HORIZON_S = 60.0


@functools.cache
def engine(token_s: float = 0.0, fixed_s: float = 0.01, prefill_token_s: float = 1e-4) -> LatencyModel:
    """An engine that takes ``fixed_s + token_s * batch`` a step and so much for each prompt token."""
    model = LatencyModel()
    for batch in (1, 8, 64, 128):
        for _ in range(50):
            model.observe_decode(batch, 1000 * batch, fixed_s + token_s * batch)
            model.observe_prefill(100 * batch, 0, 0.01 + prefill_token_s * 100 * batch)
    return model


def readers(n: int, buffered_s: float = 1.0, started: bool = True) -> Readers:
    """``n`` readers at time 100 with so many seconds of text unread."""
    streams = []
    for _ in range(n):
        stream = ReaderStream(90.0, READER)
        if started:
            stream.deliver(91.0, round((9.0 + buffered_s) * READER.tds))
        streams.append(stream)
    return Readers.of(streams)


def view(name: str, streams: int = 0, *, model: LatencyModel | None = None, buffered_s: float = 1.0, **more: Any) -> ReplicaView:  # fmt: skip
    return ReplicaView(
        name,
        model or engine(),
        streams,
        OpenStreams.of(readers(streams, buffered_s)),
        context_tokens=1000.0 * streams,
        **more,
    )


def incoming(tokens: float = 200.0, **more: Any) -> IncomingStream:
    return IncomingStream(tokens, READER, **more)


CLASS = ClassSettings(shed_below=0.25)


def test_an_idle_engine_sheds_nothing() -> None:
    new = incoming()
    assert (
        overload(
            new, forecast_stream(new, view("a"), 100.0, HORIZON_S), CLASS, horizon_s=HORIZON_S, class_name="reading"
        )
        is None
    )


def test_overload_is_refused_with_the_time_to_come_back() -> None:
    new = incoming()
    slow = engine(prefill_token_s=1e-3)
    expected = forecast_stream(new, view("a", 4, model=slow, pending_tokens=60_000.0), 100.0, HORIZON_S)
    refusal = overload(new, expected, CLASS, horizon_s=HORIZON_S, class_name="reading")
    assert refusal is not None
    assert (refusal.status, refusal.reason, refusal.code) == (429, "predicted_qoe", "overloaded")
    wait_s = refusal.retry_after_s
    assert wait_s is not None
    assert 1.0 <= wait_s <= 120.0
    assert project_qoe(READER, expected.ttft_s - wait_s, expected.interval_s, HORIZON_S) == pytest.approx(
        0.25, abs=0.02
    )
    assert refusal.headers["retry-after"] == str(int(np.ceil(wait_s)))


def test_who_costs_more_than_they_gain_is_refused_and_weight_decides() -> None:
    slow = engine(token_s=0.01)
    crowd = view("a", 60, model=slow, buffered_s=0.0)
    cheap, dear = incoming(weight=0.01), incoming(weight=50.0)
    expected = forecast_stream(cheap, crowd, 100.0, HORIZON_S)
    assert expected.loss > 0.01 * expected.qoe
    low = ClassSettings(shed_below=0.01)
    refusal = overload(cheap, expected, low, horizon_s=HORIZON_S, class_name="batch")
    assert refusal is not None
    assert refusal.reason == "predicted_loss"
    assert overload(dear, expected, low, horizon_s=HORIZON_S, class_name="priority") is None
    assert (
        overload(cheap, expected, ClassSettings(shed_below=0.0), horizon_s=HORIZON_S, class_name="never shed") is None
    )


def test_retry_after_grows_with_the_queue_and_is_bounded() -> None:
    slow = engine(prefill_token_s=1e-3)
    waits = []
    for pending in (40_000.0, 80_000.0, 1e6):
        new = incoming()
        waits.append(retry_after_s(new, forecast_stream(new, view("a", 1, model=slow, pending_tokens=pending), 100.0, HORIZON_S), 0.25, HORIZON_S))  # fmt: skip
    assert waits == sorted(waits)
    assert waits[-1] == 120.0
