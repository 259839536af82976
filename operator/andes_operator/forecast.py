"""Demand at the time when a pod that is started now would serve.

With two days of history a Theta model with a daily season (statsmodels); before that, the trend of the last minutes as far
as it is certain. On the ServeGen rates the seasonal one halves the trend's error 20 and 30 minutes ahead. Never below the
present rate: whoever is here has to be served too, and going down waits for stabilisation anyway.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["BIN_S", "DAY_BINS", "Forecast", "History", "forecast", "seasonal_rps", "trend_rps"]

BIN_S = 600.0
DAY_BINS = 144
MOST_BINS = 14 * DAY_BINS
SEASONAL_BINS = 2 * DAY_BINS
TREND_BIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """rate_rps expected at most between now and ``horizon_s``; method: seasonal, trend or present, whichever said so."""

    rate_rps: float
    horizon_s: float
    method: str


class History:
    """Requests/s in bins of ten minutes, at most two weeks of them; a bin without data is NaN."""

    def __init__(self, first_bin: int = 0, rates_rps: Sequence[float] = ()) -> None:
        self.first_bin = first_bin
        self.rates_rps = list(rates_rps)
        self._weights = 0.0
        self._open: int | None = None

    def add(self, now_s: float, rate_rps: float, seconds: float) -> bool:
        """A rate seen over the last ``seconds``; True when a bin was begun, which is when to save."""
        at = int(now_s // BIN_S)
        if not self.rates_rps:
            self.first_bin = at
        behind = at - (self.first_bin + len(self.rates_rps) - 1)
        if behind < 0 or not (math.isfinite(rate_rps) and rate_rps >= 0 and seconds > 0):
            return False
        self.rates_rps += [math.nan] * min(behind, MOST_BINS)
        dropped = max(0, len(self.rates_rps) - MOST_BINS)
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
    def from_json(cls, text: str) -> History:
        """Back from :meth:`to_json`. Raises ``ValueError`` where it is not one."""
        try:
            data = json.loads(text)
            if data["binSeconds"] != BIN_S:
                raise ValueError(f"binSeconds {data['binSeconds']!r} is not {BIN_S:g}")
            rates = [math.nan if rate is None else float(rate) for rate in data["requestsPerSecond"]]
            return cls(int(data["firstBin"]), rates)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a history of rates: {error!r}") from None


def trend_rps(arrivals_s: Sequence[float], now_s: float, since_s: float, horizon_s: float) -> float:
    """Arrivals (Unix seconds) since ``since_s`` as a straight line through bins of 30 s, carried on for ``horizon_s`` but for
    no longer than it was seen. Its slope is the smallest in the 95 % confidence interval of Theil and Sen's estimator: the
    median of slopes between bins, which neither a burst of one client nor counting noise moves."""
    bins = int(min(20.0, (now_s - since_s) // TREND_BIN_S))
    if bins < 4:
        return len(arrivals_s) / max(1.0, now_s - since_s)
    from scipy.stats import theilslopes

    edges = TREND_BIN_S * np.arange(-bins, 1.0)
    rates = np.histogram(np.asarray(arrivals_s, dtype=np.float64) - now_s, edges)[0] / TREND_BIN_S
    fitted = theilslopes(rates, edges[1:])
    slope = max(0.0, float(fitted.low_slope)) + min(0.0, float(fitted.high_slope))
    ahead_s = min(horizon_s, bins * TREND_BIN_S) + 0.5 * bins * TREND_BIN_S
    return max(0.0, float(rates.mean()) + slope * ahead_s)


def seasonal_rps(history: History, now_s: float, horizon_s: float) -> float | None:
    """The highest rate until ``now_s + horizon_s`` after the season of a day; None without two days of history, with less
    than nine tenths of them, or where the model cannot be fitted. Slow (0.1 s, and 1 s to load statsmodels): for a worker."""
    past = np.array(history.rates_rps, dtype=np.float64)
    last_bin = history.first_bin + len(past) - 1
    known = np.flatnonzero(~np.isnan(past))
    if len(past) < SEASONAL_BINS or len(known) < 0.9 * len(past) or now_s // BIN_S - last_bin > 1:
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
    history: History, arrivals_s: Sequence[float], now_s: float, since_s: float, rate_rps: float, horizon_s: float
) -> Forecast:
    """The rate to be ready for: the seasonal forecast, or the trend; at least the present ``rate_rps``."""
    seasonal = seasonal_rps(history, now_s, horizon_s)
    if seasonal is not None:
        expected, method = seasonal, "seasonal"
    else:
        expected, method = trend_rps(arrivals_s, now_s, since_s, horizon_s), "trend"
    return Forecast(expected, horizon_s, method) if expected > rate_rps else Forecast(rate_rps, horizon_s, "present")
