"""The operator's forecast, what-if and decision as an autoscaler of a simulated fleet: what the benchmarks call "ours".

It sees what gateways and pods would tell: arrivals, how far open streams are, the QoE of those that ended. Streams without a
first token count in what it sees of QoE. The forecast runs by the autoscaler's clock, the what-if by that of the engines.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from andes_operator.decide import ScaleDecision, decide
from andes_operator.demand import ExpectedDemand, expected_demand
from andes_operator.forecast import DemandHistory, forecast
from andes_operator.gateway_report import ObservedRequest
from andes_operator.growth import KEPT_MINUTES, GrowthHistory
from andes_operator.ledger import MINUTE_S
from andes_operator.memory import Memory
from andes_operator.names import ALL_CLASSES
from andes_operator.observe import Observation, PodCounts
from andes_operator.sizing import MIN_KNOWN_S, Headroom, headroom, known_s
from andes_operator.spec import ClassObjective, DemandSource, ScaleTargetRef, ScalingBehavior, TargetSpec
from andes_operator.table import MIN_REQUESTS as MIN_TABULATED
from andes_operator.table import Table, near, tabulate
from andes_operator.whatif import Prediction, predict_replicas
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.sim.autoscaling import FinishedRequests, Scenario
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.whatif import work_s
from andes_sglang.sketch import Sketch

__all__ = ["FleetAutoscaler"]

READER_CLASS = "reader"
MIN_REQUESTS = 500
"""The what-if is shown at least as many recent requests: fewer say little about lengths."""
RATE_STEP = 1.05
"""An answer of the what-if is used again for rates within a step of this ratio; each costs seconds of CPU."""
HISTORY_S = 600.0
"""Clock seconds of requests that forecast and what-if are shown, as the operator reads them."""
WINDOW_S, UNCOMPRESSED_WINDOW_S = 900.0, 120.0
"""Clock seconds over which rate and QoE are taken: in a compressed day the operator's own 120 s have too few requests."""


