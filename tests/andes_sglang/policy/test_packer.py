"""The packer, rule by rule: a table of requests and the decision that follows.

A row is ``rid, phase, KV tokens (prompt), value``. In the decisions, ``+`` admits, ``^`` resumes, ``p`` parks and ``-`` releases.
Growth is 0 unless a test is about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from andes_sglang.latency import LatencyModel
from andes_sglang.policy.packer import MAX_REFUSALS, PRESSURE_TOKENS, Displacement, pack
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Decision, Phase, PreemptionMode, RequestTable, RequestView, SchedulerState

W, R, P = Phase.WAITING, Phase.RUNNING, Phase.PARKED
Row = tuple[str, Phase, int, float]
SIGNS = {PreemptionMode.PARK: "p", PreemptionMode.RELEASE: "-"}


def state_of(
    rows: list[Row], *, pool: int = 10_000, slots: int = 100, views: dict[str, Any], **more: Any
) -> SchedulerState:
    """views: arguments of single requests, by id."""
    reader = ReaderStream(0.0, QoETarget())
    table = RequestTable.of(
        RequestView(rid, phase, 0.0, reader, tokens, kv_tokens=0 if phase is W else tokens, **views.get(rid, {}))
        for rid, phase, tokens, _ in rows
    )
    return SchedulerState(0.0, table, pool, slots, LatencyModel(), **more)


def told(decision: Decision) -> str:
    preempted = [f"{SIGNS[p.mode]}{p.rid}" for p in decision.preempt]
    return " ".join([*preempted, *(f"^{rid}" for rid in decision.resume), *(f"+{rid}" for rid in decision.admit)])


def packed(
    rows: list[Row],
    *,
    growth_tokens: float = 0.0,
    tiers: dict[str, float] | None = None,
    batch: int | None = None,
    strict: bool = False,
    displacers: str = "",
    victims: str = "",
    accept: Any = None,
    views: dict[str, Any] | None = None,
    **state: Any,
) -> str:
    """tiers: by id. displacers, victims: ids, of one letter each."""
    rids = [rid for rid, *_ in rows]
    displacement = None
    if displacers or victims:
        sets = (np.array([rid in chosen for rid in rids], dtype=bool) for chosen in (displacers, victims))
        displacement = Displacement(*sets, accept)
    decision = pack(
        state_of(rows, views=views or {}, **state),
        np.array([value for *_, value in rows]),
        tier=None if tiers is None else np.array([tiers.get(rid, 0.0) for rid in rids]),
        batch=batch,
        growth_tokens=growth_tokens,
        displacement=displacement,
        strict=strict,
    )
    return told(decision)


def test_what_is_not_said() -> None:
    """64 tokens of growth, no displacing, the engine's batch, and shorter requests pass those that do not fit."""
    rows: list[Row] = [("a", R, 100, 0), ("b", W, 500, 2), ("c", W, 100, 1)]
    value = np.array([0.0, 2.0, 1.0])
    assert told(pack(state_of(rows, pool=328, views={}), value)) == "+c"
    assert told(pack(state_of(rows, pool=327, views={}), value)) == ""


# Order


def test_by_descending_value_and_equals_by_row() -> None:
    assert packed([("a", W, 10, 1), ("b", W, 10, 3), ("c", W, 10, 1), ("d", W, 10, 2)]) == "+b +d +a +c"


def test_a_tier_outweighs_any_value() -> None:
    rows: list[Row] = [("a", W, 10, 1e30), ("b", W, 10, 1), ("c", W, 10, 2)]
    assert packed(rows, tiers={"b": 1.0, "c": 1.0}) == "+c +b +a"


# Room in the batch


def test_the_batch_is_not_exceeded() -> None:
    rows: list[Row] = [("a", R, 10, 0), ("b", W, 10, 3), ("c", W, 10, 2), ("d", P, 10, 1)]
    assert packed(rows, slots=3) == "+b +c"
    assert packed(rows, slots=4) == "^d +b +c"


def test_a_smaller_batch_than_the_engines_holds_and_a_larger_does_not() -> None:
    rows: list[Row] = [("a", R, 10, 0), ("b", W, 10, 3), ("c", W, 10, 2)]
    assert packed(rows, slots=3, batch=2) == "+b"
    assert packed(rows, slots=2, batch=3) == "+b"


