"""What readers should get: a statistic of QoE of at least a value, or one of latencies of at most a value.

``parse_objective`` reads them on the command line, the operator builds them from a custom resource; ``words`` is how both
tell of them.

    mean>=0.95   p5>=0.8   share(0.95)>=0.9              QoE: the mean, a percentile, the share of streams with at least that
    p90(ttft)<=1   mean(tpot)<=0.12   p95(stall)<=2      seconds
    goodput(ttft<=1,tpot<=0.05)>=0.9                     the share of requests that keep every bound

Evaluate one on exact values (``of``) or on a sketch of them (``of_sketch``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from andes_sglang.sketch import Sketch

__all__ = [
    "AnyObjective", "Goodput", "LatencyBound", "LatencyObjective", "Metric", "Objective", "QoEObjective", "Statistic",
    "parse_objective",
]  # fmt: skip

Array = npt.NDArray[np.float64]
FORMS = "mean>=X, pN>=X, share(Q)>=X, mean(ttft)<=S, pN(tpot)<=S, pN(stall)<=S or goodput(ttft<=S,tpot<=S)>=X"
_TEXT = re.compile(r"\s*(?:(mean)|p(\d+(?:\.\d+)?)|share\((\d*\.?\d+)\))\s*>=\s*(\d*\.?\d+)\s*")
_LATENCY = re.compile(r"(?:mean|p(\d+(?:\.\d+)?))\((ttft|tpot|stall)\)<=(\d*\.?\d+)")
_GOODPUT = re.compile(r"goodput\(((?:ttft|tpot|stall)<=\d*\.?\d+(?:,(?:ttft|tpot|stall)<=\d*\.?\d+)*),?\)>=(\d*\.?\d+)")


class Statistic(StrEnum):
    """What is taken of the QoE of several streams; the values are the custom resource's words."""

    MEAN = "Mean"
    PERCENTILE = "Percentile"
    SHARE_ABOVE = "ShareAbove"


class Metric(StrEnum):
    """What is measured of a stream; the values are the custom resource's words, but for TPOT, which only a plan is asked for.
    TTFT: seconds to the first token that is shown. STALL: seconds that the reader waits inside the answer, in all. TPOT: mean
    seconds between its tokens."""

    QOE = "QoE"
    TTFT = "TTFT"
    STALL = "Stall"
    TPOT = "TPOT"


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
        """One of the first three of the module's. Raises ``ValueError`` naming the text."""
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

    @property
    def words(self) -> str:
        """The statistic as people are told it, with what it is of: ``QoE mean``, ``QoE p5``."""
        return f"{self.metric} {self.name}"

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

    def margin(self, value: float) -> float:
        """By how much QoE ``value`` is better than it should be; negative: the objective is missed."""
        return value - self.value

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
class LatencyBound:
    """At most ``value`` seconds of ``metric``, which is not QoE. Raises ``ValueError`` naming field and value."""

    metric: Metric
    value: float

    def __post_init__(self) -> None:
        if self.metric is Metric.QOE:
            raise ValueError(
                f"metric must be one of {', '.join(sorted(set(Metric) - {Metric.QOE}))}, got {self.metric}"
            )
        if not 0.0 < self.value < float("inf"):
            raise ValueError(f"value must be seconds > 0, got {self.value!r}")

    def __str__(self) -> str:
        return f"{self.metric.lower()}<={self.value:g}"


