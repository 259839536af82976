"""``andes simulate``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from andes_sglang import results, summary
from andes_sglang.arms import Arm
from andes_sglang.flags import add_arm_arguments, add_run_arguments, arms_of, check_run
from andes_sglang.request import RequestRecord
from andes_sglang.routing import ROUTING_POLICIES, make_routing_policy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import STOCK_MIXED, configure
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.sim.profile import Profile
from andes_sglang.sim.replica import RefusedError
from andes_sglang.summary import Figures
from andes_sglang.workload import SyntheticWorkload, Workload, WorkloadError, from_arguments, mean_length
from andes_sglang.workload import add_arguments as add_workload_arguments

__all__ = ["USER_ERRORS", "add_arguments"]

USER_ERRORS = (WorkloadError, profiles.ProfileError, RefusedError)
MOST_RECORDS = 4000
SAMPLES = 400


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = _simulate.__doc__
    parser.epilog = (
        "Every flag not listed here is one of SGLang's for each engine: --enable-mixed-chunk, --chunked-prefill-size, "
        "--max-running-requests, --max-total-tokens, --enable-hierarchical-cache, --disable-overlap-schedule. "
        f"--preemption-mode offload, as of serve, is understood too. {STOCK_MIXED} is stock with --enable-mixed-chunk."
    )
    parser.add_argument("--profile", required=True, help=f"a .toml file, or one of {', '.join(profiles.names())}")
    add_arm_arguments(parser, policies=f"stock,{STOCK_MIXED},andes")
    add_run_arguments(parser, sustained="the replicas sustain under stock")
    parser.add_argument("--replicas", type=int, default=1, help="engines behind one router")
    parser.add_argument("--router", default="least_load", metavar="NAME",
                        help=f"routing policy: {', '.join(sorted(ROUTING_POLICIES))}, or package.module:Class")  # fmt: skip
    parser.add_argument("--decision-interval", type=float, default=0.0, metavar="S",
                        help="ask policies no more often than this; 0, as the engine does: at every iteration")  # fmt: skip
    add_workload_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("out/simulate"), help="directory for the results")
    parser.set_defaults(run=_simulate)


@dataclass(slots=True)
class _Run:
    """What one run leaves behind: figures of all requests, records of some, gauges over time."""

    figures: Figures = field(default_factory=Figures)
    records: list[RequestRecord] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False


def _serve(fleet: Fleet, workload: Workload | SyntheticWorkload, progress: Callable[[str], None]) -> _Run:
    """Serve ``workload``; Ctrl-C ends it and leaves what was computed."""
    run = _Run()
    stride = max(1, len(workload) // MOST_RECORDS)
    sample_every_s = max(1.0, workload.duration_s / SAMPLES)
    last_progress_s = time.monotonic()

    def sink(record: RequestRecord) -> None:
        run.figures.add(record)
        if record.index % stride == 0:
            run.records.append(record)

    def look(at_s: float) -> None:
        replicas = fleet.replicas
        open_requests = fleet.open_requests
        waiting = sum(len(r.waiting) + len(r.parked) for r in replicas)
        used = sum(r.kv_used_tokens for r in replicas) / sum(r.engine.kv_capacity_tokens for r in replicas)
        point = {
            "at_s": at_s,
            "queue": waiting,
            "running": open_requests - waiting,
            "open": open_requests,
            "kv_usage": used,
        }
        run.samples.append(point)
        nonlocal last_progress_s
        if time.monotonic() - last_progress_s > 0.5:
            last_progress_s = time.monotonic()
            done = run.figures
            mean = f", mean QoE {done.mean_qoe:.3f}" if done.requests else ""
            progress(f"{at_s:7.0f} of {workload.duration_s:.0f} s, {done.requests} done, {open_requests} open{mean}")

    fleet.sink = sink
    next_sample_s = 0.0
    try:
        for number, spec in enumerate(workload):
            while spec.arrival_s >= next_sample_s:
                fleet.advance(next_sample_s)
                look(next_sample_s)
                next_sample_s += sample_every_s
            try:
                fleet.submit(spec)
            except RefusedError as error:
                raise RefusedError(f"{workload.name}, request {number}: {error}; clamp it with --max-prompt") from None
        while fleet.open_requests:
            fleet.advance(next_sample_s)
            look(next_sample_s)
            next_sample_s += sample_every_s
    except KeyboardInterrupt:
        run.interrupted = True
    return run


def _simulate(args: argparse.Namespace, passed: Sequence[str]) -> int:
    """Replay one workload in virtual time under several policies, on the engines that a profile describes."""
    passed = [flag for flag in passed if flag != "--"]
    check_run(args)
    if args.replicas < 1:
        raise WorkloadError(f"--replicas must be >= 1, got {args.replicas}")
    profile = profiles.load(args.profile)
    arms = arms_of(args)
    engines = {name: configure(profile.engine, arm, passed) for name, arm in arms.items()}
    sustained = None
    if args.load is not None:
        stock, _ = configure(profile.engine, Arm("stock"), passed)
        sustained = args.replicas * sustained_tokens_per_s(stock, args.prompt, args.output, args.seed)
        args.rate = args.load * sustained / mean_length(args.output)
    args.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    description: dict[str, Any] = {}
    result: dict[str, Any] = {}
    interrupted = False
    for repeat in range(1, args.repeats + 1):
        workload = from_arguments(args, args.seed + repeat - 1)
        description = description or workload.describe()
        for name, (engine, policy) in engines.items():
            fleet = Fleet(engine, policy, replicas=args.replicas, routing_policy=make_routing_policy(args.router),
                          decision_interval_s=args.decision_interval)  # fmt: skip
            label = f"{name}, seed {args.seed + repeat - 1}"
            progress = results.Progress(label)
            run = _serve(fleet, workload, progress)
            interrupted = run.interrupted
            if run.figures.requests:
                results.keep(args.out, name, repeat, run.records, run.samples)
                figures[name].append(run.figures.summary())
            if interrupted:
                break
        result = {
            "workload": {**description, "seeds": [args.seed + k for k in range(repeat)]},
            "engine": _describe(profile, args.replicas, passed, arms, sustained),
            "policies": {n: summary.combine(runs) for n, runs in figures.items() if runs},
        }
        if interrupted:
            print("\ninterrupted: reporting what was computed", file=sys.stderr)
            result["interrupted"] = True
            break
    if not result["policies"]:
        return 130
    results.write(args.out, result)
    return 130 if interrupted else 0


def _describe(
    profile: Profile, replicas: int, passed: Sequence[str], arms: dict[str, Arm], sustained: float | None
) -> dict[str, Any]:
    engine = configure(profile.engine, Arm("stock"), passed)[0]
    return {
        "what": f"SIMULATED: {replicas} replica{'s' * (replicas > 1)} of {profile.model} on {profile.hardware} "
        f"{' '.join(passed)}(profile {profile.name}: {profile.source})",
        "simulated": True,
        "profile": profile.name,
        "costs": asdict(engine.costs),
        "kv_capacity_tokens": engine.kv_capacity_tokens,
        "replicas": replicas,
        "flags": list(passed),
        "sustained_tokens_per_s": sustained,
        "arms": {n: {"policy": a.policy, "flags": list(a.flags)} for n, a in arms.items()},
    }
