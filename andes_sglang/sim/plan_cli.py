"""``andes plan``."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang import report, results, summary
from andes_sglang.flags import add_arm_arguments, arms_of
from andes_sglang.objective import QoEObjective
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim import whatif
from andes_sglang.sim.cli import USER_ERRORS
from andes_sglang.sim.configure import STOCK_MIXED, configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import capacity_rps, cheapest_mix, score_fleet, smallest_feasible
from andes_sglang.sim.profile import Profile
from andes_sglang.sim.replica import RefusedError
from andes_sglang.sim.whatif import Goal, WhatIf
from andes_sglang.workload import SyntheticWorkload, Workload, WorkloadError, from_arguments
from andes_sglang.workload import add_arguments as add_workload_arguments

__all__ = ["USER_ERRORS", "add_arguments"]

MOST_TO_GUESS = 200_000
"""Requests; more are not held in memory to guess from."""
Engine = tuple[EngineModel, Callable[[], SchedulingPolicy | None]]


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = _plan.__doc__
    parser.epilog = "Flags not listed here are SGLang's for each engine, as for andes simulate."
    parser.add_argument(
        "--profile", action="append", required=True, metavar="NAME[@PRICE]",
        help="a profile, with its price per replica and hour if not the file's; repeat it for mixes of two",
    )  # fmt: skip
    parser.add_argument("--objective", default="mean>=0.95", help="mean>=X, pN>=X or share(Q)>=X; default: %(default)s")
    add_arm_arguments(parser, policies=f"stock,{STOCK_MIXED},andes")
    parser.add_argument(
        "--most", type=int, default=64, metavar="N", help="largest fleet considered; default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of the workload; default: %(default)s")
    parser.add_argument("--decision-interval", type=float, default=0.1, metavar="S",
                        help="ask policies no more often than this; default: %(default)s")  # fmt: skip
    add_workload_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("out/plan"), help="directory for the results")
    parser.set_defaults(run=_plan)


@dataclass(slots=True)
class _Plan:
    """The least fleet of one profile under one policy. values: the statistic for each seed, by number of replicas."""

    profile: Profile
    policy: str
    replicas: int | None = None
    values: dict[int, list[float]] = field(default_factory=dict)
    backlog: dict[int, float] = field(default_factory=dict)
    saving: float | None = None

    @property
    def price(self) -> float | None:
        each = self.profile.price_per_hour
        return None if each is None or self.replicas is None else each * self.replicas


class _Planner:
    def __init__(
        self, args: argparse.Namespace, objective: QoEObjective, workloads: Sequence[Workload | SyntheticWorkload]
    ) -> None:
        self.objective = objective
        self.workloads = workloads
        self.interval_s = args.decision_interval
        self.most = args.most
        described = workloads[0].describe()
        self.rate_rps = described["rate_rps"] or 1.0
        self.lengths = described["prompt_tokens"]["mean"], described["output_tokens"]["mean"]

    def values(self, fleet: Sequence[Engine], label: str) -> tuple[list[float], float]:
        """The statistic for each seed, and the mean share of requests open when the last one arrived."""
        progress = results.Progress(label)
        values, backlogs = [], []
        for number, workload in enumerate(self.workloads, start=1):
            progress(f"{len(fleet)} replicas, seed {number} of {len(self.workloads)}")
            engines = [engine for engine, _ in fleet]
            scores, backlog = score_fleet(engines, fleet[0][1], workload, decision_interval_s=self.interval_s)
            values.append(self.objective.of(scores))
            backlogs.append(backlog / max(1, len(scores)))
        return values, float(np.mean(backlogs))

    def guess(self, engine: Engine) -> int:
        """Where to begin: the what-if's answer where that is much cheaper than one fleet, else arithmetic."""
        workload = self.workloads[0]
        if 4 * whatif.MOST_REQUESTS < len(workload) <= MOST_TO_GUESS:
            question = WhatIf(*engine, workload.requests, workload.duration_s, [Goal(self.objective)])
            return question.fewest(self.most) or self.most
        return round(self.rate_rps / capacity_rps(engine[0], *self.lengths) + 0.5)

    def plan(self, profile: Profile, policy: str, engine: Engine) -> _Plan:
        plan = _Plan(profile, policy)

        def holds(n: int) -> bool:
            plan.values[n], plan.backlog[n] = self.values([engine] * n, f"{profile.name}, {policy}")
            return float(np.mean(plan.values[n])) >= self.objective.value

        plan.replicas = smallest_feasible(holds, self.guess(engine), self.most)
        return plan

    def mix(self, one: _Plan, other: _Plan, engines: tuple[Engine, Engine]) -> dict[str, Any] | None:
        """The cheapest fleet of two profiles; None where one cannot do it alone or has no price."""
        if one.replicas is None or other.replicas is None:
            return None
        prices = one.profile.price_per_hour, other.profile.price_per_hour
        if prices[0] is None or prices[1] is None:
            return None
        found: dict[tuple[int, int], list[float]] = {}

        def holds(a: int, b: int) -> bool:
            label = f"{a} {one.profile.name} + {b} {other.profile.name}, {one.policy}"
            found[a, b], _ = self.values([engines[0]] * a + [engines[1]] * b, label)
            return float(np.mean(found[a, b])) >= self.objective.value

        a, b = cheapest_mix(holds, (one.replicas, other.replicas), (prices[0], prices[1]))
        values = found.get((a, b)) or (one.values[a] if a else other.values[b])
        return {
            "policy": one.policy,
            "replicas": {one.profile.name: a, other.profile.name: b},
            "price_per_hour": a * prices[0] + b * prices[1],
            "values": values,
        }


