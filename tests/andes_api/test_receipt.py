"""What a reader has really got: by acknowledgements, and by what its client reports."""

from __future__ import annotations

from typing import Any

import pytest

from andes_api.errors import ApiError
from andes_api.reader_report import MAX_DELAY_S, ClientClock, ReaderReport
from andes_api.receipt import HIDDEN_REPORT_S, MIN_LACK_S, REPORT_S, Receipt
from andes_sglang.qoe import QoETarget, ReaderStream

TARGET = QoETarget(1.0, 5.0)
EVENT = 300
FRAMED = EVENT + len(b"12c\r\n\r\n")


class Link:
    """Tokens are written at ``rate`` per second from the first second on, and of them ``acknowledged(t)`` are acknowledged."""

    def __init__(self, rate: float = 20.0, round_trip_s: float = 0.0) -> None:
        self.receipt = Receipt(0.0, TARGET)
        self.receipt.comes_over(round_trip_s)
        self.now_s, self.rate, self.ends_s = 0.0, rate, float("inf")

    def run(self, until_s: float, acknowledged: Any, sample_s: float = 0.5) -> Receipt:
        """acknowledged: tokens by time; of more than was written, all."""
        receipt = self.receipt
        while self.now_s < until_s - 1e-9:
            self.now_s += 0.05
            writes = self.now_s <= self.ends_s and self.now_s * self.rate % 1 < 0.05 * self.rate
            if writes:
                receipt.wrote(EVENT)
                receipt.delivered(self.now_s, 1)
            if (self.now_s + 1e-9) % sample_s < 0.05:
                owed = max(0, receipt.written.delivered - int(acknowledged(self.now_s)))
                receipt.sample(self.now_s, owed * FRAMED)
        return receipt


def test_a_reader_who_keeps_up_is_scored_by_what_was_written() -> None:
    receipt = Link().run(20.0, lambda t: (t - 0.2) * 20)  # always some of it is on its way
    assert receipt.received is None
    assert not receipt.behind
    assert receipt.told_tokens is None
    assert receipt.reader is receipt.written
    everything = Link().run(20.0, lambda _: 1e9)
    assert everything.is_settled


def test_a_slow_reader_is_known_within_two_seconds_and_by_how_much() -> None:
    link = Link()
    receipt = link.run(5.0, lambda _: 1e9)
    link.run(7.0, lambda t: 100 + (t - 5.0))
    assert receipt.behind
    assert receipt.received is not None
    assert abs(receipt.received.delivered - 102) <= 1
    assert receipt.told_tokens is None, "it still has text for fifteen seconds"
    link = Link()
    receipt = link.run(2.0, lambda t: t)
    assert receipt.received is not None
    assert receipt.received.delivered == 2
    link.run(3.0, lambda t: t)
    assert receipt.told_tokens in (2, 3), "it was to have its first token after one second"


def test_its_score_is_what_it_got() -> None:
    """One token a second in the place of five, against the definition."""
    link = Link()
    link.ends_s = 3.0
    receipt = link.run(80.0, lambda t: t)
    own = ReaderStream(0.0, TARGET)
    for second in range(1, 61):
        own.deliver(float(second))
    assert receipt.received is not None
    assert receipt.received.delivered == own.delivered == 60
    assert receipt.received.final_qoe() == pytest.approx(own.final_qoe(), abs=0.02)
    assert receipt.behind_s == pytest.approx(57, abs=3)
    assert not receipt.behind, "in the end it has it all"
    assert receipt.first_s == pytest.approx(1.0, abs=0.5)


def test_what_it_cannot_receive_is_not_held_against_who_serves_it() -> None:
    link = Link()
    link.ends_s = 3.0
    receipt = link.run(80.0, lambda t: t)
    assert receipt.written.final_qoe() == pytest.approx(1.0)
    assert receipt.written.stalls == 0
    idle = Link(rate=1.0).run(20.0, lambda _: 1e9)  # the engine is slow, not the link
    assert idle.written.final_qoe() < 0.7
    assert idle.received is None


def test_a_reader_who_has_caught_up_is_as_others_again() -> None:
    link = Link(rate=4.0)
    receipt = link.run(6.0, lambda _: 2)
    assert receipt.told_tokens == 2
    link.run(8.0, lambda _: 1e9)
    assert not receipt.behind
    assert receipt.received is not None
    assert receipt.received.delivered == receipt.written.delivered
    assert receipt.told_tokens == receipt.written.delivered, "for a while the engine hears that all is well"
    link.run(26.0, lambda _: 1e9)
    assert receipt.told_tokens is None
    assert receipt.received.delivered == receipt.written.delivered
    assert receipt.idle_s(26.0) == 0.0