def test_places_taken_by_others_count() -> None:
    rows: list[Row] = [("a", R, 10, 0), ("b", W, 10, 3), ("c", W, 10, 2)]
    assert packed(rows, slots=3, running_reserved=1) == "+b"


# Room in the KV pool


@pytest.mark.parametrize(("pool", "decision"), [(100, "+b"), (99, "")])
def test_a_request_fits_up_to_the_last_token(pool: int, decision: str) -> None:
    assert packed([("a", R, 40, 0), ("b", W, 60, 1)], pool=pool) == decision


@pytest.mark.parametrize(("pool", "decision"), [(120, "+b"), (119, "")])
def test_growth_is_kept_free_for_those_that_run_and_for_the_new(pool: int, decision: str) -> None:
    assert packed([("a", R, 40, 0), ("b", W, 60, 1)], pool=pool, growth_tokens=10) == decision


@pytest.mark.parametrize(("pool", "decision"), [(107, "+b"), (106, "")])
def test_no_more_growth_than_is_left_to_generate(pool: int, decision: str) -> None:
    views = {"a": {"remaining_tokens": 3}, "b": {"remaining_tokens": 4}}
    assert packed([("a", R, 40, 0), ("b", W, 60, 1)], pool=pool, growth_tokens=10, views=views) == decision


@pytest.mark.parametrize(("reserved", "decision"), [(10, "+b"), (11, "")])
def test_kv_held_by_others_counts(reserved: int, decision: str) -> None:
    assert packed([("a", R, 40, 0), ("b", W, 60, 1)], pool=110, kv_reserved_tokens=reserved) == decision


def test_a_parked_request_needs_no_more_than_its_growth() -> None:
    rows: list[Row] = [("a", R, 40, 0), ("b", P, 60, 1)]
    assert packed(rows, pool=120, growth_tokens=10) == "^b"
    assert packed(rows, pool=119, growth_tokens=10) == ""


def test_a_request_as_large_as_the_pool_needs_no_growth_beside_it() -> None:
    assert packed([("a", W, 95, 2)], pool=100, growth_tokens=10, running_reserved=1) == "+a"


def test_each_admission_takes_its_room() -> None:
    rows: list[Row] = [("a", W, 50, 3), ("b", W, 50, 2), ("c", W, 50, 1)]
    assert packed(rows, pool=149) == "+a +b"


def test_a_shorter_request_passes_one_that_does_not_fit_unless_strict() -> None:
    rows: list[Row] = [("a", R, 10, 0), ("b", W, 95, 2), ("c", W, 30, 1)]
    assert packed(rows, pool=100) == "+c"
    assert packed(rows, pool=100, strict=True) == ""


# The prefill chunk


def test_admissions_end_with_the_one_that_passes_the_chunk() -> None:
    rows: list[Row] = [("a", W, 60, 3), ("b", W, 60, 2), ("c", W, 60, 1)]
    assert packed(rows, chunk_tokens=59) == "+a"
    assert packed(rows, chunk_tokens=60) == "+a +b"
    assert packed(rows, chunk_tokens=120) == "+a +b +c"


def test_cached_tokens_need_no_prefill_but_one() -> None:
    rows: list[Row] = [("a", W, 60, 3), ("b", W, 60, 2), ("c", W, 60, 1)]
    views = {"a": {"cached_tokens": 60}, "b": {"cached_tokens": 50}}
    assert packed(rows, views=views, chunk_tokens=10) == "+a +b"
    assert packed(rows, views=views, chunk_tokens=11) == "+a +b +c"


def test_parked_requests_need_no_prefill() -> None:
    assert packed([("a", P, 60, 3), ("b", P, 60, 2), ("c", W, 60, 1)], chunk_tokens=1) == "^a ^b +c"


# An empty engine


def test_an_empty_engine_starts_the_best_even_if_it_does_not_fit() -> None:
    assert packed([("a", W, 500, 1), ("b", W, 500, 2)], pool=100, growth_tokens=10, slots=0) == "+b"
    assert packed([("a", P, 500, 2), ("b", W, 500, 1)], pool=400, growth_tokens=10) == "^a"


