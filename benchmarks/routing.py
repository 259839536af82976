"""Routing policies before four simulated replicas, alike and unlike: ``python benchmarks/routing.py``.

Poisson arrivals for four minutes at multiples of what the fleet sustains under stock SGLang; every router gets the same
requests. Latency is from the arrival to the last token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import make_routing_policy
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.workload import draw_shape, mean_length
from benchmarks.markdown import header, row
from benchmarks.waits import MIXED, SETTINGS, Setting

SPAN_S, INTERVAL_S = 240.0, 0.25
ROUTERS = ("round_robin", "least_load", "least_tokens", "qoe")
FLEETS = {
    "4 alike": (SETTINGS["a100-13b"], ("a100-40gb-llama-2-13b",) * 4),
    "2 H100, 2 L4": (SETTINGS["h100-chat"], ("h100-llama-3.1-8b",) * 2 + ("l4-llama-3.1-8b",) * 2),
}


def engines_of(fleet: Sequence[str], policy: str) -> list[EngineModel]:
    return [configure(profiles.load(name).engine, Arm(policy, MIXED))[0] for name in fleet]


def requests_of(setting: Setting, fleet: Sequence[str], load: float, seed: int) -> list[RequestSpec]:
    sustained = {
        name: sustained_tokens_per_s(engines_of([name], "stock")[0], setting.prompt, setting.output, seed=1)
        for name in set(fleet)
    }
    rps = load * sum(sustained[name] for name in fleet) / mean_length(setting.output)
    drawn = draw_shape(
        "poisson", rate_rps=rps, duration_s=SPAN_S, prompt=setting.prompt, output=setting.output, seed=seed
    )
    return list(drawn.with_readers(seed, ttft_s=1.0, tds=None, population="reading"))


def played(
    fleet: Sequence[str], policy: str, router: str, requests: Sequence[RequestSpec]
) -> tuple[float, float, float, float]:
    """Mean QoE, its 5th percentile, mean seconds to the first token and to the last one."""
    engines, make = engines_of(fleet, policy), configure(profiles.load(fleet[0]).engine, Arm(policy, MIXED))[1]
    records: list[RequestRecord] = []
    simulated = Fleet(
        engines[0], make, engines=engines, routing_policy=make_routing_policy(router), decision_interval_s=INTERVAL_S,
        sink=records.append,
    )  # fmt: skip
    for spec in requests:
        simulated.submit(spec)
    simulated.advance()
    qoe = np.array([record.qoe for record in records])
    return (
        float(qoe.mean()), float(np.percentile(qoe, 5)), fmean(r.ttft_s for r in records),
        fmean(r.end_s - r.arrival_s for r in records),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fleets", nargs="*", default=[*FLEETS], help=f"of {', '.join(FLEETS)}; default: all")
    parser.add_argument("--policies", default="stock,andes", help="scheduling policies; default: %(default)s")
    parser.add_argument("--loads", default="0.9,1.1", help="of what the fleet sustains; default: %(default)s")
    parser.add_argument("--seeds", default="1,2,3", help="figures are means over them; default: %(default)s")
    args = parser.parse_args()
    for name in args.fleets:
        if name not in FLEETS:
            parser.error(f"fleet {name!r}: not known; choose of {', '.join(FLEETS)}")
    for text in header("fleet", "policy", "load", "router", "mean QoE", "p5", "first token, s", "latency, s",
                       "against round robin"):  # fmt: skip
        print(text)
    for name in args.fleets:
        setting, fleet = FLEETS[name]
        for policy in args.policies.split(","):
            for load in args.loads.split(","):
                drawn = [requests_of(setting, fleet, float(load), int(seed)) for seed in args.seeds.split(",")]
                usual_s = 0.0
                for router in ROUTERS:
                    qoe, p5, first_s, latency_s = np.mean([played(fleet, policy, router, r) for r in drawn], axis=0)
                    usual_s = usual_s or latency_s
                    change = f"{latency_s / usual_s - 1:+.0%}"
                    print(row(name, policy, load, router, f"{qoe:.3f}", f"{p5:.3f}", f"{first_s:.2f}", f"{latency_s:.1f}",
                              change), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
