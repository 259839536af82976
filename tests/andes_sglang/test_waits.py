"""The wait for a first token, learned from the streams before: a queue, newcomers first, and those that wait still."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.waits import FirstTokens, WaitForecast, WaitView, quantile

ALONE_S = 0.2


def test_without_history_the_engines_costs_tell() -> None:
    forecast = FirstTokens().view(5.0).forecast(0.9, ALONE_S)
    assert (forecast.ttft_s, forecast.low_s, forecast.high_s) == pytest.approx((0.9, 0.3, 2.7))


def in_order(service_s: float, gap_s: float, count: int) -> list[tuple[float, WaitForecast]]:
    """An engine that gives a first token every ``service_s``, in order, to streams that come every ``gap_s``: what they waited
    and what was forecast."""
    waits, told, free_s = FirstTokens(), [], 0.0
    pending: list[tuple[float, int]] = []
    for k in range(count):
        now_s = k * gap_s
        for at_s, stream in [one for one in pending if one[0] <= now_s]:
            waits.first(stream, at_s)
        pending = [one for one in pending if one[0] > now_s]
        forecast = waits.view(now_s).forecast(ALONE_S, ALONE_S)
        waits.sent(k, now_s, forecast)
        free_s = max(free_s, now_s) + service_s
        pending.append((free_s, k))
        told.append((free_s - now_s, forecast))
    return told


def test_a_queue_is_told_by_those_ahead_over_the_rate() -> None:
    waited, forecasts = zip(*in_order(0.5, 0.25, 400)[40:], strict=True)
    errors = [abs(f.ttft_s - w) / w for w, f in zip(waited, forecasts, strict=True)]
    assert np.median(errors) < 0.1
    assert waited[-1] > 80.0
    assert np.mean([f.low_s <= w <= f.high_s for w, f in zip(waited, forecasts, strict=True)]) > 0.85


def test_where_newcomers_come_first_those_who_starve_do_not_count() -> None:
    """Two of three get theirs at once, the third never: the usual wait is short, however many wait."""
    waits, now_s = FirstTokens(), 0.0
    for k in range(200):
        now_s = 0.5 * k
        waits.sent(k, now_s, waits.view(now_s).forecast(ALONE_S, ALONE_S))
        if k % 3:
            waits.first(k, now_s + 0.3)
    view = waits.view(now_s + 1.0)
    assert view.waiting == 67
    assert not view.queues
    forecast = view.forecast(ALONE_S, ALONE_S)
    assert forecast.ttft_s == pytest.approx(0.3)
    assert forecast.high_s > 10.0, "those that wait still tell how bad it can be"


def test_where_short_prompts_come_first_each_is_told_the_wait_of_those_alike() -> None:
    """Prompts that take 0.1 s alone are served after 0.4 s, those that take 1 s after 20 s, those of 3 s never."""
    waits, served_after_s = FirstTokens(), {0.1: 0.4, 1.0: 20.0}
    due: list[tuple[float, int]] = []
    for k in range(240):
        now_s, alone_s = 0.5 * k, (0.1, 1.0, 3.0)[k % 3]
        for at_s, stream in sorted(one for one in due if one[0] <= now_s):
            waits.first(stream, at_s)
        due = [one for one in due if one[0] > now_s]
        waits.sent(k, now_s, waits.view(now_s).forecast(2.0, alone_s))
        if alone_s in served_after_s:
            due.append((now_s + served_after_s[alone_s], k))
    view = waits.view(120.0)
    told = [view.forecast(2.0, alone_s).ttft_s for alone_s in (0.1, 0.12, 0.9, 1.0, 3.0)]
    assert told == pytest.approx([0.4, 0.4, 20.0, 20.0, told[-1]])
    assert told[-1] > 30.0, "as long as those that wait have waited"


def test_what_goes_without_a_first_token_is_forgotten() -> None:
    waits = FirstTokens()
    for k in range(20):
        waits.sent(k, 0.1 * k, waits.view(0.1 * k).forecast(ALONE_S, ALONE_S))
        waits.gone(k)
    waits.first(3, 9.0)
    assert waits.view(100.0) == WaitView()


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([(3.0, True), (1.0, True), (2.0, True)], 0.5, 2.0),
        ([(1.0, True), (2.0, False), (3.0, True), (4.0, True)], 0.5, 3.0),
        ([(1.0, True), (5.0, False), (6.0, False)], 0.5, 9.0),
        ([(4.0, False)], 0.05, 6.0),
    ],
)
def test_lower_bounds_count_as_such(values: list[tuple[float, bool]], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_what_is_sent_is_counted_for_half_a_minute() -> None:
    waits = FirstTokens()
    for k in range(120):
        waits.sent(k, 0.5 * k, waits.view(0.5 * k).forecast(ALONE_S, ALONE_S))
    assert waits.view(60.0).sent_rps == pytest.approx(2.0, rel=0.05)
    waits.first(0, 80.0)
    assert waits.view(80.0).sent_rps == pytest.approx(20 / 30, rel=0.05)
