"""The simulator beside the real engine: recorded runs of ``andes compare``, simulated again request by request.

``python benchmarks/fidelity.py DIRECTORY...`` prints, for each arm of each directory, what readers got and what the simulator
says they get. Costs come from ``--profile``; without it they are fitted to the directory's stock run, and one number for each
arm, measured in the time between its tokens, says how much slower the machine was then. ``--markdown`` is for the docs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.request import RequestRecord, RequestSpec, read_records
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.cli import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fit import fit_costs, slowdown
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import Summary, aligned, summarise

WITHOUT_EFFECT = {"--sleep-on-idle", "--enable-metrics", "--disable-cuda-graph", "--skip-server-warmup"}
"""Flags of the recorded engines that mean nothing to a simulated one."""
FIGURES = (
    ("mean QoE", ("qoe", "mean"), "absolute", 0.03),
    ("p5", ("qoe", "p5"), "absolute", None),
    ("TTFT p90 s", ("ttft_s", "p90"), "relative", 0.15),
    ("stall p90 s", ("stall_s", "longest_p90"), "absolute", None),
    ("tokens/s", ("tokens_per_s",), "relative", 0.05),
    ("preempt/req", ("preemptions_per_request",), "absolute", None),
    ("recomputed", ("recomputed_tokens",), "relative", None),
)


def again(records: list[RequestRecord], engine: EngineModel, arm: Arm, passed: list[str]) -> Summary:
    """The figures of the same requests on a simulated engine."""
    model, policy = configure(engine, arm, passed)
    specs = [
        RequestSpec(r.arrival_s, r.prompt_tokens, r.output_tokens, r.target)
        for r in sorted(records, key=lambda r: r.arrival_s)
    ]
    return summarise(simulate(model, policy(), specs))


def figure(summary: Summary, path: tuple[str, ...]) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if value is not None else None
    return value


def compare(directory: Path, engine: EngineModel | None, only: set[str]) -> tuple[list[list[str]], list[str]]:
    """Rows of a table, and what lies outside the tolerances."""
    result = json.loads((directory / "summary.json").read_text())
    arms = {name: Arm(arm["policy"], tuple(arm["flags"])) for name, arm in result["engine"]["arms"].items()}
    passed = [flag for flag in result["engine"]["flags"] if flag not in WITHOUT_EFFECT]
    rows: list[list[str]] = []
    outside: list[str] = []
    means: dict[str, tuple[list[float], list[float]]] = {}
    stock = next(name for name, arm in arms.items() if arm.policy == "stock" and not arm.flags)
    for repeat in range(1, 100):
        if not (directory / f"records-{stock}-{repeat}.jsonl.gz").exists():
            break
        base, fit, stock_slower = engine or profiles.load("cpu-tiny-llama").engine, None, 1.0
        if engine is None:
            reference = read_records(directory / f"records-{stock}-{repeat}.jsonl.gz")
            fit = fit_costs(reference, chunk_tokens=base.chunk_tokens)
            stock_slower = slowdown(reference, fit.costs, sends_late=fit.sends_late)
            print(f"{directory.name}, {repeat}: median error of a decode step {fit.decode_error:.0%}, of a prefill "
                  f"{fit.prefill_error:.0%}; {fit.costs}", file=sys.stderr)  # fmt: skip
        for name, arm in arms.items():
            file = directory / f"records-{name}-{repeat}.jsonl.gz"
            if not file.exists() or (only and name not in only):
                continue
            records = read_records(file)
            real = result["policies"][name]["repeats"][repeat - 1]
            for key, value in summarise(records).items():
                real.setdefault(key, value)
            slower, model = 1.0, base
            if fit is not None:
                slower = slowdown(records, fit.costs, sends_late=fit.sends_late) / stock_slower
                model = replace(base, costs=fit.costs.times(slower))
            simulated = again(records, model, arm, passed)
            cells = []
            for title, path, kind, tolerance in FIGURES:
                a, b = figure(real, path), figure(simulated, path)
                if a is None or b is None:
                    cells.append("-")
                    continue
                off = abs(b - a) / (1.0 if kind == "absolute" else max(abs(a), 1e-9))
                digits = 3 if max(abs(a), abs(b)) < 2 else 1 if max(abs(a), abs(b)) < 200 else 0
                missed = tolerance is not None and off > tolerance
                cells.append(f"{a:.{digits}f} / {b:.{digits}f}{' !' if missed else ''}")
                if missed:
                    outside.append(f"{directory.name}, {name} {repeat}: {title} {a:.3f}, simulated {b:.3f}")
            rows.append([f"{directory.name} {name} {repeat}", f"{slower:.2f}", *cells])
            pair = means.setdefault(name, ([], []))
            pair[0].append(real["qoe"]["mean"])
            pair[1].append(simulated["qoe"]["mean"])
    orders = [sorted(means, key=lambda name: -float(np.mean(means[name][side]))) for side in (0, 1)]
    if orders[0] != orders[1]:
        outside.append(f"{directory.name}: best first {' > '.join(orders[0])}, simulated {' > '.join(orders[1])}")
    return rows, outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--profile", help="a profile; default: fitted to each directory's stock arm")
    parser.add_argument("--arms", default="", help="only these, comma-separated")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    engine = profiles.load(args.profile).engine if args.profile else None
    table = [["real / simulated", "slowdown", *(title for title, _, _, _ in FIGURES)]]
    outside: list[str] = []
    for directory in args.directories:
        rows, missed = compare(directory, engine, {name for name in args.arms.split(",") if name})
        table += rows
        outside += missed
    if args.markdown:
        table.insert(1, ["---"] * len(table[0]))
        print("\n".join("| " + " | ".join(row) + " |" for row in table))
    else:
        print(aligned(table))
    print(f"\n{len(outside)} outside the tolerances", *outside, sep="\n- " if outside else "")


if __name__ == "__main__":
    main()
