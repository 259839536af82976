"""A reader's day and nightly jobs on one fleet, against two: GPU-hours at the same objective.

``python benchmarks/slack_day.py --traces FOLDER`` prints the table of docs/benchmarks/slack.md. Everything is simulated: a
day of recorded rates (ServeGen, 96 times compressed; requests, engines and readers are not) on 13B models on A100s. The fleet
of readers is static: the fewest replicas whose mean QoE in every two hours of the day is 0.95 or more. Jobs are there all
day, kept just ahead of each replica, with the lengths of the readers' requests. What they would take on engines of their own
comes from an engine that has nothing else. Followed: what a readers' fleet would take that had in every half hour, without
delay, as large a share of those replicas as the rate is of the highest. Two of stock: readers and jobs on fleets of stock
SGLang with mixed chunks, sized alike.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from andes_operator.forecast import BIN_S
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.autoscaling import Scenario
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.workload import SyntheticWorkload, load_rates, readers_of
from benchmarks.lengths import SHORT_CHAT
from benchmarks.markdown import Lines, header, row
from benchmarks.runs import INTERVAL_S
from benchmarks.settings import ARMS, STOCK, best_arm
from benchmarks.slack import PATIENT, Priority, engine_of

SETTING, TRACE, SPEED = "a100-13b", "servegen_msmall_rate_week1.csv.gz", 96.0
DAY_S = 86_400.0 / SPEED
PEAK_REPLICAS = 2.6
"""That the day's highest rate keeps busy, by arithmetic."""
OBJECTIVE, WINDOW_S = 0.95, 2 * 3600.0 / SPEED
JOBS_AHEAD, FEED_S = 64, 2.0
"""Offline requests that each replica has open, and how often that is seen to."""
FIRST_JOB = 10_000_000


class Jobs:
    """Keeps every replica of a fleet supplied with offline work; a static fleet's autoscaler by form."""

    interval_s = FEED_S

    def __init__(self, work: Iterator[RequestSpec], until_s: float) -> None:
        self._work, self._until_s = work, until_s
        self._numbers = itertools.count(FIRST_JOB)
        self._open: dict[int, int] = {}

    def done(self, record: RequestRecord) -> None:
        self._open[record.replica or 0] -= 1

    def desired_replicas(self, fleet: Fleet) -> int:
        for replica in fleet.serving if fleet.now_s < self._until_s else ():
            replica.advance(fleet.now_s)
            for _ in range(self._open.get(replica.index, 0), JOBS_AHEAD):
                spec = replace(next(self._work), arrival_s=fleet.now_s)
                replica.submit(spec, index=next(self._numbers))
                self._open[replica.index] = self._open.get(replica.index, 0) + 1
        return len(fleet.serving)


@dataclass(frozen=True)
class Day:
    """qoe: of readers, by arrival; worst: the least mean of two hours; job_tokens: of offline answers within the day."""

    qoe: np.ndarray[tuple[int], np.dtype[np.float64]]
    worst: float
    job_tokens: float


