"""How fast the simulator is, in CPU seconds of one core (other work on the machine does not count).

``python benchmarks/simulator_speed.py``: one replica with about 100 requests running, under several policies; the same for
10 and 100 times as many requests, with the memory it took. ``--day``: a day of a rate trace on 16 replicas.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from andes_sglang.arms import Arm
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.whatif import decision_interval
from andes_sglang.summary import Figures
from andes_sglang.workload import SyntheticWorkload, load_rates, readers_of
from benchmarks.lengths import CHAT, Lengths

HUNDRED_RUNNING: Lengths = ("1000-1200", "400-600")
"""Lengths at which 7 requests/s keep about 100 requests running on the default profile."""
DAY_S = 86_400.0
DAY_REPLICAS = 16
TITLES = ("", "requests", "tokens", "running", "sim. s", "CPU s", "x real", "ktok/s", "MiB", "QoE")
WIDTHS = (34, 9, 12, 8, 9, 8, 8, 8, 6, 6)


def measure(
    label: str, workload: SyntheticWorkload, *, profile: str, policy: str, replicas: int = 1, interval_s: float = 0.0
) -> str:
    """A row: size, speed, and memory of the process so far. running: the mean number of open requests."""
    engine, factory = configure(profiles.load(profile).engine, Arm(policy))
    figures = Figures()
    fleet = Fleet(engine, factory, replicas=replicas, decision_interval_s=interval_s, sink=figures.add)
    began_s = time.process_time()
    open_s, before_s = 0.0, 0.0
    for spec in workload:
        open_s += fleet.open_requests * (spec.arrival_s - before_s)
        before_s = spec.arrival_s
        fleet.submit(spec)
    fleet.advance()
    spent_s = time.process_time() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return aligned(
        label, f"{figures.requests:,d}", f"{figures.tokens:,d}", f"{open_s / max(before_s, 1e-9):.0f}", f"{fleet.now_s:.0f}",
        f"{spent_s:.2f}", f"{fleet.now_s / spent_s:.0f}", f"{figures.tokens / spent_s / 1e3:.0f}", f"{peak_mib:.0f}",
        f"{figures.mean_qoe:.3f}",
    )  # fmt: skip


def aligned(label: str, *cells: str) -> str:
    return " ".join(
        [label.ljust(WIDTHS[0]), *(cell.rjust(width) for cell, width in zip(cells, WIDTHS[1:], strict=True))]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="h100-llama-3.1-8b", help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=7.0, help="requests/s at which about 100 run")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, of the shortest run")
    parser.add_argument("--scale", default="1,10,100", help="lengths of the runs under stock, times --seconds")
    parser.add_argument(
        "--day", type=Path, metavar="RATES.csv", help=f"a day of this trace's rates on {DAY_REPLICAS} replicas instead"
    )
    parser.add_argument("--day-scale", type=float, default=0.01, help="its rates times this; default: %(default)s")
    parser.add_argument("--day-profile", default="l4-llama-3.1-8b", help="default: %(default)s")
    parser.add_argument("--day-policy", default="andes", help="default: %(default)s")
    args = parser.parse_args()
    print(aligned(*TITLES))
    if args.day:
        rates = load_rates(args.day, duration_s=DAY_S, scale=args.day_scale)
        if rates is None:
            parser.error(f"--day {args.day}: holds no rates by window (window_start_s, rate_rps)")
        day = SyntheticWorkload("day", rates, *CHAT, readers_of("reading"))
        interval_s = decision_interval(profiles.load(args.day_profile).engine)
        label = f"{args.day_policy}, a day on {DAY_REPLICAS} replicas"
        print(measure(label, day, profile=args.day_profile, policy=args.day_policy, replicas=DAY_REPLICAS,
                      interval_s=interval_s))  # fmt: skip
        return

    def poisson(times: float) -> SyntheticWorkload:
        rates = ((args.seconds * times, args.rate),)
        return SyntheticWorkload("poisson", rates, *HUNDRED_RUNNING, readers_of("reading"))

    for policy, interval_s in (("stock", 0.0), ("fcfs", 0.0), ("andes", 0.0), ("andes", 0.1)):
        label = policy + (f", asked every {interval_s:g} s" if interval_s else "")
        print(measure(label, poisson(5), profile=args.profile, policy=policy, interval_s=interval_s), flush=True)
    for times in (float(t) for t in args.scale.split(",")):
        print(measure(f"stock, {times:g}x", poisson(times), profile=args.profile, policy="stock"), flush=True)


if __name__ == "__main__":
    main()
