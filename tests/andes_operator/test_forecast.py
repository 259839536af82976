"""Forecasts of demand: on made-up shapes with known answers, and that a season helps where there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import theilslopes

from andes_operator.forecast import (
    BIN_S,
    DAY_BINS,
    MAX_BINS,
    TREND_BIN_S,
    DemandHistory,
    forecast,
    seasonal_rps,
    trend_rps,
)

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


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"binSeconds": 60, "firstBin": 0, "requestsPerSecond": []}',
        '{"binSeconds": 600, "firstBin": 1e999, "requestsPerSecond": []}', '"history"',
        '{"binSeconds": 600, "firstBin": 0, "requestsPerSecond": [Infinity]}',
        '{"binSeconds": 600, "firstBin": 0, "requestsPerSecond": [-5]}',
    ],
)  # fmt: skip
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|history|binSeconds|requestsPerSecond"):
        DemandHistory.from_json(text)


def test_a_history_of_the_future_is_replaced() -> None:
    """Edited by hand: it would wait for that day, and learn nothing until then."""
    history = DemandHistory.from_json('{"binSeconds": 600, "firstBin": 9000000, "requestsPerSecond": [5.0]}')
    assert history.add(100 * BIN_S, 2.0, 15.0)
    assert (history.first_bin, history.rates_rps) == (100, [2.0])


# The rules of the trend, bin by bin


def at_rates(*rates: float) -> list[float]:
    """Arrivals in bins of 30 s before NOW_S, evenly."""
    start_s = NOW_S - TREND_BIN_S * len(rates)
    return [
        start_s + TREND_BIN_S * (k + (i + 0.5) / (rate * TREND_BIN_S))
        for k, rate in enumerate(rates) for i in range(round(rate * TREND_BIN_S))
    ]  # fmt: skip


LINE = [2.0 + 0.2 * k for k in range(20)]
"""Requests/s in each bin: an exact line, so that its confidence interval is its slope."""


def trend(rates: list[float], horizon_s: float) -> float:
    return trend_rps(at_rates(*rates), NOW_S, NOW_S - TREND_BIN_S * len(rates), horizon_s)


def test_a_line_is_extrapolated_from_its_middle() -> None:
    slope = 0.2 / TREND_BIN_S
    assert trend(LINE, 0.0) == pytest.approx(3.9 + slope * 300)
    assert trend(LINE, 90.0) == pytest.approx(3.9 + slope * (300 + 90))
    assert trend(LINE, 9000.0) == pytest.approx(3.9 + slope * (300 + 600)), "no longer than it was observed"
    assert trend(LINE[:8], 9000.0) == pytest.approx(2.7 + slope * (120 + 240))


def test_a_falling_line_ends_at_zero() -> None:
    assert trend(LINE[::-1], 0.0) == pytest.approx(3.9 - 0.2 / TREND_BIN_S * 300)
    assert trend([2.0 - 0.1 * k for k in range(19)] + [0.1], 9000.0) == 0.0


def test_an_uncertain_slope_counts_by_its_end_nearer_to_zero() -> None:
    """The 95 % interval of Theil and Sen's slope, from scipy itself; zero within it is no slope."""
    chance = np.random.default_rng(3)
    rates = [max(0.1, round((4.0 + 0.1 * k + chance.normal(0, 0.6)) * 30) / 30) for k in range(20)]
    edges = TREND_BIN_S * np.arange(-19.0, 1.0)
    fitted = theilslopes(np.round(np.array(rates) * 30) / 30, edges)
    assert 0.0 < fitted.low_slope < 0.8 * fitted.slope
    assert trend(rates, 120.0) == pytest.approx(np.mean(rates) + fitted.low_slope * (120 + 300), rel=1e-6)
    falling = trend(rates[::-1], 120.0)
    assert falling == pytest.approx(np.mean(rates) - fitted.low_slope * (120 + 300), rel=1e-6)
    flat = [4.0, 5.0] * 10
    assert trend(flat, 120.0) == pytest.approx(4.5)


def test_a_burst_of_one_client_is_no_trend() -> None:
    assert trend([2.0] * 18 + [40.0, 2.0], 300.0) == pytest.approx(np.mean([2.0] * 19 + [40.0]))


