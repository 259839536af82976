"""Andes as published, version 2 (arXiv 2404.16283v2, section 4), without this project's additions.

Trigger: while everybody fits in ``watermark`` of the KV pool and a batch of everybody outpaces the fastest reader, all are
served. Otherwise, for a few batch sizes, pack greedily by QoE gain per KV token up to the first that does not fit, keep
the size with the largest total gain, and let the refiner admit, most urgent first, only whoever gains more than all ongoing
requests lose by standing still for it. Ongoing are those that run: counted over everybody who waits, the refiner would block
nearly every preemption.

Trade-off: best mean QoE of what is published, no bound on how long anybody waits. The gain of a stream shrinks as it ages,
so half-read answers starve for minutes under overload, and long prompts wait longest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.select import Accept, select
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["AndesV2", "Packing"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Packing(NamedTuple):
    """``priority`` (N,): gain per KV token; ``chosen`` (N,): who is to run; ``batch``: for which batch size;
    ``total``: the gain of all chosen."""

    priority: Array
    chosen: Mask
    batch: int
    total: float = 0.0


class AndesV2:
    """horizon_s: the paper's delta t. running_bonus: relative bonus of running requests, as in the authors' code.
    watermark: KV use above which the solver is triggered. batch_candidates: batch sizes tried."""

    name = "andes-v2"

    def __init__(
        self,
        *,
        horizon_s: float = 60.0,
        running_bonus: float = 0.1,
        watermark: float = 0.9,
        batch_candidates: int = 5,
        growth_tokens: float = 16.0,
    ) -> None:
        if not horizon_s > 0:
            raise ValueError(f"horizon_s must be > 0 seconds, got {horizon_s!r}")
        self.horizon_s = horizon_s
        self.running_bonus = running_bonus
        self.watermark = watermark
        self.batch_candidates = batch_candidates
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        if not len(t):
            return Decision()
        running = t.phase == Phase.RUNNING
        packing = self._pack(state, running)
        return select(
            state,
            packing.priority,
            batch=packing.batch,
            growth_tokens=self.growth_tokens,
            displacing=packing.chosen & ~running & self._may_preempt(state),
            victims=(t.preemptible > 0) & ~packing.chosen & (t.kv_tokens > 0),
            accept=self._accept(state, running),
        )

    def _may_preempt(self, state: SchedulerState) -> bool:  # noqa: ARG002 (version 1 has a cap)
        return True

    def _pack(self, state: SchedulerState, running: Mask) -> Packing:
        t = state.requests
        context = np.maximum(t.context_tokens, 1.0)
        pool = float(state.kv_capacity_tokens - state.kv_reserved_tokens)
        everybody_s = state.latency.decode_s(len(t), float(context.sum()))
        slowest_s = 1.0 / float(t.readers.tds.max())
        if context.sum() <= self.watermark * pool and everybody_s <= slowest_s:
            return Packing(-t.arrival_s, np.ones(len(t), dtype=bool), state.max_running)

        mean_context = float(context.mean())
        most = max(1, min(state.max_running, int(np.searchsorted(np.cumsum(np.sort(context)), pool, side="right"))))
        fixed_s = state.latency.decode_s(0, 0)
        request_s = max(state.latency.decode_s(1, mean_context) - fixed_s, 1e-12)
        least = int(np.clip((slowest_s - fixed_s) / request_s, 1, most))
        sizes = sorted({int(b) for b in np.linspace(least, most, self.batch_candidates)})
        return max((self._packed(state, running, b, context, pool) for b in sizes), key=lambda packing: packing.total)

    def _packed(self, state: SchedulerState, running: Mask, batch: int, context: Array, pool: float) -> Packing:
        gain = self._gain(state, batch, float(context.mean()))
        density = gain / context * np.where(running, 1.0 + self.running_bonus, 1.0)
        order = np.argsort(-density, kind="stable")[:batch]
        packed = order[np.cumsum(context[order]) <= pool]
        chosen = np.zeros(len(context), dtype=bool)
        chosen[packed] = True
        return Packing(density, chosen, batch, float(gain[packed].sum()))

    def _gain(self, state: SchedulerState, batch: int, mean_context: float) -> Array:
        """Q_serve(batch) - Q_wait at the horizon, shape (N,) (version 2, section 4.1)."""
        t, prefill = state.requests, state.latency.prefill.coefficients
        interval_s = state.latency.decode_s(batch, batch * mean_context)
        new = np.maximum(t.context_tokens - t.cached_tokens, 1.0)
        resume_s = np.where(t.phase == Phase.WAITING, prefill[0] + prefill[1] * new + prefill[2] * t.cached_tokens, 0.0)
        served = t.readers.served(state.now_s, self.horizon_s, resume_s + interval_s, interval_s)
        gain: Array = np.maximum(served - t.readers.waiting(state.now_s, self.horizon_s), 0.0) * t.weight
        return gain

    def _accept(self, state: SchedulerState, running: Mask) -> Accept | None:
        """The overhead-aware refiner: version 2, section 4.2."""
        t = state.requests
        rows = np.flatnonzero(running)
        ongoing = t.readers.take(rows)
        interval_s = state.latency.decode_s(len(rows), float(t.kv_tokens[rows].sum()))
        undisturbed = ongoing.served(state.now_s, self.horizon_s, interval_s, interval_s)

        def accept(row: int, victims: list[int], stall_s: float) -> bool:
            one = t.readers.take(np.array([row]))
            served = one.served(state.now_s, self.horizon_s, stall_s + interval_s, interval_s)
            gain = float((served - one.waiting(state.now_s, self.horizon_s))[0])
            cost_s = stall_s + sum(state.latency.prefill_s(float(t.kv_tokens[v])) for v in victims)
            stalled = ongoing.served(state.now_s, self.horizon_s, cost_s + interval_s, interval_s)
            return gain > float((undisturbed - stalled).sum())

        return accept
