"""The least number of replicas for a target's objectives, on the real simulator with a small engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from andes_operator.names import Statistic
from andes_operator.spec import Demand, Objective, ScaleTargetRef, TargetSpec
from andes_operator.whatif import Arrival, Prediction, answer
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
