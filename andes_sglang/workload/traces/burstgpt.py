"""BurstGPT traces (Wang et al., arXiv 2401.17644).

CSV: ``Timestamp`` (seconds), ``Request tokens``, ``Response tokens``; other columns are not read. A row with 0 response
tokens is a failed request and is left out.
"""

from __future__ import annotations

from andes_sglang.request import RequestSpec
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat

__all__ = ["BURSTGPT"]


def _parse(row: Row) -> TracedRequest | None:
    output_tokens = row.tokens("Response tokens", 0)
    if not output_tokens:
        return None
    return TracedRequest(RequestSpec(row.number("Timestamp", 0), row.tokens("Request tokens"), output_tokens))


BURSTGPT = TraceFormat("burstgpt", "Response tokens", _parse)
