"""What readers should get: a statistic of QoE of at least a value, or a percentile of seconds of at most a value.

``QoEObjective.parse("share(0.95)>=0.9")`` on the command line; built from a custom resource in the operator, as is a
:class:`LatencyPercentile`. Evaluate it on exact values (:meth:`QoEObjective.of`) or on a sketch of them
(:meth:`QoEObjective.of_sketch`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from andes_sglang.sketch import Sketch

__all__ = ["LatencyPercentile", "Metric", "Objective", "QoEObjective", "Statistic"]

_TEXT = re.compile(r"\s*(?:(mean)|p(\d+(?:\.\d+)?)|share\((\d*\.?\d+)\))\s*>=\s*(\d*\.?\d+)\s*")


class Statistic(StrEnum):
    """What is taken of the QoE of several streams; the values are the custom resource's words."""

    MEAN = "Mean"
    PERCENTILE = "Percentile"
    SHARE_ABOVE = "ShareAbove"


class Metric(StrEnum):
    """What is measured of a stream; the values are the custom resource's words. TTFT: seconds to the first token that is
    shown. STALL: seconds that the reader waits inside the answer, in all."""

    QOE = "QoE"
    TTFT = "TTFT"
    STALL = "Stall"


@dataclass(frozen=True, slots=True)
class QoEObjective:
    """``statistic`` of QoE is to be at least ``value``, in [0, 1].

    at: for PERCENTILE the percentile in [0, 100] (5: the QoE that 95 % of the streams reach), for SHARE_ABOVE the QoE in
    [0, 1] from which a stream counts, None for MEAN. Raises ``ValueError`` naming field and value.
    """

    statistic: Statistic
    value: float
    at: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise ValueError(f"value must be in [0, 1], got {self.value!r}")
        highest = {Statistic.PERCENTILE: 100.0, Statistic.SHARE_ABOVE: 1.0}.get(self.statistic)
        if highest is None and self.at is not None:
            raise ValueError(f"at must be None for {self.statistic}, got {self.at!r}")
        if highest is not None and (self.at is None or not 0.0 <= self.at <= highest):
            raise ValueError(f"at must be in [0, {highest:g}] for {self.statistic}, got {self.at!r}")

    @classmethod
    def parse(cls, text: str) -> QoEObjective:
        """``mean>=0.95``, ``p5>=0.8`` (a percentile) or ``share(0.95)>=0.9`` (of streams with at least that QoE). Raises
        ``ValueError`` naming the text."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"objective {text!r}: expected mean>=X, pN>=X or share(Q)>=X")
        mean, percent, share, value = found.groups()
        if not 0 < float(value) <= 1 or float(percent or 0) > 100 or float(share or 0) > 1:
            raise ValueError(f"objective {text!r}: QoE and shares lie between 0 and 1, percentiles between 0 and 100")
        if mean:
            return cls(Statistic.MEAN, float(value))
        if percent:
            return cls(Statistic.PERCENTILE, float(value), float(percent))
        return cls(Statistic.SHARE_ABOVE, float(value), float(share))

    @property
    def name(self) -> str:
        """The statistic alone, as :meth:`parse` reads it: ``mean``, ``p5``, ``share(0.95)``."""
        if self.at is None:
            return "mean"
        return f"p{self.at:g}" if self.statistic is Statistic.PERCENTILE else f"share({self.at:g})"

    def __str__(self) -> str:
        return f"{self.name}>={self.value:g}"

    def of(self, scores: npt.NDArray[np.float64]) -> float:
        """The statistic of QoE scores, shape (n,); 1 where there are none."""
        if not len(scores):
            return 1.0
        if self.at is None:
            return float(scores.mean())
        if self.statistic is Statistic.PERCENTILE:
            return float(np.percentile(scores, self.at))
        return float((scores >= self.at).mean())

    @property
    def metric(self) -> Metric:
        return Metric.QOE

    def met(self, value: float, margin: float = 0.0) -> bool:
        """Whether ``value`` of the statistic is enough, exceeding it by ``margin`` as far as QoE can go."""
        return value >= min(1.0, self.value + margin)

    def of_sketch(self, scores: Sketch) -> float | None:
        """The statistic of the scores in a sketch; None where there are none."""
        if self.at is None:
            return scores.mean
        if self.statistic is Statistic.PERCENTILE:
            return scores.quantile(self.at / 100.0)
        return scores.share_at_least(self.at)


@dataclass(frozen=True, slots=True)
class LatencyPercentile:
    """The percentile ``at``, in (0, 100), of ``metric`` (TTFT or STALL) is to be at most ``value`` seconds. Raises
    ``ValueError`` naming field and value."""

    metric: Metric
    value: float
    at: float

    def __post_init__(self) -> None:
        if self.metric is Metric.QOE:
            raise ValueError(f"metric must be {Metric.TTFT} or {Metric.STALL}, got {self.metric}")
        if not 0.0 < self.value < float("inf"):
            raise ValueError(f"value must be seconds > 0, got {self.value!r}")
        if not 0.0 < self.at < 100.0:
            raise ValueError(f"at must be between 0 and 100, got {self.at!r}")

    @property
    def statistic(self) -> Statistic:
        return Statistic.PERCENTILE

    def __str__(self) -> str:
        return f"{self.metric} p{self.at:g}<={self.value:g}s"

    def met(self, value: float, margin: float = 0.0) -> bool:
        """Whether ``value`` seconds are few enough, ``margin`` being a share of the objective."""
        return value <= self.value * (1.0 - margin)

    def of(self, seconds: npt.NDArray[np.float64]) -> float:
        """The percentile of durations, shape (n,); 0 where there are none."""
        return float(np.percentile(seconds, self.at)) if len(seconds) else 0.0

    def of_sketch(self, seconds: Sketch) -> float | None:
        """The percentile of the durations in a sketch, at most 2 % above the exact one; None where there are none."""
        return seconds.quantile(self.at / 100.0)


Objective = QoEObjective | LatencyPercentile
