"""The rules of andes, one by one: rank, prioritise the overdue, choose victims, refine."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from andes_sglang.latency import LatencyModel, LinearCost
from andes_sglang.policy.andes import (
    Andes,
    AndesOptions,
    Ranking,
    choose_victims,
    prioritize_overdue,
    rank,
    slice_tokens_owed,
    waited_s,
)
from andes_sglang.policy.refiner import PAUSES, Refiner
from andes_sglang.policy.valuation import HorizonValue
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Decision, Phase, PreemptionMode, RequestTable, RequestView, SchedulerState

W, R, P = Phase.WAITING, Phase.RUNNING, Phase.PARKED
NOW_S = 1000.0
TDS = 5.0


def latency(
    step_s: float = 0.02, request_s: float = 0.0, token_s: float = 1e-4, context_s: float = 0.0
) -> LatencyModel:
    """A decode step of ``step_s + request_s * batch + context_s * KV tokens``, a prefill of ``token_s * tokens``."""
    model = LatencyModel()
    model.decode = LinearCost(prior=(step_s, request_s, context_s), scale=(1.0, 16.0, 8192.0))
    model.prefill = LinearCost(prior=(0.0, token_s, 0.0), scale=(1.0, 1024.0, 8192.0))
    return model


def request(
    rid: str, phase: Phase, *, prompt: int = 200, output: int = 0, dry_s: float = 0.0, tds: float = TDS, **view: Any
) -> RequestView:
    """Its reader runs dry ``dry_s`` seconds ago (negative: ahead); without output: its first token was expected then."""
    if not output:
        reader = ReaderStream(NOW_S - dry_s - 1.0, QoETarget(1.0, tds))
    else:
        reader = ReaderStream(NOW_S - dry_s - output / tds - 1.0, QoETarget(1.0, tds))
        reader.deliver(reader.start_s, output)
    kv = view.pop("kv_tokens", 0 if phase is W else prompt + output)
    return RequestView(rid, phase, reader.start_s - 1.0, reader, prompt, output, kv, **view)


def state_of(
    *views: RequestView, pool: int = 100_000, slots: int = 100, model: LatencyModel | None = None
) -> SchedulerState:
    return SchedulerState(NOW_S, RequestTable.of(views), pool, slots, model or latency())


def gain_of_running(state: SchedulerState, horizon_s: float, step_s: Any) -> Any:
    """Of the paper's valuation, shape (len(step_s), N)."""
    return HorizonValue(state, horizon_s, np.ones(len(state.requests))).gain(step_s)


def order(state: SchedulerState, ranking: Ranking) -> str:
    tier = np.zeros(len(ranking.value)) if ranking.tier is None else ranking.tier
    return " ".join(state.requests.names(np.lexsort((-ranking.value, -tier))))


def chosen(state: SchedulerState, mask: np.ndarray[Any, Any]) -> str:
    return " ".join(state.requests.names(np.flatnonzero(mask)))


# Rank


def test_of_equal_gains_the_one_with_less_kv_goes_first() -> None:
    state = state_of(request("long", W, prompt=400), request("short", W, prompt=100), model=latency(token_s=0.0))
    ranking = rank(state, AndesOptions())
    assert order(state, ranking) == "short long"
    assert ranking.gain[0] == ranking.gain[1] > 0


def test_a_reader_who_is_supplied_beyond_the_horizon_gains_nothing() -> None:
    state = state_of(request("full", W, output=500, dry_s=-61.0), request("dry", W))
    ranking = rank(state, AndesOptions(horizon_s=60.0))
    assert ranking.gain[0] == 0.0 < ranking.gain[1]
    assert rank(state, AndesOptions(horizon_s=100.0)).gain[0] > 0.0


def test_a_prefill_lowers_the_gain_and_cached_tokens_spare_it() -> None:
    state = state_of(
        request("computed", W, prompt=4000),
        request("cached", W, prompt=4000, cached_tokens=3000),
        request("parked", P, prompt=4000, kv_tokens=4000),
        model=latency(token_s=1e-3),
    )
    gain = rank(state, AndesOptions()).gain
    assert gain[0] < gain[1] < gain[2]


