"""Surges on the real clock: what an autoscaler pays for readers who must wait for a cold start, and what they get meanwhile.

Everything is simulated, on roofline profiles. ``python benchmarks/surges.py TRACES`` runs what is missing (one JSON a run
under ``--out``) and prints the tables, of those runs and of what docs/benchmarks/surges.csv keeps; ``--report`` only
prints them, ``--page`` puts them into docs/benchmarks and the figures into that file. Shapes are synthetic, in replicas'
worth of work; lengths are those of recorded requests of the file ``--lengths`` in TRACES.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from andes_operator.demand import Lengths
from andes_operator.fleet_autoscaler import FleetAutoscaler
from andes_operator.table import Table
from andes_sglang.arms import Arm
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.autoscaling import (
    AutoscalingRun,
    ClairvoyantAutoscaler,
    FinishedRequests,
    MetricAutoscaler,
    RatePlanner,
    Scenario,
    kv_utilisation,
    open_requests,
    simulate_scenario,
)
from andes_sglang.sim.buffer import Buffer
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Autoscaler
from andes_sglang.sim.plan import smallest_feasible
from andes_sglang.sim.whatif import decision_interval, work_s
from andes_sglang.workload import load_trace
from benchmarks.arguments import add_constants, set_constants
from benchmarks.markdown import replace_table
from benchmarks.surge_report import (
    CLAIRVOYANT,
    HPA,
    KEDA,
    MEAN,
    OURS,
    PLANNER,
    STATIC,
    Case,
    bars,
    everything,
    holds_both,
    holds_mean,
    kept,
    latest,
    of_case,
    picture,
    record,
    recorded,
)

Shape = tuple[tuple[float, float], ...]
"""Seconds, and the busy replicas at their end; straight lines between."""

CALM = 4.0
BUSIEST_MINUTE = 1.7
"""Times its ten minutes, as on ServeGen's services (1.55 to 1.78)."""


def ten_minutes(level: float) -> Shape:
    """Of one mean, of which one minute is the busiest."""
    rest = level * (10.0 - BUSIEST_MINUTE) / 9.0
    return ((6, rest), (264, rest), (6, level * BUSIEST_MINUTE), (54, level * BUSIEST_MINUTE), (6, rest), (264, rest))


SHAPES: dict[str, Shape] = {
    "flash": ((0, CALM), (1200, CALM), (60, 12), (300, 12), (60, CALM), (1080, CALM)),
    "ramp": ((0, CALM), (900, CALM), (1200, 10), (900, 10), (1200, CALM), (900, CALM)),
    "evening": ((0, 3), (7200, 5), (600, 8), (2100, 11), (2100, 8), (600, 4.5), (9000, 3)),
    "bursts": ((0, CALM), *4 * ten_minutes(CALM), *ten_minutes(2 * CALM), *4 * ten_minutes(CALM)),
    "day": ((0, 0.25), (19800, 0.25), (12600, 1.6), (28800, 1.6), (10800, 3.5), (7200, 3.5), (7200, 0.25)),
}
RECORDED = "recorded"
"""Not of a shape: the requests of ``--lengths`` as they came."""
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
PAGES, RECORD = (DOCS / "autoscaling.md", DOCS / "surges.md"), DOCS / "surges.csv"
"""Of the bars and of every arm; and what all runs gave."""
SCHEDULERS = {
    "stock": Arm("stock-mixed"),
    "andes": Arm("andes", ("--enable-mixed-chunk", "--preemption-mode", "offload")),
}
SETTINGS = {
    HPA: (0.5, 0.7, 0.85), KEDA: (0.3, 0.5, 0.7, 1.0, 1.5, 3.0), PLANNER: (0.6, 0.75, 0.9), OURS: (0.0,),
    CLAIRVOYANT: (0.85, 1.0, 1.15),
}  # fmt: skip
"""KEDA's are shares of the batch that the KV pool holds; the planner's and the clairvoyant's of what a replica takes."""
OFFSET_S = 86_400.0
"""Seconds from one day of ``--days`` to the next."""
LENGTHS = "servegen_r1_surge_rt.jsonl.gz"
WINDOW_S, MIN_REQUESTS = 300.0, 20
MINUTE_CV = 0.15
"""Of the rate by minute, beyond Poisson: ServeGen's clients, uncompressed."""
START_REPLICAS, MAX_REPLICAS = 7, 40
MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 8000, 4000


