"""Mooncake traces (Qin et al., FAST 2025; FAST25-release/traces/*.jsonl).

JSON lines: ``timestamp`` (milliseconds), ``input_length``, ``output_length``, ``hash_ids`` (prefix blocks of 512 tokens). An
answer of 0 tokens counts as 1. The clock ticks every 3 s: arrivals are spread inside the tick.
"""

from __future__ import annotations

from andes_sglang.request import RequestSpec
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat

__all__ = ["MOONCAKE"]

TICK_S = 3.0
"""Between two values of ``timestamp`` (seen in the released traces: every one is a multiple of 3000 ms)."""


def _parse(row: Row) -> TracedRequest:
    ids = row.fields.get("hash_ids", [])
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise row.error("hash_ids", "expected a list of whole numbers")
    return TracedRequest(
        RequestSpec(
            row.number("timestamp", 0) / 1000,
            row.tokens("input_length"),
            max(1, row.tokens("output_length", 0)),
            blocks=tuple(ids),
        )
    )


MOONCAKE = TraceFormat("mooncake", "input_length", _parse, tick_s=TICK_S)