def test_the_gain_is_qoe_served_less_qoe_waiting() -> None:
    state = state_of(request("a", W, dry_s=10.0), request("b", R, output=40, dry_s=2.0))
    readers = state.requests.readers
    served = readers.served(NOW_S, 60.0, np.array([200 * 1e-4 + 0.5, 0.5]), 0.5)
    expected = served - readers.waiting(NOW_S, 60.0)
    assert gain_of_running(state, 60.0, np.array([[0.5]]))[0] == pytest.approx(expected)


def test_long_contexts_count_as_at_most_so_many_times_the_mean() -> None:
    state = state_of(request("a", W, prompt=100), request("b", W, prompt=900), request("c", W, prompt=200))
    assert rank(state, AndesOptions(length_guard=1.5)).cost.tolist() == [100, 600, 200]
    assert rank(state, AndesOptions(length_guard=10)).cost.tolist() == [100, 900, 200]
    for guard in (1.5, 10):
        ranking = rank(state, AndesOptions(length_guard=guard))
        assert ranking.value == pytest.approx(ranking.gain / ranking.cost)


def test_a_running_request_has_a_bonus() -> None:
    waiting, running = request("w", W, prompt=100), request("r", R, prompt=100, output=20)
    state = state_of(waiting, running, model=latency(token_s=0.0))
    bonus, plain = (rank(state, AndesOptions(running_bonus=b)) for b in (0.5, 0.0))
    assert bonus.value[1] == pytest.approx(1.5 * plain.value[1])
    assert bonus.value[0] == plain.value[0]
    assert bonus.gain.tolist() == plain.gain.tolist()


def test_gains_are_weighted() -> None:
    state = state_of(request("a", W), request("b", W, weight=3.0))
    ranking = rank(state, AndesOptions())
    assert ranking.gain[1] == pytest.approx(3 * ranking.gain[0])
    assert order(state, ranking) == "b a"


def test_an_engine_that_outpaces_its_readers_runs_its_own_batch() -> None:
    views = [request(f"r{k}", W) for k in range(20)]
    state = state_of(*views, pool=2000, slots=50, model=latency(step_s=0.0, request_s=0.02))
    assert rank(state, AndesOptions()).batch == 50, "10 contexts fit, and 10 * 0.02 s is as fast as one reads"
    slower = replace(state, latency=latency(step_s=0.0, request_s=0.0201))
    assert rank(slower, AndesOptions()).batch < 50
    by_context = replace(state, latency=latency(step_s=0.0, context_s=0.2 / 1990))
    assert rank(by_context, AndesOptions()).batch < 50, "10 contexts of 200 tokens take longer than one reads a token"
    fast_reader = state_of(*views, request("fast", W, tds=6.0), pool=2000, slots=50, model=state.latency)
    assert rank(fast_reader, AndesOptions()).batch < 50, "the fastest reader counts"


def test_gains_are_those_at_the_step_of_the_batch() -> None:
    """Ten contexts of 200 tokens: a step takes 0.05 s and 2000 times 0.1 ms."""
    state = state_of(
        *(request(f"r{k}", W, dry_s=1.0) for k in range(20)), pool=2000, model=latency(0.05, context_s=1e-4)
    )
    ranking = rank(state, AndesOptions(batch_candidates=2, horizon_s=10.0))
    assert ranking.batch == 10, "7 gain less in all, though 0.05 s and 7 times 0.02 s are below 0.2 s"
    assert ranking.gain == pytest.approx(gain_of_running(state, 10.0, np.array([[0.05 + 10 * 0.02]]))[0])


def test_on_a_slower_engine_the_batch_with_the_largest_total_gain_is_taken() -> None:
    """A step of 20 takes 2 s: a tenth of the reading speed, which gains less in all than fewer who get more."""
    views = [request(f"r{k}", W, output=10, dry_s=5.0) for k in range(20)]
    state = state_of(*views, pool=4200, slots=20, model=latency(step_s=0.0, request_s=0.1, token_s=0.0))
    options = AndesOptions(batch_candidates=3, running_bonus=0.0)

    def total(batch: int) -> float:
        gain = gain_of_running(state, options.horizon_s, np.array([[0.1 * batch]]))[0]
        return batch * float(gain[0])

    best = max((2, 11, 20), key=total)
    assert len({total(b) for b in (2, 11, 20)}) == 3
    ranking = rank(state, options)
    assert ranking.batch == best
    assert ranking.gain == pytest.approx(gain_of_running(state, options.horizon_s, np.array([[0.1 * best]]))[0])


