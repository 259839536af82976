"""First come, first served: what serving engines do. Never preempts; a long queue waits for whoever came first."""

from __future__ import annotations

from andes_sglang.policy.select import select
from andes_sglang.state import Decision, SchedulerState

__all__ = ["Fcfs"]


class Fcfs:
    name = "fcfs"

    def __init__(self, growth_tokens: float = 64.0) -> None:
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        return select(state, -state.requests.arrival_s, growth_tokens=self.growth_tokens, strict=True)
