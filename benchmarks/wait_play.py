"""The wait for a first token by playing the policy forward: ``python benchmarks/wait_play.py``. Simulated.

What a forecast could know at best: the engine's whole state and its exact costs. For a sample of the requests of
:mod:`benchmarks.waits` the same engine is played on from the moment of their arrival under the same policy; what it cannot
know is drawn: how long the open answers will be, from those that have ended and are no shorter than what is there; who will
come meanwhile, from those who came, at the rate of the last half minute. The forecast is the median of several plays.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.sim.replica import Job, Replica
from andes_sglang.workload import mean_length
from benchmarks.markdown import header, row
from benchmarks.waits import MIXED, SETTINGS, Setting, workload

INTERVAL_S, RATE_WINDOW_S, AHEAD_S = 0.1, 30.0, 240.0
"""Seconds between decisions, of which the rate of arrivals is taken, and for which arrivals are drawn."""


class World:
    """One engine and load. sampled: which requests are forecast; known: of each, the tokens of those then open."""

    def __init__(self, setting: Setting, policy: str, load: float, seed: int) -> None:
        engine = profiles.load(setting.profile).engine
        engine = replace(engine, max_running=setting.max_running or engine.max_running)
        stock, _ = configure(engine, Arm("stock", MIXED))
        rps = load * sustained_tokens_per_s(stock, setting.prompt, setting.output, seed=1) / mean_length(setting.output)
        self.engine, self.make = configure(engine, Arm(policy, MIXED))
        self.requests = workload(setting, rps, seed).requests
        self.waits_s: dict[int, float] = {}

    def replica(self, waits_s: dict[int, float]) -> Replica:
        return Replica(
            self.engine, self.make(), sink=lambda r: waits_s.update({r.index: r.ttft_s}), decision_interval_s=INTERVAL_S
        )

    def live(self, sampled: Sequence[int]) -> dict[int, dict[int, int]]:
        """What comes: ``waits_s`` of all; of each of ``sampled``, tokens of the answers that are open when it arrives."""
        replica, known = self.replica(self.waits_s), {}
        for k, spec in enumerate(self.requests):
            replica.advance(spec.arrival_s)
            if k in sampled:
                known[k] = {job.index: replica.generated(job) for job in replica.by_rid.values()}
            replica.submit(spec)
        replica.advance()
        return known

    def played_s(self, k: int, open_tokens: dict[int, int], rng: np.random.Generator) -> float:
        """Seconds that request ``k`` waits in one play."""
        now_s = self.requests[k].arrival_s
        ended = np.array([r.output_tokens for i, r in enumerate(self.requests[:k]) if i not in open_tokens])
        replica = self.replica({})
        for i, spec in enumerate(self.requests[:k]):
            had = open_tokens.get(i)
            _submit(replica, spec if had is None else replace(spec, output_tokens=_longer(ended, had, rng)))
        job = _submit(replica, self.requests[k])
        since_s = max(0.0, now_s - RATE_WINDOW_S)
        came = [r for r in self.requests[:k] if r.arrival_s >= since_s]
        at_s = now_s
        while not job.generated and at_s < now_s + AHEAD_S and came:
            at_s += rng.exponential((now_s - since_s) / len(came))
            drawn = came[int(rng.integers(len(came)))]
            _submit(replica, replace(drawn, arrival_s=at_s, output_tokens=_longer(ended, 0, rng)))
        if not job.generated:
            replica.advance()
        return float(job.times_s[0][0]) - now_s


def _submit(replica: Replica, spec: RequestSpec) -> Job:
    replica.advance(spec.arrival_s)
    return replica.submit(spec)


def _longer(ended: np.ndarray[tuple[int], np.dtype[np.int64]], tokens: int, rng: np.random.Generator) -> int:
    """The length of an answer that has ``tokens``: of one that has ended, or a third more."""
    left = ended[ended > tokens]
    return int(left[int(rng.integers(len(left)))]) if len(left) else round(1.3 * tokens) + 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[*SETTINGS], help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--policies", default="andes", help="default: %(default)s")
    parser.add_argument("--loads", default="2,4", help="of C; default: %(default)s")
    parser.add_argument("--sample", type=int, default=40, help="requests that are forecast; default: %(default)s")
    parser.add_argument("--plays", type=int, default=3, help="of each; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name in args.settings:
        if name not in SETTINGS:
            parser.error(f"setting {name!r}: not known; choose of {', '.join(SETTINGS)}")
    for text in header("setting", "policy", "load, x C", "first token p50, s", "p90, s", "median error",
                       "where it is above 1 s"):  # fmt: skip
        print(text)
    for name in args.settings:
        for policy in args.policies.split(","):
            for load in args.loads.split(","):
                world, rng = World(SETTINGS[name], policy, float(load), args.seed), np.random.default_rng(args.seed)
                count = len(world.requests)
                sampled = sorted(
                    rng.choice(np.arange(min(count // 4, 100), count), args.sample, replace=False).tolist()
                )
                known = world.live(sampled)
                told = [np.median([world.played_s(k, known[k], rng) for _ in range(args.plays)]) for k in sampled]
                waited = np.array([world.waits_s[k] for k in sampled])
                off, long = np.abs(np.array(told) / waited - 1), waited > 1.0
                print(row(name, policy, load, f"{np.median(waited):.2f}", f"{np.percentile(waited, 90):.1f}",
                          f"{np.median(off):.2f}", f"{np.median(off[long]):.2f}" if long.any() else "-"),
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
