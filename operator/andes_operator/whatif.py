"""The question that a tick asks: how few replicas would meet the objectives? Pure; ``andes_sglang.sim.whatif`` answers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from andes_operator.names import ALL_CLASSES, Statistic
from andes_operator.spec import Objective, TargetSpec
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim import plan as sim
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.whatif import Goal, WhatIf

__all__ = ["Arrival", "Prediction", "answer"]

_STATISTIC = {Statistic.MEAN: "mean", Statistic.PERCENTILE: "p", Statistic.SHARE_ABOVE: "share"}


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
    class came). least: the fewest replicas that meet all with margin; None: not even the most do."""

    rate_rps: float
    objectives: tuple[Objective, ...]
    margin: float
    least: int | None
    values: Mapping[int, tuple[float | None, ...]]

    def meets(self, replicas: int) -> bool:
        """Whether so many do: no fewer than the least, and, where they were played themselves, in that play too."""
        played = replicas not in self.values or meets(self.objectives, self.values[replicas], self.margin)
        return played and self.least is not None and replicas >= self.least

    def at(self, replicas: int) -> tuple[float | None, ...] | None:
        """The statistics with so many replicas: as played, or at least those of the most that were played below it."""
        played = max((n for n in self.values if n <= replicas), default=None)
        return None if played is None else self.values[played]

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
    goals = [
        Goal(sim.Objective(_STATISTIC[o.statistic], o.at or 0.0, o.value), _kind(o, names), margin)
        for o in spec.objectives
    ]
    requests = [RequestSpec(a.at_s, a.prompt_tokens, a.output_tokens, a.reader) for a in demand]
    kinds = [names.index(a.class_name) for a in demand]
    question = WhatIf(engine, policy, requests, span_s, goals, kinds=kinds)
    rate_rps, guess = len(demand) / span_s, None
    if last is not None and last.least is not None and last.rate_rps > 0:
        guess = math.ceil(last.least * rate_rps / last.rate_rps)
    elif 0.5 * question.load <= current <= 2.0 * question.load:
        guess = current
    found = question.fewest(spec.max_replicas, least_replicas=max(1, spec.min_replicas), guess=guess)
    return Prediction(rate_rps, spec.objectives, margin, found, {n: p.values for n, p in question.played.items()})


def _kind(objective: Objective, names: Sequence[str]) -> int | None:
    """Its class by number; one that nobody is of where none came."""
    if objective.class_name == ALL_CLASSES:
        return None
    return names.index(objective.class_name) if objective.class_name in names else len(names)
