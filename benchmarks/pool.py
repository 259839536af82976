"""A QoEPool on simulated fleets: two models whose peaks alternate on one budget, and one model on two kinds of hardware.

Everything is simulated, on roofline profiles and the real clock. ``python benchmarks/pool.py swap TRACES`` compares fixed
halves of the budget with ``andes_operator.sharing`` over the operator's own decisions; ``mix`` compares it with every static
mix of two kinds, of which the cheapest that holds is chosen with hindsight.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from andes_operator.fleet_autoscaler import FleetAutoscaler
from andes_operator.pooling import Ask, ask
from andes_operator.sharing import Member, PoolBudget, divide
from andes_operator.spec import ScalingBehavior
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.autoscaling import FinishedRequests, Scenario
from andes_sglang.sim.buffer import Buffer
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.whatif import decision_interval, work_s
from andes_sglang.workload import load_trace
from benchmarks.fluid import TICK_S, Target
from benchmarks.markdown import header, row
from benchmarks.surges import LENGTHS, MAX_OUTPUT_TOKENS, MAX_PROMPT_TOKENS, SCHEDULERS, Shape, requests_of

HIGH, LOW = 3.0, 0.5
PEAK_S, BETWEEN_S = 2100.0, 600.0
DAY: Shape = ((0, HIGH), (PEAK_S, HIGH), (BETWEEN_S, LOW), (PEAK_S, LOW), (BETWEEN_S, HIGH))
NIGHT: Shape = ((0, LOW), (PEAK_S, LOW), (BETWEEN_S, HIGH), (PEAK_S, HIGH), (BETWEEN_S, LOW))
"""Busy replicas of the one model and of the other."""
GPUS = 4
LEVELS: Shape = ((0, 0.6), (1500, 0.6), (300, 1.6), (1500, 1.6), (300, 0.6), (900, 0.6))
"""Busy replicas of the dear kind: what one model's demand takes in ``mix``."""
WARM_S = 900.0
"""Seconds that are not scored: the first decisions know too little."""
MEAN, SHARE = 0.95, 0.9


@dataclass(slots=True)
class Shared:
    """What the members of one pool know of each other."""

    budget: PoolBudget
    members: dict[str, Member] = field(default_factory=dict)

    def given(self, member: Member) -> tuple[int, bool]:
        self.members[member.name] = member
        allotment = divide(self.budget, list(self.members.values()))[member.name]
        return allotment.replicas, allotment.exact


class Pooled:
    """The operator's decision within what the pool gives. shares: the other members serve the same model."""

    def __init__(self, inner: FleetAutoscaler, shared: Shared, member: Member, *, shares: bool) -> None:
        self.inner, self.shared, self.member, self.shares = inner, shared, member, shares
        self.interval_s = inner.interval_s

    def desired_replicas(self, fleet: Fleet) -> int:
        wanted = self.inner.desired_replicas(fleet)
        seen, found = self.inner.observe(fleet), self.inner.headroom
        existing = len(fleet.replicas) + len(fleet.starting)
        asks = Ask()
        if found is not None and self.inner.said:
            asks = ask(self.inner.spec, seen, self.inner.said[-1][1], found, None, shares=self.shares)
        self.member = replace(
            self.member, alone=asks.replicas, present=asks.present, existing=existing, ready=len(fleet.serving),
            value=max(seen.rate_rps, 1e-6),
        )  # fmt: skip
        replicas, exact = self.shared.given(self.member)
        return replicas if exact else min(wanted, replicas)


