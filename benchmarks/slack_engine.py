"""Offline work beside readers on the real engine (CPU): what it costs them, and how many of its tokens are made.

``python benchmarks/slack_engine.py --model out/model`` runs pairs of engines, one pair after the other. The two of a pair
have the same readers at the same time, each on cores of its own, so that other load of a shared machine disturbs both
alike: readers alone, and readers with offline work, under one arm. The last pair has offline work alone. A pair is a line
of ``--out`` that later calls keep; ``--pairs`` runs some of them. The table is of all that is kept. Readers come at
``--rate``, and twice as often in the middle third; offline requests of the same lengths from the start, more than can be
served. A run ends when the last reader has been served.

Arms: ``andes`` with offline work that yields; strict priority of :mod:`benchmarks.slack`; and stock SGLang, first come,
first served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.bench.client import replay
from andes_sglang.bench.compare import shares_of_cores, warm_up
from andes_sglang.bench.engine import Engine
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord
from andes_sglang.workload import SyntheticWorkload, Workload, readers_of
from benchmarks.arguments import listed
from benchmarks.markdown import Lines, header, row
from benchmarks.slack import PATIENT, Priority

PROMPT, OUTPUT = "200-400", "150-250"
READER = QoETarget(1.0, 4.5)
PAIRS = {
    "andes": (("andes", "alone"), ("andes", "both")),
    "priority": (("priority", "alone"), ("priority", "both")),
    "stock": (("stock", "alone"), ("stock", "both")),
    "offline": (("andes", "offline"), ("stock", "offline")),
}
"""Of each line: what runs at the same time, as arm and load."""


class StrictPriority(Priority):
    """The policy of that arm, as an engine makes it."""

    name = "priority"

    def __init__(self) -> None:
        super().__init__(within_budget=False)


POLICIES = {"andes": "andes", "stock": "stock", "priority": "benchmarks.slack_engine:StrictPriority"}


def readers(rate_rps: float, duration_s: float, seed: int) -> Workload:
    third = duration_s / 3.0
    rates = ((third, rate_rps), (third, 2.0 * rate_rps), (third, rate_rps))
    drawn = SyntheticWorkload("readers", rates, PROMPT, OUTPUT, readers_of("reading"), seed)
    return Workload("readers", tuple(replace(spec, target=READER) for spec in drawn))


def offline(rate_rps: float, duration_s: float, seed: int, *, yields: bool) -> Workload:
    drawn = SyntheticWorkload("offline", ((duration_s, rate_rps),), PROMPT, OUTPUT, readers_of("reading"), seed + 100)
    return Workload("offline", tuple(replace(spec, target=PATIENT, yields=yields) for spec in drawn))


async def serve(url: str, arm: str, load: str, given: argparse.Namespace, seed: int) -> dict[str, float]:
    """The figures of one engine: readers' QoE, and tokens/s of offline work within ``--duration``."""
    work = offline(given.offline_rate, given.duration, seed, yields=arm == "andes")
    beside = asyncio.ensure_future(replay(url, work, seed=seed + 100)) if load != "alone" else None
    served: Sequence[RequestRecord] = ()
    if load != "offline":
        served = await replay(url, readers(given.rate, given.duration, seed), seed=seed)
    else:
        await asyncio.sleep(given.duration)
    tokens = 0
    if beside is not None:
        beside.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            tokens = _tokens(await beside, given.duration)
    if failed := [r.error for r in served if r.error]:
        raise SystemExit(f"{arm}, {load}: {len(failed)} of {len(served)} readers were not served: {failed[0]}")
    qoe = np.array([r.qoe for r in served] or [np.nan])
    return {
        "readers": len(served),
        "mean": float(qoe.mean()),
        "p5": float(np.quantile(qoe, 0.05)),
        "reader_tokens_per_s": _tokens(served, given.duration) / given.duration,
        "offline_tokens_per_s": tokens / given.duration,
    }


def _tokens(records: Sequence[RequestRecord], until_s: float) -> int:
    return sum(tokens for record in records for at_s, tokens in record.deliveries if at_s <= until_s)


def run_pair(name: str, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    pair = PAIRS[name]
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                Engine(
                    given.model, POLICIES[arm], ("--max-total-tokens", str(given.pool), "--enable-metrics"),
                    log=given.out / f"engine-{name}-{load}.log", cores=cores,
                )
            )
            for (arm, load), cores in zip(pair, shares_of_cores(len(pair)), strict=True)
        ]  # fmt: skip
        for engine in engines:
            warm_up(engine, 10)
            engine.check_policy()

        async def both() -> list[dict[str, float]]:
            return await asyncio.gather(*(
                serve(engine.url, arm, load, given, seed) for engine, (arm, load) in zip(engines, pair, strict=True)
            ))  # fmt: skip

        figures = asyncio.run(both())
    return {"pair": name, "seed": seed, "rate": given.rate, "figures": figures}


def table(lines: Sequence[dict[str, Any]]) -> Lines:
    yield from header("arm", "runs", "readers alone, mean / p5", "lost, mean (sd)", "p5 (sd)", "readers' tokens/s (sd)",
                      "offline tokens/s (sd)")  # fmt: skip
    for name in PAIRS:
        found = [line["figures"] for line in lines if line["pair"] == name]
        if not found:
            continue
        if name == "offline":
            for k, (arm, _) in enumerate(PAIRS[name]):
                alone = _spread([f[k]["offline_tokens_per_s"] for f in found], 0)
                yield row(f"{arm}, offline work alone", f"{len(found)}", "", "", "", "", alone)
            continue
        mean, p5 = (np.mean([a[key] for a, _ in found]) for key in ("mean", "p5"))
        lost = [_spread([a[key] - b[key] for a, b in found], 3) for key in ("mean", "p5")]
        made = [_spread([b[f"{who}_tokens_per_s"] for _, b in found], 0) for who in ("reader", "offline")]
        yield row(name, f"{len(found)}", f"{mean:.3f} / {p5:.3f}", *lost, *made)


def _spread(values: Sequence[float], digits: int) -> str:
    sd = f" ({np.std(values, ddof=1):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{sd}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--pairs", type=listed(PAIRS), default=[*PAIRS], help="which to run, in this order")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1], help="of the draws; a run of every pair for each")
    parser.add_argument("--rate", type=float, default=0.8, help="readers a second; twice as many in the middle third")
    parser.add_argument("--offline-rate", type=float, default=2.0, help="offline requests a second")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds in which requests come")
    parser.add_argument("--pool", type=int, default=8192, help="KV tokens")
    parser.add_argument("--out", type=Path, default=Path("out/slack-engine"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "pairs.jsonl"
    for seed in given.seeds:
        for name in given.pairs:
            ran = json.dumps(run_pair(name, given, seed))
            with kept.open("a") as file:
                file.write(ran + "\n")
            print(ran, flush=True)
    for line in table([json.loads(ran) for ran in kept.read_text().splitlines()]):
        print(line)


if __name__ == "__main__":
    main()
