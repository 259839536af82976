"""Last come, first served, without preemption: the control arm.

Trade-off: it looks good in mean QoE and starves early requests without bound, by design. A policy that is not clearly
better than this one in the tail has only learned to game the mean. Ignores weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from andes_sglang.policy.fcfs import QueueOptions
from andes_sglang.policy.packer import pack
from andes_sglang.state import Decision, SchedulerState

__all__ = ["Lifo", "LifoOptions"]


@dataclass(frozen=True, kw_only=True)
class LifoOptions(QueueOptions):
    """Options of ``lifo``."""

    policy: ClassVar[str] = "lifo"


class Lifo:
    """See the module."""

    name = "lifo"
    options_type = LifoOptions
    may_starve = True

    def __init__(self, options: LifoOptions | None = None) -> None:
        self.options = options or LifoOptions()

    def decide(self, state: SchedulerState) -> Decision:
        return pack(state, state.requests.arrival_s, growth_tokens=self.options.growth_tokens, strict=True)
