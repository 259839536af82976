"""From records to the figures of ``summary.json``, and the table people read.

Symbols: a request's QoE is scored from its deliveries to the client; a failed or shed request scores 0 and counts.
TTFT runs from the scheduled arrival. A stall is time the reader waits inside the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from andes_sglang.bench.client import RequestRecord

__all__ = ["combine", "effective_tokens", "summarise", "table"]

Summary = dict[str, Any]


def effective_tokens(record: RequestRecord) -> float:
    """Tokens a reader can still use: a token counts fully when, as it arrives, the reader's buffer is below 10 % of the
    answer's length, and less and less up to 20 %, where it counts nothing (TokenFlow, arXiv 2510.02758)."""
    stream = type(record)(
        record.index, record.arrival_s, record.sent_s, 0, 0, record.ttft_target_s, record.tds
    ).reader()  # fmt: skip
    total = sum(tokens for _, tokens in record.deliveries)
    worth = 0.0
    for at, tokens in record.deliveries:
        for _ in range(tokens):
            share = stream.buffered_tokens(at) / total
            worth += min(1.0, max(0.0, (0.2 - share) / 0.1))
            stream.deliver(at)
    return worth


def _quantiles(values: Sequence[float], *percents: int) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if len(values) else None for p in percents}


def summarise(records: Sequence[RequestRecord], before: Mapping[str, float], after: Mapping[str, float]) -> Summary:
    """Figures of one run; ``before`` and ``after`` are the engine's counters around it (empty: it has none)."""
    qoe = np.array([r.qoe for r in records])
    readers = [r.reader() for r in records]
    gaps = [b[0] - a[0] for r in records for a, b in zip(r.deliveries, r.deliveries[1:], strict=False)]
    tokens = sum(n for r in records for _, n in r.deliveries)
    last_s = max((r.deliveries[-1][0] for r in records if r.deliveries), default=0.0)
    span_s = max(last_s - min((r.arrival_s for r in records), default=0.0), 1e-9)

    def counted(name: str) -> float | None:
        found = {k: v for k, v in after.items() if k.split("{")[0] == name}
        return sum(v - before.get(k, 0.0) for k, v in found.items()) if found else None

    ours = any(k.startswith("andes_policy_info") for k in after)
    preemptions = (counted("andes_preemptions_total") or 0.0) if ours else None
    return {
        "requests": len(records),
        "failed": sum(r.error is not None for r in records),
        "qoe": {
            "mean": float(qoe.mean()),
            "p5": float(np.percentile(qoe, 5)),
            "share_ge_095": float((qoe >= 0.95).mean()),
            "share_ge_099": float((qoe >= 0.99).mean()),
        },
        "ttft_s": _quantiles([r.ttft_s for r in records], 50, 90, 99),
        "itl_s": _quantiles(gaps, 50, 99),
        "stall_s": {
            "mean": float(np.mean([s.stall_s for s in readers])),
            "longest_p90": float(np.percentile([s.longest_stall_s for s in readers], 90)),
        },
        "tokens_per_s": tokens / span_s,
        "effective_tokens_per_s": sum(effective_tokens(r) for r in records) / span_s,
        "preemptions_per_request": None if preemptions is None else preemptions / len(records),
        "recomputed_tokens": counted("andes_recomputed_tokens_total") if ours else None,
        "retractions": counted("andes_retractions_total") if ours else None,
        "client_lag_s": {"max": max((r.sent_s - r.arrival_s for r in records), default=0.0)},
    }


def combine(runs: Sequence[Summary]) -> Summary:
    """The mean over repeats of every figure, with the repeats themselves and their standard deviation."""
    return {
        **_over(runs, lambda values: float(np.mean(values))),
        "repeats": list(runs),
        "std": _over(runs, lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else None),
    }


def _over(runs: Sequence[Summary], statistic: Any) -> Summary:
    out: Summary = {}
    for key, value in runs[0].items():
        if isinstance(value, dict):
            out[key] = _over([run[key] for run in runs], statistic)
        else:
            values = [run[key] for run in runs if run[key] is not None]
            out[key] = statistic(values) if values else None
    for key in ("requests", "failed"):
        if key in out and out[key] is not None and all(isinstance(run[key], int) for run in runs):
            out[key] = sum(run[key] for run in runs)
    return out


_COLUMNS = (
    ("QoE mean", ("qoe", "mean"), ".3f"),
    ("p5", ("qoe", "p5"), ".3f"),
    (">=0.95", ("qoe", "share_ge_095"), ".0%"),
    ("TTFT p50 s", ("ttft_s", "p50"), ".2f"),
    ("p90 s", ("ttft_s", "p90"), ".2f"),
    ("ITL p99 s", ("itl_s", "p99"), ".2f"),
    ("stall p90 s", ("stall_s", "longest_p90"), ".1f"),
    ("tokens/s", ("tokens_per_s",), ".0f"),
    ("effective", ("effective_tokens_per_s",), ".0f"),
    ("preempt/req", ("preemptions_per_request",), ".2f"),
    ("recomputed", ("recomputed_tokens",), ".0f"),
    ("failed", ("failed",), ".0f"),
)


def cells(summary: Summary) -> list[tuple[str, str]]:
    """Heading and text of every column of the table, with the spread over repeats where there is one."""
    out = []
    for title, path, form in _COLUMNS:
        value: Any = summary
        spread: Any = summary.get("std", {})
        for key in path:
            value = value[key]
            spread = spread.get(key) if isinstance(spread, dict) else None
        text = "-" if value is None else format(value, form)
        if spread is not None and title != "failed" and value is not None:
            text += f" ±{format(spread, form)}"
        out.append((title, text))
    return out


def table(policies: Mapping[str, Summary]) -> str:
    """One line a policy, aligned."""
    rows = [["", *(title for title, _, _ in _COLUMNS)]]
    rows += [[name, *(text for _, text in cells(summary))] for name, summary in policies.items()]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(lines)
