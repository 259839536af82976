"""How many replicas, and why: the rules one by one, then properties over any history."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from cases import SPEC, TARGET, Run, predicted, request_at, scores, seconds, seen
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.decide import MIN_STREAMS, Failure, decide, shortfall
from andes_operator.memory import Ask, Change, Memory
from andes_operator.names import Mode, Reason
from andes_operator.observe import DataFault, PodCounts, PodFailure
from andes_operator.spec import ClassObjective, ScalingBehavior, TargetSpec
from andes_operator.whatif import Prediction
from andes_sglang.objective import LatencyObjective, Metric, QoEObjective, Statistic

NOW_S = 1_000_000.0
BAD = scores(*[0.5] * 50)
IDLE: dict[str, Any] = {"open_streams": 0, "recent": (), "rate_rps": 0.0}


def behaving(**behavior: Any) -> TargetSpec:
    return replace(SPEC, behavior=replace(SPEC.behavior, **behavior))


# Up


def test_up_goes_at_once_and_all_the_way() -> None:
    decision = Run(2).step(predicted(9))
    assert (decision.replicas, decision.reason) == (9, Reason.FORECAST)
    assert decision.message == (
        "5 requests/s expected: 9 replicas are predicted to give QoE share(0.95) of all classes 1.000 (target 0.95)"
    )


def test_what_is_enough_stays_and_says_why() -> None:
    decision = Run(9).step(predicted(9))
    assert (decision.replicas, decision.reason, decision.attainable) == (9, Reason.STEADY, True)
    assert "9 replicas are predicted to give" in decision.message


def test_a_limit_on_speed_upwards_counts_what_was_added_in_the_last_minute() -> None:
    run = Run(2, behaving(up_step=4))
    assert run.for_s(180, predicted(12)) == [6, 6, 6, 6, 6, 10, 10, 10, 10, 10, 12, 12]


def test_a_limit_on_speed_is_said() -> None:
    run = Run(2, behaving(up_step=4))
    first, second = run.step(predicted(12)), run.step(predicted(12))
    assert first.reason is Reason.FORECAST
    assert first.message.endswith("; 6 now: maxReplicasPerMinute is 4")
    assert (second.replicas, second.reason) == (6, Reason.STABILIZING)
    assert second.message.endswith("; but maxReplicasPerMinute is 4")


def test_what_the_limit_allows_whole_is_not_said_to_be_limited() -> None:
    decision = Run(2, behaving(up_step=4)).step(predicted(6))
    assert decision.replicas == 6
    assert "maxReplicasPerMinute" not in decision.message


def test_replicas_that_went_do_not_raise_the_limit_on_speed() -> None:
    memory = Memory(replicas=4, changes=(Change(NOW_S - 30, -3), Change(NOW_S - 20, 2)))
    assert decide(behaving(up_step=4), seen(NOW_S, 4), predicted(12), memory).replicas == 6
    long_ago = Memory(replicas=4, changes=(Change(NOW_S - 60, 4),))
    assert decide(behaving(up_step=4), seen(NOW_S, 4), predicted(12), long_ago).replicas == 8


def test_upward_stabilisation_waits_for_the_whole_window() -> None:
    run = Run(2, behaving(up_stabilization_s=60))
    run.for_s(120, predicted(2))
    assert run.for_s(90, predicted(8)) == [2, 2, 2, 2, 8, 8]


def test_upward_stabilisation_takes_the_lowest_ask_and_says_that_it_waits() -> None:
    run = Run(2, behaving(up_stabilization_s=30))
    waiting = run.step(predicted(2)), run.step(predicted(9))
    assert waiting[1].reason is Reason.STABILIZING
    assert waiting[1].message.endswith("; asked for less than 30 s")
    run.for_s(15, predicted(6))
    decision = run.step(predicted(9))
    assert decision.replicas == 6


def test_not_attainable_takes_the_maximum_and_says_what_it_gives() -> None:
    decision = Run(2).step(predicted(None))
    assert (decision.replicas, decision.reason, decision.attainable) == (20, Reason.FORECAST, False)
    assert "even 20 replicas are predicted to give QoE share(0.95) of all classes 0.500" in decision.message


def test_what_is_predicted_to_need_more_than_the_maximum_gets_the_maximum() -> None:
    assert Run(2, replace(SPEC, max_replicas=5)).step(predicted(9)).replicas == 5


# The reactive floor


@pytest.mark.parametrize(("current", "more"), [(1, 2), (4, 5), (5, 7), (8, 10), (17, 20)])
def test_observed_qoe_below_the_objective_adds_a_quarter_but_one_at_least(current: int, more: int) -> None:
    run = Run(current)
    run.for_s(150, predicted(current))
    decision = run.step(predicted(current), ended=scores(*[0.5] * 40, *[1.0] * 10))
    assert (decision.replicas, decision.reason) == (more, Reason.QOE_BELOW_TARGET)
    assert decision.message == "the QoE share(0.95) of all classes is 0.200, below 0.95"


def test_the_floor_keeps_the_maximum() -> None:
    run = Run(20)
    run.for_s(150, predicted(20))
    assert run.step(predicted(20), ended=BAD).replicas == 20


def test_the_floor_waits_for_pods_that_start_and_for_a_whole_window_after_them() -> None:
    run = Run(8)
    run.for_s(150, predicted(8))
    run.step(predicted(8), ended=BAD)
    assert run.replicas == 10
    assert set(run.for_s(300, predicted(8), ready=8, ended=BAD)) == {10}, "pods are starting"
    assert set(run.for_s(120, predicted(8), ended=BAD)) == {10}, "the streams ended before the pods came"
    assert run.step(predicted(8), ended=BAD).replicas == 13


def test_the_floor_needs_a_window_of_settled_pods_exactly() -> None:
    for settled_s, replicas in ((119.0, 8), (120.0, 10)):
        memory = Memory(replicas=8, settled_s=NOW_S - settled_s, since_s=NOW_S - 1000)
        assert decide(SPEC, seen(NOW_S, 8, ended=BAD), predicted(8), memory).replicas == replicas


def test_the_larger_of_forecast_and_floor_counts() -> None:
    for fewest, replicas, reason in (
        (15, 15, Reason.FORECAST),
        (9, 10, Reason.QOE_BELOW_TARGET),
        (10, 10, Reason.FORECAST),
    ):
        memory = Memory(replicas=8, settled_s=NOW_S - 500)
        decision = decide(SPEC, seen(NOW_S, 8, ended=BAD), predicted(fewest), memory)
        assert (decision.replicas, decision.reason) == (replicas, reason)


def test_a_queue_that_grows_adds_replicas_without_waiting_for_a_window() -> None:
    run = Run(4)
    history = [run.step(predicted(4), waiting=n) for n in (5, 6, 7)]
    assert [d.replicas for d in history] == [4, 4, 5]
    assert history[-1].reason is Reason.QUEUE_GROWING
    assert history[-1].message == "7 streams wait for their first token, and their number grows"


@pytest.mark.parametrize("queue", [(5, 6, 6), (9, 8, 9), (7, 6, 5), (4, 5, 6)])
def test_a_queue_that_does_not_grow_at_every_reconcile_or_is_short_adds_none(queue: tuple[int, ...]) -> None:
    run = Run(4)
    assert [run.step(predicted(4), waiting=n).replicas for n in queue] == [4, 4, 4]


def test_a_queue_counts_against_ready_replicas() -> None:
    memory = Memory(replicas=4, queue=(5, 6))
    assert decide(SPEC, seen(NOW_S, 4, waiting=7), predicted(4), memory).replicas == 5
    assert decide(SPEC, seen(NOW_S, 4, existing=5, ready=5, waiting=7), predicted(4), memory).replicas == 4


def test_a_queue_starts_again_when_the_scale_changes() -> None:
    memory = Memory(replicas=3, queue=(5, 6))
    assert decide(SPEC, seen(NOW_S, 4, waiting=7), predicted(4), memory).memory.queue == (7,)


def test_few_bad_streams_are_no_reason() -> None:
    assert MIN_STREAMS == 10
    for streams, replicas in ((9, 2), (10, 3)):
        memory = Memory(replicas=2, settled_s=NOW_S - 500)
        decision = decide(SPEC, seen(NOW_S, 2, ended=scores(*[0.1] * streams)), predicted(2), memory)
        assert decision.replicas == replicas


def test_open_streams_count_for_the_floor_too() -> None:
    memory = Memory(replicas=2, settled_s=NOW_S - 500)
    look = seen(NOW_S, 2, ended=scores(*[0.1] * 5), running=scores(*[0.1] * 5))
    assert decide(SPEC, look, predicted(2), memory).replicas == 3


def test_the_shortfall_is_of_the_objective_that_is_missed_by_most() -> None:
    mean, share = QoEObjective(Statistic.MEAN, 0.9), QoEObjective(Statistic.SHARE_ABOVE, 0.5, 0.95)
    objectives = (ClassObjective("code", mean), ClassObjective("reading", share), ClassObjective("*", mean))
    qoe = {Metric.QOE: {"code": scores(*[0.7] * 10)["reading"], "reading": scores(*[0.9] * 10)["reading"]}}
    assert shortfall(objectives, qoe) == (objectives[1], 0.0)
    assert shortfall(objectives[:1], qoe) == (objectives[0], pytest.approx(0.7))
    assert shortfall(objectives[:1], {Metric.QOE: scores(*[0.1] * 50)}) is None, "no stream of its class"
    half = ClassObjective("reading", QoEObjective(Statistic.MEAN, 0.5))
    assert shortfall((half,), {Metric.QOE: scores(*[0.5] * 10)}) is None, "exactly the objective"
    late = ClassObjective("reading", LatencyObjective(Metric.TTFT, 2.0, 95.0))
    got = {**qoe, Metric.TTFT: seconds(*[4.0] * 10)}
    assert shortfall((*objectives, late), got) == (late, pytest.approx(4.0, rel=0.02)), (
        "twice the seconds is further off"
    )
    assert shortfall((late,), {**qoe, Metric.TTFT: seconds(*[1.9] * 10)}) is None
    assert shortfall((late,), {**qoe, Metric.TTFT: seconds(*[9.0] * 9)}) is None, "nine streams tell too little"


LATE = replace(SPEC, objectives=(TARGET, ClassObjective("*", LatencyObjective(Metric.TTFT, 2.0, 95.0))))


def test_a_percentile_of_seconds_that_is_missed_adds_replicas_and_forbids_a_step_down() -> None:
    def steps(waited_s: float, fewest: int) -> tuple[Run, Any]:
        run = Run(4, LATE)
        run.for_s(300, predicted(4), ended=scores(*[1.0] * 20), ttft=seconds(0.5))
        return run, run.step(predicted(fewest), ended=scores(*[1.0] * 20), ttft=seconds(*[waited_s] * 20))

    run, decision = steps(3.0, 4)
    assert (decision.replicas, decision.reason) == (5, Reason.QOE_BELOW_TARGET)
    assert decision.message == "the p95(ttft) of all classes is 3.04 s, above 2 s"
    run, decision = steps(1.9, 4)
    assert decision.replicas == 4
    kept = run.for_s(600, predicted(1), ended=scores(*[1.0] * 9), ttft=seconds(*[1.9] * 9))
    assert kept[-1] < 4, "and where it is met, they go"


def test_where_the_gateways_report_no_seconds_nothing_is_removed_for_an_objective_of_seconds_alone() -> None:
    alone = Run(4, replace(LATE, objectives=LATE.objectives[1:]))
    assert alone.for_s(900, predicted(1), ended=scores(*[1.0] * 20))[-1] == 4
    said = alone.step(predicted(1), ended=scores(*[1.0] * 20)).message
    assert "the gateways report no TTFT" in said
    assert Run(4, LATE).for_s(900, predicted(1), ended=scores(*[1.0] * 20))[-1] < 4, "QoE still tells"


# Down


def test_down_goes_one_step_at_a_time_after_stabilisation() -> None:
    run = Run(6)
    history = run.for_s(900, predicted(3))
    assert history[:20] == [6] * 20, "300 s of data before a replica is removed"
    steps = [i for i, (a, b) in enumerate(zip([6, *history], history)) if b < a]
    assert [history[i] for i in steps] == [5, 4, 3]
    assert [later - earlier for earlier, later in itertools.pairwise(steps)] == [5, 5], "a minute between two steps"
    assert history[-1] == 3


STABLE = Memory(replicas=6, since_s=NOW_S - 300, settled_s=NOW_S - 300, asks=(Ask(NOW_S - 299, 3),))
"""After which one of six replicas is removed."""


def test_a_step_down_says_what_is_left() -> None:
    decision = decide(SPEC, seen(NOW_S, 6), predicted(3), STABLE)
    assert (decision.replicas, decision.reason, decision.attainable) == (5, Reason.SURPLUS, True)
    assert decision.message.startswith("5 requests/s expected: 5 replicas still give QoE share(0.95)")


@pytest.mark.parametrize(
    ("memory", "more", "reason", "said"),
    [
        ({"since_s": NOW_S - 299}, {}, Reason.STABILIZING, "but data is needed for 1 s more before a replica is removed"),
        ({"since_s": None}, {}, Reason.STABILIZING, "data is needed for 300 s more"),
        ({"changes": (Change(NOW_S - 59, -1),)}, {}, Reason.STABILIZING, "but a replica was removed 59 s ago"),
        ({}, {"existing": 7, "ready": 7}, Reason.STABILIZING, "but pods are still starting or leaving"),
        ({}, {"ready": 5}, Reason.STABILIZING, "but pods are still starting or leaving"),
        ({}, {"ended": BAD, "ready": 6}, Reason.QOE_BELOW_TARGET, "of all classes is 0.000, below 0.95"),
        ({"queue": (20, 30)}, {"waiting": 40}, Reason.QUEUE_GROWING, "40 streams wait for their first token"),
    ],
)  # fmt: skip
def test_what_speaks_against_a_step_down_is_said(
    memory: dict[str, Any], more: dict[str, Any], reason: Reason, said: str
) -> None:
    decision = decide(SPEC, seen(NOW_S, 6, **more), predicted(3), replace(STABLE, **memory))
    assert decision.replicas >= 6
    assert decision.reason is reason
    assert said in decision.message


def test_what_does_not_speak_against_a_step_down() -> None:
    for memory in ({"changes": (Change(NOW_S - 60, -1),)}, {"changes": (Change(NOW_S - 10, 1),)}, {"queue": (1, 2)}):
        decision = decide(SPEC, seen(NOW_S, 6, waiting=3), predicted(3), replace(STABLE, **memory))
        assert decision.replicas == 5


def test_nothing_goes_while_requests_come_that_no_objective_sees() -> None:
    """A class that is misspelt: the what-if has no request to serve, and asks for the minimum."""
    misspelt = replace(SPEC, objectives=(replace(TARGET, class_name="readng"),))
    run = Run(4, misspelt)
    assert set(run.for_s(900, predicted(1))) == {4}
    decision = run.step(predicted(1))
    assert decision.reason is Reason.CLASS_UNSEEN
    assert "readng" in decision.message
    assert "reading" in decision.message
    assert run.step(predicted(1), ready=2, pods={"returnable": 2}).replicas == 4, "not even what starts"
    quiet = Run(4, misspelt)
    assert quiet.for_s(900, predicted(1), recent=())[-1] < 4, "without requests there is nothing to see"
    both = Run(4, replace(SPEC, objectives=(TARGET, replace(TARGET, class_name="voice"))))
    assert both.for_s(900, predicted(1))[-1] < 4, "one of two objectives sees them"


def test_work_without_a_reader_is_no_request_that_an_objective_misses() -> None:
    aimed = replace(SPEC, objectives=(replace(TARGET, class_name="reading"),))
    nightly = Run(4, aimed)
    offline = replace(request_at(0.0), class_name="offline", yields=True)
    assert nightly.for_s(900, predicted(1), recent=(offline,))[-1] < 4


def test_bad_qoe_before_the_floor_acts_already_forbids_a_step_down() -> None:
    memory = replace(STABLE, settled_s=NOW_S - 10)
    decision = decide(SPEC, seen(NOW_S, 6, ended=BAD), predicted(3), memory)
    assert (decision.replicas, decision.reason) == (6, Reason.QOE_BELOW_TARGET)
    assert decision.message == "3 replicas would do, but the QoE share(0.95) of all classes is 0.000, below 0.95"


def test_a_short_dip_in_demand_removes_nothing() -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    assert set(run.for_s(285, predicted(1))) == {6}
    assert set(run.for_s(15, predicted(6))) == {6}
    assert set(run.for_s(285, predicted(1))) == {6}


def test_the_highest_ask_of_the_window_is_what_goes_down_to() -> None:
    recent = replace(STABLE, asks=(Ask(NOW_S - 300, 6), Ask(NOW_S - 100, 3)))
    decision = decide(SPEC, seen(NOW_S, 6), predicted(3), recent)
    assert (decision.replicas, decision.reason) == (6, Reason.STABILIZING)
    older = replace(STABLE, asks=(Ask(NOW_S - 301, 6), Ask(NOW_S - 100, 3)))
    assert decide(SPEC, seen(NOW_S, 6), predicted(3), older).replicas == 5


def test_down_only_where_one_fewer_still_meets_the_objective() -> None:
    odd = Prediction(5.0, (TARGET,), 0.01, 3, {3: (0.97,), 5: (0.90,), 6: (0.99,)})  # noise: 5 is worse than 3
    decision = decide(SPEC, seen(NOW_S, 6), odd, STABLE)
    assert (decision.replicas, decision.reason) == (6, Reason.STEADY)
    assert "5 replicas are predicted to give" in decision.message
    assert decision.message.endswith("0.900 (target 0.95): not enough")


def test_one_replica_and_the_minimum_stay() -> None:
    run = Run(1)
    assert set(run.for_s(3000, predicted(1, 0.0), **IDLE)) == {1}
    lowest = Run(3, replace(SPEC, min_replicas=3))
    assert set(lowest.for_s(900, predicted(1))) == {3}
    assert lowest.step(predicted(1)).reason is Reason.STABILIZING


def test_advice_goes_all_the_way_and_moves_nothing() -> None:
    run = Run(6, replace(SPEC, mode=Mode.ADVISORY))
    assert run.for_s(600, predicted(2))[-1] == 2
    assert run.replicas == 6


# Without data or prediction


@pytest.mark.parametrize("reason", [Reason.DATA_MISSING, Reason.DATA_STALE, Reason.DATA_CONTRADICTORY])
def test_untrustworthy_data_holds_and_says_so(reason: Reason) -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    fault = DataFault(reason, "gateway b did not answer")
    for prediction in (predicted(1), predicted(15), None):
        decision = run.step(prediction, fault=fault, waiting=500)
        assert (decision.replicas, decision.reason) == (6, reason)
        assert decision.message == "gateway b did not answer: held at 6"
        assert decision.memory.queue == ()


def test_a_gap_in_the_data_starts_stabilisation_again() -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    run.for_s(270, predicted(2))
    run.step(predicted(2), fault=DataFault(Reason.DATA_MISSING, "nothing"))
    assert set(run.for_s(285, predicted(2))) == {6}
    assert 5 in run.for_s(60, predicted(2))


def test_without_prediction_nothing_is_removed_and_the_floor_still_acts() -> None:
    run = Run(4)
    assert set(run.for_s(900, None)) == {4}
    assert run.step(None).reason is Reason.NO_PREDICTION
    assert run.step(None, waiting=10).replicas == 4
    decision = run.step(None, waiting=20)
    assert (decision.replicas, decision.reason, decision.attainable) == (5, Reason.QUEUE_GROWING, None)
    assert set(run.for_s(30, None, waiting=30)) == {5}, "what was added gets time to show"


@pytest.mark.parametrize("reason", [Reason.PREDICTION_FAILED, Reason.INVALID_SPEC])
def test_why_there_is_no_prediction_is_said(reason: Reason) -> None:
    failure = Failure(reason, "profile 'abacus': not known")
    decision = decide(SPEC, seen(0.0, 4), None, Memory(), failure)
    assert decision.message == "there is no prediction (profile 'abacus': not known): 4 replicas until there is"
    assert decision.failure == failure
    assert decide(replace(SPEC, min_replicas=0), seen(0.0, 0, **IDLE), None, Memory(), failure).failure == failure


def test_the_bounds_hold_even_without_data() -> None:
    fault = DataFault(Reason.DATA_MISSING, "nothing")
    assert Run(1, replace(SPEC, min_replicas=3)).step(None, fault=fault).replicas == 3
    for current, spec, replicas, said in (
        (30, SPEC, 20, "30 replicas are outside maxReplicas 20"),
        (1, replace(SPEC, min_replicas=3), 3, "1 replicas are outside minReplicas 3"),
    ):
        decision = Run(current, spec).step(predicted(current))
        assert (decision.replicas, decision.reason, decision.message) == (replicas, Reason.BOUNDS, said)
        assert decision.memory.asks[-1].replicas == replicas


# Zero

ZERO = replace(SPEC, min_replicas=0, behavior=ScalingBehavior())


def test_to_zero_when_idle_and_back_on_the_first_request() -> None:
    run = Run(2, ZERO)
    run.for_s(300, predicted(2))
    last_s = run.now_s
    while run.replicas and run.now_s < last_s + 3000:
        gone = [request_at(last_s)] if run.now_s + 15.0 - last_s < 600 else []  # the gateway is asked for ten minutes
        decision = run.step(predicted(1, 0.0), open_streams=0, recent=gone)
    assert (decision.replicas, decision.reason) == (0, Reason.IDLE)
    assert decision.message == f"no request for {run.now_s - last_s:.0f} s"
    assert 600 <= run.now_s - last_s < 660
    assert set(run.for_s(9000, predicted(1, 0.0), **IDLE)) == {0}, "no request is no reason to come back"
    decision = run.step(predicted(1, 0.1), **{**IDLE, "recent": (request_at(run.now_s + 12.0),)})
    assert (decision.replicas, decision.reason) == (1, Reason.FIRST_REQUEST)


def test_idleness_longer_than_the_record_of_requests_is_remembered() -> None:
    run = Run(1, replace(ZERO, behavior=ScalingBehavior(idle_s=7200)))
    run.step(predicted(1, 0.0))
    assert set(run.for_s(7185, predicted(1, 0.0), **IDLE)) == {1}
    assert run.step(predicted(1, 0.0), **IDLE).replicas == 0


def test_a_fleet_that_was_never_asked_is_idle_since_its_record_begins() -> None:
    look = seen(NOW_S, 1, **{**IDLE, "complete_since_s": NOW_S - 600})
    assert Memory().observe(ZERO, look).idle_since_s == NOW_S - 600
    assert Memory(idle_since_s=5.0).observe(ZERO, look).idle_since_s == 5.0
    asked = replace(look, recent=(request_at(NOW_S - 50),))
    assert Memory(idle_since_s=5.0).observe(ZERO, asked).idle_since_s == NOW_S - 50
    assert Memory(idle_since_s=NOW_S - 1).observe(ZERO, asked).idle_since_s == NOW_S - 1, "a gateway was lost"
    unread = replace(look, complete_since_s=NOW_S + 9)
    assert Memory().observe(ZERO, unread).idle_since_s == NOW_S


def test_what_came_while_no_operator_ran_may_not_be_in_the_record() -> None:
    spec = replace(ZERO, behavior=ScalingBehavior(idle_s=7200))
    look = seen(NOW_S, 1, **IDLE)
    for down_s, replicas in ((600.0, 0), (601.0, 1)):  # a gateway is asked for ten minutes
        memory = Memory(NOW_S - down_s, 1, since_s=NOW_S - 90_000, idle_since_s=NOW_S - 9000)
        decision = decide(spec, look, predicted(1, 0.0), memory)
        assert decision.replicas == replicas
    assert decision.memory.idle_since_s == look.complete_since_s


@pytest.mark.parametrize(
    ("more", "idle_s", "min_replicas", "replicas"),
    [
        ({}, 600.0, 0, 0), ({}, 599.0, 0, 1), ({"open_streams": 1}, 600.0, 0, 1), ({}, 600.0, 1, 1),
    ],
)  # fmt: skip
def test_the_last_replica_goes_only_when_idle(
    more: dict[str, Any], idle_s: float, min_replicas: int, replicas: int
) -> None:
    memory = Memory(replicas=1, since_s=NOW_S - 3000, idle_since_s=NOW_S - idle_s, asks=(Ask(NOW_S - 500, 1),))
    spec = replace(ZERO, min_replicas=min_replicas)
    assert decide(spec, seen(NOW_S, 1, **{**IDLE, **more}), predicted(1, 0.0), memory).replicas == replicas


def test_the_last_replica_needs_idle_seconds_of_trustworthy_data() -> None:
    for since_s, replicas in ((599.0, 1), (600.0, 0)):
        memory = Memory(replicas=1, since_s=NOW_S - since_s, idle_since_s=NOW_S - 9000, asks=(Ask(NOW_S - 299, 1),))
        assert decide(ZERO, seen(NOW_S, 1, **IDLE), predicted(1, 0.0), memory).replicas == replicas


def test_one_of_two_idle_replicas_goes_as_any_other() -> None:
    memory = Memory(replicas=2, since_s=NOW_S - 9000, idle_since_s=NOW_S - 9000, asks=(Ask(NOW_S - 100, 2),))
    assert decide(ZERO, seen(NOW_S, 2, **IDLE), predicted(1, 0.0), memory).replicas == 2, "two were asked for lately"


@pytest.mark.parametrize(
    ("more", "replicas"),
    [
        ({"open_streams": 1}, 1), ({"waiting": 1}, 1), ({}, 0),
        ({"recent": (request_at(NOW_S - 99),)}, 1), ({"recent": (request_at(NOW_S - 100),)}, 0),
    ],
)  # fmt: skip
def test_a_stream_or_a_later_request_wakes_a_fleet_that_has_gone(more: dict[str, Any], replicas: int) -> None:
    memory = Memory(replicas=0, changes=(Change(NOW_S - 100, -1),))
    decision = decide(ZERO, seen(NOW_S, 0, **{**IDLE, **more}), None, memory)
    assert decision.replicas == replicas
    assert decision.reason is (Reason.FIRST_REQUEST if replicas else Reason.IDLE)
    assert decision.memory.asks[-1].replicas == replicas


def test_a_fleet_that_begins_at_zero_wakes_for_requests_of_the_idle_time() -> None:
    for ago_s, replicas in ((599.0, 1), (600.0, 0)):
        look = seen(NOW_S, 0, **{**IDLE, "recent": (request_at(NOW_S - ago_s),)})
        assert decide(ZERO, look, None, Memory()).replicas == replicas


def test_the_first_request_brings_as_many_as_are_predicted() -> None:
    look = seen(NOW_S, 0, **{**IDLE, "open_streams": 1})
    for prediction, replicas in ((predicted(3), 3), (predicted(None), 20), (None, 1)):
        decision = decide(ZERO, look, prediction, Memory())
        assert (decision.replicas, decision.attainable) == (replicas, None)


def test_the_last_step_down_is_remembered_as_long_as_there_are_no_replicas() -> None:
    memory = Memory(replicas=0, changes=(Change(NOW_S - 9000, 2), Change(NOW_S - 8000, -1)))
    assert memory.observe(ZERO, seen(NOW_S, 0, **IDLE)).changes == (Change(NOW_S - 8000, -1),)
    assert replace(memory, replicas=1).observe(ZERO, seen(NOW_S, 1)).changes == ()
    twice = Memory(replicas=0, changes=(Change(NOW_S - 9000, -1), Change(NOW_S - 8000, -1), Change(NOW_S - 7000, 1)))
    assert twice.last_down_s == NOW_S - 8000
    assert twice.observe(ZERO, seen(NOW_S, 0, **IDLE)).changes == (Change(NOW_S - 8000, -1),)


def test_every_replica_that_was_added_counts() -> None:
    memory = Memory(changes=(Change(1.0, 1), Change(2.0, 1), Change(3.0, -5), Change(4.0, 2)))
    assert [memory.added(since_s) for since_s in (0.0, 1.0, 2.0, 4.0)] == [4, 3, 2, 0]


# Memory


def test_gpu_seconds_are_counted_against_the_baseline_over_a_restart() -> None:
    run = Run(6)
    run.for_s(3600 + 15, predicted(6))
    assert run.memory.replica_s == pytest.approx(6 * 3600)
    assert run.memory.baseline_s == pytest.approx(20 * 3600)


def test_a_pod_that_drains_still_holds_its_gpus() -> None:
    before = Memory(at_s=0.0, replicas=2)
    draining = replace(seen(100.0, 2), pods=PodCounts(2, 2, 2, terminating=3))
    assert decide(SPEC, draining, predicted(2), before).memory.replica_s == 500.0


def test_a_clock_that_went_back_takes_no_gpu_seconds_away() -> None:
    before = Memory(at_s=NOW_S + 100, replicas=2, replica_s=7.0)
    assert before.observe(SPEC, seen(NOW_S, 2)).replica_s == 7.0


def test_changes_are_kept_for_as_long_as_a_limit_counts_them() -> None:
    for period_s, kept in ((0.0, 60.0), (500.0, 500.0)):
        changes = (Change(NOW_S - kept - 1, 1), Change(NOW_S - kept, 2))
        made = Memory(replicas=4, changes=changes).observe(behaving(down_period_s=period_s), seen(NOW_S, 5))
        assert made.changes == (Change(NOW_S - kept, 2), Change(NOW_S, 1))


def test_settled_pods_are_so_since_the_first_time() -> None:
    assert Memory().observe(SPEC, seen(NOW_S, 2)).settled_s == NOW_S
    assert Memory(settled_s=5.0, since_s=4.0).observe(SPEC, seen(NOW_S, 2)).settled_s == 5.0
    assert Memory(settled_s=5.0).observe(SPEC, seen(NOW_S, 2, ready=1)).settled_s is None
    assert Memory(since_s=4.0).observe(SPEC, seen(NOW_S, 2)).since_s == 4.0


def test_asks_that_a_later_one_dominates_are_forgotten() -> None:
    behavior = ScalingBehavior(up_stabilization_s=30, down_stabilization_s=300)
    memory = Memory()
    for at_s, replicas in ((0.0, 9), (268.0, 5), (270.0, 2), (275.0, 4), (280.0, 4), (290.0, 6)):
        memory = memory.ask(behavior, Ask(at_s, replicas))
    assert memory.asks == (Ask(0.0, 9), Ask(270.0, 2), Ask(280.0, 4), Ask(290.0, 6))
    assert memory.ask(behavior, Ask(301.0, 5)).asks == (Ask(280.0, 4), Ask(290.0, 6), Ask(301.0, 5))
    assert memory.ask(behavior, Ask(300.0, 5)).asks[0] == Ask(0.0, 9), "still in the window"


def test_memory_stays_small_over_days() -> None:
    run = Run(10)
    for i in range(1000):
        run.step(predicted(1 + (i * 7) % 19))
    assert len(json.dumps(run.memory.to_dict())) < 4000


def test_a_memory_is_the_same_after_the_status() -> None:
    memory = Memory(1.0, 2, 3.0, 4.0, 5.0, (Ask(6.0, 7),), (Change(8.0, -9),), (10, 11), 12.0, 13.0)
    assert Memory.from_dict(json.loads(json.dumps(memory.to_dict()))) == memory
    assert Memory.from_dict(None) == Memory.from_dict({}) == Memory()


@pytest.mark.parametrize(
    "data",
    [
        {"asks": [{"replicas": 3}]}, {"changes": 5}, {"asks": "x"}, {"replicaSeconds": []}, {"at": "x"}, {"replicas": "x"},
        {"since": "x"}, {"idleSince": []}, {"settled": "x"}, [1], {"at": math.inf}, {"at": -1}, {"replicas": math.inf},
        {"replicas": -3}, {"asks": [{"at": 1, "replicas": math.inf}]}, {"queue": [math.nan]}, {"replicaSeconds": "inf"},
    ],
)  # fmt: skip
def test_an_invalid_memory_is_refused_by_name(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"status\.memory"):
        Memory.from_dict(data)


def test_what_lies_in_the_future_is_forgotten() -> None:
    """An ask of ten thousand replicas next year would be the highest of every window until then."""
    memory = Memory(
        50.0, 2, 99.0, 120.0, 130.0, (Ask(60.0, 7), Ask(9e9, 10_000)), (Change(9e9, -9),), (10,), 12.0, 13.0
    )
    kept = memory.until(100.0)
    assert (kept.at_s, kept.since_s, kept.idle_since_s, kept.settled_s) == (50.0, 99.0, None, None)
    assert (kept.asks, kept.changes, kept.replica_s) == ((Ask(60.0, 7),), (), 12.0)
    assert memory.until(1e10) == memory


# Any history

ticks = st.lists(
    st.fixed_dictionaries({
        "fewest": st.one_of(st.none(), st.integers(1, 30)),
        "lost": st.booleans(),
        "fault": st.sampled_from([None, None, None, Reason.DATA_MISSING, Reason.DATA_CONTRADICTORY]),
        "late": st.integers(0, 3),
        "failing": st.sampled_from([0, 0, 0, 1, 4]),
        "unready": st.sampled_from([0, 0, 0, 1]),
        "waiting": st.integers(0, 60),
        "good": st.integers(0, 40),
        "bad": st.integers(0, 40),
        "busy": st.booleans(),
    }),
    min_size=1, max_size=60,
)  # fmt: skip
specs = st.builds(
    lambda fewest, more, up, down, step, period: replace(
        SPEC, min_replicas=fewest, max_replicas=max(1, fewest + more),
        behavior=replace(SPEC.behavior, up_stabilization_s=up, down_stabilization_s=down, up_step=step, down_period_s=period),
    ),
    st.integers(0, 4), st.integers(0, 20), st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 60.0, 300.0]),
    st.sampled_from([None, 1, 5]), st.sampled_from([0.0, 60.0]),
)  # fmt: skip


@given(specs, ticks, st.integers(0, 25))
def test_whatever_happens(spec: TargetSpec, history: list[dict[str, Any]], start: int) -> None:
    run = Run(start, spec)
    for t in history:
        before, memory = run.replicas, run.memory
        prediction = None if t["lost"] else predicted(t["fewest"])
        failing = min(t["failing"], before)
        never = min(failing + t["late"], before)
        failures = (PodFailure(Reason.UNSCHEDULABLE, failing, "no node"),) if failing else ()
        pods = {"failures": failures, "returnable": never, "unready": min(t["unready"], before - never)}
        more = {
            "ready": before - never - pods["unready"],
            "pods": dict(pods),
            "waiting": t["waiting"],
            "ended": scores(*[1.0] * t["good"], *[0.2] * t["bad"]),
            "fault": DataFault(t["fault"], "x") if t["fault"] else None,
            "open_streams": 20 if t["busy"] else 0,
        }
        decision = run.step(prediction, **more)
        again = decide(spec, seen(run.now_s, before, **{**more, "pods": dict(pods)}), prediction, memory)
        assert again == decision, "the same in gives the same out"
        assert spec.clamp(decision.replicas) == decision.replicas
        assert decision.message
        if t["fault"]:
            assert decision.replicas == spec.clamp(before)
        inside, given_back = spec.min_replicas <= before <= spec.max_replicas, (Reason.UNSCHEDULABLE, Reason.NOT_NEEDED)
        if inside and decision.replicas < before and decision.reason in given_back:
            assert before - decision.replicas <= never, "none that serves"
        elif inside and decision.replicas < before:
            assert before - decision.replicas == 1
            assert prediction is not None
            assert decision.replicas == 0 or prediction.meets(decision.replicas)
            assert never <= failing
            assert not pods["unready"]
        if spec.behavior.up_step is not None and before and spec.min_replicas <= before <= spec.max_replicas:
            assert decision.replicas - before <= spec.behavior.up_step


@given(specs, st.integers(1, 20), st.integers(1, 30))
def test_a_steady_demand_is_settled_for_good(spec: TargetSpec, start: int, fewest: int) -> None:
    """No flapping: with the same prediction for ever, the number moves one way, ends where it should, and stays."""
    run = Run(start, spec)
    history = [run.replicas, *run.for_s(2400, predicted(fewest))]
    rises = [b - a for a, b in itertools.pairwise(history[1:])]
    assert all(d >= 0 for d in rises) or all(d <= 0 for d in rises)
    assert history[-1] == max(1, spec.clamp(fewest))


def test_what_may_be_a_reserve_stays_until_what_survives_is_known() -> None:
    kept = Run(9)
    for _ in range(40):
        kept.now_s += 15.0
        decision = decide(SPEC, seen(kept.now_s, 9), predicted(2), kept.memory, tabulating=True)
        kept.memory = decision.memory
    assert (decision.replicas, decision.reason) == (9, Reason.STABILIZING)
    assert decide(SPEC, seen(kept.now_s + 15.0, 9), predicted(2), kept.memory).replicas < 9
    assert decide(SPEC, seen(kept.now_s + 15.0, 9), predicted(12), kept.memory, tabulating=True).replicas == 12