def _profiles(texts: Sequence[str]) -> list[Profile]:
    loaded = []
    for text in texts:
        name, at, price = text.partition("@")
        profile = profiles.load(name)
        if at:
            try:
                profile = replace(profile, price_per_hour=float(price))
            except ValueError:
                raise WorkloadError(
                    f"--profile {text!r}: expected NAME@PRICE, a price > 0 per replica and hour"
                ) from None
        loaded.append(profile)
    return loaded


def _plan(args: argparse.Namespace, passed: Sequence[str]) -> int:
    """Search for the fewest replicas of each profile, and the cheapest mix of two, that hold a QoE objective on a workload,
    under each policy; everything is simulated, over several seeds."""
    passed = [flag for flag in passed if flag != "--"]
    try:
        objective = QoEObjective.parse(args.objective)
    except ValueError as error:
        raise WorkloadError(str(error)) from None
    arms = arms_of(args)
    for flag in ("most", "seeds"):
        if getattr(args, flag) < 1:
            raise WorkloadError(f"--{flag} must be >= 1, got {getattr(args, flag)}")
    chosen = _profiles(args.profile)
    engines = {(p.name, name): configure(p.engine, arm, passed) for p in chosen for name, arm in arms.items()}
    workloads = [from_arguments(args, args.seed + k) for k in range(args.seeds)]
    planner = _Planner(args, objective, workloads)
    plans: list[_Plan] = []
    mixes: list[dict[str, Any]] = []
    interrupted = False
    try:
        for profile, name in itertools.product(chosen, arms):
            plans.append(planner.plan(profile, name, engines[profile.name, name]))
        for name in arms:
            for one, other in itertools.combinations([p for p in plans if p.policy == name], 2):
                pair = engines[one.profile.name, name], engines[other.profile.name, name]
                if (mix := planner.mix(one, other, pair)) is not None:
                    mixes.append(mix)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: reporting what was computed", file=sys.stderr)
    except RefusedError as error:
        raise RefusedError(f"{workloads[0].name}: {error}; clamp it with --max-prompt") from None
    stock = {name for name, arm in arms.items() if arm.policy in ("stock", STOCK_MIXED)}
    for plan in plans:
        rivals = [p.replicas for p in plans if p.profile is plan.profile and p.policy in stock and p.replicas]
        if plan.replicas and rivals:
            plan.saving = 1.0 - plan.replicas / min(rivals)
    args.out.mkdir(parents=True, exist_ok=True)
    table = _table(plans, mixes, objective)
    result = {
        "simulated": True,
        "objective": str(objective),
        "workload": {**workloads[0].describe(), "seeds": [args.seed + k for k in range(args.seeds)]},
        "flags": passed,
        "interrupted": interrupted,
        "plans": [
            {
                "profile": p.profile.name,
                "policy": p.policy,
                "replicas": p.replicas,
                "price_per_hour": p.price,
                "saving_over_better_stock": p.saving,
                "predicted": {n: {"values": v, "backlog_share": p.backlog[n]} for n, v in sorted(p.values.items())},
            }
            for p in plans
        ],
        "mixes": mixes,
    }
    (args.out / "plan.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "plan.html").write_text(_page(result, plans, table, objective))
    print(summary.aligned(table))
    print(f"\n{args.out / 'plan.json'}\n{args.out / 'plan.html'}")
    return 130 if interrupted else 0


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ±{np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _table(plans: Sequence[_Plan], mixes: Sequence[dict[str, Any]], objective: QoEObjective) -> list[list[str]]:
    name = objective.name
    rows = [["fleet", "policy", "replicas", name, "seeds that hold", "with one fewer", "price/h", "saving"]]
    for p in plans:
        if p.replicas is None:
            most = max(p.values)
            rows.append([p.profile.name, p.policy, f"> {most}", _spread(p.values[most]), "-", "-", "-", "-"])
            continue
        values, fewer = p.values[p.replicas], p.values.get(p.replicas - 1)
        rows.append([
            p.profile.name, p.policy, str(p.replicas), _spread(values), _hold(values, objective),
            _spread(fewer) if fewer else "-", "-" if p.price is None else f"{p.price:.2f}",
            "-" if p.saving is None else f"{p.saving:.0%}",
        ])  # fmt: skip
    for mix in mixes:
        fleet = " + ".join(f"{n} {profile}" for profile, n in mix["replicas"].items())
        total = sum(mix["replicas"].values())
        rows.append([fleet, mix["policy"], str(total), _spread(mix["values"]), _hold(mix["values"], objective), "-",
                     f"{mix['price_per_hour']:.2f}", "-"])  # fmt: skip
    return rows


def _hold(values: Sequence[float], objective: QoEObjective) -> str:
    return f"{sum(v >= objective.value for v in values)} of {len(values)}"


def _page(
    result: dict[str, Any], plans: Sequence[_Plan], table: Sequence[Sequence[str]], objective: QoEObjective
) -> str:
    """One self-contained page: the table, and for each profile the objective's statistic by fleet size."""
    policies = list(dict.fromkeys(p.policy for p in plans))
    colours = {name: report.COLOURS[k % len(report.COLOURS)] for k, name in enumerate(policies)}
    figures = []
    for profile in dict.fromkeys(p.profile.name for p in plans):
        mine = [p for p in plans if p.profile.name == profile]
        sizes = sorted({n for p in mine for n in p.values})
        series: list[report.Series] = [
            (p.policy, colours[p.policy], sorted(p.values), [float(np.mean(p.values[n])) for n in sorted(p.values)])
            for p in mine
        ]
        series.append(("objective", "#888 dash", [0.0, float(max(sizes))], [objective.value] * 2))
        chart = report.plot(series, "replicas", objective.name, 1.0)
        figures.append(report.Figure(chart, profile))
    title = f"SIMULATED: replicas for {objective}"
    return report.render_page("plan", title=title, workload=result["workload"], columns=table[0], rows=table[1:],
                              colours=colours, figures=figures)  # fmt: skip
