"""``andes plan``."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from andes_sglang import results, summary
from andes_sglang.arms import Arm
from andes_sglang.flags import UsageError, add_arm_arguments, arms_of
from andes_sglang.objective import AnyObjective, parse_objective
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim import search_cli
from andes_sglang.sim.cli import USER_ERRORS, add_simulation_arguments, check_interval, check_requests, router_of
from andes_sglang.sim.configure import DEPLOYED, STOCK_MIXED, configure, expanded, servable, unlike_served
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan_table import ArmPlan, MixPlan, model_of, notes, page, table
from andes_sglang.sim.planner import FleetPlan, Planner, Saving
from andes_sglang.sim.profile import Profile
from andes_sglang.workload import SyntheticWorkload, Workload, from_arguments

__all__ = ["USER_ERRORS", "add_arguments"]

MAX_REPLICAS, SETUPS, ROUTER = 64, 32, "qoe"
"""Defaults of the flags of these names."""
Engine = tuple[EngineModel, Callable[[], SchedulingPolicy | None]]


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = _plan.__doc__
    parser.epilog = (
        f"Flags not listed here are SGLang's for each engine, as for andes simulate. {STOCK_MIXED} is stock with "
        f"--enable-mixed-chunk, {DEPLOYED} is andes with it and, where the profile has host memory, --preemption-mode "
        "offload. Exit status 1: nothing that was tried holds the objective."
    )
    parser.add_argument(
        "--profile", action="append", required=True, metavar="NAME[@PRICE]",
        help="a profile, with its price per replica and hour if not the file's; repeat it for the cheapest mix of them",
    )  # fmt: skip
    parser.add_argument("--objective", default="mean>=0.95",
                        help="of QoE: mean>=X, pN>=X, share(Q)>=X; of latencies, in seconds: pN(ttft)<=S, mean(tpot)<=S, "
                        "goodput(ttft<=S,tpot<=S)>=X; default: %(default)s")  # fmt: skip
    add_arm_arguments(parser, policies=f"{STOCK_MIXED},{DEPLOYED}")
    parser.add_argument(
        "--max-replicas",
        type=int,
        default=MAX_REPLICAS,
        metavar="N",
        help="largest fleet considered; default: %(default)s",
    )
    parser.add_argument("--most", dest="max_replicas", type=int, action=_OldFlag, new="--max-replicas")
    parser.add_argument(
        "--search", action="store_true",
        help="instead of a fleet, flags and options for one engine: those under which it holds most requests/s",
    )  # fmt: skip
    parser.add_argument(
        "--setups", type=int, default=SETUPS, metavar="N", help="search: drawn at first; default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of the workload; default: %(default)s")
    add_simulation_arguments(parser, router=ROUTER, interval_s=0.1, out="out/plan")
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


def _plan(args: argparse.Namespace, passed: Sequence[str]) -> int:
    """Search for the fewest replicas of each profile, and the cheapest mix of them, that hold an objective on a workload,
    under each policy; everything is simulated, over several seeds."""
    passed = [flag for flag in passed if flag != "--"]
    objective = _checked_objective(args)
    routing = router_of(args)
    if args.search:
        return _searched(args, objective, passed)
    arms = arms_of(args)
    chosen = _profiles(args.profile)
    engines = {(p.name, name): configure(p.engine, arm, passed) for p in chosen for name, arm in arms.items()}
    workloads = _draws(args, [engine for engine, _ in engines.values()])
    with results.prepared(args.out, force=args.force):
        planner = Planner(
            objective,
            workloads,
            max_replicas=args.max_replicas,
            decision_interval_s=args.decision_interval,
            routing=routing,
        )
        plans: list[ArmPlan] = []
        mixes: list[MixPlan] = []
        interrupted = False
        try:
            for profile, name in itertools.product(chosen, arms):
                planner.progress = results.Progress(f"{profile.name}, {name}")
                flags = _serve_flags(profile, arms[name], passed)
                plans.append(ArmPlan(profile, name, _fleet(planner, *engines[profile.name, name]), flags))
            for kinds in _of_one_model(plans, arms):
                mixes += _mix(planner, kinds, engines)
        except KeyboardInterrupt:
            interrupted = True
            print("\ninterrupted: reporting what was computed", file=sys.stderr)
        plans = _with_savings(plans, arms, objective)
        rows = table(plans, mixes, objective)
        result = {
            "made_by": results.made_by(),
            "simulated": True,
            "objective": str(objective),
            "workload": {**workloads[0].describe(), "seeds": [args.seed + k for k in range(args.seeds)]},
            "router": args.router,
            "flags": passed,
            "interrupted": interrupted,
            "plans": [plan.as_json(objective) for plan in plans],
            "mixes": [mix.as_json() for mix in mixes],
            "unlike_served": list(unlike_served(_named(engines))),
        }
        told = [*notes(chosen, plans, mixes, args.seeds), *result["unlike_served"]]
        said = "\n".join([summary.aligned(rows), "", *told])
        results.say(said, result, as_json=args.json)
        files = {"plan.json": json.dumps(result, indent=1) + "\n", "plan.html": page(result, plans, rows, objective)}
        results.save(args.out, files)
        print(f"\n{args.out / 'plan.json'}\n{args.out / 'plan.html'}", file=sys.stderr if args.json else sys.stdout)
        return 130 if interrupted else _status(plans)


def _status(plans: Sequence[ArmPlan]) -> int:
    """0 where at least one holds the objective, as grep's is where at least one line is found; else 1."""
    return int(all(plan.fleet.replicas is None for plan in plans))


