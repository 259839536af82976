"""``andes sweep``: ``andes simulate`` at every point of a grid of options, a point on each core, and the plot."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from andes_sglang import report, results, summary
from andes_sglang.flags import UsageError
from andes_sglang.orphans import exit_with_parent
from andes_sglang.report import Figure
from andes_sglang.report.charts import Band, Series
from andes_sglang.sim import cli as simulate

__all__ = ["USER_ERRORS", "add_arguments", "parse_range"]

USER_ERRORS = simulate.USER_ERRORS
MAX_POINTS = 10_000
METRICS = (
    ("QoE mean", ("qoe", "mean"), ".3f", 1.0),
    ("QoE p5", ("qoe", "p5"), ".3f", 1.0),
    ("TTFT p90 s", ("ttft_s", "p90"), ".2f", None),
    ("tokens/s", ("tokens_per_s",), ".0f", None),
)
"""What is told and drawn of every policy at every point: title, path in its summary, format, end of the axis."""


class Point(NamedTuple):
    """Values by option; figures of every policy by name, None where the simulation failed, ``error`` says why."""

    at: Mapping[str, str]
    directory: Path
    policies: Mapping[str, Any] | None = None
    error: str = ""


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    simulate.add_arguments(parser, "simulate")
    parser.description = _sweep.__doc__
    parser.epilog = (
        "Where a flag contains {NAME}, --over NAME=... fills it in: --arm 'a=andes:--policy-option stall_bound_s={bound}' "
        f"--over bound=10,30,90. Otherwise NAME is a flag of andes simulate, or one of SGLang's engine. {parser.epilog}"
    )
    parser.add_argument(
        "--over", action="append", required=True, metavar="NAME=VALUES",
        help="an option and its values, A,B,C or LOW:HIGH:STEP; repeatable: every combination; the first is the x axis",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=_cores(), metavar="N", help="simulations at a time")
    parser.set_defaults(run=partial(_sweep, parser), out=Path("out/sweep"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_range(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and values of ``NAME=A,B,C`` or ``NAME=LOW:HIGH:STEP``, both ends included. Raises :class:`UsageError`."""
    name, _, values = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or not values:
        raise UsageError(f"--over {text!r}: expected NAME=A,B,C or NAME=LOW:HIGH:STEP, as in load=0.5:1.2:0.1")
    if values.count(":") == 2 and "," not in values:
        found = tuple(_steps(text, values.split(":")))
    else:
        found = tuple(filter(None, values.split(",")))
    if not found:
        raise UsageError(f"--over {text!r}: names no value")
    if len(set(found)) != len(found):
        raise UsageError(f"--over {text!r}: names a value twice")
    return name, found


def _steps(text: str, parts: Sequence[str]) -> Iterable[str]:
    try:
        low, high, step = map(float, parts)
    except ValueError:
        raise UsageError(f"--over {text!r}: LOW, HIGH and STEP must be numbers") from None
    if not (0 < step < math.inf and low <= high and math.isfinite(high - low)) or (high - low) / step > MAX_POINTS:
        raise UsageError(f"--over {text!r}: LOW must be at most HIGH, and STEP > 0")
    return (f"{low + k * step:.10g}" for k in range(int((high - low) / step + 1e-9) + 1))


def _sweep(parser: argparse.ArgumentParser, args: argparse.Namespace, passed: Sequence[str]) -> int:
    """Replay one workload in virtual time under several policies at every value of an option, or at every combination of
    several, a simulation on each core; one table, one plot, and a directory of results for every point."""
    over, grid = _grid(args)
    jobs = [(at, *at_point(parser, args, passed, at)) for at in grid]
    with results.prepared(args.out, force=args.force):
        shutil.rmtree(args.out / results.POINTS, ignore_errors=True)
        return _played(args, over, grid, jobs)


def _played(
    args: argparse.Namespace,
    over: Mapping[str, tuple[str, ...]],
    grid: Sequence[Mapping[str, str]],
    jobs: Sequence[Job],
) -> int:
    points, interrupted = _simulate_all(jobs, args.jobs)
    done = [point for point in points if point.policies is not None]
    for point in points:
        if point.error:
            print(f"{_name(point.at)}: {point.error}", file=sys.stderr)
    if not done:
        return 130 if interrupted else 2
    result = {
        "over": over,
        "points": [{"at": point.at, "directory": str(point.directory.relative_to(args.out)), "policies": point.policies}
                   for point in done],
        "interrupted": interrupted,
        "made_by": results.made_by(),
    }  # fmt: skip
    rows = _rows(list(over), done)
    results.say(summary.aligned(rows), result, as_json=args.json)
    page = _page(result, rows, over, done)
    results.save(args.out, {"sweep.json": json.dumps(result, indent=1) + "\n", "sweep.html": page})
    print(f"\n{args.out / 'sweep.json'}\n{args.out / 'sweep.html'}", file=sys.stderr if args.json else sys.stdout)
    return 130 if interrupted else int(len(done) < len(grid))


