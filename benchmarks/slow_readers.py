"""Readers who cannot follow: what they cost the others (simulated; :mod:`benchmarks.slow_links` has real links).

A burst of 1.25 C of which every tenth request has a slow reader. Half of those take one token a
second, the links of the others stand still for ten seconds, once, from the third second of their answer on. What a link
takes goes through the gateway's own :class:`andes_api.receipt.Receipt`, sampled twice a second, and the engine is told what
it says. Figures are of the other readers alone; a row is the mean of the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from andes_api.receipt import SAMPLE_INTERVAL_S, Receipt
from andes_sglang.arms import Arm
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.replica import Replica
from benchmarks.arguments import listed
from benchmarks.markdown import Lines, header, row
from benchmarks.runs import Case, SimulatedRuns
from benchmarks.settings import SETTINGS

EVENT_BYTES = 300
"""Of one token, as SGLang writes it."""
SLOW_TDS = 1.0
STALL_FROM_S, STALL_S = 3.0, 10.0
LOAD = 1.25
EVERY = 10
"""One request in so many has a slow reader."""
BURST_S = {"cpu": 120.0}
"""Of the settings that have another one than their table."""


@dataclass
class SlowLink:
    """Of one request: how much of what was generated has got through by the last look. rate: tokens/s; None: it stalls."""

    job: Job
    rate: float | None
    receipt: Receipt
    through: float = 0.0
    begun_s: float = -1.0

    def look(self, generated: int, now_s: float) -> None:
        receipt = self.receipt
        if (new := generated - receipt.written.delivered) > 0:
            self.begun_s = now_s if self.begun_s < 0 else self.begun_s
            receipt.wrote(new * EVENT_BYTES)
            receipt.delivered(now_s, new)
        stalls = self.rate is None and 0.0 <= now_s - self.begun_s - STALL_FROM_S < STALL_S
        if self.rate is not None:
            self.through = min(generated, self.through + self.rate * SAMPLE_INTERVAL_S)
        elif not stalls:
            self.through = generated
        owed = (generated - int(self.through)) / max(1, generated)
        receipt.sample(now_s, round(owed * receipt.written_bytes))


Links = Callable[[int], float | bool | None]
"""Of a request by number: False, or the rate of its reader's link, None where it stalls."""


def play(requests: list[RequestSpec], arm: Arm, engine: EngineModel, slow: Links, *, told: bool) -> list[RequestRecord]:
    """The records of ``requests``. told: whether the engine hears of slow readers."""
    engine, factory = configure(engine, arm)
    records: list[RequestRecord] = []
    replica = Replica(engine, factory(), sink=records.append, decision_interval_s=0.1)
    links: dict[str, SlowLink] = {}
    next_look_s, arrivals = 0.0, iter(enumerate(requests))
    coming = next(arrivals, None)
    while coming is not None or replica.open_requests:
        until_s = min(next_look_s, coming[1].arrival_s if coming is not None else next_look_s)
        replica.advance(until_s)
        if coming is not None and coming[1].arrival_s <= until_s:
            number, spec = coming
            job = replica.submit(spec, index=number)
            if (rate := slow(number)) is not False:
                assert not isinstance(rate, bool)
                links[job.rid] = SlowLink(job, rate, Receipt(spec.arrival_s, spec.target))
            coming = next(arrivals, None)
            continue
        next_look_s += SAMPLE_INTERVAL_S
        for rid, link in list(links.items()):
            if rid not in replica.by_rid:
                del links[rid]
                continue
            before = link.receipt.told_tokens
            link.look(replica.generated(link.job), until_s)
            if told and (link.receipt.told_tokens is not None or before is not None):
                replica.hear(link.job, link.receipt.told_tokens)
    return records


def kind_of(number: int) -> float | bool | None:
    if number % EVERY:
        return False
    return SLOW_TDS if number // EVERY % 2 else None


def others(settings: list[str], seeds: int, out: Path) -> Lines:
    """The table."""
    runs = SimulatedRuns(out, None, seeds)
    arm = Arm("andes", ("--enable-mixed-chunk",))
    yield from header("setting", "every tenth reader", "mean QoE of the others", "p5", "TTFT p90, s")
    for name in settings:
        setting = SETTINGS[name]
        engine = profiles.load(setting.profile).engine
        rows: dict[str, list[list[RequestRecord]]] = {}
        for seed in range(seeds):
            case = Case(name, "burst", LOAD, BURST_S.get(name, setting.burst_s), seed, arm)
            requests, since_s, until_s = runs.requests(case)
            without = [spec for number, spec in enumerate(requests) if number % EVERY]
            for title, asked, slow, told in (
                ("is not there", without, lambda _: False, False),
                ("reads like the others", list(requests), lambda _: False, False),
                ("is slow, engine told", list(requests), kind_of, True),
                ("is slow, engine not told", list(requests), kind_of, False),
            ):
                found = play(asked, arm, engine, slow, told=told)
                kept = [r for r in found if since_s <= r.arrival_s < until_s and (asked is without or r.index % EVERY)]
                rows.setdefault(title, []).append(kept)
        for title, drawn in rows.items():
            qoe = [np.array([record.qoe for record in kept]) for kept in drawn]
            ttft = [np.quantile([record.ttft_s for record in kept], 0.9) for kept in drawn]
            means = [float(q.mean()) for q in qoe]
            spread = f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})"
            yield row(
                name, title, spread, f"{np.mean([np.quantile(q, 0.05) for q in qoe]):.3f}", f"{np.mean(ttft):.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--settings", type=listed(SETTINGS), default="cpu,a100-13b", help="engines with their lengths")
    parser.add_argument("--seeds", type=int, default=2, help="draws of arrivals and lengths")
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="where capacities are kept")
    args = parser.parse_args()
    for line in others(args.settings, args.seeds, args.out):
        print(line, flush=True)


if __name__ == "__main__":
    main()
