"""TokenFlow (arXiv 2510.02758, EuroSys 2026), from its published description: buffer-aware preemption, KV written through.

Who runs: the largest utility ``v * t' - gamma * exp(-b)`` of the whole, ``b`` the unread tokens, ``t'`` the interval less
``min(load, recompute)``, ``v`` what a token is worth to its reader (1 below 10 % of a typical answer unread, falling to 0 at
20 %); greedy, letting a smaller request past one that does not fit. How many: the working set ``W = pool / mean context``,
less ``ramp * (W - running)``. A new request takes another's place only while no running reader is critical (has less than
``mu * (load + schedule)`` seconds buffered), and only from one that has run for an interval and is not critical.

Its KV is in host memory already when it is preempted: preemptions are OFFLOAD. Where an engine or a simulator has no
host memory they act as RELEASE and resuming is recomputed, which is not the TokenFlow of its paper.

Trade-off: smooth for streams that have begun. Under sustained overload the running readers stay critical, so new requests
wait, as in a queue, until one finishes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.options import PolicyOptions, growth_tokens, option
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.state import Decision, Phase, PreemptionMode, SchedulerState

__all__ = ["TokenFlow", "TokenFlowOptions"]

Array = npt.NDArray[np.float64]

FULL_WORTH_SHARE = 0.1
"""Share of a typical answer: with less unread a token is worth 1, with twice as much 0 (paper: effective throughput)."""


@dataclass(frozen=True, kw_only=True)
class TokenFlowOptions(PolicyOptions):
    """Options of ``tokenflow``."""

    policy: ClassVar[str] = "tokenflow"

    interval_s: float = option(1.0, "seconds", above=0, doc="time between reschedulings", source="paper: 0.5 to 1.5 s")
    gamma: float = option(1.0, "", low=0, doc="weight of an empty buffer (paper: gamma)", source="assumed")
    mu: float = option(2.0, "", low=0, doc="swaps that a secure buffer outlasts (paper: mu)", source="assumed")
    ramp: float = option(
        0.5, "", low=0, high=1, doc="share of the unused working set held back (paper: lambda)", source="assumed"
    )
    schedule_s: float = option(0.5, "seconds", low=0, doc="time of a rescheduling", source="half the interval; assumed")
    load_tokens_per_s: float = option(
        2e5, "tokens/s", above=0, doc="KV copied from host memory", source="25 GB/s at 0.125 MiB a token (8B, GQA)"
    )
    answer_tokens: float = option(
        400.0, "tokens", above=0, doc="a typical answer", source="paper's chat workload: about 415"
    )
    growth_tokens: float = growth_tokens()


class TokenFlow:
    """See the module."""

    name = "tokenflow"
    options_type = TokenFlowOptions
    uses_weight = True
    may_hold_back = True
    may_starve = True

    def __init__(self, options: TokenFlowOptions | None = None) -> None:
        self.options = options or TokenFlowOptions()

    def decide(self, state: SchedulerState) -> Decision:
        t, options = state.requests, self.options
        if not len(t):
            return Decision()
        running = t.is_in(Phase.RUNNING)
        load_s = t.context_tokens / options.load_tokens_per_s
        secure = t.readers.buffered_s(state.now_s) >= options.mu * (load_s + options.schedule_s)
        had_interval = state.now_s - t.phase_since_s >= options.interval_s
        decision = pack(
            state,
            self._utility(state, load_s),
            batch=max(1, int(np.count_nonzero(running)), int(np.ceil(self._working_set(state)))),
            growth_tokens=options.growth_tokens,
            displacement=Displacement(
                displacers=~running & ((t.output_tokens > 0) | bool(secure[running].all())),
                victims=(t.preemptible > 0) & secure & running & had_interval,
            ),
        )
        written_through = tuple(
            replace(p, mode=PreemptionMode.OFFLOAD) if p.mode is PreemptionMode.RELEASE else p for p in decision.preempt
        )
        return replace(decision, preempt=written_through)

    def _utility(self, state: SchedulerState, load_s: Array) -> Array:
        """Shape (N,); the paper's, without its constant. load_s: seconds to load each request's KV, shape (N,)."""
        t, options, prefill = state.requests, self.options, state.latency.prefill.coefficients
        unread = np.clip(t.readers.buffered_s(state.now_s) * t.readers.tds, 0.0, t.readers.delivered)
        recompute_s = prefill[0] + prefill[1] * (t.context_tokens - t.cached_tokens)
        start_s = np.where(t.output_tokens > 0, np.minimum(load_s, recompute_s), recompute_s) * t.is_in(Phase.WAITING)
        worth = np.clip(2.0 - unread / (FULL_WORTH_SHARE * options.answer_tokens), 0.0, 1.0)
        utility: Array = worth * np.maximum(options.interval_s - start_s, 0.0) + options.gamma * np.exp(-unread)
        return utility * t.weight

    def _working_set(self, state: SchedulerState) -> float:
        """Requests that may run: as many as fit, approached in steps."""
        working_set = state.pool_tokens / max(1.0, float(state.requests.context_tokens.mean()))
        running = int(np.count_nonzero(state.requests.is_in(Phase.RUNNING)))
        return working_set - self.options.ramp * max(0.0, working_set - running)
