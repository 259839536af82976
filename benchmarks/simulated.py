"""The tables of docs/benchmarks/simulated.md, each by one command: ``python benchmarks/simulated.py TABLE [SETTING...]``,
and all of them by ``python benchmarks/simulated.py all --traces FOLDER --page docs/benchmarks/simulated.md``.

A setting is an engine with lengths of prompts and answers. Load is relative to C, the requests per second that stock SGLang
sustains there with a queue that is never empty. A burst of ``x`` is ``x C`` for some time over half load before and after;
only those who arrive in the burst are scored, and everybody is served to the end. Every run is kept under ``--out`` until
the sources it depends on change, so a table that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import andes_sglang
from andes_sglang.arms import Arm
from andes_sglang.policy import CLAIRVOYANT, make
from andes_sglang.request import RequestSpec
from andes_sglang.results import Progress
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.cli import configure, sustained_tokens_per_s
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import smallest_feasible
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import Figures, Summary
from andes_sglang.workload import Rates, SyntheticWorkload, Workload, load, mean_length, readers_of, shape

CHAT = ("p50=634,p90=1510,p99=3095", "p50=200,p90=399,p99=610")
LONG = ("p50=208,p90=1200,p99=4000", "p50=764,p90=3416,p99=8000")
MULTI_ROUND = ("p50=700,p90=8000,p99=20000", "p50=380,p90=600,p99=900")
SMALL = ("p50=250,p90=600,p99=1500", "p50=200,p90=399,p99=610")
MIXED, HOST = "--enable-mixed-chunk", "--enable-hierarchical-cache"
BEFORE_S, AFTER_S = 60.0, 120.0
INTERVAL_S = 0.1
"""Between two decisions while nothing is prefilled; after every chunk of prefill there is one anyway."""
REPLAY_S = 600.0
HELD, NEAR, STEP = 0.95, 0.03, 1.05
"""Load held: the target, how near one seed must come to it for the others to be asked, the ratio of neighbouring loads."""
LEAST_X, MOST_X = 0.1, 13.0


class Setting(NamedTuple):
    """Engine and requests. trace: of a file in ``--traces`` instead of by quantiles. loads: bursts of the table
    ``intensity``, x: of the others. without: an arm that takes minutes a run."""

    profile: str
    prompt: str = ""
    output: str = ""
    burst_s: float = 120.0
    trace: str = ""
    loads: tuple[float, ...] = (1.0, 1.5, 2.0)
    x: float = 1.5
    without: str = ""

    @property
    def key(self) -> str:
        """All that a run depends on beside its case."""
        return repr((self.profile, self.prompt, self.output, self.trace))


SETTINGS = {
    "h100-chat": Setting("h100-llama-3.1-8b", *CHAT),
    "h100-chat-30s": Setting("h100-llama-3.1-8b", *CHAT, 30.0),
    "h100-long": Setting("h100-llama-3.1-8b", *LONG, loads=(1.5, 3.0, 5.0), x=3.0, without="lqsf"),
    "a100-phi": Setting("a100-40gb-phi-3-mini", *CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "a100-13b": Setting("a100-40gb-llama-2-13b", *SMALL, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "32b-chat": Setting("h100-qwen2.5-32b", *CHAT),
    "70b-chat": Setting("h100x4-llama-3.1-70b", *CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "l4-chat": Setting("l4-llama-3.1-8b", *CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "paper": Setting("a100-40gb-phi-3-mini", *MULTI_ROUND, 420.0),
    "cpu": Setting("cpu-tiny-llama", "200-400", "150-250"),
    "h100-mooncake": Setting("h100-llama-3.1-8b", burst_s=420.0, trace="mooncake_conv", loads=(1.0, 1.25, 1.5), x=1.25),
}
STOCK = {"stock": Arm("stock"), "stock, mixed": Arm("stock", (MIXED,))}
OURS = {
    "andes": Arm("andes"),
    "andes, mixed": Arm("andes", (MIXED,)),
    "andes, mixed, host": Arm("andes", (MIXED, HOST)),
}
RIVALS = {
    "tokenflow": Arm("tokenflow", (MIXED, HOST)),
    "lqsf": Arm("lqsf", (MIXED, HOST)),
    "andes-v2": Arm("andes-v2", (MIXED, HOST)),
    "andes-v1": Arm("andes-v1", (MIXED, HOST)),
    "lifo": Arm("lifo", (MIXED, HOST)),
}
ORACLES = {
    "srpt, lengths known": Arm("srpt", (MIXED, HOST)),
    "clairvoyant": Arm("clairvoyant", (MIXED, HOST)),
    "clairvoyant, prefill first": Arm("clairvoyant", (HOST,)),
}
ALL = STOCK | OURS | RIVALS | ORACLES
SIMULATOR = ("cli", "engine", "overrides", "population", "radix", "replica")
COLUMNS = (
    "mean QoE", "p5", "stall p90, s", "TTFT p90, s", "short half", "middle", "longest tenth", "worst group - stock",
    "backlog", "preempt/req",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One run. kind: ``burst`` of ``x`` C for ``span`` seconds, ``steady`` load, ``cycle`` (the paper's: intensity ``x``, the
    burst a share ``span`` of 20 minutes that average C) or ``replay`` of a trace's own arrivals."""

    setting: str
    kind: str
    x: float
    span: float
    seed: int
    arm: Arm
    interval_s: float = INTERVAL_S


