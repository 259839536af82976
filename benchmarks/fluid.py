"""The operator's decisions on a fleet that is a fluid: what a surge costs, and what limits it. A second a run.

A replica does ``--rho`` seconds of work a second; readers notice where more than ``--buffer`` seconds of what is carried are
put off. Demand is that of ``surges.py``, decisions are ``andes_operator``'s. So settings can be compared, by replica-hours
and by how much of the buffer was used at worst; what readers get cannot be told. ``python benchmarks/fluid.py --shapes ramp
--set growth.USUAL_QUANTILE=0.5``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from andes_operator import table
from andes_operator.decide import decide
from andes_operator.gateway_report import ObservedRequest
from andes_operator.growth import KEPT_MINUTES, GrowthHistory
from andes_operator.memory import Memory
from andes_operator.observe import Observation, PodCounts
from andes_operator.sizing import MIN_KNOWN_S, Headroom, headroom, known_s
from andes_operator.spec import ClassObjective, DemandSource, ScaleTargetRef, ScalingBehavior, TargetSpec
from andes_operator.whatif import Prediction
from andes_sglang.objective import QoEObjective
from andes_sglang.sim.buffer import Buffer
from benchmarks.arguments import add_constants, listed, set_constants
from benchmarks.markdown import header, row
from benchmarks.surges import MAX_REPLICAS, MINUTE_CV, MOST_BUSY, SHAPES, START_REPLICAS, Shape

WORK_S = 2.572
"""Of a request: reasoning lengths on an L4."""
TICK_S, HISTORY_S, WINDOW_S, TAIL_S = 15.0, 600.0, 120.0, 300.0
DAY_MINUTES = 1440


def arrivals(shape: Shape, seed: int) -> npt.NDArray[np.float64]:
    """Seconds, in order; as those of ``surges.requests_of``."""
    chance = np.random.default_rng(seed)
    lasts, levels = np.array(shape).T
    ends_s, made = np.cumsum(lasts), []
    for minute_s in np.arange(0.0, ends_s[-1], 60.0):
        times_s = minute_s + 60.0 * np.sort(chance.random(chance.poisson(60.0 * MOST_BUSY / WORK_S)))
        busy = np.interp(times_s, ends_s, levels) * chance.gamma(1 / MINUTE_CV**2, MINUTE_CV**2)
        made.append(times_s[(chance.random(len(times_s)) < busy / MOST_BUSY) & (times_s < ends_s[-1])])
    return np.concatenate(made)


def days(shape: Shape, seed: int, count: int) -> GrowthHistory:
    """The growth of ``count`` days that begin with ``shape`` and are calm from its end on."""
    history = GrowthHistory()
    for day in range(count):
        counts, _ = np.histogram(
            arrivals(shape, 1000 * seed + day), np.arange(0.0, sum(s for s, _ in shape) + 60.0, 60.0)
        )
        calm = np.random.default_rng(day).poisson(60.0 * shape[0][1] / WORK_S, DAY_MINUTES - len(counts))
        rates: list[float] = []
        for minute, number in enumerate([*counts, *calm]):
            rates = [*rates, float(number) / 60.0][-KEPT_MINUTES:]
            history.add(DAY_MINUTES * day + minute, rates)
    return history


@dataclass(slots=True)
class Fleet:
    """ready, and when the others will be, in seconds; backlog_s: replica-seconds of work; used: of the buffer, at most."""

    ready: int
    starting_s: list[float]
    backlog_s: float = 0.0
    used: float = 0.0
    over_s: float = 0.0
    hours: float = 0.0
    most: int = 0

    def step(self, now_s: float, work_s: float, buffer: Buffer) -> None:
        """``TICK_S`` until ``now_s``, in which ``work_s`` arrives."""
        self.ready += sum(at_s <= now_s for at_s in self.starting_s)
        self.starting_s = [at_s for at_s in self.starting_s if at_s > now_s]
        self.backlog_s = max(0.0, self.backlog_s + work_s - buffer.rho * self.ready * TICK_S)
        used = self.backlog_s / (buffer.rho * self.ready * buffer.seconds)
        self.used, self.over_s = max(self.used, used), self.over_s + TICK_S * (used > 1.0)
        self.hours += (self.ready + len(self.starting_s)) * TICK_S / 3600.0
        self.most = max(self.most, self.ready + len(self.starting_s))

    def scale(self, replicas: int, serves_s: float) -> None:
        fewer = self.ready + len(self.starting_s) - replicas
        self.starting_s += [serves_s] * -fewer
        gone = min(max(0, fewer), len(self.starting_s))
        self.starting_s = self.starting_s[: len(self.starting_s) - gone]
        self.ready -= max(0, fewer) - gone


class Target:
    """One target and its fleet. buffer: the true one, of which the operator counts on ``MAX_PUT_OFF``. came_s: work that has
    come, in replica-seconds; timely_s: of it, what came while readers noticed nothing."""

    def __init__(
        self, shape: Shape, seed: int, buffer: Buffer, behavior: ScalingBehavior, *, past_days: int = 0,
        replicas: int = START_REPLICAS, max_replicas: int = MAX_REPLICAS,
    ) -> None:  # fmt: skip
        self.at_s, self.origin_s, self.buffer, self.behavior = (
            arrivals(shape, seed), 60.0 * DAY_MINUTES * past_days, buffer, behavior)  # fmt: skip
        self.span_s = sum(seconds for seconds, _ in shape) + TAIL_S
        self.spec = TargetSpec(
            ScaleTargetRef("apps/v1", "Deployment", "engine"),
            (ClassObjective("*", QoEObjective.parse("mean>=0.95")),),
            1, max_replicas, DemandSource("gateway"), behavior=behavior,
        )  # fmt: skip
        self.growth, self.memory, self.fleet = days(shape, seed, past_days), Memory(), Fleet(replicas, [])
        self.found: Headroom | None = None
        self.rate_rps = self.came_s = self.timely_s = 0.0
        self._records = [ObservedRequest(self.origin_s + t, "reader", 500, 700, True) for t in self.at_s.tolist()]

    def _between(self, since_s: float, until_s: float) -> slice:
        return slice(int(np.searchsorted(self.at_s, since_s)), int(np.searchsorted(self.at_s, until_s)))

    def look(self, now_s: float) -> int:
        """``TICK_S`` until ``now_s`` pass; the replicas that are decided for."""
        fleet, came = self.fleet, self._between(now_s - TICK_S, now_s)
        work_s, over_s = WORK_S * (came.stop - came.start), fleet.over_s
        fleet.step(now_s, work_s, self.buffer)
        self.came_s += work_s
        self.timely_s += work_s if fleet.over_s == over_s else 0.0
        seen = self._observe(now_s)
        ledger = self.memory.ledger
        known, before = known_s(seen, ledger) >= MIN_KNOWN_S, ledger.minute
        ledger = ledger.enter(seen, WORK_S if known else None, self.buffer.rho)
        if ledger.minute != before:
            self.growth.add(ledger.minute, ledger.minutes_rps)
        self.memory = replace(self.memory, ledger=ledger)
        counted = self.buffer._replace(seconds=table.MAX_PUT_OFF * self.buffer.seconds)
        self.found = headroom(
            self.spec, seen, ledger, self.growth, counted if known else None,
            cold_s=self.behavior.cold_start_s or 0.0, orders=self.memory.changes,
        )  # fmt: skip
        if self.found is None:
            return seen.pods.wanted
        consent = Prediction(seen.rate_rps, self.spec.objectives, self.behavior.margin, 1, {})
        decision = decide(self.spec, seen, consent, self.memory, headroom=self.found)
        self.memory = decision.memory
        return decision.replicas

    def _observe(self, now_s: float) -> Observation:
        there, lately = self.fleet.ready + len(self.fleet.starting_s), self._between(now_s - WINDOW_S, now_s)
        self.rate_rps = (lately.stop - lately.start) / min(WINDOW_S, now_s)
        return Observation(
            self.origin_s + now_s, PodCounts(there, there, self.fleet.ready, returnable=len(self.fleet.starting_s)),
            self.rate_rps, complete_since_s=self.origin_s + max(0.0, now_s - HISTORY_S), open_streams=1,
            engine_requests=1, recent=tuple(self._records[self._between(now_s - HISTORY_S, now_s)]),
        )  # fmt: skip


def run(target: Target) -> Fleet:
    """Alone, to its end."""
    for now_s in np.arange(TICK_S, target.span_s + TICK_S, TICK_S).tolist():
        target.fleet.scale(target.look(now_s), now_s + (target.behavior.cold_start_s or 0.0))
    return target.fleet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", type=listed(SHAPES), default="flash,ramp", help=f"of {', '.join(SHAPES)}; default: %(default)s"
    )
    parser.add_argument("--rho", type=float, default=1.08, help="load that a replica carries; default: %(default)s")
    parser.add_argument(
        "--buffer", type=float, default=220.0, help="seconds of it that can be put off; default: %(default)s"
    )
    parser.add_argument("--cold-start", type=float, default=300.0, help="seconds; default: %(default)s")
    parser.add_argument("--days", type=int, default=0, help="of the same shape as history; default: %(default)s")
    parser.add_argument("--down-window", type=float, default=120.0, help="stabilisation, seconds; default: %(default)s")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="of arrivals; default: %(default)s")
    add_constants(parser)
    args = parser.parse_args()
    set_constants(args.set)
    behavior = ScalingBehavior(tick_s=TICK_S, cold_start_s=args.cold_start, down_stabilization_s=args.down_window)
    print(
        "\n".join(header("shape", "seed", "replica-hours", "buffer used at worst", "seconds over it", "most replicas"))
    )
    for name in args.shapes:
        for seed in map(int, args.seeds.split(",")):
            target = Target(SHAPES[name], seed, Buffer(args.rho, args.buffer), behavior, past_days=args.days)
            fleet = run(target)
            print(
                row(name, seed, f"{fleet.hours:.2f}", f"{fleet.used:.0%}", f"{fleet.over_s:.0f}", fleet.most),
                flush=True,
            )


if __name__ == "__main__":
    main()
