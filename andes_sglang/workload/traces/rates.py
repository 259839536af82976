"""Rates by window: a CSV with ``window_start_s`` and ``rate_rps``, from which requests are drawn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from andes_sglang.workload.base import WorkloadError
from andes_sglang.workload.synthetic import Rates
from andes_sglang.workload.traces.rows import read_rows

__all__ = ["load_rates"]

MAX_REQUESTS = 10_000_000
"""Of a window: their moments are drawn at once, which takes 80 MB."""


def load_rates(
    path: Path, *, start_s: float = 0.0, duration_s: float | None = None, scale: float = 1.0
) -> Rates | None:
    """Windows ``(duration_s, rate_rps)`` within [start_s, start_s + duration_s); None for a file of another kind.

    scale: rates times this. The last window is as long as the one before it. Raises :class:`WorkloadError`.
    """
    lines = read_rows(path)
    first = next(lines, None)
    if first is None or "rate_rps" not in first.fields:
        return None
    rows = [first, *lines]
    starts_s = [row.number("window_start_s", 0) for row in rows]
    if len(rows) < 2 or any(b <= a for a, b in itertools.pairwise(starts_s)):
        raise WorkloadError(f"{path}, field window_start_s: expected two or more windows in order")
    starts_s.append(2 * starts_s[-1] - starts_s[-2])
    until_s = start_s + (duration_s if duration_s is not None else math.inf)
    cut = [(min(b, until_s) - max(a, start_s), row.number("rate_rps", 0) * scale)
           for row, a, b in zip(rows, starts_s, starts_s[1:])]  # fmt: skip
    kept = tuple((length_s, rate) for length_s, rate in cut if length_s > 0)
    _check(path, kept)
    if not kept or not any(rate for _, rate in kept):
        within = "" if duration_s is None else f" within {duration_s:g} s"
        raise WorkloadError(f"{path}: no request arrives{within} after second {start_s:g}")
    return kept


def _check(path: Path, rates: Rates) -> None:
    for length_s, rate in rates:
        if length_s * rate > MAX_REQUESTS:
            raise WorkloadError(
                f"{path}: {length_s * rate:.3g} requests in a window of {length_s:g} s; they are drawn at once, so "
                f"expected at most {MAX_REQUESTS:,}: shorter windows, or a lower --rate-scale"
            )
