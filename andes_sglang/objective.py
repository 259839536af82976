"""The one objective of the product: a statistic of QoE that is to be at least a value.

``QoEObjective.parse("share(0.95)>=0.9")`` on the command line; built from a custom resource in the operator. Evaluate it on
exact scores (:meth:`QoEObjective.of`) or on a sketch of them (:meth:`QoEObjective.of_sketch`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from andes_sglang.sketch import Sketch

__all__ = ["QoEObjective", "Statistic"]

_TEXT = re.compile(r"\s*(?:(mean)|p(\d+(?:\.\d+)?)|share\((\d*\.?\d+)\))\s*>=\s*(\d*\.?\d+)\s*")


class Statistic(StrEnum):
    """What is taken of the QoE of several streams; the values are the custom resource's words."""

    MEAN = "Mean"
    PERCENTILE = "Percentile"
    SHARE_ABOVE = "ShareAbove"


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

    def of_sketch(self, scores: Sketch) -> float | None:
        """The statistic of the scores in a sketch; None where there are none."""
        if self.at is None:
            return scores.mean
        if self.statistic is Statistic.PERCENTILE:
            return scores.quantile(self.at / 100.0)
        return scores.share_at_least(self.at)