def serve(
    engine: EngineModel,
    policy: SchedulingPolicy | None,
    readers: Sequence[RequestSpec],
    replicas: int,
    jobs: Jobs | None,
) -> Day:
    records: list[RequestRecord] = []
    tokens = 0

    def sink(record: RequestRecord) -> None:
        nonlocal tokens
        if record.index < FIRST_JOB:
            records.append(record)
        elif jobs is not None:
            jobs.done(record)
            tokens += int(np.count_nonzero(record.token_times_s <= DAY_S))

    fleet = Fleet(
        engine, lambda: policy, replicas=replicas, autoscaler=jobs, decision_interval_s=INTERVAL_S, sink=sink
    )  # fmt: skip
    for spec in readers:
        fleet.submit(spec)
    fleet.advance(DAY_S)
    fleet.advance()
    records.sort(key=lambda record: record.arrival_s)
    qoe = np.array([record.qoe for record in records])
    windows = np.array([record.arrival_s // WINDOW_S for record in records], dtype=int)
    counts = np.bincount(windows)
    means = np.bincount(windows, qoe)[counts > 0] / counts[counts > 0] if len(qoe) else np.ones(1)
    return Day(qoe, float(means.min()), tokens)


def work_of(seed: int, *, yields: bool) -> Iterator[RequestSpec]:
    """Offline requests without end."""
    for again in itertools.count():
        drawn = SyntheticWorkload("jobs", ((1000.0, 1.0),), *SHORT_CHAT, readers_of("reading"), 1000 * seed + again)
        yield from (replace(spec, target=PATIENT, yields=yields) for spec in drawn)


def table(traces: Path, day: int, seed: int) -> Lines:
    rates = load_rates(traces / TRACE)
    if rates is None:
        raise SystemExit(f"{traces / TRACE}: no rates")
    flags = ARMS[best_arm(SETTING)]
    engine = engine_of(SETTING, flags)
    scenario = Scenario.of_day(
        rates, engine, day=day, day_windows=round(86_400.0 / BIN_S), peak_replicas=PEAK_REPLICAS, lengths=SHORT_CHAT,
        speed=SPEED, seed=seed,
    )  # fmt: skip
    yield f"{len(scenario.requests)} requests of readers, day {day} of {TRACE}"
    yield ""
    make_policy = configure(engine, flags)[1]
    replicas, alone = fewest(engine, make_policy, scenario.requests)
    stock = engine_of(SETTING, STOCK["stock, mixed"])
    stock_replicas, by_stock = fewest(stock, lambda: None, scenario.requests)
    rate, stock_rate = job_rate(engine, make_policy(), seed), job_rate(stock, None, seed)
    followed, readers_h = _followed(scenario, replicas), 24.0 * replicas
    yield from header("fleet, jobs", "readers, mean / p5 / worst 2 h", "lost, mean", "p5", "slack used", "GPU-h of readers",
                      "of jobs alone", "fewer than two fleets", "than two of stock", "than followed")  # fmt: skip
    yield row("stock, none", _readers(by_stock), "", "", "", f"{24 * stock_replicas}", "", "", "", "")
    yield row("andes, none", _readers(alone), "", "", "", f"{readers_h:.0f}", "", "", "", f"followed: {followed:.0f}")
    left = 24.0 * replicas * rate - sum(spec.output_tokens for spec in scenario.requests)
    for name, policy, yields in (
        ("andes, they yield", make_policy(), True),
        ("HyGen's rule", Priority(within_budget=True), False),
        ("strict priority", Priority(within_budget=False), False),
    ):
        base = alone if yields else serve(engine, policy, scenario.requests, replicas, None)
        both = serve(engine, policy, scenario.requests, replicas, Jobs(work_of(seed, yields=yields), DAY_S))
        hours, stock_hours = both.job_tokens / rate, both.job_tokens / stock_rate
        yield row(
            name, _readers(both), f"{base.qoe.mean() - both.qoe.mean():.3f}",
            f"{np.quantile(base.qoe, 0.05) - np.quantile(both.qoe, 0.05):.3f}", f"{both.job_tokens / left:.0%}",
            f"{readers_h:.0f}", f"{hours:.1f}", f"{1 - readers_h / (readers_h + hours):.0%}",
            f"{1 - readers_h / (24 * stock_replicas + stock_hours):.0%}", f"{1 - readers_h / (followed + hours):.0%}",
        )  # fmt: skip


def fewest(
    engine: EngineModel, make_policy: Callable[[], SchedulingPolicy | None], readers: Sequence[RequestSpec]
) -> tuple[int, Day]:
    """The fewest replicas that hold the objective, and the day on them."""
    for replicas in itertools.count(int(PEAK_REPLICAS)):
        alone = serve(engine, make_policy(), readers, replicas, None)
        if alone.worst >= OBJECTIVE:
            return replicas, alone
    raise AssertionError("some number does")


def job_rate(engine: EngineModel, policy: SchedulingPolicy | None, seed: int) -> float:
    """Tokens of jobs in an hour of the day on an engine that has nothing else."""
    return serve(engine, policy, (), 1, Jobs(work_of(seed, yields=False), DAY_S)).job_tokens / 24.0


def _readers(day: Day) -> str:
    return f"{day.qoe.mean():.3f} / {np.quantile(day.qoe, 0.05):.3f} / {day.worst:.3f}"


def _followed(scenario: Scenario, replicas: int) -> float:
    """GPU-hours of a fleet that follows demand without delay."""
    half_hours = np.bincount((np.array(scenario.arrivals_s) * SPEED // 1800.0).astype(int), minlength=48)
    return sum(max(1, math.ceil(replicas * int(n) / int(half_hours.max()))) for n in half_hours) / 2.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True, help="directory of recorded traces")
    parser.add_argument("--day", type=int, default=0, help="of the week that was recorded")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for line in table(given.traces, given.day, given.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