def _grid(args: argparse.Namespace) -> tuple[dict[str, tuple[str, ...]], list[dict[str, str]]]:
    """Values by option, and every combination."""
    over = dict(map(parse_range, args.over))
    if len(over) < len(args.over):
        raise UsageError("--over: an option stands twice")
    count = math.prod(map(len, over.values()))
    if args.jobs < 1 or count > MAX_POINTS:
        raise UsageError(
            f"--jobs {args.jobs}, {count} points: expected at least 1 job, and at most {MAX_POINTS} points"
        )
    grid = [dict(zip(over, values)) for values in itertools.product(*over.values())]
    for name, points in Counter(map(_name, grid)).items():
        if points > 1:
            raise UsageError(f"--over: {name} is the directory of two points; give values other names")
    return over, grid


def at_point(
    parser: argparse.ArgumentParser, args: argparse.Namespace, passed: Sequence[str], at: Mapping[str, str]
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of ``andes simulate`` at a point. Raises :class:`UsageError` for a value that an option cannot have."""
    args, flags = (
        argparse.Namespace(**{name: value for name, value in vars(args).items() if name != "run"}),
        list(passed),
    )
    args.out, args.force, args.json = args.out / results.POINTS / _name(at), True, False
    for name, value in at.items():
        slot = f"{{{name}}}"
        if any(slot in text for text in (args.policies, *args.arm, *flags)):
            args.policies = args.policies.replace(slot, value)
            args.arm = [arm.replace(slot, value) for arm in args.arm]
            flags = [flag.replace(slot, value) for flag in flags]
            continue
        option = next((a for a in parser._actions if f"--{name}" in a.option_strings), None)
        if option is None:
            flags += [f"--{name}", value]
        elif option.nargs == 0 or option.dest in ("out", "over", "jobs", "arm"):
            raise UsageError(f"--over {name}: --{name} takes no value of its own here")
        else:
            setattr(args, option.dest, _converted(option, name, value))
    return args, flags


def _converted(option: argparse.Action, name: str, value: str) -> Any:
    kind: Callable[[str], Any] = option.type if callable(option.type) else str
    try:
        converted = kind(value)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--over {name}={value}: {error}") from None
    except (TypeError, ValueError):
        what = {int: "a whole number", float: "a number"}.get(option.type, "a value")  # type: ignore[call-overload]
        raise UsageError(f"--over {name}={value}: expected {what} of --{name}") from None
    if option.choices is not None and converted not in option.choices:
        raise UsageError(f"--over {name}={value}: choose from {', '.join(map(str, option.choices))}")
    return converted


def _name(at: Mapping[str, str]) -> str:
    """Of a point, and of its directory."""
    return ",".join(f"{name}={re.sub(r'[^A-Za-z0-9_.+:-]', '_', value)}" for name, value in at.items())


Job = tuple[Mapping[str, str], argparse.Namespace, list[str]]


def _simulate_all(jobs: Sequence[Job], at_a_time: int) -> tuple[list[Point], bool]:
    """Every point in the order of ``jobs``, and whether Ctrl-C ended it; then those that are done."""
    progress = results.Progress("sweep")
    points: dict[int, Point] = {}
    interrupted = False
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(at_a_time, len(jobs)), context, _end_with_parent) as pool:
        try:
            futures: dict[Future[Point], int] = {pool.submit(_simulate, *job): k for k, job in enumerate(jobs)}
            for future in as_completed(futures):
                job = futures[future]
                points[job] = _result(future, jobs[job])
                progress(f"{len(points)} of {len(jobs)} points")
        except KeyboardInterrupt:
            interrupted = True
            for worker in multiprocessing.active_children():
                worker.terminate()  # what it has begun is in no result
            pool.shutdown(wait=True, cancel_futures=True)
            print("\ninterrupted: reporting the points that are done", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return [points[k] for k in sorted(points)], interrupted


def _end_with_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that says so, or has gone."""
    exit_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _result(future: Future[Point], job: Job) -> Point:
    try:
        return future.result()
    except BrokenExecutor:
        return Point(job[0], job[1].out, error="its process was ended: fewer --jobs need less memory")


def _simulate(at: Mapping[str, str], args: argparse.Namespace, passed: list[str]) -> Point:
    """In a process of its own: what ``andes simulate`` would print goes to ``log.txt`` of the point."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = simulate.run(args, passed)
    except (UsageError, *USER_ERRORS) as error:
        return Point(at, args.out, error=str(error))
    except OSError as error:
        return Point(at, args.out, error=f"{args.out} cannot be written ({error.strerror})")
    if status:
        return Point(at, args.out)
    policies = json.loads((args.out / "summary.json").read_text())["policies"]
    return Point(at, args.out, {name: {k: v for k, v in p.items() if k != "repeats"} for name, p in policies.items()})


def _rows(names: Sequence[str], points: Sequence[Point]) -> list[list[str]]:
    rows = [[*names, "policy", *(title for title, *_ in METRICS)]]
    for point in points:
        for policy, figures in (point.policies or {}).items():
            rows.append([*(point.at[name] for name in names), policy, *(_told(figures, metric) for metric in METRICS)])
    return rows


def _told(figures: Mapping[str, Any], metric: tuple[str, tuple[str, ...], str, float | None]) -> str:
    _, path, form, _ = metric
    value, spread = _at(figures, path), _at(figures.get("std") or {}, path)
    return "-" if value is None else format(value, form) + ("" if spread is None else f" ±{format(spread, form)}")


def _at(figures: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def _page(
    result: Mapping[str, Any], rows: Sequence[Sequence[str]], over: Mapping[str, Sequence[str]], points: Sequence[Point]
) -> str:
    """The plot: the first option along the x axis, a line a policy, a row of charts for each value of the others."""
    first, *others = over
    policies = list(dict.fromkeys(name for point in points for name in point.policies or ()))
    colours = {name: report.COLOURS[k % len(report.COLOURS)] for k, name in enumerate(policies)}
    parts = {}
    for values in itertools.product(*(over[name] for name in others)):
        wanted = dict(zip(others, values))
        chosen = [point for point in points if all(point.at[name] == value for name, value in wanted.items())]
        title = ", ".join(f"{name} {value}" for name, value in wanted.items())
        parts[title] = [_chart(chosen, first, over[first], colours, metric) for metric in METRICS] if chosen else []
    return report.render_page(
        "sweep", title=f"Over {', '.join(over)}", columns=rows[0], rows=rows[1:], colours=colours, parts_by_title=parts,
        made_by=report.made_by({**result, "workload": {}}),
    )  # fmt: skip


def _chart(
    points: Sequence[Point],
    option: str,
    values: Sequence[str],
    colours: Mapping[str, str],
    metric: tuple[str, tuple[str, ...], str, float | None],
) -> Figure:
    title, path, _, y_max = metric
    places = _places(values)
    lines: list[Series] = []
    bands: list[Band] = []
    for name, colour in colours.items():
        found = [(places[p.at[option]], p.policies[name]) for p in points if p.policies and name in p.policies]
        xs, ys, stds = np.array(sorted(map(partial(_place, path), found))).reshape(-1, 3).T
        lines.append((name, colour, xs.tolist(), ys.tolist()))
        bands.append((colour, xs.tolist(), np.maximum(0.0, ys - stds).tolist(), (ys + stds).tolist()))
    numbered = "" if _numbers(values) else f" ({', '.join(f'{k}: {value}' for k, value in enumerate(values))})"
    caption = f"{title} by {option}{numbered}. Band: a standard deviation over repeats."
    return Figure(report.plot(lines, option, title, y_max, bands=bands), caption)


def _place(path: Sequence[str], found: tuple[float, Mapping[str, Any]]) -> tuple[float, float, float]:
    """On the x axis, the figure there, and its spread."""
    x, figures = found
    return x, _at(figures, path) or 0.0, _at(figures.get("std") or {}, path) or 0.0


def _numbers(values: Sequence[str]) -> list[float]:
    """Empty where one of them is no number."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return []


def _places(values: Sequence[str]) -> dict[str, float]:
    """Where each value stands on the x axis: at itself, or one after the other."""
    return dict(zip(values, _numbers(values) or map(float, range(len(values)))))
