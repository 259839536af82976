"""Recorded workloads, one file a format; columns and examples are in docs/traces.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from andes_sglang.workload.base import StatedTarget, Workload, WorkloadError
from andes_sglang.workload.traces.andes import ANDES
from andes_sglang.workload.traces.azure import AZURE
from andes_sglang.workload.traces.burstgpt import BURSTGPT
from andes_sglang.workload.traces.mooncake import MOONCAKE
from andes_sglang.workload.traces.rows import Row, TracedRequest, TraceFormat, read_rows

__all__ = ["FORMATS", "load_trace"]

FORMATS: dict[str, TraceFormat] = {f.name: f for f in (ANDES, MOONCAKE, AZURE, BURSTGPT)}

MAX_NAMED = 10
"""Wrong rows that an error names."""


def load_trace(path: Path, *, form: str | None = None, seed: int = 0) -> Workload:
    """Read a trace. The format is recognised by its fields unless ``form`` names it.

    Arrivals start at 0. Where the trace's clock ticks (Mooncake: every 3 s), arrivals are spread inside the tick, by
    ``seed``. Raises :class:`WorkloadError` naming file, row and field.
    """
    rows = iter(read_rows(path, whole=False))
    first = next(rows, None)
    if first is None:
        raise WorkloadError(f"{path}: no rows; docs/traces.md has the formats")
    chosen = _recognise(first.whole()) if form is None else FORMATS.get(form)
    if chosen is None:
        raise WorkloadError(f"--format {form!r}: choose one of {', '.join(FORMATS)}")
    parsed = _parse_all(chosen, chain([first], rows))
    traced = [r for r in parsed if r is not None]
    if not traced:
        raise WorkloadError(f"{path}: no row holds a request with an answer")
    if chosen.tick_s:
        rng = np.random.default_rng(seed)
        traced = [
            r._replace(spec=replace(r.spec, arrival_s=r.spec.arrival_s + float(rng.uniform(0, chosen.tick_s))))
            for r in traced
        ]
    traced.sort(key=lambda r: r.spec.arrival_s)
    origin_s = traced[0].spec.arrival_s
    stated = tuple(r.stated for r in traced)
    return Workload(
        path.name,
        tuple(replace(r.spec, arrival_s=r.spec.arrival_s - origin_s) for r in traced),
        stated if any(s != StatedTarget() for s in stated) else (),
        left_out=len(parsed) - len(traced),
    )


def _parse_all(form: TraceFormat, rows: Iterable[Row]) -> list[TracedRequest | None]:
    """Raises :class:`WorkloadError` that names what is wrong in each row, up to ten."""
    parsed, wrong = [], []
    for row in rows:
        try:
            parsed.append(form.parse(row.whole()))
        except WorkloadError as error:
            wrong.append(str(error))
    if len(wrong) > 1:
        more = f"\nand {len(wrong) - MAX_NAMED} rows more" if len(wrong) > MAX_NAMED else ""
        raise WorkloadError(f"{len(wrong)} rows are wrong:\n" + "\n".join(wrong[:MAX_NAMED]) + more)
    if wrong:
        raise WorkloadError(wrong[0])
    return parsed


def _recognise(first: Row) -> TraceFormat:
    for found in FORMATS.values():
        if found.marker in first.fields:
            return found
    known = ", ".join(f"{f.name} ({f.marker})" for f in FORMATS.values())
    raise WorkloadError(f"{first.place}: no known format; looked for the fields of {known}")
