"""The smallest number of replicas for a target's objectives, on the real simulator with a small engine; its correction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from andes_operator.demand import ExpectedDemand
from andes_operator.gateway_report import ObservedRequest
from andes_operator.observe import Observation, PodCounts
from andes_operator.spec import ClassObjective, DemandSource, ScaleTargetRef, TargetSpec
from andes_operator.whatif import MAX_LOAD_FACTOR, QUANTILES, Prediction, predict_replicas
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.policy.fcfs import Fcfs
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.replica import RefusedError
from andes_sglang.state import Decision, SchedulerState

SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(
        ClassObjective("*", QoEObjective(Statistic.MEAN, 0.9)),
        ClassObjective("code", QoEObjective(Statistic.PERCENTILE, 0.5, 5.0)),
    ),
    min_replicas=1,
    max_replicas=50,
    demand=DemandSource(service="gateway"),
)
ENGINE = EngineModel(Costs(0.02, 0.02, 0.0, 0.01, 1e-5), kv_capacity_tokens=4096, max_running=8)
SPAN_S = 60.0
RATE_RPS = 4.0


def demand(rate_rps: float, class_name: str = "reading", target: QoETarget | None = None) -> ExpectedDemand:
    times_s = [i / rate_rps for i in range(round(SPAN_S * rate_rps))]
    requests = tuple(RequestSpec(at_s, 100, 100, target or QoETarget()) for at_s in times_s)
    return ExpectedDemand(requests, (class_name,) * len(requests), SPAN_S)


def both(one: ExpectedDemand, other: ExpectedDemand) -> ExpectedDemand:
    pairs = [*zip(one.requests, one.class_names), *zip(other.requests, other.class_names)]
    pairs.sort(key=lambda pair: pair[0].arrival_s)
    return ExpectedDemand(tuple(r for r, _ in pairs), tuple(name for _, name in pairs), SPAN_S)


def ask(
    expected: ExpectedDemand, spec: TargetSpec = SPEC, last: Prediction | None = None, current: int = 0
) -> Prediction:
    return predict_replicas(spec, expected, ENGINE, lambda: None, last=last, current=current)


@pytest.fixture(scope="module")
def cold() -> Prediction:
    """The answer to the first question, with nothing to begin at."""
    return ask(demand(RATE_RPS))


def fewest(found: Prediction) -> int:
    assert found.fewest is not None
    return found.fewest


def test_the_smallest_number_and_not_one_fewer(cold: Prediction) -> None:
    assert 6 <= fewest(cold) <= 11, "an engine makes 44 tokens/s of the 400 that are asked for"
    assert cold.meets(fewest(cold))
    assert not cold.meets(fewest(cold) - 1)
    assert cold.rate_rps == pytest.approx(RATE_RPS)


@pytest.mark.parametrize(("low", "high"), [(0, 50), (12, 50), (1, 3)])
def test_bounds_are_kept(cold: Prediction, low: int, high: int) -> None:
    found = ask(demand(RATE_RPS), replace(SPEC, min_replicas=low, max_replicas=high), last=cold)
    assert found.fewest == (max(low, fewest(cold)) if fewest(cold) <= high else None)
    assert found.meets(high) == (fewest(cold) <= high)
    assert all(max(1, low) <= n <= high for n in found.values)


def test_a_second_question_begins_at_the_answer_to_the_first(cold: Prediction) -> None:
    again = ask(demand(RATE_RPS), last=cold)
    assert again.fewest == fewest(cold)
    assert sorted(again.values) == [fewest(cold) - 1, fewest(cold)], "enough, and one fewer is not"
    guess = math.ceil(fewest(cold) * 1.25)
    assert guess in ask(demand(1.25 * RATE_RPS), last=cold).values, "a quarter more demand, a quarter more replicas"
    for useless in (replace(cold, fewest=None), replace(cold, rate_rps=0.0)):
        assert ask(demand(RATE_RPS), last=useless).fewest == fewest(cold)


def test_a_first_question_begins_at_the_current_replicas_unless_these_are_far_off(cold: Prediction) -> None:
    assert sorted(ask(demand(RATE_RPS), current=fewest(cold)).values) == [fewest(cold) - 1, fewest(cold)]
    assert ask(demand(RATE_RPS), current=1).values == cold.values
    light = ExpectedDemand((RequestSpec(0.0, 100, 100),), ("reading",), SPAN_S)  # keeps 0.04 replicas busy
    assert 5 in ask(light, current=5).values, "for the residence times with these"
    assert ask(light, replace(SPEC, max_replicas=4), current=5).values.keys() == {1}


def test_a_class_without_demand_meets_its_objective_and_margin_is_kept(cold: Prediction) -> None:
    value, other = cold.values[fewest(cold)]
    assert value is not None
    assert value >= 0.91
    assert other is None
    assert cold.describe(fewest(cold)) == f"QoE mean of all classes {value:.3f} (target 0.9)"
    strict = ask(demand(RATE_RPS), replace(SPEC, behavior=replace(SPEC.behavior, margin=0.2)), last=cold)
    assert strict.values[fewest(strict)] == (1.0, None), "a QoE of 1 is the most there is"
    assert strict.margin == 0.2


def test_each_class_has_its_objective() -> None:
    mixed = both(demand(1.5), demand(1.5, "code", QoETarget(0.5, 11.0)))
    reading = ClassObjective("reading", QoEObjective(Statistic.MEAN, 0.9))
    lax, strict = (
        fewest(ask(mixed, replace(SPEC, objectives=(reading, ClassObjective("code", code)))))
        for code in (QoEObjective(Statistic.MEAN, 0.2), QoEObjective(Statistic.SHARE_ABOVE, 0.9, 0.9))
    )
    assert strict > lax


def test_what_no_engine_can_hold_is_said() -> None:
    with pytest.raises(RefusedError, match="prompt_tokens 5000"):
        ask(ExpectedDemand((RequestSpec(0.0, 5000, 10),), ("reading",), SPAN_S))


class Recorder:
    """First come, first served; keeps what it was shown of each request."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: set[tuple[float, bool, float]] = set()

    def decide(self, state: SchedulerState) -> Decision:
        table = state.requests
        self.seen |= set(zip(table.weight.tolist(), table.yields.tolist(), table.expected_tokens.tolist()))
        return Fcfs().decide(state)


