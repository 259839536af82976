"""guidellm's ``benchmarks.json``: ``benchmarks``, each with ``requests`` by how they ended (``successful``, ``incomplete``,
``errored``); times in seconds, on the clock of the machine.

A request says when its first and its last token came (``info.timings``, in older versions beside the counts) and how many
there were: those between are spread evenly. Of several benchmarks in a file, a sweep, all are read, one after the other.
"""

from __future__ import annotations

from typing import Any

from andes_sglang.workload.measured.answer import Answer, answer_tokens

__all__ = ["answers"]

STARTS = ("request_start", "request_start_time", "start_time", "first_request_iteration")
FIRSTS = ("first_output_token_iteration", "first_token_iteration", "first_iteration", "first_token_time")
LASTS = ("last_token_iteration", "last_iteration", "last_token_time")
ENDS = ("request_end", "request_end_time", "end_time")


def answers(document: Any) -> list[Answer] | None:
    """As :data:`andes_sglang.workload.measured.TOOLS` says."""
    if not (isinstance(document, dict) and isinstance(document.get("benchmarks"), list)):
        return None
    found = []
    for benchmark in document["benchmarks"]:
        for ending, requests in benchmark["requests"].items():
            found += [_answer(request, ending) for request in requests or () if _times(request)]
    return found


def _times(request: dict[str, Any]) -> dict[str, float]:
    """Whatever it says of times by name, in seconds; empty: it was never sent."""
    said = {**request, **((request.get("info") or {}).get("timings") or {})}
    known = {name: float(said[name]) for name in (*STARTS, *FIRSTS, *LASTS, *ENDS) if said.get(name) is not None}
    return known if any(name in known for name in STARTS) else {}


def _answer(request: dict[str, Any], ending: str) -> Answer:
    times = _times(request)

    def of(names: tuple[str, ...]) -> float | None:
        return next((times[name] for name in names if name in times), None)

    start_s, first_s, last_s, end_s = of(STARTS), of(FIRSTS), of(LASTS), of(ENDS)
    assert start_s is not None  # noqa: S101 (that is what _times looks for)
    output_tokens = answer_tokens(request.get("output_tokens"))
    gaps_s: list[float] = []
    if first_s is not None and last_s is not None and output_tokens > 1:
        gaps_s = [(last_s - first_s) / (output_tokens - 1)] * (output_tokens - 1)
    return Answer(
        start_s,
        int(request.get("prompt_tokens") or 0),
        output_tokens,
        None if first_s is None else first_s - start_s,
        gaps_s,
        exact=output_tokens <= 2,
        error=None if ending == "successful" else str(request.get("error") or ending),
        duration_s=(end_s or start_s) - start_s,
    )
