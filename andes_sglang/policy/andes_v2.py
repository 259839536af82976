"""Andes as published, version 2 (arXiv 2404.16283v2, section 4), without this project's additions.

Trigger: while all requests fit in ``watermark`` of the KV pool and a batch of all outpaces the fastest reader, all are
served. Otherwise, for a few batch sizes, pack greedily by QoE gain per KV token up to the first that does not fit, keep
the size with the largest total gain, and let the refiner admit, most urgent first, only requests that gain more than all
ongoing requests lose by standing still for it. Ongoing are those that run: summed over all that wait, the refiner would
block nearly every preemption.

Trade-off: best mean QoE of what is published, no bound on any wait. The gain of a stream shrinks as it ages, so half-read
answers starve for minutes under overload, and long prompts wait longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.batching import batch_sizes, largest_batch, packed_rows
from andes_sglang.policy.options import PolicyOptions, growth_tokens, option
from andes_sglang.policy.packer import Accept, Displacement, pack
from andes_sglang.policy.valuation import new_tokens
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["AndesV2", "AndesV2Options", "Packing"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class AndesV2Options(PolicyOptions):
    """Options of ``andes-v2``."""

    policy: ClassVar[str] = "andes-v2"

    horizon_s: float = option(
        60.0, "seconds", above=0, doc="how far gains look ahead (paper: delta t)", source="paper: flat from 10 to 110 s"
    )
    running_bonus: float = option(
        0.1, "", low=0, doc="relative bonus of running requests against flapping", source="the authors' code"
    )
    watermark: float = option(
        0.9,
        "of the KV pool",
        low=0,
        doc="KV use above which requests are packed",
        source="paper, version 2, section 4.2",
    )
    batch_candidates: int = option(5, "", low=1, doc="batch sizes tried", source="paper: a few are enough; assumed")
    growth_tokens: float = growth_tokens()


class Packing(NamedTuple):
    """``value`` (N,): gain per KV token; ``chosen`` (N,): which requests are to run; ``batch``: for which batch size;
    ``total``: the gain of all chosen."""

    value: Array
    chosen: Mask
    batch: int
    total: float = 0.0


class AndesV2:
    """See the module."""

    name = "andes-v2"
    options_type: type[AndesV2Options] = AndesV2Options
    uses_weight = True
    may_hold_back = True
    may_starve = True

    def __init__(self, options: AndesV2Options | None = None) -> None:
        self.options = options or self.options_type()

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        if not len(t):
            return Decision()
        packing = self._pack(state)
        displacement = Displacement(
            displacers=packing.chosen & ~t.is_in(Phase.RUNNING) & self._may_preempt(state),
            victims=(t.preemptible > 0) & ~packing.chosen & (t.kv_tokens > 0),
            accept=self._refiner(state),
        )
        return pack(
            state,
            packing.value,
            batch=packing.batch,
            growth_tokens=self.options.growth_tokens,
            displacement=displacement,
        )

    def _may_preempt(self, state: SchedulerState) -> bool:  # noqa: ARG002 (version 1 has a cap)
        return True

    def _refiner(self, state: SchedulerState) -> Accept | None:
        return _Refiner(state, self.options.horizon_s)

    def _pack(self, state: SchedulerState) -> Packing:
        t = state.requests
        context = np.maximum(t.context_tokens, 1.0)
        step_of_all_s = state.latency.decode_s(len(t), float(context.sum()))
        if context.sum() <= self.options.watermark * state.pool_tokens and step_of_all_s <= 1.0 / float(
            t.readers.tds.max()
        ):
            return Packing(-t.arrival_s, np.ones(len(t), dtype=bool), state.max_running)
        most = largest_batch(state, context)
        sizes = batch_sizes(state, most, float(context.mean()), self.options.batch_candidates)
        return max((self._packed(state, b, context) for b in sizes), key=lambda packing: packing.total)

    def _packed(self, state: SchedulerState, batch: int, context: Array) -> Packing:
        gain = self._gain(state, batch, float(context.mean()))
        running = state.requests.is_in(Phase.RUNNING)
        density = gain / context * np.where(running, 1.0 + self.options.running_bonus, 1.0)
        rows = packed_rows(density, context, state.pool_tokens, batch)
        chosen = np.zeros(len(context), dtype=bool)
        chosen[rows] = True
        return Packing(density, chosen, batch, float(gain[rows].sum()))

    def _gain(self, state: SchedulerState, batch: int, mean_context: float) -> Array:
        """Q_serve(batch) - Q_wait at the horizon, weighted, shape (N,) (version 2, section 4.1)."""
        t, latency = state.requests, state.latency
        step_s = latency.decode_s(batch, batch * mean_context)
        return_s = latency.resume_s(new_tokens(t), t.cached_tokens, t.host_tokens)
        resume_s = np.where(t.is_in(Phase.WAITING), return_s, 0.0)
        served = t.readers.served(state.now_s, self.options.horizon_s, resume_s + step_s, step_s)
        waiting = t.readers.waiting(state.now_s, self.options.horizon_s)
        gain: Array = np.maximum(served - waiting, 0.0) * t.weight
        return gain


class _Refiner:
    """The paper's overhead-aware refiner: version 2, section 4.2."""

    def __init__(self, state: SchedulerState, horizon_s: float) -> None:
        t = state.requests
        self.state, self.horizon_s = state, horizon_s
        rows = t.rows(Phase.RUNNING)
        self.ongoing, self.weight = t.readers.take(rows), t.weight[rows]
        self.step_s = state.latency.decode_s(len(rows), float(t.kv_tokens[rows].sum()))
        self.undisturbed = self.ongoing.served(state.now_s, horizon_s, self.step_s, self.step_s)

    def __call__(self, row: int, victims: list[int], stall_s: float) -> bool:
        t, now_s = self.state.requests, self.state.now_s
        one = t.readers.take(np.array([row]))
        served = one.served(now_s, self.horizon_s, stall_s + self.step_s, self.step_s)
        gain = float((served - one.waiting(now_s, self.horizon_s))[0]) * float(t.weight[row])
        pause_s = stall_s + sum(self.state.latency.prefill_s(float(t.kv_tokens[v])) for v in victims)
        stalled = self.ongoing.served(now_s, self.horizon_s, pause_s + self.step_s, self.step_s)
        return gain > float(((self.undisturbed - stalled) * self.weight).sum())
