"""What drafts are worth, by who reads: docs/benchmarks/speculation.md.

``python benchmarks/speculation.py`` prints a row per engine, readers, load and arm; everything is simulated, acceptance too.
Load is relative to C, what stock SGLang without drafts sustains. A request keeps its pace where its mean time between tokens
is at most its reader's. ``--page`` writes the table into the page; answers are kept under ``--out`` and reused.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.plan import play_fleet, sustained_tokens_per_s
from andes_sglang.workload import SyntheticWorkload, mean_length, readers_of
from benchmarks.lengths import CHAT
from benchmarks.markdown import Lines, header, replace_table, row

Readers = tuple[tuple[float, QoETarget], ...]
HOST = ("--preemption-mode", "offload")
ARMS = {
    "no drafts, mixed chunks": Arm("andes", ("--enable-mixed-chunk", *HOST)),
    "no drafts": Arm("andes", HOST),
    "3 for every request": Arm("andes", (*HOST, "--drafts", "3")),
    "by reader": Arm("andes", (*HOST, "--drafts", "readers")),
}
"""SGLang does not mix chunks under speculative decoding."""
READERS: dict[str, Readers] = {
    "people": readers_of("reading", tds=None),
    "agents": ((1.0, QoETarget(1.0, 60.0)),),
    "60 / 20 / 20 %": ((0.6, QoETarget(1.0, 50.0)), (0.2, QoETarget(1.0, 20.0)), (0.2, QoETarget(1.0, 6.7))),
}
"""The last is AdaServe's mix: programs that complete code, chat at 50 ms a token, summaries at 150 ms."""
ENGINES = {"h100x4-llama-3.1-70b": list(READERS), "h100-llama-3.1-8b": ["people", "agents"]}
LOADS = (0.4, 1.0)
DURATION_S = 60.0
SEEDS = (1, 2)


def figures(engine_name: str, readers: str, load: float, arm: str) -> dict[str, Any]:
    """Means over seeds, and each seed's QoE."""
    loaded = profiles.load(engine_name)
    stock, _ = configure(loaded.engine, Arm("stock"))
    engine, policy = configure(loaded.engine, ARMS[arm])
    rate_rps = load * sustained_tokens_per_s(stock, *CHAT, seed=1) / mean_length(CHAT[1])
    qoe: list[float] = []
    kept: list[float] = []
    rates: list[float] = []
    for seed in SEEDS:
        records: list[RequestRecord] = []
        drawn = SyntheticWorkload("steady", ((DURATION_S, rate_rps),), *CHAT, READERS[readers], seed)
        play_fleet([engine], policy, drawn, records.append, decision_interval_s=0.1)
        qoe.append(float(np.mean([r.qoe for r in records])))
        paces = [(r.token_times_s[-1] - r.token_times_s[0]) / max(1, r.output_tokens - 1) * r.tds for r in records]
        kept.append(float(np.mean(np.array(paces) <= 1.0)))
        rates.append(sum(r.output_tokens for r in records) / max(r.end_s for r in records))
    return {"qoe": qoe, "kept": float(np.mean(kept)), "tokens_per_s": float(np.mean(rates)), "rate_rps": rate_rps}


def rows(out: Path, engines: Sequence[str]) -> Lines:
    yield from header(
        "engine", "readers", "load, x C", "drafts", "mean QoE, least to most", "keep their pace", "tokens/s"
    )
    out.mkdir(parents=True, exist_ok=True)
    for name in engines:
        for readers, load, arm in itertools.product(ENGINES[name], LOADS, ARMS):
            file = out / f"{name}-{readers.replace('/', '')}-{load}-{arm}.json".replace(" ", "_")
            if not file.exists():
                file.write_text(json.dumps(figures(name, readers, load, arm)))
            found = json.loads(file.read_text())
            qoe = found["qoe"]
            yield row(name, readers, load, arm, f"{np.mean(qoe):.3f} ({min(qoe):.3f} to {max(qoe):.3f})",
                      f"{found['kept']:.0%}", f"{found['tokens_per_s']:.0f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="*", default=[], metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("--out", type=Path, default=Path("out/speculation"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    text = "\n".join(rows(args.out, args.engines or list(ENGINES)))
    print(text)
    if args.page is not None:
        replace_table(args.page, "speculation", text)


if __name__ == "__main__":
    main()
