"""Our own format: JSON lines or CSV, one request a row, the only one that says what its readers expect.

Required: ``arrival_s``, ``prompt_tokens``, ``output_tokens``. Optional: ``ttft_s``, ``tds``, ``weight``, ``yield``,
``expected_tokens``, ``max_tokens``, ``session_id``, ``blocks``, ``class``, ``tenant``, ``reason_tokens`` (the first of
``output_tokens``, which are not shown). Descriptive columns, not replayed: ``turn``, ``client``, ``src_row`` and every name
that starts with ``x_``; any other column is an error.
"""

from __future__ import annotations

from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.workload.base import StatedTarget, WorkloadError
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat

__all__ = ["ANDES"]

REPLAYED = frozenset(
    ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tds", "weight", "yield", "expected_tokens", "max_tokens",
     "session_id", "blocks", "reason_tokens", "class", "tenant")
)  # fmt: skip
DESCRIPTIVE = frozenset(("turn", "client", "src_row"))
WIRE_NAMES = {"ttft": "ttft_s", "tokens": "expected_tokens"}
"""Fields that a request body names otherwise."""


def _parse(row: Row) -> TracedRequest:
    for name in row.fields:
        if name not in REPLAYED and name not in DESCRIPTIVE and not str(name).startswith("x_"):
            raise row.error(name, f"unknown; known are {', '.join(sorted(REPLAYED))}, and names that start with x_")
    stated = StatedTarget(*(row.number(name, 0) if row.states(name) else None for name in StatedTarget._fields))
    reader = _reader(row, stated)
    return TracedRequest(
        RequestSpec(
            row.number("arrival_s", 0),
            row.tokens("prompt_tokens"),
            row.tokens("output_tokens"),
            reader.target,
            session_id=str(row.fields["session_id"]) if row.states("session_id") else None,
            blocks=_blocks(row),
            max_tokens=row.tokens("max_tokens") if row.states("max_tokens") else None,
            weight=reader.weight,
            yields=reader.yields,
            expected_tokens=reader.expected_tokens,
            reason_tokens=_reason_tokens(row),
            reader_class=str(row.fields["class"]) if row.states("class") else None,
            tenant=str(row.fields["tenant"]) if row.states("tenant") else None,
        ),
        stated,
    )


def _reader(row: Row, stated: StatedTarget) -> ReaderExpectation:
    """What the row says of its reader; the ranges are those of a request body."""
    default = QoETarget()
    weight = row.number("weight", 0) if row.states("weight") else 1.0
    yields = row.flag("yield") if row.states("yield") else False
    expected_tokens = row.tokens("expected_tokens") if row.states("expected_tokens") else None
    try:
        target = QoETarget(
            default.ttft_s if stated.ttft_s is None else stated.ttft_s,
            default.tds if stated.tds is None else stated.tds,
        )
        return ReaderExpectation(target, weight, yields, expected_tokens)
    except ValueError as error:
        name = str(error).split()[0]
        raise WorkloadError(f"{row.place}, field {WIRE_NAMES.get(name, name)}: {error}") from None


def _reason_tokens(row: Row) -> int:
    if not row.states("reason_tokens"):
        return 0
    tokens, output_tokens = row.tokens("reason_tokens", least=0), row.tokens("output_tokens")
    if tokens > output_tokens:
        raise row.error("reason_tokens", f"must be at most output_tokens ({output_tokens})")
    return tokens


def _blocks(row: Row) -> tuple[int, ...]:
    """Run-length coded ``[[first, count], ...]``; in a CSV's cell left empty."""
    runs = row.fields.get("blocks") or []
    try:
        return tuple(i for start, count in runs for i in range(int(start), int(start) + int(count)))
    except (TypeError, ValueError):
        raise row.error("blocks", "expected [[start, count], ...]") from None


ANDES = TraceFormat("andes", "arrival_s", _parse)