@pytest.mark.parametrize("running", [[("z", R, 10, 0.0)], []], ids=["one runs", "a prefill is in flight"])
def test_an_engine_at_work_starts_nothing_that_does_not_fit(running: list[Row]) -> None:
    assert packed([*running, ("a", W, 50, 1)], slots=1, running_reserved=int(not running)) == ""


def test_an_empty_engine_starts_nothing_beside_what_it_admits() -> None:
    assert packed([("a", W, 90, 2), ("b", W, 90, 1)], pool=100) == "+a"
    assert packed([("a", P, 50, 2), ("b", W, 90, 1)], pool=100) == "^a"


# KV pressure


@pytest.mark.parametrize(("pool", "decision"), [(100 + 2 * PRESSURE_TOKENS, ""), (99 + 2 * PRESSURE_TOKENS, "-b")])
def test_the_worst_victim_is_released_when_those_that_run_cannot_grow(pool: int, decision: str) -> None:
    assert packed([("a", R, 50, 2), ("b", R, 50, 1)], pool=pool, victims="ab") == decision


def test_pressure_releases_until_there_is_room() -> None:
    rows: list[Row] = [("a", R, 50, 3), ("b", R, 3, 1), ("c", R, 3, 2), ("d", R, 50, 4)]
    assert packed(rows, pool=108, victims="abcd") == "-b -c"
    assert packed(rows, pool=107, victims="abcd") == "-b -c -a"
    assert packed(rows, pool=107, victims="ad") == "-a"
    assert packed(rows, pool=107) == ""


def test_pressure_gives_victims_in_order_of_tier() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", R, 50, 2)]
    assert packed(rows, pool=100, victims="ab", tiers={"a": 1.0}) == "-b"


def test_pressure_releases_parked_requests_which_then_stay_off() -> None:
    rows: list[Row] = [("a", R, 50, 3), ("b", P, 50, 2), ("c", W, 20, 1)]
    assert packed(rows, pool=100, victims="b") == "-b +c"


def test_what_pressure_frees_is_used() -> None:
    rows: list[Row] = [("a", R, 60, 3), ("b", R, 40, 1), ("c", W, 30, 2)]
    assert packed(rows, pool=100, victims="b", displacers="c", slots=2) == "-b +c"


# More run than may


def test_the_worst_victims_are_parked_while_more_run_than_may() -> None:
    rows: list[Row] = [("a", R, 50, 3), ("b", R, 50, 1), ("c", R, 50, 2)]
    assert packed(rows, slots=2, victims="abc") == "pb"
    assert packed(rows, slots=1, victims="abc") == "pb pc"
    assert packed(rows, slots=3, victims="abc") == ""
    assert packed(rows, slots=1) == ""


# Displacing


def test_a_displaced_request_keeps_its_kv_where_only_its_place_is_needed() -> None:
    assert packed([("a", R, 50, 1), ("b", W, 50, 2)], slots=1, displacers="b", victims="a") == "pa +b"
    assert packed([("a", R, 50, 1), ("b", P, 50, 2)], slots=1, displacers="b", victims="a") == "pa ^b"


@pytest.mark.parametrize(("pool", "decision"), [(100, "pa +b"), (99, "-a +b")])
def test_its_kv_is_released_where_that_is_needed(pool: int, decision: str) -> None:
    assert packed([("a", R, 50, 1), ("b", W, 50, 2)], pool=pool, slots=1, displacers="b", victims="a") == decision


def test_of_equals_neither_displaces_the_other() -> None:
    assert packed([("a", R, 50, 1), ("b", W, 50, 1)], slots=1, displacers="b", victims="a") == ""
    tiers = {"a": 1.0, "b": 1.0}
    assert packed([("a", R, 50, 1), ("b", W, 50, 1)], slots=1, displacers="b", victims="a", tiers=tiers) == ""


def test_a_higher_tier_displaces_whatever_the_values() -> None:
    rows: list[Row] = [("a", R, 50, 9), ("b", W, 50, 1)]
    assert packed(rows, slots=1, displacers="b", victims="a", tiers={"b": 1.0}) == "pa +b"
    assert packed(rows, slots=1, displacers="b", victims="a", tiers={"a": 1.0, "b": 0.0}) == ""


