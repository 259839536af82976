"""Least QoE slack first: whoever runs dry soonest goes first, whatever it costs and whoever pays (unit weight).

The natural deadline rule and the paper's baseline. It reacts to every reader about to run dry, also when serving him
no longer helps, so it thrashes under overload.
"""

from __future__ import annotations

from andes_sglang.policy.select import select
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["LeastQoESlackFirst"]


class LeastQoESlackFirst:
    name = "lqsf"

    def __init__(self, min_slice_tokens: int = 8, growth_tokens: float = 16.0) -> None:
        self.min_slice_tokens = min_slice_tokens
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        running = t.phase == Phase.RUNNING
        slack_s = t.readers.buffered_s(state.now_s)
        return select(
            state,
            -slack_s,
            growth_tokens=self.growth_tokens,
            displacing=~running,
            victims=running & (t.preemptible > 0) & (t.slice_tokens >= self.min_slice_tokens),
        )
