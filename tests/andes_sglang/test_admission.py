"""Who is refused, for whom, and the place that each of them is promised."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.admission import Admission, Refusal, Wish
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.stream_forecast import IncomingStream, ReplicaView, StreamForecast, final_qoe
from andes_sglang.waits import WaitForecast, WaitView

READER = QoETarget(1.0, 5.0)
NEW = IncomingStream(500.0, READER, answer_tokens=400.0)
"""Read in 80 s; what is half of them late has a QoE of one half."""
ANY = Wish(shed_below=0.01)
BUSY = WaitView(waiting=20, rate_rps=2.0, queues=True, offered=120, offered_rps=4.0)


def refused(
    wait_s: float,
    waits: WaitView = BUSY,
    wish: Wish = ANY,
    new: IncomingStream = NEW,
    admission: Admission | None = None,
) -> Refusal | None:
    forecast = WaitForecast(wait_s, wait_s, wait_s, wait_s, wait_s, 0.1)
    expected = StreamForecast(0.2, 0.02, 1.0, 0.0, wait=forecast)
    return (admission or Admission()).refuse(new, expected, ReplicaView("a", streams=3, waits=waits), wish, 100.0)


@given(st.floats(0.0, 300.0), st.integers(1, 800), st.floats(0.001, 1.0))
def test_final_qoe_is_that_of_a_stream_which_comes_so(answer_s: float, tokens: int, interval_s: float) -> None:
    reader = ReaderStream(0.0, READER)
    for k in range(tokens):
        reader.deliver(answer_s + k * interval_s)
    new = replace(NEW, answer_tokens=float(tokens))
    exact = reader.final_qoe()
    assert final_qoe(new, answer_s, interval_s) == pytest.approx(exact, abs=0.005 + 0.6 / tokens)


def test_a_class_is_told_at_once_what_it_would_rather_not_have() -> None:
    patient = WaitView(waiting=20, rate_rps=2.0, queues=False)
    assert refused(41.0, patient, Wish(0.49)) is None, "half the reading time late: one half"
    below = refused(42.5, patient, Wish(0.5))
    assert below is not None
    assert (below.reason, below.message) == (
        "predicted_qoe", "the predicted QoE of this stream, 0.49, is below the 0.5 of its class",
    )  # fmt: skip
    assert below.retry_after_s == pytest.approx(1.5)
    late = refused(42.5, patient, Wish(0.0, max_wait_s=10.0))
    assert late is not None
    assert late.message == "the first token of this stream would take 42 s, more than the 10 of its class"
    assert (late.reason, late.retry_after_s) == ("predicted_wait", pytest.approx(32.5))
    assert refused(9.9, patient, Wish(0.0, max_wait_s=10.0)) is None
    assert refused(500.0, patient, Wish(0.0)) is None


def test_who_would_put_off_all_that_come_after_is_refused() -> None:
    refusal = refused(10.0)
    assert refusal is not None
    assert refusal.reason == "predicted_loss"
    assert refused(2.0) is None, "the engine would stand idle without it"
    assert refused(10.0, wish=Wish(0.0)) is None, "its class is never refused for others"
    assert refused(10.0, replace(BUSY, queues=False)) is None, (
        "newcomers come first: it puts off no stream that gains more"
    )
    assert refused(10.0, replace(BUSY, offered_rps=2.2)) is None, "the queue goes by itself"
    assert refused(10.0, replace(BUSY, offered=9)) is None, "four a second may be chance"
    assert refused(10.0, new=replace(NEW, weight=4.0)) is None, "worth four of them"
    assert refused(300.0) is None, "the queue outlasts the overload: a refusal helps no stream"


def test_each_who_is_refused_has_a_place_of_its_own() -> None:
    admission = Admission()
    places_s = [found.retry_after_s for _ in range(300) if (found := refused(10.0, admission=admission))]
    assert len(places_s) == 300
    gaps_s = [later - sooner for sooner, later in itertools.pairwise(places_s) if later < 120.0 and sooner < later]
    assert gaps_s[:200] == pytest.approx([0.5] * 200), "as the engine gives first tokens"
    beyond_s = places_s[235:]
    assert all(60.0 <= at_s <= 120.0 for at_s in beyond_s)
    assert len({math.floor(at_s) for at_s in beyond_s}) > 40, "spread over the second minute"
    assert refused(10.0, admission=Admission()) == refused(10.0, admission=Admission())


def test_a_promised_place_is_kept_for_who_comes_again() -> None:
    admission = Admission()
    forecast = StreamForecast(0.2, 0.02, 1.0, 0.0, wait=WaitForecast(10.0, 10.0, 10.0, 10.0, 10.0, 0.1))
    view = ReplicaView("a", streams=3, waits=BUSY)

    def comes(ticket: str, now_s: float) -> Refusal | None:
        return admission.refuse(NEW, forecast, view, ANY, now_s, ticket=ticket)

    told = {name: found.retry_after_s for name in "abcd" if (found := comes(name, 100.0))}
    assert [*told] == [*"abcd"]
    early = comes("b", 101.0)
    assert early is not None
    assert early.retry_after_s == pytest.approx(told["b"] - 1.0), "the same place, and no second one"
    assert comes("a", 100.0 + told["a"]) is None
    assert comes("a", 100.0 + told["a"] + 1.0) is not None, "once"
    assert comes("b", 100.0 + told["b"] + 20.0) is None, "kept for half a minute"
    assert comes("c", 100.0 + told["c"] + 40.0) is not None, "and no longer"


def test_who_got_a_place_elsewhere_keeps_no_other_from_one() -> None:
    """As where a ladder has another rung, or a class a fallback: none of these was told to come again."""
    admission, untouched = Admission(), Admission()
    forecast = StreamForecast(0.2, 0.02, 1.0, 0.0, wait=WaitForecast(10.0, 10.0, 10.0, 10.0, 10.0, 0.1))
    view = ReplicaView("a", streams=3, waits=BUSY)

    def comes(ticket: str, to: Admission) -> Refusal | None:
        return to.refuse(NEW, forecast, view, ANY, 100.0, ticket=ticket)

    assert comes("first", admission) == comes("first", untouched)
    for k in range(300):
        assert comes(f"elsewhere {k}", admission) is not None
        admission.let_in(f"elsewhere {k}")
    assert comes("second", admission) == comes("second", untouched)
    admission.let_in("first")
    admission.let_in("nobody")
    third = comes("third", admission), comes("third", untouched)
    assert third[0] == third[1], "places after one that is given back are others'"
