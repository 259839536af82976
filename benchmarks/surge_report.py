"""Tables and the picture of benchmarks/surges.py, from the runs that it has kept, and the file that keeps their figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from andes_sglang import report
from benchmarks.markdown import header, row

__all__ = [
    "CLAIRVOYANT", "HPA", "KEDA", "MEAN", "OURS", "PLANNER", "SHARE", "STATIC", "Case", "bars", "everything",
    "holds_both", "holds_mean", "kept", "latest", "of_case", "picture", "record", "recorded",
]  # fmt: skip

STATIC, KEDA, HPA, PLANNER = "static, hindsight", "KEDA, running", "HPA, KV", "TTFT planner"
OURS, CLAIRVOYANT = "ours", "clairvoyant"
ARMS = (STATIC, HPA, KEDA, PLANNER, OURS, CLAIRVOYANT)
MEAN, SHARE = 0.95, 0.9
"""Objectives in every window: of the mean QoE, and of the share of readers with a QoE of at least 0.95."""
SCHEDULERS = ("stock", "andes")
SAID = {STATIC: "fixed fleet", HPA: "HPA", KEDA: "KEDA", PLANNER: "planner", OURS: "operator"}
"""Of arms, in a picture."""

Result = dict[str, Any]
TEXTS, NUMBERS = ("served", "shape", "scheduler", "arm"), ("cold_start_s", "setting", "seed", "days")
FIGURES = ("replica_hours", "worst_mean", "worst_share", "most")
"""Columns of the file of figures: what was run, and what came out. Cold start 0: a fleet that never starts a replica."""


class Case(NamedTuple):
    """What arms are compared on. served: engine, and lengths unless they are the usual ones. days: of history, which only
    ours looks at."""

    served: str
    shape: str
    cold_start_s: float
    seed: float
    days: float = 0

    def __str__(self) -> str:
        known = f", {self.history} of history" if self.days else ""
        return f"{self.shape}, {self.served}, cold start {self.cold_start_s:g} s, seed {self.seed:g}{known}"

    @property
    def history(self) -> str:
        return f"{self.days:g} days" if self.days else ""


def kept(folder: Path) -> list[Result]:
    """All runs of ``folder`` without other constants."""
    found = [
        json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if not path.name.startswith("tables")
    ]
    return [r for r in found if not r["of"]["set"]]


def recorded(path: Path) -> list[Result]:
    """The runs of a file of figures; empty where there is none. NaN: run, and the figures are not kept."""
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        return [
            {"of": {**{name: line[name] for name in TEXTS}, **{name: float(line[name]) for name in NUMBERS}, "set": []},
             **{name: float(line[name] or "nan") for name in FIGURES}}
            for line in csv.DictReader(lines)
        ]  # fmt: skip


def latest(results: Iterable[Result]) -> list[Result]:
    """The figures of each run, once, as a file keeps them: the last of those of the same, in order."""

    def figures(result: Result) -> Result:
        of = dict(result["of"], set=[])
        of["cold_start_s"] = 0.0 if of["arm"] == STATIC else of["cold_start_s"]
        of["days"] = of["days"] if of["arm"] == OURS else 0
        return {"of": of, **{name: round(float(result[name]), 4) for name in FIGURES}}

    found = [figures(result) for result in results]
    by_run = {tuple(each["of"][name] for name in (*TEXTS, *NUMBERS)): each for each in found}
    return [by_run[run] for run in sorted(by_run)]


def record(path: Path, results: Iterable[Result]) -> None:
    """Write a file of figures."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*TEXTS, *NUMBERS, *FIGURES))
        for result in results:
            numbers = [result["of"][name] for name in NUMBERS] + [result[name] for name in FIGURES]
            writer.writerow(
                [result["of"][name] for name in TEXTS] + ["" if math.isnan(n) else f"{n:g}" for n in numbers]
            )


def holds_mean(result: Result) -> bool:
    return bool(result["worst_mean"] >= MEAN)


def holds_both(result: Result) -> bool:
    return holds_mean(result) and bool(result["worst_share"] >= SHARE)


def cases(results: Iterable[Result]) -> list[Case]:
    """In which ours was run."""
    return sorted({
        Case(of["served"], of["shape"], of["cold_start_s"], of["seed"], of["days"])
        for of in (r["of"] for r in results) if of["arm"] == OURS
    })  # fmt: skip


def of_case(results: Iterable[Result], case: Case) -> list[Result]:
    """A static fleet has no cold start, so it belongs to all."""

    def belongs(of: dict[str, Any]) -> bool:
        cold = of["arm"] == STATIC or of["cold_start_s"] == case.cold_start_s
        known = of["arm"] != OURS or of["days"] == case.days
        return bool(cold and known and (of["served"], of["shape"], of["seed"]) == (case.served, case.shape, case.seed))

    return [r for r in results if belongs(r["of"])]


def cheapest(results: Iterable[Result], holds: Callable[[Result], bool] = holds_mean) -> Result | None:
    return min((r for r in results if holds(r)), key=lambda r: float(r["replica_hours"]), default=None)


