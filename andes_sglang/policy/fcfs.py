"""First come, first served: what serving engines do.

Trade-off: never preempts, ignores weights; under overload each request waits for all that came before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from andes_sglang.policy.options import PolicyOptions, option
from andes_sglang.policy.packer import pack
from andes_sglang.state import Decision, SchedulerState

__all__ = ["Fcfs", "QueueOptions"]


@dataclass(frozen=True, kw_only=True)
class QueueOptions(PolicyOptions):
    """Options of the policies that never preempt: ``fcfs``, ``sarathi``, ``lifo``."""

    policy: ClassVar[str] = "fcfs"

    growth_tokens: float = option(
        64.0, "tokens", low=0, doc="KV kept free for each running request",
        source="assumed: without preemption, running out of KV is a retraction",
    )  # fmt: skip


class Fcfs:
    """See the module."""

    name = "fcfs"
    options_type = QueueOptions

    def __init__(self, options: QueueOptions | None = None) -> None:
        self.options = options or self.options_type()

    def decide(self, state: SchedulerState) -> Decision:
        growth_tokens = self.options.growth_tokens
        return pack(state, -state.requests.arrival_s, growth_tokens=growth_tokens, strict=True)
