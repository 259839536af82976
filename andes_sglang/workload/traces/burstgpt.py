"""BurstGPT traces (Wang et al., arXiv 2401.17644).

CSV: ``Timestamp`` (seconds), ``Request tokens``, ``Response tokens``; other columns are not read. A row with 0 response
tokens is a failed request; it, and one with 0 request tokens, is left out and counted.
"""

from __future__ import annotations

from andes_sglang.request import RequestSpec
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat

__all__ = ["BURSTGPT"]


def _parse(row: Row) -> TracedRequest | None:
    prompt_tokens, output_tokens = row.tokens("Request tokens", 0), row.tokens("Response tokens", 0)
    if not (prompt_tokens and output_tokens):
        return None
    return TracedRequest(RequestSpec(row.number("Timestamp", 0), prompt_tokens, output_tokens))


BURSTGPT = TraceFormat("burstgpt", "Response tokens", _parse)
