"""The overhead-aware refiner: which displacements pay for the pause and the work that they cost.

After arXiv 2404.16283v2, section 4.2. Ongoing requests are those that run: summed over all that wait, the loss would block
nearly every preemption (first token p90 149 s on SGLang's CPU engine).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.valuation import Valuation
from andes_sglang.state import Phase, SchedulerState

__all__ = ["Refiner"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PAUSES = np.concatenate(([0.0], np.geomspace(1 / 1024, 1.0, 11)))
"""Shares of the horizon for which the loss by a pause is computed; between them it is interpolated."""


@dataclass(eq=False)
class Refiner:
    """Accepts the displacements of one decision, in the order in which it is asked.

    horizon_s, min_wait_ratio: as in :class:`~andes_sglang.policy.andes.AndesOptions`. valuation: what ``gain`` comes from
    and a pause costs. step_s: seconds of a decode step. gain: value gained by running, weighted. return_s: seconds that the
    return of a victim takes. overdue: rows that are accepted whatever they cost. displacers: rows that may displace. Arrays
    of shape (N,). paused_s: pauses accepted so far.
    """

    state: SchedulerState
    valuation: Valuation
    horizon_s: float
    min_wait_ratio: float
    step_s: float
    gain: Array
    return_s: Array
    overdue: Mask
    displacers: Mask
    paused_s: float = 0.0

    def __call__(self, row: int, victims: list[int], stall_s: float) -> bool:
        if not self.overdue[row]:
            again_s = float(self.return_s[victims].sum())
            if not (self.saves_enough_wait(stall_s, again_s) and self.gains_more_than_lost(row, stall_s + again_s)):
                return False
        self.paused_s += stall_s
        return True

    def saves_enough_wait(self, stall_s: float, again_s: float) -> bool:
        """The wait saved, as a share of the horizon, is at least ``min_wait_ratio`` times the work added, as a share of what
        the answer takes anyway."""
        return self.wait_s * (stall_s + self.answer_s) >= self.min_wait_ratio * again_s * self.horizon_s

    def gains_more_than_lost(self, row: int, pause_s: float) -> bool:
        """The gain of ``row`` is above what all running readers lose by standing still for ``pause_s`` beyond the pauses
        accepted before."""
        return bool(self.gain[row] > np.interp((self.paused_s + pause_s) / self.horizon_s, PAUSES, self.losses))

    @cached_property
    def running(self) -> npt.NDArray[np.intp]:
        return self.state.requests.rows(Phase.RUNNING)

    @cached_property
    def losses(self) -> Array:
        """QoE that the running readers lose in all, weighted, by each of ``PAUSES``."""
        first_s = self.step_s + self.horizon_s * PAUSES[:, None]
        served = self.valuation.if_served(first_s, self.step_s, self.running)
        lost: Array = ((served[0] - served) * self.state.requests.weight[self.running]).sum(axis=1)
        return lost

    @cached_property
    def left_s(self) -> float:
        """Seconds until the running answers end: on average they have as many tokens left as they have generated."""
        if not len(self.running):
            return 0.0
        return self.step_s * float(self.state.requests.output_tokens[self.running].mean())

    @property
    def answer_s(self) -> float:
        """Seconds of the engine that one answer takes: its share of a batch, from first to last token."""
        return 2.0 * self.left_s / max(1, len(self.running))

    @cached_property
    def wait_s(self) -> float:
        """Seconds until all displacers would find room without displacing, in the KV that ending answers leave; at most
        the horizon."""
        t = self.state.requests
        wanted_tokens = float((t.context_tokens - t.kv_tokens)[self.displacers].sum())
        return min(self.horizon_s, wanted_tokens / max(1.0, float(t.kv_tokens[self.running].sum())) * self.left_s)
