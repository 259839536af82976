"""How requests are distributed, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from andes_sglang.report.charts import MAX_POINTS, Band, Series

__all__ = ["BAND", "cdf", "cdf_with_band"]

CONFIDENCE = 0.95
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 % for 1 to 9 degrees of freedom; beyond, the last."""
BAND = (
    "Band: 95 % confidence; over repeats by Student's t at each value, of a single run by the inequality of Dvoretzky, "
    "Kiefer and Wolfowitz, which takes requests as independent."
)


def cdf(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Values in order, and the share of them that are at most that."""
    ordered = sorted(values)
    return ordered, [(k + 1) / len(ordered) for k in range(len(ordered))]


def cdf_with_band(name: str, colour: str, runs: Sequence[Sequence[float]]) -> tuple[Series, Band]:
    """The share of requests with at most a value, over ``runs``, none of them empty."""
    if len(runs) == 1:
        xs, ys = cdf(runs[0])
        half = math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * len(xs)))
        return (name, colour, xs, ys), (colour, xs, [max(0.0, y - half) for y in ys], [min(1.0, y + half) for y in ys])
    pooled = np.sort(np.concatenate([np.asarray(run, dtype=np.float64) for run in runs]))
    at = pooled[np.linspace(0, len(pooled) - 1, min(len(pooled), MAX_POINTS)).astype(np.intp)]
    shares = np.array([np.searchsorted(np.sort(run), at, side="right") / len(run) for run in runs])
    mean = shares.mean(axis=0)
    half_widths = T_95[min(len(runs), len(T_95) + 1) - 2] * shares.std(axis=0, ddof=1) / math.sqrt(len(runs))
    low, high = np.clip(mean - half_widths, 0, 1), np.clip(mean + half_widths, 0, 1)
    return (name, colour, at.tolist(), mean.tolist()), (colour, at.tolist(), low.tolist(), high.tolist())
