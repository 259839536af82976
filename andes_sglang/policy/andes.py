"""Andes: serve whoever gains most QoE per KV token, preempt only where the gain pays for the pause.

Version 2 of the paper (arXiv 2404.16283, section 4): gain of being served over waiting within a horizon, greedy packing
by gain per KV token, a few batch sizes tried, an overhead-aware refiner. Beyond it: a bound on how long any reader is
left dry, a minimum slice, only readers about to run dry may displace, and a guard for long prompts.

Trade-off: nobody starves beyond twice ``stall_bound_s`` as long as the engine can serve all who are overdue; in overload the
late ones wait up to that long so that the others read smoothly. Requests with long prompts cost more KV, hence wait
first; ``length_guard`` limits by how much.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.select import Accept, select
from andes_sglang.qoe import Readers
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Andes"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
MOST_DISPLACING = 8
"""Requests that are considered for a displacement in one decision: refusing one takes time, and there is a next decision."""


class Andes:
    """See the module. Units: seconds, tokens.

    horizon_s: how far gains look ahead (paper: delta t). stall_bound_s: a reader dry for longer gets the next free place, one
    dry for twice as long anybody's; first_bound_s: so does one without a first token that long after it was expected; the
    later relative to the bound, the sooner.
    min_slice_tokens, resumed_slice_tokens: tokens a new, a resumed request generates before it may be displaced (a resume
    has been paid for and must earn it). trigger_buffer_s: only a reader with
    less than this buffered may displace. running_bonus: relative bonus of running requests against flapping.
    length_guard: contexts count as at most this many times the mean. batch_candidates: batch sizes tried.
    preemption: False keeps only the admission order. refine: the overhead-aware refiner. recompute_price: how dear to it is
    engine time spent on computing victims anew, relative to what a newcomer makes of it. max_preemptions: version
    1's cap on the mean number of preemptions of a request, None for no cap. growth_tokens: KV kept free per request.
    """

    name = "andes"

    def __init__(
        self,
        *,
        horizon_s: float = 60.0,
        stall_bound_s: float = 45.0,
        first_bound_s: float = 1.0,
        min_slice_tokens: int = 45,
        resumed_slice_tokens: int = 90,
        trigger_buffer_s: float = 1.0,
        running_bonus: float = 1.0,
        length_guard: float = 3.0,
        batch_candidates: int = 3,
        preemption: bool = True,
        refine: bool = True,
        recompute_price: float = 2.0,
        max_preemptions: float | None = None,
        growth_tokens: float = 16.0,
    ) -> None:
        if not horizon_s > 0:
            raise ValueError(f"horizon_s must be > 0 seconds, got {horizon_s!r}")
        if not stall_bound_s > 0:
            raise ValueError(f"stall_bound_s must be > 0 seconds, got {stall_bound_s!r}")
        if not first_bound_s > 0:
            raise ValueError(f"first_bound_s must be > 0 seconds, got {first_bound_s!r}")
        self.horizon_s = horizon_s
        self.stall_bound_s = stall_bound_s
        self.first_bound_s = first_bound_s
        self.min_slice_tokens = min_slice_tokens
        self.resumed_slice_tokens = resumed_slice_tokens
        self.trigger_buffer_s = trigger_buffer_s
        self.running_bonus = running_bonus
        self.length_guard = length_guard
        self.batch_candidates = batch_candidates
        self.preemption = preemption
        self.refine = refine
        self.recompute_price = recompute_price
        self.max_preemptions = max_preemptions
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        running = t.phase == Phase.RUNNING
        if not len(t):
            return Decision()
        priority, gain, batch = self._rank(state, running)
        buffered_s = t.readers.buffered_s(state.now_s)
        begun = t.output_tokens > 0
        lateness = -buffered_s / np.where(begun, self.stall_bound_s, self.first_bound_s)
        overdue = ~running & (lateness > 1.0)
        starving = ~running & (buffered_s < -2.0 * self.stall_bound_s)
        priority = np.where(overdue, 1e9 * lateness, priority)
        if not self.preemption:
            return select(state, priority, batch=batch, growth_tokens=4 * self.growth_tokens)
        served_long_enough = t.slice_tokens >= np.where(
            t.preemptions > 0, self.resumed_slice_tokens, self.min_slice_tokens
        )
        below_cap = self.max_preemptions is None or float(t.preemptions.mean()) < self.max_preemptions
        may_displace = starving | (~running & ~(overdue & begun) & (buffered_s < self.trigger_buffer_s) & below_cap)
        return select(
            state,
            priority,
            batch=batch,
            growth_tokens=self.growth_tokens,
            displacing=_first(may_displace, priority, MOST_DISPLACING),
            victims=(t.preemptible > 0) & (served_long_enough | ~running) & (t.kv_tokens > 0),
            accept=self._refiner(state, running, starving, gain) if self.refine else None,
        )

    def _rank(self, state: SchedulerState, running: Mask) -> tuple[Array, Array, int]:
        """Priority per KV token and gain, both (N,), at the batch size with the largest total gain, and that size."""
        t = state.requests
        context = np.maximum(t.context_tokens, 1.0)
        mean_context = float(context.mean())
        pool = float(state.kv_capacity_tokens - state.kv_reserved_tokens)
        most = max(1, min(state.max_running, int(np.searchsorted(np.cumsum(np.sort(context)), pool, side="right"))))
        sizes = self._batch_sizes(state, most, mean_context)
        interval_s = np.array([[state.latency.decode_s(b, b * mean_context)] for b in sizes])
        gains = self._gain(state, interval_s) * t.weight
        weighed = gains / np.minimum(context, self.length_guard * mean_context)
        density = np.where(running, weighed * (1.0 + self.running_bonus), weighed)
        if len(sizes) == 1:
            return density[0], gains[0], state.max_running
        totals = [_packed_gain(density[k], gains[k], context, pool, b) for k, b in enumerate(sizes)]
        best = int(np.argmax(totals))
        return density[best], gains[best], sizes[best]

    def _batch_sizes(self, state: SchedulerState, most: int, mean_context: float) -> list[int]:
        fastest = float(state.requests.readers.tds.max())
        if state.latency.decode_s(most, most * mean_context) <= 1.0 / fastest:
            return [most]
        fixed = state.latency.decode_s(0, 0)
        per_request = state.latency.decode_s(1, mean_context) - fixed
        least = int(np.clip((1.0 / fastest - fixed) / max(per_request, 1e-12), 1, most))
        return sorted({int(b) for b in np.linspace(least, most, self.batch_candidates)})

    def _gain(self, state: SchedulerState, interval_s: Array) -> Array:
        """Q_serve - Q_wait at the horizon, shape (len(interval_s), N)."""
        t, prefill = state.requests, state.latency.prefill.coefficients
        new = np.maximum(t.context_tokens - t.cached_tokens, 1.0)
        resume_s = np.where(t.phase == Phase.WAITING, prefill[0] + prefill[1] * new + prefill[2] * t.cached_tokens, 0.0)
        wait = t.readers.waiting(state.now_s, self.horizon_s)
        serve = t.readers.served(state.now_s, self.horizon_s, resume_s + interval_s, interval_s)
        gain: Array = np.maximum(serve - wait, 0.0)
        return gain

    def _refiner(self, state: SchedulerState, running: Mask, starving: Mask, gain: Array) -> Accept:
        """Accept a displacement when its gain exceeds what all running readers lose by standing still for it, and when what
        it gains over its victims is worth the engine time that computing them anew will take: time in which others could
        gain as much as the newcomer does, in proportion to the work that he needs within the horizon."""
        t = state.requests
        spent_s = 0.0

        @cache
        def ongoing() -> tuple[Readers, Array, float, Array]:
            rows = np.flatnonzero(running)
            readers = t.readers.take(rows)
            interval_s = state.latency.decode_s(len(rows), float(t.kv_tokens[rows].sum()))
            unpaused = readers.served(state.now_s, self.horizon_s, interval_s, interval_s)
            return readers, t.weight[rows], interval_s, unpaused

        def accept(row: int, victims: list[int], stall_s: float) -> bool:
            nonlocal spent_s
            if not starving[row]:
                readers, weight, interval_s, unpaused = ongoing()
                again_s = sum(state.latency.prefill_s(float(t.kv_tokens[v])) for v in victims)
                work_s = stall_s + t.readers.tds[row] * self.horizon_s * interval_s / max(1, len(weight))
                if (gain[row] - gain[victims].sum()) * work_s <= self.recompute_price * gain[row] * again_s:
                    return False
                cost_s = spent_s + stall_s + again_s
                paused = readers.served(state.now_s, self.horizon_s, interval_s + cost_s, interval_s)
                if gain[row] <= float(((unpaused - paused) * weight).sum()):
                    return False
            spent_s += stall_s
            return True

        return accept


def _first(mask: Mask, priority: Array, most: int) -> Mask:
    """Of the rows in ``mask`` the ``most`` with the highest priority."""
    rows = np.flatnonzero(mask)
    if len(rows) <= most:
        return mask
    first = np.zeros_like(mask)
    first[rows[np.argsort(-priority[rows], kind="stable")[:most]]] = True
    return first


def _packed_gain(density: Array, gain: Array, context: Array, pool: float, batch: int) -> float:
    order = np.argsort(-density, kind="stable")[:batch]
    fits = np.cumsum(context[order]) <= pool
    return float(gain[order][fits].sum())
