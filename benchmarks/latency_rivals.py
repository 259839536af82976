"""Policies that foresee lengths, by their authors' own measure: ``python benchmarks/latency_rivals.py TRACES``. Simulated.

Recorded requests with their callers, in their order, arrive by a Poisson process for four minutes at multiples of C (what
stock SGLang sustains flooded) on one engine with mixed chunks and host memory. Latency is that of a request over its
tokens, as its authors normalise it: s/token, mean over requests. Then, for each policy, the load at which its latency is
``--latency``: throughput at equal latency. ``-blind``: the engine is not told who asks. The first quarter of the requests
is for learning only.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.policy import CLAIRVOYANT, SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.replica import simulate
from andes_sglang.workload import Workload, load_trace
from benchmarks.arguments import listed
from benchmarks.markdown import header, row
from benchmarks.oracles import make_oracle
from benchmarks.runs import flooded_rps
from benchmarks.settings import HOST, MIXED

SPAN_S, UNCOUNTED_SHARE, CAPACITY_REQUESTS, INTERVAL_S = 240.0, 0.25, 600, 0.1


class Trace(NamedTuple):
    """profile: of the engine. max_prompt, max_output: recorded lengths are clamped to these, in tokens."""

    profile: str
    max_prompt: int
    max_output: int


TRACES = {
    "servegen_mlarge_day1_c48": Trace("a100-40gb-llama-2-13b", 2000, 1000),
    "servegen_r1_surge_rt": Trace("a100-40gb-phi-3-mini", 4000, 3000),
    "azure23_conv_ramp": Trace("a100-40gb-llama-2-13b", 2000, 1000),
}
BLIND = "-blind"
POLICIES = ("stock", "alise", "alise-blind", "ltr", "ltr-blind", "andes", "srpt")


def recorded(file: Path, trace: Trace) -> list[RequestSpec]:
    """All of them, with their callers as tenants."""
    with gzip.open(file, "rt") as lines:
        callers = [json.loads(line).get("client") for line in lines]
    drawn = load_trace(file, seed=1)
    tenants = [str(caller) if caller is not None else None for caller in callers]
    requests = tuple(replace(r, tenant=t) for r, t in zip(drawn.requests, tenants, strict=True))
    whole = Workload(file.name, requests).scaled(max_prompt=trace.max_prompt, max_output=trace.max_output)
    return list(whole.with_reasoning_shown().requests)


def arrivals(requests: Sequence[RequestSpec], rps: float, seed: int) -> list[RequestSpec]:
    """The next of ``requests`` from a place that ``seed`` names, by a Poisson process."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1.0 / rps, round(rps * SPAN_S)))
    following = itertools.islice(itertools.cycle(requests), seed * len(requests) // 7, None)
    arriving = tuple(replace(r, arrival_s=float(s)) for r, s in zip(following, at_s, strict=False))
    return list(Workload("", arriving).with_readers(seed, ttft_s=None, tds=None, population="reading").requests)


def played(trace: Trace, name: str, requests: Sequence[RequestSpec]) -> list[RequestRecord]:
    if name.endswith(BLIND):
        name = name.removesuffix(BLIND)
        requests = [replace(r, tenant=None) for r in requests]
    engine = profiles.load(trace.profile).engine
    flags = (MIXED, HOST) if name != "stock" and engine.host_capacity_tokens else (MIXED,)
    policy: SchedulingPolicy | None
    if name in CLAIRVOYANT:
        engine, policy = configure(engine, Arm("fcfs", flags))[0], make_oracle(name, requests)
    else:
        engine, factory = configure(engine, Arm(name, flags))
        policy = factory()
    return list(simulate(engine, policy, requests, decision_interval_s=INTERVAL_S))


def figures(records: Sequence[RequestRecord]) -> list[float]:
    """s/token, seconds to the last token, mean QoE, 5th percentile, preemptions a request."""
    counted = [r for r in records if r.index >= UNCOUNTED_SHARE * len(records)]
    latency_s = np.array([r.end_s - r.arrival_s for r in counted])
    tokens, qoe = np.array([r.output_tokens for r in counted]), np.array([r.qoe for r in counted])
    return [
        float((latency_s / tokens).mean()), float(latency_s.mean()), float(qoe.mean()), float(np.percentile(qoe, 5)),
        float(np.mean([r.preemptions or 0 for r in counted])),
    ]  # fmt: skip


def load_at(loads: Sequence[float], latency_s: Sequence[float], limit_s: float) -> float:
    """The load at which the latency is ``limit_s``, between those measured, in logarithms; infinity beyond the last, 0 below
    the first."""
    rising = np.maximum.accumulate(latency_s)
    return float(np.interp(np.log(limit_s), np.log(rising), loads, left=0.0, right=np.inf))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the recorded traces, NAME.jsonl.gz")
    parser.add_argument("--traces", type=listed(TRACES), default=list(TRACES), help="comma-separated; default: all")
    parser.add_argument(
        "--policies", type=listed(POLICIES), default=list(POLICIES), help="comma-separated; default: all"
    )
    parser.add_argument("--loads", default="0.5,0.7,0.85,1,1.15,1.3,1.6,2", help="in C, rising; default: %(default)s")
    parser.add_argument("--latency", type=float, default=0.1, help="the equal latency, s/token; default: %(default)g")
    parser.add_argument("--seeds", type=int, default=2, help="figures are means over them; default: %(default)s")
    args = parser.parse_args()
    loads = [float(load) for load in args.loads.split(",")]
    if sorted(loads) != loads:
        parser.error(f"--loads {args.loads}: must rise")
    for name in args.traces:
        trace = TRACES[name]
        requests = recorded(args.folder / f"{name}.jsonl.gz", trace)
        stock, _ = configure(profiles.load(trace.profile).engine, Arm("stock", (MIXED,)))
        capacity_rps = flooded_rps(stock, requests[:: -(-len(requests) // CAPACITY_REQUESTS)])
        print(
            f"\nsimulated: {name}, {trace.profile}, C = {capacity_rps:.2f} requests/s, {args.seeds} seeds\n", flush=True
        )
        compare(
            args.policies,
            trace,
            requests,
            [(x, x * capacity_rps) for x in loads],
            limit_s=args.latency,
            seeds=args.seeds,
        )


def compare(
    policies: Sequence[str],
    trace: Trace,
    requests: Sequence[RequestSpec],
    loads: Sequence[tuple[float, float]],
    *,
    limit_s: float,
    seeds: int,
) -> None:
    """Two tables. loads: in C and in requests/s."""
    for text in header(
        "load, x C", "policy", "latency, s/token", "to the last token, s", "mean QoE", "p5", "preemptions"
    ):
        print(text)
    curves: dict[str, list[float]] = {name: [] for name in policies}
    for load, rps in loads:
        drawn = [arrivals(requests, rps, seed) for seed in range(1, seeds + 1)]
        for name in policies:
            cells = np.mean([figures(played(trace, name, one)) for one in drawn], axis=0)
            curves[name].append(float(cells[0]))
            texts = [format(v, spec) for v, spec in zip(cells, (".3f", ".1f", ".3f", ".3f", ".2f"), strict=True)]
            print(row(f"{load:g}", name, *texts), flush=True)
    multiples = [load for load, _ in loads]
    held = {name: load_at(multiples, curve, limit_s) for name, curve in curves.items()}
    print(f"\nat {limit_s:g} s/token:\n")
    for text in header("policy", "load, x C", f"throughput over {policies[0]}'s"):
        print(text)
    for name, load in held.items():
        print(row(name, f"{load:.2f}", f"{load / held[policies[0]]:.2f}" if held[policies[0]] else "-"), flush=True)


if __name__ == "__main__":
    main()
