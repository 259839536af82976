"""Distributions of prompt and answer lengths, as the command line writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from andes_sglang.workload.base import WorkloadError

__all__ = ["Lengths", "mean_length", "parse_lengths"]

Lengths = Callable[[np.random.Generator], int]
"""Draws one length in tokens, at least 1."""
MEAN_OVER_DRAWS = 2000
"""Draws; the mean of lengths with a coefficient of variation of 1 is then within 2 % (standard error)."""


def parse_lengths(text: str) -> Lengths:
    """``200`` constant, ``200-400`` uniform, ``p50=210,p90=431,p99=638`` piecewise log-linear between quantiles.

    Below the lowest quantile given lengths go down to a quarter of it, above the highest up to 1.5 times it. Raises
    :class:`WorkloadError`.
    """
    try:
        return _between_quantiles(text) if "=" in text else _uniform(text)
    except ValueError:
        raise WorkloadError(f"lengths {text!r}: expected N, LOW-HIGH or p50=N,p90=N,p99=N in tokens") from None


def _uniform(text: str) -> Lengths:
    low, _, high = text.partition("-")
    first, last = int(low), int(high or low)
    if not 1 <= first <= last:
        raise ValueError
    return lambda rng: int(rng.integers(first, last + 1))


def _between_quantiles(text: str) -> Lengths:
    points = sorted((float(k.strip().lstrip("p")) / 100, float(v)) for k, v in (p.split("=") for p in text.split(",")))
    quantiles = [0.0, *(q for q, _ in points), 1.0]
    values = [points[0][1] / 4, *(v for _, v in points), points[-1][1] * 1.5]
    if any(q <= 0 or q >= 1 for q, _ in points) or any(b < a or a <= 0 for a, b in itertools.pairwise(values)):
        raise ValueError
    logs = np.log(values)
    return lambda rng: max(1, round(float(np.exp(np.interp(rng.random(), quantiles, logs)))))


def mean_length(text: str) -> float:
    """Mean of the distribution that ``text`` describes, in tokens, over 2000 draws."""
    draw, rng = parse_lengths(text), np.random.default_rng(0)
    return float(np.mean([draw(rng) for _ in range(MEAN_OVER_DRAWS)]))
