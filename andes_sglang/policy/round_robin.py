"""Time slices for everybody: whoever has waited longest takes the place of whoever has used up a slice.

Fair and free of starvation; blind to what readers have buffered, so it pays for preemptions nobody needed.
"""

from __future__ import annotations

import numpy as np

from andes_sglang.policy.select import select
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["RoundRobin"]


class RoundRobin:
    name = "round_robin"

    def __init__(self, slice_tokens: int = 100, growth_tokens: float = 16.0) -> None:
        self.slice_tokens = slice_tokens
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        running = t.phase == Phase.RUNNING
        spent = running & (t.slice_tokens >= self.slice_tokens)
        waited_s = state.now_s - t.phase_since_s
        priority = np.where(running, np.where(spent, -waited_s, np.inf), waited_s)
        return select(
            state,
            priority,
            growth_tokens=self.growth_tokens,
            displacing=~running,
            victims=spent & (t.preemptible > 0),
        )
