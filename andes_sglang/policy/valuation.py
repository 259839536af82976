"""What it is worth to run a request now: two valuations that ``andes`` ranks by.

:class:`HorizonValue` is the paper's (arXiv 2404.16283v2, section 4): QoE at a horizon if served from now on, less QoE if
waiting until then, per KV token. :class:`FinalValue` looks to the end of the answer: the utility of its *final* QoE that a
short delay costs, per second of engine that the rest of it takes. Through an alpha-fair utility (Mo and Walrand 2000) with
QoE as the good, so that a reader who has little counts for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from andes_sglang.lengths import PRIOR_MEDIAN_TOKENS
from andes_sglang.qoe import Readers
from andes_sglang.state import Phase, RequestTable, SchedulerState

__all__ = [
    "FinalValue", "HorizonValue", "Valuation", "final_qoe", "kv_binds", "remaining_tokens", "steady_step_s", "utility",
]  # fmt: skip

Array = npt.NDArray[np.float64]
ALL = slice(None)

UTILITY_OFFSET = 0.05
"""QoE added before the utility is taken, so that a stream at 0 is worth a finite amount (our choice, not varied)."""
MIN_REMAINING_SHARE, MIN_REMAINING_TOKENS = 0.3, 16.0
"""What an answer that has outlived its expected length still has to come, of what it has, and in tokens (assumed)."""


class Valuation(Protocol):
    """Arrays of shape (K, N): a row for each of K decode steps, a column for each request."""

    def step_s(self, sizes: Sequence[int]) -> Array:
        """Seconds of a decode step at each of K batch sizes, shape (K, 1)."""
        ...

    def if_served(self, first_s: Any, step_s: Any, rows: Any = ALL) -> Array:
        """What each of ``rows`` is worth if it gets a token after ``first_s`` and then one every ``step_s``."""
        ...

    def gain(self, step_s: Array) -> Array:
        """By how much running now is worth more than waiting, not below 0; step_s: shape (K, 1)."""
        ...

    def cost(self, step_s: Array) -> Array:
        """What it takes of the engine: the unit is the valuation's own."""
        ...


def steady_batch(state: SchedulerState, context: Array) -> float:
    """Requests of the mean ``context``, in tokens, shape (N,), that run at a time when as many run as can."""
    return max(1.0, min(float(state.max_running), float(len(context)), state.pool_tokens / float(context.mean())))


def steady_step_s(state: SchedulerState, context: Array, most: float = np.inf) -> Array:
    """Seconds of a decode step of that batch, at most ``most`` requests, shape (1, 1)."""
    batch = min(most, steady_batch(state, context))
    return np.array([[state.latency.decode_s(batch, batch * float(context.mean()))]])


def kv_binds(state: SchedulerState) -> bool:
    """Whether something that does not run finds no room, the longest of those that wait in the KV pool or any in the batch.
    Otherwise all that is short is prefill."""
    t, running = state.requests, state.requests.is_in(Phase.RUNNING)
    longest = float(t.context_tokens[t.is_in(Phase.WAITING)].max(initial=0.0))
    full = int(np.count_nonzero(running)) + state.running_reserved >= state.max_running
    return full or float(t.kv_tokens.sum()) + longest > state.pool_tokens


def new_tokens(t: RequestTable) -> Array:
    """Tokens to compute before each waiting request runs, at least 1, shape (N,)."""
    return np.maximum(t.context_tokens - t.cached_tokens, 1.0)


def expected_tokens(t: RequestTable) -> Array:
    """Lengths that the answers are expected to have, shape (N,)."""
    return np.where(np.isnan(t.expected_tokens), PRIOR_MEDIAN_TOKENS, t.expected_tokens)


def remaining_tokens(t: RequestTable) -> Array:
    """Tokens that each answer is expected to have still to come, shape (N,). Not bounded by ``max_tokens``: where clients ask
    for exactly one length, as load generators do, that would tell it."""
    total = expected_tokens(t)
    least = np.maximum(MIN_REMAINING_SHARE * t.output_tokens, MIN_REMAINING_TOKENS)
    left: Array = np.maximum(total - t.output_tokens, least)
    return left


