"""A diagnostic: preempt every request again and again, wanted or not, to prove that nobody can tell."""

from __future__ import annotations

import numpy as np

from andes_sglang.policy.packer import pack
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

__all__ = ["Forced"]


class Forced:
    """Takes a running request off every ``every_tokens`` tokens in ``mode``; puts it back next time."""

    name = "forced"

    def __init__(self, every_tokens: int = 4, mode: str = "release") -> None:
        self.every_tokens = every_tokens
        self.mode = PreemptionMode(mode)

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        due = (t.phase == Phase.RUNNING) & (t.slice_tokens >= self.every_tokens) & (t.preemptible > 0)
        base = pack(state, -t.arrival_s)
        preempt = tuple(Preemption(t.rids[i], self.mode, "forced") for i in np.flatnonzero(due))
        return Decision(base.admit, base.resume, preempt)
