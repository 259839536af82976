"""The question of every reconcile: what is the smallest number of replicas that meets the objectives? Pure.

:func:`predict_replicas` asks ``andes_sglang.sim.whatif``; a :class:`Prediction` is the answer, and corrects the next question
by what the engines hold meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from andes_operator.demand import ExpectedDemand, Lengths
from andes_operator.names import ALL_CLASSES
from andes_operator.observe import Observation
from andes_operator.spec import ClassObjective, TargetSpec
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.outcomes import Goal
from andes_sglang.sim.whatif import WhatIf, work_s

__all__ = ["MAX_LOAD_FACTOR", "Prediction", "goals_of", "predict_replicas"]

MAX_LOAD_FACTOR = 3.0
"""Ratio; how far the engines' own counts may move the simulated demand from the observed requests, either way."""
FADING_WINDOWS = 5.0
"""Observation windows after which a load factor that the engines do not confirm is back at 1."""
QUANTILES = 50
"""Points that a distribution of residence times is kept as: of 600 simulated requests, twelve to a point."""
MIN_SHOWN_FACTOR = 0.05
"""Deviation of the load factor from 1 that is worth a word in the status."""
GUESS_RATIO = 2.0
"""A first search begins at the current replicas where these are within this factor of what the work keeps busy."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What N replicas are predicted to give.

    rate_rps: simulated. values: by number of replicas that was simulated, the statistic of each of ``objectives`` (None: no
    request of its class). fewest: the smallest number that meets all of them with ``margin``; None: ``maxReplicas`` does
    not. residence_times_s: by number of replicas that was simulated to the end, for how long requests were in the system
    (quantiles, ascending). load_factor: by how much the simulated demand exceeds the observed requests; at_s: of the
    observation, Unix seconds. unplayed: what of the engines' flags could not be simulated. work_s: of one
    request, in seconds of a replica, and lengths: means of what was simulated; None: nothing was.
    """

    rate_rps: float
    objectives: tuple[ClassObjective, ...]
    margin: float
    fewest: int | None
    values: Mapping[int, tuple[float | None, ...]]
    residence_times_s: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    load_factor: float = 1.0
    at_s: float = 0.0
    work_s: float | None = None
    lengths: Lengths | None = None
    unplayed: tuple[str, ...] = ()

    def meets(self, replicas: int) -> bool:
        """Whether ``replicas`` meet the objectives: at least ``fewest`` of them, and, where exactly that number was
        simulated, in that simulation too."""
        if self.fewest is None or replicas < self.fewest:
            return False
        return replicas not in self.values or _meet(self.objectives, self.values[replicas], self.margin)

    def at(self, replicas: int) -> tuple[float | None, ...] | None:
        """The statistics with ``replicas``: of the largest simulated number up to it; None where none was simulated."""
        simulated = max((n for n in self.values if n <= replicas), default=None)
        return None if simulated is None else self.values[simulated]

    def update_load_factor(self, seen: Observation, window_s: float) -> float:
        """``load_factor`` corrected by what the engines hold now.

        Each recent request is expected to be still held with the chance that a simulated one resided for so long. What the
        engines hold beyond one standard deviation of that expectation is load which the requests do not show, or not yet; it
        counts by how much of a window it has lasted. Where the ready number of replicas was not simulated, or no request
        came, the factor fades to 1 in ``FADING_WINDOWS`` windows.
        """
        windows = (seen.now_s - self.at_s) / window_s
        residence_s = np.array(self.residence_times_s.get(seen.pods.ready, ()))
        arrivals_s = np.array([r.arrival_s for r in seen.recent if not r.refused and not r.yields])
        if not len(residence_s) or not len(arrivals_s):
            return self.load_factor + min(1.0, windows / FADING_WINDOWS) * (1.0 - self.load_factor)
        held = 1.0 - np.searchsorted(residence_s, seen.now_s - arrivals_s) / len(residence_s)
        span_s = max(1.0, seen.now_s - seen.recent[0].arrival_s)
        earlier = len(arrivals_s) / span_s * float(np.maximum(0.0, residence_s - span_s).mean())
        expected = self.load_factor * (float(held.sum()) + earlier)
        deviation = math.sqrt(self.load_factor * (float((held * (1.0 - held)).sum()) + earlier))
        nearest = min(max(expected, seen.engine_requests - deviation), seen.engine_requests + deviation)
        ratio = (nearest + 1.0) / (expected + 1.0)  # one more on either side: few requests are little evidence
        now = min(MAX_LOAD_FACTOR, max(1 / MAX_LOAD_FACTOR, self.load_factor * ratio))
        return self.load_factor + min(1.0, windows) * (now - self.load_factor)

    @property
    def demand(self) -> str:
        """What was simulated, in words."""
        words = f"{self.rate_rps / self.load_factor:.3g} requests/s expected"
        if abs(self.load_factor - 1.0) >= MIN_SHOWN_FACTOR:
            words += f", at {self.load_factor:.2g} times their load by what the engines hold"
        return words + "".join(f", without {of}" for of in self.unplayed)

    def describe(self, replicas: int) -> str:
        """The statistics with ``replicas``, in words."""
        values = self.at(replicas)
        if values is None:
            return "nothing known"
        said = [
            f"{objective} {objective.shown(value)} (target {objective.shown_target})"
            for objective, value in zip(self.objectives, values) if value is not None
        ]  # fmt: skip
        return ", ".join(said) or "no requests to serve"


