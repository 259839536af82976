"""The day of ``surges.py`` with offline work at night on one fleet: what it costs, and what the work would take alone.

``python benchmarks/surge_jobs.py TRACES`` prints the table of docs/benchmarks/autoscaling.md. Everything is simulated. Jobs
have the lengths of the readers' requests, yield to them, and are there from 22:00 to 06:00, always some ahead at each replica
that serves; a replica that goes ends those it has, and is paid until then. What they would take alone comes from one replica
of each scheduler that has nothing else for two hours. The operator sees none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.autoscaling import FinishedRequests, simulate_scenario
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Autoscaler, Fleet
from andes_sglang.sim.whatif import decision_interval
from benchmarks.markdown import Lines, header, row
from benchmarks.slack import PATIENT
from benchmarks.slack_day import Jobs
from benchmarks.surge_report import worst
from benchmarks.surges import SCHEDULERS, START_REPLICAS, Runs, add_runs, figures, ours

TICK_S, HOUR_S = 15.0, 3600.0
NIGHT_H = (22.0, 6.0)
ALONE_S = 2 * HOUR_S


class NightJobs:
    """An autoscaler whose replicas also get jobs at night until ``until_s``. scaler: of readers; None: a fixed fleet."""

    interval_s = TICK_S

    def __init__(
        self, pool: Sequence[RequestSpec], seed: int, until_s: float, scaler: Autoscaler | None = None
    ) -> None:
        self.scaler = scaler
        self.tokens = self.ended = 0
        self._jobs = Jobs(_drawn(pool, seed), until_s)

    def done(self, record: RequestRecord) -> None:
        self._jobs.done(record)
        self.tokens, self.ended = self.tokens + len(record.token_times_s), self.ended + 1

    def desired_replicas(self, fleet: Fleet) -> int:
        hour = fleet.now_s / HOUR_S % 24.0
        if hour >= NIGHT_H[0] or hour < NIGHT_H[1]:
            self._jobs.desired_replicas(fleet)
        return len(fleet.serving) if self.scaler is None else self.scaler.desired_replicas(fleet)


def _drawn(pool: Sequence[RequestSpec], seed: int) -> Iterator[RequestSpec]:
    chance = np.random.default_rng(seed)
    while True:
        yield replace(pool[int(chance.integers(len(pool)))], target=PATIENT, yields=True)


def rate(engine: EngineModel, policy: Callable[[], SchedulingPolicy | None], pool: Sequence[RequestSpec]) -> float:
    """Tokens of jobs in an hour of a replica that has nothing else, paid to the last answer."""
    jobs = NightJobs(pool, 2, ALONE_S)
    fleet = Fleet(
        engine, policy, autoscaler=jobs, decision_interval_s=decision_interval(engine), sink=jobs.done
    )  # fmt: skip
    fleet.advance(ALONE_S)
    fleet.advance()
    return jobs.tokens / fleet.replica_s * HOUR_S


def table(runs: Runs, shape: str, seed: int) -> Lines:
    alone = {name: rate(*configure(runs.engine, arm), runs.pool) for name, arm in SCHEDULERS.items()}
    yield ", ".join(f"jobs alone, {name}: {tokens / HOUR_S:.0f} tokens/s" for name, tokens in alone.items())
    yield ""
    scenario, finished = runs.scenario(shape, seed), FinishedRequests()
    engine, policy = configure(scenario.engine, SCHEDULERS["andes"])
    readers = ours(scenario, finished, "andes", runs.tables("andes")[1])
    jobs = NightJobs(runs.pool, seed, scenario.span_s, readers)
    run = simulate_scenario(
        scenario, policy, jobs, replicas=START_REPLICAS, engine=engine, finished=finished,
        decision_interval_s=decision_interval(engine), beside=jobs.done,
    )  # fmt: skip
    got = figures(run, scenario, finished)
    yield from header(
        "readers' worst window", "replica-hours, both", "jobs", "their tokens", "replica-hours alone, stock", "andes"
    )
    yield row(worst(got), f"{got['replica_hours']:.2f}", jobs.ended, jobs.tokens,
              f"{jobs.tokens / alone['stock']:.2f}", f"{jobs.tokens / alone['andes']:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_runs(parser)
    parser.add_argument("--seed", type=int, default=1, help="of arrivals; default: %(default)s")
    given = parser.parse_args()
    for line in table(Runs(given), "day", given.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
