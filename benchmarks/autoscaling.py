"""The tables of docs/benchmarks/autoscaling.md: ``python benchmarks/autoscaling.py TRACES``. Everything is simulated.

TRACES is a directory with the workload samples. Each run is one day (or half an hour) of one trace on one fleet: a scheduler
in the engines and an autoscaler over them. Results are kept, one JSON a run, under ``--out``; what is there is not run again.
``--report`` prints the tables of what is there; ``--picture`` writes replicas over the day.

A day is compressed: so many of its seconds pass in one simulated one, and whatever an autoscaler does by the clock
(intervals, stabilisation, cold start) is as much shorter. Requests, engines and readers are not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from andes_operator.decide import Memory, decide
from andes_operator.demand import arrivals
from andes_operator.forecast import BIN_S, History, forecast
from andes_operator.names import Statistic
from andes_operator.observe import Observation, Pods, Request
from andes_operator.spec import Behavior, Demand, Objective, ScaleTargetRef, TargetSpec
from andes_operator.whatif import Prediction, answer
from andes_sglang import report
from andes_sglang.arms import Arm
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import QoE
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.cli import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Autoscaler, Fleet, TargetScaler
from andes_sglang.sim.plan import capacity_rps
from andes_sglang.sim.whatif import decision_interval, work_s
from andes_sglang.sketch import Sketch
from andes_sglang.workload import Rates, Stream, load, load_rates, mean_length, readers_of

CHAT = ("p50=634,p90=1510,p99=3095", "p50=200,p90=399,p99=610")
DAY_S = 86_400.0
TARGET = 0.95
WINDOWS = 24
MOST = 40
NEAR = 1.05
LEAST_SEEN = 500

SCHEDULERS = ("stock", "andes")
REACTIVE = ("HPA, KV", "KEDA, running", "KEDA, waiting", "TTFT/ITL planner")


class Trace(NamedTuple):
    """file: rates, of which ``day`` is played after the days before it as history; or requests, every ``thin``-th, with the
    clock ``stretch`` times slower. speed: seconds of the day in one simulated second. peak: replicas at its highest rate, by
    arithmetic; of rates. remember_s: how long what-ifs hold (of its clock)."""

    file: str
    profile: str
    speed: float
    day: int = 0
    peak: float = 9.0
    thin: int = 1
    stretch: float = 1.0
    remember_s: float = 3600.0
    cold_start_s: float = 300.0


TRACES = {
    "msmall": Trace("servegen_msmall_rate_week1.csv.gz", "a100-40gb-llama-2-13b", 48.0, day=4),
    "mlarge": Trace("servegen_mlarge_rate_days0_5.csv.gz", "a100-40gb-llama-2-13b", 48.0, day=4),
    "chat-day": Trace("servegen_mlarge_day1_c48.jsonl.gz", "a100-40gb-llama-2-13b", 48.0, thin=3),
    "reasoning-day": Trace(
        "servegen_r1_day_c48.jsonl.gz", "l4-llama-3.1-8b", 8.0, thin=6, stretch=6.0, remember_s=900.0
    ),
    "code-bursts": Trace("azure23_code_bursty.jsonl.gz", "l4-llama-3.1-8b", 1.0, remember_s=60.0, cold_start_s=90.0),
}


@dataclass
class World:
    """What one trace brings, in simulated seconds, and what the autoscalers are told of it."""

    trace: Trace
    requests: Sequence[RequestSpec]
    span_s: float
    history: History
    origin_s: float
    engine: EngineModel
    forecasts: dict[float, float] = field(default_factory=dict)
    arrived_s: list[float] = field(default_factory=list)
    ended: list[RequestRecord] = field(default_factory=list)

    def clock(self, seconds: float) -> float:
        """Seconds of an autoscaler's clock as simulated seconds."""
        return seconds / self.trace.speed

    @property
    def cold_start_s(self) -> float:
        return self.clock(self.trace.cold_start_s)

    def between(self, since_s: float, until_s: float) -> Sequence[RequestSpec]:
        return self.requests[bisect_left(self.arrived_s, since_s) : bisect_left(self.arrived_s, until_s)]

    def last(self, now_s: float, window_s: float, least: int) -> list[tuple[int, RequestSpec]]:
        """What arrived in the window before ``now_s``, or in as long a one as ``least`` took, with indices."""
        until = bisect_left(self.arrived_s, now_s)
        first = max(0, min(bisect_left(self.arrived_s, now_s - window_s), until - least))
        return list(enumerate(self.requests[first:until], start=first))

    def rate_rps(self, now_s: float, window_s: float) -> float:
        return len(self.between(now_s - window_s, now_s)) / max(1e-9, min(window_s, now_s))

    def ended_since(self, since_s: float) -> list[RequestRecord]:
        recent = []
        for record in reversed(self.ended):
            if record.end_s < since_s - 5.0:
                break
            if record.end_s >= since_s:
                recent.append(record)
        return recent


