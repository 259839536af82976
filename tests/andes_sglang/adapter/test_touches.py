"""What is wanted again is used, so that a tree which evicts by use gives up what is not: when, in which order, and how much."""

from __future__ import annotations

import pytest

from andes_sglang.adapter.touches import LOOKUPS_PER_ANSWER, MAX_TOUCHED, Touches


@pytest.fixture
def looked_up() -> list[str]:
    return []


@pytest.fixture
def wanted() -> list[tuple[str, float]]:
    return []


@pytest.fixture
def touches(looked_up: list[str], wanted: list[tuple[str, float]]) -> Touches:
    return Touches(looked_up.append, lambda: wanted)


def test_what_returns_soonest_is_used_last_and_only_after_an_answer_has_ended(
    touches: Touches, looked_up: list[str], wanted: list[tuple[str, float]]
) -> None:
    wanted += [("b", 12.0), ("c", 13.0), ("a", 11.0)]
    touches.look_again()
    assert looked_up == []
    touches.answer_ended()
    touches.look_again()
    assert looked_up == ["c", "b", "a"]
    touches.look_again()
    assert looked_up == ["c", "b", "a"]


def test_many_are_looked_up_after_several_answers(
    touches: Touches, looked_up: list[str], wanted: list[tuple[str, float]]
) -> None:
    wanted += [(str(k), float(k)) for k in range(2 * LOOKUPS_PER_ANSWER + 1)]
    for ended in range(12):
        touches.look_again()
        assert len(looked_up) == ended // 3 * len(wanted)
        touches.answer_ended()


def test_of_very_many_those_that_return_first_are_used(
    touches: Touches, looked_up: list[str], wanted: list[tuple[str, float]]
) -> None:
    wanted += [(str(k), float(k)) for k in range(3 * MAX_TOUCHED)]
    for _ in range(MAX_TOUCHED // LOOKUPS_PER_ANSWER):
        touches.answer_ended()
    touches.look_again()
    assert looked_up == [str(k) for k in reversed(range(MAX_TOUCHED))]
