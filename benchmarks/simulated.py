"""The tables of docs/benchmarks/simulated.md, each by one command: ``python benchmarks/simulated.py TABLE [SETTING...]``,
and all of them by ``python benchmarks/simulated.py all --traces FOLDER --page docs/benchmarks/simulated.md``.

A setting is an engine with lengths of prompts and answers. Load is relative to C, the requests per second that stock SGLang
sustains there with a queue that is never empty. A burst of ``x`` is ``x C`` for some time over half load before and after;
only requests that arrive in the burst are scored, and every request is served to the end. Every run is kept under ``--out``
until the sources it depends on change, so a table that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.results import Progress
from andes_sglang.summary import Summary
from benchmarks.markdown import Lines, header, replace_table
from benchmarks.markdown import row as line
from benchmarks.runs import Case, SimulatedRuns
from benchmarks.settings import ARMS, FINAL, HEADLINE, ORACLES, OURS, RIVALS, SETTINGS, STOCK, arms_for, best_arm

COLUMNS = (
    "mean QoE", "p5", "stall p90, s", "TTFT p90, s", "short half", "middle", "longest tenth", "worst group - stock",
    "backlog", "preempt/req",
)  # fmt: skip


def cells(row: Summary) -> list[str]:
    return [
        f"{row['mean']:.3f}", f"{row['p5']:.3f}", f"{row['stall']:.1f}", f"{row['ttft']:.2f}",
        *(f"{g:.3f}" for g in row["groups"]), f"{row['worst_group']:+.2f}", f"{row['backlog']:.0f}",
        f"{row['preemptions']:.2f}",
    ]  # fmt: skip


def title(runs: SimulatedRuns, name: str) -> Lines:
    setting = SETTINGS[name]
    lengths = f"{setting.trace}" if setting.trace else f"prompts {setting.prompt}, answers {setting.output}"
    seeds = "one seed" if runs.seeds == 1 else f"{runs.seeds} seeds"
    yield ""
    yield f"**{name}**: {setting.profile}, {lengths};"
    yield f"C = {runs.capacity_rps(name):.2f} requests/s; {seeds}"
    yield ""


def sweep(runs: SimulatedRuns, name: str, label: str, cases: Sequence[tuple[str, Case]], arms: Iterable[str]) -> Lines:
    yield from title(runs, name)
    yield from header(label, "arm", *COLUMNS)
    chosen = arms_for(name, arms)
    for text, case in cases:
        for arm, row in runs.compare(case, chosen):
            yield line(text, arm, *cells(row))


def burst(name: str, x: float = 0.0, span: float = 0.0) -> Case:
    """Of the setting's own intensity and duration unless others are given."""
    return Case(name, "burst", x or SETTINGS[name].x, span or SETTINGS[name].burst_s, 1, STOCK["stock"])


def intensity(runs: SimulatedRuns, names: list[str]) -> Lines:
    """QoE against the intensity of a burst."""
    for name in names:
        cases = [(f"{x:g}", burst(name, x)) for x in SETTINGS[name].loads]
        yield from sweep(runs, name, f"burst of {SETTINGS[name].burst_s:g} s, x C", cases, HEADLINE)


def duration(runs: SimulatedRuns, names: list[str]) -> Lines:
    """QoE against the duration of a burst."""
    for name in names:
        cases = [(f"{s:g}", burst(name, span=s)) for s in (30.0, 120.0, 420.0)]
        yield from sweep(runs, name, f"burst of {SETTINGS[name].x:g} C, s", cases, HEADLINE)


def steady(runs: SimulatedRuns, names: list[str]) -> Lines:
    """QoE against steady Poisson load for ten minutes, of which the middle seven are scored."""
    for name in names:
        cases = [(f"{x:g}", Case(name, "steady", x, 420.0, 1, Arm("stock"))) for x in (0.5, 0.8, 0.95, 1.1)]
        yield from sweep(runs, name, "load, x C", cases, [best_arm(name)])


def rivals(runs: SimulatedRuns, names: list[str]) -> Lines:
    """Every policy in one burst."""
    for name in names:
        setting = SETTINGS[name]
        arms = [*OURS, *RIVALS, *ORACLES]
        yield from sweep(runs, name, f"burst of {setting.burst_s:g} s, x C", [(f"{setting.x:g}", burst(name))], arms)


def bars(runs: SimulatedRuns, names: list[str]) -> Lines:
    """Ours against the best policy that knows lengths, against tokenflow and against lqsf; from the runs of ``rivals``."""
    yield from header("setting", "ours", "mean QoE - best oracle's", "mean - tokenflow's", "p5 - tokenflow's",
                      "mean - lqsf's", "p5 - lqsf's", "worst group - stock", "best rival in mean",
                      "best rival in p5")  # fmt: skip
    for name in names:
        rows = dict(runs.compare(burst(name), arms_for(name, [*OURS, *RIVALS, *ORACLES])))
        ours = rows[best_arm(name)]
        oracle = max(float(rows[arm]["mean"]) for arm in ORACLES)
        ahead = [f"{ours[key] - rows[arm][key]:+.3f}" if arm in rows else "" for arm in ("tokenflow", "lqsf")
                 for key in ("mean", "p5")]  # fmt: skip
        named_rivals = [arm for arm in RIVALS if arm in rows]
        best = [max(named_rivals, key=lambda arm: float(rows[arm][key])) for key in ("mean", "p5")]
        named = [f"{arm} {rows[arm][key]:.3f}" for arm, key in zip(best, ("mean", "p5"), strict=True)]
        yield line(name, f"{ours['mean']:.3f}, p5 {ours['p5']:.3f}", f"{ours['mean'] - oracle:+.3f}", *ahead,
                   f"{ours['worst_group']:+.2f}", *named)  # fmt: skip