# Prioritise the overdue


OVERDUE = AndesOptions(stall_bound_s=10.0, first_bound_s=20.0, overdue_share=0.5)


def overdue(state: SchedulerState, options: AndesOptions = OVERDUE) -> str:
    return chosen(state, prioritize_overdue(state, rank(state, options), options).overdue)


def test_overdue_is_a_reader_dry_for_longer_than_the_bound() -> None:
    stalls = [request(f"s{s}", W, output=20, dry_s=s) for s in (9.9, 10.0, 10.1)]
    firsts = [request(f"f{s}", W, dry_s=s) for s in (19.9, 20.0, 20.1)]
    assert overdue(state_of(*stalls, *firsts)) == "s10.1 f20.1"


def test_one_token_makes_a_late_one_a_stall() -> None:
    assert overdue(state_of(request("s", W, output=1, dry_s=15.0), request("f", W, dry_s=15.0))) == "s"


def test_what_runs_is_never_overdue_and_what_is_parked_may_be() -> None:
    assert overdue(state_of(request("r", R, output=20, dry_s=50), request("p", P, output=20, dry_s=50))) == "p"


def test_no_overdue_request_leaves_the_ranking_as_it_is() -> None:
    state = state_of(request("a", W), request("b", R, output=50))
    ranking = rank(state, OVERDUE)
    assert prioritize_overdue(state, ranking, OVERDUE) is ranking


def test_the_overdue_go_before_all_others_the_latest_per_kv_token_and_bound_first() -> None:
    state = state_of(
        request("urgent", W, prompt=50),
        request("first", W, prompt=200, dry_s=40.0),  # 2 bounds late
        request("stall", W, prompt=180, output=20, dry_s=30.0),  # 3 bounds late
        request("long", W, prompt=580, output=20, dry_s=30.0),
    )
    options = replace(OVERDUE, length_guard=10)
    ranking = prioritize_overdue(state, rank(state, options), options)
    assert order(state, ranking) == "stall first long urgent"
    assert ranking.value[1:] == pytest.approx([2 / 200, 3 / 200, 3 / 600])
    assert ranking.value[0] == rank(state, options).value[0], "the others keep theirs"
    guarded = prioritize_overdue(state, rank(state, OVERDUE), OVERDUE)
    assert guarded.value[3] > ranking.value[3], "long contexts are guarded here too"


def test_weights_count_among_the_overdue() -> None:
    state = state_of(request("a", W, dry_s=40.0), request("b", W, dry_s=40.0, weight=2.0))
    assert order(state, prioritize_overdue(state, rank(state, OVERDUE), OVERDUE)) == "b a"


@pytest.mark.parametrize(("pool", "first"), [(400, "b"), (401, "a b"), (800, "a b"), (801, "a b c")])
def test_the_overdue_get_their_share_of_the_pool(pool: int, first: str) -> None:
    """Latest first, as long as those before take less than half of the pool."""
    state = state_of(*(request(rid, W, dry_s=s) for rid, s in (("a", 40), ("b", 50), ("c", 30))), pool=pool)
    assert overdue(state) == first


@pytest.mark.parametrize(("pool", "first"), [(799, ""), (800, "late")])
def test_running_requests_that_others_outrank_count_to_the_share(pool: int, first: str) -> None:
    """``full`` runs although it gains nothing: where the pool cannot hold all, it runs for its former lateness. It takes 400 of
    the 399 tokens that are the share; at 800 the pool holds all but ``late``."""
    state = state_of(
        request("full", R, prompt=200, output=200, dry_s=-70.0),
        request("fresh", W, prompt=200),
        request("late", W, prompt=200, dry_s=40.0),
        pool=pool,
    )
    assert overdue(state) == first


# The overdue under fairness


FAIR = replace(OVERDUE, fairness=-1.0, late_share=0.5)


