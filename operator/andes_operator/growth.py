"""How fast demand has grown: :class:`GrowthHistory` learns it from rates by the minute, and says what to be ready for.

A sample, each minute, is the mean rate of five minutes over that of the five before. On a recorded reasoning service its 99th
percentile is 2.2, the 99.9th 2.9 to 3.4, and the same for horizons of one to 13 minutes: demand grows in steps, not in
spikes, so one horizon does for all cold starts. Pure.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from andes_operator.headroom import BASE_BINS, BIN_MINUTES, GROWTH, JUMP, Growth

__all__ = ["KEPT_MINUTES", "GrowthHistory"]

KEPT_MINUTES = BASE_BINS * BIN_MINUTES
"""Minutes of rates that the slow base is taken from."""
DAY_MINUTES = 1440
MAX_SAMPLES = 14 * DAY_MINUTES
"""Two weeks; older samples fade."""
QUANTILE = 0.999
"""One of a thousand minutes: an objective is to hold in all of them, and a crowd of a few minutes a day is in one of 300. By
the 99th percentile readers noticed such a daily crowd for two to four minutes (docs/benchmarks/autoscaling.md)."""
MIN_COUNT = 20
"""Requests in five minutes; the growth of fewer is counting noise."""
NEW_SURGE, MIN_SURGE = 3.0, 2.0
"""Ratios. What a service is prepared for before it has a day of samples: of its base, and at most of what is usual for it, so
that it does not order three times the crest of its first ramp. And the least ever."""
USUAL_QUANTILE = 0.25
"""Of all its minutes, what is usual: after an hour half of them may already be the ramp (docs/benchmarks/autoscaling.md)."""
MIN_HIGH_SAMPLES = 300
"""Minutes of high load that its own growth is taken from."""
CAP = 1.2
"""Ratio to the highest five minutes remembered, beyond which no surge is expected."""
BIN_RATIO, MAX_BIN = 1.05, 50
"""Samples are counted in bins of 5 %; ratios up to 1 in the first, from 11.5 on in the last."""


class GrowthHistory:
    """Counts of samples, apart for high load (a quarter above the slow base) and the rest, the highest five minutes of each
    of the last 14 days, requests/s, and how often the first day's minutes had which rate."""

    def __init__(self) -> None:
        self.calm: Counter[int] = Counter()
        self.high: Counter[int] = Counter()
        self.peaks_rps: dict[int, float] = {}
        self.levels: Counter[int] = Counter()

    def add(self, minute: int, minutes_rps: Sequence[float]) -> None:
        """Count the rates up to ``minute`` (since the Unix epoch), the last of which is its own."""
        rates = np.asarray(minutes_rps, dtype=np.float64)
        if len(rates) < BIN_MINUTES:
            return
        if self.levels.total() < DAY_MINUTES and rates[-1] > 0.0:
            self.levels[round(math.log(rates[-1]) / math.log(BIN_RATIO))] += 1
        last, day = float(rates[-BIN_MINUTES:].mean()), minute // DAY_MINUTES
        self.peaks_rps[day] = max(last, self.peaks_rps.get(day, 0.0))
        self.peaks_rps = {d: peak for d, peak in self.peaks_rps.items() if d > day - 14}
        before = rates[-2 * BIN_MINUTES : -BIN_MINUTES]
        if len(before) < BIN_MINUTES or before.mean() * 60.0 * BIN_MINUTES < MIN_COUNT:
            return
        base = float(np.median(rates[:-BIN_MINUTES]))
        counts = self.high if before.mean() > JUMP * base else self.calm
        counts[_bin(last / float(before.mean()))] += 1
        if counts.total() > MAX_SAMPLES:
            halved = {b: n // 2 for b, n in counts.items() if n > 1}
            counts.clear()
            counts.update(halved)

    @property
    def days(self) -> float:
        """Days' worth of samples."""
        return (self.calm.total() + self.high.total()) / DAY_MINUTES

    def growth(self) -> Growth:
        """What to be ready for."""
        high = _quantile(self.high) if self.high.total() >= MIN_HIGH_SAMPLES else GROWTH
        if self.days < 1.0:
            why = f"assumed: {24 * self.days:.0f} of 24 hours of history"
            return Growth(NEW_SURGE, max(GROWTH, high), NEW_SURGE * self._usual_rps(), why)
        seen = _quantile(self.calm)
        why = (
            f"{QUANTILE:.1%} of growth in {self.days:.0f} days" if seen > MIN_SURGE else "the least, history is calmer"
        )
        return Growth(
            max(MIN_SURGE, seen), max(GROWTH, high), CAP * max(self.peaks_rps.values(), default=math.inf), why
        )

    def _usual_rps(self) -> float:
        """Of the first day's minutes, ``USUAL_QUANTILE``; inf for less than half an hour."""
        if self.levels.total() < KEPT_MINUTES:
            return math.inf
        return float(BIN_RATIO ** float(np.quantile([*self.levels.elements()], USUAL_QUANTILE)))

    def to_json(self) -> str:
        return json.dumps({
            "binRatio": BIN_RATIO, "calm": _ordered(self.calm), "high": _ordered(self.high), "levels": _ordered(self.levels),
            "peaks": {day: float(f"{peak:.4g}") for day, peak in sorted(self.peaks_rps.items())},
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> GrowthHistory:
        """Inverse of :meth:`to_json`. Raises ``ValueError`` for anything else."""
        made = cls()
        try:
            said = json.loads(text)
            if said["binRatio"] != BIN_RATIO:
                raise ValueError(f"binRatio {said['binRatio']!r}")
            made.calm, made.high = _counts(said["calm"]), _counts(said["high"])
            made.levels = Counter({int(number): int(count) for number, count in said["levels"].items()})
            made.peaks_rps = {int(day): _rate(peak) for day, peak in said["peaks"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a history of growth: {error!r}") from None
        return made


def _bin(ratio: float) -> int:
    return max(0, min(MAX_BIN, math.ceil(math.log(max(ratio, 1.0)) / math.log(BIN_RATIO) - 1e-9)))


def _quantile(counts: Counter[int]) -> float:
    """The upper edge of the bin that ``QUANTILE`` of the samples reach."""
    reached, total = 0, counts.total()
    for number in sorted(counts):
        reached += counts[number]
        if reached >= QUANTILE * total:
            return float(BIN_RATIO**number)
    return 1.0


def _ordered(counts: Counter[int]) -> dict[int, int]:
    return dict(sorted(counts.items()))


def _counts(said: Mapping[str, Any]) -> Counter[int]:
    counts = Counter({int(number): int(count) for number, count in said.items()})
    if any(not 0 <= number <= MAX_BIN or count < 0 for number, count in counts.items()):
        raise ValueError(f"counts {said!r}")
    return counts


def _rate(said: Any) -> float:
    rate = float(said)
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"peak {said!r}")
    return rate