HELD = (*STOCK, "andes, mixed", "andes, mixed, host", "tokenflow", "clairvoyant")


def held(runs: SimulatedRuns, names: list[str], arms: Sequence[str] = HELD) -> Lines:
    """The largest load at which the mean QoE is 0.95, in steps of 5 %."""
    yield from header("setting", *arms, "ours / better stock")
    for name in names:
        span, guess = SETTINGS[name].burst_s, 1.0
        loads: dict[str, float] = {}
        for arm in arms_for(name, arms):
            guess = loads[arm] = runs.load_held(name, "burst", span, ARMS[arm], guess=guess)
        gain = loads[best_arm(name)] / max(loads[a] for a in STOCK if a in loads)
        texts = [f"{loads[arm]:.2f}" if arm in loads else "" for arm in arms]
        yield line(f"{name}, burst of {span:g} s", *texts, f"{gain:.2f}")


def recorded(runs: SimulatedRuns, engine_of: str) -> Iterable[tuple[str, str]]:
    """A setting for each recorded trace on that setting's engine, with the trace's name."""
    for file in sorted(runs.trace_file("x").parent.glob("*.jsonl.gz")):
        trace = file.name.removesuffix(".jsonl.gz")
        name = f"{engine_of} {trace}"
        SETTINGS[name] = SETTINGS[engine_of]._replace(trace=trace)
        yield name, trace


def held_final(runs: SimulatedRuns, names: list[str]) -> Lines:
    """The same by final QoE."""
    yield from held(runs, names, ["stock, mixed", "andes, mixed, host", *FINAL])


def traces(runs: SimulatedRuns, names: list[str]) -> Lines:
    """Ten minutes of each recorded trace on the first setting's engine, arrivals as recorded but faster or slower."""
    for name, _ in recorded(runs, names[0]):
        cases = [(f"{x:g}", Case(name, "replay", x, 0.0, 1, Arm("stock"))) for x in (0.7, 1.0)]
        yield from sweep(runs, name, "load, x C", cases, [best_arm(name), "tokenflow", "lqsf", "clairvoyant"])


def paper(runs: SimulatedRuns, names: list[str]) -> Lines:
    """The paper's load: 20 minutes that average C, with one burst."""
    for name in names:
        cases = [(f"{x:g}, 35 %", Case(name, "cycle", x, 0.35, 1, Arm("stock"))) for x in (1.5, 2.0, 2.5)]
        cases += [(f"2, {w:.0%}", Case(name, "cycle", 2.0, w, 1, Arm("stock"))) for w in (0.25, 0.45)]
        yield from sweep(
            runs, name, "intensity, duration", cases, [*HEADLINE[:2], "andes-v2", "tokenflow", "clairvoyant"]
        )
        yield ""
        arms = arms_for(name, [*STOCK, *HEADLINE[:2], "andes-v2"])
        yield from header("held at QoE 0.95", *arms)
        yield line(
            "intensity, 35 %", *(f"{runs.load_held(name, 'cycle', 0.35, ARMS[arm], guess=1.5):.2f}" for arm in arms)
        )


def thoughts(runs: SimulatedRuns, names: list[str]) -> Lines:
    """Recorded thoughts: the runs of a policy that takes them for read, scored as if they were and as they are hidden; and of
    the policy that knows what is shown."""
    ours = [("stock, mixed", "shown"), ("stock, mixed", "unknown")]
    for name in names:
        yield from title(runs, name)
        yield from header(
            f"burst of {SETTINGS[name].burst_s:g} s, x C", "policy", "scored", *COLUMNS[:4], "preempt/req"
        )
        for x in SETTINGS[name].loads:
            for arm, reasoning in [*ours, *((best_arm(name), how) for how in SCORED)]:
                row = runs.row(replace(burst(name, x), arm=ARMS[arm], reasoning=reasoning))
                text = cells(row)
                knows = ", knows what is shown" if reasoning == "hidden" else ""
                yield line(f"{x:g}", arm + knows, SCORED[reasoning], *text[:4], text[-1])


SCORED = {"shown": "as all read", "unknown": "as shown", "hidden": "as shown"}
"""By the reasoning of a case."""
OPTIONS = (
    *(f"horizon_s={v}" for v in (5, 20, 60, 110, 200)), *(f"max_preemptions={v}" for v in (0.1, 0.3, 1)),
    *(f"stall_bound_s={v}" for v in (15, 45, 120)), *(f"length_guard={v}" for v in (1, 1.5, 3, 100)),
    "running_bonus=0", "refine=false", "preemption=false",
)  # fmt: skip
"""Of andes, changed one at a time in the table ``sensitivity``."""