class FleetAutoscaler:
    """Holds a mean QoE of ``target`` on a :class:`~andes_sglang.sim.autoscaling.Scenario`, by the operator's own code.

    engine, policy: what each replica runs, for the what-if. finished: filled by the run. forecasts: rates expected, by clock
    time; runs of one scenario may share it, because a forecast does not depend on the fleet. remember_s: clock seconds for
    which an answer of the what-if is kept. tables: of earlier runs on the same engine, policy and cold start, one of which
    is used where its lengths are near enough, as by an operator that has run for longer; new ones are added. max_replicas:
    bound of the target. headroom: whether it sizes for surges; without it, on the real clock only: in a compressed day no
    surge is longer than its buffers, and none is seen in minutes.
    """

    def __init__(
        self,
        scenario: Scenario,
        finished: FinishedRequests,
        engine: EngineModel,
        policy: Callable[[], SchedulingPolicy | None],
        *,
        target: float,
        max_replicas: int,
        remember_s: float = 3600.0,
        forecasts: dict[float, float] | None = None,
        tables: list[Table] | None = None,
        headroom: bool | None = None,
    ) -> None:
        self.scenario, self.finished, self.engine, self.policy = scenario, finished, engine, policy
        self.remember_s = remember_s
        simulated_s, defaults = scenario.simulated_s, ScalingBehavior()
        self.interval_s = max(simulated_s(defaults.tick_s), 1.0)
        self.spec = TargetSpec(
            ScaleTargetRef("apps/v1", "Deployment", "engine"),
            (ClassObjective(ALL_CLASSES, QoEObjective(Statistic.MEAN, target)),),
            1, max_replicas, DemandSource("gateway"),
            behavior=ScalingBehavior(
                tick_s=self.interval_s, cold_start_s=scenario.cold_start_s,
                window_s=UNCOMPRESSED_WINDOW_S if scenario.speed == 1.0 else simulated_s(WINDOW_S),
                down_stabilization_s=simulated_s(defaults.down_stabilization_s),
                down_period_s=simulated_s(defaults.down_period_s),
            ),
        )  # fmt: skip
        self.what_ifs = self.tables = 0
        self.said: list[tuple[float, ScaleDecision]] = []
        self.what_if_cpu_s = 0.0
        self._history = DemandHistory()
        at_s = 0.0
        for seconds, rate_rps in scenario.past:
            self._history.add(at_s, rate_rps, seconds)
            at_s += seconds
        self._memory = Memory()
        self._known: dict[int, tuple[int, Prediction]] = {}  # with the fewest replicas that it was asked for
        self._epoch = -1.0
        self._forecasts = {} if forecasts is None else forecasts
        self._expected: tuple[float, float] = (-1.0, 0.0)
        self._last: Prediction | None = None
        self.table: Table | None = None
        self._tables = [] if tables is None else tables
        self.growth = GrowthHistory()
        self.sizes = scenario.speed == 1.0 if headroom is None else headroom
        self.headroom: Headroom | None = None
        self._learn()

    def _learn(self) -> None:
        """Growth from the past, where it is known by the minute."""
        minutes: list[float] = []
        for number, (seconds, rate_rps) in enumerate(self.scenario.past):
            if seconds > MINUTE_S:
                return
            minutes = [*minutes, rate_rps][-KEPT_MINUTES:]
            self.growth.add(number, minutes)

    @property
    def known(self) -> dict[float, int | None]:
        """The what-if's answers that are still kept: replicas by requests/s."""
        return {RATE_STEP**key: known.fewest for key, (_, known) in sorted(self._known.items())}

    def desired_replicas(self, fleet: Fleet) -> int:
        seen = self.observe(fleet)
        self.headroom = self.size(seen) if self.sizes else None
        if self.sizes and self.headroom is None:
            return seen.pods.wanted  # the first minutes read high
        decision = self._decide(seen)
        self._memory = decision.memory
        self.said.append((seen.now_s, decision))
        return decision.replicas

    def _decide(self, seen: Observation) -> ScaleDecision:
        """The what-if takes seconds: with headroom it is asked only where its consent is all that a step down lacks, and
        of no fewer replicas than that."""
        fewest = 1
        if self.headroom is not None:
            consent = Prediction(seen.rate_rps, self.spec.objectives, self.spec.behavior.margin, 1, {})
            decision = decide(self.spec, seen, consent, self._memory, headroom=self.headroom)
            if decision.replicas >= seen.pods.wanted:
                return decision
            fewest = max(1, decision.replicas)
        return decide(self.spec, seen, self.predict(seen, fewest), self._memory, headroom=self.headroom)

    def size(self, seen: Observation) -> Headroom | None:
        """What survives a surge until help is there."""
        before, cold_s = self._memory.ledger, self.scenario.cold_start_s
        demand = expected_demand(self.spec, seen, max(seen.rate_rps, 1e-3), {}).of_readers()
        self._tabulate(seen, demand)
        known = (
            known_s(seen, before) >= MIN_KNOWN_S
        )  # of the answers of the first minutes only the short ones have ended
        work = float(work_s(self.engine, demand.requests).mean()) if known else None
        ledger = before.enter(seen, work, self.table.buffer.rho if self.table else None)
        if ledger.minute != before.minute:
            self.growth.add(int(self.scenario.clock_origin_s // MINUTE_S) + ledger.minute, ledger.minutes_rps)
        self._memory = replace(self._memory, ledger=ledger)
        return headroom(
            self.spec, seen, ledger, self.growth, self.table.buffer if self.table else None, cold_s=cold_s,
            orders=self._memory.changes,
        )  # fmt: skip

    def _tabulate(self, seen: Observation, demand: ExpectedDemand) -> None:
        if len(demand.requests) < MIN_TABULATED or known_s(seen, self._memory.ledger) < MIN_KNOWN_S:
            return
        lengths = demand.lengths(self.spec.objectives)
        if self.table is not None and self.table.holds(lengths, seen.now_s):
            return
        known = near(self._tables, lengths)
        if known is not None:
            self.table = replace(known, at_s=seen.now_s)
            return
        started_s = time.process_time()
        surge_s = self.scenario.cold_start_s + self.interval_s
        self.table = tabulate(self.spec, demand, self.engine, self.policy, surge_s=surge_s, at_s=seen.now_s)
        self._tables.append(self.table)
        self.tables += 1
        self.what_if_cpu_s += time.process_time() - started_s

    def observe(self, fleet: Fleet) -> Observation:
        """What gateways and pods would tell now."""
        scenario, now_s, behavior = self.scenario, fleet.now_s, self.spec.behavior
        current = len(fleet.serving) + len(fleet.starting)
        late, waiting, generated = Sketch(), 0, {}
        for replica in fleet.replicas:
            for job in replica.by_rid.values():
                generated[job.index] = replica.generated(job)
                if not generated[job.index]:
                    waiting += 1
                    late.add(float(now_s <= job.spec.arrival_s + job.spec.target.ttft_s))
        ended = Sketch()
        for record in self.finished.since(now_s - behavior.window_s):
            ended.add(record.qoe)
        recent = scenario.recent(now_s, scenario.simulated_s(HISTORY_S), MIN_REQUESTS)
        since_s = max(0.0, min([now_s - scenario.simulated_s(HISTORY_S), *(r.arrival_s for _, r in recent[:1])]))
        pods = PodCounts(current, current, len(fleet.serving), returnable=len(fleet.starting))
        return Observation(
            now_s, pods, scenario.rate_rps(now_s, behavior.window_s), complete_since_s=since_s,
            open_streams=fleet.open_requests, engine_requests=fleet.open_requests, waiting=waiting,
            ended={READER_CLASS: ended}, running={READER_CLASS: late},
            recent=tuple(
                ObservedRequest(
                    r.arrival_s, READER_CLASS, r.prompt_tokens, generated.get(i, r.output_tokens), i not in generated,
                    reason_tokens=min(r.reason_tokens, generated.get(i, r.output_tokens)),
                    target=r.target, weight=r.weight, yields=r.yields, expected_tokens=r.expected_tokens,
                )
                for i, r in recent
            ),
        )  # fmt: skip

    def predict(self, seen: Observation, fewest: int = 1) -> Prediction:
        """The forecast, then the what-if for ``fewest`` replicas or more: an answer that is kept, or a new one."""
        started_s, clock_s = time.process_time(), self.scenario.clock_origin_s + seen.now_s * self.scenario.speed
        expected_rps = self._forecast_rps(seen, clock_s)
        epoch = clock_s // self.remember_s
        if epoch != self._epoch:
            self._epoch = epoch
            self._known.clear()
        load_factor = 1.0 if self._last is None else self._last.update_load_factor(seen, self.spec.behavior.window_s)
        rate_rps = max(expected_rps, seen.rate_rps, 1e-3) * load_factor
        key = round(math.log(rate_rps) / math.log(RATE_STEP))
        asked, known = self._known.get(key, (0, None))
        if known is None or known.fewest == asked > fewest:
            demand, spec = expected_demand(self.spec, seen, RATE_STEP**key, {}), replace(self.spec, min_replicas=fewest)
            known = predict_replicas(
                spec, demand, self.engine, self.policy, last=self._last, current=seen.pods.ready,
                guess=fewest if fewest > 1 else None,
            )  # fmt: skip
            self._known[key] = fewest, known
            self.what_ifs += 1
        self._last = replace(known, load_factor=load_factor, at_s=seen.now_s)
        self.what_if_cpu_s += time.process_time() - started_s
        return self._last

    def _forecast_rps(self, seen: Observation, clock_s: float) -> float:
        """Requests per simulated second that are expected when a replica ordered now would serve. With days to learn a season
        from, once for each bin of the history."""
        scenario = self.scenario
        speed, seasonal = scenario.speed, bool(scenario.past)
        began = self._history.add(clock_s, seen.rate_rps / speed, self.interval_s * speed)
        if seasonal and began and clock_s in self._forecasts:
            self._expected = clock_s, self._forecasts[clock_s]
        elif not seasonal or began or self._expected[0] < 0:
            horizon_s = (scenario.cold_start_s + self.interval_s) * speed
            arrivals_s = [scenario.clock_origin_s + r.arrival_s * speed for r in seen.recent]
            since_s = clock_s - min(HISTORY_S, seen.now_s * speed)
            arrivals_s = arrivals_s[bisect_left(arrivals_s, since_s) :]
            told = forecast(
                self._history, arrivals_s, clock_s,
                since_s=since_s, rate_rps=seen.rate_rps / speed, horizon_s=horizon_s,
            )  # fmt: skip
            self._expected = clock_s, told.rate_rps * speed
            self._forecasts[clock_s] = self._expected[1]
        return self._expected[1]