def test_the_wait_of_a_reader_is_that_for_the_first_token_and_all_stalls() -> None:
    """``b`` had its first 10 tokens 3 s late and the next 5 another 4 s late, 2 s of reading ago."""
    late = request("b", R, output=10, dry_s=0.0)
    stream = ReaderStream(NOW_S - 13.0, QoETarget(1.0, TDS))
    stream.deliver(stream.start_s + 3.0, 10)
    stream.deliver(stream.start_s + 3.0 + 2.0 + 4.0, 5)
    state = state_of(
        replace(late, reader=stream, output_tokens=15), request("new", W, dry_s=6.0),
        request("full", R, output=50, dry_s=-5.0), request("dry", W, output=20, dry_s=8.0),
    )  # fmt: skip
    state = replace(state, now_s=stream.start_s + 9.5)
    assert waited_s(state).tolist() == pytest.approx([7.0, 6.0 - 2.5, 0.0, 8.0 - 2.5])


@pytest.mark.parametrize(("waited", "first"), [(0.0, "late"), (9.9, "late"), (10.1, "")])
def test_with_fairness_only_those_who_had_to_wait_count_to_the_share(waited: float, first: str) -> None:
    """``full`` gains nothing by running on. There is room for ``late`` in the share unless ``full`` runs after a
    wait beyond the bound of 10 s."""
    full = request("full", R, prompt=200, output=200, dry_s=-70.0)
    reader = ReaderStream(NOW_S - 1.0 - waited, QoETarget(1.0, TDS))
    reader.deliver(NOW_S, 350)  # its first tokens come when ``waited`` seconds have passed
    state = state_of(
        replace(full, reader=reader), request("fresh", W, prompt=200), request("late", W, prompt=200, dry_s=40.0), pool=799,
    )  # fmt: skip
    assert overdue(state, FAIR) == first
    assert overdue(state, OVERDUE) == "", "without fairness all count that others outrank"


def test_with_fairness_the_share_is_late_share() -> None:
    views = [request(rid, W, dry_s=s) for rid, s in (("a", 40), ("b", 50), ("c", 30))]
    for share, first in ((0.0, ""), (0.25, "b"), (0.3, "a b"), (0.6, "a b c")):
        state = state_of(*views, pool=800)
        assert overdue(state, replace(FAIR, late_share=share, overdue_share=0.25)) == first, share


def test_with_fairness_of_two_as_late_the_one_nearer_to_its_end_goes_first() -> None:
    """Contexts are alike; ``near`` has 50 tokens to come, ``far`` 150. With time ``far`` would go first."""
    near = request("near", W, prompt=100, output=150, dry_s=40.0, expected_tokens=200.0)
    far = request("far", W, prompt=200, output=50, dry_s=40.0, expected_tokens=200.0)
    for view, expected in (
        (far, "near far"),
        (replace(far, reader=request("x", W, output=50, dry_s=400.0).reader), "far near"),
    ):
        state = state_of(near, view, model=latency(token_s=0.0))
        assert order(state, prioritize_overdue(state, rank(state, FAIR), FAIR)) == expected


# Choose victims


def displacers(*views: RequestView, **options: Any) -> str:
    state, settings = state_of(*views), AndesOptions(**options)
    displacement = choose_victims(state, rank(state, settings), settings)
    assert displacement is not None
    return chosen(state, displacement.displacers)


def victims(*views: RequestView, model: LatencyModel | None = None, **options: Any) -> str:
    state, settings = state_of(*views, model=model), AndesOptions(**options)
    displacement = choose_victims(state, rank(state, settings), settings)
    assert displacement is not None
    return chosen(state, displacement.victims)


def test_only_readers_about_to_run_dry_may_displace() -> None:
    views = [request(f"w{s}", W, output=20, dry_s=-s) for s in (2.1, 2.0, 1.9)]
    assert displacers(*views, trigger_buffer_s=2.0) == "w1.9"
    assert displacers(request("p", P, output=20), request("r", R, output=20), request("new", W)) == "p new"


def test_no_displacing_beyond_the_cap_on_preemptions() -> None:
    views = [request("a", W), request("b", R, output=20, preemptions=2)]
    assert displacers(*views, max_preemptions=None) == "a"
    assert displacers(*views, max_preemptions=1.1) == "a"
    assert displacers(*views, max_preemptions=1.0) == ""


