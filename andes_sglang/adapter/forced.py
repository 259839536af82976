"""A diagnostic: preempt every request again and again, wanted or not, to prove that no output changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from andes_sglang.policy import SchedulingPolicy, make
from andes_sglang.policy.select import select
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

__all__ = ["Forced", "ForcedOptions", "make_engine_policy"]


@dataclass(frozen=True, slots=True)
class ForcedOptions:
    """every_tokens: length of a slice, >= 1. mode: park, release or offload.

    Raises ``ValueError`` naming option and value.
    """

    every_tokens: int = 4
    mode: str = "release"

    def __post_init__(self) -> None:
        whole = isinstance(self.every_tokens, int) and not isinstance(self.every_tokens, bool)
        if not (whole and self.every_tokens >= 1):
            raise ValueError(f"every_tokens must be a whole number >= 1, got {self.every_tokens!r}")
        modes = [mode.value for mode in PreemptionMode]
        if self.mode not in modes:
            raise ValueError(f"mode must be one of {', '.join(modes)}, got {self.mode!r}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ForcedOptions:
        known = cls.__dataclass_fields__
        for name, value in mapping.items():
            if name not in known:
                raise ValueError(
                    f"policy forced: unknown option {name} (value {value!r}); known are {', '.join(known)}"
                )
        return cls(**mapping)


class Forced:
    """Takes a running request off every ``every_tokens`` tokens; puts it back next time."""

    name = "forced"

    def __init__(self, options: ForcedOptions | None = None) -> None:
        self.options = options or ForcedOptions()
        self._mode = PreemptionMode(self.options.mode)

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        due = (t.phase == Phase.RUNNING) & (t.slice_tokens >= self.options.every_tokens) & (t.preemptible > 0)
        base = select(state, -t.arrival_s)
        preempt = tuple(Preemption(t.rids[i], self._mode, "forced") for i in np.flatnonzero(due))
        return Decision(base.admit, base.resume, preempt)


def make_engine_policy(name: str, options: Mapping[str, Any]) -> SchedulingPolicy:
    """``forced``, which only an engine has, or the policy of that name. Raises ``ValueError`` naming policy, option and
    value."""
    if name == Forced.name:
        return Forced(ForcedOptions.from_mapping(options))
    return make(name, **options)
