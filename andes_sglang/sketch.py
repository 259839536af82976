"""A mergeable sketch of scores in [0, 1]: counts per bin, so that the distribution of a fleet is the sum of its parts.

Percentiles cannot be averaged; counts can be added. A bin is 0.005 wide, so a quantile is off by at most that, while
count and mean are exact, and so are the shares at 0.95 and 0.99, which are edges of bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Sketch"]

BINS = 200


class Sketch:
    """Scores in [0, 1]; ``counts[k]`` of them in [k, k + 1) / 200, the last bin holding exactly 1."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0.0

    def add(self, score: float) -> None:
        """One score. Raises ``ValueError`` outside [0, 1]."""
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score must be in [0, 1], got {score!r}")
        k = int(score * BINS + 1e-9)
        self.counts[k] = self.counts.get(k, 0) + 1
        self.total += score

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.counts else None

    def quantile(self, q: float) -> float | None:
        """The lower edge of the bin that holds the ``q`` quantile; None when empty."""
        rank, seen = q * (self.count - 1), 0
        for k in sorted(self.counts):
            seen += self.counts[k]
            if seen > rank:
                return k / BINS
        return None

    def share_at_least(self, score: float) -> float | None:
        """Share of scores >= ``score`` (exact where ``score`` is a multiple of 0.005); None when empty."""
        edge = int(score * BINS + 1e-9)
        return sum(n for k, n in self.counts.items() if k >= edge) / self.count if self.counts else None

    @classmethod
    def merged(cls, sketches: Iterable[Sketch]) -> Sketch:
        """One sketch of everything that went into ``sketches``."""
        whole = cls()
        for sketch in sketches:
            whole.total += sketch.total
            for k, n in sketch.counts.items():
                whole.counts[k] = whole.counts.get(k, 0) + n
        return whole

    def to_dict(self) -> dict[str, Any]:
        """As JSON: ``{"counts": {"bin": count}, "total": sum}`` and, to be read, figures that must not be averaged."""
        return {
            "counts": {str(k): n for k, n in sorted(self.counts.items())},
            "total": self.total,
            "count": self.count,
            "mean": self.mean,
            "p5": self.quantile(0.05),
            "p50": self.quantile(0.5),
            "share_095": self.share_at_least(0.95),
            "share_099": self.share_at_least(0.99),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sketch:
        """Back from :meth:`to_dict`. Raises ``ValueError`` naming what is wrong."""
        sketch = cls()
        try:
            for key, n in data["counts"].items():
                k = int(key)
                if not (0 <= k <= BINS and isinstance(n, int) and n >= 0):
                    raise ValueError(f"counts[{key!r}] = {n!r}")
                sketch.counts[k] = n
            sketch.total = float(data["total"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a sketch: {error!r}") from None
        return sketch
