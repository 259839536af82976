"""The tables of docs/benchmarks/autoscaling.md: ``python benchmarks/autoscaling.py TRACES``. Everything is simulated.

TRACES is a directory with the workload samples. Each run is one day (or half an hour) of one trace on one fleet: a scheduler
in the engines and an autoscaler over them (``andes_sglang.sim.autoscaling``). Results are kept, one JSON a run, under
``--out``; what is there is not run again. ``--report`` prints the tables of what is there; ``--picture`` writes replicas over
the day.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from andes_operator.fleet_autoscaler import FleetAutoscaler
from andes_operator.forecast import BIN_S
from andes_sglang import report
from andes_sglang.arms import Arm
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.autoscaling import (
    ClairvoyantAutoscaler,
    FinishedRequests,
    MetricAutoscaler,
    RatePlanner,
    Scenario,
    kv_utilisation,
    open_requests,
    simulate_scenario,
    waiting_requests,
)
from andes_sglang.sim.configure import configure
from andes_sglang.sim.fleet import Autoscaler
from andes_sglang.sim.plan import capacity_rps, smallest_feasible
from andes_sglang.sim.whatif import decision_interval
from andes_sglang.workload import load_rates, load_trace, mean_length
from benchmarks.lengths import CHAT
from benchmarks.markdown import header, row

DAY_S = 86_400.0
TARGET = 0.95
"""Mean QoE that is to hold in every window."""
MAX_REPLICAS = 40
START_UTILISATION = 0.85
"""Every autoscaler begins with the replicas that its first minutes take at this utilisation."""
MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 8000, 4000
"""Recorded requests are clamped to these, so that each fits every engine here."""


class Trace(NamedTuple):
    """file: rates, of which ``day`` is simulated after the days before it as past; or requests, every ``every``-th, with the
    clock ``stretch`` times slower. speed: seconds of the autoscaler's clock in one simulated second. peak_replicas: replicas
    that its highest rate keeps busy, by arithmetic; of rates. remember_s: clock seconds for which what-ifs are kept."""

    file: str
    profile: str
    speed: float
    day: int = 0
    peak_replicas: float = 9.0
    every: int = 1
    stretch: float = 1.0
    remember_s: float = 3600.0
    cold_start_s: float = 300.0

    def scenario(self, folder: Path, seed: int) -> Scenario:
        engine = profiles.load(self.profile).engine
        if not self.file.endswith(".csv.gz"):
            recorded = load_trace(folder / self.file, seed=seed)
            recorded = recorded.scaled(max_prompt=MAX_PROMPT_TOKENS, max_output=MAX_OUTPUT_TOKENS)
            return Scenario.of_requests(
                recorded, engine, every=self.every, stretch=self.stretch, speed=self.speed, seed=seed,
                clock_cold_start_s=self.cold_start_s,
            )  # fmt: skip
        rates = load_rates(folder / self.file)
        if rates is None:
            raise SystemExit(f"{folder / self.file}: no rates")
        return Scenario.of_day(
            rates, engine, day=self.day, day_windows=round(DAY_S / BIN_S), peak_replicas=self.peak_replicas, lengths=CHAT,
            speed=self.speed, seed=seed, clock_cold_start_s=self.cold_start_s,
        )  # fmt: skip


TRACES = {
    "msmall": Trace("servegen_msmall_rate_week1.csv.gz", "a100-40gb-llama-2-13b", 48.0, day=4),
    "mlarge": Trace("servegen_mlarge_rate_days0_5.csv.gz", "a100-40gb-llama-2-13b", 48.0, day=4),
    "chat-day": Trace("servegen_mlarge_day1_c48.jsonl.gz", "a100-40gb-llama-2-13b", 48.0, every=3),
    "reasoning-day": Trace(
        "servegen_r1_day_c48.jsonl.gz", "l4-llama-3.1-8b", 8.0, every=6, stretch=6.0, remember_s=900.0
    ),
    "code-bursts": Trace("azure23_code_bursty.jsonl.gz", "l4-llama-3.1-8b", 1.0, remember_s=60.0, cold_start_s=90.0),
}
SCHEDULERS = {
    "stock": Arm("stock"),
    "andes": Arm("andes"),
    "stock-mixed": Arm("stock", ("--enable-mixed-chunk",)),
    "andes-full": Arm("andes", ("--enable-mixed-chunk", "--preemption-mode", "offload")),
}
"""What runs in the engines, with its flags; the what-if plays the same."""
STATIC, OURS, CLAIRVOYANT = "static peak", "ours", "clairvoyant"
METRICS = {"HPA, KV": kv_utilisation, "KEDA, running": open_requests, "KEDA, waiting": waiting_requests}
PLANNER = "TTFT/ITL planner"
REACTIVE = (*METRICS, PLANNER)
ARMS = (STATIC, *REACTIVE, OURS, CLAIRVOYANT)


def autoscaler(arm: str, value: float, scenario: Scenario, finished: FinishedRequests) -> Autoscaler:
    """A rival at one of its settings."""
    if arm in METRICS:
        return MetricAutoscaler(
            value, METRICS[arm], max_replicas=MAX_REPLICAS, interval_s=max(scenario.simulated_s(15.0), 0.5),
            stabilization_s=scenario.simulated_s(300.0),
        )  # fmt: skip
    if arm == PLANNER:
        return RatePlanner(scenario, finished, value, max_replicas=MAX_REPLICAS)
    return ClairvoyantAutoscaler(scenario, value, max_replicas=MAX_REPLICAS)


def settings_of(arm: str, scenario: Scenario) -> Sequence[float]:
    """Settings that are tried. KEDA's are shares of the batch that the KV pool holds."""
    engine = scenario.engine
    context = float(np.mean([r.prompt_tokens + r.output_tokens / 2 for r in scenario.requests]))
    batch = min(engine.max_running, engine.kv_capacity_tokens / context)
    return {
        "HPA, KV": (0.5, 0.7, 0.85),
        "KEDA, running": tuple(round(share * batch, 1) for share in (0.5, 0.7, 0.9, 1.2)),
        "KEDA, waiting": (1.0,),
        PLANNER: (0.75, 0.9, 1.05),
        CLAIRVOYANT: (0.85, 0.95, 1.05, 1.15),
        OURS: (0.0,),
    }[arm]