FREE = latency(token_s=0.0)
"""A return costs nothing: the slices are what is asked for."""


@pytest.mark.parametrize(("preemptions", "needed"), [(0, 30), (1, 70), (2, 70)])
def test_a_victim_has_had_its_slice(preemptions: int, needed: int) -> None:
    options = {"min_slice_tokens": 30, "resumed_slice_tokens": 70}
    for slice_tokens, expected in ((needed - 1, ""), (needed, "r")):
        view = request("r", R, output=100, slice_tokens=slice_tokens, preemptions=preemptions)
        assert victims(view, model=FREE, **options) == expected


def test_victims_are_preemptible_hold_kv_and_run_or_are_parked() -> None:
    had = {"output": 100, "slice_tokens": 100}
    views = [
        request("r", R, **had),
        request("fixed", R, **had, preemptible=False),
        request("empty", R, **had, kv_tokens=0),
        request("p", P, output=100),
        request("w", W, output=100),
    ]
    assert victims(*views, model=FREE) == "r p"
    assert victims(request("p", P, output=100, kv_tokens=1), model=FREE) == "p"


def test_a_victim_has_paid_for_its_return() -> None:
    """Two run at 0.02 s a step: 0.01 s a token. The return computes 400 tokens in 0.4 s, as long as 40 tokens."""
    options = {"min_slice_tokens": 0, "resumed_slice_tokens": 0}
    for slice_tokens, ratio, expected in ((119, 3.0, ""), (121, 3.0, "r"), (39, 1.0, ""), (41, 1.0, "r")):
        views = [
            request("r", R, prompt=300, output=100, slice_tokens=slice_tokens),
            request("z", R, output=1, preemptible=False),
        ]
        assert victims(*views, model=latency(token_s=1e-3), min_runtime_ratio=ratio, **options) == expected


def test_a_slice_of_a_quarter_of_the_horizon_pays_once_the_cost() -> None:
    state, options = state_of(request("r", R, output=100)), AndesOptions(min_slice_tokens=10, min_runtime_ratio=4.0)
    owed = [
        float(slice_tokens_owed(state, replace(options, horizon_s=horizon_s), 0.02, np.array([100.0]))[0])
        for horizon_s in (4.0, 8.0, 16.0, 32.0, 64.0)
    ]
    assert owed == [100.0, 100.0, 200.0, 400.0, 400.0], "a quarter of the horizon, in tokens: 50, 100, 200, 400, 800"


def test_host_copies_that_survive_make_the_return_cheap() -> None:
    options = {"min_slice_tokens": 0, "resumed_slice_tokens": 0, "min_runtime_ratio": 1.0}
    view = request("r", R, prompt=300, output=100, slice_tokens=10, host_tokens=400)
    kept, lost = latency(token_s=1e-3), latency(token_s=1e-3)
    for _ in range(50):
        lost.observe_return(400, 400)
    assert victims(view, model=kept, **options) == "r"
    assert victims(view, model=lost, **options) == ""


def test_without_preemption_nothing_is_displaced_and_more_kv_is_kept_free() -> None:
    state = state_of(request("a", W, prompt=200), request("r", R, output=100, slice_tokens=100), slots=1)
    assert choose_victims(state, rank(state, AndesOptions()), AndesOptions(preemption=False)) is None
    room = state_of(request("a", W, prompt=200), request("r", R, prompt=100, output=100), pool=400 + 2 * 4 * 16)
    policy = Andes(AndesOptions(preemption=False, growth_tokens=16))
    assert policy.decide(room).admit == ("a",)
    assert policy.decide(replace(room, kv_capacity_tokens=room.kv_capacity_tokens - 1)).admit == ()
    tight = replace(room, kv_capacity_tokens=400 + 2 * 16)
    assert Andes(AndesOptions(growth_tokens=16)).decide(tight).admit == ("a",)
    assert Andes(AndesOptions(growth_tokens=17, trigger_buffer_s=-100)).decide(tight).admit == ()


