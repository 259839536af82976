"""ALISE (arXiv 2410.23537, ICCAD 2024), from its published description: shortest remaining time, by lengths foreseen.

An answer is taken to be as long as those to similar prompts were (:class:`~andes_sglang.lengths.SimilarPrompts`; the authors
search for the nearest vectors of a BERT, and bridge gaps with a small network). The rest of a request takes

    T = s T0 + n (alpha s + beta)

with s tokens of context, n tokens still to come, and the engine's own costs as T0, alpha and beta. Its queue is the whole
part of log2 T, so that each one's time is twice that of the one before; with its age it rises by a queue every
``ageing_s``. A waiting request displaces a running one of lower priority. That order is also that of the estimated waits
(the sum of T ahead), so whose wait is the longest leaves the GPU first, whose is the shortest returns first; KV goes to
host memory where the engine has any.

Trade-off: short answers first, whatever their readers have unread. The authors' INT8 of host copies is not here: it is a
matter of the host tier and not of the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from andes_sglang.lengths import SimilarPrompts
from andes_sglang.policy.options import PolicyOptions, growth_tokens, option
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.policy.valuation import new_tokens, remaining_tokens, steady_batch
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Alise", "AliseOptions", "remaining_s"]

Array = npt.NDArray[np.float64]

STAYS_QUEUES = 0.5
"""Of a queue by which what runs may fall behind before it is taken for the next one: answers that outlive their guess would
give way to one another at every token otherwise (our choice)."""


@dataclass(frozen=True, kw_only=True)
class AliseOptions(PolicyOptions):
    """Options of ``alise``."""

    policy: ClassVar[str] = "alise"

    ageing_s: float = option(
        60.0, "seconds", above=0, doc="an age that outweighs twice the remaining time", source="assumed"
    )
    growth_tokens: float = growth_tokens()


class Alise:
    """See the module."""

    name = "alise"
    options_type = AliseOptions
    answer_lengths = SimilarPrompts

    def __init__(self, options: AliseOptions | None = None) -> None:
        self.options = options or AliseOptions()

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        if not len(t):
            return Decision()
        running, age_s = t.is_in(Phase.RUNNING), state.now_s - t.arrival_s
        queue = np.floor(np.log2(remaining_s(state)) - STAYS_QUEUES * running)
        return pack(
            state,
            age_s / self.options.ageing_s - queue,
            growth_tokens=self.options.growth_tokens,
            displacement=Displacement(displacers=~running, victims=(t.preemptible > 0) & (t.kv_tokens > 0)),
        )


def remaining_s(state: SchedulerState) -> Array:
    """Seconds of engine until each answer is expected to end, > 0, shape (N,)."""
    t, latency = state.requests, state.latency
    fixed_s, request_s, token_s = latency.decode.coefficients
    left, context = remaining_tokens(t), t.context_tokens
    batch, mean_context = steady_batch(state, context), float(context.mean())
    prefill_s = np.where(t.is_in(Phase.WAITING), latency.resume_s(new_tokens(t), t.cached_tokens, t.host_tokens), 0.0)
    beta_s = fixed_s + request_s * batch + token_s * (batch - 1.0) * mean_context
    seconds: Array = np.maximum(prefill_s + left * (token_s * (context + 0.5 * left) + beta_s), 1e-6)
    return seconds
