"""``vllm bench serve`` (``benchmark_serving.py``) with ``--save-result --save-detailed``, and SGLang's ``bench_serving`` with
``--output-details``: a JSON object of parallel lists ``input_lens``, ``output_lens``, ``ttfts`` and ``itls`` (seconds),
``errors``, and in newer versions of vLLM ``start_times``. Without the last, requests are taken to have been sent evenly at
``request_rate``.
"""

from __future__ import annotations

import math
from typing import Any

from andes_sglang.workload.measured.answer import Answer

__all__ = ["answers"]

MARKERS = {"duration", "request_throughput"}
"""In each of its results."""
NEEDED = ("input_lens", "output_lens", "ttfts", "itls")


def answers(document: Any) -> list[Answer] | None:
    """As :data:`andes_sglang.workload.measured.TOOLS` says. Of several runs appended to one file, the last."""
    run = document[-1] if isinstance(document, list) and document else document
    if not (isinstance(run, dict) and run.keys() >= MARKERS):
        return None
    if missing := [name for name in NEEDED if name not in run]:
        raise ValueError(f"no {missing[0]}; run it with --save-detailed (vLLM) or --output-details (SGLang)")
    count = len(run["input_lens"])
    if {len(run[name]) for name in NEEDED} != {count}:
        raise ValueError(f"{', '.join(NEEDED)} are not equally long")
    starts_s, errors = run.get("start_times") or _evenly(run, count), run.get("errors") or [""] * count
    return [_answer(*row) for row in zip(starts_s, *(run[name] for name in NEEDED), errors, strict=True)]


def _answer(start_s: float, prompt: int, output: int, ttft_s: float, *rest: Any) -> Answer:
    gaps_s, error = rest
    failed = _last_line(error) or (None if output else "no answer")
    return Answer(float(start_s), int(prompt), int(output), float(ttft_s) if output else None,
                  [float(gap) for gap in gaps_s], error=failed)  # fmt: skip


def _evenly(run: dict[str, Any], count: int) -> list[float]:
    rate_rps = float(run.get("request_rate") or math.inf)
    between_s = 1.0 / rate_rps if math.isfinite(rate_rps) else 0.0
    return [k * between_s for k in range(count)]


def _last_line(error: str) -> str | None:
    lines = str(error or "").strip().splitlines()
    return lines[-1] if lines else None