def test_the_policy_is_shown_all_that_a_request_says() -> None:
    requests = tuple(
        RequestSpec(float(i), 100, 100, weight=1.0 + i % 3, yields=i % 2 > 0, expected_tokens=100 + i) for i in range(6)
    )
    recorder = Recorder()
    predict_replicas(SPEC, ExpectedDemand(requests, ("reading",) * 6, 6.0), ENGINE, lambda: recorder, current=1)
    shown = {(r.weight, r.yields, float(r.expected_tokens or 0)) for r in requests if not r.yields}
    assert shown <= recorder.seen


def test_residence_times_with_the_current_replicas_are_known_afterwards(cold: Prediction) -> None:
    found = ask(demand(RATE_RPS), last=cold, current=16)
    residence_s = found.residence_times_s[16]
    assert len(residence_s) == QUANTILES
    assert list(residence_s) == sorted(residence_s)
    assert max(residence_s) <= max(found.residence_times_s[fewest(found)])
    assert min(residence_s) > 1.0, "a hundred tokens at 20 ms or more"
    assert fewest(cold) - 1 not in cold.residence_times_s, "it was ended as soon as the objective was out of reach"


# What a prediction says

VALUES = {2: (0.5, 0.4), 4: (0.911, None), 8: (1.0, 0.52)}
FOUND = Prediction(10.0, SPEC.objectives, 0.01, 4, VALUES)


@pytest.mark.parametrize(
    ("replicas", "values", "meets"),
    [
        (3, (1.0, 1.0), False), (4, (0.911, None), True), (4, (0.91, 0.51), True), (4, (0.909, None), False),
        (4, (0.95, 0.509), False), (5, None, True),
    ],
)  # fmt: skip
def test_it_meets_with_margin_at_least_the_fewest(
    replicas: int, values: tuple[float | None, ...] | None, meets: bool
) -> None:
    simulated = {} if values is None else {replicas: values}
    assert replace(FOUND, values=simulated).meets(replicas) is meets
    assert not replace(FOUND, fewest=None, values=simulated).meets(replicas)


def test_margin_ends_at_one() -> None:
    high = (ClassObjective("*", QoEObjective(Statistic.MEAN, 0.995)),)
    assert replace(FOUND, objectives=high, values={4: (1.0,)}).meets(4)
    assert not replace(FOUND, objectives=high, values={4: (0.999,)}).meets(4)


def test_between_simulated_numbers_the_lower_one_tells() -> None:
    assert [FOUND.at(n) for n in (1, 2, 3, 4, 7, 8, 50)] == [
        None, (0.5, 0.4), (0.5, 0.4), (0.911, None), (0.911, None), (1.0, 0.52), (1.0, 0.52)]  # fmt: skip


def test_statistics_in_words() -> None:
    assert FOUND.describe(8) == ("QoE mean of all classes 1.000 (target 0.9), QoE p5 of code 0.520 (target 0.5)")
    assert FOUND.describe(4) == "QoE mean of all classes 0.911 (target 0.9)"
    assert FOUND.describe(1) == "nothing known"
    assert replace(FOUND, values={1: (None, None)}).describe(1) == "no requests to serve"


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.0, "12 requests/s expected"), (1.04, "11.5 requests/s expected"), (0.96, "12.5 requests/s expected"),
        (1.5, "8 requests/s expected, at 1.5 times their load by what the engines hold"),
        (0.8, "15 requests/s expected, at 0.8 times their load by what the engines hold"),
    ],
)  # fmt: skip
def test_demand_in_words(factor: float, said: str) -> None:
    assert replace(FOUND, rate_rps=12.0, load_factor=factor).demand == said


