"""The simulator against the real engine: recorded runs of ``andes compare``, simulated again request by request.

    python benchmarks/fidelity.py [DIRECTORY...] [--markdown] [--profile NAME] [--steady]

For each arm of each directory: what readers got, and what the simulator predicts; exit status 1 where a figure is outside
the tolerances (marked ``!``; ``~``: a first token off by more than 15 %, but by less than 0.15 s). Without directories, the
runs recorded in ``tests/fixtures/fidelity``; an arm's options are pinned there to what they were when it was recorded.

What an iteration costs is fitted to the directory's stock arm (where that shows too few, it is the packaged CPU profile's)
and is then the same for every arm. How slow the host was is read off each run's own decode steps in windows of 3 s, because a
virtual machine's speed moves by half within a minute; and how fast host copies were, off the engine's own counters. None of
them uses which request was served when. ``--profile`` takes a
profile's costs for all; ``--steady`` leaves the host's speed out. Sizes and entry are the packaged CPU profile's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.request import RequestRecord, RequestSpec, read_records
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.fit import FitError, fit_costs, host_pace
from andes_sglang.sim.replica import Replica
from andes_sglang.summary import Summary, aligned, summarise

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures" / "fidelity"
WITHOUT_EFFECT = {"--sleep-on-idle", "--enable-metrics", "--disable-cuda-graph", "--skip-server-warmup"}
"""Flags of the recorded engines that mean nothing to a simulated one."""
WINDOW_S = 3.0
"""Window of the host's speed: shorter ones hold too few decode steps for a median (docs/benchmarks/fidelity.md)."""
FIRST_HALF_TTFT = 0.20
"""Share by which TTFT p90 may be off where costs are those of the first half."""
KV_TOKEN_BYTES = 4096
"""Of the engine that was recorded: keys and values of 8 layers, 64 numbers each, in float32."""
TIED = 0.01
"""Arms whose mean QoE differs by less are not ranked."""
NEAR_S = 0.15
"""Seconds. First tokens closer than this count as equal, whatever share of a small TTFT that is: readers expect theirs within
1 s, and which tenth of the requests waits under andes depends on the order of events within milliseconds."""
FIGURES = (
    ("mean QoE", ("qoe", "mean"), "absolute", 0.03),
    ("p5", ("qoe", "p5"), "absolute", None),
    ("TTFT p50 s", ("ttft_s", "p50"), "relative", None),
    ("TTFT p90 s", ("ttft_s", "p90"), "relative", 0.15),
    ("stall p90 s", ("stall_s", "longest_p90"), "absolute", None),
    ("tokens/s", ("tokens_per_s",), "relative", 0.05),
    ("preempt/req", ("preemptions_per_request",), "absolute", None),
    ("recomputed", ("recomputed_tokens",), "relative", None),
)


def again(
    records: Sequence[RequestRecord], engine: EngineModel, arm: Arm, passed: Sequence[str], pace: Sequence[float]
) -> Summary:
    """The figures of the same requests on a simulated engine whose costs are ``pace[k]`` times its own in window k."""
    model, policy = configure(engine, arm, passed)
    served: list[RequestRecord] = []
    replica = Replica(model, policy(), sink=served.append)
    window = 0
    for record in sorted(records, key=lambda r: r.arrival_s):
        while window < len(pace) and window * WINDOW_S <= record.arrival_s:
            replica.advance(window * WINDOW_S)
            replica.engine = replace(model, costs=model.costs.times(pace[window]))
            window += 1
        replica.advance(record.arrival_s)
        replica.submit(RequestSpec(record.arrival_s, record.prompt_tokens, record.output_tokens, record.target))
    for later in range(window, len(pace)):
        replica.advance(later * WINDOW_S)
        replica.engine = replace(model, costs=model.costs.times(pace[later]))
    replica.advance()
    return summarise(served)


def figure(summary: Summary, path: Sequence[str]) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if value is not None else None
    return None if value is None else float(value)


def row_of(label: str, real: Summary, simulated: Summary, ttft: float | None = None) -> tuple[list[str], list[str]]:
    """A row of the table, and what in it lies outside the tolerances. ttft: of TTFT p90, if another one."""
    cells, outside = [label], []
    for title, path, kind, usual in FIGURES:
        tolerance = ttft if ttft is not None and path == ("ttft_s", "p90") else usual
        a, b = figure(real, path), figure(simulated, path)
        if a is None or b is None:
            cells.append("-")
            continue
        off = tolerance is not None and abs(b - a) > tolerance * (1.0 if kind == "absolute" else a)
        missed = off and not (path[0] == "ttft_s" and abs(b - a) <= NEAR_S)
        digits = 3 if max(abs(a), abs(b)) < 2 else 1 if max(abs(a), abs(b)) < 200 else 0
        cells.append(f"{a:.{digits}f} / {b:.{digits}f}{' !' if missed else ' ~' if off else ''}")
        if missed:
            outside.append(f"{label}: {title} {a:.3f}, simulated {b:.3f}")
    return cells, outside