def test_only_displacers_displace_and_only_victims_are_displaced() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", R, 50, 2), ("c", W, 50, 4), ("d", W, 50, 3)]
    assert packed(rows, slots=2, displacers="d", victims="b") == "pb +d"


def test_the_worst_victim_first_and_no_more_than_needed() -> None:
    rows: list[Row] = [("a", R, 30, 3), ("b", R, 30, 1), ("c", R, 30, 2), ("d", W, 40, 9)]
    assert packed(rows, pool=102, displacers="d", victims="abc") == "-b +d"
    rows[3] = ("d", W, 70, 9)
    assert packed(rows, pool=102, displacers="d", victims="abc") == "-b -c +d"


def test_nothing_is_preempted_where_all_that_may_be_would_not_do() -> None:
    rows: list[Row] = [("a", R, 30, 3), ("b", R, 30, 1), ("c", R, 30, 5), ("d", W, 95, 4)]
    assert packed(rows, pool=102, displacers="d", victims="abc") == ""


def test_the_growth_of_a_displaced_request_is_room_too() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", W, 50, 2)]
    assert packed(rows, pool=60, growth_tokens=10, displacers="b", victims="a") == "-a +b"
    assert packed(rows, pool=60, growth_tokens=11, displacers="b", victims="a") == "-a +b", "need is at most the pool"
    rows.append(("z", R, 20, 9))
    assert packed(rows, pool=90, growth_tokens=10, displacers="b", victims="a") == "-a +b"
    assert packed(rows, pool=89, growth_tokens=10, displacers="b", victims="a") == ""


def test_the_growth_of_a_displaced_request_is_room_for_the_next_too() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", W, 50, 9), ("c", W, 49, 5)]
    assert packed(rows, pool=119, growth_tokens=10, displacers="b", victims="a") == "-a +b +c"
    assert packed(rows, pool=118, growth_tokens=10, displacers="b", victims="a") == "-a +b"


def test_the_next_victim_is_the_worst_of_those_left() -> None:
    rows: list[Row] = [("a", R, 0, 1), ("b", R, 50, 2), ("c", R, 50, 3), ("d", W, 50, 9), ("e", W, 50, 8)]
    assert packed(rows, pool=112, slots=5, displacers="de", victims="abc") == "-b -c +d +e"


def test_each_victim_makes_room_once() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", R, 50, 2), ("c", W, 50, 4), ("d", W, 50, 3), ("e", W, 50, 2.5)]
    assert packed(rows, slots=2, displacers="cde", victims="ab") == "pa pb +c +d"


def test_free_room_is_used_before_anything_is_displaced() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", W, 50, 3), ("c", W, 50, 2)]
    assert packed(rows, slots=2, displacers="bc", victims="a") == "pa +b +c"
    assert packed(rows, slots=3, displacers="bc", victims="a") == "+b +c"


def test_a_parked_request_gives_its_kv_but_no_place() -> None:
    rows: list[Row] = [("a", R, 50, 9), ("b", P, 50, 1), ("c", W, 50, 5)]
    assert packed(rows, pool=110, displacers="c", victims="b") == "-b +c"
    assert packed(rows, pool=110, slots=1, displacers="c", victims="b") == ""


def test_a_parked_request_is_passed_over_where_only_a_place_is_missing() -> None:
    rows: list[Row] = [("a", R, 50, 2), ("b", P, 50, 1), ("c", W, 50, 3)]
    assert packed(rows, slots=1, displacers="c", victims="ab") == "pa +c"
    assert packed(rows, slots=1, displacers="c", victims="b") == ""
    assert packed(rows, slots=1, pool=149, displacers="c", victims="ab") == "-b pa +c", "both are"


def test_a_parked_request_is_not_its_own_victim_nor_one_that_was_resumed() -> None:
    assert packed([("a", R, 50, 9), ("b", P, 50, 1)], pool=104, growth_tokens=5, displacers="b", victims="b") == ""
    rows: list[Row] = [("a", R, 50, 9), ("b", P, 50, 5), ("c", W, 50, 4)]
    assert packed(rows, pool=110, displacers="c", victims="b") == "^b"


