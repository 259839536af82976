"""The tables of docs/benchmarks/simulated.md, each by one command: ``python benchmarks/simulated.py TABLE [SETTING...]``.

A setting is a profile with lengths of prompts and answers. Load is relative to C, the requests per second that stock SGLang
sustains there with a queue that is never empty. A burst of ``x`` is ``x C`` for some time over half load before and after;
only those who arrive in the burst are scored, and everybody is served to the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.cli import configure, sustained_tokens_per_s
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import Figures, Summary
from andes_sglang.workload import Stream, load, mean_length, readers_of

CHAT = ("p50=634,p90=1510,p99=3095", "p50=200,p90=399,p99=610")
LONG = ("p50=208,p90=1200,p99=4000", "p50=764,p90=3416,p99=8000")
PAPER = ("p50=700,p90=8000,p99=20000", "p50=380,p90=600,p99=900")
SMALL = ("p50=250,p90=600,p99=1500", "p50=200,p90=399,p99=610")


class Setting(NamedTuple):
    profile: str
    prompt: str
    output: str
    burst_s: float = 120.0


SETTINGS = {
    "h100-chat": Setting("h100-llama-3.1-8b", *CHAT),
    "h100-long": Setting("h100-llama-3.1-8b", *LONG),
    "70b-chat": Setting("h100x4-llama-3.1-70b", *CHAT, 420.0),
    "32b-chat": Setting("h100-qwen2.5-32b", *CHAT),
    "a100-phi": Setting("a100-40gb-phi-3-mini", *CHAT, 420.0),
    "a100-13b": Setting("a100-40gb-llama-2-13b", *SMALL, 420.0),
    "l4-chat": Setting("l4-llama-3.1-8b", *CHAT),
    "paper": Setting("a100-40gb-phi-3-mini", *PAPER, 420.0),
}
ARMS = {
    "stock": Arm("stock"),
    "stock, mixed": Arm("stock-mixed"),
    "andes, order only": Arm("andes", ("--policy-option", "preemption=false")),
    "andes": Arm("andes"),
    "andes, host copies": Arm("andes", ("--enable-hierarchical-cache",)),
}
COLUMNS = (
    "mean QoE",
    "p5",
    "stall p90, s",
    "TTFT p90, s",
    "short half",
    "middle",
    "longest tenth",
    "backlog",
    "preempt/req",
)
INTERVAL_S = 0.1
VALUES: list[float] = []
"""Rows of a table of bursts, where they are not its own."""


def capacity_rps(setting: Setting) -> float:
    engine, _ = configure(profiles.load(setting.profile).engine, Arm("stock"))
    return sustained_tokens_per_s(engine, setting.prompt, setting.output, 1) / mean_length(setting.output)


def burst(setting: Setting, times: float, burst_s: float, capacity: float, seed: int) -> Stream:
    rates = ((60.0, 0.5 * capacity), (burst_s, times * capacity), (120.0, 0.5 * capacity))
    return Stream("burst", rates, setting.prompt, setting.output, readers_of("reading"), seed)


def figures(
    setting: Setting,
    arm: Arm,
    requests: Iterable[RequestSpec],
    since_s: float,
    until_s: float,
    interval_s: float = INTERVAL_S,
) -> Summary:
    """Of those who arrive in [since_s, until_s); the backlog is of that moment."""
    engine, policy = configure(profiles.load(setting.profile).engine, arm)
    seen = Figures()
    backlog = 0
    for record in simulate(engine, policy(), requests, decision_interval_s=interval_s):
        if since_s <= record.arrival_s < until_s:
            seen.add(record)
            backlog += record.end_s > until_s
    return {**seen.summary(), "backlog_requests": backlog}


def row(runs: list[Summary]) -> list[str]:
    def mean(*path: str) -> float:
        values = []
        for run in runs:
            value = run
            for key in path:
                value = value[key]
            values.append(float(value) if value is not None else float("nan"))  # type: ignore[arg-type]
        return float(np.mean(values))

    groups = [mean("qoe", "by_prompt_length", g) for g in ("shortest_half", "middle", "longest_tenth")]
    head = [mean("qoe", "mean"), mean("qoe", "p5")]
    return [
        *(f"{v:.3f}" for v in head), f"{mean('stall_s', 'longest_p90'):.1f}", f"{mean('ttft_s', 'p90'):.2f}",
        *(f"{v:.3f}" for v in groups), f"{mean('backlog_requests'):.0f}", f"{mean('preemptions_per_request'):.2f}",
    ]  # fmt: skip


def line(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def head(*first: str) -> None:
    line(*first, *COLUMNS)
    line(*(["---"] * (len(first) + len(COLUMNS))))


def burst_table(
    names: list[str], seeds: int, title: str, values: list[float], of: Callable[[Setting, float], tuple[float, float]]
) -> None:
    """One row per value and arm; ``of`` gives the burst's intensity and seconds."""
    for name in names:
        setting = SETTINGS[name]
        capacity = capacity_rps(setting)
        lengths = f"prompts {setting.prompt}, answers {setting.output}"
        print(f"\n{name}: {setting.profile}, {lengths}; C = {capacity:.2f} requests/s\n")
        head(title, "arm")
        for value in values:
            times, burst_s = of(setting, value)
            for label, arm in ARMS.items():
                runs = [
                    figures(setting, arm, burst(setting, times, burst_s, capacity, seed), 60.0, 60.0 + burst_s)
                    for seed in range(1, seeds + 1)
                ]
                line(f"{value:g}", label, *row(runs))