def _meet(objectives: Sequence[ClassObjective], values: Sequence[float | None], margin: float) -> bool:
    """All objectives, each with margin but at most 1. A class without requests meets its objective."""
    return all(v is None or o.objective.met(v, margin) for o, v in zip(objectives, values))


def predict_replicas(
    spec: TargetSpec,
    demand: ExpectedDemand,
    engine: EngineModel,
    policy: Callable[[], SchedulingPolicy | None],
    *,
    routing_policy: Callable[[], RoutingPolicy] = QoE,
    last: Prediction | None = None,
    current: int = 0,
    guess: int | None = None,
) -> Prediction:
    """The smallest number of replicas of ``engine`` under ``policy`` and behind ``routing_policy``, in the target's
    bounds but at least 1, for ``demand``.

    guess: where the search begins; by default ``last``, the answer to the previous question, scaled to this rate; without
    it, the ``current`` replicas where the work would keep about that number busy. Raises ``ValueError`` for a request that no
    engine can hold.
    """
    demand = demand.of_readers()
    names, margin = sorted(set(demand.class_names)), spec.behavior.margin
    goals = goals_of(spec, names)
    kinds = [names.index(name) for name in demand.class_names]
    question = WhatIf(engine, policy, demand.requests, demand.span_s, goals, kinds=kinds, routing_policy=routing_policy)
    if guess is None and last is not None and last.fewest is not None and last.rate_rps > 0:
        guess = math.ceil(last.fewest * demand.rate_rps / last.rate_rps)
    elif guess is None and question.load / GUESS_RATIO <= current <= GUESS_RATIO * question.load:
        guess = current
    fewest = question.fewest(spec.max_replicas, min_replicas=max(1, spec.min_replicas), guess=guess)
    if fewest is not None and fewest < current <= spec.max_replicas:
        question.meets(current)  # for the residence times with these
    return Prediction(
        demand.rate_rps,
        spec.objectives,
        margin,
        fewest,
        {n: played.values for n, played in question.simulated.items()},
        {
            n: _quantiles(played.residence_times_s)
            for n, played in question.simulated.items()
            if played.residence_times_s is not None
        },
        work_s=float(work_s(engine, demand.requests).mean()) if demand.requests else None,
        lengths=demand.lengths(spec.objectives) if demand.requests else None,
    )


def goals_of(spec: TargetSpec, names: Sequence[str]) -> list[Goal]:
    """What the simulator is asked for: the objectives with margin. names: of the classes that came."""
    return [Goal(o.objective, _kind(o, names), spec.behavior.margin) for o in spec.objectives]


def _quantiles(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.quantile(values, (np.arange(QUANTILES) + 0.5) / QUANTILES).tolist()) if len(values) else ()


def _kind(objective: ClassObjective, names: Sequence[str]) -> int | None:
    """The number of its class among ``names``; None for all, a number that no request has where none of its class came."""
    if objective.class_name == ALL_CLASSES:
        return None
    return names.index(objective.class_name) if objective.class_name in names else len(names)
