"""``andes plan``."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from andes_sglang import report, results, summary
from andes_sglang.arms import Arm
from andes_sglang.flags import UsageError, add_arm_arguments, arms_of
from andes_sglang.objective import QoEObjective
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.cli import USER_ERRORS, add_simulation_arguments, check_interval, check_requests, router_of
from andes_sglang.sim.configure import DEPLOYED, STOCK_MIXED, configure, expanded
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.planner import FleetMix, FleetPlan, Planner, saving_over
from andes_sglang.sim.profile import Profile
from andes_sglang.workload import from_arguments

__all__ = ["USER_ERRORS", "add_arguments"]

Engine = tuple[EngineModel, Callable[[], SchedulingPolicy | None]]


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = _plan.__doc__
    parser.epilog = (
        f"Flags not listed here are SGLang's for each engine, as for andes simulate. {STOCK_MIXED} is stock with "
        f"--enable-mixed-chunk, {DEPLOYED} is andes with it and, where the profile has host memory, --preemption-mode "
        "offload."
    )
    parser.add_argument(
        "--profile", action="append", required=True, metavar="NAME[@PRICE]",
        help="a profile, with its price per replica and hour if not the file's; repeat it for mixes of two",
    )  # fmt: skip
    parser.add_argument("--objective", default="mean>=0.95", help="mean>=X, pN>=X or share(Q)>=X; default: %(default)s")
    add_arm_arguments(parser, policies=f"{STOCK_MIXED},{DEPLOYED}")
    parser.add_argument(
        "--max-replicas", type=int, default=64, metavar="N", help="largest fleet considered; default: %(default)s"
    )
    parser.add_argument("--most", dest="max_replicas", type=int, action=_OldFlag, new="--max-replicas")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of the workload; default: %(default)s")
    add_simulation_arguments(parser, router="qoe", interval_s=0.1, out="out/plan")
    parser.set_defaults(run=_plan)


class _OldFlag(argparse.Action):
    """A flag's former name: accepted for one release, with a warning."""

    def __init__(self, *, new: str, **options: Any) -> None:
        super().__init__(help=argparse.SUPPRESS, default=argparse.SUPPRESS, **options)
        self.new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(
            f"{parser.prog}: {option_string} is now {self.new}; the old name goes with the next release",
            file=sys.stderr,
        )
        setattr(namespace, self.dest, values)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The smallest fleet of one profile under one arm. flags: of its engines, policy among them, as ``andes serve`` takes
    them. saving: share of the replicas that the better stock arm needs."""

    profile: Profile
    arm: str
    fleet: FleetPlan
    flags: str
    saving: float | None = None

    @property
    def price_per_hour(self) -> float | None:
        each = self.profile.price_per_hour
        return None if each is None or self.fleet.replicas is None else each * self.fleet.replicas

    def as_json(self) -> dict[str, Any]:
        return {
            "profile": self.profile.name,
            "policy": self.arm,
            "flags": self.flags,
            "replicas": self.fleet.replicas,
            "price_per_hour": self.price_per_hour,
            "saving_over_better_stock": self.saving,
            "predicted": {
                n: {"values": list(trial.values), "backlog_share": trial.backlog_share}
                for n, trial in sorted(self.fleet.trials.items())
            },
        }


@dataclass(frozen=True, slots=True)
class _Mix:
    """The cheapest fleet of two profiles under one arm."""

    profiles: tuple[Profile, Profile]
    arm: str
    fleet: FleetMix

    def as_json(self) -> dict[str, Any]:
        return {
            "policy": self.arm,
            "replicas": {p.name: n for p, n in zip(self.profiles, self.fleet.replicas, strict=True)},
            "price_per_hour": self.fleet.price_per_hour,
            "values": list(self.fleet.trial.values),
        }


def _plan(args: argparse.Namespace, passed: Sequence[str]) -> int:
    """Search for the fewest replicas of each profile, and the cheapest mix of two, that hold a QoE objective on a workload,
    under each policy; everything is simulated, over several seeds."""
    passed = [flag for flag in passed if flag != "--"]
    objective = _checked_objective(args)
    routing = router_of(args)
    arms = arms_of(args)
    chosen = _profiles(args.profile)
    engines = {(p.name, name): configure(p.engine, arm, passed) for p in chosen for name, arm in arms.items()}
    workloads = [from_arguments(args, args.seed + k) for k in range(args.seeds)]
    for workload in workloads:
        check_requests(workload, [engine for engine, _ in engines.values()])
    results.prepare(args.out, force=args.force)
    planner = Planner(
        objective,
        workloads,
        max_replicas=args.max_replicas,
        decision_interval_s=args.decision_interval,
        routing=routing,
    )
    plans: list[_Plan] = []
    mixes: list[_Mix] = []
    interrupted = False
    try:
        for profile, name in itertools.product(chosen, arms):
            planner.progress = results.Progress(f"{profile.name}, {name}")
            fleet = planner.smallest_fleet(*engines[profile.name, name])
            plans.append(_Plan(profile, name, fleet, _serve_flags(profile, arms[name], passed)))
        for one, other in _pairs(plans, arms):
            mixes += _mix(planner, one, other, engines)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: reporting what was computed", file=sys.stderr)
    plans = _with_savings(plans, arms)
    table = _table(plans, mixes, objective)
    result = {
        "made_by": results.made_by(),
        "simulated": True,
        "objective": str(objective),
        "workload": {**workloads[0].describe(), "seeds": [args.seed + k for k in range(args.seeds)]},
        "router": args.router,
        "flags": passed,
        "interrupted": interrupted,
        "plans": [plan.as_json() for plan in plans],
        "mixes": [mix.as_json() for mix in mixes],
    }
    results.say("\n".join([summary.aligned(table), "", *_notes(chosen, plans)]), result, as_json=args.json)
    page = _page(result, plans, table, objective)
    results.save(args.out, {"plan.json": json.dumps(result, indent=1) + "\n", "plan.html": page})
    print(f"\n{args.out / 'plan.json'}\n{args.out / 'plan.html'}", file=sys.stderr if args.json else sys.stdout)
    return 130 if interrupted else 0


def _pairs(plans: Sequence[_Plan], arms: Iterable[str]) -> Iterator[tuple[_Plan, _Plan]]:
    """Plans of two profiles of one model under the same arm."""
    for name in arms:
        for one, other in itertools.combinations([plan for plan in plans if plan.arm == name], 2):
            if _model(one.profile) == _model(other.profile):
                yield one, other


def _model(profile: Profile) -> str:
    """Without its number format: ``Llama-3.1-8B`` of ``Llama-3.1-8B, bf16``."""
    return profile.model.partition(",")[0].strip()


def _serve_flags(profile: Profile, arm: Arm, passed: Sequence[str]) -> str:
    """What ``andes serve`` takes to be an engine of this plan."""
    arm = expanded(profile.engine, arm)
    flags = [*passed, *arm.flags]
    if profile.engine.devices > 1:
        flags = ["--tp-size", str(profile.engine.devices), *flags]
    return " ".join(["--policy", arm.policy, *flags])


def _notes(chosen: Sequence[Profile], plans: Sequence[_Plan]) -> Iterator[str]:
    """What the table does not say."""
    models = {_model(profile): profile.name for profile in chosen}
    if len(models) > 1:
        which = ", ".join(f"{name} serves {model}" for model, name in models.items())
        yield f"the profiles are of different models ({which}): their rows answer different questions; no mixes of them"
    for plan in plans:
        yield f"{plan.profile.name}, {plan.arm}: andes serve {plan.flags}"
    for profile in chosen:
        if profile.engine.devices > 1:
            yield (
                f"{profile.name}: a replica is {profile.engine.devices} GPUs by tensor parallelism, which andes serve takes "
                "under every policy; --preemption-mode offload over several GPUs takes SGLang 0.5.22 or newer"
            )


def _checked_objective(args: argparse.Namespace) -> QoEObjective:
    """The objective, after all numbers were checked."""
    for flag in ("max_replicas", "seeds"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} must be >= 1, got {getattr(args, flag)}")
    check_interval(args)
    try:
        return QoEObjective.parse(args.objective)
    except ValueError as error:
        raise UsageError(f"--objective: {error}") from None


def _profiles(texts: Sequence[str]) -> list[Profile]:
    """Each ``NAME[@PRICE]``; one that is named twice would be compared with itself."""
    loaded: dict[str, Profile] = {}
    for text in texts:
        name, at, price = text.rpartition("@") if "@" in text else (text, "", "")
        profile = profiles.load(name)
        if at:
            profile = replace(profile, price_per_hour=_price(text, price))
        if profile.name in loaded:
            raise UsageError(f"--profile {text!r}: {profile.name} is given twice")
        loaded[profile.name] = profile
    return list(loaded.values())


def _price(text: str, price: str) -> float:
    try:
        value = float(price)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise UsageError(f"--profile {text!r}: expected NAME@PRICE, a price > 0 per replica and hour")
    return value


def _mix(planner: Planner, one: _Plan, other: _Plan, engines: Mapping[tuple[str, str], Engine]) -> list[_Mix]:
    """The cheapest mix; none where one of the two cannot do it alone or has no price."""
    prices = one.profile.price_per_hour, other.profile.price_per_hour
    if prices[0] is None or prices[1] is None:
        return []
    first, policy = engines[one.profile.name, one.arm]
    second, _ = engines[other.profile.name, other.arm]
    planner.progress = results.Progress(f"{one.profile.name} + {other.profile.name}, {one.arm}")
    fleet = planner.cheapest_mix((first, second), policy, (one.fleet, other.fleet), (prices[0], prices[1]))
    return [] if fleet is None else [_Mix((one.profile, other.profile), one.arm, fleet)]


def _with_savings(plans: Sequence[_Plan], arms: Mapping[str, Arm]) -> list[_Plan]:
    """Each with what it saves over the better stock arm on the same profile."""
    stock = [plan for plan in plans if arms[plan.arm].policy in ("stock", STOCK_MIXED)]
    return [
        replace(plan, saving=saving_over(
            plan.fleet.replicas, (p.fleet.replicas for p in stock if p.profile is plan.profile)
        ))
        for plan in plans
    ]  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ±{np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _table(plans: Sequence[_Plan], mixes: Sequence[_Mix], objective: QoEObjective) -> list[list[str]]:
    def hold(values: Sequence[float]) -> str:
        return f"{sum(v >= objective.value for v in values)} of {len(values)}"

    rows = [["fleet", "policy", "replicas", objective.name, "seeds that hold", "with one fewer", "price/h", "saving"]]
    for p in plans:
        trials, n = p.fleet.trials, p.fleet.replicas
        if n is None:
            largest = max(trials)
            rows.append([p.profile.name, p.arm, f"> {largest}", _spread(trials[largest].values), "-", "-", "-", "-"])
            continue
        price = "-" if p.price_per_hour is None else f"{p.price_per_hour:.2f}"
        rows.append([
            p.profile.name, p.arm, str(n), _spread(trials[n].values), hold(trials[n].values),
            _spread(trials[n - 1].values) if n - 1 in trials else "-", price,
            "-" if p.saving is None else f"{p.saving:.0%}",
        ])  # fmt: skip
    for mix in mixes:
        fleet = " + ".join(f"{n} {p.name}" for p, n in zip(mix.profiles, mix.fleet.replicas, strict=True))
        values = mix.fleet.trial.values
        rows.append([fleet, mix.arm, str(sum(mix.fleet.replicas)), _spread(values), hold(values), "-",
                     f"{mix.fleet.price_per_hour:.2f}", "-"])  # fmt: skip
    return rows


def _page(
    result: dict[str, Any], plans: Sequence[_Plan], table: Sequence[Sequence[str]], objective: QoEObjective
) -> str:
    """One self-contained page: the table, and for each profile the objective's statistic by fleet size."""
    arms = list(dict.fromkeys(p.arm for p in plans))
    colours = {name: report.COLOURS[k % len(report.COLOURS)] for k, name in enumerate(arms)}
    figures = []
    for profile in dict.fromkeys(p.profile.name for p in plans):
        mine = [p for p in plans if p.profile.name == profile]
        series: list[report.Series] = []
        for p in mine:
            trials = sorted(p.fleet.trials.items())
            series.append((p.arm, colours[p.arm], [n for n, _ in trials], [trial.mean for _, trial in trials]))
        largest = max(n for p in mine for n in p.fleet.trials)
        series.append(("objective", "#888 dash", [0.0, float(largest)], [objective.value] * 2))
        chart = report.plot(series, "replicas", objective.name, 1.0)
        figures.append(report.Figure(chart, profile))
    title = f"SIMULATED: replicas for {objective}"
    return report.render_page("plan", title=title, workload=result["workload"], columns=table[0], rows=table[1:],
                              colours=colours, figures=figures)  # fmt: skip