def world(name: str, folder: Path, seed: int) -> World:
    trace = TRACES[name]
    engine = profiles.load(trace.profile).engine
    history, origin_s = History(), 0.0
    requests: Sequence[RequestSpec]
    if trace.file.endswith(".csv.gz"):
        rates = load_rates(folder / trace.file)
        if rates is None:
            raise SystemExit(f"{folder / trace.file}: no rates")
        days = [rates[i : i + round(DAY_S / BIN_S)] for i in range(0, len(rates), round(DAY_S / BIN_S))]
        capacity = capacity_rps(engine, mean_length(CHAT[0]), mean_length(CHAT[1]))
        scale = trace.peak * capacity / max(rate for _, rate in days[trace.day])
        for past in days[: trace.day]:
            for seconds, rate in past:
                history.add(origin_s, rate * scale / trace.speed, seconds)
                origin_s += seconds
        day: Rates = tuple((seconds / trace.speed, rate * scale) for seconds, rate in days[trace.day])
        requests = list(Stream(name, day, *CHAT, readers_of("reading"), seed))
    else:
        read = load(folder / trace.file, seed=seed).scaled(max_prompt=8000, max_output=4000)
        read = read.with_readers(seed, ttft_s=None, tds=None, population="reading")
        first = (seed - 1) % trace.thin
        requests = [replace(r, arrival_s=r.arrival_s * trace.stretch) for r in read.requests[first :: trace.thin]]
    made = World(trace, requests, math.ceil(requests[-1].arrival_s), history, origin_s, engine)
    made.arrived_s = [r.arrival_s for r in requests]
    return made


# Autoscalers


def takes_rps(engine: EngineModel, requests: Sequence[RequestSpec]) -> float:
    """Requests like these in a second that keep one replica busy."""
    return len(requests) / float(work_s(engine, requests).sum())


@dataclass
class Planner:
    """As an SLA planner: the rate of the last minute over what a replica takes within the ITL, at ``share`` of that, more
    where the mean TTFT of the last minute is over its target; down to the largest figure of five minutes."""

    world: World
    share: float
    asked: list[tuple[float, int]] = field(default_factory=list)

    @property
    def interval_s(self) -> float:
        return self.world.clock(60.0)

    def wanted(self, fleet: Fleet) -> int:
        seen, now_s = self.world, fleet.now_s
        recent = [request for _, request in seen.last(now_s, seen.clock(60.0), 50)]
        if len(recent) < 2:
            return len(fleet.serving)
        window_s = now_s - recent[0].arrival_s
        late = [r.ttft_s / r.ttft_target_s for r in seen.ended_since(now_s - window_s)]
        correction = min(2.0, max(1.0, float(np.mean(late)))) if late else 1.0
        each = self.share * takes_rps(seen.engine, recent)
        now = math.ceil(len(recent) / window_s * correction / each)
        self.asked = [(t, n) for t, n in self.asked if t >= now_s - seen.clock(300.0)] + [
            (now_s, min(MOST, max(1, now)))
        ]
        return max(n for _, n in self.asked)