def sensitivity(runs: SimulatedRuns, names: list[str]) -> Lines:
    """andes with one option changed at a time, in one burst."""
    for name in names:
        yield from title(runs, name)
        ours = ARMS[best_arm(name)]
        yield from header(f"{best_arm(name)}, burst of {SETTINGS[name].x:g} C, with", *COLUMNS)
        base = burst(name)
        better = runs.better_stock(base)
        for option in ("", *OPTIONS):
            flags = (*ours.flags, *(("--policy-option", option) if option else ()))
            yield line(
                option or "its defaults", *cells(runs.row(replace(base, arm=replace(ours, flags=flags)), better))
            )
        for interval_s in (0.02, 0.5, 1.0):
            row = runs.row(replace(base, arm=ours, interval_s=interval_s), better)
            yield line(f"a decision every {interval_s:g} s", *cells(row))


def ranking(runs: SimulatedRuns, names: list[str]) -> Lines:
    """andes by the paper's horizon and by final QoE, in every burst, in the paper's load and on the recorded traces; what the
    latter is ahead by, with its standard deviation over seeds."""
    titles = (
        f"{by}: {what}" for by in ("horizon", "final") for what in ("mean QoE", "p5", "stall p90, s", "longest tenth")
    )
    yield from header("setting", "seeds", *titles, "mean (sd)", "p5 (sd)")
    for label, case in ranking_cases(runs, names):
        cases = [replace(case, arm=ARMS[arm]) for arm in (best_arm(case.setting), *FINAL)]
        rows = [runs.row(one) for one in cases]
        texts = [(f"{r['mean']:.3f}", f"{r['p5']:.3f}", f"{r['stall']:.0f}", f"{r['groups'][2]:.3f}") for r in rows]
        yield line(label, runs.seeds, *texts[0], *texts[1], *(ahead(runs, cases, key) for key in ("mean", "p5")))


def ahead(runs: SimulatedRuns, cases: Sequence[Case], key: str) -> str:
    """By how much the second of ``cases`` is ahead of the first."""
    by_seed = [
        [runs.figures(replace(case, seed=seed))["qoe"][key] for case in cases] for seed in range(1, runs.seeds + 1)
    ]
    differences = np.diff(by_seed)
    spread = f" ({differences.std(ddof=1):.3f})" if runs.seeds > 1 else ""
    return f"{differences.mean():+.3f}{spread}"


def ranking_cases(runs: SimulatedRuns, names: list[str]) -> Iterable[tuple[str, Case]]:
    for name in names:
        if name == "paper":
            yield from ((f"paper, {x:g}", Case(name, "cycle", x, 0.35, 1, STOCK["stock"])) for x in (1.5, 2.0, 2.5))
        else:
            yield f"{name}, {SETTINGS[name].x:g} C", burst(name)
    if runs.traces is not None:
        for name, trace in recorded(runs, names[0]):
            yield from ((f"{trace}, {x:g} C", Case(name, "replay", x, 0.0, 1, STOCK["stock"])) for x in (0.7, 1.0))


class Table(NamedTuple):
    lines: Callable[[SimulatedRuns, list[str]], Lines]
    settings: str
    """Those that it has unless others are named."""
    seeds: int = 1


BARS = "h100-chat-30s h100-chat h100-long a100-phi a100-13b h100-mooncake cpu"
TABLES = {
    "held": Table(held, "h100-chat-30s h100-chat h100-long a100-phi h100-mooncake", 3),
    "held-final": Table(held_final, "a100-13b l4-chat 70b-chat"),
    "rivals": Table(rivals, BARS, 3),
    "bars": Table(bars, BARS, 3),
    "ranking": Table(ranking, f"{BARS} 32b-chat 70b-chat l4-chat paper", 3),
    "intensity": Table(intensity, "h100-chat h100-long 32b-chat 70b-chat a100-phi a100-13b l4-chat cpu h100-mooncake"),
    "duration": Table(duration, "h100-chat a100-13b"),
    "steady": Table(steady, "h100-chat cpu"),
    "traces": Table(traces, "h100-chat"),
    "thoughts": Table(thoughts, "h100-thoughts l4-thoughts 32b-thoughts"),
    "paper": Table(paper, "paper"),
    "sensitivity": Table(sensitivity, "h100-chat a100-13b"),
}


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
            runs = SimulatedRuns(args.out, args.traces, args.seeds or table.seeds)
            runs.progress = Progress(name)
            text = ""
            for row in table.lines(runs, args.settings or table.settings.split()):
                print(row, flush=True)
                text += row + "\n"
                (args.out / f"{name}.md").write_text(text)
            if args.page:
                replace_table(args.page, name, text)
    except KeyboardInterrupt:
        print("\ninterrupted; what was computed is kept", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
