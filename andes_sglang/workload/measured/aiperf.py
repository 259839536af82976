"""AIPerf's ``profile_export.jsonl``: a record a line, ``metadata`` (times in ns), ``metrics`` (each with value and unit) and
``error``. Requests of a warm-up are left out.

``inter_chunk_latency`` has the gap before each chunk; without it, tokens are spread evenly at ``inter_token_latency``.
"""

from __future__ import annotations

from typing import Any

from andes_sglang.workload.measured.answer import Answer, answer_tokens

__all__ = ["answers"]

MARKERS = {"metadata", "metrics"}
"""In each of its lines."""
UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}


def answers(document: Any) -> list[Answer] | None:
    """As :data:`andes_sglang.workload.measured.TOOLS` says."""
    lines = document if isinstance(document, list) else [document]
    if not (lines and all(isinstance(line, dict) and line.keys() >= MARKERS for line in lines)):
        return None
    return [_answer(line) for line in lines if line["metadata"].get("benchmark_phase", "profiling") == "profiling"]


def _answer(line: dict[str, Any]) -> Answer:
    said, metrics, error = line["metadata"], line["metrics"] or {}, line.get("error")
    output_tokens = answer_tokens(_value(metrics, "output_sequence_length") or _value(metrics, "output_token_count"))
    gaps_s, exact = _seconds(metrics, "inter_chunk_latency"), True
    if not gaps_s and output_tokens > 1:
        gaps_s, exact = _seconds(metrics, "inter_token_latency") * (output_tokens - 1), False
    ttft_s = _seconds(metrics, "time_to_first_token")
    if error is not None:
        error = str(error.get("message") or error.get("type") if isinstance(error, dict) else error)
    elif said.get("was_cancelled"):
        error = "cancelled"
    return Answer(
        said["request_start_ns"] * 1e-9,
        int(_value(metrics, "input_sequence_length") or 0),
        output_tokens,
        ttft_s[0] if ttft_s else None,
        gaps_s,
        exact=exact,
        error=error,
        duration_s=(said["request_end_ns"] - said["request_start_ns"]) * 1e-9,
    )


def _value(metrics: dict[str, Any], name: str) -> Any:
    return (metrics.get(name) or {}).get("value")


def _seconds(metrics: dict[str, Any], name: str) -> list[float]:
    """One value or several, in seconds; empty: there is none."""
    value = _value(metrics, name)
    if value is None:
        return []
    unit = metrics[name].get("unit", "ms")
    if unit not in UNITS_S:
        raise ValueError(f"{name} has the unit {unit!r}; known are {', '.join(UNITS_S)}")
    values = value if isinstance(value, list) else [value]
    return [float(one) * UNITS_S[unit] for one in values]
