"""The least number of replicas for a target's objectives, on the real simulator with a small engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from andes_operator.names import Statistic
from andes_operator.observe import Observation, Pods, Request
from andes_operator.spec import Demand, Objective, ScaleTargetRef, TargetSpec
from andes_operator.whatif import MOST_LOAD_FACTOR, Arrival, Prediction, answer
from andes_sglang.qoe import QoETarget
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.replica import RefusedError

SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(Objective("*", Statistic.MEAN, 0.9), Objective("code", Statistic.PERCENTILE, 0.5, 5.0)),
    min_replicas=1,
    max_replicas=50,
    demand=Demand(service="gateway"),
)
ENGINE = EngineModel(Costs(0.02, 0.02, 0.0, 0.01, 1e-5), kv_capacity_tokens=4096, max_running=8)
SPAN_S = 60.0


def demand(rate_rps: float, class_name: str = "reading") -> tuple[Arrival, ...]:
    return tuple(Arrival(i / rate_rps, class_name, 100, 100, QoETarget()) for i in range(round(SPAN_S * rate_rps)))


def ask(
    arrivals: tuple[Arrival, ...], spec: TargetSpec = SPEC, last: Prediction | None = None, current: int = 0
) -> Prediction:
    return answer(spec, arrivals, SPAN_S, ENGINE, lambda: None, last, current)


def test_the_least_number_and_not_one_fewer() -> None:
    found = ask(demand(10.0))
    assert found.least is not None
    assert 15 <= found.least <= 25, "an engine makes 44 tokens/s of the 1000 that are asked for"
    assert found.meets(found.least)
    assert not found.meets(found.least - 1)
    assert found.rate_rps == pytest.approx(10.0)


@pytest.mark.parametrize(("low", "high"), [(0, 50), (30, 50), (1, 5)])
def test_bounds_are_kept(low: int, high: int) -> None:
    free = ask(demand(10.0)).least
    assert free is not None
    found = ask(demand(10.0), replace(SPEC, min_replicas=low, max_replicas=high))
    assert found.least == (max(low, free) if free <= high else None)
    assert found.meets(high) == (free <= high)
    assert all(max(1, low) <= n <= high for n in found.values)


def test_a_second_question_begins_at_the_answer_to_the_first() -> None:
    first = ask(demand(10.0))
    again = ask(demand(10.0), last=first)
    assert again.least == first.least is not None
    assert sorted(again.values) == [first.least - 1, first.least], "enough, and one fewer is not"
    more = ask(demand(15.0), last=first)
    assert more.least is not None
    assert min(more.values) >= 1.5 * first.least - 3, "half as much again in demand, half as much again in replicas"


def test_a_first_question_begins_at_what_there_is_unless_that_is_far_off() -> None:
    cold = ask(demand(10.0))
    assert cold.least is not None
    assert sorted(ask(demand(10.0), current=cold.least).values) == [cold.least - 1, cold.least]
    assert ask(demand(10.0), current=1).values == cold.values


def test_a_class_without_demand_is_content_and_margin_is_kept() -> None:
    found = ask(demand(10.0))
    assert found.least is not None
    value, other = found.values[found.least]
    assert value is not None
    assert value >= 0.91
    assert other is None
    assert found.sentence(found.least) == f"mean QoE of all classes {value:.3f} (target 0.9)"
    strict = replace(SPEC, behavior=replace(SPEC.behavior, margin=0.2))
    all_of_it = ask(demand(10.0), strict)
    assert all_of_it.least is not None
    assert all_of_it.values[all_of_it.least] == (1.0, None), "a QoE of 1 is as good as it gets"


def test_each_class_has_its_objective() -> None:
    eager = tuple(replace(a, reader=QoETarget(0.5, 11.0)) for a in demand(3.0, "code"))
    both = tuple(sorted((*demand(3.0), *eager), key=lambda a: a.at_s))
    lax, strict = (
        ask(both, replace(SPEC, objectives=(Objective("reading", Statistic.MEAN, 0.9), code))).least
        for code in (Objective("code", Statistic.MEAN, 0.2), Objective("code", Statistic.SHARE_ABOVE, 0.9, 0.9))
    )
    assert lax is not None
    assert strict is not None
    assert strict > lax


def test_what_no_engine_can_hold_is_said() -> None:
    with pytest.raises(RefusedError, match="prompt_tokens 5000"):
        ask((Arrival(0.0, "reading", 5000, 10, QoETarget()),))


def holding(requests: int, *, replicas: int = 4, refused: bool = False) -> Observation:
    """Ten requests/s for the last minute, and ``requests`` in the engines."""
    recent = tuple(Request(940.0 + k / 10, "reading", 100, 50, True, refused and k % 2 > 0) for k in range(600))
    pods = Pods(replicas, replicas, replicas)
    return Observation(1000.0, pods, 10.0, recent=recent, engine_requests=requests)


def stays(*seconds: float, load_factor: float = 1.0) -> Prediction:
    return Prediction(10.0, SPEC.objectives, 0.01, 4, {4: (1.0, None)}, {4: tuple(sorted(seconds))}, load_factor)


@pytest.mark.parametrize(
    ("held", "factor"), [(100, 1.0), (150, 1.5), (50, 0.5), (5000, MOST_LOAD_FACTOR), (0, 1 / MOST_LOAD_FACTOR)]
)
def test_what_the_engines_hold_beyond_what_the_requests_tell_of_is_load(held: int, factor: float) -> None:
    assert stays(10.0).load_factor_by(holding(held), 60.0) == pytest.approx(factor, rel=0.02)
    again = stays(10.0, load_factor=2.0).load_factor_by(holding(held), 60.0)
    assert again == pytest.approx(factor, rel=0.02), "as much as is held, whatever was played"


def test_what_lasts_counts_in_full_and_a_moment_by_its_share_of_the_window() -> None:
    asked = replace(stays(10.0), at_s=985.0)
    assert asked.load_factor_by(holding(200), 60.0) == pytest.approx(1.25, rel=0.01)
    assert asked.load_factor_by(holding(200), 15.0) == pytest.approx(2.0, rel=0.01)


def test_chance_is_no_load() -> None:
    spread = stays(*range(1, 20))  # ten seconds on average: a hundred, give or take five and a half
    assert spread.load_factor_by(holding(105), 60.0) == spread.load_factor_by(holding(95), 60.0) == 1.0
    assert spread.load_factor_by(holding(125), 60.0) == pytest.approx(1.2, abs=0.02)


def test_what_is_not_confirmed_fades() -> None:
    asked = replace(stays(10.0, load_factor=1.5), at_s=940.0)
    for unknown in (holding(500, replicas=5), replace(holding(50), recent=())):  # five were not played; nothing came
        assert asked.load_factor_by(unknown, 60.0) == pytest.approx(1.4)
        assert asked.load_factor_by(unknown, 6.0) == 1.0


def test_an_idle_fleet_says_nothing() -> None:
    long_ago = replace(holding(0), now_s=5000.0)
    assert stays(10.0).load_factor_by(long_ago, 60.0) == 1.0


def test_load_is_told_by_those_who_were_served_however_long_ago() -> None:
    half = stays(10.0).load_factor_by(holding(50, refused=True), 60.0)
    assert half == pytest.approx(1.0, abs=0.03), "those who were turned away hold nothing"
    longer = stays(100.0).load_factor_by(holding(1000), 60.0)
    assert longer == pytest.approx(1.0, abs=0.01), "who came before the first that is remembered may be there still"


def test_how_long_requests_stay_with_as_many_as_there_are_is_known_afterwards() -> None:
    found = ask(demand(10.0), current=40)
    assert found.least is not None
    assert found.least < 40
    assert max(found.stays_s[40]) <= max(found.stays_s[found.least])
    assert min(found.stays_s[40]) > 1.0, "a hundred tokens at 20 ms or more"
