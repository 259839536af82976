"""TokenFlow (arXiv 2510.02758, EuroSys 2026), from its published description: buffer-aware preemption, KV written through.

Who runs: the largest utility ``v * t' - gamma * exp(-b)`` of the whole, ``b`` the unread tokens, ``t'`` the interval less
``min(load, recompute)``, ``v`` what a token is worth to its reader (1 below 10 % of a typical answer unread, falling to 0 at
20 %); greedy, letting a smaller request past one that does not fit. How many: the working set ``W = pool / mean context``,
less ``ramp * (W - running)``. A new request takes another's place only while no running reader is critical (has less than
``mu * (load + schedule)`` seconds buffered), and only from one that has run for an interval and is not critical.

Its KV is in host memory already when it is preempted: preemptions are OFFLOAD. Where an engine or a simulator has no
host memory they act as RELEASE and resuming is recomputed, which is not the TokenFlow of its paper.

Trade-off: smooth for whoever has begun. Under sustained overload the running readers stay critical, so newcomers wait, as in
a queue, until somebody finishes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from andes_sglang.policy.select import select
from andes_sglang.state import Decision, Phase, PreemptionMode, SchedulerState

__all__ = ["TokenFlow"]


class TokenFlow:
    """interval_s: time between reschedulings. gamma, mu, ramp: the paper's gamma, mu, lambda. schedule_s: time of a
    rescheduling. load_tokens_per_s: host-to-device speed in KV tokens. answer_tokens: a typical answer."""

    name = "tokenflow"

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        gamma: float = 1.0,
        mu: float = 2.0,
        ramp: float = 0.5,
        schedule_s: float = 0.5,
        load_tokens_per_s: float = 2e5,
        answer_tokens: float = 400.0,
        growth_tokens: float = 16.0,
    ) -> None:
        if not load_tokens_per_s > 0:
            raise ValueError(f"load_tokens_per_s must be > 0, got {load_tokens_per_s!r}")
        self.interval_s = interval_s
        self.gamma = gamma
        self.mu = mu
        self.ramp = ramp
        self.schedule_s = schedule_s
        self.load_tokens_per_s = load_tokens_per_s
        self.answer_tokens = answer_tokens
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        if not len(t):
            return Decision()
        running = t.phase == Phase.RUNNING
        begun = t.output_tokens > 0
        buffered_s = t.readers.buffered_s(state.now_s)
        unread = np.clip(buffered_s * t.readers.tds, 0.0, t.readers.delivered)

        prefill = state.latency.prefill.coefficients
        recompute_s = prefill[0] + prefill[1] * (t.context_tokens - t.cached_tokens)
        load_s = t.context_tokens / self.load_tokens_per_s
        start_s = np.where(begun, np.minimum(load_s, recompute_s), recompute_s) * (t.phase == Phase.WAITING)
        worth = np.clip(2.0 - unread / (0.1 * self.answer_tokens), 0.0, 1.0)
        utility = (worth * np.maximum(self.interval_s - start_s, 0.0) + self.gamma * np.exp(-unread)) * t.weight

        pool = state.kv_capacity_tokens - state.kv_reserved_tokens
        working_set = pool / max(1.0, float(t.context_tokens.mean()))
        working_set -= self.ramp * max(0.0, working_set - np.count_nonzero(running))
        secure = buffered_s >= self.mu * (load_s + self.schedule_s)
        decision = select(
            state,
            utility,
            batch=max(1, int(np.count_nonzero(running)), int(np.ceil(working_set))),
            growth_tokens=self.growth_tokens,
            displacing=~running & (begun | bool(secure[running].all())),
            victims=(t.preemptible > 0) & secure & running & (state.now_s - t.phase_since_s >= self.interval_s),
        )
        written_through = tuple(
            replace(p, mode=PreemptionMode.OFFLOAD) if p.mode is PreemptionMode.RELEASE else p for p in decision.preempt
        )
        return replace(decision, preempt=written_through)
