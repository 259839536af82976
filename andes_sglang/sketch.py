"""Mergeable sketches: counts per bin, so that the distribution of a fleet is the sum of its parts.

Percentiles cannot be averaged; counts can be added. :class:`Sketch` is of scores in [0, 1]: a bin is 0.005 wide, so a
quantile is off by at most that; count and mean are exact, and so are the shares at 0.95 and 0.99, which are edges of bins.
:class:`DurationSketch` is of seconds, in bins of 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

__all__ = ["DurationSketch", "Sketch"]

BINS = 200
SHORTEST_S, LONGEST_S, STEP = 1e-3, 86_400.0, 1.02
"""Seconds that are told apart, and the ratio of one bin's upper edge to that of the one before. What is longer than a day,
or never came, counts as a day."""


class Sketch:
    """Scores in [0, 1]; ``counts[k]`` of them in [k, k + 1) / 200, the last bin holding exactly 1."""

    __slots__ = ("counts", "total")
    last: ClassVar[int] = BINS
    """The highest bin."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0.0

    def add(self, score: float) -> None:
        """One score. Raises ``ValueError`` outside [0, 1]."""
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score must be in [0, 1], got {score!r}")
        self._count(int(score * BINS + 1e-9), score)

    def _count(self, k: int, value: float) -> None:
        self.counts[k] = self.counts.get(k, 0) + 1
        self.total += value

    @staticmethod
    def _shown(k: int) -> float:
        """What stands for the values of a bin: its lower edge, which flatters no score."""
        return k / BINS

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.counts else None

    def quantile(self, q: float) -> float | None:
        """The edge of the bin that holds the ``q`` quantile; None when empty."""
        rank, seen = q * (self.count - 1), 0
        for k in sorted(self.counts):
            seen += self.counts[k]
            if seen > rank:
                return self._shown(k)
        return None

    def share_at_least(self, score: float) -> float | None:
        """Share of scores >= ``score`` (exact where ``score`` is a multiple of 0.005); None when empty."""
        edge = int(score * BINS + 1e-9)
        return sum(n for k, n in self.counts.items() if k >= edge) / self.count if self.counts else None

    @classmethod
    def merged(cls, sketches: Iterable[Self]) -> Self:
        """One sketch of everything that went into ``sketches``. Raises ``TypeError`` for those of another kind."""
        whole = cls()
        for sketch in sketches:
            if type(sketch) is not cls:
                raise TypeError(f"{type(sketch).__name__} cannot be merged into {cls.__name__}")
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
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Back from :meth:`to_dict`. Raises ``ValueError`` naming what is wrong."""
        sketch = cls()
        try:
            for key, n in data["counts"].items():
                k = int(key)
                if not (0 <= k <= cls.last and isinstance(n, int) and n >= 0):
                    raise ValueError(f"counts[{key!r}] = {n!r}")
                sketch.counts[k] = n
            sketch.total = float(data["total"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a sketch: {error!r}") from None
        return sketch


class DurationSketch(Sketch):
    """Seconds; ``counts[k]`` of them in (STEP^(k - 1), STEP^k] milliseconds, the first bin holding all up to one."""

    __slots__ = ()
    last: ClassVar[int] = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(STEP))

    def add(self, score: float) -> None:
        """One duration, in seconds; ``inf`` for what never came. Raises ``ValueError`` for what is none."""
        if not score >= 0.0:
            raise ValueError(f"duration must be seconds >= 0, got {score!r}")
        seconds = min(score, LONGEST_S)
        k = math.ceil(math.log(max(seconds, SHORTEST_S) / SHORTEST_S) / math.log(STEP) - 1e-9)
        self._count(k, seconds)

    @staticmethod
    def _shown(k: int) -> float:
        """The upper edge: no duration is told shorter than it was."""
        return min(LONGEST_S, SHORTEST_S * float(STEP**k)) if k else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As :meth:`Sketch.to_dict`, in seconds."""
        counts = {str(k): n for k, n in sorted(self.counts.items())}
        quantiles = {f"p{100 * q:.0f}": self.quantile(q) for q in (0.5, 0.95, 0.99)}
        return {"counts": counts, "total": self.total, "count": self.count, "mean": self.mean, **quantiles}
