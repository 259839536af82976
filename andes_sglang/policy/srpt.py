"""Shortest remaining processing time with known output lengths: a yardstick, not for service.

``output_tokens`` tells it every request's final length, which no engine knows; so it has to be given one to be made, and
nothing else in a :class:`~andes_sglang.state.SchedulerState` carries lengths. It minimises mean response time on one
machine without preemption cost, and knows nothing of readers or weights.

Trade-off: long answers and long prompts starve for as long as shorter ones keep coming.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.options import PolicyOptions, growth_tokens
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.state import Decision, Phase, RequestTable, SchedulerState

__all__ = ["Srpt", "SrptOptions", "known_remaining_tokens"]


def known_remaining_tokens(t: RequestTable, output_tokens: Mapping[str, int]) -> npt.NDArray[np.float64]:
    """Tokens each request has still to generate, shape (N,), at least 1. ``KeyError`` for a request without a length."""
    total = np.array([output_tokens[rid] for rid in t.rids], dtype=np.float64)
    return np.maximum(total - t.output_tokens, 1.0)


@dataclass(frozen=True, kw_only=True)
class SrptOptions(PolicyOptions):
    """Options of ``srpt``."""

    policy: ClassVar[str] = "srpt"

    growth_tokens: float = growth_tokens()


class Srpt:
    """output_tokens: final output length of every request by its id."""

    name = "srpt"
    options_type = SrptOptions
    may_starve = True

    def __init__(self, options: SrptOptions | None = None, *, output_tokens: Mapping[str, int]) -> None:
        self.options = options or SrptOptions()
        self.output_tokens = output_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t, prefill = state.requests, state.latency.prefill.coefficients
        new = np.where(t.is_in(Phase.WAITING), t.context_tokens - t.cached_tokens, 0.0)
        remaining_s = prefill[1] * new + state.latency.decode_s(1, 0) * known_remaining_tokens(t, self.output_tokens)
        victims = (t.preemptible > 0) & (t.kv_tokens > 0)
        return pack(
            state,
            -remaining_s,
            growth_tokens=self.options.growth_tokens,
            displacement=Displacement(displacers=~t.is_in(Phase.RUNNING), victims=victims),
        )
