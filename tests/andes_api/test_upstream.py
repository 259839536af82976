"""What the gateway knows of one engine and learns from its streams; time is an argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from andes_api.demand import DemandRecord
from andes_api.endpoints import COMPLETION
from andes_api.expectations import resolve
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_api.upstream import MAX_READERS, Upstream
from andes_sglang.stream_forecast import StreamForecast

SETTINGS = GatewaySettings(upstreams=("http://engine:1",), max_streams_per_replica=4, breaker_failures=2)
EXPECTED = StreamForecast(ttft_s=0.5, interval_s=0.1, qoe=1.0, loss=0.0)


def upstream(**settings: Any) -> Upstream:
    return Upstream("http://engine:1", SETTINGS.model_copy(update=settings), 100.0)


def stream(text: str = "x" * 400, tokens: int = 0, arrival_s: float = 100.0, **body: Any) -> Stream:
    content = {"prompt": text, "stream": True, **body}
    expectation = resolve({}, content, None, SETTINGS)
    prompt = Prompt(content, ("prompt",))
    record = DemandRecord(0.0, "reading", True, 1, expectation.reader)
    made = Stream(COMPLETION, content, expectation, None, {}, arrival_s, prompt, prompt.tokens(4.0), record)
    made.tokens = tokens
    made.delivered(arrival_s + 1.0, tokens) if tokens else None
    return made


PROMPT = Prompt({"prompt": "x" * 4000}, ("prompt",))


def test_it_accepts_streams_unless_something_speaks_against_it() -> None:
    engine = upstream()
    assert engine.accepts(100.0), "not probed yet"
    for name, value in (("healthy", False), ("drained", True), ("gone", True)):
        setattr(engine, name, value)
        assert not engine.accepts(100.0), name
        setattr(engine, name, not value)
        assert engine.accepts(100.0)
    for _ in range(2):
        engine.breaker.failed(100.0)
    assert not engine.accepts(101.0)
    assert engine.accepts(102.0)
    for _ in range(4):
        engine.opened(stream())
    assert not engine.accepts(102.0), "full"
    assert (engine.name, engine.draining) == ("engine:1", False)


def test_a_view_counts_streams_prompts_and_readers() -> None:
    engine = upstream()
    heavy = stream(tokens=5, custom_params={"qoe": {"weight": 0.5, "tds": 10}})
    for opened in (heavy, stream("x" * 800), stream("x" * 1200)):
        engine.opened(opened)
    engine.others, engine.slots, engine.context_tokens = 2, 16, 900.0
    view = engine.view(101.0, PROMPT, 1000.0)
    assert (view.name, view.streams, view.others, view.load, view.slots, view.context_tokens) == (
        "engine:1",
        3,
        2,
        5,
        16,
        900.0,
    )
    assert (view.prompt_tokens, view.pending_tokens) == (600.0, 500.0)
    assert sorted(view.open_streams.weights.tolist()) == [0.5, 1.0, 1.0]
    assert sorted(view.open_streams.readers.tds.tolist()) == [4.8, 4.8, 10.0]
    assert sorted(view.open_streams.readers.delivered.tolist()) == [0.0, 0.0, 5.0]
    assert view.latency is engine.latency


def test_a_view_has_readers_of_a_tenth_of_a_second_ago_and_all_that_have_come_since() -> None:
    engine = upstream()
    first = stream()
    engine.opened(first)
    assert engine.view(101.0, PROMPT, 1.0).pending_tokens == 100.0
    first.tokens = 1
    engine.opened(stream())
    engine.opened(first)
    soon, later = engine.view(101.09, PROMPT, 1.0), engine.view(101.11, PROMPT, 1.0)
    assert (len(soon.open_streams), soon.pending_tokens, soon.streams) == (2, 200.0, 2)
    assert (len(later.open_streams), later.pending_tokens) == (2, 100.0)


def test_a_view_of_many_streams_is_a_sample() -> None:
    engine = upstream()
    for _ in range(MAX_READERS + 1):
        engine.opened(stream())
    sample = engine.view(101.0, PROMPT, 1.0).open_streams
    assert len(sample) == (MAX_READERS + 2) // 2
    assert set(sample.weights.tolist()) == {2.0}


def test_a_prompt_sent_there_before_is_probably_in_the_cache() -> None:
    engine = upstream()
    assert engine.view(101.0, PROMPT, 1000.0).hit_tokens == 0.0
    engine.prefixes.add(PROMPT.blocks)
    assert engine.view(101.0, PROMPT, 1000.0).hit_tokens == pytest.approx(1000.0 * 7 * 512 / 4000)


def test_nothing_is_queued_ahead_while_slots_are_free_and_all_have_a_token() -> None:
    engine = upstream()
    new, running = stream(), stream(tokens=1)
    engine.opened(new)
    assert engine.finds_no_queue(new), "itself does not count"
    engine.opened(running)
    engine.slots = 2
    assert engine.finds_no_queue(new)
    engine.slots = 1
    assert not engine.finds_no_queue(new)
    engine.slots, engine.others = 2, 1
    assert not engine.finds_no_queue(new)
    engine.others = 0
    engine.opened(stream())
    engine.slots = 9
    assert not engine.finds_no_queue(new), "one waits for its first token"


def test_a_first_token_that_was_alone_teaches_what_prefill_costs() -> None:
    engine = upstream()
    for text in ("x" * 400, "x" * 4000, "x" * 8000) * 20:
        new = stream(text)
        engine.first_token(new, 0.1 + 1e-3 * new.prompt_tokens, 101.0, expected=EXPECTED, alone=True)
    assert engine.latency.prefill_s(1500) == pytest.approx(1.6, rel=0.1)
    assert engine.late_ratio(101.0) == 1.0


def test_late_first_tokens_stretch_the_forecast_of_a_crowded_replica_and_are_forgotten() -> None:
    engine = upstream()
    for _ in range(40):  # 1.2 s where 0.4 s were predicted
        predicted = EXPECTED._replace(ttft_s=0.1 + 0.4 * engine.late_ratio(101.0))
        engine.first_token(stream(), 0.1 + 1.2, 101.0, expected=predicted, alone=False)
    assert engine.late_ratio(101.0) == pytest.approx(3.0, rel=0.01)
    assert engine.late_ratio(111.0) == pytest.approx(1.0 + 2.0 * np.exp(-1.0), rel=0.01)
    assert engine.view(101.0, PROMPT, 1.0).late_ratio == 1.0, "it is not crowded"
    engine.others = engine.slots
    assert engine.view(101.0, PROMPT, 1.0).late_ratio == pytest.approx(3.0, rel=0.01)
    engine.others = 0
    engine.opened(stream())
    assert engine.view(102.0, PROMPT, 1.0).late_ratio > 2.0, "one waits"
    untold = upstream()
    untold.first_token(stream(), 99.0, 101.0, expected=None, alone=False)
    assert untold.late_ratio(101.0) == 1.0


def test_one_late_first_token_counts_a_fifth_and_within_bounds() -> None:
    for waited_s, ratio in ((0.5, 1.0), (0.9, 1.2), (1e6, 1.0 + 0.2 * 49.0), (0.0, 1.0 - 0.2 * 0.8)):
        engine = upstream()
        engine.first_token(stream(), waited_s, 101.0, expected=EXPECTED, alone=False)
        assert engine.late_ratio(101.0) == pytest.approx(ratio)


def test_its_pace_is_learned_from_tokens_and_the_streams_that_got_them() -> None:
    engine = upstream()
    engine.context_tokens = 500.0
    for second in range(60):
        for started in (stream(), stream()):
            engine.first_token(started, 0.1, 100.0 + second, expected=None, alone=False)
        engine.tokens += 40  # two streams, a token every 50 ms
        engine.observe_pace(101.0 + second)
        for _ in range(2):
            engine.closed(stream(), 0.0, 101.0 + second, started=True)
    assert engine.latency.decode_s(2, 500) == pytest.approx(0.05, rel=0.1)
    assert engine.tokens == 0


def test_streams_beyond_the_slots_share_them() -> None:
    engine = upstream()
    engine.slots = 2
    for _ in range(4):
        engine.first_token(stream(), 0.1, 100.0, expected=None, alone=False)
    for second in range(60):
        engine.tokens = 40  # four streams, 10 tokens/s each: two at a time take 50 ms a step
        engine.observe_pace(101.0 + second)
    assert engine.latency.decode_s(2, 0) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(("tokens", "seconds", "streams"), [(9, 1.0, 1), (100, 0.19, 1), (100, 1.0, 0)])
def test_too_little_is_no_observation(tokens: int, seconds: float, streams: int) -> None:
    engine = upstream()
    for _ in range(streams):
        engine.first_token(stream(), 0.1, 100.0, expected=None, alone=False)
    engine.tokens = tokens
    engine.observe_pace(100.0 + seconds)
    assert engine.latency.decode.observations == 0
    assert engine.tokens == 0


def test_how_long_a_stream_lasts_is_a_running_mean() -> None:
    engine = upstream()
    first = stream()
    engine.opened(first)
    engine.closed(first, 100.0, 125.0, started=True)
    assert engine.stream_s == pytest.approx(5.0 + 0.1 * (25.0 - 5.0))
    engine.closed(first, 100.0, 200.0, started=False)
    assert engine.stream_s == pytest.approx(7.0), "what never began says nothing"
    assert not engine.streams


LOAD = {
    "num_running_reqs": 4, "num_waiting_reqs": 2, "num_used_tokens": 4000, "max_running_requests": 64,
    "max_total_num_tokens": 20_000,
}  # fmt: skip


def test_what_the_engine_says_it_holds() -> None:
    engine = upstream()
    engine.set_load([LOAD, LOAD], sent=5)
    assert (engine.requests, engine.others, engine.context_tokens) == (12, 7, 8000.0)
    assert engine.slots == 40, "KV for 40 streams of 1000 tokens"
    for _ in range(9):
        engine.opened(stream())
    engine.set_load([LOAD, LOAD], sent=5)
    assert engine.others == 3, "some of ours came while it was asked"
    engine.set_load([{**LOAD, "num_running_reqs": 0, "num_waiting_reqs": 0}], sent=0)
    assert (engine.requests, engine.others, engine.slots) == (0, 0, 64)
    engine.set_load([{**LOAD, "max_running_requests": 0}], sent=0)
    assert engine.slots == 64, "an engine that does not say keeps what it said"
    with pytest.raises(KeyError):
        engine.set_load([{}], sent=0)


def test_it_describes_itself() -> None:
    engine = upstream()
    engine.opened(stream())
    engine.opened(stream(tokens=3))
    said = engine.describe(100.0)
    assert (said["streams"], said["waiting"], said["breaker_open"], said["healthy"]) == (2, 1, False, None)
    assert said["decode_s"] == round(engine.latency.decode_s(2, 0.0), 5)
    for _ in range(2):
        engine.breaker.failed(100.0)
    assert engine.describe(100.0)["breaker_open"]
