"""Andes as published, version 1 (arXiv 2404.16283v1, section 4): version 2's packing with a cap instead of the refiner.

The mean number of preemptions of a request never passes ``max_preemptions`` (the paper's P, default 1); below the cap every
preemption the packing asks for is carried out, whatever it costs.

Trade-off: a burst spends the budget of preemptions early, and then it is an admission order only. No bound on waiting: once
the budget is spent, nothing brings a starved stream back before others finish.
"""

from __future__ import annotations

from typing import Any

from andes_sglang.policy.andes_v2 import AndesV2, Mask
from andes_sglang.policy.select import Accept
from andes_sglang.state import SchedulerState

__all__ = ["AndesV1"]


class AndesV1(AndesV2):
    """max_preemptions: cap on the mean number of preemptions of the requests in the system; else as version 2."""

    name = "andes-v1"

    def __init__(self, *, max_preemptions: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.max_preemptions = max_preemptions

    def _may_preempt(self, state: SchedulerState) -> bool:
        return float(state.requests.preemptions.mean()) < self.max_preemptions

    def _accept(self, state: SchedulerState, running: Mask) -> Accept | None:  # noqa: ARG002 (no refiner)
        return None
