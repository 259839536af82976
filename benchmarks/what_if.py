"""How far the what-if is from the whole fleet, and what it takes: ``python benchmarks/what_if.py``. Simulated.

For steady demand of five minutes: the fewest replicas that hold the objective when the whole fleet is simulated
(``score_fleet``) and when a cell of it is (``WhatIf``), how far the statistic is off, and CPU seconds of either.
"""

from __future__ import annotations

import argparse
import itertools
import time

from andes_sglang.arms import Arm
from andes_sglang.objective import QoEObjective
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.outcomes import Goal
from andes_sglang.sim.plan import capacity_rps, score_fleet, smallest_feasible
from andes_sglang.sim.whatif import WhatIf
from andes_sglang.workload import SyntheticWorkload, mean_length, readers_of
from benchmarks.lengths import CHAT, LONG_ANSWERS
from benchmarks.markdown import header, row

CASES = {
    "L4, chat": ("l4-llama-3.1-8b", *CHAT),
    "A100-13B, chat": ("a100-40gb-llama-2-13b", *CHAT),
    "A100-phi, long answers": ("a100-40gb-phi-3-mini", *LONG_ANSWERS),
    "H100-8B, chat": ("h100-llama-3.1-8b", *CHAT),
}


def compare(case: str, policy_name: str, load: int, seed: int, *, seconds: float, objective: QoEObjective) -> str:
    """One row: the same demand asked of the what-if, then of whole fleets from its answer on."""
    name, prompt, output = CASES[case]
    engine, policy = configure(profiles.load(name).engine, Arm(policy_name))
    rate_rps = load * capacity_rps(engine, mean_length(prompt), mean_length(output))
    requests = list(SyntheticWorkload(case, ((seconds, rate_rps),), prompt, output, readers_of("reading"), seed))
    started_s = time.process_time()
    question = WhatIf(engine, policy, requests, seconds, [Goal(objective)])
    answer = question.fewest(4 * load)
    asked_s = time.process_time()
    whole: dict[int, float] = {}

    def holds(n: int) -> bool:
        whole[n] = objective.of(
            score_fleet([engine] * n, policy, requests, decision_interval_s=question.decision_interval_s)[0]
        )
        return whole[n] >= objective.value

    found = smallest_feasible(holds, answer or 4 * load, 4 * load)
    played = {n: p.values[0] for n, p in question.simulated.items() if n in whole and p.exact}
    off = ", ".join(f"{value - whole[n]:+.3f}" for n, value in played.items() if value is not None)
    return row(case, policy_name, load, seed, found, answer, off or "-", f"{time.process_time() - asked_s:.1f}",
               f"{asked_s - started_s:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--policies", default="stock,andes", help="comma-separated; default: %(default)s")
    parser.add_argument("--sizes", default="4,12,50", help="replicas that the demand would keep busy")
    parser.add_argument("--seconds", type=float, default=300.0, help="of steady demand; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the demand; default: %(default)s")
    parser.add_argument("--objective", default="share(0.95)>=0.95", help="default: %(default)s")
    args = parser.parse_args()
    try:
        objective = QoEObjective.parse(args.objective)
    except ValueError as error:
        parser.error(f"--objective: {error}")
    for case in args.cases.split(";"):
        if case not in CASES:
            parser.error(f"--cases: {case!r} is not known; choose of {'; '.join(CASES)}")
    print(f"simulated, {args.seconds:g} s of steady demand, {objective}\n")
    head = header(
        "case", "policy", "load", "seed", "fleet", "what-if", "statistic off by", "fleet, CPU s", "what-if, CPU s"
    )
    print("\n".join(head))
    for case, policy, load in itertools.product(args.cases.split(";"), args.policies.split(","), args.sizes.split(",")):
        for seed in range(1, args.seeds + 1):
            print(compare(case, policy, int(load), seed, seconds=args.seconds, objective=objective), flush=True)


if __name__ == "__main__":
    main()
