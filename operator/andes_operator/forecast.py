"""Forecast of demand at the time when a pod that is started now would serve: :func:`forecast`.

With two days of history a Theta model with a daily season (statsmodels); before that the trend of the last minutes, as far as
it is certain. On the ServeGen rates the seasonal model halves the trend's error 20 and 30 minutes ahead
(docs/decisions/2026-11-21-what-if-and-forecast.md). Never below the present rate: present readers have to be served too, and
scaling down waits for stabilisation anyway.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["BIN_S", "DAY_BINS", "DemandForecast", "DemandHistory", "forecast", "seasonal_rps", "trend_rps"]

BIN_S = 600.0
"""Seconds of a bin of the history: a quarter of an hour would miss steep mornings, a minute is counting noise."""
DAY_BINS = 144
MAX_BINS = 14 * DAY_BINS
"""Two weeks; 40 kB of JSON, well below a ConfigMap's 1 MiB."""
SEASONAL_BINS = 2 * DAY_BINS
"""The least that a daily season can be fitted to."""
MIN_KNOWN_SHARE = 0.9
"""Of the bins; with more gaps, interpolation makes up too much of the season."""
TREND_BIN_S = 30.0
MIN_TREND_BINS, MAX_TREND_BINS = 4, 20
"""Bins of 30 s that a trend is fitted to: two minutes to ten."""


@dataclass(frozen=True, slots=True)
class DemandForecast:
    """rate_rps: the highest expected between now and ``horizon_s`` from now. method: where it comes from, ``seasonal``,
    ``trend`` or ``present``."""

    rate_rps: float
    horizon_s: float
    method: str


class DemandHistory:
    """Requests/s in bins of ten minutes, at most two weeks of them; a bin without data is NaN.

    first_bin: number of the first bin since the Unix epoch.
    """

    def __init__(self, first_bin: int = 0, rates_rps: Sequence[float] = ()) -> None:
        self.first_bin = first_bin
        self.rates_rps = list(rates_rps)
        self._weights = 0.0
        self._open: int | None = None

    def add(self, now_s: float, rate_rps: float, seconds: float) -> bool:
        """Count a rate observed over the last ``seconds`` in its bin's mean. True when a bin was
        begun: the time to save the history."""
        at = int(now_s // BIN_S)
        if not self.rates_rps or self.first_bin > at:  # nothing is known, or nothing of the past
            self.first_bin, self.rates_rps = at, []
        behind = at - (self.first_bin + len(self.rates_rps) - 1)
        if behind < 0 or not (math.isfinite(rate_rps) and rate_rps >= 0 and seconds > 0):
            return False
        self.rates_rps += [math.nan] * min(behind, MAX_BINS)
        dropped = max(0, len(self.rates_rps) - MAX_BINS)
        self.rates_rps = self.rates_rps[dropped:]
        self.first_bin = at - len(self.rates_rps) + 1
        begun = at != self._open
        if begun:
            self._open, self._weights = at, 0.0
        self._weights += seconds
        old = self.rates_rps[-1] if self._weights > seconds and not math.isnan(self.rates_rps[-1]) else rate_rps
        self.rates_rps[-1] = old + (rate_rps - old) * seconds / self._weights
        return begun

    def to_json(self) -> str:
        rates = [None if math.isnan(rate) else float(f"{rate:.4g}") for rate in self.rates_rps]
        return json.dumps({"binSeconds": BIN_S, "firstBin": self.first_bin, "requestsPerSecond": rates})

    @classmethod
    def from_json(cls, text: str) -> DemandHistory:
        """Inverse of :meth:`to_json`. Raises ``ValueError`` for anything else."""
        try:
            data = json.loads(text)
            if data["binSeconds"] != BIN_S:
                raise ValueError(f"binSeconds {data['binSeconds']!r} is not {BIN_S:g}")
            rates = [math.nan if rate is None else float(rate) for rate in data["requestsPerSecond"]][-MAX_BINS:]
            if any(rate < 0 or math.isinf(rate) for rate in rates):
                raise ValueError("requestsPerSecond has a rate that none can have")
            return cls(int(data["firstBin"]), rates)
        except (KeyError, TypeError, AttributeError, OverflowError):
            raise ValueError("not a history of rates") from None


def trend_rps(arrivals_s: Sequence[float], now_s: float, since_s: float, horizon_s: float) -> float:
    """Arrivals (Unix seconds) since ``since_s`` as a straight line through bins of 30 s, extrapolated by ``horizon_s``,
    but by no more time than it was observed.

    Its slope is the end nearer to zero of the 95 % confidence interval of Theil and Sen's estimator (the median of the slopes
    between bins, ``scipy.stats.theilslopes``), zero where the interval holds zero: neither a burst of one client nor
    counting noise moves it.
    """
    bins = int(min(MAX_TREND_BINS, (now_s - since_s) // TREND_BIN_S))
    if bins < MIN_TREND_BINS:
        return len(arrivals_s) / max(1.0, now_s - since_s)
    from scipy.stats import theilslopes

    edges = TREND_BIN_S * np.arange(-bins, 1.0)
    rates = np.histogram(np.asarray(arrivals_s, dtype=np.float64) - now_s, edges)[0] / TREND_BIN_S
    fitted = theilslopes(rates, edges[1:])
    slope = max(0.0, float(fitted.low_slope)) + min(0.0, float(fitted.high_slope))
    observed_s = bins * TREND_BIN_S
    ahead_s = min(horizon_s, observed_s) + 0.5 * observed_s  # from the middle of what was observed
    return max(0.0, float(rates.mean()) + slope * ahead_s)


def seasonal_rps(history: DemandHistory, now_s: float, horizon_s: float) -> float | None:
    """The highest rate until ``now_s + horizon_s`` by the season of a day.

    None without two days of history, with more than a tenth of its bins missing, where it ended more than a bin ago, or where
    the model cannot be fitted. Slow (0.1 s, and 1 s to import statsmodels): for a worker process.
    """
    past = np.array(history.rates_rps, dtype=np.float64)
    last_bin = history.first_bin + len(past) - 1
    known = np.flatnonzero(~np.isnan(past))
    if len(past) < SEASONAL_BINS or len(known) < MIN_KNOWN_SHARE * len(past) or now_s // BIN_S - last_bin > 1:
        return None
    past = np.interp(np.arange(len(past)), known, past[known])
    from statsmodels.tsa.forecasting.theta import ThetaModel

    steps = max(1, math.ceil(horizon_s / BIN_S))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = ThetaModel(past, period=DAY_BINS, method="additive", use_test=False).fit()
            expected = float(np.max(np.asarray(fitted.forecast(steps))))
    except (ValueError, np.linalg.LinAlgError):
        return None
    return max(0.0, expected) if math.isfinite(expected) else None


def forecast(
    history: DemandHistory,
    arrivals_s: Sequence[float],
    now_s: float,
    *,
    since_s: float,
    rate_rps: float,
    horizon_s: float,
) -> DemandForecast:
    """The rate to be ready for: the seasonal forecast, or the trend of ``arrivals_s`` (complete since ``since_s``) where
    there is none; at least the present ``rate_rps``."""
    expected, method = seasonal_rps(history, now_s, horizon_s), "seasonal"
    if expected is None:
        expected, method = trend_rps(arrivals_s, now_s, since_s, horizon_s), "trend"
    if expected <= rate_rps:
        expected, method = rate_rps, "present"
    return DemandForecast(expected, horizon_s, method)