def pick(results: Sequence[Result], holds: Callable[[Result], bool]) -> Result:
    """The cheapest that holds; else the one with the best worst window."""
    return cheapest(results, holds) or max(results, key=lambda r: float(r["worst_mean"]))


def named(result: Result) -> str:
    arm, setting = str(result["of"]["arm"]), result["of"]["setting"]
    return arm.partition(",")[0] + ("" if arm == OURS else f" {setting:g}")


def verdict(result: Result) -> str:
    return "both" if holds_both(result) else "mean" if holds_mean(result) else "no"


def worst(result: Result) -> str:
    return f"{result['worst_mean']:.3f} / {result['worst_share']:.3f}"


def everything(results: Sequence[Result]) -> Iterator[str]:
    """Of each case and arm: the cheapest setting that holds the mean in every window, and for static fleets also the cheapest
    that holds both; where none does, the one with the best worst window."""
    for case in cases(results):
        yield f"\n#### {case}\n"
        yield from header(
            "scheduler", "autoscaler", "replica-hours", "worst window", "holds", "most replicas", "settings run"
        )
        there = of_case(results, case)
        for scheduler in SCHEDULERS:
            for arm in ARMS:
                found = [r for r in there if (r["of"]["scheduler"], r["of"]["arm"]) == (scheduler, arm)]
                told = [r for r in found if not math.isnan(r["worst_mean"])]
                if not told:
                    continue
                picked = [pick(told, bar) for bar in ((holds_mean, holds_both) if arm == STATIC else (holds_mean,))]
                settings = ", ".join(f"{s:g}" for s in sorted(r["of"]["setting"] for r in found))
                for result in [r for r, _ in groupby(picked)]:
                    yield row(scheduler, named(result), f"{result['replica_hours']:.2f}", worst(result), verdict(result),
                              round(result["most"]), "-" if arm == OURS else settings)  # fmt: skip


def bars(results: Sequence[Result]) -> Iterator[str]:
    """Of each case: ours with andes, against the cheapest that holds the mean in every window of stock, of static fleets with
    andes, and of KEDA's settings with andes."""
    rivals = (
        "cheapest stock that holds",
        "against it",
        "static, andes",
        "against it",
        "KEDA's best, andes",
        "against it",
    )
    yield from header("engine", "workload", "cold start", "seed", "history", "ours", "worst window", "holds", *rivals)
    for case in cases(results):
        there = [r for r in of_case(results, case) if r["of"]["arm"] != CLAIRVOYANT]
        andes = [r for r in there if r["of"]["scheduler"] == "andes"]
        ours = next((r for r in andes if r["of"]["arm"] == OURS), None)
        if ours is None:
            continue

        def against(rivals: Iterable[Result], ours: Result = ours) -> tuple[str, str]:
            rival = cheapest(rivals)
            if rival is None:
                return "none holds" if rivals else "not run", "-"
            share = ours["replica_hours"] / rival["replica_hours"] - 1
            return f"{named(rival)}: {rival['replica_hours']:.2f}", f"{share:+.0%}"

        stock = [r for r in there if r["of"]["scheduler"] == "stock"]
        static, keda = ([r for r in andes if r["of"]["arm"] == arm] for arm in (STATIC, KEDA))
        yield row(
            case.served, case.shape, f"{case.cold_start_s:g} s", f"{case.seed:g}", case.history or "none",
            f"**{ours['replica_hours']:.2f}**", worst(ours), verdict(ours),
            *against(stock), *against(static), *against(keda),
        )  # fmt: skip


def picture(results: Sequence[Result], demand: tuple[Sequence[float], Sequence[float]]) -> str:
    """Replicas over time of one case: stock's cheapest that holds, and ours with andes; demand: minutes, busy replicas."""
    stock = cheapest(r for r in results if r["of"]["scheduler"] == "stock" and r["of"]["arm"] != CLAIRVOYANT)
    ours = [r for r in results if (r["of"]["scheduler"], r["of"]["arm"]) == ("andes", OURS)]
    hours = {"stock": stock, "andes": ours[0] if ours else None}
    key, series = {"demand": "#888888"}, [("demand", "#888888 dash", *demand)]
    for (scheduler, result), colour in zip(hours.items(), report.COLOURS, strict=False):
        if result is not None:
            label = f"{scheduler}, {SAID[result['of']['arm']]}: {result['replica_hours']:.1f} replica-hours"
            key[label] = colour
            at_min, replicas = zip(*((at_s / 60.0, float(n)) for at_s, n in result["timeline"]), strict=True)
            series.append((label, colour, *stepped(at_min, replicas)))
    return report.standalone(report.plot(series, "minutes", "replicas (simulated)"), key)


def stepped(at: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Each value holds until the next."""
    xs = [at[0], *(x for later in at[1:] for x in (later, later))]
    ys = [y for value in values for y in (value, value)][:-1]
    return xs, ys