def test_the_refiner_is_asked_unless_switched_off() -> None:
    state = state_of(request("a", W), request("r", R, output=100, slice_tokens=100))
    ranking = rank(state, AndesOptions())
    asked, unasked = (choose_victims(state, ranking, AndesOptions(refine=refine)) for refine in (True, False))
    assert asked is not None
    assert unasked is not None
    assert isinstance(asked.accept, Refiner)
    assert unasked.accept is None


# Refine


def refiner_of(state: SchedulerState, **fields: Any) -> Refiner:
    n = len(state.requests)
    none = np.zeros(n, dtype=bool)
    defaults: dict[str, Any] = {
        "horizon_s": 60.0, "min_wait_ratio": 0.0, "step_s": 0.1, "gain": np.ones(n), "return_s": np.zeros(n),
        "overdue": none, "displacers": ~state.requests.is_in(R),
    }  # fmt: skip
    valuation = HorizonValue(state, 60.0, np.ones(len(state.requests)))
    return Refiner(state, valuation, **{**defaults, **fields})


RUNNING = state_of(
    request("new", W, prompt=300),
    request("r1", R, prompt=100, output=100, dry_s=0.0),
    request("r2", R, prompt=300, output=300, dry_s=0.0),
)


def test_a_gain_has_to_exceed_what_all_running_readers_lose_by_the_pause() -> None:
    readers = RUNNING.requests.readers.take(np.array([1, 2]))
    pause_s = 60.0 * float(PAUSES[6])
    lost = float((readers.served(NOW_S, 60.0, 0.1, 0.1) - readers.served(NOW_S, 60.0, 0.1 + pause_s, 0.1)).sum())
    assert lost > 0
    for gain, accepted in ((lost * 1.01, True), (lost * 0.99, False)):
        assert refiner_of(RUNNING, gain=np.array([gain, 0, 0]))(0, [1], pause_s) is accepted
        split = refiner_of(RUNNING, gain=np.array([gain, 0, 0]), return_s=np.array([0, pause_s / 4, pause_s / 4]))
        assert split(0, [1, 2], pause_s / 2) is accepted, "the victims' returns are part of the pause"
    assert refiner_of(RUNNING, gain=np.zeros(3))(0, [1], 0.0) is False, (
        "a gain of nothing is not above a loss of nothing"
    )


def test_losses_are_weighted() -> None:
    heavy = state_of(request("new", W), request("r", R, output=100, weight=2.0), request("r2", R, output=300))
    light = state_of(request("new", W), request("r", R, output=100), request("r2", R, output=300))
    alone = state_of(request("new", W), request("r", R, output=100))
    assert refiner_of(heavy).losses == pytest.approx(refiner_of(light).losses + refiner_of(alone).losses)


def test_pauses_accepted_before_count_and_refused_ones_do_not() -> None:
    loss_of = refiner_of(RUNNING).gains_more_than_lost
    pause_s = 10.0
    gain = next(
        g
        for g in np.geomspace(1e-6, 10, 400)
        if refiner_of(RUNNING, gain=np.full(3, g)).gains_more_than_lost(0, pause_s)
    )
    assert loss_of(0, 0.0)
    refiner = refiner_of(RUNNING, gain=np.full(3, gain))
    assert refiner(0, [1], 3 * pause_s) is False
    assert refiner.paused_s == 0.0
    assert refiner(0, [1], pause_s) is True
    assert refiner.paused_s == pause_s
    assert refiner(0, [1], pause_s) is False


def test_the_overdue_are_past_that_but_their_pauses_count() -> None:
    refiner = refiner_of(RUNNING, gain=np.zeros(3), overdue=np.array([True, False, False]), min_wait_ratio=1e9)
    assert refiner(0, [1], 2.0) is True
    assert refiner.paused_s == 2.0


