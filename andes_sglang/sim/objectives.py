"""What a plan is asked to hold: a statistic of QoE, or of the latencies that others promise.

``parse_objective("mean>=0.95")`` is the product's own (:class:`~andes_sglang.objective.QoEObjective`);
``p90(ttft)<=1``, ``mean(tpot)<=0.12`` and ``goodput(ttft<=1,tpot<=0.05)>=0.9`` are :class:`LatencyObjective`. TTFT runs
from the arrival to the first token that is shown; TPOT is the mean gap between the tokens of one request (vLLM's and
DistServe's definition); goodput is the share of requests that keep every bound.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from andes_sglang.objective import QoEObjective
from andes_sglang.request import RequestRecord

__all__ = ["LatencyObjective", "Objective", "QoEOf", "Served", "certainty", "parse_objective"]

Array = npt.NDArray[np.float64]
FORMS = "mean>=X, pN>=X, share(Q)>=X, mean(ttft)<=S, pN(tpot)<=S or goodput(ttft<=S,tpot<=S)>=X"
LATENCIES = ("ttft", "tpot")
_LATENCY = re.compile(r"(mean|p\d+(?:\.\d+)?)\((ttft|tpot)\)<=(\d*\.?\d+)")
_GOODPUT = re.compile(r"goodput\(((?:(?:ttft|tpot)<=\d*\.?\d+,?)+)\)>=(\d*\.?\d+)")


@dataclass(slots=True)
class Served:
    """Figures of requests in order of their end: QoE in [0, 1], seconds to the first token, mean seconds between tokens (0
    for an answer of one)."""

    qoe: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def add(self, record: RequestRecord) -> None:
        times_s = record.token_times_s
        self.qoe.append(record.qoe)
        self.ttft_s.append(record.ttft_s)
        self.tpot_s.append(float(times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else 0.0)

    def latency_s(self, name: str) -> Array:
        """``ttft`` or ``tpot`` of each request, shape (n,)."""
        return np.array(self.ttft_s if name == "ttft" else self.tpot_s)


class Objective(Protocol):
    """A statistic of what was served and its bound."""

    @property
    def name(self) -> str:
        """The statistic alone."""
        ...

    @property
    def value(self) -> float:
        """The bound."""
        ...

    def statistic(self, served: Served) -> float: ...

    def margin(self, value: float) -> float:
        """How far a ``value`` of the statistic is on the right side of the bound; negative: it is missed."""
        ...


@dataclass(frozen=True, slots=True)
class QoEOf:
    """The product's objective, of a plan."""

    qoe: QoEObjective

    @property
    def name(self) -> str:
        return self.qoe.name

    @property
    def value(self) -> float:
        return self.qoe.value

    def __str__(self) -> str:
        return str(self.qoe)

    def statistic(self, served: Served) -> float:
        return self.qoe.of(np.array(served.qoe))

    def margin(self, value: float) -> float:
        return value - self.value


@dataclass(frozen=True, slots=True)
class LatencyObjective:
    """name: ``p90(ttft)``, ``mean(tpot)`` in seconds, to be at most ``value``; or ``goodput(...)``, to be at least ``value``.
    bounds: seconds that a request of goodput keeps; empty: none, it is a statistic of a latency."""

    name: str
    value: float
    bounds: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}{'>=' if self.bounds else '<='}{self.value:g}"

    def statistic(self, served: Served) -> float:
        if not served.qoe:
            return 1.0 if self.bounds else 0.0
        if self.bounds:
            keeps = [served.latency_s(latency) <= bound_s for latency, bound_s in self.bounds]
            return float(np.mean(np.logical_and.reduce(keeps)))
        statistic, _, latency = self.name.rstrip(")").partition("(")
        values = served.latency_s(latency)
        return float(values.mean() if statistic == "mean" else np.percentile(values, float(statistic[1:])))

    def margin(self, value: float) -> float:
        return value - self.value if self.bounds else self.value - value


def parse_objective(text: str) -> Objective:
    """One of :data:`FORMS`; seconds for latencies. Raises ``ValueError`` naming the text."""
    plain = "".join(text.split())
    if found := _LATENCY.fullmatch(plain):
        statistic, latency, bound = found.groups()
        if statistic != "mean" and float(statistic[1:]) > 100:
            raise ValueError(f"objective {text!r}: percentiles lie between 0 and 100")
        return LatencyObjective(f"{statistic}({latency})", _positive(text, bound))
    if found := _GOODPUT.fullmatch(plain):
        pairs = [bound.split("<=") for bound in found[1].strip(",").split(",")]
        bounds = tuple((latency, _positive(text, bound)) for latency, bound in pairs)
        if not 0 < float(found[2]) <= 1:
            raise ValueError(f"objective {text!r}: goodput is a share between 0 and 1")
        name = ",".join(f"{latency}<={bound_s:g}" for latency, bound_s in bounds)
        return LatencyObjective(f"goodput({name})", float(found[2]), bounds)
    try:
        return QoEOf(QoEObjective.parse(text))
    except ValueError as error:
        if "expected" in str(error):
            raise ValueError(f"objective {text!r}: expected {FORMS}") from None
        raise


def _positive(text: str, seconds: str) -> float:
    if not float(seconds) > 0:
        raise ValueError(f"objective {text!r}: seconds must be > 0")
    return float(seconds)


def certainty(margins: Sequence[float]) -> float | None:
    """How probable it is that the mean of what ``margins`` are drawn from is above 0: one-sided, by Student's t. None for
    fewer than two."""
    if len(margins) < 2:
        return None
    mean, deviation = float(np.mean(margins)), float(np.std(margins, ddof=1))
    if deviation == 0.0:
        return float(mean > 0) if mean else 0.5
    return float(stdtr(len(margins) - 1, mean / (deviation / len(margins) ** 0.5)))
