"""What other benchmarks have measured, request by request, one tool a file: to be scored, or replayed as a trace.

measured = load_measured(Path("profile_export.jsonl"), QoETarget(1.0, 4.8))
measured.records          as andes bench would have kept them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.workload.base import Workload, WorkloadError
from andes_sglang.workload.measured import aiperf, guidellm, vllm
from andes_sglang.workload.measured.answer import Answer
from andes_sglang.workload.traces.rows import read_document, rows_of

__all__ = ["TOOLS", "Measured", "load_measured"]

TOOLS: dict[str, Callable[[Any], list[Answer] | None]] = {
    "vllm": vllm.answers, "guidellm": guidellm.answers, "aiperf": aiperf.answers,
}  # fmt: skip
"""By name: the answers in a document, which is an object, or a list of the objects of its lines; None: of another tool.
Raises ``ValueError``, ``KeyError``, ``TypeError``, ``AttributeError`` or ``OverflowError`` where it is this tool's and lacks
what is needed, or holds something else in its place."""


@dataclass(frozen=True, slots=True)
class Measured:
    """records: in order of arrival, from second 0. tool: which benchmark measured them. exact: each chunk has its own time;
    otherwise tokens after the first are spread evenly, and stalls inside an answer cannot be seen."""

    name: str
    tool: str
    records: tuple[RequestRecord, ...]
    exact: bool

    def workload(self) -> Workload:
        """Arrivals and lengths, to be replayed: of those that have an answer."""
        requests = tuple(
            RequestSpec(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in self.records if r.output_tokens > 0
        )
        return Workload(self.name, requests, left_out=len(self.records) - len(requests))


def load_measured(path: Path, target: QoETarget) -> Measured | None:
    """The results of a benchmark in ``path``; None for a file of another kind. target: of every reader. Raises
    :class:`WorkloadError` naming tool and what is missing."""
    document = read_document(path)
    if isinstance(document, str) and document.lstrip().startswith("{"):
        document = _lines(path, document)
    for tool, answers in TOOLS.items():
        try:
            found = answers(document)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            if isinstance(error, AttributeError | TypeError):
                what = f"a value of another kind than {tool} writes"
            raise WorkloadError(f"{path}: results of {tool} that cannot be read: {what}") from None
        if found is not None:
            return _measured(path, tool, found, target)
    return None


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    """The objects of its lines; none where the first is no tool's: traces can be long."""
    rows = rows_of(path, text)
    first = next(rows).fields
    if any(markers <= first.keys() for markers in (aiperf.MARKERS, vllm.MARKERS)):
        return [first, *(row.fields for row in rows)]
    return []


def _measured(path: Path, tool: str, found: list[Answer], target: QoETarget) -> Measured:
    if not found:
        raise WorkloadError(f"{path}: results of {tool} without a request")
    found = sorted(found, key=lambda answer: answer.start_s)
    origin_s = found[0].start_s
    records = tuple(answer.record(k, origin_s, target) for k, answer in enumerate(found))
    return Measured(path.name, tool, records, all(answer.exact for answer in found))