def intensity(names: list[str], seeds: int) -> None:
    burst_table(names, seeds, "burst, x C", VALUES or [1.0, 1.5, 2.0, 3.0], lambda s, v: (v, s.burst_s))


def duration(names: list[str], seeds: int) -> None:
    burst_table(names, seeds, "burst of 1.5 C, s", VALUES or [30.0, 120.0, 420.0], lambda _, v: (1.5, v))


def steady(names: list[str], seeds: int) -> None:
    """Poisson for ten minutes; scored are those of the middle eight."""
    for name in names:
        setting = SETTINGS[name]
        capacity = capacity_rps(setting)
        print(f"\n{name}: {setting.profile}; C = {capacity:.2f} requests/s\n")
        head("load, x C", "arm")
        for value in (0.5, 0.8, 0.95, 1.1):
            for label, arm in ARMS.items():
                runs = []
                for seed in range(1, seeds + 1):
                    rates = ((600.0, value * capacity),)
                    stream = Stream("steady", rates, setting.prompt, setting.output, readers_of("reading"), seed)
                    runs.append(figures(setting, arm, stream, 60.0, 540.0))
                line(f"{value:g}", label, *row(runs))


def held(names: list[str], seeds: int) -> None:
    """The largest burst, in C, at which the mean QoE of its arrivals is 0.95, by bisection to 5 %."""
    line("setting", *ARMS, "gain over the better stock")
    line(*(["---"] * (len(ARMS) + 2)))
    for name in names:
        setting = SETTINGS[name]
        capacity = capacity_rps(setting)
        loads = {}
        for label, arm in ARMS.items():
            low = high = 1.0
            while high < 12 and _holds(setting, arm, high, capacity, seeds):
                low, high = high, high * 1.5
            while low == high > 0.1 and not _holds(setting, arm, low / 1.5, capacity, seeds):
                low = high = low / 1.5
            low = low / 1.5 if low == high else low
            while high / low > 1.05 and high < 12:
                middle = (low * high) ** 0.5
                if _holds(setting, arm, middle, capacity, seeds):
                    low = middle
                else:
                    high = middle
            loads[label] = low
            print(f"{name}, {label}: {low:.2f}", file=sys.stderr, flush=True)
        stock = max(loads["stock"], loads["stock, mixed"])
        gain = max(v for k, v in loads.items() if k.startswith("andes")) / stock
        line(f"{name}, {setting.burst_s:g} s", *(f"{v:.2f}" for v in loads.values()), f"{gain:.2f}")


def _holds(setting: Setting, arm: Arm, times: float, capacity: float, seeds: int) -> bool:
    scores = []
    for seed in range(1, seeds + 1):
        stream = burst(setting, times, setting.burst_s, capacity, seed)
        scores.append(figures(setting, arm, stream, 60.0, 60.0 + setting.burst_s)["qoe"]["mean"])
    return float(np.mean(scores)) >= 0.95