def requests_of(shape: Shape, pool: Sequence[RequestSpec], engine: EngineModel, seed: int) -> list[RequestSpec]:
    """Arrivals that keep as many replicas busy as ``shape`` says, each like one of ``pool``."""
    chance = np.random.default_rng(seed)
    lasts, levels = np.array(shape).T
    ends_s, mean_s = np.cumsum(lasts), float(work_s(engine, pool).mean())
    made = []
    for minute_s in np.arange(0.0, ends_s[-1], 60.0):
        times_s = minute_s + 60.0 * np.sort(chance.random(chance.poisson(60.0 * MOST_BUSY / mean_s)))
        busy = np.interp(times_s, ends_s, levels) * chance.gamma(1 / MINUTE_CV**2, MINUTE_CV**2)
        kept = times_s[(chance.random(len(times_s)) < busy / MOST_BUSY) & (times_s < ends_s[-1])]
        made += [
            replace(pool[int(k)], arrival_s=float(t)) for t, k in zip(kept, chance.integers(len(pool), size=len(kept)))
        ]
    return made


MOST_BUSY = 24.0
"""Busy replicas that no minute exceeds: arrivals are drawn at this rate and thinned."""


def rival(arm: str, value: float, scenario: Scenario, engine: EngineModel, finished: FinishedRequests) -> Autoscaler:
    """One of the others, at one of its settings."""
    if arm == KEDA:
        context = float(np.mean([r.prompt_tokens + r.output_tokens / 2 for r in scenario.requests]))
        batch = min(engine.max_running, engine.kv_capacity_tokens / context)
        return MetricAutoscaler(value * batch, open_requests, max_replicas=MAX_REPLICAS)
    if arm == HPA:
        return MetricAutoscaler(value, kv_utilisation, max_replicas=MAX_REPLICAS)
    if arm == PLANNER:
        return RatePlanner(scenario, finished, value, max_replicas=MAX_REPLICAS)
    return ClairvoyantAutoscaler(scenario, value, max_replicas=MAX_REPLICAS)


def figures(run: AutoscalingRun, scenario: Scenario, finished: FinishedRequests) -> dict[str, Any]:
    """What a run cost, and what readers got in its windows."""
    at_s = np.array([r.arrival_s for r in finished.records])
    qoe = np.array([r.qoe for r in finished.records])
    windows = [qoe[(at_s >= t) & (at_s < t + WINDOW_S)] for t in np.arange(0.0, scenario.span_s, WINDOW_S)]
    windows = [w for w in windows if len(w) >= MIN_REQUESTS]
    return {
        "replica_hours": run.replica_hours, "mean": run.mean, "most": run.max_replicas, "requests": run.requests,
        "worst_mean": min(float(w.mean()) for w in windows),
        "worst_share": min(float((w >= 0.95).mean()) for w in windows),
        "windows": [(float(w.mean()), float((w >= 0.95).mean())) for w in windows], "timeline": run.timeline,
    }  # fmt: skip


