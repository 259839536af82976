"""The question that a tick asks: how few replicas would meet the objectives? Pure; ``andes_sglang.sim.whatif`` answers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from andes_operator.names import ALL_CLASSES
from andes_operator.observe import Observation
from andes_operator.spec import Objective, TargetSpec
from andes_sglang.objective import QoEObjective
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.whatif import Goal, WhatIf

__all__ = ["Arrival", "Prediction", "answer"]

MOST_LOAD_FACTOR = 3.0
"""How far what the engines hold may move the demand from what the requests tell, either way."""
FADES = 5.0
"""Windows in which what the engines do not confirm is forgotten."""
QUANTILES = 50


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the demand to come; at_s from its start; lengths in tokens."""

    at_s: float
    class_name: str
    prompt_tokens: int
    output_tokens: int
    reader: QoETarget
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """values: for each number of replicas that was played, the objectives' statistics, in their order (None: none of that
    class came); stays_s: how long requests stay then (quantiles, ascending), where the objectives were in reach. least: the
    fewest replicas that meet all with margin; None: not even the most do. load_factor: how many times the demand that the
    requests tell of was played; at_s: when it was asked."""

    rate_rps: float
    objectives: tuple[Objective, ...]
    margin: float
    least: int | None
    values: Mapping[int, tuple[float | None, ...]]
    stays_s: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    load_factor: float = 1.0
    at_s: float = 0.0

    def meets(self, replicas: int) -> bool:
        """Whether so many do: no fewer than the least, and, where they were played themselves, in that play too."""
        played = replicas not in self.values or meets(self.objectives, self.values[replicas], self.margin)
        return played and self.least is not None and replicas >= self.least

    def load_factor_by(self, seen: Observation, window_s: float) -> float:
        """``load_factor`` by what the engines hold now: each request that came lately is still there with the chance that one
        in the play stayed as long. What they hold beyond a standard deviation of that is load which the requests do not tell
        of, or not yet; it counts when it lasts, in full after ``window_s``. Where the number of replicas that are ready was
        not played, or nothing came, what was believed fades in five times that."""
        windows = (seen.now_s - self.at_s) / window_s
        stays_s = np.array(self.stays_s.get(seen.pods.ready, ()))
        taken_s = np.array([r.arrival_s for r in seen.recent if not r.refused])
        if not len(stays_s) or not len(taken_s):
            return self.load_factor + min(1.0, windows / FADES) * (1.0 - self.load_factor)
        stay = 1.0 - np.searchsorted(stays_s, seen.now_s - taken_s) / len(stays_s)
        span_s = max(1.0, seen.now_s - seen.recent[0].arrival_s)
        from_before = len(taken_s) / span_s * float(np.maximum(0.0, stays_s - span_s).mean())
        expected = self.load_factor * (float(stay.sum()) + from_before)
        chance = math.sqrt(self.load_factor * (float((stay * (1.0 - stay)).sum()) + from_before))
        nearest = min(max(expected, seen.engine_requests - chance), seen.engine_requests + chance)
        ratio = (nearest + 1.0) / (expected + 1.0)  # one more on either side: of few requests it says little
        now = min(MOST_LOAD_FACTOR, max(1 / MOST_LOAD_FACTOR, self.load_factor * ratio))
        return self.load_factor + min(1.0, windows) * (now - self.load_factor)

    def at(self, replicas: int) -> tuple[float | None, ...] | None:
        """The statistics with so many replicas: as played, or at least those of the most that were played below it."""
        played = max((n for n in self.values if n <= replicas), default=None)
        return None if played is None else self.values[played]

    @property
    def demand(self) -> str:
        """What was played, in words."""
        words = f"{self.rate_rps / self.load_factor:.3g} requests/s expected"
        if abs(self.load_factor - 1.0) < 0.05:
            return words
        return f"{words}, with {self.load_factor:.2g} times the load that they tell of, by what the engines hold"

    def sentence(self, replicas: int) -> str:
        values = self.at(replicas)
        if values is None:
            return "nothing known"
        said = [
            f"{objective} {value:.3f} (target {objective.value:g})"
            for objective, value in zip(self.objectives, values) if value is not None
        ]  # fmt: skip
        return ", ".join(said) or "nobody to serve"


def meets(objectives: tuple[Objective, ...], values: tuple[float | None, ...], margin: float) -> bool:
    """All objectives, each with margin as far as QoE can go. A class without demand is content."""
    return all(v is None or v >= min(1.0, o.value + margin) for o, v in zip(objectives, values))


def answer(
    spec: TargetSpec,
    demand: Sequence[Arrival],
    span_s: float,
    engine: EngineModel,
    policy: Callable[[], SchedulingPolicy | None],
    last: Prediction | None = None,
    current: int = 0,
) -> Prediction:
    """The least number of replicas of ``engine`` in the target's bounds, at least one, for ``demand`` in ``span_s`` seconds.
    last: an answer to much the same question, to begin at what it would be at this rate; without it, at the ``current``
    replicas if that is about what the work keeps busy. Raises ``ValueError`` for a request
    that no engine can hold."""
    names = sorted({a.class_name for a in demand})
    margin = spec.behavior.margin
    goals = [Goal(QoEObjective(o.statistic, o.value, o.at), _kind(o, names), margin) for o in spec.objectives]
    requests = [RequestSpec(a.at_s, a.prompt_tokens, a.output_tokens, a.reader, weight=a.weight) for a in demand]
    kinds = [names.index(a.class_name) for a in demand]
    question = WhatIf(engine, policy, requests, span_s, goals, kinds=kinds)
    rate_rps, guess = len(demand) / span_s, None
    if last is not None and last.least is not None and last.rate_rps > 0:
        guess = math.ceil(last.least * rate_rps / last.rate_rps)
    elif 0.5 * question.load <= current <= 2.0 * question.load:
        guess = current
    found = question.fewest(spec.max_replicas, least_replicas=max(1, spec.min_replicas), guess=guess)
    if found is not None and found < current <= spec.max_replicas:
        question.meets(current)  # for how long requests stay there
    played = question.played.items()
    stays_s = {n: _quantiles(p.stays_s) for n, p in played if p.stays_s is not None}
    return Prediction(rate_rps, spec.objectives, margin, found, {n: p.values for n, p in played}, stays_s)


def _quantiles(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.quantile(values, (np.arange(QUANTILES) + 0.5) / QUANTILES).tolist()) if len(values) else ()


def _kind(objective: Objective, names: Sequence[str]) -> int | None:
    """Its class by number; one that nobody is of where none came."""
    if objective.class_name == ALL_CLASSES:
        return None
    return names.index(objective.class_name) if objective.class_name in names else len(names)
