"""How many replicas, and why: the rules one by one, then properties over any history."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.decide import Decision, Memory, decide
from andes_operator.names import Mode, Reason, Statistic
from andes_operator.observe import Fault, Observation, Pods
from andes_operator.spec import Behavior, Demand, Objective, ScaleTargetRef, TargetSpec
from andes_operator.whatif import Prediction
from andes_sglang.sketch import Sketch

TARGET = Objective("*", Statistic.SHARE_ABOVE, 0.95, 0.95)
SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(TARGET,),
    min_replicas=1,
    max_replicas=20,
    demand=Demand(service="gateway"),
    profile="h100-llama-3.1-8b",
    baseline_replicas=20,
    behavior=Behavior(down_stabilization_s=300, down_period_s=60, window_s=120),
)


def predicted(least: int | None, rate_rps: float = 5.0) -> Prediction:
    """As the what-if would say: ``least`` is enough, one fewer is not."""
    values = {n: (1.0 if least is not None and n >= least else 0.5,) for n in range(1, 51)}
    return Prediction(rate_rps, (TARGET,), 0.01, least, values)


def scores(*values: float) -> dict[str, Sketch]:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return {"reading": sketch}


def seen(
    now_s: float, wanted: int, *, ready: int | None = None, there: int | None = None, **more: object
) -> Observation:
    pods = Pods(wanted, wanted if there is None else there, wanted if ready is None else ready)
    return Observation(now_s, pods, **{"idle_s": 0.0, "rate_rps": 5.0, "open_streams": 20, **more})  # type: ignore[arg-type]


class Run:
    """Ticks every 15 s; what is decided is there at the next tick."""

    def __init__(self, replicas: int, spec: TargetSpec = SPEC) -> None:
        self.spec, self.replicas, self.now_s, self.memory = spec, replicas, 1_000_000.0, Memory()

    def tick(self, prediction: Prediction | None, **more: object) -> Decision:
        self.now_s += 15.0
        decision = decide(self.spec, seen(self.now_s, self.replicas, **more), prediction, self.memory)
        self.memory = Memory.from_dict(json.loads(json.dumps(decision.memory.to_dict())))  # as through the status
        if self.spec.mode is Mode.AUTO:
            self.replicas = decision.replicas
        return decision

    def for_s(self, seconds: float, prediction: Prediction | None, **more: object) -> list[int]:
        return [self.tick(prediction, **more).replicas for _ in range(int(seconds / 15))]


def test_up_goes_at_once_and_all_the_way() -> None:
    decision = Run(2).tick(predicted(9))
    assert (decision.replicas, decision.reason) == (9, Reason.FORECAST)
    assert (
        "9 replicas are predicted to give share with QoE >= 0.95 of all classes 1.000 (target 0.95)" in decision.message
    )


def test_down_goes_one_step_at_a_time_after_stabilisation() -> None:
    run = Run(6)
    history = run.for_s(900, predicted(3))
    assert history[:20] == [6] * 20, "300 s of data before anything goes"
    steps = [i for i, (a, b) in enumerate(zip([6, *history], history)) if b < a]
    assert [history[i] for i in steps] == [5, 4, 3]
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(steps)), "a minute between two steps"
    assert history[-1] == 3


def test_a_short_dip_in_demand_lets_nothing_go() -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    assert set(run.for_s(285, predicted(1))) == {6}
    assert set(run.for_s(15, predicted(6))) == {6}
    assert set(run.for_s(285, predicted(1))) == {6}


def test_down_only_where_one_fewer_still_meets_the_objective() -> None:
    run = Run(6)
    odd = Prediction(5.0, (TARGET,), 0.01, 3, {3: (0.97,), 5: (0.90,), 6: (0.99,)})  # noise: 5 looks worse than 3
    assert set(run.for_s(900, odd)) == {6}
    assert "0.900" in run.tick(odd).message


@pytest.mark.parametrize("reason", [Reason.DATA_MISSING, Reason.DATA_STALE, Reason.DATA_CONTRADICTORY])
def test_untrustworthy_data_holds_and_says_so(reason: Reason) -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    fault = Fault(reason, "gateway b did not answer")
    for prediction in (predicted(1), predicted(15), None):
        decision = run.tick(prediction, fault=fault, waiting=500)
        assert (decision.replicas, decision.reason) == (6, reason)
        assert decision.message == "gateway b did not answer: held at 6"


def test_a_gap_in_the_data_starts_stabilisation_anew() -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    run.for_s(270, predicted(2))
    run.tick(predicted(2), fault=Fault(Reason.DATA_MISSING, "nothing"))
    assert set(run.for_s(285, predicted(2))) == {6}
    assert 5 in run.for_s(60, predicted(2))


def test_without_prediction_nothing_goes_and_the_floor_still_acts() -> None:
    run = Run(4)
    assert set(run.for_s(900, None)) == {4}
    assert run.tick(None, waiting=10).replicas == 4
    decision = run.tick(None, waiting=20)
    assert (decision.replicas, decision.reason) == (5, Reason.QUEUE_GROWING)
    assert set(run.for_s(30, None, waiting=30)) == {5}, "what was added gets time to show"


def test_why_there_is_no_prediction_is_said() -> None:
    decision = decide(SPEC, seen(0.0, 4), None, Memory(), "profile 'abacus': not known")
    assert decision.message == "there is no prediction (profile 'abacus': not known): 4 replicas until there is"
    assert decision.failed == "profile 'abacus': not known"


def test_observed_qoe_below_the_target_adds_a_quarter_when_the_forecast_is_wrong() -> None:
    run = Run(8)
    run.for_s(150, predicted(8))
    decision = run.tick(predicted(8), ended=scores(*[0.5] * 40, *[1.0] * 10))
    assert (decision.replicas, decision.reason) == (10, Reason.QOE_BELOW_TARGET)
    assert decision.message == "the share with QoE >= 0.95 of all classes is 0.200, below 0.95"


def test_the_floor_waits_for_help_on_its_way_and_for_a_whole_window_after_it() -> None:
    run = Run(8)
    run.for_s(150, predicted(8))
    bad = scores(*[0.5] * 50)
    run.tick(predicted(8), ended=bad)
    assert run.replicas == 10
    assert set(run.for_s(300, predicted(8), ready=8, ended=bad)) == {10}, "pods are starting"
    assert set(run.for_s(120, predicted(8), ended=bad)) == {10}, "what was bad came before the pods"
    assert run.tick(predicted(8), ended=bad).replicas == 13


def test_a_few_bad_streams_are_no_reason() -> None:
    run = Run(2)
    run.for_s(150, predicted(2))
    assert run.tick(predicted(2), ended=scores(*[0.1] * 9)).replicas == 2


def test_no_step_down_while_readers_get_less_than_promised() -> None:
    run = Run(6)
    run.for_s(600, predicted(6))
    spec_down = [run.tick(predicted(3), ready=5, ended=scores(*[0.5] * 50)).replicas for _ in range(40)]
    assert min(spec_down) == 6


def test_not_attainable_takes_all_there_is_and_says_what_it_gives() -> None:
    decision = Run(2).tick(predicted(None))
    assert (decision.replicas, decision.attainable) == (20, False)
    assert "even 20 replicas are predicted to give" in decision.message


def test_a_limit_on_speed_upwards() -> None:
    run = Run(2, replace(SPEC, behavior=replace(SPEC.behavior, up_step=4)))
    assert run.for_s(180, predicted(12)) == [6, 6, 6, 6, 6, 10, 10, 10, 10, 10, 12, 12]


def test_upward_stabilisation_waits_for_the_whole_window() -> None:
    run = Run(2, replace(SPEC, behavior=replace(SPEC.behavior, up_stabilization_s=60)))
    run.for_s(120, predicted(2))
    assert run.for_s(90, predicted(8)) == [2, 2, 2, 2, 8, 8]


def test_bounds_are_the_users_word_even_without_data() -> None:
    fault = Fault(Reason.DATA_MISSING, "nothing")
    assert Run(1, replace(SPEC, min_replicas=3)).tick(None, fault=fault).replicas == 3
    assert Run(30).tick(predicted(30)).replicas == 20


def test_to_zero_when_idle_and_back_on_the_first_request() -> None:
    run = Run(2, replace(SPEC, min_replicas=0, behavior=replace(SPEC.behavior, idle_s=600)))
    run.for_s(300, predicted(2))
    start_s = run.now_s
    history = []
    while run.replicas and run.now_s < start_s + 3000:
        history.append(run.tick(predicted(1, 0.0), open_streams=0, idle_s=run.now_s + 15 - start_s).replicas)
    assert history[-2:] == [1, 0]
    assert run.now_s - start_s >= 600
    quiet = run.for_s(900, predicted(1, 0.0), open_streams=0, idle_s=3000.0, rate_rps=0.0)
    assert set(quiet) == {0}
    decision = run.tick(predicted(1, 0.1), open_streams=0, idle_s=3.0)
    assert (decision.replicas, decision.reason) == (1, Reason.FIRST_REQUEST)


def test_a_held_stream_wakes_a_fleet_that_has_just_gone() -> None:
    run = Run(0, replace(SPEC, min_replicas=0))
    assert run.tick(None, open_streams=1, waiting=1, idle_s=900.0).replicas == 1
    assert Run(0, replace(SPEC, min_replicas=0)).tick(None, open_streams=0, idle_s=900.0).replicas == 0


def test_zero_is_not_reached_where_it_is_not_allowed() -> None:
    run = Run(1)
    assert set(run.for_s(3000, predicted(1, 0.0), open_streams=0, idle_s=9999.0)) == {1}


def test_advice_goes_all_the_way_and_moves_nothing() -> None:
    run = Run(6, replace(SPEC, mode=Mode.ADVISORY))
    assert run.for_s(600, predicted(2))[-1] == 2
    assert run.replicas == 6


def test_gpu_seconds_are_counted_against_the_baseline_over_a_restart() -> None:
    run = Run(6)
    run.for_s(3600 + 15, predicted(6))
    assert run.memory.replica_s == pytest.approx(6 * 3600)
    assert run.memory.baseline_s == pytest.approx(20 * 3600)


def test_a_pod_that_drains_still_holds_its_gpus() -> None:
    before = Memory(at_s=0.0, replicas=2)
    draining = replace(seen(100.0, 2), pods=Pods(2, 2, 2, going=3))
    assert decide(SPEC, draining, predicted(2), before).memory.replica_s == 500.0


def test_memory_stays_small_over_days() -> None:
    run = Run(10)
    for i in range(4000):
        run.tick(predicted(1 + (i * 7) % 19))
    assert len(json.dumps(run.memory.to_dict())) < 4000


def test_a_memory_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"status\.memory"):
        Memory.from_dict({"asks": [{"replicas": 3}]})


# Any history

ticks = st.lists(
    st.fixed_dictionaries({
        "least": st.one_of(st.none(), st.integers(1, 30)),
        "lost": st.booleans(),
        "fault": st.sampled_from([None, None, None, Reason.DATA_MISSING, Reason.DATA_CONTRADICTORY]),
        "late": st.integers(0, 3),
        "waiting": st.integers(0, 60),
        "good": st.integers(0, 40),
        "bad": st.integers(0, 40),
        "busy": st.booleans(),
    }),
    min_size=1, max_size=60,
)  # fmt: skip
specs = st.builds(
    lambda least, more, up, down, step, period: replace(
        SPEC, min_replicas=least, max_replicas=max(1, least + more),
        behavior=replace(SPEC.behavior, up_stabilization_s=up, down_stabilization_s=down, up_step=step, down_period_s=period),
    ),
    st.integers(0, 4), st.integers(0, 20), st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 60.0, 300.0]),
    st.sampled_from([None, 1, 5]), st.sampled_from([0.0, 60.0]),
)  # fmt: skip


@given(specs, ticks, st.integers(0, 25))
def test_whatever_happens(spec: TargetSpec, history: list[dict[str, object]], start: int) -> None:
    run = Run(start, spec)
    for t in history:
        before, memory = run.replicas, run.memory
        prediction = None if t["lost"] else predicted(t["least"])  # type: ignore[arg-type]
        more = {
            "ready": max(0, before - int(t["late"])),  # type: ignore[call-overload]
            "waiting": t["waiting"],
            "ended": scores(*[1.0] * int(t["good"]), *[0.2] * int(t["bad"])),  # type: ignore[call-overload]
            "fault": Fault(t["fault"], "x") if t["fault"] else None,  # type: ignore[arg-type]
            "open_streams": 20 if t["busy"] else 0,
        }
        decision = run.tick(prediction, **more)
        again = decide(spec, seen(run.now_s, before, **more), prediction, memory)  # type: ignore[arg-type]
        assert again == decision, "the same in gives the same out"
        assert spec.clamp(decision.replicas) == decision.replicas
        assert decision.message
        if t["fault"]:
            assert decision.replicas == spec.clamp(before)
        if spec.min_replicas <= before <= spec.max_replicas and decision.replicas < before:
            assert before - decision.replicas == 1
            assert not t["lost"]
            assert decision.replicas == 0 or prediction.meets(decision.replicas)  # type: ignore[union-attr]
            assert not t["late"]
        if spec.behavior.up_step is not None and before and spec.min_replicas <= before <= spec.max_replicas:
            assert decision.replicas - before <= spec.behavior.up_step


@given(specs, st.integers(1, 20), st.integers(1, 30))
def test_a_steady_demand_is_settled_for_good(spec: TargetSpec, start: int, least: int) -> None:
    """No flapping: with the same prediction for ever, the number moves one way, ends where it should, and stays."""
    run = Run(start, spec)
    history = [run.replicas, *run.for_s(6000, predicted(least))]
    rises = [b - a for a, b in itertools.pairwise(history[1:])]
    assert all(d >= 0 for d in rises) or all(d <= 0 for d in rises)
    assert history[-1] == max(1, spec.clamp(least))