@dataclass(slots=True)
class Run:
    """Fleets in one clock. Of each request: when it came, whose it was, its QoE."""

    fleets: list[Fleet] = field(default_factory=list)
    rows: list[tuple[float, int, float]] = field(default_factory=list)

    def serve(self, arrivals: Iterator[tuple[int, int, RequestSpec]]) -> None:
        """``(fleet, number, request)`` in order of arrival; number: of the request in its fleet's scenario."""
        for chosen, number, spec in arrivals:
            for fleet in self.fleets:
                if fleet is not self.fleets[chosen]:
                    fleet.advance(spec.arrival_s)
            self.fleets[chosen].submitted = number
            self.fleets[chosen].submit(spec)
        for fleet in self.fleets:
            fleet.advance()

    def score(self, of: int | None = None) -> tuple[float, float]:
        """Mean QoE, and the share of readers at 0.95."""
        qoe = np.array([q for at_s, whose, q in self.rows if at_s >= WARM_S and of in (None, whose)])
        return float(qoe.mean()), float((qoe >= 0.95).mean())

    def hours(self, prices: Sequence[float]) -> float:
        return sum(price * fleet.replica_s / 3600.0 for price, fleet in zip(prices, self.fleets))


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        recorded = load_trace(args.folder / args.lengths, seed=1)
        recorded = recorded.scaled(max_prompt=MAX_PROMPT_TOKENS, max_output=MAX_OUTPUT_TOKENS)
        self.pool = recorded.with_readers(1, ttft_s=None, tds=None, population="reading").requests

    def fleet(
        self, run: Run, whose: int, engine: EngineModel, scheduler: str, *, replicas: int,
        pooled: tuple[Scenario, Shared, Member, bool] | None = None,
    ) -> None:  # fmt: skip
        """Add one. pooled: its demand, its pool, itself, and whether the others share its model."""
        flagged, policy = configure(engine, SCHEDULERS[scheduler])
        finished, scaler = FinishedRequests(), None
        if pooled is not None:
            scenario, shared, member, shares = pooled
            inner = FleetAutoscaler(
                scenario, finished, flagged, policy, target=MEAN, max_replicas=member.most, remember_s=7200.0
            )
            scaler = Pooled(inner, shared, member, shares=shares)

        def keep(record: Any) -> None:
            finished.add(record)
            run.rows.append((record.arrival_s, whose, record.qoe))

        run.fleets.append(Fleet(
            flagged, policy, replicas=replicas, autoscaler=scaler, start_s=self.args.cold_start,
            decision_interval_s=decision_interval(flagged), sink=keep,
        ))  # fmt: skip

    def swap(self, arm: str, scheduler: str, seed: int) -> dict[str, Any]:
        """Two models on one budget: fixed halves, or the pool."""
        engine = profiles.load(self.args.profile).engine
        demands = [requests_of(shape, self.pool, engine, 10 * seed + i) for i, shape in enumerate((DAY, NIGHT))]
        run, shared = Run(), Shared(PoolBudget(GPUS))
        for i, requests in enumerate(demands):
            scenario = Scenario(requests, engine, clock_cold_start_s=self.args.cold_start)
            member = Member(f"m{i}", f"m{i}", None, 1, GPUS, GPUS // 2, GPUS // 2, cold_s=self.args.cold_start)
            pooled = (scenario, shared, member, False) if arm == "pool" else None
            self.fleet(run, i, engine, scheduler, replicas=GPUS // 2, pooled=pooled)
        both = ([(i, k, r) for k, r in enumerate(requests)] for i, requests in enumerate(demands))
        run.serve(heapq.merge(*both, key=lambda a: a[2].arrival_s))
        each = [run.score(i) for i in (0, 1)]
        mean, share = run.score()
        return {"mean": mean, "share": share, "each": each, "hours": run.hours((1.0, 1.0))}

    def mix(self, arm: str, scheduler: str, seed: int) -> dict[str, Any]:
        """One model on two kinds: ``static A B``, or the pool. Requests go to a fleet by what its replicas carry."""
        kinds = [profiles.load(name) for name in self.args.kinds.split(",")]
        prices = [float(kind.price_per_hour or 1.0) for kind in kinds]
        requests = requests_of(LEVELS, self.pool, kinds[0].engine, seed)
        run, shared = Run(), Shared(PoolBudget(price=1e6))
        counts = [int(n) for n in arm.split()[1:]] or [2, 0]
        speeds = [1.0 / float(np.mean(work_s(kind.engine, self.pool))) for kind in kinds]
        for i, kind in enumerate(kinds):
            pooled = None
            if arm == "pool":
                scenario = Scenario(requests, kind.engine, clock_cold_start_s=self.args.cold_start)
                member = Member(f"m{i}", "llama", None, 1, 40, 1, 0, price=prices[i], cold_s=self.args.cold_start)
                pooled = (scenario, shared, member, True)
            self.fleet(run, i, kind.engine, scheduler, replicas=max(1, counts[i]), pooled=pooled)

        def routed() -> Iterator[tuple[int, int, RequestSpec]]:
            sent = [0.0, 0.0]
            for k, spec in enumerate(requests):
                weights = [s * len(f.serving) * (n > 0 or arm == "pool") for s, f, n in zip(speeds, run.fleets, counts)]
                chosen = min((0, 1), key=lambda i: (sent[i] + 1.0) / weights[i] if weights[i] else np.inf)
                sent[chosen] += 1.0
                if max(sent) > 20.0:
                    sent[:] = [0.9 * n for n in sent]
                yield chosen, k, spec

        run.serve(routed())
        if arm != "pool":
            prices = [price if n else 0.0 for price, n in zip(prices, counts)]
        mean, share = run.score()
        return {"mean": mean, "share": share, "price": run.hours(prices), "most": [f.most for f in run.fleets]}


def fluid(arm: str, seed: int, cold_s: float, peak: float = 6.0, gpus: int = 8) -> dict[str, Any]:
    """``swap`` on fluid fleets (:mod:`benchmarks.fluid`): share: of the work, what came while readers noticed nothing."""
    buffer, behavior = Buffer(1.08, 220.0), ScalingBehavior(tick_s=TICK_S, cold_start_s=cold_s)
    shapes = [tuple((s, level * peak / HIGH) for s, level in shape) for shape in (DAY, NIGHT)]
    targets = [
        Target(shape, 10 * seed + i, buffer, behavior, replicas=gpus // 2, max_replicas=gpus)
        for i, shape in enumerate(shapes)
    ]  # fmt: skip
    shared = Shared(PoolBudget(gpus))
    for now_s in np.arange(TICK_S, targets[0].span_s + TICK_S, TICK_S).tolist():
        for i, target in enumerate(targets):
            wanted, found, fleet = target.look(now_s), target.found, target.fleet
            if arm != "pool":
                continue
            there = fleet.ready + len(fleet.starting_s)
            present = None if found is None else max(1, int(np.ceil(found.load.at / buffer.rho)))
            member = Member(
                f"m{i}", f"m{i}", None if found is None else wanted, 1, gpus, there, fleet.ready,
                value=max(target.rate_rps, 1e-6), cold_s=cold_s, present=present,
            )  # fmt: skip
            fleet.scale(min(wanted, shared.given(member)[0]), now_s + cold_s)
    each = [target.timely_s / target.came_s for target in targets]
    whole = sum(target.timely_s for target in targets) / sum(target.came_s for target in targets)
    return {"mean": float("nan"), "share": whole, "each": [(0.0, share) for share in each],
            "hours": sum(target.fleet.hours for target in targets)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("swap", "mix", "fluid"))
    parser.add_argument("folder", type=Path, nargs="?", metavar="TRACES", help="the directory with the traces")
    parser.add_argument("--lengths", default=LENGTHS, help="file in it; default: %(default)s")
    parser.add_argument("--profile", default="l4-llama-3.1-8b", help="of swap; default: %(default)s")
    parser.add_argument(
        "--kinds", default="h100-llama-3.1-8b,l4-llama-3.1-8b", help="profiles of mix; default: %(default)s"
    )
    parser.add_argument("--schedulers", default="andes", help=f"of {', '.join(SCHEDULERS)}; default: %(default)s")
    parser.add_argument("--arms", help="semicolons between: halves;pool, or static A B;pool")
    parser.add_argument("--cold-start", type=float, default=300.0, help="seconds; default: %(default)s")
    parser.add_argument("--seeds", default="1", help="of arrivals; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/pool"), help="folder where runs are kept")
    args = parser.parse_args()
    schedulers, arms = args.schedulers.split(","), (args.arms or "halves;pool").split(";")
    for name in schedulers:
        if name not in SCHEDULERS:
            parser.error(f"--schedulers: {name!r} is not known; choose of {', '.join(SCHEDULERS)}")
    if args.what == "fluid":
        for seed in (int(s) for s in args.seeds.split(",")):
            for arm in arms:
                found = fluid(arm, seed, args.cold_start)
                each = " / ".join(f"{share:.3f}" for _, share in found["each"])
                print(row(seed, arm, f"{found['share']:.3f}", each, f"{found['hours']:.2f}"), flush=True)
        return
    if args.folder is None:
        parser.error("TRACES: give the directory with the traces")
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    print("\n".join(header("seed", "scheduler", "arm", "mean QoE", "share >= 0.95", "each share", "hours or price")))
    for seed in (int(s) for s in args.seeds.split(",")):
        for scheduler in schedulers:
            for arm in arms:
                path = args.out / f"{args.what}_{scheduler}_{arm.replace(' ', '-')}_seed{seed}.json"
                if not path.exists():
                    started_s = time.process_time()
                    result = getattr(bench, args.what)(arm, scheduler, seed)
                    path.write_text(json.dumps(result | {"cpu_s": time.process_time() - started_s}))
                found = json.loads(path.read_text())
                each = " / ".join(f"{share:.3f}" for _, share in found.get("each", [])) or str(found.get("most"))
                paid = found.get("hours", found.get("price"))
                figures = f"{found['mean']:.3f}", f"{found['share']:.3f}", each, f"{paid:.2f}"
                print(row(seed, scheduler, arm, *figures), flush=True)


if __name__ == "__main__":
    main()