class Runs:
    """Results by shape, scheduler, autoscaler, setting and seed, kept in files."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.engine = profiles.load(args.profile).engine
        self._pool: Sequence[RequestSpec] = ()

    @property
    def pool(self) -> Sequence[RequestSpec]:
        """Requests whose lengths and readers are drawn from."""
        if not self._pool:
            if self.args.folder is None:
                raise SystemExit("TRACES: give the directory with the traces")
            trace = load_trace(self.args.folder / self.args.lengths, seed=1)
            trace = trace.scaled(max_prompt=MAX_PROMPT_TOKENS, max_output=MAX_OUTPUT_TOKENS)
            read = trace.with_readers(1, ttft_s=None, tds=None, population="reading").requests
            self._pool = [replace(r, reason_tokens=int(self.args.hidden * r.output_tokens)) for r in read]
        return self._pool

    def scenario(self, shape: str, seed: int) -> Scenario:
        if shape == RECORDED:
            return Scenario(self.pool, self.engine, clock_cold_start_s=self.args.cold_start)
        requests = requests_of(SHAPES[shape], self.pool, self.engine, seed)
        past = tuple(rate for day in range(self.args.days) for rate in self._day(shape, seed, day))
        return Scenario(requests, self.engine, clock_cold_start_s=self.args.cold_start, past=past)

    def demand(self, shape: str) -> tuple[Sequence[float], Sequence[float]]:
        """Minutes, and the busy replicas then."""
        if shape in SHAPES:
            lasts_s, busy = zip(*SHAPES[shape], strict=True)
            return (np.cumsum(lasts_s) / 60.0).tolist(), busy
        requests = self.scenario(shape, 1).requests
        edges_s = np.arange(0.0, requests[-1].arrival_s + WINDOW_S, WINDOW_S)
        work, _ = np.histogram([r.arrival_s for r in requests], edges_s, weights=work_s(self.engine, requests))
        return (edges_s[1:] / 60.0).tolist(), (work / WINDOW_S).tolist()

    def _day(self, shape: str, seed: int, day: int) -> Iterator[tuple[float, float]]:
        """Rates by the minute of a day that begins as ``shape`` does and is calm from its end on; of another draw."""
        calm = SHAPES[shape][0][1]
        lasts_s = sum(seconds for seconds, _ in SHAPES[shape])
        whole = (*SHAPES[shape], (OFFSET_S - lasts_s, calm))
        drawn = requests_of(whole, self.pool, self.engine, 1000 * seed + day)
        counts, _ = np.histogram([r.arrival_s for r in drawn], np.arange(0.0, OFFSET_S + 60.0, 60.0))
        yield from ((60.0, float(count) / 60.0) for count in counts)

    def path(self, shape: str, scheduler: str, arm: str, value: float, seed: int) -> Path:
        arm_words = (
            arm if arm != OURS else " ".join([arm, *self.args.set, *[f"{self.args.days}days"] * bool(self.args.days)])
        )
        start = "" if arm == STATIC else f"{self.args.cold_start:g}s "
        return self._file(f"{self.served} {shape} {start}{scheduler} {arm_words} {value:g} seed{seed}")

    @property
    def served(self) -> str:
        """What is served on which engine, in words."""
        lengths = "" if self.args.lengths == LENGTHS else f" {self.args.lengths.partition('.')[0]}"
        hidden = f" hidden{self.args.hidden:g}" if self.args.hidden else ""
        return f"{self.args.profile}{lengths}{hidden}"

    def _file(self, words: str) -> Path:
        return Path(self.args.out) / f"{words.replace(',', '').replace(' ', '_')}.json"

    def tables(self, scheduler: str) -> tuple[Path, list[Table]]:
        """What ours has tabulated in earlier runs on this engine (those of a release with other figures are left out), and
        where it is kept."""
        path = self._file(" ".join(["tables", self.served, f"{self.args.cold_start:g}s", scheduler, *self.args.set]))
        said = json.loads(path.read_text()) if path.exists() else []
        return path, [Table(Buffer(*t["buffer"]), Lengths(*t["lengths"]), t["at_s"]) for t in said
                      if len(t["lengths"]) == len(Lengths._fields)]  # fmt: skip

    def get(self, shape: str, scheduler: str, arm: str, value: float, seed: int) -> dict[str, Any]:
        path = self.path(shape, scheduler, arm, value, seed)
        if not path.exists():
            result = self._run(shape, scheduler, arm, value, seed)
            path.write_text(json.dumps(result))
            print(f"{path.stem}: {result['replica_hours']:.2f} replica-hours, worst window {result['worst_mean']:.3f} / "
                  f"{result['worst_share']:.3f}, {result['cpu_s']:.0f} CPU s", flush=True)  # fmt: skip
        return dict(json.loads(path.read_text()))

    def _run(self, shape: str, scheduler: str, arm: str, value: float, seed: int) -> dict[str, Any]:
        scenario, finished, started_s = self.scenario(shape, seed), FinishedRequests(), time.process_time()
        engine, policy = configure(scenario.engine, SCHEDULERS[scheduler])
        scaler: Autoscaler | None = None
        kept, tables = self.tables(scheduler)
        if arm == OURS:
            scaler = FleetAutoscaler(
                scenario, finished, engine, policy, target=MEAN, max_replicas=MAX_REPLICAS, remember_s=7200.0,
                tables=tables,
            )  # fmt: skip
        elif arm != STATIC:
            scaler = rival(arm, value, scenario, engine, finished)
        run = simulate_scenario(
            scenario, policy, scaler, replicas=round(value) if arm == STATIC else START_REPLICAS, engine=engine,
            finished=finished, decision_interval_s=decision_interval(engine),
        )  # fmt: skip
        result = {
            "of": {"served": self.served, "shape": shape, "cold_start_s": self.args.cold_start, "scheduler": scheduler,
                   "arm": arm, "setting": value, "seed": seed, "set": self.args.set, "days": self.args.days},
            **figures(run, scenario, finished), "cpu_s": time.process_time() - started_s,
        }  # fmt: skip
        if isinstance(scaler, FleetAutoscaler):
            kept.write_text(json.dumps([asdict(table) for table in tables]))
            result["said"] = [(round(at), d.replicas, str(d.reason), d.message) for at, d in scaler.said]
            result |= {"buffer": scaler.table.buffer if scaler.table else None, "tables": scaler.tables,
                       "what_ifs": scaler.what_ifs, "what_if_cpu_s": scaler.what_if_cpu_s}  # fmt: skip
        return result

    def search(self, shape: str, scheduler: str, arm: str, seed: int) -> None:
        if arm != STATIC or self.args.settings:
            for value in self.args.settings or SETTINGS[arm]:
                self.get(shape, scheduler, arm, value, seed)
            return
        for bar in (holds_mean, holds_both):
            guess = {"stock": 12, "andes": 7}[scheduler] + (bar is holds_both)
            smallest_feasible(lambda n: bar(self.get(shape, scheduler, STATIC, n, seed)), guess, MAX_REPLICAS)  # noqa: B023


def add_runs(parser: argparse.ArgumentParser) -> None:
    """What :class:`Runs` reads."""
    parser.add_argument("folder", type=Path, nargs="?", metavar="TRACES", help="the directory with the traces")
    parser.add_argument("--lengths", default=LENGTHS, help="file in it; default: %(default)s")
    parser.add_argument("--hidden", type=float, default=0.0, help="share of each answer that is thought and not shown")
    parser.add_argument("--profile", default="l4-llama-3.1-8b", help="default: %(default)s")
    parser.add_argument("--cold-start", type=float, default=300.0, help="seconds; default: %(default)s")
    parser.add_argument(
        "--days", type=int, default=0, help="that ours has as history, of the same shape; default: %(default)s"
    )
    add_constants(parser)
    parser.add_argument("--out", default="out/surges", help="folder where runs are kept; default: %(default)s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_runs(parser)
    parser.add_argument(
        "--shapes", default="flash,ramp", help=f"of {', '.join((*SHAPES, RECORDED))}; default: %(default)s"
    )
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS), help="default: %(default)s")
    parser.add_argument(
        "--arms", default=";".join((STATIC, *SETTINGS)), help="separated by semicolons; default: %(default)s"
    )
    parser.add_argument("--settings", type=float, nargs="*", help="instead of those of the arm")
    parser.add_argument("--seeds", default="1,2", help="of arrivals; default: %(default)s")
    parser.add_argument("--report", action="store_true", help="run nothing: the tables of what is there")
    parser.add_argument("--page", action="store_true", help="put tables and figures into docs/benchmarks")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="where to draw the first of --shapes and --seeds, an SVG"
    )
    args = parser.parse_args()
    shapes, schedulers, arms = args.shapes.split(","), args.schedulers.split(","), args.arms.split(";")
    for flag, given, known in (
        ("--shapes", shapes, (*SHAPES, RECORDED)),
        ("--schedulers", schedulers, SCHEDULERS),
        ("--arms", arms, (STATIC, *SETTINGS)),
    ):
        for name in given:
            if name not in known:
                parser.error(f"{flag}: {name!r} is not known; choose of {', '.join(known)}")
    set_constants(args.set)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    runs, seeds = Runs(args), [int(seed) for seed in args.seeds.split(",")]
    for shape in shapes:
        for seed in seeds if not args.report else ():
            for scheduler in schedulers:
                for arm in arms:
                    runs.search(shape, scheduler, arm, seed)
    run = kept(Path(args.out))
    results = latest((*recorded(RECORD), *run))
    tables = {"surges": "\n".join(bars(results)), "surges, every arm": "\n".join(everything(results))}
    print("\n".join(tables.values()))
    if args.page:
        record(RECORD, results)
        for (name, text), page in zip(tables.items(), PAGES, strict=True):
            replace_table(page, name, text)
    if args.picture:
        case = Case(runs.served, shapes[0], args.cold_start, seeds[0])
        args.picture.write_text(picture(of_case(run, case), runs.demand(shapes[0])))


if __name__ == "__main__":
    main()