def sensitivity(names: list[str], seeds: int) -> None:
    """andes in a burst of 2 C, one option changed at a time."""
    options = ["", "length_guard=100", "running_bonus=0", "refine=false"]
    options += [f"horizon_s={v}" for v in (5, 20, 100, 200)]
    options += [f"stall_bound_s={v}" for v in (15, 120)] + [f"max_preemptions={v}" for v in (0.3, 1)]
    for name in names:
        setting = SETTINGS[name]
        capacity = capacity_rps(setting)
        print(f"\n{name}\n")
        head("andes with")
        variants: list[tuple[str, Arm, float]] = [
            (option or "its defaults", Arm("andes", ("--policy-option", option) if option else ()), INTERVAL_S)
            for option in options
        ]
        variants += [(f"a decision every {s:g} s", Arm("andes"), s) for s in (0.02, 0.5, 1.0)]
        for label, arm, interval_s in variants:
            runs = [
                figures(
                    setting,
                    arm,
                    burst(setting, 2.0, setting.burst_s, capacity, seed),
                    60.0,
                    60.0 + setting.burst_s,
                    interval_s,
                )
                for seed in range(1, seeds + 1)
            ]
            line(label, *row(runs))


def traces(names: list[str], seeds: int, folder: Path) -> None:
    """Ten minutes of each recorded trace on one replica of the first setting, at two rates relative to C of that trace."""
    setting = SETTINGS[names[0]]
    engine, _ = configure(profiles.load(setting.profile).engine, Arm("stock"))
    print(f"\n{setting.profile}, traces clamped to prompts of 32,000 tokens and answers of 4,000\n")
    head("trace", "rate, 1/s", "arm")
    for file in sorted(folder.glob("*.jsonl.gz")):
        whole = load(file, seed=1).scaled(max_prompt=32_000, max_output=4_000, limit=3000)
        flood = [RequestSpec(0.0, r.prompt_tokens, r.output_tokens, r.target, r.session_id, r.blocks) for r in whole][
            :1500
        ]
        ends = np.sort([r.end_s for r in simulate(engine, None, flood)])
        capacity = 0.5 * len(ends) / float(ends[len(ends) * 3 // 4] - ends[len(ends) // 4])
        own = len(whole) / whole.duration_s
        for times in (0.7, 1.0):
            scaled = whole.scaled(rate_scale=times * capacity / own)
            workload = scaled.scaled(duration_s=600.0).with_readers(1, ttft_s=None, tds=None, population="reading")
            for label, arm in ARMS.items():
                run = figures(setting, arm, workload, 0.0, workload.duration_s)
                line(file.name.removesuffix(".jsonl.gz"), f"{times * capacity:.2f} ({times:g} C)", label, *row([run]))
    _ = seeds


def chosen(names: list[str]) -> Iterator[str]:
    for name in names:
        if name not in SETTINGS:
            raise SystemExit(f"setting {name!r}: not known; choose of {', '.join(SETTINGS)}")
        yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"intensity": intensity, "duration": duration, "steady": steady, "held": held, "sensitivity": sensitivity}
    parser.add_argument("table", choices=[*tables, "traces"])
    parser.add_argument("settings", nargs="*", default=["h100-chat"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", help=f"only these, separated by semicolons: {'; '.join(ARMS)}")
    parser.add_argument("--values", help="bursts: only these intensities or durations, comma-separated")
    parser.add_argument("--traces", type=Path, help="folder of traces, for the table traces")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=POLICY[:FLAGS]", help="one more arm")
    args = parser.parse_args()
    VALUES.extend(float(value) for value in (args.values or "").split(",") if value)
    if args.arms:
        for name in [name for name in ARMS if name not in args.arms.split("; ")]:
            del ARMS[name]
    for text in args.arm:
        name, _, rest = text.partition("=")
        policy, _, flags = rest.partition(":")
        ARMS[name] = Arm(policy, tuple(flags.split()))
    names = list(chosen(args.settings))
    if args.table == "traces":
        if args.traces is None:
            parser.error("--traces: say where the traces are")
        traces(names, args.seeds, args.traces)
    else:
        tables[args.table](names, args.seeds)


if __name__ == "__main__":
    main()
