"""A diagnostic: preempt every request again and again, wanted or not, to prove that no output changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from andes_sglang.policy import PolicyOptions, SchedulingPolicy, make_policy, option, pack
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

__all__ = ["Forced", "ForcedOptions", "make_engine_policy"]

ALTERNATE = "alternate"
MODES = (*(mode.value for mode in PreemptionMode), ALTERNATE)


@dataclass(frozen=True, kw_only=True)
class ForcedOptions(PolicyOptions):
    policy = "forced"
    every_tokens: int = option(
        4,
        "tokens",
        low=0,
        doc="length of a slice; 0: until the next decision, its token still on its way",
        source="several preemptions in an answer of a test",
    )
    mode: str = option(
        "release", "", choices=MODES, doc="of its preemptions; alternate: of each request, park and release in turn",
        source="the mode that every engine has",
    )  # fmt: skip
    share: float = option(
        1.0, "", above=0, high=1, doc="of those whose slice has ended, drawn at each decision", source="all of them"
    )


class Forced:
    """Takes a running request off every ``every_tokens`` tokens, or a ``share`` of them; puts it back next time."""

    name = "forced"
    options_type = ForcedOptions

    def __init__(self, options: ForcedOptions | None = None) -> None:
        self.options = options or ForcedOptions()
        self._random = np.random.default_rng(0)

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        due = (t.phase == Phase.RUNNING) & (t.slice_tokens >= self.options.every_tokens) & (t.preemptible > 0)
        due &= self._random.random(len(t)) < self.options.share
        base = pack(state, -t.arrival_s)
        preempt = tuple(Preemption(t.rids[i], self._mode(t.preemptions[i]), "forced") for i in np.flatnonzero(due))
        return Decision(base.admit, base.resume, preempt)

    def _mode(self, preemptions: float) -> PreemptionMode:
        if self.options.mode != ALTERNATE:
            return PreemptionMode(self.options.mode)
        return PreemptionMode.RELEASE if preemptions % 2 else PreemptionMode.PARK


def make_engine_policy(name: str, options: Mapping[str, Any]) -> SchedulingPolicy:
    """``forced``, which only an engine has, or the policy of that name. Raises ``ValueError`` naming policy, option and
    value."""
    if name == Forced.name:
        return Forced(ForcedOptions.from_mapping(options))
    return make_policy(name, options)
