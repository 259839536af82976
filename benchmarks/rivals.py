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

from andes_sglang.policy import CLAIRVOYANT, POLICIES, SchedulingPolicy, make
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.replica import simulate
from andes_sglang.sim.upper_bound import upper_bound
from andes_sglang.workload import Workload, draw_shape
from benchmarks.oracles import make_oracle

COLUMNS = (
    ("mean", "6.3f"), ("p5", "6.3f"), ("stall90_s", "9.1f"), ("ttft90_s", "8.1f"), ("tok/s", "6.0f"), ("preempt", "7.2f"),
    ("recomp", "6.0f"), ("short", "6.3f"), ("middle", "6.3f"), ("long", "6.3f"), ("tenth", "6.3f"), ("left", "7.0f"),
)  # fmt: skip
"""Titles and formats of a row's figures. left: tokens that come after the last arrival."""


@dataclass(frozen=True, slots=True)
class BurstSetting:
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
        drawn = draw_shape(
            "burst", rate_rps=self.rate_rps, duration_s=self.duration_s, prompt=self.prompt, output=self.output, seed=seed,
            intensity=self.intensity, width=self.width,
        )  # fmt: skip
        return drawn.with_readers(seed, ttft_s=None, tds=self.tds, population=None)


CPU = EngineModel(Costs(0.004, 0.0005, 1.2e-6, 0.008, 45e-6), 8192, overlap=Overlap.SYNC)
SMALL = EngineModel(Costs(0.006, 0.0022, 3e-7, 0.005, 75e-6), 8192, overlap=Overlap.SYNC)
"""About the demo's engine on two CPU cores, before profiles were measured; ``SMALL`` with a decode step three times as dear.
Kept as they are because the figures of docs/upper-bound.md are of them."""
H100 = EngineModel(
    Costs(0.006, 3.2e-5, 4.9e-8, 0.006, 3e-5, 0.0, 1e-9), 430_000, max_running=512, chunk_tokens=2048, overlap=Overlap.ASYNC
)  # fmt: skip
"""Llama-3.1-8B in bfloat16, roofline: 16 GB of weights and 128 KiB per token at 80 % of 3.35 TB/s, 55 % of 989 TFLOP/s."""
H100_HOST = replace(H100, host_capacity_tokens=4_000_000, host_tokens_per_s=400_000.0)

SKEWED_PROMPTS = "p25=400,p50=1100,p75=3300,p90=8000,p99=30000"
SETTINGS = {
    "cpu": BurstSetting(CPU, 3.6, 180.0, "200-400", "150-250"),
    "small": BurstSetting(SMALL, 1.6, 180.0, "200-400", "150-250"),
    "cpu-long": BurstSetting(CPU, 1.9, 240.0, "200-400", "300-500"),
    "cpu-mixed": BurstSetting(CPU, 2.6, 180.0, "p50=300,p90=1200,p99=2500", "100-300"),
    "h100-chat": BurstSetting(H100, 4.6, 200.0, SKEWED_PROMPTS, "p50=350,p90=800,p99=1500", tds=None),
    "h100-long": BurstSetting(H100, 0.9, 400.0, "500-1500", "2000-6000", tds=None),
    "h100-long-offload": BurstSetting(H100_HOST, 0.9, 400.0, "500-1500", "2000-6000", tds=None),
}  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """One policy over all seeds. rows: figures by seed, shape (seeds, columns). late_s: by seed and request, how long after
    its reader would like it the last token came. ends_s: by seed, when the last answer ended."""

    name: str
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    late_s: list[list[float]]
    ends_s: list[float]
    cpu_s: float

    @property
    def mean_qoe(self) -> float:
        return float(self.rows[:, 0].mean())

    @property
    def max_late_s(self) -> float:
        return max(late_s for one in self.late_s for late_s in one)

    @property
    def knows_lengths(self) -> bool:
        return self.name.split(":")[0] in CLAIRVOYANT

    def __str__(self) -> str:
        cells = [format(value, spec) for value, (_, spec) in zip(self.rows.mean(axis=0), COLUMNS, strict=True)]
        return " ".join([f"{self.name:30s}", *cells, f"{self.rows[:, 0].std():5.3f} {self.cpu_s:6.1f}"])


def run(name: str, setting: BurstSetting, requests: Sequence[RequestSpec]) -> list[RequestRecord]:
    """``name``: a policy, with options as ``andes:horizon_s=30:refine=0``; stock; mixed."""
    name, *pairs = name.split(":")
    options = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    engine = setting.engine
    policy: SchedulingPolicy | None
    if name == "tokenflow" and not engine.host_capacity_tokens:
        options.setdefault("load_tokens_per_s", 1.0)  # nothing to load from: it is to count on recomputing
    if name == "stock":
        policy = None
    elif name == "mixed":
        policy, engine = None, replace(engine, mixed=True)
    elif name in CLAIRVOYANT:
        policy = make_oracle(name, requests, **options)
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