@pytest.mark.parametrize("round_trip_s", [0.4, 1.5])
@pytest.mark.parametrize("falls_behind", [False, True])
def test_a_reader_who_is_far_away_has_waited_for_both_ways(round_trip_s: float, falls_behind: bool) -> None:
    """Its own clock begins half a round trip before the request comes, and each token is there half a one after it was sent."""
    link = Link(4.0, round_trip_s)
    link.ends_s = 10.0
    own = ReaderStream(-round_trip_s / 2, TARGET)
    link.receipt.think(25)
    own.think(25)
    for k in range(1, 41):
        own.deliver(k / 4 + round_trip_s / 2 if not falls_behind or k <= 12 else 20.0)
    receipt = link.run(40.0, lambda t: (t - round_trip_s) * 4 if not falls_behind else 12 if t < 20 else 1e9)
    assert receipt.reader.final_qoe() == pytest.approx(own.final_qoe(), abs=0.02)
    near = ReaderStream(0.0, TARGET)
    near.think(25)
    for k in range(1, 41):
        near.deliver(k / 4)
    assert receipt.written.final_qoe() == pytest.approx(near.final_qoe(), abs=0.02), "what engines can change"


@pytest.mark.parametrize(("delivered", "granted_s"), [(0, 4.0), (5, 3.0), (40, 0.0), (1, 3.8)])
def test_a_tool_that_runs_is_waited_for_by_the_reader_and_no_fault_of_engines(delivered: int, granted_s: float) -> None:
    """It runs from 1 s to 5 s; the reader, who may begin after 1 s, has text for a fifth of a second a token."""
    receipt = Receipt(0.0, TARGET)
    served, own = ReaderStream(0.0, TARGET), ReaderStream(0.0, TARGET)
    for at_s in [0.9] * delivered:
        for timeline in (receipt, own, served):
            timeline.delivered(at_s, 1) if isinstance(timeline, Receipt) else timeline.deliver(at_s)
    receipt.tool_ran(1.0, 5.0)
    served.start_s += granted_s
    for timeline in (own, served):
        timeline.deliver(5.1, 10)
    receipt.delivered(5.1, 10)
    assert receipt.reader.final_qoe() == pytest.approx(own.final_qoe())
    assert receipt.written.final_qoe() == pytest.approx(served.final_qoe())
    assert receipt.reader.delivered == receipt.written.delivered == delivered + 10


@pytest.mark.parametrize("thought", [0, 25])
def test_what_is_thought_after_a_tool_ran_does_not_undo_that(thought: int) -> None:
    """The next round begins with a role, or a thought: the first word is still to come, and no engine has made it late."""
    receipt = Receipt(0.0, TARGET)
    receipt.think(25)
    receipt.tool_ran(10.0, 70.0)
    receipt.think(thought)
    for timeline, start_s in ((receipt.written, 60.0), (receipt.reader, 0.0)):
        assert timeline.start_s == pytest.approx(TARGET.start_s(start_s, 25 + thought))


def test_a_reader_next_door_has_no_timeline_of_its_own() -> None:
    link = Link(round_trip_s=0.003)
    assert link.receipt.round_trip_s == 0.0
    assert link.run(5.0, lambda _: 1e9).reader is link.receipt.written


def test_a_client_that_acknowledges_nothing_is_idle() -> None:
    link = Link()
    receipt = link.run(4.0, lambda _: 1e9)
    link.run(20.0, lambda _: 80)
    assert receipt.idle_s(20.0) == pytest.approx(16.0, abs=0.6)


def test_a_link_that_carries_more_than_is_read_is_no_reason_to_pause() -> None:
    receipt = Link(rate=20.0).run(20.0, lambda t: 10 * t)
    assert receipt.behind
    assert receipt.told_tokens is None


# Reports


def report(**said: Any) -> ReaderReport:
    return ReaderReport.of(said)


def test_a_report_overrules_what_is_acknowledged_where_less_was_shown() -> None:
    link = Link()
    receipt = link.receipt
    for second in range(1, 20):
        link.run(float(second), lambda _: 1e9)
        receipt.report(report(tokens=second, at_s=1000.0 + second), float(second) + 0.3, 1.0)
        if second == 5:
            assert receipt.received is not None
            assert receipt.told_tokens == 4
    assert receipt.received is not None
    own = ReaderStream(0.0, TARGET)
    for second in range(1, 19):
        own.deliver(float(second))
    link.run(19.5, lambda _: 1e9)
    assert receipt.received.qoe_at(19.5) == pytest.approx(own.qoe_at(19.5), abs=0.02)
    assert receipt.written.qoe_at(19.5) == pytest.approx(1.0, abs=0.01)


def test_a_report_of_one_who_reads_at_his_speed_changes_nothing() -> None:
    link = Link()
    for second in range(1, 20):
        link.run(float(second), lambda _: 1e9)
        link.receipt.report(report(characters=int((second - 1) * 5 * 4)), float(second), 0.25)
    assert link.receipt.received is None
    assert link.receipt.told_tokens is None