# What the engines hold


def holding(requests: int, *, replicas: int = 4, refused: bool = False) -> Observation:
    """Ten requests/s for the last minute, and ``requests`` in the engines."""
    recent = tuple(ObservedRequest(940.0 + k / 10, "reading", 100, 50, True, refused and k % 2 > 0) for k in range(600))
    pods = PodCounts(replicas, replicas, replicas)
    return Observation(1000.0, pods, 10.0, recent=recent, engine_requests=requests)


def residing(*seconds: float, load_factor: float = 1.0) -> Prediction:
    return Prediction(10.0, SPEC.objectives, 0.01, 4, {4: (1.0, None)}, {4: tuple(sorted(seconds))}, load_factor)


@pytest.mark.parametrize(
    ("held", "factor"), [(100, 1.0), (150, 1.5), (50, 0.5), (5000, MAX_LOAD_FACTOR), (0, 1 / MAX_LOAD_FACTOR)]
)
def test_what_the_engines_hold_beyond_what_the_requests_explain_is_load(held: int, factor: float) -> None:
    assert residing(10.0).update_load_factor(holding(held), 60.0) == pytest.approx(factor, rel=0.02)
    again = residing(10.0, load_factor=2.0).update_load_factor(holding(held), 60.0)
    assert again == pytest.approx(factor, rel=0.02), "as much as is held, whatever was simulated"


def test_what_lasts_counts_in_full_and_a_moment_by_its_share_of_the_window() -> None:
    asked = replace(residing(10.0), at_s=985.0)
    assert asked.update_load_factor(holding(200), 60.0) == pytest.approx(1.25, rel=0.01)
    assert asked.update_load_factor(holding(200), 15.0) == pytest.approx(2.0, rel=0.01)


def test_chance_is_no_load() -> None:
    spread = residing(*range(1, 20))  # ten seconds on average: a hundred, give or take five and a half
    assert spread.update_load_factor(holding(105), 60.0) == spread.update_load_factor(holding(95), 60.0) == 1.0
    assert spread.update_load_factor(holding(125), 60.0) == pytest.approx(1.2, abs=0.02)


def test_what_is_not_confirmed_fades() -> None:
    asked = replace(residing(10.0, load_factor=1.5), at_s=940.0)
    for unknown in (holding(500, replicas=5), replace(holding(50), recent=())):  # five were not simulated; nothing came
        assert asked.update_load_factor(unknown, 60.0) == pytest.approx(1.4)
        assert asked.update_load_factor(unknown, 6.0) == 1.0


def test_an_idle_fleet_says_nothing() -> None:
    long_ago = replace(holding(0), now_s=5000.0)
    assert residing(10.0).update_load_factor(long_ago, 60.0) == 1.0


def test_load_is_expected_of_served_requests_however_long_ago() -> None:
    half = residing(10.0).update_load_factor(holding(50, refused=True), 60.0)
    assert half == pytest.approx(1.0, abs=0.03), "refused requests hold nothing"
    longer = residing(100.0).update_load_factor(holding(1000), 60.0)
    assert longer == pytest.approx(1.0, abs=0.01), "requests from before the record may be there still"


def test_a_request_is_held_as_long_as_simulated_ones_resided() -> None:
    times = tuple(ObservedRequest(1000.0 - ago_s, "reading", 100, 50, False) for ago_s in (9.5, 4.5, 1.5))
    residence = residing(*range(1, 11))
    look = replace(holding(50), recent=times)
    held = 0.1 + 0.6 + 0.9  # of residence times 1 to 10 s: longer than 9.5, 4.5 and 1.5 s
    earlier = 3 / 9.5 * (0.5 / 10)  # at that rate, for the 0.5 s that one in ten resided beyond the record
    deviation = math.sqrt(0.1 * 0.9 + 0.6 * 0.4 + 0.9 * 0.1 + earlier)
    ratio = (50 - deviation + 1) / (held + earlier + 1)
    assert residence.update_load_factor(look, 60.0) == MAX_LOAD_FACTOR < ratio
    few = replace(look, engine_requests=3)
    assert residence.update_load_factor(few, 60.0) == pytest.approx((3 - deviation + 1) / (held + earlier + 1))


def test_work_without_a_reader_asks_for_no_replica() -> None:
    readers = [RequestSpec(0.5 * i, 300, 100) for i in range(120)]
    offline = [RequestSpec(0.5 * i + 0.25, 300, 400, yields=True) for i in range(120)]
    both = sorted([*readers, *offline], key=lambda r: r.arrival_s)
    names = tuple("offline" if r.yields else "reading" for r in both)
    alone = predict_replicas(SPEC, ExpectedDemand(tuple(readers), ("reading",) * 120, 60.0), ENGINE, lambda: None)
    beside = predict_replicas(SPEC, ExpectedDemand(tuple(both), names, 60.0), ENGINE, lambda: None)
    assert alone == beside
