"""Forecasts of demand: on made-up shapes with known answers, and that a season helps where there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.forecast import BIN_S, DAY_BINS, MAX_BINS, DemandHistory, forecast, seasonal_rps, trend_rps

NOW_S = BIN_S * 300_000


def day_rate_rps(bin_number: int) -> float:
    """Quiet nights, and an evening that triples within the hour."""
    hour = (bin_number % DAY_BINS) / 6
    return 2.0 + math.sin(math.pi * hour / 24) + (6.0 if 18 <= hour < 22 else 0.0)


def days(count: float, end_bin: int) -> DemandHistory:
    bins = int(count * DAY_BINS)
    rng = np.random.default_rng(1)
    rates = [day_rate_rps(b) * rng.normal(1.0, 0.03) for b in range(end_bin - bins + 1, end_bin + 1)]
    return DemandHistory(end_bin - bins + 1, rates)


def evenly(rate: float, seconds: float, slope: float = 0.0) -> list[float]:
    """Arrivals before NOW_S at a rate that changes by ``slope`` a second."""
    at, times = NOW_S - seconds, []
    while at < NOW_S:
        times.append(at)
        at += 1.0 / max(0.01, rate + slope * (at - NOW_S))
    return times


def test_a_steady_rate_stays() -> None:
    assert trend_rps(evenly(4.0, 600), NOW_S, NOW_S - 600, 120) == pytest.approx(4.0, rel=0.03)


def test_a_rise_is_carried_on_but_no_longer_than_it_was_seen() -> None:
    arrivals = evenly(10.0, 600, slope=0.02)
    assert trend_rps(arrivals, NOW_S, NOW_S - 600, 120) == pytest.approx(10.0 + 0.02 * 120, rel=0.1)
    assert trend_rps(arrivals, NOW_S, NOW_S - 600, 86400) == pytest.approx(10.0 + 0.02 * 600, rel=0.1)


@given(st.floats(0.05, 50.0), st.integers(0, 1000))
def test_counting_noise_is_no_trend(rate: float, seed: int) -> None:
    """Poisson arrivals at a constant rate: twice the standard error lets one in twenty through, and never far."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(NOW_S - rng.uniform(0, 600, rng.poisson(rate * 600)))
    ahead = trend_rps(arrivals.tolist(), NOW_S, NOW_S - 600, 120)
    assert abs(ahead - rate) <= 8.0 * math.sqrt(rate / 600) + 0.05


def test_little_data_gives_the_mean() -> None:
    assert trend_rps([NOW_S - 10, NOW_S - 5], NOW_S, NOW_S - 60, 600) == pytest.approx(2 / 60)
    assert trend_rps([], NOW_S, NOW_S - 600, 600) == 0.0


def test_the_evening_is_known_beforehand_once_two_days_were_seen() -> None:
    before_evening = 100 * DAY_BINS + 18 * 6 - 1
    now_s = before_evening * BIN_S + BIN_S - 1
    ahead = seasonal_rps(days(3, before_evening), now_s, 2 * BIN_S)
    assert ahead == pytest.approx(day_rate_rps(before_evening + 2), rel=0.2)
    assert seasonal_rps(days(1.9, before_evening), now_s, 2 * BIN_S) is None


def test_a_history_full_of_holes_or_long_ended_is_not_used() -> None:
    end = 100 * DAY_BINS
    now_s = end * BIN_S
    holes = days(3, end)
    holes.rates_rps[::5] = [math.nan] * len(holes.rates_rps[::5])
    assert seasonal_rps(holes, now_s, 600) is None
    few = days(3, end)
    few.rates_rps[::20] = [math.nan] * len(few.rates_rps[::20])
    assert seasonal_rps(few, now_s, 600) is not None
    assert seasonal_rps(days(3, end), now_s + 4 * BIN_S, 600) is None


def test_never_below_the_present() -> None:
    falling = evenly(5.0, 600, slope=-0.02)
    ahead = forecast(DemandHistory(), falling, NOW_S, since_s=NOW_S - 600, rate_rps=5.0, horizon_s=300)
    assert (ahead.rate_rps, ahead.method) == (5.0, "present")
    rising = forecast(
        DemandHistory(), evenly(5.0, 600, slope=0.005), NOW_S, since_s=NOW_S - 600, rate_rps=5.0, horizon_s=300
    )
    assert rising.method == "trend"
    assert rising.rate_rps > 5.5


def test_bins_hold_means_over_time() -> None:
    history = DemandHistory()
    assert history.add(NOW_S, 4.0, 15.0)
    assert not history.add(NOW_S + 15, 8.0, 15.0)
    assert history.rates_rps == [pytest.approx(6.0)]
    assert history.add(NOW_S + 3 * BIN_S, 1.0, 15.0)
    assert [math.isnan(rate) for rate in history.rates_rps] == [False, True, True, False]
    assert not history.add(NOW_S, 5.0, 15.0), "the past stays"
    assert not history.add(NOW_S + 3 * BIN_S + 1, math.nan, 15.0)


def test_a_restart_reads_back_what_was_written() -> None:
    history = days(0.1, 1000)
    history.add((1000 + 3) * BIN_S, 2.0, 15.0)
    again = DemandHistory.from_json(history.to_json())
    assert again.first_bin == history.first_bin
    np.testing.assert_allclose(again.rates_rps, history.rates_rps, rtol=1e-3)
    assert again.add((1000 + 3) * BIN_S + 30, 4.0, 15.0), "a new process saves at once"
    assert again.rates_rps[-1] == 4.0 or again.rates_rps[-1] == pytest.approx(3.0)


def test_two_weeks_are_kept_and_fit_a_config_map() -> None:
    history = days(13.9, 100 * DAY_BINS)
    for i in range(1, 100):
        history.add((100 * DAY_BINS + i) * BIN_S, 1234.5678, 15.0)
    assert len(history.rates_rps) == MAX_BINS
    assert len(history.to_json()) < 40_000


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"binSeconds": 60, "firstBin": 0, "requestsPerSecond": []}'])
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|history|binSeconds"):
        DemandHistory.from_json(text)
