"""How much a replica carries for ever, and how much it can put off before its readers notice: :func:`buffer`.

Both in seconds of work as :func:`~andes_sglang.sim.whatif.work_s` counts it. A fluid model of a fleet needs no more to say
what survives a surge (``andes_operator.headroom``): a replica under a load of P for T seconds puts off (P - rho) * T seconds
of work, and the goals hold while that is at most rho * B. Pure: chance is seeded and the same in every play.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.outcomes import Goal, Outcomes
from andes_sglang.sim.whatif import CHECKS, DRAIN_STEP_S, decision_interval, warmup_s, work_s

__all__ = ["Buffer", "buffer"]

Array = npt.NDArray[np.float64]
Phases = Sequence[tuple[float, float]]
"""Seconds, and the load of each replica in them."""

WINDOW_S, STRIDE_S = 300.0, 75.0
"""Goals hold in each window of so many seconds, one every so many: a bad minute is not averaged away."""
MIN_SCORED = 20
"""Requests of a kind in a window; fewer say nothing."""
MIN_WARM_S = 60.0
"""Seconds; at least so long is a fleet filled before it is scored."""
STEADY_S = 600.0
"""Seconds of steady load that are scored."""
FLOOD_S, FLOOD_REPLICAS = 900.0, 2
"""Seconds and replicas over which what is done in an overload is counted. Long answers are put off at first, which flatters:
1.10 for 1.08 of an hour's overload (L4, reasoning lengths, andes with offload)."""
FLOOD_EXCESS = 1.25
"""Load over what is thought to be the most: enough to be never idle, too little for a policy to choose only cheap work."""
FLOODS = 5
"""Tries with more load, where the work is less than it seems."""
STABLE = 0.97
"""Of what gets done in an overload; nearer to all of it the backlog wanders without bound."""
SURGE_REQUESTS, MAX_CELL = 250, 4
"""A cell has as many replicas as bring so many requests in a surge, up to ``MAX_CELL``."""
CALM = 0.5
"""Of what is carried for ever: the load before and after a surge."""
FIRST_EXCESS, MOST_EXCESS, LEAST_EXCESS = 0.5, 8.0, 0.05
"""Load of a surge beyond what is carried for ever, in units of that: where the search begins, and its bounds."""
STEPS = 2
"""Bisections between a load that holds and twice it, which does not: to within a quarter of it."""


class Buffer(NamedTuple):
    """rho: the highest steady load of a replica at which the goals hold, in replicas' worth of work. seconds: of that work
    that a replica's readers let it put off."""

    rho: float
    seconds: float


def buffer(
    engine: EngineModel,
    policy: Callable[[], SchedulingPolicy | None],
    requests: Sequence[RequestSpec],
    goals: Sequence[Goal],
    *,
    kinds: Sequence[int] = (),
    routing_policy: Callable[[], RoutingPolicy] = QoE,
    surge_s: float = 315.0,
    seed: int = 0,
) -> Buffer:
    """Tabulated by playing a cell of replicas of ``engine`` under ``policy``.

    requests: a sample, of which only lengths and readers count; kinds: of each, what goals tell apart. surge_s: the length of
    surge that matters: a cold start and a look. Takes seconds of CPU. Raises ``ValueError`` without requests, and
    :class:`~andes_sglang.sim.replica.RefusedError` for what can never fit.
    """
    if not requests:
        raise ValueError("requests must not be empty")
    if not surge_s > 0:
        raise ValueError(f"surge_s must be > 0 seconds, got {surge_s!r}")
    table = _Table(
        engine, policy, requests, goals, np.array(kinds or [0] * len(requests)), routing_policy, surge_s, seed
    )
    most = STABLE * table.capacity()
    rho = most if table.steady(most) else _highest(table.steady, 0.8 * most, (0.1 * most, most))
    if rho is None:
        return Buffer(0.1 * most, 0.0)
    excess = _highest(lambda more: table.survives(rho, 1.0 + more), FIRST_EXCESS, (LEAST_EXCESS, MOST_EXCESS))
    return Buffer(rho, 0.0 if excess is None else excess * surge_s)


