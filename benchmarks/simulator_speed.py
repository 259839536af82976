"""How fast the simulator is, in CPU seconds of one core (other work on the machine does not count).

``python benchmarks/simulator_speed.py``: one replica with about 100 requests running, under several policies; the same for
10 and 100 times as many requests, with the memory it took. ``--day``: a day of a rate trace on 16 replicas.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from andes_sglang.policy import make
from andes_sglang.sim import profile
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.whatif import decision_interval
from andes_sglang.summary import Figures
from andes_sglang.workload import SyntheticWorkload, load_rates, readers_of

CHAT = ("p50=634,p90=1510,p99=3095", "p50=200,p90=399,p99=610")
HUNDRED = ("1000-1200", "400-600")


def run(
    profile_name: str, policy: str, stream: SyntheticWorkload, replicas: int, interval_s: float
) -> tuple[float, float, Figures, Fleet]:
    """CPU seconds, the mean number of open requests, figures and the fleet."""
    figures = Figures()
    fleet = Fleet(
        profile.load(profile_name).engine, lambda: None if policy == "stock" else make(policy), replicas=replicas,
        decision_interval_s=interval_s, sink=figures.add,
    )  # fmt: skip
    began = time.process_time()
    open_s, before_s = 0.0, 0.0
    for spec in stream:
        open_s += fleet.open_requests * (spec.arrival_s - before_s)
        before_s = spec.arrival_s
        fleet.submit(spec)
    fleet.advance()
    return time.process_time() - began, open_s / max(before_s, 1e-9), figures, fleet


def report(label: str, spent_s: float, running: float, figures: Figures, fleet: Fleet) -> None:
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{label:34s} {figures.requests:9,d} {figures.tokens:12,d} {running:8.0f} {fleet.now_s:9.0f} {spent_s:8.2f} "
          f"{fleet.now_s / spent_s:8.0f} {figures.tokens / spent_s / 1e3:8.0f} {peak_mib:6.0f} {figures.mean_qoe:6.3f}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="h100-llama-3.1-8b")
    parser.add_argument("--rate", type=float, default=7.0, help="requests/s at which about 100 run")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, of the shortest run")
    parser.add_argument("--scale", default="1,10,100", help="lengths of the runs under stock, times --seconds")
    parser.add_argument(
        "--day", type=Path, metavar="RATES.csv", help="a day of this trace's rates on 16 replicas instead"
    )
    parser.add_argument("--day-scale", type=float, default=0.01, help="its rates times this; default: %(default)s")
    parser.add_argument("--day-profile", default="l4-llama-3.1-8b")
    parser.add_argument("--day-policy", default="andes")
    args = parser.parse_args()
    head = ("", "requests", "tokens", "running", "sim. s", "CPU s", "x real", "ktok/s", "MiB", "QoE")
    print("{:34s} {:>9s} {:>12s} {:>8s} {:>9s} {:>8s} {:>8s} {:>8s} {:>6s} {:>6s}".format(*head))
    if args.day:
        rates = load_rates(args.day, duration_s=86400.0, scale=args.day_scale)
        if rates is None:
            parser.error(f"--day {args.day}: no rates in there")
        day = SyntheticWorkload("day", rates, *CHAT, readers_of("reading"))
        label = f"{args.day_policy}, a day on 16 replicas"
        report(
            label,
            *run(args.day_profile, args.day_policy, day, 16, decision_interval(profile.load(args.day_profile).engine)),
        )
        return

    def poisson(times: float) -> SyntheticWorkload:
        return SyntheticWorkload("poisson", ((args.seconds * times, args.rate),), *HUNDRED, readers_of("reading"))

    for policy, interval_s in (("stock", 0.0), ("fcfs", 0.0), ("andes", 0.0), ("andes", 0.1)):
        label = policy + (f", asked every {interval_s:g} s" if interval_s else "")
        report(label, *run(args.profile, policy, poisson(5), 1, interval_s))
    for times in (float(t) for t in args.scale.split(",")):
        report(f"stock, {times:g}x", *run(args.profile, "stock", poisson(times), 1, 0.0))


if __name__ == "__main__":
    main()
