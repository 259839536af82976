"""What a simulated fleet has served, as an objective reads it, and how sure several draws make of a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from andes_sglang.objective import AnyObjective, Goodput, Metric
from andes_sglang.request import RequestRecord

__all__ = ["Served", "certainty"]

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class Served:
    """Figures of requests in order of their end, by metric: QoE in [0, 1], the others in seconds. TTFT runs from the arrival
    to the first token that is shown; TPOT is the mean gap between the tokens of one request (vLLM's and DistServe's
    definition), 0 for an answer of one; a stall is what its reader waits inside it, in all."""

    of: dict[Metric, list[float]] = field(default_factory=lambda: {metric: [] for metric in Metric})

    def __len__(self) -> int:
        return len(self.of[Metric.QOE])

    def add(self, record: RequestRecord) -> None:
        """Count one finished request; one that yields has no reader whom an objective is about."""
        if record.yields:
            return
        times_s, score = record.token_times_s, record.score()
        gaps = len(times_s) - 1
        self.of[Metric.QOE].append(0.0 if record.error else score.qoe)
        self.of[Metric.TTFT].append(record.ttft_s)
        self.of[Metric.TPOT].append(float(times_s[-1] - times_s[0]) / gaps if gaps > 0 else 0.0)
        self.of[Metric.STALL].append(score.stall_s)

    def values(self, metric: Metric) -> Array:
        """Of each request, shape (n,)."""
        return np.array(self.of[metric], dtype=np.float64)

    def statistic(self, objective: AnyObjective) -> float:
        """What ``objective`` is about; where there are no requests it holds."""
        if isinstance(objective, Goodput):
            return objective.share({bound.metric: self.values(bound.metric) for bound in objective.bounds})
        return objective.of(self.values(objective.metric))


def certainty(margins: Sequence[float]) -> float | None:
    """How probable it is that the mean of what ``margins`` are drawn from is above 0: one-sided, by Student's t. None for
    fewer than two."""
    if len(margins) < 2:
        return None
    mean, deviation = float(np.mean(margins)), float(np.std(margins, ddof=1))
    if deviation == 0.0:
        return float(mean > 0) if mean else 0.5
    return float(stdtr(len(margins) - 1, mean / (deviation / len(margins) ** 0.5)))
