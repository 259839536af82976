"""The exact optimum of the scheduling problem, to measure the greedy against (version 2, section 4.1: a 3-D knapsack).

Choose exactly B requests within M KV tokens for the largest total gain. O(N B M): for tests and benchmarks, on small
instances or with KV counted in blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["best_total_gain"]


def best_total_gain(
    gains: npt.NDArray[np.float64], kv_blocks: npt.NDArray[np.int64], capacity_blocks: int, batch: int
) -> float:
    """Largest sum of ``gains`` (N,) over at most ``batch`` rows whose ``kv_blocks`` (N,) sum to at most the capacity."""
    best = np.zeros((batch + 1, capacity_blocks + 1))
    for gain, blocks in zip(gains, kv_blocks, strict=True):
        size = int(blocks)
        if size > capacity_blocks or gain <= 0:
            continue
        for count in range(batch, 0, -1):
            taken = best[count - 1, : capacity_blocks + 1 - size] + gain
            np.maximum(best[count, size:], taken, out=best[count, size:])
    return float(best[batch, capacity_blocks])
