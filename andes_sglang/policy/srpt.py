"""Shortest remaining processing time with known output lengths: a yardstick, not for service.

``output_tokens`` tells it every request's final length, which no engine knows; so it has to be given one to be made, and
nothing else in a :class:`~andes_sglang.state.SchedulerState` carries lengths. It minimises mean response time on one
machine without preemption cost, and knows nothing of readers.

Trade-off: long answers and long prompts starve for as long as shorter ones keep coming.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.select import select
from andes_sglang.state import Decision, Phase, RequestTable, SchedulerState

__all__ = ["Srpt", "remaining_tokens"]


def remaining_tokens(t: RequestTable, output_tokens: Mapping[str, int]) -> npt.NDArray[np.float64]:
    """Tokens each request has still to generate, shape (N,), at least 1. ``KeyError`` for a request not foretold."""
    total = np.array([output_tokens[rid] for rid in t.rids], dtype=np.float64)
    return np.maximum(total - t.output_tokens, 1.0)


class Srpt:
    """output_tokens: final output length of every request by its id."""

    name = "srpt"

    def __init__(self, *, output_tokens: Mapping[str, int], growth_tokens: float = 16.0) -> None:
        self.output_tokens = output_tokens
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t, prefill = state.requests, state.latency.prefill.coefficients
        running = t.phase == Phase.RUNNING
        new = np.where(t.phase == Phase.WAITING, t.context_tokens - t.cached_tokens, 0.0)
        remaining_s = prefill[1] * new + state.latency.decode_s(1, 0) * remaining_tokens(t, self.output_tokens)
        return select(
            state,
            -remaining_s,
            growth_tokens=self.growth_tokens,
            displacing=~running,
            victims=(t.preemptible > 0) & (t.kv_tokens > 0),
        )