@dataclass
class Clairvoyant:
    """Knows what will arrive: enough for the highest rate while a replica would start, at ``share`` of what one takes, just
    in time, and gone at once."""

    world: World
    share: float

    @property
    def interval_s(self) -> float:
        return max(1.0, self.world.clock(60.0))

    def wanted(self, fleet: Fleet) -> int:
        seen, step_s = self.world, max(self.world.clock(600.0), 10.0)
        work = [seen.between(fleet.now_s + at, fleet.now_s + at + step_s)
                for at in np.arange(-0.5 * step_s, seen.cold_start_s + step_s, 0.5 * step_s)]  # fmt: skip
        needed = [len(those) / step_s / takes_rps(seen.engine, those) for those in work if those]
        return min(MOST, max(1, math.ceil(max(needed, default=0.0) / self.share)))


class Ours:
    """The operator's own forecast, what-if and decision, fed by the simulated fleet. Streams that are open count in what it
    sees of QoE while they have no first token."""

    def __init__(self, world: World, policy_name: str, policy: Callable[[], SchedulingPolicy | None]) -> None:
        clock = world.clock
        self.world, self.policy = world, policy
        self.engine, _ = configure(world.engine, Arm(policy_name))
        fine = world.trace.speed == 1.0
        self.interval_s = max(clock(15.0), 1.0)
        self.spec = TargetSpec(
            ScaleTargetRef("apps/v1", "Deployment", "engine"), (Objective("*", Statistic.MEAN, TARGET),), 1, MOST,
            Demand("gateway"), profile=world.trace.profile, policy=policy_name,
            behavior=Behavior(
                tick_s=self.interval_s, window_s=120.0 if fine else clock(900.0), cold_start_s=world.cold_start_s,
                down_stabilization_s=clock(300.0), down_period_s=clock(60.0),
            ),
        )  # fmt: skip
        self.memory = Memory()
        self.known: dict[int, Prediction] = {}
        self.epoch = -1.0
        self.expected: tuple[float, float] = (-1.0, 0.0)
        self.last: Prediction | None = None
        self.what_ifs = 0
        self.what_if_s = 0.0

    def wanted(self, fleet: Fleet) -> int:
        seen, now_s, behavior = self.world, fleet.now_s, self.spec.behavior
        current = len(fleet.serving) + len(fleet.starting)
        rate_rps = seen.rate_rps(now_s, behavior.window_s)
        late, waiting, generated = Sketch(), 0, {}
        for replica in fleet.replicas:
            for job in replica.by_rid.values():
                generated[job.index] = replica.generated(job)
                if not generated[job.index]:
                    waiting += 1
                    late.add(float(now_s <= job.spec.arrival_s + job.spec.target.ttft_s))
        ended = Sketch()
        for record in seen.ended_since(now_s - behavior.window_s):
            ended.add(record.qoe)
        recent = seen.last(now_s, seen.clock(600.0), LEAST_SEEN)
        observation = Observation(
            now_s, Pods(current, current, len(fleet.serving)), rate_rps, idle_s=0.0, open_streams=fleet.open_requests,
            engine_requests=fleet.open_requests,
            waiting=waiting, ended={"reader": ended}, running={"reader": late},
            recent=tuple(
                Request(
                    r.arrival_s, "reader", r.prompt_tokens, generated.get(i, r.output_tokens), i not in generated,
                    target=r.target,
                )
                for i, r in recent
            ),
        )  # fmt: skip
        predicted = self.predict(observation)
        decision = decide(self.spec, observation, predicted, self.memory)
        self.memory = decision.memory
        return decision.replicas

    def predict(self, seen: Observation) -> Prediction:
        """The forecast by the clock of the day; the what-if by that of the engines, once in a while
        for each five percent of rate."""
        speed, started = self.world.trace.speed, time.process_time()
        at_s = self.world.origin_s + seen.now_s * speed
        began = self.world.history.add(at_s, seen.rate_rps / speed, self.interval_s * speed)
        seasonal = bool(self.world.origin_s)
        if seasonal and began and at_s in self.world.forecasts:
            self.expected = at_s, self.world.forecasts[at_s]
        elif not seasonal or began or self.expected[0] < 0:
            horizon_s = (self.world.cold_start_s + self.interval_s) * speed
            come_s = [self.world.origin_s + r.arrival_s * speed for r in seen.recent]
            since_s = at_s - min(600.0, seen.now_s * speed)
            come_s = come_s[bisect_left(come_s, since_s) :]
            told = forecast(self.world.history, come_s, at_s, since_s, seen.rate_rps / speed, horizon_s)
            self.expected = at_s, told.rate_rps * speed
            self.world.forecasts[at_s] = self.expected[1]
        epoch = at_s // self.world.trace.remember_s
        if epoch != self.epoch:
            self.epoch = epoch
            self.known.clear()
        load_factor = 1.0 if self.last is None else self.last.load_factor_by(seen, self.spec.behavior.window_s)
        rate_rps = max(self.expected[1], seen.rate_rps, 1e-3) * load_factor
        key = round(math.log(rate_rps) / math.log(NEAR))
        if key not in self.known:
            demand, span_s = arrivals(self.spec, seen, NEAR**key, {})
            self.known[key] = answer(self.spec, demand, span_s, self.engine, self.policy, self.last, seen.pods.ready)
            self.what_ifs += 1
        self.last = replace(self.known[key], load_factor=load_factor, at_s=seen.now_s)
        self.what_if_s += time.process_time() - started
        return self.last


