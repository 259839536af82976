"""The planner: the smallest fleet of one kind of replica, and the cheapest mix of several, that hold an objective.

    planner = Planner(parse_objective("mean>=0.95"), [workload], max_replicas=64)
    plan = planner.smallest_fleet(engine, lambda: make_policy("andes"))
    planner.headroom([engine] * plan.replicas, lambda: make_policy("andes"))

Every fleet that is tried is simulated to the last answer, once for each workload (draws of the same demand).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from andes_sglang.objective import AnyObjective, QoEObjective
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestSpec
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim import whatif
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.mixes import Mix, bucket_loads, cheapest_mix
from andes_sglang.sim.outcomes import Goal
from andes_sglang.sim.plan import capacity_rps, play_fleet, smallest_feasible
from andes_sglang.sim.served import Served, certainty
from andes_sglang.workload import SyntheticWorkload, Workload

__all__ = ["SURE", "FleetMix", "FleetPlan", "Planner", "Saving", "Trial", "denser"]

MAX_GUESS_REQUESTS = 200_000
"""Requests of a workload that are held in memory at once to guess from: some 100 MB."""
WHATIF_PAYS = 4
"""The what-if guesses where the workload has this many times the requests that it simulates; below, a whole fleet is as
cheap."""
MORE = (1.05, 1.1, 1.2, 1.35, 1.5, 2.0)
"""Times the demand that headroom is looked for."""
SURE = 0.9
"""From this certainty on a saving is called one."""

PolicyFactory = Callable[[], SchedulingPolicy | None]
Demand = Workload | SyntheticWorkload


@dataclass(frozen=True, slots=True)
class Trial:
    """One fleet. values: the objective's statistic for each workload. backlog_share: requests open when the last one arrived,
    of all, on average."""

    values: tuple[float, ...]
    backlog_share: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def margins(self, objective: AnyObjective) -> list[float]:
        """How far each workload is on the right side of the bound."""
        return [objective.margin(value) for value in self.values]

    def holds(self, objective: AnyObjective) -> bool:
        """On average over the workloads."""
        return objective.margin(self.mean) >= 0.0

    def certainty(self, objective: AnyObjective) -> float | None:
        """That it holds, were there more workloads; None for one."""
        return certainty(self.margins(objective))


@dataclass(slots=True)
class FleetPlan:
    """replicas: the fewest that hold the objective; None: not even the most that are considered do. trials: by replicas.
    used: replicas that the work would keep busy in full batches, as a share of those there are. headroom: times the demand
    under which the first workload still holds; 1.0: none that was tried."""

    replicas: int | None
    trials: dict[int, Trial] = field(default_factory=dict)
    used: float | None = None
    headroom: float | None = None


@dataclass(frozen=True, slots=True)
class FleetMix:
    """How many of each kind, the price of all per hour, and how they do. plays: mixes that were simulated to find it. used,
    headroom: as of :class:`FleetPlan`."""

    replicas: Mix
    price_per_hour: float
    trial: Trial
    plays: int = 0
    used: float | None = None
    headroom: float | None = None


@dataclass(frozen=True, slots=True)
class Saving:
    """share: of the replicas that the best rival needs. certainty: the less certain of two: that the plan holds, and that the
    rival misses with as many replicas, or with the fewest above that were tried; None: one seed tells neither."""

    share: float
    certainty: float | None

    @property
    def sure(self) -> bool:
        return self.certainty is not None and self.certainty >= SURE

    @classmethod
    def over(cls, plan: FleetPlan, rivals: Iterable[FleetPlan], objective: AnyObjective) -> Saving | None:
        """What ``plan`` saves; None where there is no plan to compare."""
        known = [rival for rival in rivals if rival.replicas is not None]
        if plan.replicas is None or not known:
            return None
        best = min(known, key=lambda rival: rival.replicas or 0)
        needed, have = best.replicas or 0, plan.replicas
        share = 1.0 - have / needed
        if share <= 0.0:
            return cls(share, None)
        holds = certainty(plan.trials[have].margins(objective))
        short = [n for n in sorted(best.trials) if have <= n < needed]
        if not short or holds is None:
            return cls(share, None)
        misses = certainty([-margin for margin in best.trials[short[0]].margins(objective)])
        return cls(share, None if misses is None else min(holds, misses))


def denser(workload: Demand, factor: float) -> Demand:
    """``workload`` with ``factor`` times the requests in the same seconds, 1 <= factor <= 2: evenly chosen ones come twice,
    again halfway to the next arrival."""
    if isinstance(workload, SyntheticWorkload):
        return replace(workload, rates=tuple((span_s, rate * factor) for span_s, rate in workload.rates))
    requests: list[RequestSpec] = []
    later = [*[r.arrival_s for r in workload.requests[1:]], workload.duration_s]
    for number, (spec, next_s) in enumerate(zip(workload.requests, later, strict=True)):
        requests.append(spec)
        if int((number + 1) * (factor - 1.0) + 1e-9) > int(number * (factor - 1.0) + 1e-9):
            session = None if spec.session_id is None else f"{spec.session_id} again"
            requests.append(replace(spec, arrival_s=(spec.arrival_s + next_s) / 2, session_id=session))
    return Workload(workload.name, tuple(requests))


class Planner:
    """Raises ``ValueError`` naming argument and value; simulating raises
    :class:`~andes_sglang.sim.replica.RefusedError` for a request that no replica can hold.

    workloads: draws of the same demand, at least one. decision_interval_s: least time between two decisions of a policy.
    routing: makes the routing policy of each fleet; by default the gateway's default. progress: told what is simulated.
    plays: fleets simulated so far.
    """

    def __init__(
        self,
        objective: AnyObjective,
        workloads: Sequence[Demand],
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
        self.plays = 0

    def trial(
        self, engines: Sequence[EngineModel], policy: PolicyFactory, workloads: Sequence[Demand] | None = None
    ) -> Trial:
        """Simulate a fleet of ``engines`` on every workload, or on each of ``workloads``."""
        workloads = workloads or self.workloads
        values, backlogs = [], []
        self.plays += 1
        for number, workload in enumerate(workloads, start=1):
            self.progress(f"{len(engines)} replicas, seed {number} of {len(workloads)}")
            served = Served()
            backlog = play_fleet(
                engines, policy, workload, served.add,
                routing_policy=self.routing(), decision_interval_s=self.decision_interval_s,
            )  # fmt: skip
            values.append(served.statistic(self.objective))
            backlogs.append(backlog / max(1, len(served)))
        return Trial(tuple(values), float(np.mean(backlogs)))

    def guess(self, engine: EngineModel, policy: PolicyFactory) -> int:
        """Where to begin: the what-if's answer where that is much cheaper than one fleet, else arithmetic."""
        workload = self.workloads[0]
        many = WHATIF_PAYS * whatif.MAX_REQUESTS < len(workload) <= MAX_GUESS_REQUESTS
        if many and isinstance(self.objective, QoEObjective):
            goals = [Goal(self.objective)]
            readers = [spec for spec in workload.requests if not spec.yields]
            question = whatif.WhatIf(engine, policy, readers, workload.duration_s, goals, routing_policy=self.routing)
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

    def _sample(self) -> tuple[Sequence[RequestSpec], float]:
        """Requests of the first workload, not too many to hold, and the seconds that they arrive in."""
        workload = self.workloads[0]
        requests = workload.requests[:MAX_GUESS_REQUESTS]
        return requests, max(workload.duration_s * len(requests) / max(1, len(workload)), 1e-9)

    def used(self, engines: Sequence[EngineModel]) -> float:
        """The work of the first workload in full batches, as a share of what ``engines`` have; each request is divided
        between them evenly."""
        requests, span_s = self._sample()
        rates = [span_s / float(whatif.work_s(engine, requests).sum()) for engine in engines]
        return 1.0 / sum(rates)

    def headroom(self, engines: Sequence[EngineModel], policy: PolicyFactory) -> float:
        """The largest of :data:`MORE` times the demand under which the first workload still holds; 1.0: none of them."""

        def fails(rung: int) -> bool:
            more = self.trial(engines, policy, [denser(self.workloads[0], MORE[rung - 1])])
            return not more.holds(self.objective)

        short = smallest_feasible(fails, 3, len(MORE))
        rung = len(MORE) if short is None else short - 1
        return MORE[rung - 1] if rung else 1.0

    def cheapest_mix(
        self,
        engines: Sequence[EngineModel],
        policy: PolicyFactory,
        alone: Sequence[FleetPlan],
        prices: Sequence[float],
    ) -> FleetMix | None:
        """The cheapest fleet of several kinds that is found (:mod:`~andes_sglang.sim.mixes`). alone: the plan of each; None
        where none of them has one. prices: of a replica per hour."""
        kinds = range(len(engines))
        trials = {
            tuple(n if k == kind else 0 for k in kinds): trial
            for kind in kinds for n, trial in alone[kind].trials.items()
        }  # fmt: skip
        before = self.plays

        def fleet_of(mix: Mix) -> list[EngineModel]:
            return [engine for engine, n in zip(engines, mix, strict=True) for _ in range(n)]

        def holds(mix: Mix) -> bool:
            trials[mix] = self.trial(fleet_of(mix), policy)
            return trials[mix].holds(self.objective)

        load = bucket_loads(engines, *self._sample())
        needed = [plan.replicas for plan in alone]
        mix = cheapest_mix(holds, load, needed, prices, max_replicas=self.max_replicas)
        if mix is None:
            return None
        price = sum(n * price for n, price in zip(mix, prices, strict=True))
        plays, fleet = self.plays - before, fleet_of(mix)
        return FleetMix(mix, price, trials[mix], plays, self.used(fleet), self.headroom(fleet, policy))
