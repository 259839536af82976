"""Andes: serve whoever gains most QoE per KV token, preempt only where the gain pays for the pause.

Version 2 of the paper (arXiv 2404.16283, section 4): gain of being served over waiting within a horizon, greedy packing
by gain per KV token, a few batch sizes tried, an overhead-aware refiner. Beyond it: a bound on how long any reader is
left dry, a minimum slice, only readers about to run dry may displace, a guard for long prompts, and two limits on what may
be computed anew: a victim has had as much of the engine as its return will cost, and whoever displaces it would otherwise
wait for long enough to be worth that.

Trade-off: nobody starves beyond ``stall_bound_s`` as long as a quarter of the engine can serve all who are overdue. In
overload the late ones wait up to that bound so that the others read smoothly, and in a lasting one past it: were all of
the engine spent on whoever is latest, everybody would be late. Requests with long prompts cost more KV, hence wait first;
``length_guard`` limits by how much.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.select import Accept, select
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Andes"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PAUSES = np.concatenate(([0.0], np.geomspace(1 / 1024, 1.0, 11)))
"""Shares of the horizon for which the refiner asks what a pause costs; between them it interpolates."""
LONGEST_SLICE = 0.25
"""Share of the horizon that whoever waits may be asked to wait for the end of a slice that has paid its price."""


class Andes:
    """See the module. Units: seconds, tokens.

    horizon_s: how far gains look ahead (paper: delta t). stall_bound_s: a reader dry for longer goes first, as does one
    without a first token first_bound_s after it was expected: the later per KV token, relative to the bound, the sooner.
    overdue_share: of the KV pool, at most, for readers who run for their lateness and not for their gain.
    min_slice_tokens, resumed_slice_tokens: tokens a new, a resumed request generates before it may be displaced (a resume
    has been paid for and must earn it). slice_worth: it has also had this many times the engine time that its return takes,
    or once that time in a slice as long as LONGEST_SLICE says. wait_worth: the wait that a displacement saves, relative to
    the horizon, is at least this many times the work that it adds (computing its victims anew), relative to that of an
    answer.
    trigger_buffer_s: only a reader with less than this buffered may displace. running_bonus: relative bonus of running
    requests against flapping. length_guard: contexts count as at most this many times the mean. batch_candidates: batch
    sizes tried. preemption: False keeps only the admission order. refine: the overhead-aware refiner. max_preemptions:
    version 1's cap on the mean number of preemptions of a request, None for no cap. growth_tokens: KV kept free per request.
    """

    name = "andes"

    def __init__(
        self,
        *,
        horizon_s: float = 60.0,
        stall_bound_s: float = 90.0,
        first_bound_s: float = 120.0,
        overdue_share: float = 0.25,
        min_slice_tokens: int = 45,
        resumed_slice_tokens: int = 90,
        slice_worth: float = 4.0,
        wait_worth: float = 0.05,
        trigger_buffer_s: float = 1.0,
        running_bonus: float = 1.0,
        length_guard: float = 1.4,
        batch_candidates: int = 3,
        preemption: bool = True,
        refine: bool = True,
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
        self.overdue_share = overdue_share
        self.min_slice_tokens = min_slice_tokens
        self.resumed_slice_tokens = resumed_slice_tokens
        self.slice_worth = slice_worth
        self.wait_worth = wait_worth
        self.trigger_buffer_s = trigger_buffer_s
        self.running_bonus = running_bonus
        self.length_guard = length_guard
        self.batch_candidates = batch_candidates
        self.preemption = preemption
        self.refine = refine
        self.max_preemptions = max_preemptions
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        running = t.is_in(Phase.RUNNING)
        if not len(t):
            return Decision()
        priority, gain, weighed, batch = self._rank(state, running)
        buffered_s = t.readers.buffered_s(state.now_s)
        lateness = -buffered_s / np.where(t.output_tokens > 0, self.stall_bound_s, self.first_bound_s)
        urgency = lateness / weighed
        overdue = self._first(state, running, np.flatnonzero(~running & (lateness > 1.0)), priority, urgency)
        priority = np.where(overdue, 1e9 * urgency, priority)
        if not self.preemption:
            return select(state, priority, batch=batch, growth_tokens=4 * self.growth_tokens)
        batch_now = int(running.sum())
        interval_s = state.latency.decode_s(batch_now, float(t.kv_tokens[running].sum()))
        kept = t.host_tokens * state.latency.kept_share
        recompute_s = state.latency.resume_s(t.kv_tokens - kept, kept, kept)
        slice_tokens = np.where(t.preemptions > 0, self.resumed_slice_tokens, self.min_slice_tokens)
        token_s = interval_s / max(1, batch_now)
        price_tokens = recompute_s / token_s
        patience_tokens = LONGEST_SLICE * self.horizon_s / interval_s
        worth_tokens = np.clip(patience_tokens, price_tokens, self.slice_worth * price_tokens)
        earned = t.slice_tokens >= np.maximum(slice_tokens, worth_tokens)
        below_cap = self.max_preemptions is None or float(t.preemptions.mean()) < self.max_preemptions
        displacing = ~running & (buffered_s < self.trigger_buffer_s) & below_cap
        accept = None
        if self.refine:
            accept = self._refiner(state, running, interval_s, overdue, displacing, gain, recompute_s)
        return select(
            state,
            priority,
            batch=batch,
            growth_tokens=self.growth_tokens,
            displacing=displacing,
            victims=(t.preemptible > 0) & (earned | ~running) & (t.kv_tokens > 0),
            accept=accept,
        )

    def _rank(self, state: SchedulerState, running: Mask) -> tuple[Array, Array, Array, int]:
        """Priority per KV token, gain and KV tokens as guarded, each (N,), at the batch size with the largest total gain,
        and that size."""
        t = state.requests
        context = np.maximum(t.context_tokens, 1.0)
        mean_context = float(context.mean())
        pool = float(state.kv_capacity_tokens - state.kv_reserved_tokens)
        most = max(1, min(state.max_running, int(np.searchsorted(np.cumsum(np.sort(context)), pool, side="right"))))
        sizes = self._batch_sizes(state, most, mean_context)
        interval_s = np.array([[state.latency.decode_s(b, b * mean_context)] for b in sizes])
        gains = self._gain(state, interval_s) * t.weight
        weighed = np.minimum(context, self.length_guard * mean_context)
        density = gains / weighed * np.where(running, 1.0 + self.running_bonus, 1.0)
        if len(sizes) == 1:
            return density[0], gains[0], weighed, state.max_running
        totals = [_packed_gain(density[k], gains[k], context, pool, b) for k, b in enumerate(sizes)]
        best = int(np.argmax(totals))
        return density[best], gains[best], weighed, sizes[best]

    def _first(
        self, state: SchedulerState, running: Mask, late: npt.NDArray[np.intp], priority: Array, urgency: Array
    ) -> Mask:
        """Which of the rows ``late`` go first, most urgent first: until they fill their share of the pool, those included
        who run although others, who fit the pool without them, gain more."""
        t = state.requests
        first = np.zeros(len(t), dtype=bool)
        if not len(late):
            return first
        pool = float(state.kv_capacity_tokens - state.kv_reserved_tokens)
        order = np.argsort(-priority, kind="stable")
        beyond = order[np.cumsum(t.context_tokens[order]) > pool]
        owed = float(t.kv_tokens[beyond[running[beyond]]].sum())
        late = late[np.argsort(-urgency[late], kind="stable")]
        before = owed + np.cumsum(t.context_tokens[late]) - t.context_tokens[late]
        first[late[before < self.overdue_share * pool]] = True
        return first

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
        t = state.requests
        new = np.maximum(t.context_tokens - t.cached_tokens, 1.0)
        resume_s = np.where(t.is_in(Phase.WAITING), state.latency.resume_s(new, t.cached_tokens, t.host_tokens), 0.0)
        wait = t.readers.waiting(state.now_s, self.horizon_s)
        serve = t.readers.served(state.now_s, self.horizon_s, resume_s + interval_s, interval_s)
        gain: Array = np.maximum(serve - wait, 0.0)
        return gain

    def _refiner(
        self,
        state: SchedulerState,
        running: Mask,
        interval_s: float,
        overdue: Mask,
        displacing: Mask,
        gain: Array,
        recompute_s: Array,
    ) -> Accept:
        """Accept a displacement when the wait that it saves is worth the work that it adds, and its gain exceeds what all
        running readers lose by standing still for it. Who is overdue is past that."""
        t = state.requests
        spent_s = 0.0

        @cache
        def ongoing() -> tuple[Array, float, float]:
            rows = np.flatnonzero(running)
            served = t.readers.take(rows).served(
                state.now_s, self.horizon_s, interval_s + self.horizon_s * PAUSES[:, None], interval_s
            )
            lost = ((served[0] - served) * t.weight[rows]).sum(axis=1)
            left_s, wait_s = self._turnover(state, rows, interval_s, displacing)
            return lost, 2.0 * left_s / max(1, len(rows)), wait_s

        def accept(row: int, victims: list[int], stall_s: float) -> bool:
            nonlocal spent_s
            if not overdue[row]:
                lost, answer_s, wait_s = ongoing()
                again_s = float(recompute_s[victims].sum())
                if wait_s / self.horizon_s < self.wait_worth * again_s / (stall_s + answer_s):
                    return False
                if gain[row] <= np.interp((spent_s + stall_s + again_s) / self.horizon_s, PAUSES, lost):
                    return False
            spent_s += stall_s
            return True

        return accept

    def _turnover(
        self, state: SchedulerState, rows: npt.NDArray[np.intp], interval_s: float, displacing: Mask
    ) -> tuple[float, float]:
        """Seconds until the answers that run end, as they have on average as many tokens left as they have generated; and
        until all who may displace would have found room without, in the KV that those leave."""
        t = state.requests
        left_s = interval_s * float(t.output_tokens[rows].mean()) if len(rows) else 0.0
        wanted_tokens = float((t.context_tokens - t.kv_tokens)[displacing].sum())
        return left_s, min(self.horizon_s, wanted_tokens / max(1.0, float(t.kv_tokens[rows].sum())) * left_s)


def _packed_gain(density: Array, gain: Array, context: Array, pool: float, batch: int) -> float:
    order = np.argsort(-density, kind="stable")[:batch]
    fits = np.cumsum(context[order]) <= pool
    return float(gain[order][fits].sum())
