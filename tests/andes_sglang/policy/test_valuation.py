"""What it is worth to run a request now: by its final QoE, through an alpha-fair utility, per second of engine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.latency import LatencyModel, LinearCost
from andes_sglang.policy.andes import Andes, AndesOptions, choose_victims, prioritize_overdue, rank
from andes_sglang.policy.refiner import PAUSES, Refiner
from andes_sglang.policy.valuation import FinalValue, final_qoe, kv_binds, remaining_tokens, steady_batch, utility
from andes_sglang.qoe import QoETarget, Readers, ReaderStream, qoe_of_deliveries
from andes_sglang.state import Phase, RequestTable, RequestView, SchedulerState

NOW_S, TDS = 1000.0, 5.0
W, R = Phase.WAITING, Phase.RUNNING
FAIR = AndesOptions(fairness=-1.0)


def request(
    rid: str, phase: Phase = W, *, prompt: int = 200, output: int = 0, late_s: float = 0.0, **view: Any
) -> RequestView:
    """Its reader has been dry for ``late_s``, all else as expected; without output: its first token was expected then."""
    reader = ReaderStream(NOW_S - late_s - output / TDS - 1.0, QoETarget(1.0, TDS))
    reader.deliver(reader.start_s, output)
    kv = 0 if phase is W else prompt + output
    return RequestView(rid, phase, reader.start_s - 1.0, reader, prompt, output, kv, **view)


def state_of(*views: RequestView, pool: int = 100_000, slots: int = 100, step_s: float = 0.02) -> SchedulerState:
    model = LatencyModel()
    model.decode = LinearCost(prior=(step_s, 0.0, 0.0), scale=(1.0, 16.0, 8192.0))
    model.prefill = LinearCost(prior=(0.0, 1e-4, 0.0), scale=(1.0, 1024.0, 8192.0))
    return SchedulerState(NOW_S, RequestTable.of(views), pool, slots, model)


def value(state: SchedulerState, fairness: float = -1.0, delay_s: float = 10.0, **fields: Any) -> FinalValue:
    return FinalValue(state, delay_s, fairness, remaining_tokens(state.requests), **fields)


def order(state: SchedulerState, **options: Any) -> str:
    return "".join(state.requests.names(np.argsort(-rank(state, AndesOptions(**options)).value, kind="stable")))


@given(
    had=st.integers(0, 60), late_s=st.floats(-5, 30), first_s=st.floats(0, 20), step_s=st.floats(0.01, 1.0), left=st.integers(1, 60)
)  # fmt: skip
def test_final_qoe_is_that_of_the_whole_stream(
    had: int, late_s: float, first_s: float, step_s: float, left: int
) -> None:
    arrival_s = NOW_S - late_s - had / TDS - 1.0
    past = [arrival_s + 1.0] * had
    coming = [NOW_S + first_s + k * step_s for k in range(left)]
    reader = ReaderStream(arrival_s, QoETarget(1.0, TDS))
    reader.deliver(arrival_s + 1.0, had)
    found = final_qoe(Readers.of([reader]), NOW_S, np.array([first_s]), step_s, np.array([float(left)]))[0]
    assert found == pytest.approx(qoe_of_deliveries([*past, *coming], arrival_s, QoETarget(1.0, TDS)), abs=1e-9)


def test_what_is_expected_is_what_the_request_says_less_what_is_there() -> None:
    table = RequestTable.of([
        request("told", expected_tokens=500.0), request("begun", R, output=100, expected_tokens=500.0),
        request("unknown"), request("long", R, output=1000, expected_tokens=500.0), request("short", R, output=30, expected_tokens=31.0),
    ])  # fmt: skip
    assert remaining_tokens(table).tolist() == [500, 400, 256, 300, 16]


def test_the_limit_of_a_request_is_not_taken_for_its_length() -> None:
    assert remaining_tokens(RequestTable.of([request("a", remaining_tokens=40)])).tolist() == [256]


@pytest.mark.parametrize("fairness", [1.0, 0.5, 0.0, -0.5, -2.0])
def test_utility_grows_with_qoe(fairness: float) -> None:
    assert np.all(np.diff(utility(np.linspace(-0.1, 1, 12)[1:], fairness)) > 0)


def test_utility_is_the_alpha_fair_one() -> None:
    q = np.array([0.0, 0.5, 1.0])
    assert utility(q, 1.0).tolist() == pytest.approx([0.05, 0.55, 1.05])
    assert utility(q, 0.0).tolist() == pytest.approx([math.log(0.05), math.log(0.55), math.log(1.05)])
    assert utility(q, -1.0).tolist() == pytest.approx([-20, -1 / 0.55, -1 / 1.05])
    assert np.isfinite(utility(np.array([-1.0]), -3.0)).all()


def test_a_reader_who_lost_much_counts_for_more_the_lower_the_fairness() -> None:
    """``a`` can still be served well, ``b`` has waited for long: the sum gives it up, fairness does not."""
    state = state_of(request("a", late_s=0.0), request("b", late_s=60.0), pool=199)
    assert order(state, fairness=1.0) == "ab"
    assert order(state, fairness=-3.0) == "ba"


def test_while_there_is_room_for_all_that_wait_prefill_fairness_holds() -> None:
    views = (request("a", late_s=0.0), request("b", late_s=60.0))
    for pool, first in ((200, "ab"), (199, "ba")):
        assert order(state_of(*views, pool=pool), fairness=-3.0) == first, pool
    assert order(state_of(*views), fairness=-3.0, prefill_fairness=-3.0) == "ba"


@pytest.mark.parametrize(
    ("pool", "slots", "reserved", "binds"),
    [
        (1000, 4, {}, False),
        (999, 4, {}, True),
        (1000, 2, {}, True),
        (1000, 3, {"running_reserved": 1}, True),
        (1100, 4, {"kv_reserved_tokens": 101}, True),
    ],
)
def test_kv_binds_where_the_longest_that_waits_has_no_room(
    pool: int, slots: int, reserved: dict[str, int], binds: bool
) -> None:
    """Two run with 200 tokens of KV each; 600 are wanted."""
    views = [request("a", R), request("b", R), request("short", prompt=50), request("long", prompt=600)]
    assert kv_binds(replace(state_of(*views, pool=pool, slots=slots), **reserved)) is binds


def test_what_is_parked_only_wants_a_place() -> None:
    views = [request("a", R), request("parked", Phase.PARKED)]
    assert not kv_binds(state_of(*views, pool=400, slots=2))
    assert kv_binds(state_of(*views, pool=400, slots=1))


def test_a_reader_with_text_in_store_gains_nothing_by_running_now() -> None:
    state = state_of(request("full", R, output=300, late_s=-50.0), request("dry", R, output=300, late_s=0.0))
    gain = value(state).gain(np.array([[0.02]]))[0]
    assert gain[0] == pytest.approx(0.0, abs=1e-9)
    assert gain[1] > 0


def test_a_longer_delay_costs_more() -> None:
    state = state_of(request("a"))
    gains = [value(state, delay_s=delay_s).gain(np.array([[0.02]]))[0, 0] for delay_s in (1.0, 5.0, 20.0)]
    assert gains == sorted(gains)
    assert gains[0] < gains[2]


def test_the_cost_is_the_prefill_and_a_share_of_each_step() -> None:
    """A pool of 1,000 tokens, two requests of 200 + 128 on average: three would fit, two are there."""
    state = state_of(request("new"), request("on", R), pool=1000, step_s=0.5)
    cost = value(state).cost(np.array([[0.5]]))[0]
    assert steady_batch(state, np.array([328.0, 328.0])) == 2.0
    assert cost.tolist() == pytest.approx([0.02 + 256 * 0.5 / 2, 256 * 0.5 / 2])


def test_a_context_that_fills_the_pool_costs_its_share_of_it() -> None:
    state = state_of(request("big", R, prompt=672), request("small", R, prompt=72), pool=1000, step_s=0.5)
    big, small = value(state).cost(np.array([[0.5]]))[0]
    assert big == pytest.approx(256 * 0.5 * 0.8)
    assert small == pytest.approx(256 * 0.5 / 2)


def test_what_is_cached_costs_no_prefill() -> None:
    state = state_of(request("cold", prompt=2000), request("warm", prompt=2000, cached_tokens=1500))
    cold, warm = value(state).cost(np.array([[0.02]]))[0]
    assert cold - warm == pytest.approx(0.15)
    assert order(state, fairness=-1.0) == "warmcold"


def test_a_smaller_exponent_of_work_spares_long_prompts() -> None:
    state = state_of(request("s", late_s=0.0), request("L", prompt=20_000, weight=1.2))
    assert order(state, fairness=-1.0, work_exponent=1.0) == "sL"
    assert order(state, fairness=-1.0, work_exponent=0.0) == "Ls"


def test_weight_multiplies_the_value() -> None:
    state = state_of(request("a"), request("b", weight=2.0))
    ranking = rank(state, FAIR)
    assert ranking.gain[1] == pytest.approx(2 * ranking.gain[0])
    assert ranking.value[1] == pytest.approx(2 * ranking.value[0])


def test_running_requests_have_the_bonus() -> None:
    state = state_of(request("a", R, output=50), request("b", R, output=50))
    plain = rank(state, AndesOptions(fairness=-1.0, running_bonus=0.0)).value
    assert rank(state, AndesOptions(fairness=-1.0, running_bonus=0.5)).value == pytest.approx(1.5 * plain)


def test_without_fairness_the_expected_length_changes_nothing() -> None:
    for told in (10.0, 10_000.0):
        state = state_of(request("a", expected_tokens=told), request("b"))
        assert rank(state, AndesOptions()).value[0] == rank(state, AndesOptions()).value[1]
        assert rank(state, FAIR).value[0] != rank(state, FAIR).value[1]


def test_the_slice_of_who_was_preempted_is_shorter_with_fairness_unless_it_is_told() -> None:
    for options, tokens in (
        ({}, 90), ({"fairness": -1.0}, 75), ({"resumed_slice_tokens": 60}, 60), ({"fairness": 0.0, "resumed_slice_tokens": 60}, 60),
    ):  # fmt: skip
        assert AndesOptions(**options).slice_tokens_of_resumed == tokens, options


def test_all_guards_stay_the_overdue_go_first() -> None:
    state = state_of(request("a", prompt=10), request("late", prompt=3000, late_s=200.0), slots=1)
    assert Andes(FAIR).decide(state).admit == ("late",)


def test_the_refiner_weighs_a_pause_by_the_same_valuation() -> None:
    """The newcomer's prefill would keep three readers waiting for 3 s; all lose final QoE by it, not only QoE at a horizon."""
    readers = [request(f"r{k}", R, output=300, late_s=0.0, slice_tokens=300) for k in range(3)]
    state = state_of(*readers, request("new", prompt=30_000), pool=31_000, slots=4)
    ranking = prioritize_overdue(state, rank(state, FAIR), FAIR)
    displacement = choose_victims(state, ranking, FAIR)
    assert displacement is not None
    assert isinstance(displacement.accept, Refiner)
    losses = displacement.accept.losses
    served = ranking.valuation.if_served(0.02 + 60.0 * PAUSES[:, None], 0.02, np.arange(3))
    assert losses == pytest.approx((served[0] - served).sum(axis=1))
    assert losses[-1] > 0
