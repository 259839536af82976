"""The planner: the smallest fleet of one kind of replica, and the cheapest mix of two, that hold a QoE objective.

    planner = Planner(QoEObjective.parse("mean>=0.95"), [workload], max_replicas=64)
    plan = planner.smallest_fleet(engine, lambda: make_policy("andes"))

Every size that is tried is simulated to the last answer, once for each workload (draws of the same demand).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from andes_sglang.objective import QoEObjective
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim import whatif
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.outcomes import Goal
from andes_sglang.sim.plan import capacity_rps, cheapest_mix, score_fleet, smallest_feasible
from andes_sglang.workload import SyntheticWorkload, Workload

__all__ = ["FleetMix", "FleetPlan", "Planner", "Trial", "saving_over"]

MAX_GUESS_REQUESTS = 200_000
"""Requests of a workload that are held in memory at once to guess from: some 100 MB."""
WHATIF_PAYS = 4
"""The what-if guesses where the workload has this many times the requests that it simulates; below, a whole fleet is as
cheap."""

PolicyFactory = Callable[[], SchedulingPolicy | None]


@dataclass(frozen=True, slots=True)
class Trial:
    """One fleet. values: the objective's statistic for each workload. backlog_share: requests open when the last one arrived,
    of all, on average."""

    values: tuple[float, ...]
    backlog_share: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def holds(self, objective: QoEObjective) -> bool:
        """On average over the workloads."""
        return self.mean >= objective.value


@dataclass(slots=True)
class FleetPlan:
    """replicas: the fewest that hold the objective; None: not even the most that are considered do. trials: by replicas."""

    replicas: int | None
    trials: dict[int, Trial] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetMix:
    """How many of either kind, the price of all per hour, and how they do."""

    replicas: tuple[int, int]
    price_per_hour: float
    trial: Trial


def saving_over(replicas: int | None, rivals: Iterable[int | None]) -> float | None:
    """Share of the replicas that the best of ``rivals`` needs; None where there is no plan to compare."""
    needed = min((n for n in rivals if n), default=None)
    return None if replicas is None or needed is None else 1.0 - replicas / needed


class Planner:
    """Raises ``ValueError`` naming argument and value; simulating raises
    :class:`~andes_sglang.sim.replica.RefusedError` for a request that no replica can hold.

    workloads: draws of the same demand, at least one. decision_interval_s: least time between two decisions of a policy.
    routing: makes the routing policy of each fleet; by default the gateway's default. progress: told what is simulated.
    """

    def __init__(
        self,
        objective: QoEObjective,
        workloads: Sequence[Workload | SyntheticWorkload],
        *,
        max_replicas: int,
        decision_interval_s: float = 0.1,
        routing: Callable[[], RoutingPolicy] = QoE,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if not workloads:
            raise ValueError("workloads must not be empty")
        if max_replicas < 1:
            raise ValueError(f"max_replicas must be >= 1, got {max_replicas!r}")
        self.objective, self.workloads, self.max_replicas = objective, workloads, max_replicas
        self.decision_interval_s, self.routing, self.progress = decision_interval_s, routing, progress

    def trial(self, engines: Sequence[EngineModel], policy: PolicyFactory) -> Trial:
        """Simulate a fleet of ``engines`` on every workload."""
        values, backlogs = [], []
        for number, workload in enumerate(self.workloads, start=1):
            self.progress(f"{len(engines)} replicas, seed {number} of {len(self.workloads)}")
            scores, backlog = score_fleet(
                engines, policy, workload, routing_policy=self.routing(), decision_interval_s=self.decision_interval_s
            )
            values.append(self.objective.of(scores))
            backlogs.append(backlog / max(1, len(scores)))
        return Trial(tuple(values), float(np.mean(backlogs)))

    def guess(self, engine: EngineModel, policy: PolicyFactory) -> int:
        """Where to begin: the what-if's answer where that is much cheaper than one fleet, else arithmetic."""
        workload = self.workloads[0]
        if WHATIF_PAYS * whatif.MAX_REQUESTS < len(workload) <= MAX_GUESS_REQUESTS:
            goals = [Goal(self.objective)]
            question = whatif.WhatIf(
                engine, policy, workload.requests, workload.duration_s, goals, routing_policy=self.routing
            )
            return question.fewest(self.max_replicas) or self.max_replicas
        described = workload.describe()
        lengths = described["prompt_tokens"]["mean"], described["output_tokens"]["mean"]
        return round((described["rate_rps"] or 1.0) / capacity_rps(engine, *lengths) + 0.5)

    def smallest_fleet(self, engine: EngineModel, policy: PolicyFactory, *, guess: int | None = None) -> FleetPlan:
        """The smallest fleet of ``engine``. guess: where the search begins, if not at :meth:`guess`."""
        plan = FleetPlan(None)

        def holds(replicas: int) -> bool:
            plan.trials[replicas] = self.trial([engine] * replicas, policy)
            return plan.trials[replicas].holds(self.objective)

        begin = self.guess(engine, policy) if guess is None else guess
        plan.replicas = smallest_feasible(holds, begin, self.max_replicas)
        return plan

    def cheapest_mix(
        self, engines: tuple[EngineModel, EngineModel], policy: PolicyFactory, alone: tuple[FleetPlan, FleetPlan],
        prices: tuple[float, float],
    ) -> FleetMix | None:  # fmt: skip
        """The cheapest fleet of two kinds. alone: the plan of each; None where one of them has none. prices: per hour."""
        needed = alone[0].replicas, alone[1].replicas
        if needed[0] is None or needed[1] is None:
            return None
        trials = {(n, 0): trial for n, trial in alone[0].trials.items()}
        trials |= {(0, n): trial for n, trial in alone[1].trials.items()}

        def holds(a: int, b: int) -> bool:
            trials[a, b] = self.trial([engines[0]] * a + [engines[1]] * b, policy)
            return trials[a, b].holds(self.objective)

        a, b = cheapest_mix(holds, (needed[0], needed[1]), prices)
        return FleetMix((a, b), a * prices[0] + b * prices[1], trials[a, b])
