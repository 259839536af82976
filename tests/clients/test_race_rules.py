"""Who writes what of a raced answer, on a clock of the test's own: thousands of answers in a second."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_client.race_history import LOCAL, REMOTE, History, Plan, quantile
from andes_client.race_rules import Action, Cancel, End, Fail, RaceRules, Show, Start

TDS = 5.0


@dataclass
class Side:
    """A writer. first_s: seconds to its first token; gap_s: from one to the next; dies_at: token before which it fails, of
    the whole answer; hangs_at: likewise, and it says nothing any more."""

    first_s: float = 0.1
    gap_s: float = 0.01
    dies_at: float = math.inf
    hangs_at: float = math.inf


@dataclass
class World:
    """Plays one answer of ``length`` tokens, the n-th of which is ``"n "`` whichever of the two writes it."""

    rules: RaceRules
    sides: dict[str, Side]
    length: int = 100
    now_s: float = 0.0
    shown: list[tuple[float, Show]] = field(default_factory=list)
    starts: list[tuple[float, Start]] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    ends: list[End | Fail] = field(default_factory=list)
    _due: list[tuple[float, int, Start, int]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def play(self) -> World:
        self._do(self.rules.begin(self.now_s))
        while not self.ends and (self._due or self.rules.next_s < math.inf):
            if self._due and self._due[0][0] <= self.rules.next_s:
                self.now_s, _, start, k = heapq.heappop(self._due)
                self._happen(start, k)
            else:
                self.now_s = max(self.now_s, self.rules.next_s)
                self._do(self.rules.tick(self.now_s))
        return self

    def _happen(self, start: Start, k: int) -> None:
        if start.run in self.cancelled:
            return
        side = self.sides[start.writer]
        if k >= side.dies_at:
            self._do(self.rules.failed(start.run, "it broke", self.now_s))
        elif k >= side.hangs_at:
            return
        elif k >= self.length:
            self._do(self.rules.ended(start.run, "stop", self.now_s))
        else:
            self._plan(start, k + 1, side.gap_s)
            self._do(self.rules.came(start.run, f"{k} ", 1, self.now_s))

    def _plan(self, start: Start, k: int, after_s: float) -> None:
        heapq.heappush(self._due, (self.now_s + after_s, next(self._count), start, k))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.starts.append((self.now_s, action))
                self._plan(action, action.tokens, self.sides[action.writer].first_s)
            elif isinstance(action, Cancel):
                self.cancelled.add(action.run)
            elif isinstance(action, Show):
                self.shown.append((self.now_s, action))
            else:
                self.ends.append(action)

    @property
    def text(self) -> str:
        return "".join(show.text for _, show in self.shown)

    @property
    def writers(self) -> list[str]:
        return [writer for writer, _ in itertools.groupby(show.writer for _, show in self.shown)]

    def dry_s(self) -> list[float]:
        """Seconds for which the reader had nothing to read, before each token but the first."""
        until_s, waits = -math.inf, []
        for at_s, show in self.shown:
            if until_s > -math.inf:
                waits.append(max(0.0, at_s - until_s))
            until_s = max(at_s, until_s) + show.tokens / TDS
        return waits


WHOLE = "".join(f"{k} " for k in range(100))


def world(local: Side, remote: Side, wait_s: float = 0.5, **options: object) -> World:
    plan = options.pop("plan", Plan(REMOTE, wait_s))
    takes_s = options.pop("takes_s", lambda side: {LOCAL: local, REMOTE: remote}[side].first_s)
    return World(RaceRules(plan, TDS, takes_s, **options), {LOCAL: local, REMOTE: remote}).play()  # type: ignore[arg-type]


def test_a_server_in_time_is_alone() -> None:
    played = world(Side(), Side(first_s=0.4))
    assert [start.writer for _, start in played.starts] == [REMOTE]
    assert (played.text, played.ends, played.writers) == (WHOLE, [End("stop")], [REMOTE])


def test_a_late_server_is_raced_and_the_loser_is_cancelled_at_once() -> None:
    played = world(Side(first_s=0.2), Side(first_s=9.0))
    assert [(round(at_s, 3), start.writer) for at_s, start in played.starts] == [(0.0, REMOTE), (0.5, LOCAL)]
    assert played.shown[0][0] == pytest.approx(0.7)
    assert played.cancelled == {1}
    assert (played.text, played.writers) == (WHOLE, [LOCAL])
    slow_device = world(Side(first_s=2.0), Side(first_s=0.9))
    assert (slow_device.cancelled, slow_device.writers) == ({2}, [REMOTE])


@pytest.mark.parametrize("finish_by", [LOCAL, REMOTE])
def test_the_rest_is_handed_over_once_unread_text_covers_it_and_no_reader_waits(finish_by: str) -> None:
    first = REMOTE if finish_by == LOCAL else LOCAL
    sides = {first: Side(first_s=0.1, gap_s=0.05), finish_by: Side(first_s=1.0, gap_s=0.1)}
    played = world(sides[LOCAL], sides[REMOTE], plan=Plan(first, 9.0), finish_by=finish_by)
    assert (played.text, played.writers) == (WHOLE, [first, finish_by])
    assert max(played.dry_s()) == 0.0
    asked_s, start = played.starts[1]
    unread = start.tokens - TDS * (asked_s - played.shown[0][0])
    assert 1.0 * TDS <= unread < 1.0 * TDS + 3, (
        "as soon as it covers the time that the other needs, and the pacer's lead"
    )


def test_a_hand_over_that_is_late_is_off_and_the_first_writer_s_text_is_shown_in_time() -> None:
    played = world(
        Side(first_s=0.1, gap_s=0.15),
        Side(first_s=60.0),
        9.0,
        plan=Plan(LOCAL, 99.0),
        finish_by=REMOTE,
        takes_s=lambda _: 1.0,
    )
    assert (played.text, played.writers) == (WHOLE, [LOCAL])
    assert max(played.dry_s()) == 0.0
    tries = [(at_s, start) for at_s, start in played.starts if start.writer == REMOTE]
    assert 1 < len(tries) <= 3
    unread = [start.tokens - TDS * (at_s - played.shown[0][0]) for at_s, start in tries]
    assert [seconds >= 2**k for k, seconds in enumerate(value / TDS for value in unread)] == [True] * len(tries)
    assert played.ends == [End("stop")]


def test_a_hand_over_that_saves_less_than_it_costs_is_left() -> None:
    played = world(Side(), Side(gap_s=0.05), 9.0, finish_by=LOCAL, expected_tokens=22, takes_s=lambda _: 1.0)
    assert played.writers == [REMOTE]


def test_nothing_is_handed_to_a_writer_that_has_failed() -> None:
    played = world(
        Side(gap_s=0.05), Side(dies_at=40), 9.0, plan=Plan(LOCAL, 99.0), finish_by=REMOTE, takes_s=lambda _: 0.1
    )
    assert (played.text, played.writers) == (WHOLE, [LOCAL, REMOTE, LOCAL])
    assert [start.why for _, start in played.starts] == ["race", "hand-over", "rescue"]


def test_who_has_nothing_to_add_does_not_end_what_the_other_still_writes() -> None:
    rules = RaceRules(Plan(REMOTE, 9.0), TDS, lambda _: 0.1, finish_by=LOCAL)
    (first,) = rules.begin(0.0)
    assert isinstance(first, Start)
    actions = [action for k in range(9) for action in rules.came(first.run, f"{k} ", 1, 0.01)]
    (second,) = [action for action in actions if isinstance(action, Start)]
    assert rules.ended(second.run, "stop", 0.02)[0] == Cancel(second.run)
    assert not rules.over
    assert Show(REMOTE, "9 ", 1) in rules.came(first.run, "9 ", 1, 0.03)


def test_a_device_that_says_nothing_does_not_end_the_race() -> None:
    """A small model that ends with its first token: the server answers, whether it is asked already or not."""
    rules = RaceRules(Plan(REMOTE, 0.0), TDS, lambda _: 0.1)
    server, device = rules.begin(0.0)
    assert isinstance(server, Start) and isinstance(device, Start)  # noqa: PT018
    assert rules.ended(device.run, "stop", 0.02) == []
    assert Show(REMOTE, "0 ", 1) in rules.came(server.run, "0 ", 1, 0.03)
    assert rules.ended(server.run, "stop", 0.04) == [End("stop")]

    rules = RaceRules(Plan(LOCAL, 9.0), TDS, lambda _: 0.1)
    (device,) = rules.begin(0.0)
    assert isinstance(device, Start)
    (server,) = rules.ended(device.run, "stop", 0.02)
    assert server == Start(2, REMOTE, "", 0)
    assert rules.ended(2, "stop", 0.03) == [End("stop")], "both have nothing to say"

    rules = RaceRules(Plan(LOCAL, 9.0), TDS, lambda _: 0.1)
    rules.begin(0.0)
    rules.ended(1, "stop", 0.02)
    assert rules.failed(2, "gone", 0.03) == [Fail("local: it said nothing; remote: gone")]

    rules = RaceRules(Plan(REMOTE, math.inf), TDS, lambda _: 0.1, both=False)
    rules.begin(0.0)
    assert rules.ended(1, "stop", 0.02) == [End("stop")]


def test_a_rescuer_with_nothing_to_add_does_not_end_what_is_silent_only() -> None:
    rules = RaceRules(Plan(REMOTE, 9.0), TDS, lambda _: 0.1)
    rules.begin(0.0)
    rules.came(1, "0 ", 1, 0.1)
    (rescuer,) = rules.tick(rules.next_s)
    assert rescuer == Start(2, LOCAL, "0 ", 1, "rescue")
    assert rules.ended(2, "stop", 2.0) == [Cancel(2)]
    assert rules.next_s == math.inf, "it is asked no more"
    assert Show(REMOTE, "1 ", 1) in rules.came(1, "1 ", 1, 3.0)
    assert rules.ended(1, "stop", 4.0) == [End("stop")]


@pytest.mark.parametrize(
    ("remote", "parts"),
    [
        (Side(dies_at=0), [LOCAL]), (Side(hangs_at=0), [LOCAL]),
        (Side(dies_at=30), [REMOTE, LOCAL]), (Side(hangs_at=30), [REMOTE, LOCAL]),
    ],
)  # fmt: skip
def test_an_outage_of_the_server_is_survived(remote: Side, parts: list[str]) -> None:
    played = world(Side(first_s=0.3), remote)
    assert (played.text, played.writers, played.ends) == (WHOLE, parts, [End("stop")])
    assert max(played.dry_s()) <= 1 / TDS


def test_a_server_that_breaks_is_not_waited_for() -> None:
    assert world(Side(), Side(first_s=0.0, dies_at=0), 30.0).shown[0][0] < 1.0


def test_a_server_that_is_full_is_raced_at_once() -> None:
    rules = RaceRules(Plan(REMOTE, 30.0), TDS, lambda _: 1.0)
    rules.begin(0.0)
    assert rules.refused(1, 0.1) == [Start(2, LOCAL, "", 0)]
    assert rules.refused(1, 0.2) == []


def test_a_device_that_breaks_is_replaced_by_the_server() -> None:
    played = world(Side(dies_at=20), Side(first_s=0.5), plan=Plan(LOCAL, 99.0))
    assert (played.text, played.writers) == (WHOLE, [LOCAL, REMOTE])


def test_where_both_break_it_says_why_each_did() -> None:
    played = world(Side(dies_at=50), Side(dies_at=20))
    assert played.ends == [Fail("remote: it broke; local: it broke")]
    assert played.text == "".join(f"{k} " for k in range(50))


def test_where_one_writer_is_allowed_it_is_alone() -> None:
    played = world(Side(), Side(first_s=9.0), both=False, finish_by=LOCAL)
    assert [start.writer for _, start in played.starts] == [REMOTE]
    assert world(Side(), Side(dies_at=5), both=False).ends == [Fail("remote: it broke")]


def test_a_clock_that_jumps_back_is_one_that_stands() -> None:
    rules = RaceRules(Plan(REMOTE, 1.0), TDS, lambda _: 1.0)
    rules.begin(100.0)
    assert rules.tick(5.0) == []
    assert rules.tick(101.0) == [Start(2, LOCAL, "", 0)]
    assert rules.came(1, "x", 1, -5.0) == [Cancel(2), Show(REMOTE, "x", 1)]


SIDES = st.builds(
    Side,
    first_s=st.floats(0, 20),
    gap_s=st.floats(0, 1),
    dies_at=st.one_of(st.just(math.inf), st.integers(0, 120)),
    hangs_at=st.one_of(st.just(math.inf), st.integers(0, 120)),
)


@given(
    SIDES,
    SIDES,
    st.floats(0, 10),
    st.sampled_from([None, LOCAL, REMOTE]),
    st.sampled_from([LOCAL, REMOTE]),
    st.floats(0, 5),
)
def test_whatever_happens_the_text_is_whole_or_its_beginning(
    local: Side, remote: Side, wait_s: float, finish_by: str | None, first: str, takes_s: float
) -> None:
    played = world(local, remote, plan=Plan(first, wait_s), finish_by=finish_by, takes_s=lambda _: takes_s)
    assert WHOLE.startswith(played.text)
    if played.ends == [End("stop")]:
        assert played.text == WHOLE
    working = [side for side in (local, remote) if min(side.dies_at, side.hangs_at) >= 100]
    if working and played.rules._failed == {}:
        assert played.text == WHOLE
    if len(working) == 2:
        assert played.ends == [End("stop")]
    assert len(played.ends) <= 1
    assert len({start.run for _, start in played.starts} - played.cancelled) <= 2


@given(
    st.floats(0, 3), st.floats(0.001, 0.19), st.floats(0.001, 0.19), st.floats(0, 3), st.sampled_from([LOCAL, REMOTE])
)
def test_no_hand_over_lets_a_reader_wait(
    first_s: float, local_gap_s: float, remote_gap_s: float, takes_s: float, finish_by: str
) -> None:
    """Both write faster than it is read; how long the other takes is guessed wrongly, too."""
    first = REMOTE if finish_by == LOCAL else LOCAL
    sides = {LOCAL: Side(first_s, local_gap_s), REMOTE: Side(first_s, remote_gap_s)}
    played = world(sides[LOCAL], sides[REMOTE], plan=Plan(first, 99.0), finish_by=finish_by, takes_s=lambda _: takes_s)
    assert played.text == WHOLE
    assert max(played.dry_s()) <= 1e-6


def test_a_quantile() -> None:
    assert [quantile([3, 1, 2, 4], share) for share in (0.0, 0.25, 0.26, 0.75, 1.0)] == [1, 1, 2, 3, 4]


def test_the_wait_is_learned_from_what_both_took() -> None:
    history = History(share=0.05)
    assert history.plan(100, 1.0) == Plan(REMOTE, 1.0), "nothing is known yet: as long as the reader expects to"
    history.first_words(LOCAL, 84, 0.5)
    assert history.plan(100, 1.0) == Plan(REMOTE, pytest.approx(1.0 - 0.5 * 116 / 100))
    assert history.plan(1000, 1.0) == Plan(REMOTE, 0.0), "a device that is late must not wait"
    for k in range(100):
        history.asked(100)
        history.first_words(REMOTE, 100, 0.001 * (k + 1))
    assert history.plan(100, 1.0) == Plan(REMOTE, pytest.approx(0.095)), "what 95 of 100 answers did not exceed"
    assert history.takes_s(REMOTE, 100) == pytest.approx(0.09)


def test_short_prompts_are_the_device_s_as_far_as_its_share_goes() -> None:
    history = History(share=0.3)
    for tokens in (10, 10, 20, 20, 40, 100, 100, 100, 200, 200):
        history.asked(tokens)
    assert [history._short_tokens(share) for share in (0.0, 0.1, 0.25, 0.5, 1.0)] == [0, 20, 40, 100, 200]
    history.first_words(LOCAL, 40, 0.1)
    assert [history.plan(tokens, 1.0).first for tokens in (40, 41, 100)] == [LOCAL, REMOTE, REMOTE]
    assert history.plan(40, 1.0).wait_s == 1.0, "the server is asked in time, should the device fail to answer"


def test_a_device_that_may_do_everything_or_nothing() -> None:
    everything, nothing = History(share=1.0), History(share=0.0)
    assert everything.plan(5000, 1.0).first == LOCAL
    for tokens in range(1, 20):
        nothing.asked(tokens)
        nothing.first_words(REMOTE, 5, 0.5)
    assert nothing.plan(1, 1.0) == Plan(REMOTE, 0.5)
