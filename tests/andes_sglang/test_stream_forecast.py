"""The forecast of one stream on one replica, term by term, on an engine whose costs are given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.sim.engine import Costs
from andes_sglang.stream_forecast import (
    IncomingStream,
    OpenStreams,
    ReplicaView,
    _losses,
    _pace,
    _unaffected,
    forecast_stream,
    forecast_streams,
    project_qoe,
    usable_slots,
)
from andes_sglang.waits import UsualWaits, WaitView

COSTS = Costs(
    decode_fixed_s=0.01, decode_request_s=0.001, decode_context_s=1e-6, prefill_fixed_s=0.02, prefill_token_s=1e-4,
    prefill_prefix_s=1e-6,
)  # fmt: skip
READER = QoETarget(1.0, 5.0)
NOW_S, HORIZON_S = 100.0, 60.0


def open_streams(
    buffered_s: float, count: int = 1, *, weight: float = 1.0, started: bool = True, tds: float = 5.0
) -> OpenStreams:
    """``count`` readers who at ``NOW_S`` have ``buffered_s`` seconds of text unread; or nothing yet, since 2 s."""
    streams = []
    for _ in range(count):
        stream = ReaderStream(NOW_S - 2.0 - 1.0, QoETarget(1.0, tds))
        if started:
            stream.deliver(NOW_S - 2.0, round((2.0 + buffered_s) * tds))
        streams.append(stream)
    return OpenStreams(Readers.of(streams), np.full(count, weight))


def view(**more: Any) -> ReplicaView:
    return ReplicaView(name="a", latency=COSTS, **more)


def forecast(new: IncomingStream, on: ReplicaView) -> Any:
    return forecast_stream(new, on, NOW_S, HORIZON_S)


NEW = IncomingStream(1000.0, READER)


def test_a_thought_comes_before_the_answer_and_the_reader_has_patience_for_it() -> None:
    plain = IncomingStream(400.0, READER)
    short, long = (forecast(replace(plain, thought_tokens=n), view()) for n in (0.0, 250.0))
    assert (short.ttft_s, short.answer_s) == (long.ttft_s, short.ttft_s)
    assert long.answer_s == pytest.approx(long.ttft_s + 250 * long.interval_s)
    assert long.qoe == 1.0
    hasty = IncomingStream(400.0, replace(READER, think_tds=math.inf), thought_tokens=2500.0)
    assert forecast(hasty, view()).qoe < 1.0


def test_alone_its_first_token_takes_its_prefill_and_a_step() -> None:
    expected = forecast(NEW, view())
    assert expected.interval_s == pytest.approx(0.01 + 0.001 + 1e-6 * 1000)
    assert expected.ttft_s == pytest.approx(0.02 + 0.1 + expected.interval_s)
    assert (expected.qoe, expected.loss) == (1.0, 0.0)


def test_cached_prompt_tokens_are_not_computed_again() -> None:
    warm = forecast(NEW, view(hit_tokens=800.0))
    assert warm.ttft_s - warm.interval_s == pytest.approx(0.02 + 1e-4 * 200 + 1e-6 * 800)
    whole = forecast(NEW, view(hit_tokens=5000.0))
    assert whole.ttft_s - whole.interval_s == pytest.approx(0.02 + 1e-4 * 1 + 1e-6 * 5000), "one token at least"


def test_prompts_that_wait_come_first_and_lateness_stretches_both() -> None:
    queued = forecast(NEW, view(pending_tokens=3000.0))
    assert queued.ttft_s - queued.interval_s == pytest.approx(0.02 + 0.3 + 0.02 + 0.1)
    late = forecast(NEW, view(pending_tokens=3000.0, late_ratio=3.0))
    assert late.ttft_s - late.interval_s == pytest.approx(3 * (0.02 + 0.3 + 0.02 + 0.1))
    assert late.interval_s == queued.interval_s


def test_a_step_has_all_streams_and_their_context() -> None:
    shared = forecast(NEW, view(streams=3, others=4, context_tokens=6000.0))
    assert shared.interval_s == pytest.approx(0.01 + 0.001 * 8 + 1e-6 * 7000)


def test_more_streams_than_slots_take_turns() -> None:
    shared = forecast(NEW, view(streams=31, slots=16, context_tokens=31_000.0))
    assert shared.interval_s == pytest.approx(2 * (0.01 + 0.001 * 16 + 1e-6 * 16_000))
    just = forecast(NEW, view(streams=15, slots=16, context_tokens=15_000.0))
    assert just.interval_s == pytest.approx(0.01 + 0.001 * 16 + 1e-6 * 16_000)


def test_readers_with_text_to_read_lose_nothing_and_dry_ones_do() -> None:
    long = IncomingStream(20_000.0, READER)  # two seconds of prefill
    losses = [forecast(long, view(streams=1, open_streams=open_streams(s))).loss for s in (0.0, 1.0, 1.9, 3.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[1] > losses[2]
    assert losses[3] == 0.0


def test_loss_counts_every_stream_by_its_weight() -> None:
    long = IncomingStream(20_000.0, READER)
    one, three = (forecast(long, view(streams=3, open_streams=open_streams(0.0, n))).loss for n in (1, 3))
    heavy = forecast(long, view(streams=3, open_streams=open_streams(0.0, weight=2.5))).loss
    assert three == pytest.approx(3 * one)
    assert heavy == pytest.approx(2.5 * one)


def test_streams_that_wait_lose_by_the_slower_pace_only() -> None:
    slow = Costs(0.01, 0.1, 0.0, 0.02, 1e-4)
    waiting = ReplicaView("a", slow, streams=2, open_streams=open_streams(0.0, 2, started=False), pending_tokens=500.0)
    first_s, without_s, with_s = 0.02 + 0.05, 0.01 + 0.2, 0.01 + 0.3
    reader = waiting.open_streams.readers.take(np.array([0]))
    before, after = (float(reader.served(NOW_S, HORIZON_S, first_s, x)[0]) for x in (without_s, with_s))
    assert forecast(NEW, waiting).loss == pytest.approx(2 * (before - after))
    assert before - after > 0.01


def test_the_stream_pays_for_its_own_delay() -> None:
    slow = view(pending_tokens=100_000.0)
    expected = forecast(NEW, slow)
    assert expected.qoe == pytest.approx(project_qoe(READER, expected.ttft_s, expected.interval_s, HORIZON_S))
    assert 0.0 < expected.qoe < 1.0


def test_cost_is_the_weighted_shortfall_and_the_loss() -> None:
    expected = forecast(NEW, view())._replace(qoe=0.75, loss=0.5)
    assert expected.cost(2.0) == pytest.approx(2.0 * 0.25 + 0.5)


def test_projected_qoe_of_one_stream() -> None:
    assert project_qoe(READER, 1.0, 0.2, HORIZON_S) == 1.0
    assert project_qoe(READER, 1.0, 0.25, HORIZON_S) < 1.0, "slower than it is read"
    late = project_qoe(READER, 11.0, 0.1, HORIZON_S)
    assert late == pytest.approx(((59 - 10) / 59) ** 2), "a ramp that begins ten seconds late"
    patient = QoETarget(100.0, 5.0)
    assert project_qoe(patient, 150.0, 0.1, HORIZON_S) == pytest.approx(0.25), "at twice its patience at least"


READERS = st.lists(
    st.tuples(st.floats(0, 60), st.floats(1, 50), st.integers(0, 200), st.floats(0.1, 4)), min_size=0, max_size=5
)


@given(st.lists(st.tuples(READERS, st.floats(0, 5e4), st.integers(0, 80)), min_size=1, max_size=4), st.floats(1, 2e4))
def test_many_replicas_at_once_are_each_by_itself(replicas: list[Any], prompt_tokens: float) -> None:
    views = []
    for given_readers, pending, others in replicas:
        streams = []
        for age_s, tds, tokens, _ in given_readers:
            stream = ReaderStream(NOW_S - age_s, QoETarget(1.0, tds))
            stream.deliver(NOW_S - age_s / 2, tokens)
            streams.append(stream)
        weights = np.array([weight for *_, weight in given_readers])
        views.append(
            view(
                streams=len(streams),
                open_streams=OpenStreams(Readers.of(streams), weights),
                pending_tokens=pending,
                others=others,
            )
        )
    new = IncomingStream(prompt_tokens, READER)
    together = forecast_streams(new, views, NOW_S, HORIZON_S)
    for one, alone in zip(together, (forecast(new, v) for v in views), strict=True):
        assert one[:5] == pytest.approx(alone[:5], abs=1e-9)
        assert one.wait is None, "routers do not pay for it"
        assert 0.0 <= one.qoe <= 1.0
        assert one.loss >= 0.0


@given(READERS, st.floats(1, 5e4), st.floats(0, 0.05))
def test_where_the_short_cut_says_no_loss_there_is_none(
    readers: list[Any], prompt_tokens: float, step_s: float
) -> None:
    streams = []
    for buffered_s, tds, tokens, _ in readers:
        stream = ReaderStream(NOW_S - 61.0, QoETarget(1.0, tds))
        stream.deliver(NOW_S - 60.0, tokens and round((60.0 + buffered_s) * tds))
        streams.append(stream)
    there = OpenStreams(Readers.of(streams), np.array([weight for *_, weight in readers]))
    on = ReplicaView("a", Costs(0.01 + step_s, 0.001, 0.0, 0.02, 1e-4), streams=len(streams), open_streams=there)
    pace = _pace(IncomingStream(prompt_tokens, READER), on)
    if _unaffected(there, pace, NOW_S):
        assert next(iter(_losses([there], [pace], NOW_S, HORIZON_S)), 0.0) == pytest.approx(0.0, abs=1e-9)


def test_the_short_cut_is_taken_only_where_nothing_is_lost() -> None:
    pace = _pace(NEW, view(streams=1))
    calm = open_streams(1.0)
    assert _unaffected(calm, pace, NOW_S)
    assert not _unaffected(calm, pace, NOW_S + 1.0), "it has run dry"
    assert not _unaffected(open_streams(1.0, tds=200.0), pace, NOW_S), "read faster than it comes"
    assert not _unaffected(calm, pace._replace(gap_s=1.1), NOW_S), "runs dry across the prefill"
    assert not _unaffected(calm, pace._replace(alone_s=1.1), NOW_S), "runs dry without the new stream"
    assert _unaffected(open_streams(0.0, started=False), pace, NOW_S), "waits for its first token either way"


def test_of_many_streams_a_sample_counts_for_all() -> None:
    many = open_streams(1.0, 10, weight=2.0)
    assert many.sample(10) is many
    sample = many.sample(4)
    assert (len(sample), sample.weights.tolist()) == (4, [6.0] * 4)
    assert (sample.dry_at_s, sample.max_tds) == (many.dry_at_s, many.max_tds)
    assert len(sample.readers.tds) == 4


def test_what_is_known_of_all_streams_at_once() -> None:
    mixed = Readers(
        *(np.concatenate(c) for c in zip(open_streams(3.0, tds=4.0).readers, open_streams(1.0, tds=8.0).readers))
    )
    assert OpenStreams.of(mixed).dry_at_s == pytest.approx(NOW_S + 1.0)
    assert OpenStreams.of(mixed).max_tds == 8.0
    assert open_streams(0.0, started=False).dry_at_s == np.inf
    assert (len(OpenStreams.of(Readers.of([]))), OpenStreams.of(Readers.of([])).max_tds) == (0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        ((64, 10_000, 5_000.0, 50), 64),
        ((64, 10_000, 5_000.0, 10), 20),
        ((64, 10_000, 20_000.0, 1), 1),
        ((64, 0, 5_000.0, 10), 64),
        ((64, 10_000, 0.0, 10), 64),
        ((64, 10_000, 5_000.0, 0), 64),
    ],
)
def test_usable_slots_are_what_kv_holds(arguments: Any, slots: int) -> None:
    assert usable_slots(*arguments) == slots


def test_what_streams_tell_of_the_wait_goes_beside_the_forecast_and_routes_nothing() -> None:
    """40 streams of which 16 decode at a time: those ahead over the rate, or as usual."""
    crowded = view(streams=40, slots=16, pending_tokens=2000.0)
    plain = forecast(NEW, crowded)
    usual_waits = UsualWaits(np.array([0.2]), [(3.0, True)])
    queued = forecast(NEW, replace(crowded, waits=WaitView(24, 2.0, usual_waits, queues=True, low=0.5, high=2.0)))
    assert queued.wait[:3] == (12.0, 6.0, 24.0)
    usual = forecast(NEW, replace(crowded, waits=WaitView(24, 2.0, usual_waits, queues=False)))
    assert usual.wait.ttft_s == 3.0
    assert queued[:5] == usual[:5] == plain[:5]
