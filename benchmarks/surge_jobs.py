"""The night of the day of ``surges.py`` with offline work beside its readers: what a replica makes, and what readers get.

``python benchmarks/surge_jobs.py TRACES`` prints the table of docs/benchmarks/autoscaling.md. Everything is simulated. Jobs
have the lengths of the readers' requests, yield to them, and are always some ahead. One replica of each scheduler that has
nothing else, then one with andes beside the readers of the night, without jobs and with.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.autoscaling import FinishedRequests, Scenario, simulate_scenario
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.whatif import decision_interval
from benchmarks.markdown import Lines, header, row
from benchmarks.slack import PATIENT
from benchmarks.slack_day import Jobs
from benchmarks.surge_report import worst
from benchmarks.surges import SCHEDULERS, SHAPES, Runs, add_runs, figures, requests_of

HOUR_S = 3600.0


class CountedJobs(Jobs):
    """Jobs until ``until_s``, and the tokens of their answers."""

    def __init__(self, pool: Sequence[RequestSpec], until_s: float) -> None:
        super().__init__(_drawn(pool), until_s)
        self.tokens = 0

    def done(self, record: RequestRecord) -> None:
        super().done(record)
        self.tokens += len(record.token_times_s)


def _drawn(pool: Sequence[RequestSpec]) -> Iterator[RequestSpec]:
    chance = np.random.default_rng(1)
    while True:
        yield replace(pool[int(chance.integers(len(pool)))], target=PATIENT, yields=True)


def rate(
    engine: EngineModel, policy: Callable[[], SchedulingPolicy | None], pool: Sequence[RequestSpec], lasts_s: float
) -> float:
    """Tokens of jobs in an hour of a replica that has nothing else, paid to the last answer."""
    jobs = CountedJobs(pool, lasts_s)
    fleet = Fleet(engine, policy, autoscaler=jobs, decision_interval_s=decision_interval(engine), sink=jobs.done)
    fleet.advance(lasts_s)
    fleet.advance()
    return jobs.tokens / fleet.replica_s * HOUR_S


def table(runs: Runs, lasts_s: float, seed: int) -> Lines:
    busy = SHAPES["day"][0][1]
    requests = requests_of(((0.0, busy), (lasts_s, busy)), runs.pool, runs.engine, seed)
    scenario = Scenario(requests, runs.engine)
    yield from header("one replica", "readers' worst window", "tokens/s of jobs")
    for name, arm in SCHEDULERS.items():
        yield row(f"jobs alone, {name}", "", f"{rate(*configure(runs.engine, arm), runs.pool, lasts_s) / HOUR_S:.0f}")
    engine, policy = configure(runs.engine, SCHEDULERS["andes"])
    for jobs in (None, CountedJobs(runs.pool, scenario.span_s)):
        finished = FinishedRequests()
        run = simulate_scenario(
            scenario, policy, jobs, replicas=1, engine=engine, finished=finished,
            decision_interval_s=decision_interval(engine), beside=jobs.done if jobs else lambda _record: None,
        )  # fmt: skip
        tokens = jobs.tokens / run.replica_hours / HOUR_S if jobs else 0.0
        what = "readers and jobs" if jobs else f"{len(requests)} readers"
        yield row(f"{what}, andes", worst(figures(run, scenario, finished)), f"{tokens:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_runs(parser)
    parser.add_argument("--seed", type=int, default=1, help="of arrivals; default: %(default)s")
    parser.add_argument("--hours", type=float, default=2.0, help="of the night; default: %(default)s")
    given = parser.parse_args()
    for line in table(Runs(given), given.hours * HOUR_S, given.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