def test_the_wait_saved_is_worth_the_work_added() -> None:
    """The running answers have 200 tokens left on average: 20 s at 0.1 s a step, so an answer takes 2 * 20 / 2 = 20 s of the
    engine. They leave 800 KV tokens in that time, of which ``new`` wants 300: a wait of 7.5 s, an eighth of the horizon."""
    refiner = refiner_of(RUNNING, min_wait_ratio=0.5)
    assert refiner.left_s == pytest.approx(20.0)
    assert refiner.answer_s == pytest.approx(20.0)
    assert refiner.wait_s == pytest.approx(7.5)
    again_s = (20.0 + 5.0) * 0.125 / 0.5
    assert refiner.saves_enough_wait(5.0, again_s * 0.999)
    assert not refiner.saves_enough_wait(5.0, again_s * 1.001)
    gain, return_s = np.full(3, 100.0), np.array([0.0, 3.2, 3.2])
    assert refiner_of(RUNNING, min_wait_ratio=0.5, gain=gain, return_s=return_s)(0, [1], 5.0) is True
    assert refiner_of(RUNNING, min_wait_ratio=0.5, gain=gain, return_s=return_s)(0, [1, 2], 5.0) is False


def test_the_wait_is_at_most_the_horizon_and_counts_all_displacers() -> None:
    assert refiner_of(RUNNING, horizon_s=5.0).wait_s == 5.0
    assert refiner_of(RUNNING, displacers=np.zeros(3, dtype=bool)).wait_s == 0.0
    parked = state_of(
        request("p", P, prompt=100), request("w", W, prompt=100), request("r", R, prompt=300, output=100), pool=1000
    )
    assert refiner_of(parked).wait_s == pytest.approx(10.0 * 100 / 400), "what is parked holds its KV"


def test_one_running_answer_has_the_engine_to_itself() -> None:
    alone = state_of(request("new", W), request("r", R, prompt=100, output=100))
    assert refiner_of(alone).answer_s == pytest.approx(2 * 100 * 0.1)


def test_losses_are_computed_from_no_pause_to_the_whole_horizon_closer_where_pauses_are_short() -> None:
    assert (PAUSES[0], PAUSES[1], PAUSES[-1], len(PAUSES)) == (0.0, 1 / 1024, 1.0, 12)
    assert PAUSES[2:] / PAUSES[1:-1] == pytest.approx(np.full(10, 2.0))


def test_with_nothing_running_there_is_no_wait_to_save() -> None:
    refiner = refiner_of(state_of(request("a", W), request("p", P, output=10)), min_wait_ratio=0.1)
    assert (refiner.left_s, refiner.answer_s, refiner.wait_s) == (0.0, 0.0, 0.0)
    assert not refiner.saves_enough_wait(0.0, 1.0)
    assert refiner.saves_enough_wait(0.0, 0.0)


# The decision


def test_no_requests_no_decision() -> None:
    assert Andes().decide(state_of()) == Decision()


def test_a_waiting_reader_takes_the_place_of_one_who_has_text_to_read() -> None:
    full = request("full", R, output=300, dry_s=-50.0, slice_tokens=300)
    decision = Andes().decide(state_of(full, request("new", W), slots=1))
    assert decision.admit == ("new",)
    assert [(p.rid, p.mode) for p in decision.preempt] == [("full", PreemptionMode.PARK)]
    assert Andes().decide(state_of(full, request("new", W, dry_s=-2.0), slots=1)) == Decision()


def test_a_displacement_that_costs_more_than_it_saves_is_refused() -> None:
    """Nothing but the release of ``full`` makes room, and its return computes 20,000 tokens."""
    full = request("full", R, prompt=20_000, output=300, dry_s=-50.0, slice_tokens=100_000)
    state = state_of(full, request("new", W), pool=20_400, model=latency(token_s=5e-3))
    assert Andes().decide(state) == Decision()
    assert Andes(AndesOptions(refine=False)).decide(state).admit == ("new",)
    assert Andes(AndesOptions(min_wait_ratio=0.0)).decide(state).admit == ("new",), "its reader loses nothing by it"


def test_the_overdue_displace_whatever_it_costs() -> None:
    full = request("full", R, prompt=20_000, output=300, dry_s=-50.0, slice_tokens=100_000)
    state = state_of(full, request("old", W, dry_s=500.0), pool=20_400, model=latency(token_s=5e-3))
    assert Andes(AndesOptions(overdue_share=100)).decide(state).admit == ("old",)
    assert Andes(AndesOptions(overdue_share=0)).decide(state).admit == ()


def test_the_worked_example_in_the_docstring() -> None:
    import andes_sglang.policy.andes as module

    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 8) == (0, True)
