"""The question that a tick asks: how few replicas would meet the objective? Pure; the simulator answers one fleet at a time.

QoE does not fall when a replica is added, so the least number is found by bisection, from the simulator's own guess on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from andes_operator.spec import Objective, TargetSpec
from andes_sglang.qoe import QoETarget
from andes_sglang.sim.plan import least
from andes_sglang.sketch import Sketch

__all__ = ["Arrival", "FleetSimulator", "Prediction", "Question", "answer"]


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
class Question:
    """demand: all arrivals at the fleet, in order, over ``span_s`` seconds. policy: by name, with options, as the engines
    run it. profile: what an engine costs and holds, by name."""

    profile: str
    policy: str
    policy_options: tuple[tuple[str, float], ...]
    demand: tuple[Arrival, ...]
    span_s: float

    @property
    def rate_rps(self) -> float:
        return len(self.demand) / self.span_s


class FleetSimulator(Protocol):
    """Plays a fleet in virtual time with the policy object that runs in the engines."""

    def guess(self, question: Question) -> int:
        """About how many replicas the work needs, by arithmetic."""
        ...

    def qoe(self, question: Question, replicas: int) -> Mapping[str, Sketch]:
        """QoE by class of the requests that were played, whoever is still waiting included. Raises ``ValueError`` naming
        what it cannot play: an unknown profile or policy, a request that no engine can hold."""
        ...


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
    spec: TargetSpec, question: Question, simulator: FleetSimulator, last: Prediction | None = None
) -> Prediction:
    """The least number of replicas in the target's bounds, at least one. last: an answer to much the same question, to begin
    at what it would be at this rate; without it the simulator guesses."""
    played: dict[int, tuple[float | None, ...]] = {}

    def enough(replicas: int) -> bool:
        if replicas not in played:
            qoe = simulator.qoe(question, replicas)
            played[replicas] = tuple(objective.among(qoe) for objective in spec.objectives)
        return meets(spec.objectives, played[replicas], spec.behavior.margin)

    fewest = max(1, spec.min_replicas)
    if last is not None and last.least is not None and last.rate_rps > 0:
        guess = math.ceil(last.least * question.rate_rps / last.rate_rps)
    else:
        guess = simulator.guess(question)
    beyond = least(lambda n: enough(fewest + n - 1), guess - fewest + 1, spec.max_replicas - fewest + 1)
    found = None if beyond is None else fewest + beyond - 1
    return Prediction(question.rate_rps, spec.objectives, spec.behavior.margin, found, played)