def first_half(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """What had been seen when half of the requests' arrivals were over."""
    until_s = max(r.arrival_s for r in records) / 2
    seen = (
        replace(r, deliveries=[d for d in r.deliveries if d[0] <= until_s]) for r in records if r.arrival_s <= until_s
    )
    return [r for r in seen if r.deliveries]


def order(means: dict[str, float]) -> set[tuple[str, str]]:
    """Pairs (better, worse) of arms whose mean QoE differs by ``TIED`` or more."""
    pairs = [(a, b) if means[a] > means[b] else (b, a) for a, b in combinations(means, 2)]
    return {(a, b) for a, b in pairs if means[a] - means[b] >= TIED}


def costs_of(records: list[RequestRecord], engine: EngineModel) -> Costs:
    """Fitted to the stock arm; those of ``engine`` where it shows too few iterations."""
    try:
        return fit_costs(records, chunk_tokens=engine.chunk_tokens).costs
    except FitError:
        return engine.costs


def copying(engine: EngineModel, told: Mapping[str, Any]) -> EngineModel:
    """``engine`` with host copies as fast as a run's counters say; as it is where they say nothing."""
    host = told.get("host") or {}
    if not host.get("copy_seconds"):
        return engine
    tokens = (host["write_bytes"] + host["load_bytes"]) / KV_TOKEN_BYTES
    return replace(engine, host_tokens_per_s=tokens / host["copy_seconds"])


def compare(
    directory: Path, *, profile: str | None, steady: bool, half: bool = False
) -> tuple[list[list[str]], list[str]]:
    """Rows of a table, and what lies outside the tolerances."""
    result = json.loads((directory / "summary.json").read_text())
    arms = {name: Arm(arm["policy"], tuple(arm["flags"])) for name, arm in result["engine"]["arms"].items()}
    passed = [flag for flag in result["engine"]["flags"] if flag not in WITHOUT_EFFECT]
    base = profiles.load(profile or "cpu-tiny-llama").engine
    stock = next(name for name, arm in arms.items() if arm.policy == "stock" and not arm.flags)
    rows: list[list[str]] = []
    outside: list[str] = []
    for repeat in range(1, 1 + len(result["policies"][stock]["repeats"])):
        records = {name: read_records(directory / f"records-{name}-{repeat}.jsonl.gz") for name in arms}
        fitted = first_half(records[stock]) if half else records[stock]
        costs = base.costs if profile else costs_of(fitted, base)
        _, hiccups = host_pace(fitted, costs, sends_late=True, window_s=WINDOW_S)
        means: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for name, arm in arms.items():
            told = result["policies"][name]["repeats"][repeat - 1]
            counted = {key: told.get(key) for key in ("preemptions_per_request", "recomputed_tokens")}
            real = {**summarise(records[name]), **counted}
            pace, _ = host_pace(records[name], costs, sends_late=True, window_s=WINDOW_S)
            pace = np.ones(0) if steady else pace * hiccups
            simulated = again(records[name], replace(copying(base, told), costs=costs), arm, passed, pace.tolist())
            row, missed = row_of(f"{directory.name} {name}", real, simulated, FIRST_HALF_TTFT if half else None)
            rows.append([*row, f"{pace.min():.2f} to {pace.max():.2f}" if len(pace) else "1"])
            outside += missed
            for side, summary in zip(means, (real, simulated), strict=True):
                side[name] = summary["qoe"]["mean"]
        if order(means[0]) != order(means[1]):
            outside.append(f"{directory.name} {repeat}: order of mean QoE {means[0]}, simulated {means[1]}")
    return rows, outside


def keep(directory: Path, name: str) -> None:
    """Make a fixture of the results of ``andes compare`` in ``directory``."""
    result = json.loads((directory / "summary.json").read_text())
    told = ("preemptions_per_request", "recomputed_tokens", "host")
    kept = {
        "workload": result["workload"],
        "engine": {key: result["engine"][key] for key in ("what", "flags", "arms")},
        "policies": {
            arm: {
                "repeats": [{key: run[key] for key in told if run.get(key) is not None} for run in summary["repeats"]]
            }
            for arm, summary in result["policies"].items()
        },
    }
    target = FIXTURES / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "summary.json").write_text(json.dumps(kept, indent=1) + "\n")
    for file in directory.glob("records-*.jsonl.gz"):
        shutil.copy(file, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--profile", help="its costs for every run")
    parser.add_argument("--steady", action="store_true", help="as if the host's speed did not move")
    parser.add_argument("--first-half", action="store_true", help="costs of the first half of stock's run alone")
    parser.add_argument("--keep", metavar="NAME", help="make a fixture of this name of the one directory, then compare")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    if args.keep:
        if len(args.directories) != 1:
            parser.error(f"--keep {args.keep}: goes with exactly one directory, got {len(args.directories)}")
        keep(args.directories[0], args.keep)
    table = [["real / simulated", *(title for title, _, _, _ in FIGURES), "host"]]
    outside: list[str] = []
    for directory in args.directories or sorted(path.parent for path in FIXTURES.glob("*/summary.json")):
        rows, missed = compare(directory, profile=args.profile, steady=args.steady, half=args.first_half)
        table += rows
        outside += missed
    if args.markdown:
        table.insert(1, ["---"] * len(table[0]))
        print("\n".join("| " + " | ".join(row) + " |" for row in table))
    else:
        print(aligned(table))
    print(f"\n{len(outside)} outside the tolerances", *outside, sep="\n- " if outside else "")
    return int(bool(outside))


if __name__ == "__main__":
    raise SystemExit(main())