def test_two_minutes_are_the_least_and_ten_the_most_that_a_trend_is_seen_in() -> None:
    rising = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert trend(rising[:3], 600.0) == pytest.approx(2.0), "the mean"
    assert trend(rising, 0.0) > 5.0
    earlier = at_rates(*[9.0] * 20, *[2.0] * 20)
    assert trend_rps(earlier, NOW_S, NOW_S - 1200, 0.0) == pytest.approx(2.0), "older arrivals do not count"
    assert trend_rps([NOW_S], NOW_S, NOW_S - 0.1, 0.0) == 1.0, "at least a second"


# When a season is used, and how


def test_two_days_to_a_bin_are_a_season() -> None:
    end = 100 * DAY_BINS
    assert seasonal_rps(days(2, end), end * BIN_S, 600) is not None
    assert seasonal_rps(days(2, end - 1), end * BIN_S, 600) is not None, "its last bin is over"
    assert seasonal_rps(days(2, end - 2), end * BIN_S, 600) is None
    short = days(2, end)
    short.rates_rps.pop(0)
    short.first_bin += 1
    assert seasonal_rps(short, end * BIN_S, 600) is None


def test_the_highest_rate_until_then_counts() -> None:
    last_evening_bin = 100 * DAY_BINS + 22 * 6 - 1
    now_s = (last_evening_bin - 1) * BIN_S + BIN_S - 1
    history = days(3, last_evening_bin - 1)
    far, near = (seasonal_rps(history, now_s, bins * BIN_S) for bins in (6, 1))
    assert near is not None
    assert far is not None
    assert far == pytest.approx(near, rel=0.02), "the evening ends after the next bin, an hour sees both"
    assert far > 2.0 * day_rate_rps(last_evening_bin + 3)


def test_a_season_of_nothing_is_nothing() -> None:
    end = 100 * DAY_BINS
    assert seasonal_rps(DemandHistory(end - 3 * DAY_BINS + 1, [0.0] * 3 * DAY_BINS), end * BIN_S, 600) == pytest.approx(
        0.0, abs=1e-6
    )


def test_a_season_goes_before_a_trend() -> None:
    before_evening = 100 * DAY_BINS + 18 * 6 - 1
    now_s = before_evening * BIN_S + BIN_S - 1
    ahead = forecast(days(2, before_evening), [], now_s, since_s=now_s - 600, rate_rps=1.0, horizon_s=2 * BIN_S)
    assert (ahead.method, ahead.horizon_s) == ("seasonal", 2 * BIN_S)
    assert ahead.rate_rps > 5.0
    present = forecast(days(2, before_evening), [], now_s, since_s=now_s - 600, rate_rps=99.0, horizon_s=2 * BIN_S)
    assert (present.method, present.rate_rps) == ("present", 99.0)


# History


def test_a_bin_is_a_mean_by_time() -> None:
    history = DemandHistory()
    history.add(NOW_S, 4.0, 30.0)
    history.add(NOW_S + 30, 8.0, 10.0)
    assert history.rates_rps == [pytest.approx(5.0)]
    assert history.first_bin == int(NOW_S // BIN_S)


@pytest.mark.parametrize(("rate_rps", "seconds"), [(-1.0, 15.0), (math.inf, 15.0), (1.0, 0.0), (1.0, -1.0)])
def test_what_is_no_rate_is_not_counted(rate_rps: float, seconds: float) -> None:
    history = DemandHistory()
    assert not history.add(NOW_S, rate_rps, seconds)
    assert history.rates_rps == []


def test_a_rate_of_zero_counts() -> None:
    history = DemandHistory()
    assert history.add(NOW_S, 0.0, 15.0)
    assert history.rates_rps == [0.0]


def test_after_a_restart_a_bin_begins_again_and_a_gap_is_unknown() -> None:
    again = DemandHistory.from_json(DemandHistory(100, [1.0, math.nan, 3.0]).to_json())
    assert again.first_bin == 100
    np.testing.assert_equal(again.rates_rps, [1.0, math.nan, 3.0])
    assert again.add(102 * BIN_S + 5, 7.0, 15.0)
    np.testing.assert_equal(again.rates_rps, [1.0, math.nan, 7.0])
    assert again.add(104 * BIN_S, 9.0, 15.0)
    np.testing.assert_equal(again.rates_rps, [1.0, math.nan, 7.0, math.nan, 9.0])


def test_after_weeks_of_absence_two_weeks_are_kept() -> None:
    history = DemandHistory(100, [1.0])
    history.add((100 + 10 * MAX_BINS) * BIN_S, 2.0, 15.0)
    assert len(history.rates_rps) == MAX_BINS
    assert history.first_bin == 100 + 9 * MAX_BINS + 1
    assert history.rates_rps[-1] == 2.0
