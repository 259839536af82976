"""Azure LLM inference traces (Patel et al., Splitwise, ISCA 2024; AzurePublicDataset).

CSV: ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens``. An answer of 0 tokens counts as 1.
"""

from __future__ import annotations

from andes_sglang.request import RequestSpec
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat

__all__ = ["AZURE"]


def _parse(row: Row) -> TracedRequest:
    return TracedRequest(
        RequestSpec(row.timestamp_s("TIMESTAMP"), row.tokens("ContextTokens"), max(1, row.tokens("GeneratedTokens", 0)))
    )


AZURE = TraceFormat("azure", "ContextTokens", _parse)
