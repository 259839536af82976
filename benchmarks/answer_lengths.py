"""How much of an answer's length is known beforehand: ``python benchmarks/answer_lengths.py TRACES``.

Each recorded trace is gone through once in order: the length of every answer is estimated, then learned. The first tenth is
for learning only. Kendall's tau compares the order of estimates and lengths; ``covered`` is the share of answers below their
90 % quantile; ``median error`` is of estimate over length, either way. ``ranked``: by the order that ``ltr`` learns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau

from andes_sglang.answer_order import AnswerOrder
from andes_sglang.lengths import Asked, LengthEstimator, length_keys

RANKED = "both, ranked"
TRACES = (
    "servegen_r1_surge_rt", "servegen_r1_day_c48", "servegen_mlarge_day1_c48", "azure23_conv_steady", "azure23_conv_ramp",
    "azure23_code_bursty",
)  # fmt: skip
KNOWING = ("nothing", "prompt length", "both", RANKED)


class Row(NamedTuple):
    tau: float
    error: float
    covered: float
    microseconds: float


def keys_of(row: dict[str, Any], knowing: str) -> tuple[bytes, ...]:
    tenant = row.get("client") if knowing == "both" else None
    keys = length_keys(tenant=tenant, class_name="all", prompt_tokens=row["prompt_tokens"])
    return keys[:1] if knowing == "nothing" else keys


def follow(rows: list[dict[str, Any]], knowing: str) -> Row:
    lengths = LengthEstimator()
    guessed, true, below = [], [], []
    started = time.perf_counter()
    for row in rows:
        keys = keys_of(row, knowing)
        guess = lengths.estimate(keys)
        guessed.append(guess.median_tokens)
        true.append(max(1, row["output_tokens"]))
        below.append(true[-1] <= guess.quantile(0.9))
        lengths.learn(keys, row["output_tokens"])
    took = time.perf_counter() - started
    covered = float(np.mean(below[len(rows) // 10 :]))
    return row_of(guessed, true, covered, 1e6 * took / len(rows))


def ranked(rows: list[dict[str, Any]]) -> Row:
    """By what ``ltr`` learns. It has no quantiles."""
    order, guessed, true = AnswerOrder(), [], []
    started = time.perf_counter()
    for row in rows:
        asked = Asked(row["prompt_tokens"], tenant=row.get("client"))
        guessed.append(order.expected_tokens(asked))
        true.append(max(1, row["output_tokens"]))
        order.learn(asked, row["output_tokens"], finished=True)
    took = time.perf_counter() - started
    return row_of(guessed, true, math.nan, 1e6 * took / len(rows))


def row_of(guessed: list[float], true: list[int], covered: float, microseconds: float) -> Row:
    skip = len(true) // 10
    tau = float(kendalltau(guessed[skip:], true[skip:])[0])
    off = np.abs(np.log(np.array(guessed[skip:]) / np.array(true[skip:])))
    return Row(tau, math.exp(float(np.median(off))), covered, microseconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, help="folder of the recorded traces, NAME.jsonl.gz")
    args = parser.parse_args()
    print("| trace | answers | known | tau | median error | covered | us an answer |")
    print("|---|---|---|---|---|---|---|")
    for name in TRACES:
        with gzip.open(args.traces / f"{name}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        for knowing in KNOWING:
            if knowing == "both" and "client" not in rows[0]:
                continue
            r = ranked(rows) if knowing == RANKED else follow(rows, knowing)
            print(
                f"| {name} | {len(rows):,} | {knowing} | {r.tau:.2f} | {r.error:.2f}x | {r.covered:.2f} "
                f"| {r.microseconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