def _highest(holds: Callable[[float], bool], guess: float, bounds: tuple[float, float]) -> float | None:
    """About the highest value within ``bounds`` that holds; None where the lowest does not. Doubled or halved from ``guess``
    on until it is bracketed, then bisected."""
    least, most = bounds
    low, high = None, None
    at = guess
    while low is None or high is None:
        if holds(at):
            if at >= most:
                return at
            low, at = at, min(most, 2.0 * at)
        else:
            if at <= least:
                return None
            high, at = at, max(least, 0.5 * at)
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Table(NamedTuple):
    """What is played, the same for every load."""

    engine: EngineModel
    policy: Callable[[], SchedulingPolicy | None]
    requests: Sequence[RequestSpec]
    goals: Sequence[Goal]
    kinds: npt.NDArray[np.int64]
    routing_policy: Callable[[], RoutingPolicy]
    surge_s: float
    seed: int

    @property
    def warm_s(self) -> float:
        return max(MIN_WARM_S, warmup_s(self.engine, self.requests))

    @property
    def replicas(self) -> int:
        each = self.surge_s / float(work_s(self.engine, self.requests).mean())
        return max(1, min(MAX_CELL, math.ceil(SURGE_REQUESTS / each)))

    def capacity(self) -> float:
        """Work that a replica gets done in a second when it is never idle."""
        done = 1.0
        for _ in range(FLOODS):
            load, done = FLOOD_EXCESS * done, self._done(FLOOD_EXCESS * done)
            if done < STABLE * load:
                break
        return done

    def _done(self, load: float) -> float:
        """Work that a replica gets done in a second under ``load``, once it is full."""
        warm_s, cell = self.warm_s, FLOOD_REPLICAS
        picked, at_s, works = self._arrivals([(warm_s + FLOOD_S, load)], cell)
        ended = np.zeros(len(at_s))

        def end(record: RequestRecord) -> None:
            ended[record.index] = works[record.index]

        fleet, done = self._fleet(cell, end), []
        for until_s in (warm_s, warm_s + FLOOD_S):
            for number in range(fleet.submitted, int(np.searchsorted(at_s, until_s))):
                fleet.submit(self._request(picked, at_s, number))
            fleet.advance(until_s)
            open_work = sum(
                works[job.index] * min(1.0, replica.generated(job) / job.spec.output_tokens)
                for replica in fleet.replicas
                for job in replica.by_rid.values()
            )
            done.append(float(ended.sum() + open_work))
        return (done[1] - done[0]) / FLOOD_S / cell

    def steady(self, load: float) -> bool:
        return self._holds([(self.warm_s, load), (STEADY_S, load)], self.warm_s)

    def survives(self, rho: float, times: float) -> bool:
        """Whether the goals hold where the load is ``times`` what is carried for ever, for ``surge_s``."""
        calm = CALM * rho
        phases = [(self.warm_s, calm), (self.surge_s, times * rho), (WINDOW_S, calm)]
        return self._holds(phases, self.warm_s - 0.5 * WINDOW_S)

    def _holds(self, phases: Phases, since_s: float) -> bool:
        """Whether the goals hold in every window of what arrives from ``since_s`` on, and in all of it."""
        cell = self.replicas
        picked, at_s, _ = self._arrivals(phases, cell)
        outcomes = Outcomes.none(len(at_s))
        fleet = self._fleet(cell, outcomes.keep)
        kinds = self.kinds[picked]
        starts_s = np.arange(max(0.0, since_s), max(since_s + 1.0, at_s[-1] - 0.5 * WINDOW_S), STRIDE_S)
        windows = [(at_s >= start) & (at_s < start + WINDOW_S) for start in starts_s]

        def holds() -> bool:
            best = outcomes.at_best(fleet)
            scored = [(window, MIN_SCORED) for window in windows] + [(at_s >= since_s, 1)]
            return all(self._met(best.values(self.goals, kinds, of, least=least)) for of, least in scored)

        every = max(10, len(at_s) // CHECKS)
        for number in range(len(at_s)):
            fleet.submit(self._request(picked, at_s, number))
            if number % every == 0 and not holds():
                return False
        while fleet.open_requests:
            fleet.advance(fleet.now_s + DRAIN_STEP_S)
            if not holds():
                return False
        return holds()

    def _met(self, values: Sequence[float | None]) -> bool:
        return all(goal.met(value) for goal, value in zip(self.goals, values))

    def _arrivals(self, phases: Phases, cell: int) -> tuple[npt.NDArray[np.int64], Array, Array]:
        """Which requests arrive in ``phases``, when, and the work of each. As much work arrives in a phase as it says, to
        within a request, whatever was drawn; inside it arrivals are Poisson's."""
        works = work_s(self.engine, self.requests)
        chance = np.random.default_rng(self.seed)
        picked, times_s = list[int](), list[Array]()
        order = list[int]()
        begin_s, owed = 0.0, 0.0
        for seconds, load in phases:
            owed += seconds * load * cell
            count = len(picked)
            while owed > 0.0:
                order = order or chance.permutation(len(works)).tolist()
                picked.append(order.pop())
                owed -= float(works[picked[-1]])
            times_s.append(begin_s + seconds * np.sort(chance.random(len(picked) - count)))
            begin_s += seconds
        chosen = np.array(picked, dtype=np.int64)
        return chosen, np.concatenate(times_s), works[chosen]

    def _request(self, picked: npt.NDArray[np.int64], at_s: Array, number: int) -> RequestSpec:
        return replace(self.requests[int(picked[number])], arrival_s=float(at_s[number]))

    def _fleet(self, cell: int, sink: Callable[[RequestRecord], None]) -> Fleet:
        return Fleet(
            self.engine, self.policy, replicas=cell, routing_policy=self.routing_policy(),
            decision_interval_s=decision_interval(self.engine), sink=sink,
        )  # fmt: skip
