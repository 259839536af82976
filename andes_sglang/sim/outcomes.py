"""What the readers of simulated requests get, finished or not, and whether that is what they should: :class:`Outcomes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from andes_sglang.objective import Metric, Objective
from andes_sglang.request import RequestRecord
from andes_sglang.sim.fleet import Fleet
from andes_sglang.state import Phase

__all__ = ["Goal", "Outcomes"]

Array = npt.NDArray[np.float64]
Indices = slice | npt.NDArray[np.bool_]


class Goal(NamedTuple):
    """An objective for the requests of one kind, None: for all. With ``margin``: more QoE, as far as it can go, or a share
    fewer seconds."""

    objective: Objective
    kind: int | None = None
    margin: float = 0.0

    def met(self, value: float | None) -> bool:
        """Whether this value of the statistic is enough; None: no request is of the kind."""
        return value is None or self.objective.met(value, self.margin)


class Outcomes:
    """By request, shape (n,): qoe in [0, 1], ttft_s and stall_s in seconds; the best that can be while one has not ended."""

    __slots__ = ("qoe", "stall_s", "ttft_s")

    def __init__(self, qoe: Array, ttft_s: Array, stall_s: Array) -> None:
        self.qoe, self.ttft_s, self.stall_s = qoe, ttft_s, stall_s

    @classmethod
    def none(cls, count: int) -> Self:
        """Of ``count`` requests that have not come yet."""
        return cls(np.ones(count), np.zeros(count), np.zeros(count))

    def keep(self, record: RequestRecord) -> None:
        """It has ended."""
        score, number = record.score(), record.index
        self.qoe[number] = 0.0 if record.error else score.qoe
        self.ttft_s[number], self.stall_s[number] = record.ttft_s, score.stall_s

    def of(self, metric: Metric) -> Array:
        return {Metric.QOE: self.qoe, Metric.TTFT: self.ttft_s, Metric.STALL: self.stall_s}[metric]

    def at_best(self, fleet: Fleet) -> Outcomes:
        """With what the open requests of ``fleet`` would get if they got the rest now; of running ones, if they had got
        everything with their first token."""
        best = Outcomes(self.qoe.copy(), self.ttft_s.copy(), self.stall_s.copy())
        for replica in fleet.replicas:
            for job in replica.by_rid.values():
                spec = job.spec
                if job.phase is Phase.RUNNING:
                    had, until_s = 0, float(job.times_s[0][0])
                else:
                    had, until_s = max(0, job.generated - spec.reason_tokens), replica.now_s
                if not had:
                    best.ttft_s[job.index] = until_s - spec.arrival_s
                late_s = until_s - spec.target.start_s(spec.arrival_s, spec.reason_tokens) - had / spec.target.tds
                if late_s > 0.0 and (tokens := spec.output_tokens - spec.reason_tokens):
                    best.qoe[job.index] = 1.0 - (1 - had / tokens) * late_s / (late_s + 0.5 * tokens / spec.target.tds)
        return best

    def values(
        self, goals: Sequence[Goal], kinds: npt.NDArray[np.int64], of: Indices, *, least: int = 1
    ) -> tuple[float | None, ...]:
        """The goals' statistics, in their order, over the requests ``of``; kinds: of all requests. None where fewer than
        ``least`` are of the kind."""
        chosen = kinds[of]
        found = []
        for goal in goals:
            values = self.of(goal.objective.metric)[of]
            those = values if goal.kind is None else values[chosen == goal.kind]
            found.append(goal.objective.of(those) if len(those) >= least else None)
        return tuple(found)