def test_a_report_never_says_more_than_the_network() -> None:
    link = Link()
    for second in range(1, 10):
        link.run(float(second), lambda _: 3)
        link.receipt.report(report(tokens=10**9), float(second), 1.0)
    assert link.receipt.received is not None
    assert link.receipt.received.delivered == 3
    assert link.receipt.told_tokens == 3


def test_a_report_is_forgotten_after_a_while() -> None:
    link = Link()
    link.run(4.0, lambda _: 1e9)
    link.receipt.report(report(tokens=1), 4.0, 1.0)
    link.run(3.0 + REPORT_S, lambda _: 1e9)
    assert link.receipt.told_tokens == 1
    link.run(4.0 + REPORT_S + 20.0, lambda _: 1e9)
    assert link.receipt.told_tokens is None
    assert not link.receipt.behind


def test_while_a_page_is_hidden_no_time_is_held_against_a_stream() -> None:
    link = Link()
    receipt = link.receipt
    for second in range(1, 5):
        link.run(float(second), lambda _: 1e9)
        receipt.report(report(tokens=5 * second - 4, visible=second < 4), float(second), 1.0)
    link.run(60.0, lambda _: 1e9)
    assert receipt.told_tokens == 16
    receipt.report(report(tokens=1200, visible=True), 60.0, 1.0)
    link.run(62.0, lambda _: 1e9)
    assert receipt.reader.qoe_at(62.0) > 0.9
    assert receipt.written.qoe_at(62.0) > 0.9
    hidden = Link()
    hidden.run(3.0, lambda _: 1e9)
    hidden.receipt.report(report(visible=False), 3.0, 1.0)
    hidden.run(3.0 + HIDDEN_REPORT_S, lambda _: 1e9)
    assert hidden.receipt.told_tokens is not None
    hidden.run(30.0 + HIDDEN_REPORT_S, lambda _: 1e9)
    assert hidden.receipt.told_tokens is None


def test_a_late_report_changes_nothing() -> None:
    link = Link()
    receipt = link.run(3.0, lambda _: 1e9)
    receipt.report(report(tokens=10, at_s=3.0), 3.0, 1.0)
    receipt.report(report(tokens=12, at_s=4.0, visible=True), 4.0, 1.0)
    receipt.report(report(visible=False, at_s=3.5), 4.1, 1.0)
    receipt.report(report(tokens=11, at_s=4.05), 4.1, 1.0)
    link.run(4.5, lambda _: 1e9)
    assert receipt.told_tokens is None


def test_a_clients_clock_may_have_any_zero_and_jump() -> None:
    clock = ClientClock()
    assert clock.seconds_here(5000.0, 10.0) == 10.0
    assert clock.seconds_here(5001.0, 11.4) == pytest.approx(11.0), "it took 0.4 s longer than the first"
    assert clock.seconds_here(None, 11.5) == 11.5
    assert clock.seconds_here(9e9, 12.0) == 12.0, "forward"
    assert clock.seconds_here(-7.0, 13.0) == 13.0, "back"
    assert clock.seconds_here(-7.0 + 1, 14.0 + MAX_DELAY_S / 2) == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "tokens", "at least one of tokens, characters and visible"),
        ({"at_s": 1.0}, "tokens", "at least one of"),
        ({"tokens": -1}, "tokens", "got '-1'"),
        ({"tokens": 1.5}, "tokens", "a whole number from 0 to 1e9"),
        ({"tokens": True}, "tokens", "got 'True'"),
        ({"characters": 10**10}, "characters", "a whole number"),
        ({"tokens": 1, "characters": 4}, "characters", "not both"),
        ({"visible": "yes"}, "visible", "true or false; got 'yes'"),
        ({"visible": True, "at_s": float("nan")}, "at_s", "a number of seconds"),
        ({"visible": True, "at_s": "now"}, "at_s", "got 'now'"),
        ({"token": 3}, "token", "no such field; there are tokens, characters, visible, at_s"),
    ],
)
def test_a_wrong_report_says_what_is_wrong(body: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        ReaderReport.of(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert said in caught.value.message


def test_the_limits_of_a_lack_are_seconds_of_reading() -> None:
    assert MIN_LACK_S * TARGET.tds == 5


def test_the_clock_of_who_serves_stands_still_while_nothing_can_be_received() -> None:
    """The engine has paused after five tokens of which none has arrived; it goes on when the link does."""
    receipt = Receipt(0.0, TARGET)
    for now_s in range(1, 41):
        if now_s == 1 or now_s > 30:
            receipt.wrote(5 * EVENT)
            receipt.delivered(float(now_s), 5)
        owed = receipt.written_bytes if now_s < 30 else 0
        receipt.sample(float(now_s), owed)
    assert receipt.written.final_qoe() > 0.8
    assert receipt.reader.final_qoe() < 0.5