def autoscaler(
    arm: str, value: float, world: World, scheduler: str, policy: Callable[[], SchedulingPolicy | None]
) -> Autoscaler | None:
    by_clock = {"most": MOST, "interval_s": max(world.clock(15.0), 0.5), "down_after_s": world.clock(300.0)}
    if arm == "static peak":
        return None
    if arm == "HPA, KV":
        return TargetScaler(value, lambda r: r.kv_used_tokens / r.engine.kv_capacity_tokens, **by_clock)  # type: ignore[arg-type]
    if arm == "KEDA, running":
        return TargetScaler(value, **by_clock)  # type: ignore[arg-type]
    if arm == "KEDA, waiting":
        return TargetScaler(value, lambda r: len(r.waiting), **by_clock)  # type: ignore[arg-type]
    if arm == "TTFT/ITL planner":
        return Planner(world, value)
    if arm == "clairvoyant":
        return Clairvoyant(world, value)
    return Ours(world, scheduler, policy)


def grid(arm: str, engine: EngineModel, requests: Sequence[RequestSpec]) -> Sequence[float]:
    """Settings that are tried; of a static fleet all sizes are, from above, until one misses."""
    context = float(np.mean([r.prompt_tokens + r.output_tokens / 2 for r in requests]))
    batch = min(engine.max_running, engine.kv_capacity_tokens / context)
    return {
        "HPA, KV": (0.5, 0.7, 0.85),
        "KEDA, running": tuple(round(share * batch, 1) for share in (0.5, 0.7, 0.9, 1.2)),
        "KEDA, waiting": (1.0,),
        "TTFT/ITL planner": (0.75, 0.9, 1.05),
        "clairvoyant": (0.85, 0.95, 1.05, 1.15),
        "ours": (0.0,),
    }[arm]


# Runs


