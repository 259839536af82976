"""The least number of replicas by bisection, with as few fleets played as that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.names import Statistic
from andes_operator.spec import Demand, Objective, ScaleTargetRef, TargetSpec
from andes_operator.whatif import Arrival, Question, answer
from andes_sglang.qoe import QoETarget
from andes_sglang.sketch import Sketch

SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(Objective("*", Statistic.MEAN, 0.9), Objective("code", Statistic.PERCENTILE, 0.5, 5.0)),
    min_replicas=1,
    max_replicas=50,
    demand=Demand(service="gateway"),
)
QUESTION = Question(
    "any", "andes", (), tuple(Arrival(float(i), "reading", 100, 100, QoETarget()) for i in range(60)), 60.0
)


class Cliff:
    """A fleet that is good from ``least`` replicas on."""

    def __init__(self, least: int, at: int = 1) -> None:
        self.least, self.at = least, at
        self.played: list[int] = []

    def guess(self, question: Question) -> int:
        return self.at

    def qoe(self, question: Question, replicas: int) -> Mapping[str, Sketch]:
        self.played.append(replicas)
        sketch = Sketch()
        sketch.add(1.0 if replicas >= self.least else 0.5)
        return {"reading": sketch}


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 10), st.integers(1, 50))
def test_the_least_number_is_found_wherever_it_starts(cliff: int, guess: int, low: int, span: int) -> None:
    spec = replace(SPEC, min_replicas=low, max_replicas=low + span)
    fleet = Cliff(cliff, guess)
    found = answer(spec, QUESTION, fleet)
    truth = max(1, low, cliff)
    assert found.least == (truth if truth <= low + span else None)
    assert len(fleet.played) == len(set(fleet.played)) <= 12
    assert found.meets(low + span) == (truth <= low + span)


def test_near_what_there_is_it_takes_few() -> None:
    fleet = Cliff(20, at=20)
    answer(SPEC, QUESTION, fleet)
    assert fleet.played == [20, 19], "enough, and one fewer is not"


def test_a_second_question_begins_at_the_answer_to_the_first() -> None:
    first = answer(SPEC, QUESTION, Cliff(20, at=1))
    fleet = Cliff(30, at=1)
    faster = Question("any", "andes", (), QUESTION.demand, 40.0)
    assert answer(SPEC, faster, fleet, first).least == 30
    assert fleet.played == [30, 29], "half as much again in demand, half as much again in replicas"


def test_a_class_without_demand_is_content_and_margin_is_kept() -> None:
    found = answer(SPEC, QUESTION, Cliff(3))
    assert found.values[3] == (1.0, None)
    assert found.sentence(3) == "mean QoE of all classes 1.000 (target 0.9)"
    strict = replace(SPEC, behavior=replace(SPEC.behavior, margin=0.2))
    assert answer(strict, QUESTION, Cliff(3)).least == 3, "a QoE of 1 is as good as it gets"


def test_what_cannot_be_played_is_said() -> None:
    class Lost:
        def guess(self, question: Question) -> int:
            return 1

        def qoe(self, question: Question, replicas: int) -> Mapping[str, Sketch]:
            raise ValueError(f"profile {question.profile!r} is not known")

    with pytest.raises(ValueError, match="profile 'any'"):
        answer(SPEC, QUESTION, Lost())
