"""The rules of the policies beside andes: who goes first, who displaces whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from andes_sglang.latency import LatencyModel, LinearCost
from andes_sglang.policy import make_policy
from andes_sglang.policy.andes_v2 import AndesV2, AndesV2Options
from andes_sglang.policy.batching import batch_sizes, largest_batch, packed_rows
from andes_sglang.policy.srpt import known_remaining_tokens
from andes_sglang.policy.valuation import final_qoe
from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.state import Decision, Phase, PreemptionMode, RequestTable, RequestView, SchedulerState

W, R, P = Phase.WAITING, Phase.RUNNING, Phase.PARKED
NOW_S = 1000.0
TDS = 5.0
SIGNS = {PreemptionMode.PARK: "p", PreemptionMode.RELEASE: "-", PreemptionMode.OFFLOAD: "o"}


def latency(step_s: float = 0.02, request_s: float = 0.0, token_s: float = 1e-4, cached_s: float = 0.0) -> LatencyModel:
    """A decode step of ``step_s + request_s * batch``, a prefill of ``token_s`` a new and ``cached_s`` a cached token."""
    model = LatencyModel()
    model.decode = LinearCost(prior=(step_s, request_s, 0.0), scale=(1.0, 16.0, 8192.0))
    model.prefill = LinearCost(prior=(0.0, token_s, cached_s), scale=(1.0, 1024.0, 8192.0))
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
    return RequestView(rid, phase, view.pop("arrival_s", reader.start_s - 1.0), reader, prompt, output, kv, **view)


def state_of(
    *views: RequestView, pool: int = 100_000, slots: int = 100, model: LatencyModel | None = None
) -> SchedulerState:
    return SchedulerState(NOW_S, RequestTable.of(views), pool, slots, model or latency())


def told(decision: Decision) -> str:
    preempted = [f"{SIGNS[p.mode]}{p.rid}" for p in decision.preempt]
    return " ".join([*preempted, *(f"^{rid}" for rid in decision.resume), *(f"+{rid}" for rid in decision.admit)])


def decided(policy: str, state: SchedulerState, lengths: dict[str, int] | None = None, **options: Any) -> str:
    return told(make_policy(policy, options, output_tokens=lengths).decide(state))


# Queues: fcfs, sarathi, lifo


@pytest.mark.parametrize(("policy", "first"), [("fcfs", "b"), ("sarathi", "b"), ("lifo", "a")])
def test_queues_go_by_arrival_and_never_preempt(policy: str, first: str) -> None:
    late, early = request("a", W, arrival_s=990.0), request("b", W, arrival_s=980.0)
    running = request("r", R, output=100, dry_s=-50, slice_tokens=500)
    assert decided(policy, state_of(late, early, running, slots=2)) == f"+{first}"
    assert decided(policy, state_of(late, early, running, slots=1)) == ""


@pytest.mark.parametrize("policy", ["fcfs", "sarathi", "lifo"])
def test_queues_let_no_request_past_the_first_and_keep_room_to_grow(policy: str) -> None:
    first, other = (990.0, 980.0) if policy == "lifo" else (980.0, 990.0)
    views = [request("big", W, prompt=500, arrival_s=first), request("small", W, prompt=10, arrival_s=other)]
    running = request("r", R, prompt=100, output=100)
    assert decided(policy, state_of(*views, running, pool=700)) == ""
    exact = 700 + 2 * 64
    assert decided(policy, state_of(*views, running, pool=exact - 1)) == ""
    assert decided(policy, state_of(*views, running, pool=exact)) == "+big"
    assert decided(policy, state_of(*views, running, pool=712), growth_tokens=1) == "+big"


def test_sarathi_needs_mixed_chunks() -> None:
    assert getattr(make_policy("sarathi"), "mixed_chunk", False) is True
    assert getattr(make_policy("fcfs"), "mixed_chunk", False) is False


# round_robin


def test_round_robin_gives_the_place_of_a_used_slice_to_who_has_waited_longest() -> None:
    views = [
        request("spent", R, output=100, slice_tokens=10, phase_since_s=NOW_S - 50),
        request("older", R, output=100, slice_tokens=10, phase_since_s=NOW_S - 60),
        request("busy", R, output=100, slice_tokens=9, phase_since_s=NOW_S - 70),
        request("long", W, phase_since_s=NOW_S - 20),
        request("short", P, output=10, phase_since_s=NOW_S - 10),
    ]
    assert decided("round_robin", state_of(*views, slots=4), slice_tokens=10) == "polder ^short +long"
    assert decided("round_robin", state_of(*views, slots=3), slice_tokens=10) == "polder pspent ^short +long"
    assert decided("round_robin", state_of(*views, slots=3), slice_tokens=11) == ""
    fixed = [replace(view, preemptible=False) for view in views]
    assert decided("round_robin", state_of(*fixed, slots=3), slice_tokens=10) == ""


def test_round_robin_parks_nothing_for_less_than_a_wait() -> None:
    views = [request("r", R, output=100, slice_tokens=100, phase_since_s=NOW_S), request("w", W, phase_since_s=NOW_S)]
    assert decided("round_robin", state_of(*views, slots=1), slice_tokens=10) == ""


# lqsf


def test_lqsf_serves_who_runs_dry_soonest_at_any_price() -> None:
    views = [
        request("soon", W, output=20, dry_s=-1.0),
        request("late", W, dry_s=3.0),
        request("full", R, output=100, dry_s=-9.0, slice_tokens=8),
        request("fuller", R, output=100, dry_s=-10.0, slice_tokens=7),
    ]
    assert decided("lqsf", state_of(*views, slots=4)) == "+late +soon"
    assert decided("lqsf", state_of(*views, slots=2)) == "pfull +late"
    assert decided("lqsf", state_of(*views, slots=2), min_slice_tokens=7) == "pfuller pfull +late +soon"
    fixed = [replace(view, preemptible=False) for view in views]
    assert decided("lqsf", state_of(*fixed, slots=2)) == ""
    parked = [replace(view, phase=P) if view.phase is R else view for view in views]
    assert decided("lqsf", state_of(*parked, pool=650, slots=9)) == "^full ^fuller", "what is parked is no victim"


def test_twice_the_weight_is_half_the_slack_or_twice_the_lateness() -> None:
    for plain, heavy in ((-2.0, -3.9), (3.9, 2.0), (-0.1, -0.1), (0.1, 0.1)):
        views = [request("plain", W, output=20, dry_s=plain), request("heavy", W, output=20, dry_s=heavy, weight=2.0)]
        assert decided("lqsf", state_of(*views, slots=1)) == "+heavy"
    for plain, heavy in ((-2.0, -4.1), (4.1, 2.0)):
        views = [request("plain", W, output=20, dry_s=plain), request("heavy", W, output=20, dry_s=heavy, weight=2.0)]
        assert decided("lqsf", state_of(*views, slots=1)) == "+plain"


# Batch sizes and packing, of both Andes


def test_the_largest_batch_is_what_the_shortest_contexts_fill() -> None:
    state = state_of(request("a", W), pool=600, slots=4)
    assert largest_batch(state, np.array([300.0, 100.0, 200.0, 400.0])) == 3
    assert largest_batch(replace(state, kv_capacity_tokens=599), np.array([300.0, 100.0, 200.0, 400.0])) == 2
    assert largest_batch(replace(state, kv_reserved_tokens=1), np.array([300.0, 100.0, 200.0, 400.0])) == 2
    assert largest_batch(replace(state, max_running=2), np.array([300.0, 100.0, 200.0, 400.0])) == 2
    assert largest_batch(replace(state, kv_capacity_tokens=50), np.array([300.0, 100.0])) == 1


def test_sizes_go_from_what_outpaces_the_fastest_reader_to_the_largest() -> None:
    state = state_of(request("a", W, tds=2.0), request("b", W, tds=TDS), model=latency(step_s=0.05, request_s=0.01))
    assert batch_sizes(state, 35, 200.0, 3) == [15, 25, 35], "0.05 + 15 * 0.01 = 1 / 5 s"
    assert batch_sizes(state, 35, 200.0, 1) == [15]
    assert batch_sizes(state, 10, 200.0, 3) == [10], "all sizes outpace"
    assert batch_sizes(replace(state, latency=latency(step_s=0.5)), 10, 200.0, 2) == [1, 10], "none does"


def test_rows_are_packed_to_the_first_that_does_not_fit() -> None:
    density, context = np.array([1.0, 4.0, 3.0, 2.0]), np.array([10.0, 50.0, 60.0, 10.0])
    assert packed_rows(density, context, 120.0, 4).tolist() == [1, 2, 3]
    assert packed_rows(density, context, 119.0, 4).tolist() == [1, 2]
    assert packed_rows(density, context, 109.0, 4).tolist() == [1]
    assert packed_rows(density, context, 120.0, 2).tolist() == [1, 2]
    assert packed_rows(np.array([1.0, 2.0, 2.0, 2.0]), context, 130.0, 2).tolist() == [1, 2], "of equals the first rows"


# andes-v2 and andes-v1


FULL = {"output": 300, "dry_s": -100.0}
"""Its reader gains nothing within the horizon."""


def test_while_all_fit_and_outpace_their_readers_all_are_served_by_arrival() -> None:
    views = [request("a", W, arrival_s=990.0), request("b", W, arrival_s=980.0), request("r", R, prompt=200, **FULL)]
    assert decided("andes-v2", state_of(*views, pool=1000)) == "+b +a"

    def by_arrival(state: SchedulerState, watermark: float = 0.9) -> bool:
        packing = AndesV2(AndesV2Options(watermark=watermark))._pack(state)
        return bool((packing.value == -state.requests.arrival_s).all() and packing.chosen.all())

    fits = state_of(*views, pool=1000)
    assert by_arrival(fits)
    assert not by_arrival(replace(fits, kv_capacity_tokens=999)), "900 tokens are above nine tenths"
    assert by_arrival(replace(fits, kv_capacity_tokens=999), watermark=0.95)
    assert by_arrival(replace(fits, latency=latency(step_s=0.0, request_s=0.066)))
    assert not by_arrival(replace(fits, latency=latency(step_s=0.0, request_s=0.067))), "three take more than 1 / 5 s"


def test_otherwise_by_gain_per_kv_token_and_what_is_not_chosen_gives_way() -> None:
    views = [
        request("r", R, prompt=100, **FULL),
        request("short", W, prompt=100, dry_s=1.0),
        request("long", W, prompt=300, dry_s=1.0),
    ]
    assert decided("andes-v2", state_of(*views, pool=520)) == "-r +short +long"
    assert decided("andes-v2", state_of(*views, pool=440)) == "-r +short +long"
    fixed = [replace(view, preemptible=False) for view in views]
    assert decided("andes-v2", state_of(*fixed, pool=540)) == "+short"
    assert AndesV2()._pack(state_of(*views, pool=440)).chosen.tolist() == [False, True, True]
    kvless = [replace(views[0], kv_tokens=0), *views[1:]]
    assert "r" not in decided("andes-v2", state_of(*kvless, pool=400, slots=1)).split("+")[0]


def test_the_gain_of_running_requests_has_the_bonus() -> None:
    views = [request("r", R, prompt=180, output=20), request("w", W, prompt=200, output=0), request("z", W, **FULL)]
    state = state_of(*views, pool=450, model=latency(token_s=0.0))
    plain, bonus = (AndesV2(AndesV2Options(running_bonus=b))._pack(state) for b in (0.0, 0.5))
    assert bonus.value[0] == pytest.approx(1.5 * plain.value[0])
    assert bonus.value[1] == plain.value[1]
    assert bonus.total == pytest.approx(plain.total)


def test_the_gain_counts_prefill_of_waiting_requests_cached_tokens_and_weights() -> None:
    state = state_of(
        request("w", W, prompt=3000),
        request("cached", W, prompt=3000, cached_tokens=2000),
        request("p", P, prompt=3000, kv_tokens=3000),
        request("heavy", P, prompt=3000, kv_tokens=3000, weight=2.0),
        model=latency(token_s=1e-3, cached_s=1e-4),
    )
    gain = AndesV2()._gain(state, 1, 3000.0)
    assert gain[0] < gain[1] < gain[2]
    assert gain[3] == pytest.approx(2 * gain[2])
    readers = state.requests.readers.take(np.array([1]))
    served = readers.served(NOW_S, 60.0, 1000 * 1e-3 + 2000 * 1e-4 + 0.02, 0.02)
    assert gain[1] == pytest.approx(float((served - readers.waiting(NOW_S, 60.0))[0]))


def test_a_cached_token_counts_no_more_than_a_new_one_also_where_the_fit_says_so() -> None:
    views = [request("cached", W, prompt=3000, cached_tokens=2000), request("new", W, prompt=3000)]
    cached, new = AndesV2()._gain(state_of(*views, model=latency(token_s=1e-3, cached_s=5e-3)), 1, 3000.0)
    assert cached == pytest.approx(new)


def test_the_best_size_is_taken() -> None:
    views = [request(f"r{k}", W, output=10, dry_s=5.0) for k in range(20)]
    state = state_of(*views, pool=4200, slots=20, model=latency(step_s=0.0, request_s=0.1, token_s=0.0))
    packer = AndesV2(AndesV2Options(batch_candidates=3))
    context = state.requests.context_tokens
    sizes = batch_sizes(state, 20, 210.0, 3)
    totals = [packer._packed(state, b, context).total for b in sizes]
    assert packer._pack(state).batch == sizes[int(np.argmax(totals))]
    assert packer._packed(state, 2, context).chosen.sum() == 2


def displacing_state(**running: Any) -> SchedulerState:
    """``new`` needs the KV of ``full``, who loses nothing; ``r1`` and ``r2``, fast readers on their last token, stand still
    for it."""
    return state_of(
        request("full", R, prompt=200, **FULL),
        request("new", W, prompt=300, dry_s=5.0),
        *(request(f"r{k}", R, prompt=10, output=30, dry_s=0.0, **running) for k in (1, 2)),
        pool=650,
        model=latency(token_s=1e-3),
    )


def test_version_2_displaces_only_for_more_than_the_running_lose() -> None:
    cheap = displacing_state()
    assert decided("andes-v2", cheap) == "-full +new"
    costly = replace(cheap, latency=latency(token_s=0.1))
    assert decided("andes-v2", costly) == ""
    assert decided("andes-v1", costly) == "-full +new", "whatever it costs"
    assert decided("andes-v2", displacing_state(weight=1e4)) == "", "weights count on both sides"


def test_the_refiner_of_version_2_compares_gain_and_loss_to_the_step() -> None:
    """For pauses around the one at which they are equal."""
    state = displacing_state(weight=0.5)
    state.requests.weight[1] = 0.2
    t, step_s = state.requests, 0.02
    new, ongoing = t.readers.take(np.array([1])), t.readers.take(np.array([0, 2, 3]))
    weights = np.array([1.0, 0.5, 0.5])
    again_s = 0.5  # the 500 KV tokens of ``full``, to be computed again
    accept, seen = AndesV2()._refiner(state), set()
    assert accept is not None
    for stall_s in np.arange(0.0, 40.0, 0.01):
        gain = new.served(NOW_S, 60.0, stall_s + step_s, step_s) - new.waiting(NOW_S, 60.0)
        undisturbed = ongoing.served(NOW_S, 60.0, step_s, step_s)
        lost = ((undisturbed - ongoing.served(NOW_S, 60.0, stall_s + again_s + step_s, step_s)) * weights).sum()
        expected = bool(0.2 * gain[0] > lost)
        assert accept(1, [0], float(stall_s)) is expected, stall_s
        seen.add(expected)
    assert seen == {True, False}


def test_the_fastest_reader_and_the_context_decide_whether_all_outpace() -> None:
    views = [request("a", W), request("fast", W, tds=2 * TDS)]
    for step_s, context_s, by_arrival in (
        (0.1, 0.0, True),
        (0.101, 0.0, False),
        (0.0, 0.099 / 400, True),
        (0.0, 0.101 / 400, False),
    ):
        model = LatencyModel()
        model.decode = LinearCost(prior=(step_s, 0.0, context_s), scale=(1.0, 16.0, 8192.0))
        state = state_of(*views, model=model)
        assert bool((AndesV2()._pack(state).value == -state.requests.arrival_s).all()) is by_arrival
        gain = AndesV2()._gain(state, 3, 200.0)
        step_of_3_s = step_s + 600 * context_s
        readers = state.requests.readers
        resume_s = state.latency.prefill.coefficients[0] + state.latency.prefill.coefficients[1] * 200
        served = readers.served(NOW_S, 60.0, resume_s + step_of_3_s, step_of_3_s)
        assert gain == pytest.approx(served - readers.waiting(NOW_S, 60.0))


def test_version_1_stops_at_its_cap() -> None:
    views = [request("full", R, prompt=200, **FULL, preemptions=2), request("new", W, prompt=300, dry_s=5.0)]
    state = state_of(*views, pool=600)
    assert decided("andes-v1", state, max_preemptions=1.0) == ""
    assert decided("andes-v1", state, max_preemptions=1.01) == "-full +new"
    assert decided("andes-v1", state_of(replace(views[0], preemptions=1), views[1], pool=600)) == "-full +new"


@pytest.mark.parametrize("policy", ["andes-v1", "andes-v2", "tokenflow", "clairvoyant"])
def test_no_requests_no_decision(policy: str) -> None:
    assert decided(policy, state_of(), lengths={} if policy == "clairvoyant" else None) == ""


# tokenflow


def test_tokenflow_utility_falls_with_the_unread_tokens() -> None:
    """Worth 1 below 10 % of a typical answer unread, 0 at 20 %, and an empty buffer on top."""
    policy: Any = make_policy("tokenflow", {"answer_tokens": 100, "interval_s": 2.0, "gamma": 3.0})
    views = [request(f"u{n}", P, output=100, dry_s=-n / TDS, kv_tokens=300) for n in (0, 10, 15, 20, 40)]
    state = state_of(*views, request("heavy", P, output=100, kv_tokens=300, weight=2.0))
    utility = policy._utility(state, np.zeros(6))
    base = 3.0 * np.exp(-np.array([0.0, 10.0, 15.0, 20.0, 40.0]))
    assert utility[:5] == pytest.approx(base + 2.0 * np.array([1.0, 1.0, 0.5, 0.0, 0.0]))
    assert utility[5] == pytest.approx(2 * utility[0])


def test_tokenflow_counts_the_start_as_the_cheaper_of_load_and_recompute() -> None:
    policy: Any = make_policy("tokenflow", {"interval_s": 1.0, "gamma": 0.0})
    views = [
        request("new", W, prompt=400),
        request("begun", W, prompt=300, output=100),
        request("cached", W, prompt=300, output=100, cached_tokens=350),
        request("parked", P, prompt=300, output=100),
    ]
    state = state_of(*views, model=latency(token_s=1e-3))
    assert policy._utility(state, np.full(4, 0.1)) == pytest.approx([1 - 0.4, 1 - 0.1, 1 - 0.05, 1.0])
    slow = replace(state, latency=latency(token_s=1e-2))
    assert policy._utility(slow, np.full(4, 5.0))[0] == 0.0, "no start takes more than the interval is worth"


def test_tokenflow_runs_its_working_set() -> None:
    policy: Any = make_policy("tokenflow", {"ramp": 0.5})
    views = [request("r", R, prompt=180, output=20), *(request(f"w{k}", W) for k in range(9))]
    assert policy._working_set(state_of(*views, pool=1000)) == pytest.approx(5 - 0.5 * 4)
    assert policy._working_set(state_of(*views, pool=100)) == pytest.approx(0.5), "never below the room there is"
    assert decided("tokenflow", state_of(*views, pool=1000), ramp=0.5).count("+") == 2
    assert decided("tokenflow", state_of(*views, pool=1040), ramp=0.5).count("+") == 3, "rounded up"
    assert decided("tokenflow", state_of(views[0], pool=100), ramp=1.0) == "", "what runs stays"


def secure(rid: str, *, buffered_s: float, **view: Any) -> RequestView:
    arguments = {"phase_since_s": NOW_S - 10, **view}
    return request(rid, R, prompt=180, output=20, dry_s=-buffered_s, **arguments)


TOKENFLOW = {"mu": 2.0, "schedule_s": 0.25, "load_tokens_per_s": 800, "interval_s": 1.0, "ramp": 0.0}
"""To load 200 tokens takes 0.25 s: a reader with twice 0.5 s buffered is secure."""


def test_tokenflow_displaces_secure_readers_who_have_run_for_an_interval() -> None:
    new = request("new", W, dry_s=1.0)
    for buffered_s, expected in ((1.0, "pr +new"), (0.9, "")):
        assert decided("tokenflow", state_of(secure("r", buffered_s=buffered_s), new, slots=1), **TOKENFLOW) == expected
    for since_s, expected in ((1.0, "pr +new"), (0.9, "")):
        victim = secure("r", buffered_s=3.0, phase_since_s=NOW_S - since_s)
        assert decided("tokenflow", state_of(victim, new, slots=1), **TOKENFLOW) == expected
    assert (
        decided("tokenflow", state_of(secure("r", buffered_s=3.0, preemptible=False), new, slots=1), **TOKENFLOW) == ""
    )


def test_tokenflow_lets_new_requests_displace_only_while_no_reader_is_critical() -> None:
    running = [secure("r", buffered_s=3.0), secure("critical", buffered_s=0.5)]
    assert decided("tokenflow", state_of(*running, request("new", W, dry_s=1.0), slots=2), **TOKENFLOW) == ""
    begun = request("begun", W, output=20, dry_s=1.0)
    assert decided("tokenflow", state_of(*running, begun, slots=2), **TOKENFLOW) == "pr +begun"


def test_tokenflow_keeps_copies_of_what_it_releases() -> None:
    state = state_of(secure("r", buffered_s=3.0), request("new", W, dry_s=1.0), pool=300)
    assert decided("tokenflow", state, **TOKENFLOW) == "or +new"


# Those that know the lengths


def test_remaining_tokens_are_at_least_one() -> None:
    state = state_of(request("a", R, output=30), request("b", R, output=50))
    assert known_remaining_tokens(state.requests, {"a": 100, "b": 50}).tolist() == [70, 1]


def test_srpt_goes_by_the_time_that_is_left() -> None:
    """Prefill 1 ms a token, decode 20 ms a token."""
    lengths = {"a": 100, "b": 120, "c": 30, "p": 30}
    views = [
        request("a", W, prompt=1500),  # 3.5 s
        request("b", W, prompt=1500, cached_tokens=600),  # 3.3 s
        request("c", W, prompt=2800),  # 3.4 s
        request("p", P, prompt=9000, kv_tokens=9000),  # 0.6 s
    ]
    state = state_of(*views, model=latency(step_s=0.015, request_s=0.005, token_s=1e-3))
    for slots, expected in ((1, "^p"), (2, "^p +b"), (3, "^p +b +c")):
        assert decided("srpt", replace(state, max_running=slots), lengths) == expected
    running = request("r", R, output=10, kv_tokens=210)
    for length, expected in ((40, ""), (41, "pr ^p")):
        told_lengths = {**lengths, "r": length}
        assert (
            decided("srpt", state_of(*views, running, slots=1, model=latency(token_s=1e-3)), told_lengths) == expected
        )
    fixed = replace(running, preemptible=False)
    assert decided("srpt", state_of(*views, fixed, slots=1), {**lengths, "r": 900}) == ""


def test_final_qoe_is_that_of_the_stream_once_it_has_ended() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        tds, interval_s, first_s = rng.uniform(1, 10), rng.uniform(0.02, 1.0), rng.uniform(0, 5)
        tokens, before = int(rng.integers(1, 60)), int(rng.integers(0, 30))
        stream = ReaderStream(NOW_S - 8.0, QoETarget(1.0, tds))
        for k in range(before):
            stream.deliver(NOW_S - 8.0 + 8.0 * k / max(before, 1))
        predicted = final_qoe(Readers.of([stream]), NOW_S, np.array([first_s]), interval_s, np.array([float(tokens)]))
        for k in range(tokens):
            stream.deliver(NOW_S + first_s + k * interval_s)
        assert predicted[0] == pytest.approx(stream.final_qoe())


def test_clairvoyant_serves_the_largest_loss_per_second_of_the_engine() -> None:
    lengths = {"short": 20, "long": 200, "full": 300, "heavy": 200}
    short, long = request("short", W, dry_s=1.0), request("long", W, dry_s=1.0)
    full = request("full", R, output=200, dry_s=-100.0)
    assert decided("clairvoyant", state_of(short, long, full, slots=1), lengths) == "pfull +short"
    heavy = request("heavy", W, dry_s=1.0, weight=50.0)
    assert decided("clairvoyant", state_of(short, heavy, full, slots=1), lengths) == "pfull +heavy"
    supplied = request("short", W, output=10, dry_s=-2.0)
    assert decided("clairvoyant", state_of(supplied, full, slots=1), lengths) == "", "only who runs dry displaces"
    assert decided("clairvoyant", state_of(supplied, full, slots=1), lengths, trigger_buffer_s=3.0) == "pfull +short"
    fixed = replace(full, preemptible=False)
    assert decided("clairvoyant", state_of(short, fixed, slots=1), lengths) == ""


def test_clairvoyants_value_is_the_final_qoe_lost_by_a_delay_per_second_of_the_engine() -> None:
    """Two places, 0.01 s and 0.01 s a request and 0.1 ms a KV token; ``w`` and ``c`` have a prefill before them."""
    model = LatencyModel()
    model.decode = LinearCost(prior=(0.01, 0.01, 1e-4), scale=(1.0, 16.0, 8192.0))
    model.prefill = LinearCost(prior=(0.0, 1e-3, 0.0), scale=(1.0, 1024.0, 8192.0))
    views = [
        request("w", W, prompt=500, dry_s=2.0, weight=3.0),
        request("c", W, prompt=500, cached_tokens=400, dry_s=2.0),
        request("r", R, prompt=100, output=100, dry_s=-5.0),
        request("p", P, prompt=3000, output=50, dry_s=-1.0),
    ]
    lengths = {"w": 100, "c": 140, "r": 300, "p": 90}
    left, prefill_s = np.array([100.0, 140.0, 200.0, 40.0]), np.array([0.5, 0.1, 0.0, 0.0])
    context = np.array([500.0, 500.0, 200.0, 3050.0]) + left / 2
    for pool, slots, batch in ((5000, 2, 2.0), (100_000, 9, 4.0), (3900, 9, 3900 / context.mean()), (600, 9, 1.0)):
        state = state_of(*views, pool=pool, slots=slots, model=model)
        step_s = 0.01 + 0.01 * batch + 1e-4 * batch * context.mean()
        readers = state.requests.readers
        now, later = (final_qoe(readers, NOW_S, wait_s + prefill_s + step_s, step_s, left) for wait_s in (0.0, 20.0))
        work_s = prefill_s + left * step_s * np.maximum(1 / batch, context / pool)
        policy: Any = make_policy("clairvoyant", output_tokens=lengths)
        assert policy._loss_density(state) == pytest.approx((now - later) * np.array([3, 1, 1, 1]) / work_s)


def test_clairvoyants_running_requests_have_a_bonus() -> None:
    lengths = {"r": 100, "w": 100}
    views = [request("r", R, prompt=180, output=20, dry_s=0.5), request("w", P, prompt=180, output=20, dry_s=0.4)]
    assert decided("clairvoyant", state_of(*views, slots=1), lengths, running_bonus=0.0) == "pr ^w"
    assert decided("clairvoyant", state_of(*views, slots=1), lengths) == ""
