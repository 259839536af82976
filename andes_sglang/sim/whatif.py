"""What if there were N replicas? The operator asks it every minute, and the planner to know where to begin.

    question = WhatIf(engine, lambda: make("andes"), requests, span_s, [Goal(QoEObjective.parse("mean>=0.95"))])
    question.fewest(40)

A fleet behind a balancing router is many nearly independent parts. So a cell of a few replicas is simulated, behind the same
router, with every (N / cell)-th request: the whole fleet where it is small, and what does not grow with it where it is large.
Pure: no clock, no chance; requests are picked evenly.
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
from andes_sglang.sim.plan import smallest_feasible

__all__ = ["SimulatedFleet", "WhatIf", "decision_interval", "warmup_s", "work_s"]

Array = npt.NDArray[np.float64]
MAX_REQUESTS = 600
"""Requests simulated for one size: about a second of CPU (benchmarks/what_if.py)."""
CELL_SPAN_S, MIN_SPAN_S = 120.0, 60.0
"""Seconds. The cell has as many replicas as the requests are enough for in the first; no less time is simulated than the
second. Where answers take long, twice and once the warm-up."""
MAX_DECISION_INTERVAL_S = 0.5
"""Seconds; a policy that is asked less often lets readers run dry (four tokens of 0.2 s are a usual buffer)."""
CHECKS = 30
"""How often it is checked, while simulating, whether the goals can still be met."""
DRAIN_STEP_S = 5.0
"""Simulated seconds between these checks after the last arrival."""


class SimulatedFleet(NamedTuple):
    """values: of the goals' statistics, in their order; None where no request is of the kind. residence_times_s: how long
    each request was open, shape (n,); None where the simulation ended early because the goals were out of reach, and the
    values are then what they would be if all open requests got everything at once."""

    values: tuple[float | None, ...]
    residence_times_s: Array | None

    @property
    def exact(self) -> bool:
        """Simulated to its end."""
        return self.residence_times_s is not None


def decision_interval(engine: EngineModel) -> float:
    """How seldom a policy can be asked without holding prefill up: half a second, or one chunk if that takes less."""
    return min(MAX_DECISION_INTERVAL_S, engine.costs.prefill_s(engine.chunk_tokens))


def work_s(engine: EngineModel, requests: Sequence[RequestSpec]) -> Array:
    """Seconds of ``engine`` that each request takes in batches as large as its KV holds, without prefix hits; shape (n,)."""
    prompt = np.array([r.prompt_tokens for r in requests], dtype=np.float64)
    output = np.array([r.output_tokens for r in requests], dtype=np.float64)
    context, costs = prompt + 0.5 * output, engine.costs
    batch = _batch(engine, context, output)
    prefill = costs.prefill_request_s + costs.prefill_token_s * prompt + 0.5 * costs.prefill_pair_s * prompt**2
    chunks = np.maximum(1.0, prompt / engine.chunk_tokens) * costs.prefill_fixed_s
    step = costs.decode_fixed_s / batch + costs.decode_request_s + costs.decode_context_s * context
    return np.asarray(prefill + chunks + output * step)


def warmup_s(engine: EngineModel, requests: Sequence[RequestSpec]) -> float:
    """Seconds until an empty ``engine`` is as full as it stays: one answer, as long as a running one is on average, in
    batches as large as its KV holds."""
    output = np.array([r.output_tokens for r in requests], dtype=np.float64)
    context = np.array([r.prompt_tokens for r in requests], dtype=np.float64) + 0.5 * output
    if not len(requests):
        return 0.0
    batch = _batch(engine, context, output)
    running = output / output.sum()
    return float(running @ output) * engine.costs.decode_s(round(batch), round(batch * float(running @ context)))


def _batch(engine: EngineModel, context: Array, output: Array) -> float:
    held = engine.kv_capacity_tokens * float(output.sum()) / max(1.0, float(context @ output))
    return max(1.0, min(float(engine.max_running), held))


class _Cell(NamedTuple):
    """requests, in order of arrival, and their kinds; the first ``warmup_requests`` of them are not scored."""

    requests: list[RequestSpec]
    kinds: npt.NDArray[np.int64]
    replicas: int
    warmup_requests: int


class WhatIf:
    """The question for ``requests``, in order of arrival in ``span_s`` seconds, and replicas of ``engine`` under ``policy``.

    kinds: of each request, what goals tell apart. routing_policy: makes the one that routes between the replicas.
    max_requests: as many are simulated for one size of fleet, unless a minute of one replica has more; where that is less
    than all that one replica would get, it is the busiest stretch. What came before it, or the end of ``requests`` where that
    is too little, warms the fleet up and is not scored. Raises ``ValueError`` naming field and value; simulating raises
    :class:`~andes_sglang.sim.replica.RefusedError` for what can never fit.
    """

    def __init__(
        self,
        engine: EngineModel,
        policy: Callable[[], SchedulingPolicy | None],
        requests: Sequence[RequestSpec],
        span_s: float,
        goals: Sequence[Goal],
        *,
        kinds: Sequence[int] = (),
        routing_policy: Callable[[], RoutingPolicy] = QoE,
        max_requests: int = MAX_REQUESTS,
        decision_interval_s: float | None = None,
    ) -> None:
        if not span_s > 0:
            raise ValueError(f"span_s must be > 0 seconds, got {span_s!r}")
        self.engine, self.policy, self.routing_policy = engine, policy, routing_policy
        self.requests, self.span_s, self.goals = requests, span_s, tuple(goals)
        self.max_requests = max_requests
        self.decision_interval_s = decision_interval(engine) if decision_interval_s is None else decision_interval_s
        self._kinds = np.array(kinds or [0] * len(requests))
        self._times_s = np.array([r.arrival_s for r in requests])
        self._work_s = work_s(engine, requests)
        self._warmup_s = warmup_s(engine, requests)
        self.simulated: dict[int, SimulatedFleet] = {}

    @property
    def load(self) -> float:
        """Replicas that the work would keep busy."""
        return float(self._work_s.sum()) / self.span_s

    def fewest(self, max_replicas: int, *, min_replicas: int = 1, guess: int | None = None) -> int | None:
        """The fewest replicas in ``min_replicas..max_replicas`` that meet all goals; None: ``max_replicas`` do not. guess:
        where to begin, for instance a recent answer; by default the load."""
        step = 1
        if guess is None:
            guess = math.ceil(self.load)
            step = max(1, guess // 10)
        fewer = min_replicas - 1
        more = smallest_feasible(lambda n: self.meets(fewer + n), guess - fewer, max_replicas - fewer, step)
        return None if more is None else fewer + more

    def meets(self, replicas: int) -> bool:
        """Whether ``replicas`` meet all goals; simulated at the first question."""
        if replicas not in self.simulated:
            self.simulated[replicas] = self.simulate(replicas)
        return self.simulated[replicas].exact and self._met(self.simulated[replicas].values)

    def simulate(self, replicas: int) -> SimulatedFleet:
        """A cell of a fleet of ``replicas``, to the end or until the goals are out of reach."""
        cell = self._cell(replicas)
        requests, scored = cell.requests, slice(cell.warmup_requests, None)
        outcomes, residence_s = Outcomes.none(len(requests)), np.zeros(len(requests))

        def keep(record: RequestRecord) -> None:
            outcomes.keep(record)
            residence_s[record.index] = record.end_s - record.arrival_s

        fleet = Fleet(
            self.engine, self.policy, replicas=cell.replicas, routing_policy=self.routing_policy(),
            decision_interval_s=self.decision_interval_s, sink=keep,
        )  # fmt: skip

        def best() -> tuple[float | None, ...]:
            return outcomes.at_best(fleet).values(self.goals, cell.kinds, scored)

        every = max(10, len(requests) // CHECKS)
        for number, spec in enumerate(requests, start=1):
            fleet.submit(spec)
            if number % every == 0 and not self._met(values := best()):
                return SimulatedFleet(values, None)
        while fleet.open_requests:
            fleet.advance(fleet.now_s + DRAIN_STEP_S)
            if not self._met(values := best()):
                return SimulatedFleet(values, None)
        return SimulatedFleet(outcomes.values(self.goals, cell.kinds, scored), residence_s[scored])

    def _cell(self, replicas: int) -> _Cell:
        """The part of a fleet of ``replicas`` that is simulated. Its clock is stretched so that the work in a second is the
        fleet's, whichever requests were picked."""
        count = len(self.requests)
        cycle = max(1, count)
        each_rps = cycle / self.span_s / replicas
        cell = int(self.max_requests / each_rps / min(self.span_s, max(CELL_SPAN_S, 2 * self._warmup_s)))
        cell = max(1, min(replicas, cell))
        stretch = int(max(self.max_requests / cell, max(MIN_SPAN_S, self._warmup_s) * each_rps) * replicas)
        first = 0
        if stretch < count:
            first = int(np.argmin(self._times_s[stretch:] - self._times_s[:-stretch]))
            count = stretch
        begin = first - int(self._warmup_s * each_rps * replicas)
        every = begin + ((np.arange((first + count - begin) * cell // replicas) + 0.5) * replicas / cell).astype(
            np.int64
        )
        rounds, picked = np.divmod(every, cycle)
        fair_s = float(self._work_s[np.arange(begin, first + count) % cycle].sum()) * cell / replicas
        slower = float(self._work_s[picked].sum()) / fair_s if fair_s else 1.0
        times_s = self._times_s[picked] + rounds * self.span_s
        times_s = (times_s - times_s[:1]) * slower
        requests = [replace(self.requests[i], arrival_s=at) for i, at in zip(picked.tolist(), times_s.tolist())]
        return _Cell(requests, self._kinds[picked], cell, int(np.count_nonzero(every < first)))

    def _met(self, values: Sequence[float | None]) -> bool:
        return all(goal.met(value) for goal, value in zip(self.goals, values))