def test_a_request_without_kv_is_no_victim_where_kv_is_needed() -> None:
    rows: list[Row] = [("a", R, 0, 1), ("b", R, 50, 2), ("c", W, 50, 9), ("d", W, 50, 8)]
    assert packed(rows, pool=60, slots=3, displacers="c", victims="ab") == "-b +c"
    assert packed(rows, pool=60, displacers="cd", victims="ab") == "-b +c", "b makes room once"
    assert packed(rows[:3], pool=60, slots=2, displacers="c", victims="ab") == "-a -b +c", "a gives its place"


def test_later_displacers_get_their_turn_after_one_that_cannot() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", R, 50, 8), ("c", W, 200, 9), ("d", W, 50, 2)]
    assert packed(rows, pool=112, displacers="cd", victims="a") == "-a +d"


# The last word


def test_accept_is_asked_with_row_victims_and_stall() -> None:
    asked: list[tuple[int, list[int], float]] = []

    def accept(row: int, victims: list[int], stall_s: float) -> bool:
        asked.append((row, victims, stall_s))
        return True

    rows: list[Row] = [("a", R, 50, 1), ("b", R, 50, 2), ("c", W, 80, 9), ("d", P, 50, 8)]
    views = {"c": {"cached_tokens": 30, "host_tokens": 20}}
    assert packed(rows, slots=2, displacers="cd", victims="ab", accept=accept, views=views) == "pa pb ^d +c"
    latency = LatencyModel()
    assert asked == [(2, [0], float(latency.resume_s(50.0, 30.0, 20.0))), (3, [1], 0.0)]


def test_a_refused_displacement_changes_nothing_and_the_next_is_asked() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", W, 50, 9), ("c", W, 50, 8)]
    decision = packed(rows, slots=1, displacers="bc", victims="a", accept=lambda row, *_: row == 2)
    assert decision == "pa +c"


def test_accept_is_not_asked_where_there_is_room() -> None:
    rows: list[Row] = [("a", R, 50, 1), ("b", W, 50, 9)]
    assert packed(rows, slots=2, displacers="b", victims="a", accept=lambda *_: False) == "+b"


@pytest.mark.parametrize(("refusals", "decision"), [(MAX_REFUSALS - 1, "pz +y"), (MAX_REFUSALS, "")])
def test_after_some_refusals_the_rest_waits_for_the_next_decision(refusals: int, decision: str) -> None:
    ids = "abcdefghijkl"[:refusals]
    rows: list[Row] = [*((rid, W, 50, 9.0) for rid in ids), ("y", W, 50, 8), ("z", R, 50, 1)]
    accept = lambda row, *_: row == refusals  # noqa: E731
    assert packed(rows, slots=1, displacers=ids + "y", victims="z", accept=accept) == decision


def test_no_more_is_asked_after_that_even_where_there_is_room_for_others() -> None:
    asked: list[int] = []

    def accept(row: int, *_: Any) -> bool:
        asked.append(row)
        return False

    ids = "abcdefghijkl"
    rows: list[Row] = [*((rid, W, 90, 9.0) for rid in ids), ("y", W, 40, 8), ("z", R, 50, 1)]
    assert packed(rows, pool=100, displacers=ids, victims="z", accept=accept) == "+y"
    assert asked == list(range(MAX_REFUSALS))


def test_what_fits_is_still_admitted_after_refusals() -> None:
    ids = "abcdefghijkl"[:MAX_REFUSALS]
    rows: list[Row] = [*((rid, W, 90, 9.0) for rid in ids), ("y", W, 40, 8), ("z", R, 50, 1)]
    assert packed(rows, pool=100, displacers=ids, victims="z", accept=lambda *_: False) == "+y"


def test_reasons_are_for_metrics() -> None:
    def reason(**options: Any) -> list[str]:
        rows: list[Row] = [("a", R, 50, 2), ("b", R, 50, 1), ("c", W, 60, 3)]
        state = state_of(rows, views={}, **options)
        displacement = Displacement(np.array([False, False, True]), np.array([True, True, False]))
        decision = pack(state, np.array([2.0, 1.0, 3.0]), growth_tokens=0, displacement=displacement)
        return [p.reason for p in decision.preempt]

    assert reason(pool=100) == ["kv", "displaced"]
    assert reason(slots=1) == ["pace", "displaced"]
    assert reason(slots=2) == ["displaced"]