def outcome(name: str, setting: BurstSetting, workloads: Sequence[Workload]) -> Outcome:
    started_s = time.process_time()
    runs = [run(name, setting, w.requests) for w in workloads]
    rows = np.array([figures(records, w) for records, w in zip(runs, workloads, strict=True)])
    late_s = [[max(0.0, r.end_s - ideal_end_s(r)) for r in sorted(records, key=lambda r: r.index)] for records in runs]
    ends_s = [max(r.end_s for r in records) for records in runs]
    return Outcome(name, rows, late_s, ends_s, (time.process_time() - started_s) / len(workloads))


def ideal_end_s(record: RequestRecord) -> float:
    """When its reader would like the last token."""
    return record.arrival_s + record.ttft_target_s + (record.output_tokens - 1) / record.tds


def bound(
    engine: EngineModel, workloads: Sequence[Workload], ends_s: Sequence[float], late_s: Sequence[Sequence[float] | float],
    *, slot_s: float, chunks: int,
) -> float:  # fmt: skip
    """The mean QoE, over seeds, that no schedule exceeds whose last tokens are at most ``late_s`` late; by seed, for all
    requests or for each."""
    bounds = [
        upper_bound(w.requests, engine, end_s + 1.0, latest_s=late, slot_s=slot_s, chunks=chunks).mean_qoe
        for w, end_s, late in zip(workloads, ends_s, late_s, strict=True)
    ]
    return float(np.mean(bounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="cpu", choices=SETTINGS, help="default: %(default)s")
    parser.add_argument(
        "--policies",
        default=",".join(["stock", "mixed", *POLICIES, *CLAIRVOYANT]),
        help="comma-separated; default: all",
    )
    parser.add_argument("--seeds", type=int, default=1, help="draws of the workload; default: %(default)s")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="the setting's rate times this")
    parser.add_argument("--intensity", type=float, help="of the burst, instead of the setting's")
    parser.add_argument("--bound", action="store_true", help="also the upper bound on mean QoE; takes minutes")
    parser.add_argument(
        "--no-later", metavar="POLICIES", default="",
        help="also a bound for each of these: over the schedules that end no answer later than it does",
    )  # fmt: skip
    parser.add_argument("--latest", type=float, default=0.0, help="of the bound: most seconds a last token is late")
    parser.add_argument("--slot", type=float, default=1.0, help="of the bound: seconds of a slot")
    parser.add_argument("--chunks", type=int, default=20, help="of the bound: parts of an answer")
    args = parser.parse_args()
    names = args.policies.split(",")
    no_later = [name for name in args.no_later.split(",") if name]
    for name in no_later:
        if name not in names:
            parser.error(f"--no-later {name!r}: is not among --policies")
    if not (args.bound or no_later):
        for flag in ("latest", "slot", "chunks"):
            if getattr(args, flag) != parser.get_default(flag):
                parser.error(f"--{flag} {getattr(args, flag):g}: goes with --bound or --no-later")
    setting = SETTINGS[args.setting]
    intensity = setting.intensity if args.intensity is None else args.intensity
    setting = replace(setting, rate_rps=setting.rate_rps * args.rate_scale, intensity=intensity)
    workloads = [setting.workload(seed) for seed in range(args.seeds)]
    print(f"simulated: {args.setting}, {workloads[0].name}, {args.seeds} seeds", flush=True)
    titles = [title.rjust(int(spec.partition(".")[0])) for title, spec in COLUMNS]
    print(" ".join([" " * 30, *titles, f"{'sd':>5s} {'cpu_s':>6s}"]))
    outcomes: dict[str, Outcome] = {}
    for name in names:
        outcomes[name] = outcome(name, setting, workloads)
        print(outcomes[name], flush=True)
    ends_s = [max(ends) for ends in zip(*(o.ends_s for o in outcomes.values()), strict=True)]
    late_s = args.latest or max(o.max_late_s for o in outcomes.values())
    highest = np.inf
    if args.bound:
        highest = bound(setting.engine, workloads, ends_s, [late_s] * args.seeds, slot_s=args.slot, chunks=args.chunks)
        print(f"no schedule whose last tokens are at most {late_s:.0f} s late has a mean above {highest:.3f}")
    for name in no_later:
        own = bound(setting.engine, workloads, ends_s, outcomes[name].late_s, slot_s=args.slot, chunks=args.chunks)
        print(f"no schedule that ends no answer later than {name} does has a mean above {own:.3f}, "
              f"which has {outcomes[name].mean_qoe:.3f}")  # fmt: skip
    oracle = max((o.mean_qoe for o in outcomes.values() if o.knows_lengths), default=np.nan)
    for o in outcomes.values():
        to_oracle = f"{oracle - o.mean_qoe:7.3f} to oracle" if np.isfinite(oracle) else ""
        to_bound = f"{highest - o.mean_qoe:7.3f} to bound" if highest < np.inf and o.max_late_s <= late_s else ""
        print(f"{o.name:30s} last token up to {o.max_late_s:4.0f} s late {to_oracle} {to_bound}")


if __name__ == "__main__":
    main()
