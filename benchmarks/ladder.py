"""A weaker model that answers where the better one would be late: quality x QoE on simulated GPUs.

``python benchmarks/ladder.py`` prints a row per fleet and load. Everything is simulated. Readers come as in
:mod:`benchmarks.simulated`, a burst between half loads; load is relative to C, what one 13B model on an A100 carries under
stock SGLang. Quality is 1 of the 13B model's answers and 0.9 of Phi-3-mini's: an assumption, as an owner would make it.
Value: mean of quality x QoE over the requests of the burst. Worst minute: the least of its minutes, by arrival. Weaker: share
of answers by Phi-3-mini. An elastic fleet begins with the replicas named and adds some of its last model by open requests,
after a cold start.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.routing import make_routing_policy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.autoscaling import MetricAutoscaler
from andes_sglang.sim.configure import configure
from andes_sglang.sim.fleet import Fleet, simulate_fleet
from benchmarks.markdown import Lines, header, row
from benchmarks.runs import INTERVAL_S, Case, SimulatedRuns
from benchmarks.settings import ARMS, STOCK, best_arm

SETTING = "a100-13b"
BIG, SMALL = "a100-40gb-llama-2-13b", "a100-40gb-phi-3-mini"
QUALITY = {BIG: 1.0, SMALL: 0.9}
BURST_S, ELASTIC_BURST_S = 120.0, 420.0
LEARNED = "andes_sglang.routing.learned:Learned"
OPEN_PER_REPLICA = 60.0
"""Open requests per replica that an elastic fleet aims at: about half of what one holds when its readers begin to lose."""
OURS = ARMS[best_arm(SETTING)]


@dataclass(frozen=True)
class Rig:
    """replicas: profiles of those there at the start. most: replicas that an elastic fleet may have; 0: it is fixed."""

    name: str
    replicas: Sequence[str]
    routing: str
    arm: Arm = OURS
    most: int = 0


def fleet_of(rig: Rig, weights: Path | None = None) -> Fleet:
    """Replicas added are those of its last model."""
    engines = []
    for name in rig.replicas:
        engine, policy = configure(profiles.load(name).engine, rig.arm)
        engines.append(replace(engine, quality=QUALITY[name]))
    options = {} if weights is None or rig.routing != LEARNED else json.loads(weights.read_text())
    scaler = None
    if rig.most:
        scaler = MetricAutoscaler(OPEN_PER_REPLICA, min_replicas=len(engines), max_replicas=rig.most)
    return Fleet(
        engines[-1], policy, engines=engines, routing_policy=make_routing_policy(rig.routing, **options), autoscaler=scaler,
        start_s=profiles.load(rig.replicas[-1]).start_s, decision_interval_s=INTERVAL_S,
    )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    value: float
    worst_minute: float
    weaker: float
    replicas: float


def serve(rig: Rig, x: float, seed: int, runs: SimulatedRuns, weights: Path | None = None) -> Outcome:
    """The requests of the burst on ``rig``. replicas: on average from the first request to the end of the last."""
    case = Case(SETTING, "burst", x, ELASTIC_BURST_S if rig.most else BURST_S, seed, rig.arm)
    specs, since_s, until_s = runs.requests(case)
    fleet = fleet_of(rig, weights)
    big = {replica.index for replica in fleet.replicas if replica.engine.quality == QUALITY[BIG]}
    found = []
    for record in simulate_fleet(fleet, specs):
        if since_s <= record.arrival_s < until_s:
            better = record.replica in big
            found.append((record.arrival_s, record.qoe * QUALITY[BIG if better else SMALL], not better))
    arrival_s, value, weaker = np.array(found).T
    minutes = ((arrival_s - since_s) // 60).astype(int)
    by_minute = np.bincount(minutes, value) / np.bincount(minutes)
    return Outcome(
        float(value.mean()), float(by_minute.min()), float(weaker.mean()), fleet.replica_s / max(1.0, fleet.now_s)
    )


def rigs(learned: bool) -> list[tuple[Rig, Sequence[float]]]:
    loads = (1.0, 2.0, 3.0, 4.0)
    listed: list[tuple[Rig, Sequence[float]]] = [
        (Rig("two 13B, stock", (BIG, BIG), "least_load", STOCK["stock"]), loads),
        (Rig("two 13B", (BIG, BIG), "qoe"), loads),
        (Rig("two Phi", (SMALL, SMALL), "qoe"), loads),
        (Rig("13B + Phi, value", (BIG, SMALL), "value"), loads),
        (Rig("two 13B + Phi, value", (BIG, BIG, SMALL), "value"), loads),
        (Rig("two 13B, elastic 13B", (BIG, BIG), "qoe", most=8), (10.0,)),
        (Rig("13B + Phi, value, fixed", (BIG, SMALL), "value"), (10.0,)),
        (Rig("13B + Phi, value, elastic Phi", (BIG, SMALL), "value", most=8), (10.0,)),
    ]
    if learned:
        listed.insert(4, (Rig("13B + Phi, learned", (BIG, SMALL), LEARNED), loads))
    return listed


def table(seeds: Sequence[int], runs: SimulatedRuns, weights: Path | None, chosen: str | None) -> Lines:
    yield from header("fleet", "load, x C", "value", "spread", "worst minute", "weaker", "replicas")
    for rig, loads in rigs(weights is not None):
        if chosen and chosen not in rig.name:
            continue
        for x in loads:
            found = [serve(rig, x, seed, runs, weights) for seed in seeds]
            values = [outcome.value for outcome in found]
            worst, weaker, replicas = np.mean([(o.worst_minute, o.weaker, o.replicas) for o in found], axis=0)
            yield row(
                rig.name, f"{x:g}", f"{np.mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}", f"{worst:.3f}",
                f"{weaker:.0%}", f"{replicas:.1f}",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="draws that a row is the mean of")
    parser.add_argument("--fleet", help="only fleets whose name holds this")
    parser.add_argument(
        "--weights", type=Path, help="what andes train-router wrote: rows of the learned router beside value"
    )
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="where capacities are kept")
    given = parser.parse_args()
    runs = SimulatedRuns(given.out, None, given.seeds)
    for line in table(range(1, given.seeds + 1), runs, given.weights, given.fleet):
        print(line, flush=True)


if __name__ == "__main__":
    main()
