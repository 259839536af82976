"""Every policy on one simulated engine and workload: what readers get, who pays, and how far it is from the best possible.

``python benchmarks/rivals.py --setting cpu --seeds 3`` prints a row per policy. Everything is simulated. stock: SGLang
untouched, prefill first; mixed: the same with mixed chunked prefill. From the shortest to the longest prompts, ``short``,
``middle`` and ``long`` are thirds of the requests and ``tenth`` is the last tenth. to oracle: mean QoE below the best of the
policies that know output lengths. to bound (``--bound``): below what no schedule can exceed (docs/upper-bound.md).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from andes_sglang.policy import CLAIRVOYANT, POLICIES, make
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.replica import simulate
from andes_sglang.sim.upper_bound import upper_bound
from andes_sglang.workload import Workload, shape

COLUMNS = (
    "mean", "p5", "stall90_s", "ttft90_s", "tok/s", "preempt", "recomp", "short", "middle", "long", "tenth", "left",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """An engine and the load on it: a one-cycle burst. tds None: the population of readers."""

    engine: EngineModel
    rate_rps: float
    duration_s: float
    prompt: str
    output: str
    intensity: float = 2.0
    width: float = 0.35
    tds: float | None = 4.5

    def workload(self, seed: int) -> Workload:
        asked = shape(
            "burst", rate_rps=self.rate_rps, duration_s=self.duration_s, prompt=self.prompt, output=self.output, seed=seed,
            intensity=self.intensity, width=self.width,
        )  # fmt: skip
        return asked.with_readers(seed, ttft_s=None, tds=self.tds, population=None)


CPU = EngineModel(Costs(0.004, 0.0005, 1.2e-6, 0.008, 45e-6), 8192, overlap=Overlap.SYNC)
SMALL = EngineModel(Costs(0.006, 0.0022, 3e-7, 0.005, 75e-6), 8192, overlap=Overlap.SYNC)
H100 = EngineModel(
    Costs(0.006, 3.2e-5, 4.9e-8, 0.006, 3e-5, 0.0, 1e-9),
    430_000,
    max_running=512,
    chunk_tokens=2048,
    overlap=Overlap.ASYNC,
)
H100_HOST = replace(H100, host_capacity_tokens=4_000_000, host_tokens_per_s=400_000.0)
"""Llama-3.1-8B in bfloat16, roofline: 16 GB of weights and 128 KiB per token at 80 % of 3.35 TB/s, 55 % of 989 TFLOP/s."""

CHAT = "p25=400,p50=1100,p75=3300,p90=8000,p99=30000"
SETTINGS = {
    "cpu": Setting(CPU, 3.6, 180.0, "200-400", "150-250"),
    "small": Setting(SMALL, 1.6, 180.0, "200-400", "150-250"),
    "cpu-long": Setting(CPU, 1.9, 240.0, "200-400", "300-500"),
    "cpu-mixed": Setting(CPU, 2.6, 180.0, "p50=300,p90=1200,p99=2500", "100-300"),
    "h100-chat": Setting(H100, 4.6, 200.0, CHAT, "p50=350,p90=800,p99=1500", tds=None),
    "h100-long": Setting(H100, 0.9, 400.0, "500-1500", "2000-6000", tds=None),
    "h100-long-offload": Setting(H100_HOST, 0.9, 400.0, "500-1500", "2000-6000", tds=None),
}  # fmt: skip


def run(name: str, setting: Setting, requests: Sequence[RequestSpec]) -> list[RequestRecord]:
    """``name``: a policy, with options as ``andes:horizon_s=30:refine=0``; stock; mixed."""
    name, *pairs = name.split(":")
    options = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    engine = setting.engine
    if name == "tokenflow" and not engine.host_capacity_tokens:
        options.setdefault("load_tokens_per_s", 1.0)  # there is nothing to load from: it is to count on computing anew
    if name == "stock":
        policy = None
    elif name == "mixed":
        policy, engine = None, replace(engine, mixed=True)
    elif name in CLAIRVOYANT:
        policy = make(name, output_tokens={f"r{k}": r.output_tokens for k, r in enumerate(requests)}, **options)
    else:
        policy = make(name, **options)
        engine = replace(engine, mixed=getattr(policy, "mixed_chunk", False))
    return list(simulate(engine, policy, requests))


def figures(records: Sequence[RequestRecord], workload: Workload) -> list[float]:
    """One row, in the order of ``COLUMNS``."""
    scores = [r.score() for r in records]
    qoe = np.array([s.qoe for s in scores])
    by_prompt = qoe[np.argsort([r.prompt_tokens for r in records], kind="stable")]
    last_s = max(r.end_s for r in records)
    undelivered = sum(int(np.count_nonzero(r.token_times_s > workload.duration_s)) for r in records)
    return [
        float(qoe.mean()),
        float(np.percentile(qoe, 5)),
        float(np.percentile([s.longest_stall_s for s in scores], 90)),
        float(np.percentile([r.ttft_s for r in records], 90)),
        sum(r.output_tokens for r in records) / (last_s - records[0].arrival_s),
        float(np.mean([r.preemptions or 0 for r in records])),
        float(np.mean([r.recomputed_tokens or 0 for r in records])),
        *(float(part.mean()) for part in np.array_split(by_prompt, 3)),
        float(by_prompt[-max(1, len(by_prompt) // 10) :].mean()),
        undelivered,
    ]


def line(name: str, row: Sequence[float], rest: str) -> str:
    mean, p5, stall, ttft, speed, preempt, recomputed, *groups, left = row
    groups_text = " ".join(f"{g:6.3f}" for g in groups)
    return (
        f"{name:30s} {mean:6.3f} {p5:6.3f} {stall:9.1f} {ttft:8.1f} {speed:6.0f} {preempt:7.2f} {recomputed:6.0f} "
        f"{groups_text} {left:7.0f} {rest}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="cpu", choices=SETTINGS)
    parser.add_argument("--policies", default=",".join(["stock", "mixed", *POLICIES, *CLAIRVOYANT]))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rate-scale", type=float, default=1.0)
    parser.add_argument("--intensity", type=float)
    parser.add_argument("--bound", action="store_true", help="also the upper bound on mean QoE; takes minutes")
    parser.add_argument(
        "--no-later",
        metavar="POLICIES",
        default="",
        help="also a bound for each of these: over the schedules that end no answer later than it does",
    )
    parser.add_argument("--latest", type=float, default=0.0, help="of the bound: most seconds a last token is late")
    parser.add_argument("--slot", type=float, default=1.0, help="of the bound: seconds of a slot")
    parser.add_argument("--chunks", type=int, default=20, help="of the bound: parts of an answer")
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    intensity = setting.intensity if args.intensity is None else args.intensity
    setting = replace(setting, rate_rps=setting.rate_rps * args.rate_scale, intensity=intensity)
    workloads = [setting.workload(seed) for seed in range(args.seeds)]
    print(f"simulated: {args.setting}, {workloads[0].name}, {args.seeds} seeds", flush=True)
    print(f"{'':30s} {'mean':>6s} {'p5':>6s} {'stall90_s':>9s} {'ttft90_s':>8s} {'tok/s':>6s} {'preempt':>7s} {'recomp':>6s} "
          + " ".join(f"{c:>6s}" for c in COLUMNS[7:11]) + f" {'left':>7s} {'sd':>5s} {'cpu_s':>6s}")  # fmt: skip
    means: dict[str, float] = {}
    latest: dict[str, float] = {}
    late: dict[str, list[list[float]]] = {}
    ends_s = np.zeros(args.seeds)
    for name in args.policies.split(","):
        started = time.process_time()
        runs = [run(name, setting, w.requests) for w in workloads]
        rows = np.array([figures(records, w) for records, w in zip(runs, workloads, strict=True)])
        spread = f"{rows[:, 0].std():5.3f} {(time.process_time() - started) / args.seeds:6.1f}"
        print(line(name, rows.mean(axis=0), spread), flush=True)
        means[name] = float(rows[:, 0].mean())
        late[name] = [[max(0.0, r.end_s - ideal_end_s(r)) for r in sorted(rs, key=lambda r: r.index)] for rs in runs]
        latest[name] = max(late_s for one in late[name] for late_s in one)
        ends_s = np.maximum(ends_s, [max(r.end_s for r in records) for records in runs])
    told = {name: mean for name, mean in means.items() if name.split(":")[0] in CLAIRVOYANT}
    bound, latest_s = np.inf, args.latest or max(latest.values())
    if args.bound:
        bound = float(np.mean([
            upper_bound(
                w.requests, setting.engine, end_s + 1.0, latest_s=latest_s, slot_s=args.slot, chunks=args.chunks
            ).mean_qoe
            for w, end_s in zip(workloads, ends_s, strict=True)
        ]))  # fmt: skip
        print(f"no schedule whose last tokens are at most {latest_s:.0f} s late has a mean above {bound:.3f}")
    for name in filter(None, args.no_later.split(",")):
        own = float(np.mean([
            upper_bound(w.requests, setting.engine, end_s + 1.0, latest_s=one, slot_s=args.slot, chunks=args.chunks).mean_qoe
            for w, end_s, one in zip(workloads, ends_s, late[name], strict=True)
        ]))  # fmt: skip
        print(
            f"no schedule that ends no answer later than {name} does has a mean above {own:.3f}, which has {means[name]:.3f}"
        )
    for name, mean in means.items():
        oracle_text = f"{max(told.values()) - mean:7.3f} to oracle" if told else ""
        bound_text = f"{bound - mean:7.3f} to bound" if bound < np.inf and latest[name] <= latest_s else ""
        print(f"{name:30s} last token up to {latest[name]:4.0f} s late {oracle_text} {bound_text}")


def ideal_end_s(record: RequestRecord) -> float:
    """When its reader would like the last token."""
    return record.arrival_s + record.ttft_target_s + (record.output_tokens - 1) / record.tds


if __name__ == "__main__":
    main()