class Bench:
    """Runs cases, or finds them among those kept."""

    def __init__(self, out: Path, traces: Path | None, seeds: int) -> None:
        self.out, self.traces, self.seeds = out, traces, seeds
        self.progress = Progress("simulated")
        self.done = self.ran = 0
        package = Path(andes_sglang.__file__).parent
        names = ("latency", "qoe", "request", "state", "workload", *(f"sim/{name}" for name in SIMULATOR))
        own = package / "policy" / "andes.py"
        self._simulator = "".join((package / f"{name}.py").read_text() for name in names)
        self._simulator += inspect.getsource(Bench.requests) + inspect.getsource(Bench._run)
        self._policies = "".join(f.read_text() for f in sorted((package / "policy").glob("*.py")) if f != own)
        self._ours = own.read_text()
        out.mkdir(parents=True, exist_ok=True)

    def _sources(self, setting: str, policy: str) -> str:
        """All that a run depends on, as text: stock on no policy, and only ours on our policy's own source."""
        text = self._simulator + repr(profiles.load(SETTINGS[setting].profile))
        return text + self._policies * (policy != "stock") + self._ours * (policy == "andes")

    def figures(self, case: Case) -> Summary:
        """Of those scored; the backlog is of the moment when the last of them has arrived."""
        key = SETTINGS[case.setting].key + repr(case)
        return self._kept(self._sources(case.setting, case.arm.policy) + key, key, lambda: self._run(case))

    def capacity_rps(self, setting: str) -> float:
        key = SETTINGS[setting].key
        found = self._kept(self._sources(setting, "stock") + key, key, lambda: {"rps": self._capacity_rps(setting)})
        return float(found["rps"])

    def _kept(self, depends_on: str, key: str, compute: Callable[[], Summary]) -> Summary:
        file = self.out / (hashlib.sha256(depends_on.encode()).hexdigest()[:24] + ".json")
        if file.exists():
            kept: Summary = json.loads(file.read_text())["figures"]
        else:
            kept = compute()
            file.write_text(json.dumps({"key": key, "figures": kept}))
            self.ran += 1
        self.done += 1
        self.progress(
            f"{self.done} runs, {self.done - self.ran} of them kept from before; {time.process_time():.0f} CPU s"
        )
        return kept

    def _run(self, case: Case) -> Summary:
        requests, since_s, until_s = self.requests(case)
        setting = SETTINGS[case.setting]
        engine = profiles.load(setting.profile).engine
        if case.arm.policy in CLAIRVOYANT:
            engine, _ = configure(engine, replace(case.arm, policy="fcfs"))
            told = {f"r{k}": r.output_tokens for k, r in enumerate(requests)}
            policy = make(case.arm.policy, output_tokens=told)
        else:
            engine, factory = configure(engine, case.arm)
            policy = factory()  # type: ignore[assignment]
        seen, backlog = Figures(), 0
        for record in simulate(engine, policy, requests, decision_interval_s=case.interval_s):
            if since_s <= record.arrival_s < until_s:
                seen.add(record)
                backlog += record.end_s > until_s
        return {**seen.summary(), "backlog_requests": backlog}

    def requests(self, case: Case) -> tuple[Sequence[RequestSpec], float, float]:
        """Who arrives, and from when to when they are scored."""
        setting, rps = SETTINGS[case.setting], self.capacity_rps(case.setting)
        if case.kind == "replay":
            whole = _trace(self.trace_file(setting.trace))
            own_rps = len(whole) / whole.duration_s
            drawn = whole.scaled(rate_scale=case.x * rps / own_rps).scaled(duration_s=REPLAY_S)
            since_s, until_s = 0.0, REPLAY_S
        elif case.kind == "cycle":
            drawn = shape("burst", rate_rps=rps, duration_s=1200.0, prompt=setting.prompt, output=setting.output,
                          seed=case.seed, intensity=case.x, width=case.span)  # fmt: skip
            since_s, until_s = 0.0, 1200.0
        else:
            since_s, until_s = BEFORE_S, BEFORE_S + case.span
            rates: Rates = ((BEFORE_S, 0.5 * rps), (case.span, case.x * rps), (AFTER_S, 0.5 * rps))
            if case.kind == "steady":
                rates = ((BEFORE_S + case.span + AFTER_S, case.x * rps),)
            lengths = (setting.prompt, setting.output) if not setting.trace else ("1", "1")
            stream = SyntheticWorkload(case.kind, rates, *lengths, readers_of("reading"), case.seed)
            drawn = Workload(case.kind, tuple(stream))
            if setting.trace:
                rows = _trace(self.trace_file(setting.trace)).requests
                first = case.seed * len(drawn) % len(rows)
                rows = (*rows[first:], *rows[:first]) * (len(drawn) // len(rows) + 1)
                drawn = Workload(
                    case.kind, tuple(replace(r, arrival_s=at.arrival_s) for r, at in zip(rows, drawn, strict=False))
                )
        return (
            drawn.with_readers(case.seed, ttft_s=None, tds=None, population="reading").requests,
            since_s,
            until_s,
        )

    def trace_file(self, name: str) -> Path:
        if self.traces is None:
            raise SystemExit(f"--traces: say where {name}.jsonl.gz is")
        return self.traces / f"{name}.jsonl.gz"

    def _capacity_rps(self, name: str) -> float:
        setting = SETTINGS[name]
        engine, _ = configure(profiles.load(setting.profile).engine, Arm("stock"))
        if setting.trace:
            return _flood_rps(engine, _trace(self.trace_file(setting.trace)).requests[:1500])
        tokens_per_s = sustained_tokens_per_s(engine, setting.prompt, setting.output, 1)
        return tokens_per_s / mean_length(setting.output)

    def row(self, case: Case, better: Summary | None = None) -> Summary:
        """Means over seeds; ``worst_group``: the least of QoE by prompt length less that of ``better``, the better stock."""
        runs = [self.figures(replace(case, seed=seed)) for seed in range(1, self.seeds + 1)]

        def mean(*path: str) -> float:
            values: list[Any] = list(runs)
            for key in path:
                values = [value[key] for value in values]
            return float(np.mean([np.nan if value is None else value for value in values]))

        groups = [mean("qoe", "by_prompt_length", g) for g in ("shortest_half", "middle", "longest_tenth")]
        stock = groups if better is None else better["groups"]
        return {
            "mean": mean("qoe", "mean"), "p5": mean("qoe", "p5"), "stall": mean("stall_s", "longest_p90"),
            "ttft": mean("ttft_s", "p90"), "groups": groups, "backlog": mean("backlog_requests"),
            "preemptions": mean("preemptions_per_request"),
            "worst_group": float(np.nanmin(np.subtract(groups, stock))),
        }  # fmt: skip

    def compare(self, case: Case, arms: Iterable[str]) -> Iterator[tuple[str, Summary]]:
        """A row per arm, both stock arms first."""
        stock = {name: self.row(replace(case, arm=arm)) for name, arm in STOCK.items()}
        better = max(stock.values(), key=lambda r: float(r["mean"]))
        for name in (*STOCK, *arms):
            yield name, self.row(replace(case, arm=ALL[name]), better)

    def held(self, name: str, kind: str, span: float, arm: Arm, guess: float = 1.0) -> float:
        """The largest load ``x`` of a ladder at which the mean QoE is at least 0.95; 0 where none above ``LEAST_X`` is."""

        def falls_short(rung: int) -> bool:
            case = Case(name, kind, round(LEAST_X * STEP**rung, 4), span, 1, arm)
            if abs((first := self.figures(case)["qoe"]["mean"]) - HELD) > NEAR:
                return bool(first < HELD)
            return float(self.row(case)["mean"]) < HELD

        def rung(x: float) -> int:
            return round(math.log(x / LEAST_X) / math.log(STEP))

        short = smallest_feasible(falls_short, max(1, rung(guess)), rung(MOST_X))
        held = rung(MOST_X) if short is None else short - 1
        return float(LEAST_X * STEP**held) if held else 0.0


@cache
def _trace(file: Path) -> Workload:
    """As recorded, prompts clamped to 100,000 tokens and answers to 4,000."""
    return load(file, seed=1).scaled(max_prompt=100_000, max_output=4_000)


def _flood_rps(engine: EngineModel, requests: Sequence[RequestSpec]) -> float:
    """Requests per second of a stock engine with all of ``requests`` there at once, over the middle of the run."""
    ends_s = np.sort([r.end_s for r in simulate(engine, None, [replace(r, arrival_s=0.0) for r in requests])])
    first, last = len(ends_s) // 4, len(ends_s) * 3 // 4
    return (last - first) / float(ends_s[last] - ends_s[first])


def cells(row: Summary) -> list[str]:
    return [
        f"{row['mean']:.3f}", f"{row['p5']:.3f}", f"{row['stall']:.1f}", f"{row['ttft']:.2f}",
        *(f"{g:.3f}" for g in row["groups"]), f"{row['worst_group']:+.2f}", f"{row['backlog']:.0f}",
        f"{row['preemptions']:.2f}",
    ]  # fmt: skip


Lines = Iterator[str]


def line(*texts: str) -> str:
    return "| " + " | ".join(texts) + " |"


def head(*texts: str) -> Lines:
    yield line(*texts)
    yield "|" + "---|" * len(texts)


def title(bench: Bench, name: str) -> Lines:
    setting = SETTINGS[name]
    lengths = f"{setting.trace}" if setting.trace else f"prompts {setting.prompt}, answers {setting.output}"
    seeds = "one seed" if bench.seeds == 1 else f"{bench.seeds} seeds"
    yield ""
    yield f"**{name}**: {setting.profile}, {lengths};"
    yield f"C = {bench.capacity_rps(name):.2f} requests/s; {seeds}"
    yield ""


def arms_for(name: str, arms: Iterable[str]) -> list[str]:
    """Without those that differ by host memory only, where the engine has none, and that which the setting is without."""
    host = profiles.load(SETTINGS[name].profile).engine.host_capacity_tokens
    return [arm for arm in arms if arm != SETTINGS[name].without and (host or not arm.endswith(", host"))]


def best_arm(name: str) -> str:
    """The one configuration of ours that the bars are measured with: mixed chunks, and host memory where there is any."""
    return arms_for(name, ["andes, mixed", "andes, mixed, host"])[-1]


def sweep(bench: Bench, name: str, label: str, cases: Sequence[tuple[str, Case]], arms: Iterable[str]) -> Lines:
    yield from title(bench, name)
    yield from head(label, "arm", *COLUMNS)
    chosen = arms_for(name, arms)
    for text, case in cases:
        for arm, row in bench.compare(case, chosen):
            yield line(text, arm, *cells(row))


HEADLINE = ["andes, mixed", "andes, mixed, host", "clairvoyant"]


def burst(name: str, x: float = 0.0, span: float = 0.0) -> Case:
    """Of the setting's own intensity and duration unless others are given."""
    return Case(name, "burst", x or SETTINGS[name].x, span or SETTINGS[name].burst_s, 1, STOCK["stock"])


def intensity(bench: Bench, names: list[str]) -> Lines:
    """QoE against the intensity of a burst."""
    for name in names:
        cases = [(f"{x:g}", burst(name, x)) for x in SETTINGS[name].loads]
        yield from sweep(bench, name, f"burst of {SETTINGS[name].burst_s:g} s, x C", cases, HEADLINE)


def duration(bench: Bench, names: list[str]) -> Lines:
    """QoE against the duration of a burst."""
    for name in names:
        cases = [(f"{s:g}", burst(name, span=s)) for s in (30.0, 120.0, 420.0)]
        yield from sweep(bench, name, f"burst of {SETTINGS[name].x:g} C, s", cases, HEADLINE)


def steady(bench: Bench, names: list[str]) -> Lines:
    """QoE against steady Poisson load for ten minutes, of which the middle seven are scored."""
    for name in names:
        cases = [(f"{x:g}", Case(name, "steady", x, 420.0, 1, Arm("stock"))) for x in (0.5, 0.8, 0.95, 1.1)]
        yield from sweep(bench, name, "load, x C", cases, [best_arm(name)])


def rivals(bench: Bench, names: list[str]) -> Lines:
    """Every policy in one burst."""
    for name in names:
        setting = SETTINGS[name]
        arms = [*OURS, *RIVALS, *ORACLES]
        yield from sweep(bench, name, f"burst of {setting.burst_s:g} s, x C", [(f"{setting.x:g}", burst(name))], arms)


def bars(bench: Bench, names: list[str]) -> Lines:
    """Ours against the best of those that know lengths, tokenflow and lqsf; from the runs of ``rivals``."""
    yield from head("setting", "ours", "mean QoE - best oracle's", "mean - tokenflow's", "p5 - tokenflow's", "mean - lqsf's",
                    "p5 - lqsf's", "worst group - stock", "best rival in mean", "best rival in p5")  # fmt: skip
    for name in names:
        rows = dict(bench.compare(burst(name), arms_for(name, [*OURS, *RIVALS, *ORACLES])))
        ours = rows[best_arm(name)]
        oracle = max(float(rows[arm]["mean"]) for arm in ORACLES)
        ahead = [f"{ours[key] - rows[arm][key]:+.3f}" if arm in rows else "" for arm in ("tokenflow", "lqsf")
                 for key in ("mean", "p5")]  # fmt: skip
        named_rivals = [arm for arm in RIVALS if arm in rows]
        best = [max(named_rivals, key=lambda arm: float(rows[arm][key])) for key in ("mean", "p5")]
        named = [f"{arm} {rows[arm][key]:.3f}" for arm, key in zip(best, ("mean", "p5"), strict=True)]
        yield line(name, f"{ours['mean']:.3f}, p5 {ours['p5']:.3f}", f"{ours['mean'] - oracle:+.3f}", *ahead,
                   f"{ours['worst_group']:+.2f}", *named)  # fmt: skip


def held(bench: Bench, names: list[str]) -> Lines:
    """The largest load at which the mean QoE is 0.95, in steps of 5 %."""
    arms = [*STOCK, "andes, mixed", "andes, mixed, host", "tokenflow", "clairvoyant"]
    yield from head("setting", *arms, "ours / better stock")
    for name in names:
        span, guess = SETTINGS[name].burst_s, 1.0
        loads: dict[str, float] = {}
        for arm in arms_for(name, arms):
            guess = loads[arm] = bench.held(name, "burst", span, ALL[arm], guess)
        gain = loads[best_arm(name)] / max(loads[a] for a in STOCK)
        texts = [f"{loads[arm]:.2f}" if arm in loads else "" for arm in arms]
        yield line(f"{name}, burst of {span:g} s", *texts, f"{gain:.2f}")


def traces(bench: Bench, names: list[str]) -> Lines:
    """Ten minutes of each recorded trace on the first setting's engine, arrivals as recorded but faster or slower."""
    setting = SETTINGS[names[0]]
    for file in sorted(bench.trace_file("x").parent.glob("*.jsonl.gz")):
        trace = file.name.removesuffix(".jsonl.gz")
        name = f"{names[0]} {trace}"
        SETTINGS[name] = setting._replace(trace=trace)
        cases = [(f"{x:g}", Case(name, "replay", x, 0.0, 1, Arm("stock"))) for x in (0.7, 1.0)]
        yield from sweep(bench, name, "load, x C", cases, [best_arm(name), "tokenflow", "lqsf", "clairvoyant"])


def paper(bench: Bench, names: list[str]) -> Lines:
    """The paper's load: 20 minutes that average C, with one burst."""
    for name in names:
        cases = [(f"{x:g}, 35 %", Case(name, "cycle", x, 0.35, 1, Arm("stock"))) for x in (1.5, 2.0, 2.5)]
        cases += [(f"2, {w:.0%}", Case(name, "cycle", 2.0, w, 1, Arm("stock"))) for w in (0.25, 0.45)]
        yield from sweep(
            bench, name, "intensity, duration", cases, [*HEADLINE[:2], "andes-v2", "tokenflow", "clairvoyant"]
        )
        yield ""
        arms = arms_for(name, [*STOCK, *HEADLINE[:2], "andes-v2"])
        yield from head("held at QoE 0.95", *arms)
        yield line("intensity, 35 %", *(f"{bench.held(name, 'cycle', 0.35, ALL[arm], 1.5):.2f}" for arm in arms))


def sensitivity(bench: Bench, names: list[str]) -> Lines:
    """andes with one option changed at a time, in one burst."""
    options = ["", *(f"horizon_s={v}" for v in (5, 20, 60, 110, 200)), *(f"max_preemptions={v}" for v in (0.1, 0.3, 1))]
    options += [*(f"stall_bound_s={v}" for v in (15, 45, 120)), *(f"length_guard={v}" for v in (1, 1.5, 3, 100))]
    options += ["running_bonus=0", "refine=false", "preemption=false"]
    for name in names:
        yield from title(bench, name)
        ours = ALL[best_arm(name)]
        yield from head(f"{best_arm(name)}, burst of {SETTINGS[name].x:g} C, with", *COLUMNS)
        base = burst(name)
        better = max((bench.row(replace(base, arm=arm)) for arm in STOCK.values()), key=lambda r: float(r["mean"]))
        for option in options:
            flags = (*ours.flags, *(("--policy-option", option) if option else ()))
            yield line(
                option or "its defaults", *cells(bench.row(replace(base, arm=replace(ours, flags=flags)), better))
            )
        for interval_s in (0.02, 0.5, 1.0):
            row = bench.row(replace(base, arm=ours, interval_s=interval_s), better)
            yield line(f"a decision every {interval_s:g} s", *cells(row))


class Table(NamedTuple):
    lines: Callable[[Bench, list[str]], Lines]
    settings: str
    """Those that it has unless others are named."""
    seeds: int = 1


BARS = "h100-chat-30s h100-chat h100-long a100-phi a100-13b h100-mooncake cpu"
TABLES = {
    "held": Table(held, "h100-chat-30s h100-chat h100-long a100-phi h100-mooncake", 3),
    "rivals": Table(rivals, BARS, 3),
    "bars": Table(bars, BARS, 3),
    "intensity": Table(intensity, "h100-chat h100-long 32b-chat 70b-chat a100-phi a100-13b l4-chat cpu h100-mooncake"),
    "duration": Table(duration, "h100-chat a100-13b"),
    "steady": Table(steady, "h100-chat cpu"),
    "traces": Table(traces, "h100-chat"),
    "paper": Table(paper, "paper"),
    "sensitivity": Table(sensitivity, "h100-chat a100-13b"),
}


def insert(page: Path, name: str, text: str) -> None:
    """Into ``page``, between the comments that begin and end the table ``name``."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    old = page.read_text()
    if not marked.search(old):
        raise SystemExit(f"--page {page}: has no <!-- {name} --> ... <!-- end of {name} -->")
    page.write_text(marked.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", old))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "all"])
    parser.add_argument("settings", nargs="*", help=f"instead of the table's own; of {', '.join(SETTINGS)}")
    parser.add_argument("--seeds", type=int, help="instead of the table's own number")
    parser.add_argument("--traces", type=Path, help="folder of the recorded traces")
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="folder where runs and tables are kept")
    parser.add_argument("--page", type=Path, help="a page to put the tables in, each between its comments")
    args = parser.parse_args()
    for name in args.settings:
        if name not in SETTINGS:
            parser.error(f"setting {name!r}: not known; choose of {', '.join(SETTINGS)}")
    try:
        for name in TABLES if args.table == "all" else [args.table]:
            table = TABLES[name]
            bench = Bench(args.out, args.traces, args.seeds or table.seeds)
            bench.progress = Progress(name)
            text = ""
            for row in table.lines(bench, args.settings or table.settings.split()):
                print(row, flush=True)
                text += row + "\n"
                (args.out / f"{name}.md").write_text(text)
            if args.page:
                insert(args.page, name, text)
    except KeyboardInterrupt:
        print("\ninterrupted; what was computed is kept", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
