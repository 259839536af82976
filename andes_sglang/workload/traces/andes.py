"""Our own format: JSON lines or CSV, one request a row, the only one that says what its readers expect.

Required: ``arrival_s``, ``prompt_tokens``, ``output_tokens``. Optional: ``ttft_s``, ``tds``, ``weight``, ``yield``,
``expected_tokens``, ``max_tokens``, ``session_id``, ``blocks``. Descriptive columns, not replayed: ``turn``, ``client``,
``reason_tokens``, ``src_row`` and every name that starts with ``x_``; any other column is an error.
"""

from __future__ import annotations

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.workload.base import StatedTarget, WorkloadError
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat

__all__ = ["ANDES"]

REPLAYED = frozenset(
    ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tds", "weight", "yield", "expected_tokens", "max_tokens",
     "session_id", "blocks")
)  # fmt: skip
DESCRIPTIVE = frozenset(("turn", "client", "reason_tokens", "src_row"))


def _parse(row: Row) -> TracedRequest:
    for name in row.fields.keys() - REPLAYED - DESCRIPTIVE:
        if not str(name).startswith("x_"):
            raise row.error(str(name), f"unknown; known are {', '.join(sorted(REPLAYED))}, and names that start with x_")
    stated = StatedTarget(*(row.number(name, 0) if row.states(name) else None for name in StatedTarget._fields))
    weight = row.number("weight", 0) if row.states("weight") else 1.0
    if not weight:
        raise row.error("weight", "must be > 0")
    default = QoETarget()
    return TracedRequest(
        RequestSpec(
            row.number("arrival_s", 0),
            row.tokens("prompt_tokens"),
            row.tokens("output_tokens"),
            target=_target(
                row,
                default.ttft_s if stated.ttft_s is None else stated.ttft_s,
                default.tds if stated.tds is None else stated.tds,
            ),
            session_id=str(row.fields["session_id"]) if row.states("session_id") else None,
            blocks=_blocks(row),
            max_tokens=row.tokens("max_tokens") if row.states("max_tokens") else None,
            weight=weight,
            yields=row.flag("yield") if row.states("yield") else False,
            expected_tokens=row.tokens("expected_tokens") if row.states("expected_tokens") else None,
        ),
        stated,
    )


def _target(row: Row, ttft_s: float, tds: float) -> QoETarget:
    try:
        return QoETarget(ttft_s, tds)
    except ValueError as error:
        raise WorkloadError(f"{row.place}, field {'ttft_s' if str(error).startswith('ttft') else 'tds'}: {error}") from None


def _blocks(row: Row) -> tuple[int, ...]:
    """Run-length coded ``[[first, count], ...]``; in a CSV's cell left empty."""
    runs = row.fields.get("blocks") or []
    try:
        return tuple(i for start, count in runs for i in range(int(start), int(start) + int(count)))
    except (TypeError, ValueError):
        raise row.error("blocks", "expected [[start, count], ...]") from None


ANDES = TraceFormat("andes", "arrival_s", _parse)