def play(world: World, scheduler: str, arm: str, value: float) -> dict[str, Any]:
    """One run to the end of the last answer."""
    engine, policy = configure(world.engine, Arm(scheduler))
    scaler = autoscaler(arm, value, world, scheduler, policy)
    scores = np.zeros(len(world.requests))
    world.ended.clear()
    timeline: list[tuple[float, int]] = []

    def keep(record: RequestRecord) -> None:
        scores[record.index] = record.qoe
        world.ended.append(record)

    first = round(value) if arm == "static peak" else start(world)
    fleet = Fleet(engine, policy, replicas=first, routing_policy=QoE(), autoscaler=scaler, start_s=world.cold_start_s,
                  decision_interval_s=decision_interval(engine), sink=keep)  # fmt: skip
    started = time.process_time()
    for number, spec in enumerate(world.requests):
        fleet.submit(spec)
        if number % max(1, len(world.requests) // 240) == 0:
            timeline.append((round(spec.arrival_s, 1), len(fleet.serving) + len(fleet.starting) + len(fleet.draining)))
            if sys.stderr.isatty():
                print(
                    f"\r{scheduler}, {arm} {value:g}: {spec.arrival_s / world.span_s:4.0%}", end="\r", file=sys.stderr
                )
    backlog = fleet.open_requests
    fleet.advance()
    edges = np.linspace(0.0, world.span_s, WINDOWS + 1)
    at = np.clip(np.searchsorted(edges, world.arrived_s, side="right") - 1, 0, WINDOWS - 1)
    windows = [float(scores[at == k].mean()) for k in range(WINDOWS) if (at == k).any()]
    return {
        "replica_hours": fleet.replica_s / 3600.0, "most": fleet.most, "requests": len(scores), "backlog": backlog,
        "span_s": world.span_s, "end_s": fleet.now_s,
        "mean": float(scores.mean()), "p5": float(np.percentile(scores, 5)), "share": float((scores >= 0.95).mean()),
        "met": float(np.mean([w >= TARGET for w in windows])), "windows": windows, "timeline": timeline,
        "cpu_s": time.process_time() - started,
        "known": {f"{NEAR**k:.3g}": p.least for k, p in sorted(getattr(scaler, "known", {}).items())},
        "what_ifs": getattr(scaler, "what_ifs", 0), "what_if_s": getattr(scaler, "what_if_s", 0.0),
    }  # fmt: skip


def start(world: World) -> int:
    """Replicas at the beginning, of every autoscaler: what its first minutes take."""
    return Clairvoyant(world, 0.85).wanted(Fleet(world.engine))


class Runs:
    """Results by trace, scheduler, arm, setting and seed, kept in files."""

    def __init__(self, out: Path, folder: Path | None, seed: int) -> None:
        self.out, self.folder, self.seed = out, folder, seed
        self.worlds: dict[str, World] = {}

    def world(self, name: str) -> World:
        if self.folder is None:
            raise SystemExit("give the directory with the traces")
        if name not in self.worlds:
            self.worlds[name] = world(name, self.folder, self.seed)
        return replace(self.worlds[name], ended=[], history=History.from_json(self.worlds[name].history.to_json()))

    def path(self, name: str, scheduler: str, arm: str, value: float) -> Path:
        words = f"{name} {scheduler} {arm} {value:g} seed{self.seed}".replace(",", "").replace("/", "-")
        return self.out / f"{words.replace(' ', '_')}.json"

    def get(self, name: str, scheduler: str, arm: str, value: float) -> dict[str, Any]:
        path = self.path(name, scheduler, arm, value)
        if not path.exists():
            result = play(self.world(name), scheduler, arm, value)
            result |= {"trace": name, "scheduler": scheduler, "arm": arm, "value": value, "seed": self.seed}
            path.write_text(json.dumps(result))
            print(f"{name}: {scheduler}, {arm} {value:g}: {result['replica_hours']:.2f} replica-hours, mean QoE "
                  f"{result['mean']:.3f}, met {result['met']:.0%}, {result['cpu_s']:.1f} CPU s", flush=True)  # fmt: skip
        return dict(json.loads(path.read_text()))

    def search(self, name: str, scheduler: str, arms: Sequence[str]) -> None:
        made = self.world(name)
        for arm in arms:
            if arm == "static peak":
                self.static(name, scheduler)
            else:
                for value in grid(arm, made.engine, made.requests):
                    self.get(name, scheduler, arm, value)

    def static(self, name: str, scheduler: str) -> None:
        """By bisection: the smallest fleet that meets the objective in every window."""
        low, high = 0, MOST
        n = start(self.world(name)) + 4
        while high - low > 1:
            if self.get(name, scheduler, "static peak", n)["met"] == 1.0:
                high = n
            else:
                low = n
            n = (low + high) // 2 if high < MOST else min(MOST - 1, 2 * n)

    def all(self, name: str, scheduler: str, arm: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self.out.glob(f"*_seed{self.seed}.json")):
            result = json.loads(path.read_text())
            if (result["trace"], result["scheduler"], result["arm"]) == (name, scheduler, arm):
                yield result


# Report


def best(results: Sequence[dict[str, Any]], met: float) -> dict[str, Any] | None:
    """The cheapest that meets the objective in so many windows; else, of those that do in most, the cheapest."""
    often = min(met, max((r["met"] for r in results), default=0.0))
    return min((r for r in results if r["met"] >= often), key=lambda r: r["replica_hours"], default=None)


ARMS = ("static peak", *REACTIVE, "ours", "clairvoyant")
HEAD = ("scheduler", "autoscaler", "best setting", "replica-hours", "against ours", "objective met", "mean QoE", "p5",
        "share >= 0.95", "most replicas", "backlog")  # fmt: skip


def table(runs: Runs, name: str) -> None:
    """What there is; compared with ours under andes once that is there."""
    ours = best(list(runs.all(name, "andes", "ours")), 1.0)
    often = ours["met"] if ours else 1.0
    print(f"\n### {name}\n")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for scheduler in SCHEDULERS:
        for arm in ARMS:
            chosen = best(list(runs.all(name, scheduler, arm)), often if arm != "static peak" else 1.0)
            if chosen is None:
                continue
            against = f"{chosen['replica_hours'] / ours['replica_hours'] - 1:+.0%}" if ours else "-"
            print(f"| {scheduler} | {arm} | {'-' if arm == 'ours' else format(chosen['value'], 'g')} | "
                  f"{chosen['replica_hours']:.2f} | {against} | {chosen['met']:.0%} | {chosen['mean']:.3f} | "
                  f"{chosen['p5']:.3f} | {chosen['share']:.3f} | {chosen['most']} | {chosen['backlog']} |")  # fmt: skip


def picture(runs: Runs, name: str, path: Path) -> None:
    """Replicas over one day, of the best of three arms, and what the work would keep busy."""
    ours = best(list(runs.all(name, "andes", "ours")), 1.0)
    if ours is None:
        return
    reactive = [r for arm in REACTIVE for r in runs.all(name, "stock", arm)]
    limit = list(runs.all(name, "andes", "clairvoyant"))
    shown = [
        ("ours, andes", ours, report.COLOURS[1]),
        ("best reactive, stock", best(reactive, ours["met"]), report.COLOURS[0]),
        ("clairvoyant, andes", best(limit, ours["met"]), report.COLOURS[2]),
    ]
    hours = 24.0 / ours["span_s"]
    series = [
        (label, colour, [t * hours for t, _ in r["timeline"]], [float(n) for _, n in r["timeline"]])
        for label, r, colour in shown if r is not None
    ]  # fmt: skip
    if runs.folder is not None:
        made = runs.world(name)
        step_s = made.span_s / 144
        lengths = mean_length(CHAT[0]), mean_length(CHAT[1])
        busy = [len(made.between(t, t + step_s)) / step_s / capacity_rps(made.engine, *lengths)
                for t in np.arange(0.0, made.span_s, step_s)]  # fmt: skip
        series.append(("demand: replicas kept busy", "#888 dash", [k / 6 for k in range(len(busy))], busy))
    svg = report.plot(series, "hour of the day", "replicas (simulated)")
    legend = "".join(
        f'<text x="{66 + 130 * (k % 2)}" y="{24 + 14 * (k // 2)}" fill="{style.split()[0]}" '
        f'style="font:11px sans-serif">{label}</text>'
        for k, (label, style, _, _) in enumerate(series)
    )
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    path.write_text(svg.replace("</svg>", legend + "</svg>\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the directory with the traces")
    parser.add_argument("--traces", default=",".join(TRACES))
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS))
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/autoscaling"))
    parser.add_argument("--report", action="store_true", help="run nothing: tables of what is there")
    parser.add_argument("--picture", type=Path, help="with --report: where to write it")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(args.out, args.folder, args.seed)
    for name in args.traces.split(","):
        if not args.report:
            for scheduler in args.schedulers.split(","):
                runs.search(name, scheduler, args.arms.split(";"))
        table(runs, name)
    if args.picture:
        picture(runs, args.traces.split(",")[0], args.picture)


if __name__ == "__main__":
    main()