@dataclass(frozen=True, slots=True)
class LatencyObjective(LatencyBound):
    """The percentile ``at``, in [0, 100], of ``metric`` is to be at most ``value`` seconds; None: the mean. Raises
    ``ValueError`` naming field and value."""

    at: float | None = None

    def __post_init__(self) -> None:
        LatencyBound.__post_init__(self)
        if self.at is not None and not 0.0 <= self.at <= 100.0:
            raise ValueError(f"at must be in [0, 100], got {self.at!r}")

    @property
    def statistic(self) -> Statistic:
        return Statistic.MEAN if self.at is None else Statistic.PERCENTILE

    @property
    def name(self) -> str:
        """The statistic alone: ``p90(ttft)``, ``mean(tpot)``."""
        return f"{'mean' if self.at is None else f'p{self.at:g}'}({self.metric.lower()})"

    @property
    def words(self) -> str:
        """The same, which says what it is of."""
        return self.name

    def __str__(self) -> str:
        return f"{self.name}<={self.value:g}"

    def margin(self, value: float) -> float:
        """By which share of the objective ``value`` seconds are fewer; negative: it is missed."""
        return 1.0 - value / self.value

    def met(self, value: float, margin: float = 0.0) -> bool:
        """Whether ``value`` seconds are few enough, ``margin`` being a share of the objective."""
        return value <= self.value * (1.0 - margin)

    def of(self, seconds: Array) -> float:
        """The statistic of durations, shape (n,); 0 where there are none."""
        if not len(seconds):
            return 0.0
        return float(seconds.mean() if self.at is None else np.percentile(seconds, self.at))

    def of_sketch(self, seconds: Sketch) -> float | None:
        """The statistic of the durations in a sketch, a percentile at most 2 % above the exact one; None where there are
        none."""
        return seconds.mean if self.at is None else seconds.quantile(self.at / 100.0)


@dataclass(frozen=True, slots=True)
class Goodput:
    """The share of requests that keep every one of ``bounds`` is to be at least ``value``, in (0, 1]."""

    bounds: tuple[LatencyBound, ...]
    value: float

    @property
    def name(self) -> str:
        """The statistic alone."""
        return f"goodput({','.join(map(str, self.bounds))})"

    @property
    def words(self) -> str:
        """The same, which says what it is of."""
        return self.name

    def __str__(self) -> str:
        return f"{self.name}>={self.value:g}"

    def margin(self, value: float) -> float:
        """By how much a share of ``value`` is larger than it should be; negative: the objective is missed."""
        return value - self.value

    def share(self, seconds: Mapping[Metric, Array]) -> float:
        """Of requests whose durations are ``seconds``, shape (n,) each; 1 where there are none."""
        keeps = np.logical_and.reduce([seconds[bound.metric] <= bound.value for bound in self.bounds])
        return float(keeps.mean()) if len(keeps) else 1.0


Objective = QoEObjective | LatencyObjective
"""Of one metric: what a custom resource can ask for."""
AnyObjective = Objective | Goodput
"""What a plan can be asked for."""


def parse_objective(text: str) -> AnyObjective:
    """One of :data:`FORMS`; seconds for latencies. Raises ``ValueError`` naming the text."""
    plain = "".join(text.split())
    if found := _LATENCY.fullmatch(plain):
        percent, metric, bound = found.groups()
        if percent is not None and float(percent) > 100:
            raise ValueError(f"objective {text!r}: percentiles lie between 0 and 100")
        return LatencyObjective(_metric(metric), _positive(text, bound), None if percent is None else float(percent))
    if found := _GOODPUT.fullmatch(plain):
        pairs = [bound.split("<=") for bound in found[1].split(",")]
        bounds = tuple(LatencyBound(_metric(metric), _positive(text, bound)) for metric, bound in pairs)
        if not 0 < float(found[2]) <= 1:
            raise ValueError(f"objective {text!r}: goodput is a share between 0 and 1")
        return Goodput(bounds, float(found[2]))
    try:
        return QoEObjective.parse(text)
    except ValueError as error:
        if "expected" in str(error):
            raise ValueError(f"objective {text!r}: expected {FORMS}") from None
        raise


def _metric(name: str) -> Metric:
    return next(metric for metric in Metric if metric.lower() == name)


def _positive(text: str, seconds: str) -> float:
    if not float(seconds) > 0:
        raise ValueError(f"objective {text!r}: seconds must be > 0")
    return float(seconds)
