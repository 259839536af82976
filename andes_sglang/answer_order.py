"""Which answer will be the longer? A ranking learned from finished answers, by who asks and what: the policy ``ltr`` uses it.

    order = AnswerOrder()
    order.expected_tokens(asked)                  # tokens; what is learned is their order
    order.learn(asked, 431, finished=True)

A score linear in hashed features (:func:`~andes_sglang.lengths.length_keys`), trained as the authors of arXiv 2408.15792
train a language model on prompts: by ListMLE (Xia et al. 2008), on the answers that ended last. A score becomes a length by
its place among theirs. No text of a prompt is kept; memory is bounded.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from andes_sglang.lengths import PRIOR_MEDIAN_TOKENS, Asked

__all__ = ["AnswerOrder"]

Array = npt.NDArray[np.float64]

FEATURES, WIDTH = 1 << 14, 5
"""Weights, and features of a request, of which the first stands for none."""
LIST_ANSWERS, STEP_ANSWERS = 64, 8
"""Answers that are ranked in a step of training, and answers from one step to the next."""
KEPT_ANSWERS = 256
"""Answers whose lengths say what a score stands for; before ``LIST_ANSWERS`` nothing is said."""
RATE = 0.3
"""Of AdaGrad (chosen; 0.1 and 1 differ by hundredths of Kendall's tau)."""


class AnswerOrder:
    """See the module; an :class:`~andes_sglang.lengths.AnswerLengths`."""

    def __init__(self) -> None:
        self._weights: Array = np.zeros(FEATURES)
        self._power: Array = np.full(FEATURES, 1e-8)
        self._ended: deque[tuple[list[int], int]] = deque(maxlen=KEPT_ANSWERS)
        self._learned = 0
        self._scores: Array = np.zeros(1)
        self._lengths: Array = np.full(1, PRIOR_MEDIAN_TOKENS)

    def expected_tokens(self, asked: Asked) -> float:
        """What the request says; else the length that so many of the last answers are shorter than as have a lower score."""
        if asked.told_tokens is not None:
            return float(asked.told_tokens)
        score = float(self._weights[_features(asked)].sum())
        return float(np.interp(score, self._scores, self._lengths))

    def learn(self, asked: Asked, output_tokens: int, *, finished: bool) -> None:  # noqa: ARG002
        """An answer has ended. One that was cut is ranked by what it has."""
        self._ended.append((_features(asked), output_tokens))
        self._learned += 1
        if self._learned >= LIST_ANSWERS and self._learned % STEP_ANSWERS == 0:
            self._train()

    def _train(self) -> None:
        features = np.array([features for features, _ in self._ended])
        lengths = np.array([tokens for _, tokens in self._ended], dtype=np.float64)
        rows = features[-LIST_ANSWERS:][np.argsort(-lengths[-LIST_ANSWERS:], kind="stable")]
        slope = list_mle_slope(self._weights[rows].sum(axis=1))
        total = np.bincount(rows.ravel(), np.repeat(slope, WIDTH), FEATURES)
        total[0] = 0.0
        self._power += total * total
        self._weights -= RATE * total / np.sqrt(self._power)
        self._scores = np.sort(self._weights[features].sum(axis=1))
        self._lengths = np.sort(lengths)


def list_mle_slope(scores: Array) -> Array:
    """Of the negative log likelihood that ``scores``, shape (n,), rank a list as it stands, by each score: the first is drawn
    with probability softmax(scores), the next of those left, and so on (Plackett and Luce)."""
    weight = np.exp(scores - scores.max())
    left = np.cumsum(weight[::-1])[::-1]
    slope: Array = weight * np.cumsum(1.0 / np.maximum(left, 1e-300)) - 1.0
    return slope


def _features(asked: Asked) -> list[int]:
    """Numbers below ``FEATURES``, filled up to ``WIDTH`` with 0."""
    numbers = [1 + int.from_bytes(key, "big") % (FEATURES - 1) for key in asked.as_keys()]
    return numbers + [0] * (WIDTH - len(numbers))