def _named(engines: Mapping[tuple[str, str], Engine]) -> dict[str, EngineModel]:
    """By profile and arm, in words."""
    return {f"{profile}, {arm}": engine for (profile, arm), (engine, _) in engines.items()}


def _draws(args: argparse.Namespace, engines: Sequence[EngineModel]) -> list[Workload | SyntheticWorkload]:
    """The workload once for each seed, of requests that each of ``engines`` can hold."""
    workloads = [from_arguments(args, args.seed + k) for k in range(args.seeds)]
    for workload in workloads:
        check_requests(workload, engines)
    return workloads


def _fleet(planner: Planner, engine: EngineModel, policy: Callable[[], SchedulingPolicy | None]) -> FleetPlan:
    """The smallest that holds, with how much of it is used and what more it would carry."""
    fleet = planner.smallest_fleet(engine, policy)
    if fleet.replicas is not None:
        fleet.used = planner.used([engine] * fleet.replicas)
        fleet.headroom = planner.headroom([engine] * fleet.replicas, policy)
    return fleet


def _searched(args: argparse.Namespace, objective: AnyObjective, passed: Sequence[str]) -> int:
    chosen = _profiles(args.profile)
    if len(chosen) > 1:
        raise UsageError(f"--search: one --profile at a time, got {len(chosen)}")
    if "@" in args.profile[0]:
        raise UsageError(f"--profile {args.profile[0]}: a price is of mixes; --search counts requests/s and device")
    if args.arm or args.policies != f"{STOCK_MIXED},{DEPLOYED}":
        raise UsageError("--search: chooses flags and options of andes itself; not with --policies or --arm")
    if args.rate is not None:
        raise UsageError(f"--rate {args.rate:g}: not with --search, which looks for the rate that an engine holds")
    for flag, given, default in (
        ("--router", args.router, ROUTER),
        ("--max-replicas", args.max_replicas, MAX_REPLICAS),
    ):
        if given != default:
            raise UsageError(f"{flag} {given}: not with --search, which looks at one engine, not at a fleet")
    return search_cli.run(args, chosen[0], objective, passed)


def _of_one_model(plans: Sequence[ArmPlan], arms: Iterable[str]) -> Iterator[list[ArmPlan]]:
    """Plans with a price of two or more profiles of one model, under the same arm."""
    for name in arms:
        priced = [plan for plan in plans if plan.arm == name and plan.profile.price_per_hour is not None]
        for model in dict.fromkeys(model_of(plan.profile) for plan in priced):
            if len(kinds := [plan for plan in priced if model_of(plan.profile) == model]) > 1:
                yield kinds


def _serve_flags(profile: Profile, arm: Arm, passed: Sequence[str]) -> str:
    """What ``andes serve`` takes to be an engine of this plan."""
    arm = expanded(profile.engine, arm)
    flags = servable([*passed, *arm.flags])
    if profile.engine.devices > 1:
        flags = ["--tp-size", str(profile.engine.devices), *flags]
    return " ".join(["--policy", arm.policy, *flags])


def _checked_objective(args: argparse.Namespace) -> AnyObjective:
    """The objective, after all numbers were checked."""
    for flag in ("max_replicas", "seeds", "setups"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} must be >= 1, got {getattr(args, flag)}")
    if args.setups != SETUPS and not args.search:
        raise UsageError(f"--setups {args.setups}: goes with --search; a fleet has none")
    check_interval(args)
    try:
        return parse_objective(args.objective)
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


def _mix(planner: Planner, kinds: Sequence[ArmPlan], engines: Mapping[tuple[str, str], Engine]) -> list[MixPlan]:
    """The cheapest mix; none where no kind can do it alone."""
    profiles, arm = tuple(plan.profile for plan in kinds), kinds[0].arm
    chosen = [engines[profile.name, arm] for profile in profiles]
    planner.progress = results.Progress(f"{' + '.join(profile.name for profile in profiles)}, {arm}")
    prices = [profile.price_per_hour or 0.0 for profile in profiles]
    fleet = planner.cheapest_mix([engine for engine, _ in chosen], chosen[0][1], [plan.fleet for plan in kinds], prices)
    alone = [plan.price_per_hour for plan in kinds if plan.price_per_hour is not None]
    return [] if fleet is None else [MixPlan(profiles, arm, fleet, min(alone, default=None))]


def _with_savings(plans: Sequence[ArmPlan], arms: Mapping[str, Arm], objective: AnyObjective) -> list[ArmPlan]:
    """Each with what it saves over the better stock arm on the same profile."""
    stock = [plan for plan in plans if arms[plan.arm].policy in ("stock", STOCK_MIXED)]
    return [
        replace(plan, saving=Saving.over(
            plan.fleet, [p.fleet for p in stock if p.profile is plan.profile], objective
        ))
        for plan in plans
    ]  # fmt: skip
