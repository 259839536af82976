"""How long drafts should be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.speculation import Speculation, draft_lengths, needed_drafts, spend, tokens_per_step

shares = st.floats(0.1, 0.95)


def expected(acceptance: list[float], drafts: tuple[int, ...]) -> float:
    """Token by token: the k-th is kept where all up to it are."""
    return sum(1 + sum(a**j for j in range(1, k + 1)) for a, k in zip(acceptance, drafts))


@given(st.lists(shares, min_size=1, max_size=4), st.data())
def test_a_step_yields_what_the_sum_over_its_tokens_says(acceptance: list[float], data: st.DataObject) -> None:
    drafts = tuple(data.draw(st.integers(0, 6)) for _ in acceptance)
    found = tokens_per_step(np.array(acceptance), np.array(drafts, dtype=np.float64)).sum()
    assert found == pytest.approx(expected(acceptance, drafts))


@given(st.lists(shares, min_size=1, max_size=4), st.integers(0, 8), st.data())
def test_spending_greedily_is_as_good_as_every_choice(
    acceptance: list[float], budget: int, data: st.DataObject
) -> None:
    least = [data.draw(st.integers(0, 3)) for _ in acceptance]
    drafts = spend(np.array(least), np.array(acceptance), budget, 3)
    assert drafts.sum() == min(sum(least) + budget, 3 * len(least))
    assert (drafts >= least).all()
    every = (
        choice for choice in itertools.product(*(range(n, 4) for n in least)) if sum(choice) <= sum(least) + budget
    )
    assert expected(acceptance, tuple(drafts)) == pytest.approx(max(expected(acceptance, choice) for choice in every))


@given(st.floats(0.0, 6.0), shares)
def test_the_draft_that_a_reader_needs_is_the_shortest_that_does(needed: float, acceptance: float) -> None:
    (length,) = needed_drafts(np.array([needed]), np.array([acceptance]), 5)
    yields = tokens_per_step(np.full(6, acceptance), np.arange(6.0))
    enough = [k for k in range(6) if yields[k] >= needed - 1e-6]
    assert length == (enough[0] if enough else 5)


def test_who_is_ahead_of_its_pace_needs_none_and_who_is_short_gets_it_first() -> None:
    """Verifying three drafts costs more than a step, so nothing is worth drafting for its own sake."""
    dear = Speculation(acceptance=0.8, draft_fixed_s=0.0, draft_token_s=0.0, verify_token_s=0.009, max_draft=5)
    short = np.array([True, False, False])
    drafts = draft_lengths(dear, 0.02, np.array([55.0, 55.0, 5.0]), short, np.full(3, 0.8))
    assert drafts[0] >= 1
    assert drafts[1:].tolist() == [0, 0]
    drafts = draft_lengths(dear, 0.02, np.array([5.0, 5.0, 5.0]), short, np.full(3, 0.8))
    assert not drafts.any(), "a token a step is enough"


def test_where_nobody_can_keep_pace_needs_are_no_reason_to_draft() -> None:
    """Forty readers of a token a millisecond: all that drafts for their needs do is to make steps longer for all of them."""
    dear = Speculation(acceptance=0.8, draft_fixed_s=0.001, draft_token_s=0.0, verify_token_s=0.005, max_draft=5)
    all_short, acceptance = np.ones(40, dtype=bool), np.full(40, 0.8)
    assert not draft_lengths(dear, 0.02, np.full(40, 1000.0), all_short, acceptance).any()
    one = np.full(40, 1.0)
    one[0] = 60.0
    assert draft_lengths(dear, 0.02, one, all_short, acceptance)[0] >= 1, "one of them can, and is worth it"


def test_where_verifying_is_nearly_free_the_likeliest_get_the_most() -> None:
    acceptance = np.array([0.9, 0.5, 0.2])
    cheap = Speculation(acceptance=0.8, draft_fixed_s=0.001, draft_token_s=0.0, verify_token_s=0.002, max_draft=5)
    drafts = draft_lengths(cheap, 0.02, np.full(3, 5.0), np.zeros(3, dtype=bool), acceptance)
    assert drafts[0] > drafts[1] >= drafts[2]
    worst = Speculation(acceptance=0.8, draft_fixed_s=1.0, draft_token_s=0.0, verify_token_s=0.0, max_draft=5)
    assert not draft_lengths(worst, 0.02, np.full(3, 5.0), np.zeros(3, dtype=bool), acceptance).any()


@given(st.lists(shares, min_size=1, max_size=3), st.floats(0.0, 0.004), st.floats(0.0, 0.004))
def test_what_is_left_is_spent_for_most_tokens_per_second(
    acceptance: list[float], fixed_s: float, token_s: float
) -> None:
    """Against every choice of lengths: no more than the one token that a greedy prefix can miss by its depth."""
    speculation = Speculation(
        acceptance=0.8, draft_fixed_s=fixed_s, draft_token_s=0.0, verify_token_s=token_s, max_draft=3
    )
    size = len(acceptance)
    drafts = draft_lengths(speculation, 0.01, np.full(size, 1.0), np.zeros(size, dtype=bool), np.array(acceptance))

    def rate(choice: tuple[int, ...]) -> float:
        return expected(acceptance, choice) / (0.01 + float(speculation.step_s(float(max(choice)), float(sum(choice)))))

    best = max(map(rate, itertools.product(range(4), repeat=size)))
    assert rate(tuple(drafts.tolist())) >= 0.95 * best
    assert rate(tuple(drafts.tolist())) >= rate((0,) * size)


@pytest.mark.parametrize(
    ("field", "value"),
    [("acceptance", 1.0), ("acceptance", 0.0), ("verify_token_s", -1.0), ("draft_fixed_s", float("nan")),
     ("max_draft", 0), ("spread", 1.0)],
)  # fmt: skip
def test_a_wrong_value_is_named(field: str, value: Any) -> None:
    fields = {"acceptance": 0.8, "draft_fixed_s": 0.0, "draft_token_s": 0.0, "verify_token_s": 0.0, field: value}
    with pytest.raises(ValueError, match=f"{field} must be"):
        Speculation(**fields)