@dataclass(frozen=True, eq=False)
class HorizonValue:
    """guarded_tokens: KV tokens that each request costs, shape (N,)."""

    state: SchedulerState
    horizon_s: float
    guarded_tokens: Array

    def step_s(self, sizes: Sequence[int]) -> Array:
        mean_context = float(np.maximum(self.state.requests.context_tokens, 1.0).mean())
        return np.array([[self.state.latency.decode_s(b, b * mean_context)] for b in sizes])

    def if_served(self, first_s: Any, step_s: Any, rows: Any = ALL) -> Array:
        readers = self.state.requests.readers
        chosen = readers if rows is ALL else readers.take(rows)
        return np.asarray(chosen.served(self.state.now_s, self.horizon_s, first_s, step_s))

    def gain(self, step_s: Array) -> Array:
        t, latency = self.state.requests, self.state.latency
        return_s = latency.resume_s(new_tokens(t), t.cached_tokens, t.host_tokens)
        resume_s = np.where(t.is_in(Phase.WAITING), return_s, 0.0)
        wait = t.readers.waiting(self.state.now_s, self.horizon_s)
        return np.maximum(self.if_served(resume_s + step_s, step_s) - wait, 0.0)

    def cost(self, step_s: Array) -> Array:  # noqa: ARG002
        return self.guarded_tokens


@dataclass(frozen=True, eq=False)
class FinalValue:
    """delay_s: how much later a request would run if not now. fairness: exponent of :func:`utility`. remaining: tokens that
    each answer has still to come, shape (N,), at least 1. work_exponent: of the cost, 1 for value per second; below 1
    long prompts and long answers count for less than they take."""

    state: SchedulerState
    delay_s: float
    fairness: float
    remaining: Array
    work_exponent: float = 1.0

    def step_s(self, sizes: Sequence[int]) -> Array:
        return np.concatenate([steady_step_s(self.state, self._context, b) for b in sizes])

    def if_served(self, first_s: Any, step_s: Any, rows: Any = ALL) -> Array:
        readers = self.state.requests.readers
        chosen = readers if rows is ALL else readers.take(rows)
        return utility(final_qoe(chosen, self.state.now_s, first_s, step_s, self.remaining[rows]), self.fairness)

    def gain(self, step_s: Array) -> Array:
        start_s = self._prefill_s() + step_s
        return np.maximum(self.if_served(start_s, step_s) - self.if_served(self.delay_s + start_s, step_s), 0.0)

    def cost(self, step_s: Array) -> Array:
        """Seconds of engine: the prefill, and of each decode step the larger of its shares of batch and KV pool."""
        batch = steady_batch(self.state, self._context)
        share = np.maximum(1.0 / batch, self._context / self.state.pool_tokens)
        return np.asarray((self._prefill_s() + self.remaining * step_s * share) ** self.work_exponent)

    @property
    def _context(self) -> Array:
        """Of each request half-way through the rest of its answer."""
        return self.state.requests.context_tokens + 0.5 * self.remaining

    def _prefill_s(self) -> Array:
        """Without what a chunk costs the requests in it."""
        t = self.state.requests
        per_token_s = self.state.latency.prefill.coefficients[1]
        return np.where(t.is_in(Phase.WAITING), per_token_s * (t.context_tokens - t.cached_tokens), 0.0)


def utility(qoe: Array, fairness: float) -> Array:
    """Alpha-fair utility of QoE: ``q ** fairness`` (1: the sum of QoE counts), the logarithm at 0 (proportional fairness),
    ``-(q ** fairness)`` below it (towards minus infinity: max-min)."""
    q = np.maximum(qoe, 0.0) + UTILITY_OFFSET
    worth: Array = np.log(q) if fairness == 0 else np.sign(fairness) * q**fairness
    return worth


def final_qoe(readers: Readers, now_s: float, first_s: Array, interval_s: float, tokens: Array) -> Array:
    """Final QoE, shape (N,), if ``tokens`` >= 1 more, the last, come at ``now_s + first_s + k * interval_s``.

    The new tokens are digested at the later of two linear sequences, of the reader and of the deliveries, which cross at
    most once (version 2, section 3; as :meth:`~andes_sglang.qoe.Readers.served`, with an end).
    """
    pace = 1.0 / readers.tds
    delivery = now_s + first_s - readers.start_s
    start = np.maximum(readers.end_s, delivery)
    slower = interval_s - pace
    with np.errstate(divide="ignore", invalid="ignore"):
        paced = np.where(slower > 0, np.clip(np.ceil((start - delivery) / slower), 0.0, tokens), tokens)
    late = tokens - paced
    digest_sum = paced * start + pace * paced * (paced - 1) / 2
    digest_sum += late * delivery + interval_s * (tokens * (tokens - 1) - paced * (paced - 1)) / 2
    n = readers.delivered + tokens
    ideal_sum = pace * (n * (n - 1) - readers.delivered * (readers.delivered - 1)) / 2
    last = np.where(late > 0, delivery + (tokens - 1) * interval_s, start + (tokens - 1) * pace)
    lateness_s = readers.lateness_s + digest_sum - ideal_sum
    score: Array = np.clip(1.0 - lateness_s / (n * (last + pace) - n * n * pace / 2), 0.0, 1.0)
    return score
