"""Last come, first served, without preemption: the control arm.

It looks good in mean QoE and is terrible to whoever came early: under overload it starves without bound, by design.
A policy that is not clearly better than this one in the tail has only learned to game the mean.
"""

from __future__ import annotations

from andes_sglang.policy.select import select
from andes_sglang.state import Decision, SchedulerState

__all__ = ["Lifo"]


class Lifo:
    name = "lifo"

    def __init__(self, growth_tokens: float = 64.0) -> None:
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        return select(state, state.requests.arrival_s, growth_tokens=self.growth_tokens, strict=True)