class Runs:
    """Results by trace, scheduler, arm, setting and seed, kept in files."""

    def __init__(self, out: Path, folder: Path | None, seed: int) -> None:
        self.out, self.folder, self.seed = out, folder, seed
        self._scenarios: dict[str, Scenario] = {}
        self._forecasts: dict[str, dict[float, float]] = {}

    def scenario(self, name: str) -> Scenario:
        if self.folder is None:
            raise SystemExit("TRACES: give the directory with the traces")
        if name not in self._scenarios:
            self._scenarios[name] = TRACES[name].scenario(self.folder, self.seed)
        return self._scenarios[name]

    def path(self, name: str, scheduler: str, arm: str, value: float) -> Path:
        words = f"{name} {scheduler} {arm} {value:g} seed{self.seed}".replace(",", "").replace("/", "-")
        return self.out / f"{words.replace(' ', '_')}.json"

    def get(self, name: str, scheduler: str, arm: str, value: float) -> dict[str, Any]:
        path = self.path(name, scheduler, arm, value)
        if not path.exists():
            result = self._run(name, scheduler, arm, value)
            path.write_text(json.dumps(result))
            print(f"{name}: {scheduler}, {arm} {value:g}: {result['replica_hours']:.2f} replica-hours, mean QoE "
                  f"{result['mean']:.3f}, met {result['met']:.0%}, {result['cpu_s']:.1f} CPU s", flush=True)  # fmt: skip
        return dict(json.loads(path.read_text()))

    def _run(self, name: str, scheduler: str, arm: str, value: float) -> dict[str, Any]:
        scenario, finished, started_s = self.scenario(name), FinishedRequests(), time.process_time()
        engine, policy = configure(scenario.engine, SCHEDULERS[scheduler])
        scaler: Autoscaler | None = None
        if arm == OURS:
            scaler = FleetAutoscaler(
                scenario, finished, engine, policy, target=TARGET, max_replicas=MAX_REPLICAS,
                remember_s=TRACES[name].remember_s, forecasts=self._forecasts.setdefault(name, {}),
            )  # fmt: skip
        elif arm != STATIC:
            scaler = autoscaler(arm, value, scenario, finished)

        def progress(share: float) -> None:
            if sys.stderr.isatty():
                print(f"\r{scheduler}, {arm} {value:g}: {share:4.0%}", end="\r", file=sys.stderr)

        run = simulate_scenario(
            scenario, policy, scaler, replicas=round(value) if arm == STATIC else self._start(name), engine=engine,
            finished=finished, decision_interval_s=decision_interval(engine), progress=progress,
        )  # fmt: skip
        result = asdict(run) | {"met": run.met(TARGET), "cpu_s": time.process_time() - started_s}
        if isinstance(scaler, FleetAutoscaler):
            result |= {"what_ifs": scaler.what_ifs, "what_if_cpu_s": scaler.what_if_cpu_s,
                       "known": {f"{rate:.3g}": n for rate, n in scaler.known.items()}}  # fmt: skip
        return result | {"trace": name, "scheduler": scheduler, "arm": arm, "value": value, "seed": self.seed}

    def search(self, name: str, scheduler: str, arms: Sequence[str]) -> None:
        for arm in arms:
            if arm == STATIC:
                self.smallest_static(name, scheduler)
            else:
                for value in settings_of(arm, self.scenario(name)):
                    self.get(name, scheduler, arm, value)

    def smallest_static(self, name: str, scheduler: str) -> int | None:
        """The smallest static fleet that meets the objective in every window."""
        guess = self._start(name) + 4

        def holds(replicas: int) -> bool:
            return bool(self.get(name, scheduler, STATIC, replicas)["met"] == 1.0)

        return smallest_feasible(holds, guess, MAX_REPLICAS - 1, max(1, guess // 2))

    def _start(self, name: str) -> int:
        scenario = self.scenario(name)
        return ClairvoyantAutoscaler(scenario, START_UTILISATION, max_replicas=MAX_REPLICAS).replicas_at(0.0)

    def all(self, name: str, scheduler: str, arm: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self.out.glob(f"*_seed{self.seed}.json")):
            result = json.loads(path.read_text())
            if (result["trace"], result["scheduler"], result["arm"]) == (name, scheduler, arm):
                yield result


def best(results: Sequence[dict[str, Any]], met: float) -> dict[str, Any] | None:
    """The cheapest that meets the objective in this share of the windows; where none does, the cheapest of those that meet it
    most often."""
    often = min(met, max((r["met"] for r in results), default=0.0))
    return min((r for r in results if r["met"] >= often), key=lambda r: r["replica_hours"], default=None)


def table(runs: Runs, name: str) -> Iterator[str]:
    """What there is; compared with ours under andes once that is there."""
    ours = best(list(runs.all(name, "andes", OURS)), 1.0)
    often = ours["met"] if ours else 1.0
    yield f"\n### {name}\n"
    yield from header("scheduler", "autoscaler", "best setting", "replica-hours", "against ours", "objective met", "mean QoE",
                      "p5", "share >= 0.95", "most replicas", "backlog")  # fmt: skip
    for scheduler in SCHEDULERS:
        for arm in ARMS:
            chosen = best(list(runs.all(name, scheduler, arm)), often if arm != STATIC else 1.0)
            if chosen is None:
                continue
            against = f"{chosen['replica_hours'] / ours['replica_hours'] - 1:+.0%}" if ours else "-"
            yield row(scheduler, arm, "-" if arm == OURS else format(chosen["value"], "g"), f"{chosen['replica_hours']:.2f}",
                      against, f"{chosen['met']:.0%}", f"{chosen['mean']:.3f}", f"{chosen['p5']:.3f}",
                      f"{chosen['share']:.3f}", chosen["max_replicas"], chosen["backlog_requests"])  # fmt: skip


def picture(runs: Runs, name: str, path: Path) -> None:
    """Replicas over one day, of the best of three arms, and what the work would keep busy."""
    ours = best(list(runs.all(name, "andes", OURS)), 1.0)
    if ours is None:
        return
    reactive = [r for arm in REACTIVE for r in runs.all(name, "stock", arm)]
    limit = list(runs.all(name, "andes", CLAIRVOYANT))
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
        series.append(("demand: replicas kept busy", "#888 dash", *busy_replicas(runs.scenario(name))))
    svg = report.plot(series, "hour of the day", "replicas (simulated)")
    legend = "".join(
        f'<text x="{66 + 130 * (k % 2)}" y="{24 + 14 * (k // 2)}" fill="{style.split()[0]}" '
        f'style="font:11px sans-serif">{label}</text>'
        for k, (label, style, _, _) in enumerate(series)
    )
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    path.write_text(svg.replace("</svg>", legend + "</svg>\n"))


def busy_replicas(scenario: Scenario) -> tuple[list[float], list[float]]:
    """Hours of the day, in steps of ten minutes, and the replicas that the chat requests in each keep busy."""
    step_s = scenario.span_s / 144
    each_rps = capacity_rps(scenario.engine, mean_length(CHAT[0]), mean_length(CHAT[1]))
    busy = [len(scenario.between(t, t + step_s)) / step_s / each_rps for t in np.arange(0.0, scenario.span_s, step_s)]
    return [k / 6 for k in range(len(busy))], busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", metavar="TRACES", help="the directory with the traces")
    parser.add_argument("--traces", default=",".join(TRACES), help="comma-separated; default: %(default)s")
    parser.add_argument(
        "--schedulers", default="stock,andes", help=f"comma-separated, of {', '.join(SCHEDULERS)}; default: %(default)s"
    )
    parser.add_argument("--arms", default=";".join(ARMS), help="autoscalers, separated by semicolons")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and readers; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/autoscaling"), help="folder where runs are kept")
    parser.add_argument("--report", action="store_true", help="run nothing: tables of what is there")
    parser.add_argument("--picture", type=Path, help="with --report: where to write it")
    args = parser.parse_args()
    names, schedulers, arms = args.traces.split(","), args.schedulers.split(","), args.arms.split(";")
    for flag, given, known in (
        ("--traces", names, TRACES),
        ("--schedulers", schedulers, SCHEDULERS),
        ("--arms", arms, ARMS),
    ):
        for name in given:
            if name not in known:
                parser.error(f"{flag}: {name!r} is not known; choose of {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(args.out, args.folder, args.seed)
    for name in names:
        if not args.report:
            for scheduler in schedulers:
                runs.search(name, scheduler, arms)
        print("\n".join(table(runs, name)))
    if args.picture:
        picture(runs, names[0], args.picture)


if __name__ == "__main__":
    main()
