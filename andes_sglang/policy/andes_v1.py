"""Andes as published, version 1 (arXiv 2404.16283v1, section 4): version 2's packing with a cap instead of the refiner.

The mean number of preemptions of a request never passes ``max_preemptions`` (the paper's P); below the cap every
preemption the packing asks for is carried out, whatever it costs.

Trade-off: a burst spends the budget of preemptions early, and then it is an admission order only. No bound on waiting: once
the budget is spent, nothing brings a starved stream back before others finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from andes_sglang.policy.andes_v2 import AndesV2, AndesV2Options
from andes_sglang.policy.options import option
from andes_sglang.state import SchedulerState

__all__ = ["AndesV1", "AndesV1Options"]


@dataclass(frozen=True, kw_only=True)
class AndesV1Options(AndesV2Options):
    """Options of ``andes-v1``: those of version 2 and the cap."""

    policy: ClassVar[str] = "andes-v1"

    max_preemptions: float = option(
        1.0, "preemptions", low=0, doc="no displacing once a request was preempted this often on average",
        source="paper, version 1, section 4",
    )  # fmt: skip


class AndesV1(AndesV2):
    """See the module."""

    name = "andes-v1"
    options_type = AndesV1Options
    options: AndesV1Options

    def _may_preempt(self, state: SchedulerState) -> bool:
        return float(state.requests.preemptions.mean()) < self.options.max_preemptions

    def _refiner(self, state: SchedulerState) -> None:  # noqa: ARG002 (a cap instead)
        return None
