"""Speculative decoding: what drafts cost and yield, and how long each request's draft should be. Pure maths.

A step drafts up to K tokens for each request by a small model, one draft step after the other, and verifies them all in one
pass of the large one. Of a request's draft the tokens before the first that is refused are kept, and one more comes from the
pass itself. With ``a`` the probability that a token is accepted where all before it were, a draft of k is worth
``1 + a + a^2 + ... + a^k`` tokens on average (Leviathan et al., arXiv 2211.17192, equation 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

__all__ = ["Speculation", "draft_lengths", "needed_drafts", "spend", "tokens_per_step"]

Array = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Speculation:
    """acceptance: of a draft token where all before it were accepted, in (0, 1). spread: requests differ: theirs is between
    ``acceptance * (1 - spread)`` and ``acceptance * (1 + spread)``. draft_fixed_s: a step of the draft model, whatever its
    batch; draft_token_s, verify_token_s: each drafted token, in the draft model and in the pass of the large one. max_draft:
    longest draft. Times in seconds. Raises ``ValueError`` naming field and value."""

    acceptance: float
    draft_fixed_s: float
    draft_token_s: float
    verify_token_s: float
    max_draft: int = 7
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance must be in (0, 1), got {self.acceptance!r}")
        for field in fields(self)[1:4]:
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number of seconds >= 0, got {value!r}")
        if not self.max_draft >= 1:
            raise ValueError(f"max_draft must be >= 1, got {self.max_draft!r}")
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread must be in [0, 1), got {self.spread!r}")

    def step_s(self, depth: float | Array, tokens: float | Array) -> float | Array:
        """What drafts add to a step: ``tokens`` in all, the longest of them ``depth``."""
        return self.draft_fixed_s * depth + (self.draft_token_s + self.verify_token_s) * tokens


def tokens_per_step(acceptance: Array, drafts: Array) -> Array:
    """Tokens that a step yields on average for drafts of these lengths, elementwise."""
    return np.asarray((1.0 - acceptance ** (drafts + 1.0)) / (1.0 - acceptance))


def needed_drafts(needed_tokens: Array, acceptance: Array, max_draft: int) -> Lengths:
    """The shortest drafts that yield ``needed_tokens`` a step on average, or ``max_draft`` where none does; shape (n,). A
    reader who needs one token a step or less needs none (AdaServe, arXiv 2501.12162, section 4.3)."""
    reachable = 1.0 - needed_tokens * (1.0 - acceptance)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.log(reachable) / np.log(acceptance) - 1.0
    lengths = np.where(reachable > 0.0, np.ceil(exact - 1e-9), max_draft)
    return np.clip(np.where(needed_tokens <= 1.0, 0, lengths), 0, max_draft).astype(np.int64)


def spend(least: Lengths, acceptance: Array, budget: int, max_draft: int) -> Lengths:
    """``least`` and ``budget`` more tokens, each where it is likeliest to be accepted: greedy by the product of acceptances,
    which is optimal since that only falls along a draft (TETRIS, arXiv 2502.15197, theorem 1). Shape (n,)."""
    order, _, _ = _likeliest(least, acceptance, max_draft)
    drafts = least.copy()
    np.add.at(drafts, order[:budget], 1)
    return drafts


def _likeliest(least: Lengths, acceptance: Array, max_draft: int) -> tuple[Lengths, Lengths, Array]:
    """Of the tokens beyond ``least``, likeliest first: the request, the place in its draft from 1 on, and the probability
    that it is accepted."""
    depth = np.arange(1, max_draft + 1)
    worth = acceptance[:, None] ** depth
    worth[depth <= least[:, None]] = 0.0
    flat = np.argsort(-worth, axis=None, kind="stable")[: int((max_draft - least).sum())]
    return flat // max_draft, flat % max_draft + 1, worth.ravel()[flat]


def draft_lengths(
    speculation: Speculation, step_s: float, tds: Array, short: npt.NDArray[np.bool_], acceptance: Array
) -> Lengths:
    """How long the draft of each request of a batch should be; shape (n,).

    step_s: of a step without drafts. tds: tokens/s that each reader takes. short: whose reader has no buffer to live on; the
    others need nothing. What each needs to keep its pace, which is more the longer the step gets by it, and of the likeliest
    further tokens as many as make most tokens per second of the step: none, where verifying costs more than they yield. Where
    more readers keep their pace without the former, as in an overload, where needs cannot be met, the latter alone.
    """
    most = speculation.max_draft
    least = np.zeros(len(tds), dtype=np.int64)
    longer_s = step_s
    for _ in range(2):
        least = needed_drafts(np.where(short, longer_s * tds, 0.0), acceptance, most)
        longer_s = step_s + float(speculation.step_s(float(least.max(initial=0)), float(least.sum())))
    choices = [_filled(speculation, step_s, least, acceptance)]
    if least.any():
        choices.append(_filled(speculation, step_s, np.zeros_like(least), acceptance))

    def worth(drafts: Lengths) -> tuple[int, float]:
        """Readers who were short and keep their pace; tokens per second."""
        seconds = step_s + float(speculation.step_s(float(drafts.max(initial=0)), float(drafts.sum())))
        rates = tokens_per_step(acceptance, drafts.astype(np.float64)) / seconds
        return int(np.count_nonzero(short & (rates >= tds))), float(rates.sum())

    return max(choices, key=worth)


def _filled(speculation: Speculation, step_s: float, least: Lengths, acceptance: Array) -> Lengths:
    """``least`` and as many of the likeliest tokens as make most tokens per second of the step."""
    most = speculation.max_draft
    _, depth, worth = _likeliest(least, acceptance, most)
    deepest = np.maximum.accumulate(np.concatenate([[least.max(initial=0)], depth]))
    further = np.concatenate([[0.0], np.cumsum(worth)])
    yields = float(tokens_per_step(acceptance, least.astype(np.float64)).sum()) + further
    seconds = step_s + np.asarray(speculation.step_s(deepest, least.sum() + np.arange(len(further))))
    return spend(least, acceptance, int(np.argmax(yields / seconds)), most)
