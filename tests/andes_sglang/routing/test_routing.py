"""Routing and its forecast as arithmetic: one conformance suite over all policies, then what each is for."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.routing import ROUTING_POLICIES, make_routing_policy
from andes_sglang.stream_forecast import IncomingStream, OpenStreams, ReplicaView, forecast_stream

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


def newcomer(tokens: float = 200.0, **more: Any) -> IncomingStream:
    return IncomingStream(tokens, READER, **more)


def first(policy: str, views: list[ReplicaView], new: IncomingStream | None = None) -> str:
    return make_routing_policy(policy).order(new or newcomer(), views, 100.0)[0].name


@pytest.mark.parametrize("name", ROUTING_POLICIES)
class TestEveryPolicy:
    def test_orders_all_and_changes_none(self, name: str) -> None:
        views = [view("a", 3), view("b"), view("c", 40)]
        before = list(views)
        policy = make_routing_policy(name)
        for key in range(20):
            ordered = policy.order(newcomer(prefix_key=key), views, 100.0)
            assert sorted(v.name for v in ordered) == ["a", "b", "c"]
        assert views == before

    def test_is_at_ease_with_one_and_with_none(self, name: str) -> None:
        assert first(name, [view("only", 5)]) == "only"
        assert make_routing_policy(name).order(newcomer(), [], 100.0) == []

    def test_spreads_different_prompts_over_equals(self, name: str) -> None:
        policy = make_routing_policy(name)
        firsts = [
            policy.order(newcomer(prefix_key=k * 7919), [view("a"), view("b")], 100.0)[0].name for k in range(200)
        ]
        assert 60 <= firsts.count("a") <= 140

    def test_is_repeatable(self, name: str) -> None:
        views = [view(n, k) for k, n in enumerate("abcd")]
        runs = []
        for _ in range(2):
            policy = make_routing_policy(name)
            runs.append([policy.order(newcomer(prefix_key=k), views, 100.0)[0].name for k in range(30)])
        assert runs[0] == runs[1]


def test_least_load_goes_where_least_is() -> None:
    assert first("least_load", [view("a", 3), view("b", 2), view("c", 2, pending_tokens=900.0)]) == "b"
    assert first("least_load", [view("a", 1, others=9), view("b", 2)]) == "b"


def test_prefix_affinity_holds_until_the_bound() -> None:
    policy = make_routing_policy("prefix")
    free = [view(n, 10) for n in "abcd"]
    home, second = (v.name for v in policy.order(newcomer(prefix_key=5), free, 100.0)[:2])
    assert policy.order(newcomer(prefix_key=5), free[::-1], 100.0)[0].name == home
    crowded = [view(n, 30 if n == home else 10) for n in "abcd"]
    assert policy.order(newcomer(prefix_key=5), crowded, 100.0)[0].name == second
    gone = [v for v in free if v.name != home]  # others keep their home when one leaves
    moved = sum(
        policy.order(newcomer(prefix_key=k), free, 100.0)[0].name
        != policy.order(newcomer(prefix_key=k), gone, 100.0)[0].name
        for k in range(400)
    )
    assert 60 <= moved <= 140


def test_qoe_goes_where_the_fleet_loses_least() -> None:
    tight, loose = engine(token_s=0.008), engine(token_s=0.0005)
    assert first("qoe", [view("tight", 20, model=tight), view("loose", 25, model=loose)]) == "loose"
    # Equal engines, equal numbers: readers with much unread text lose nothing by one more.
    slow = engine(token_s=0.01)
    assert (
        first("qoe", [view("dry", 22, model=slow, buffered_s=0.0), view("full", 22, model=slow, buffered_s=60.0)])
        == "full"
    )
    # A long prompt goes where its beginning is in the cache.
    slow_prefill = engine(prefill_token_s=1e-3)
    cached = [view("cold", model=slow_prefill), view("warm", model=slow_prefill, hit_tokens=5000.0)]
    assert first("qoe", cached, newcomer(6000.0)) == "warm"
    # Behind a queue of prompts the first token comes late.
    queued = [view("queue", 2, model=slow_prefill, pending_tokens=8000.0), view("calm", 12, model=slow_prefill)]
    assert first("qoe", queued) == "calm"
    # Full slots share; streams that are not ours count.
    assert first("qoe", [view("full", 0, others=64, slots=16), view("half", 8, slots=16)]) == "half"


def test_a_forecast_by_hand() -> None:
    model = engine(token_s=0.001, fixed_s=0.01, prefill_token_s=1e-4)
    alone = forecast_stream(newcomer(1000.0), view("a", model=model), 100.0, HORIZON_S)
    assert alone.interval_s == pytest.approx(0.011, rel=0.1)
    assert alone.ttft_s == pytest.approx(0.11 + 0.011, rel=0.1)
    assert (alone.qoe, alone.loss) == (pytest.approx(1.0), 0.0)
    queued = forecast_stream(
        newcomer(1000.0), view("a", model=model, pending_tokens=20_000.0, late_ratio=2.0), 100.0, HORIZON_S
    )
    assert queued.ttft_s == pytest.approx(2 * (2.01 + 0.11), rel=0.1)
    assert queued.qoe < 1.0
    shared = forecast_stream(newcomer(1000.0), view("a", 63, model=model, slots=16), 100.0, HORIZON_S)
    assert shared.interval_s == pytest.approx(4 * 0.026, rel=0.15)


def test_one_more_never_helps_the_others() -> None:
    model = engine(token_s=0.01)
    losses = [
        forecast_stream(newcomer(), view("a", n, model=model, buffered_s=0.0), 100.0, HORIZON_S).loss
        for n in range(1, 80, 6)
    ]
    assert all(loss >= 0.0 for loss in losses)
    assert losses[-1] > losses[0]
