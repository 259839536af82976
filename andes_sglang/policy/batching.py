"""Which batch sizes are worth trying, and who runs at each: the packing of Andes (arXiv 2404.16283v2, section 4.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from andes_sglang.state import SchedulerState

__all__ = ["batch_sizes", "largest_batch", "packed_rows"]

Array = npt.NDArray[np.float64]


def largest_batch(state: SchedulerState, context: Array) -> int:
    """How many of the shortest contexts, in KV tokens, shape (N,), fit in the pool; at least 1."""
    fit = int(np.searchsorted(np.cumsum(np.sort(context)), state.pool_tokens, side="right"))
    return max(1, min(state.max_running, fit))


def batch_sizes(state: SchedulerState, most: int, mean_context: float, candidates: int) -> list[int]:
    """At most ``candidates`` sizes, ascending, from the largest batch that outpaces the fastest reader to ``most``."""
    fastest_s = 1.0 / float(state.requests.readers.tds.max())
    fixed_s = state.latency.decode_s(0, 0)
    request_s = max(state.latency.decode_s(1, mean_context) - fixed_s, 1e-12)
    least = int(np.clip((fastest_s - fixed_s) / request_s, 1, most))
    return sorted({int(b) for b in np.linspace(least, most, candidates)})


def packed_rows(density: Array, context: Array, pool_tokens: float, batch: int) -> npt.NDArray[np.intp]:
    """Rows that run: by descending ``density`` up to ``batch`` of them, or to the first that the pool cannot hold."""
    rows = np.arange(len(density))
    if batch < len(density):  # sorting all takes five times as long
        rows = np.flatnonzero(density >= np.partition(density, -batch)[-batch])
    best = rows[np.argsort(-density[rows], kind="stable")][:batch]
    return best[np.cumsum(context[best]) <= pool_tokens]
