"""How long a decision takes, and how far greedy packing is from the exact optimum.

``python benchmarks/policy_decision.py``: CPU time of ``decide``, median and 99th percentile, over populations of 100, 1,000
and 10,000 requests (KV for a tenth of them, so that the others wait), and the gap to the dynamic programme.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from andes_sglang.latency import LatencyModel
from andes_sglang.policy import POLICIES, make_policy
from andes_sglang.policy.oracle import best_total_gain
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Phase, RequestTable, RequestView, SchedulerState

NOW_S = 1000.0


def population(size: int, seed: int) -> SchedulerState:
    """The middle of a surge: a tenth runs and fills the KV pool, some were released, the rest has not begun."""
    rng = np.random.default_rng(seed)
    views = []
    running_tokens = 0
    for k in range(size):
        running = k % 10 == 0
        begun = running or k % 3 == 0
        age_s = float(rng.uniform(0, 60))
        reader = ReaderStream(NOW_S - age_s, QoETarget(1.0, float(rng.choice([3.8, 4.3, 5.1]))))
        output = int(rng.integers(1, 200)) if begun else 0
        for j in range(output):
            reader.deliver(NOW_S - age_s + age_s * (j + 1) / output)
        prompt = int(rng.integers(100, 500))
        running_tokens += (prompt + output) * running
        views.append(
            RequestView(
                rid=f"r{k}",
                phase=Phase.RUNNING if running else Phase.WAITING,
                arrival_s=NOW_S - age_s,
                reader=reader,
                prompt_tokens=prompt,
                output_tokens=output,
                kv_tokens=(prompt + output) * running,
                remaining_tokens=1000,
                slice_tokens=int(rng.integers(0, 150)) if running else 0,
                phase_since_s=NOW_S - age_s / 2,
                preemptions=int(begun and not running),
            )
        )
    return SchedulerState(NOW_S, RequestTable.of(views), int(running_tokens * 1.05), size, LatencyModel())


def time_decisions(policy_name: str, size: int, repeats: int) -> tuple[float, float]:
    """Median and 99th percentile of the CPU time of a decision, in milliseconds."""
    policy = make_policy(policy_name)
    states = [population(size, seed) for seed in range(5)]
    spent = []
    for k in range(repeats):
        started = time.thread_time()
        policy.decide(states[k % len(states)])
        spent.append((time.thread_time() - started) * 1e3)
    return float(np.median(spent)), float(np.percentile(spent, 99))


def greedy_gap(instances: int) -> list[float]:
    """Relative loss of greedy packing by gain per KV block against the optimum, per random instance."""
    gaps = []
    for seed in range(instances):
        rng = np.random.default_rng(seed)
        gains, blocks = rng.uniform(0, 1, 60), rng.integers(5, 40, 60)
        capacity, batch = 300, int(rng.integers(8, 25))
        exact = best_total_gain(gains, blocks, capacity, batch)
        total, used, count = 0.0, 0, 0
        for i in np.argsort(-gains / blocks, kind="stable"):
            if count < batch and used + blocks[i] <= capacity:
                total, used, count = total + gains[i], used + int(blocks[i]), count + 1
        gaps.append(1.0 - total / exact)
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--policies", default=",".join(POLICIES))
    args = parser.parse_args()
    print(f"{'policy':12s} {'requests':>9s} {'median ms':>10s} {'p99 ms':>8s}")
    for name in args.policies.split(","):
        for size in (100, 1_000, 10_000):
            median, p99 = time_decisions(
                name, size, max(20, args.repeats * 100 // size) if size > 100 else args.repeats
            )
            print(f"{name:12s} {size:9,d} {median:10.3f} {p99:8.3f}", flush=True)
    gaps = greedy_gap(40)
    print(f"greedy against the exact optimum, 40 instances: mean gap {np.mean(gaps):.2%}, worst {np.max(gaps):.2%}")


if __name__ == "__main__":
    main()
