"""What is learned of which answer is the longer."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.answer_order import KEPT_ANSWERS, LIST_ANSWERS, AnswerOrder, list_mle_slope
from andes_sglang.lengths import PRIOR_MEDIAN_TOKENS, Asked


def taught(answers: int, seed: int = 1) -> AnswerOrder:
    """Tenant ``k`` has answers of about ``100 * 2 ** k`` tokens."""
    rng, order = np.random.default_rng(seed), AnswerOrder()
    for _ in range(answers):
        k = int(rng.integers(0, 4))
        tokens = round(100 * 2**k * float(np.exp(rng.normal(0, 0.3))))
        order.learn(Asked(500, tenant=f"t{k}"), tokens, finished=True)
    return order


def test_until_enough_is_known_all_are_alike() -> None:
    order = taught(LIST_ANSWERS - 1)
    assert {order.expected_tokens(Asked(500, tenant=f"t{k}")) for k in range(4)} == {PRIOR_MEDIAN_TOKENS}


def test_the_order_is_learned_and_stands_for_lengths_that_came() -> None:
    order = taught(800)
    expected = [order.expected_tokens(Asked(500, tenant=f"t{k}")) for k in range(4)]
    assert expected == sorted(expected)
    assert expected[0] < 200
    assert expected[3] > 500


def test_what_a_request_says_overrules_it() -> None:
    assert taught(200).expected_tokens(Asked(500, told_tokens=7, tenant="t3")) == 7.0


def test_a_new_order_is_learned_when_the_old_one_no_longer_holds() -> None:
    order = taught(400)
    for _ in range(4 * KEPT_ANSWERS):
        order.learn(Asked(500, tenant="t0"), 3000, finished=True)
        order.learn(Asked(500, tenant="t3"), 30, finished=True)
    assert order.expected_tokens(Asked(500, tenant="t0")) > order.expected_tokens(Asked(500, tenant="t3"))


def test_the_slope_is_that_of_the_likelihood_of_the_order() -> None:
    scores = np.array([0.3, -1.2, 2.0, 0.0])

    def loss(scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return sum(float(np.log(np.exp(scores[k:]).sum()) - scores[k]) for k in range(len(scores)))

    step = 1e-6
    by_hand = [(loss(scores + step * one) - loss(scores - step * one)) / (2 * step) for one in np.eye(4)]
    assert list_mle_slope(scores) == pytest.approx(by_hand, abs=1e-6)


def test_no_text_of_a_prompt_is_kept() -> None:
    order = AnswerOrder()
    order.learn(Asked(10, prompt_head=b"the secret plan"), 10, finished=True)
    assert "secret" not in repr(vars(order))
