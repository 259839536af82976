"""``andes simulate``."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from andes_sglang import results, summary
from andes_sglang.arms import Arm
from andes_sglang.flags import UsageError, add_arm_arguments, add_run_arguments, arms_of, check_run
from andes_sglang.kv_codecs import prices
from andes_sglang.policy import PolicyError, SchedulingPolicy
from andes_sglang.request import RequestRecord
from andes_sglang.routing import ROUTING_POLICIES, RoutingError, RoutingPolicy, make_routing_policy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import STOCK_MIXED, configure, lossy, stock_engine
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.sim.profile import Profile
from andes_sglang.sim.replica import RefusedError, Replica
from andes_sglang.summary import Figures
from andes_sglang.workload import SyntheticWorkload, Workload, WorkloadError, drawn_lengths, from_arguments, mean_length
from andes_sglang.workload import add_arguments as add_workload_arguments

__all__ = [
    "USER_ERRORS", "add_arguments", "add_simulation_arguments", "check_interval", "check_requests", "router_of", "run",
]  # fmt: skip

USER_ERRORS = (WorkloadError, profiles.ProfileError, RefusedError, PolicyError, RoutingError)
MAX_RECORDS = 4000
"""Requests of a run whose records are written, evenly picked; figures are of all."""
SAMPLES = 400
"""Points of a run's gauges over time: what the report's charts show; no more than one a second."""
PROGRESS_EVERY_S = 0.5


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = run.__doc__
    parser.epilog = (
        "Every flag not listed here is one of SGLang's for each engine: --enable-mixed-chunk, --chunked-prefill-size, "
        "--max-running-requests, --max-total-tokens, --enable-hierarchical-cache, --disable-overlap-schedule. "
        "--preemption-mode offload, as of serve, is understood too, and of the simulator alone --drafts and --host-kv-codec "
        f"({', '.join(prices.NAMES)}; docs/benchmarks/kv-codecs.md). {STOCK_MIXED} is stock with --enable-mixed-chunk."
    )
    parser.add_argument("--profile", required=True, help=f"a .toml file, or one of {', '.join(profiles.names())}")
    add_arm_arguments(parser, policies=f"stock,{STOCK_MIXED},andes")
    add_run_arguments(parser, sustained="the replicas sustain under stock")
    parser.add_argument("--replicas", type=int, default=1, help="engines behind one router")
    add_simulation_arguments(parser, router="least_load", interval_s=0.0, out="out/simulate")
    parser.set_defaults(run=run)


def add_simulation_arguments(parser: argparse.ArgumentParser, *, router: str, interval_s: float, out: str) -> None:
    """Of every command that simulates a workload on fleets; the values are defaults."""
    parser.add_argument("--router", default=router, metavar="NAME", help=f"routing policy: "
                        f"{', '.join(sorted(ROUTING_POLICIES))}, or package.module:Class; default: %(default)s")  # fmt: skip
    parser.add_argument(
        "--decision-interval", type=float, default=interval_s, metavar="S",
        help="ask policies no more often than this; 0, as the engine does: at every iteration; default: %(default)s",
    )  # fmt: skip
    add_workload_arguments(parser)
    results.add_out(parser, out)


def router_of(args: argparse.Namespace) -> Callable[[], RoutingPolicy]:
    """What makes the routing policy of a fleet. Raises :class:`~andes_sglang.flags.UsageError`."""
    try:
        make_routing_policy(args.router)
    except ValueError as error:
        raise UsageError(f"--router: {error}") from None
    return lambda: make_routing_policy(args.router)


def check_interval(args: argparse.Namespace) -> None:
    """Raise :class:`~andes_sglang.flags.UsageError` for a ``--decision-interval`` that is none."""
    if not 0 <= args.decision_interval < math.inf:
        raise UsageError(f"--decision-interval must be >= 0 seconds, got {args.decision_interval!r}")


def check_requests(workload: Workload | SyntheticWorkload, engines: Iterable[EngineModel]) -> None:
    """Raise :class:`~andes_sglang.sim.replica.RefusedError` for a request that one of ``engines`` can never hold. Those of a
    :class:`~andes_sglang.workload.SyntheticWorkload` are drawn while they are served, and refused then."""
    if isinstance(workload, Workload):
        for replica in (Replica(engine, None, sink=lambda _record: None) for engine in set(engines)):
            for number, spec in enumerate(workload):
                with _named(workload, number):
                    replica.check(spec)


@contextmanager
def _named(workload: Workload | SyntheticWorkload, number: int) -> Iterator[None]:
    """Say of a refused request which one it is."""
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"{workload.name}, request {number}: {error}; clamp it with --max-prompt") from None


class _Run:
    """One workload on one fleet, and what it leaves behind: figures of all requests, records of some, gauges over time."""

    def __init__(self, fleet: Fleet, workload: Workload | SyntheticWorkload, progress: Callable[[str], None]) -> None:
        self.fleet, self.workload, self.progress = fleet, workload, progress
        self.figures = Figures()
        self.records: list[RequestRecord] = []
        self.samples: list[dict[str, float]] = []
        self._every = max(1, len(workload) // MAX_RECORDS)
        self._sample_every_s = max(1.0, workload.duration_s / SAMPLES)
        self._next_sample_s = 0.0
        self._told_s = time.monotonic()
        fleet.sink = self._keep

    def serve(self) -> None:
        """Every request to its end. ``KeyboardInterrupt`` leaves what was computed until then."""
        for number, spec in enumerate(self.workload):
            while spec.arrival_s >= self._next_sample_s:
                self._sample()
            with _named(self.workload, number):
                self.fleet.submit(spec)
        while self.fleet.open_requests:
            self._sample()

    def _keep(self, record: RequestRecord) -> None:
        self.figures.add(record)
        if record.index % self._every == 0:
            self.records.append(record)

    def _sample(self) -> None:
        """Advance the fleet to the next sample, and take it."""
        at_s, replicas = self._next_sample_s, self.fleet.replicas
        self.fleet.advance(at_s)
        self._next_sample_s += self._sample_every_s
        open_requests = self.fleet.open_requests
        waiting = sum(len(r.waiting) + len(r.parked) for r in replicas)
        used = sum(r.kv_used_tokens for r in replicas) / sum(r.engine.kv_capacity_tokens for r in replicas)
        self.samples.append({"at_s": at_s, "queue": waiting, "running": open_requests - waiting, "open": open_requests,
                             "kv_usage": used})  # fmt: skip
        if time.monotonic() - self._told_s > PROGRESS_EVERY_S:
            self._told_s = time.monotonic()
            done, duration_s = self.figures, self.workload.duration_s
            mean = f", mean QoE {done.mean_qoe:.3f}" if done.requests else ""
            self.progress(f"{at_s:7.0f} of {duration_s:.0f} s, {done.requests} done, {open_requests} open{mean}")


def run(args: argparse.Namespace, passed: Sequence[str]) -> int:
    """Replay one workload in virtual time under several policies, on the engines that a profile describes."""
    passed = [flag for flag in passed if flag != "--"]
    check_run(args)
    if args.replicas < 1:
        raise UsageError(f"--replicas must be >= 1, got {args.replicas}")
    check_interval(args)
    routing = router_of(args)
    profile = profiles.load(args.profile)
    arms = arms_of(args)
    engines = {name: configure(profile.engine, arm, passed) for name, arm in arms.items()}
    sustained = None
    if args.load is not None:
        from_arguments(args, args.seed)  # a workload that cannot be drawn is named before the capacity is measured
        stock = stock_engine(profile.engine, passed)
        sustained = args.replicas * sustained_tokens_per_s(stock, *drawn_lengths(args), args.seed)
        args.rate = args.load * sustained / mean_length(drawn_lengths(args)[1])
    first = from_arguments(args, args.seed)
    check_requests(first, [engine for engine, _ in engines.values()])
    _say_lossy(engines)
    described = _describe(args, profile, passed, arms) | {"sustained_tokens_per_s": sustained}
    repeats = _Repeats({name: [] for name in arms})
    with results.prepared(args.out, force=args.force):
        try:
            _serve(args, engines, routing, repeats, first)
        except KeyboardInterrupt:
            repeats.interrupted = True
            print("\ninterrupted: reporting what was computed", file=sys.stderr)
        interrupted = repeats.interrupted
        policies = {name: summary.combine(runs) for name, runs in repeats.figures.items() if runs}
        if not policies:
            return 130
        result = {
            "workload": {**repeats.workload, "seeds": repeats.seeds}, "engine": described, "policies": policies,
        }  # fmt: skip
        results.write(args.out, result | ({"interrupted": True} if interrupted else {}), as_json=args.json)
    return 130 if interrupted else 0


def _say_lossy(engines: Mapping[str, tuple[EngineModel, Any]]) -> None:
    for said in lossy({name: engine for name, (engine, _) in engines.items()}):
        print(said, file=sys.stderr)


@dataclass
class _Repeats:
    """Figures of every run by policy, what the workload is, and the seeds it was drawn with."""

    figures: dict[str, list[dict[str, Any]]]
    workload: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    interrupted: bool = False


def _serve(
    args: argparse.Namespace,
    engines: Mapping[str, tuple[EngineModel, Callable[[], SchedulingPolicy | None]]],
    routing: Callable[[], RoutingPolicy],
    repeats: _Repeats,
    first: Workload | SyntheticWorkload,
) -> None:
    """Every repeat under every policy; ``first`` is the workload of the first. KeyboardInterrupt: what was served is kept."""
    for repeat in range(1, args.repeats + 1):
        seed = args.seed + repeat - 1
        workload = first if repeat == 1 else from_arguments(args, seed)
        if repeat > 1:
            check_requests(workload, [engine for engine, _ in engines.values()])
        repeats.workload = repeats.workload or workload.describe()
        repeats.seeds.append(seed)
        for name, (engine, policy) in engines.items():
            fleet = Fleet(engine, policy, replicas=args.replicas, routing_policy=routing(),
                          decision_interval_s=args.decision_interval)  # fmt: skip
            one = _Run(fleet, workload, results.Progress(f"{name}, seed {seed}"))
            try:
                one.serve()
            finally:
                if one.figures.counted:
                    results.keep(args.out, name, repeat, one.records, one.samples)
                    repeats.figures[name].append(one.figures.summary())


def _describe(
    args: argparse.Namespace, profile: Profile, passed: Sequence[str], arms: dict[str, Arm]
) -> dict[str, Any]:
    engine = stock_engine(profile.engine, passed)
    replicas = f"{args.replicas} replica{'s' * (args.replicas > 1)}"
    return {
        "what": f"SIMULATED: {replicas} of {' '.join([profile.model, 'on', profile.hardware, *passed])} "
        f"(profile {profile.name}: {profile.source})",
        "simulated": True,
        "profile": profile.name,
        "costs": asdict(engine.costs),
        "kv_capacity_tokens": engine.kv_capacity_tokens,
        "replicas": args.replicas,
        "router": args.router,
        "flags": list(passed),
        "arms": {n: {"policy": a.policy, "flags": list(a.flags)} for n, a in arms.items()},
    }
