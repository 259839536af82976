"""The fluid model: what demand is, what may come, who survives it, and what is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.headroom import GROWTH, STEP_S, Growth, Load, load, path, size, survives
from andes_sglang.sim.buffer import Buffer

ANDES, STOCK = Buffer(1.1, 200.0), Buffer(0.9, 30.0)
COLD_S, TICK_S = 300.0, 15.0


def even(rate_rps: float, since_s: float, until_s: float) -> list[float]:
    return [since_s + k / rate_rps for k in range(int((until_s - since_s) * rate_rps))]


def seen_load(arrivals_s: list[float], now_s: float, minutes: list[float]) -> Load:
    return load(arrivals_s, minutes, now_s, since_s=now_s - 600.0, work_s=2.0)


# Load


def test_steady_demand_is_its_rate_times_the_work() -> None:
    now = seen_load(even(2.0, 0.0, 600.0), 600.0, [2.0] * 30)
    assert now.at == pytest.approx(4.0, rel=0.02)
    assert now.base == 4.0
    assert now.slope == 0.0


def test_a_jump_is_believed_after_two_minutes_and_counting_noise_is_not() -> None:
    calm = even(2.0, 0.0, 480.0)
    assert seen_load([*calm, *even(6.0, 480.0, 600.0)], 600.0, [2.0] * 30).at == pytest.approx(12.0, rel=0.02)
    few = [10.0, 150.0, 320.0, 500.0, 550.0]  # five requests, two of them lately: 2.5 times the rate, and no jump
    assert seen_load(few, 600.0, [0.01] * 30).at == pytest.approx(2.0 * 3 / 300)


def test_the_base_is_slow_and_follows_what_has_lasted_ten_minutes() -> None:
    crowd = [*[2.0] * 25, *[6.0] * 5]
    assert seen_load(even(6.0, 0.0, 600.0), 600.0, crowd).base == 4.0
    lasting = [*[2.0] * 20, *[6.0] * 10]
    assert seen_load(even(6.0, 0.0, 600.0), 600.0, lasting).base == 12.0
    ebbed = [*[6.0] * 20, *[2.0] * 10]
    assert seen_load(even(2.0, 0.0, 600.0), 600.0, ebbed).base == 4.0, "no longer prepared for three times the crest"
    lull = [*[6.0] * 23, *[2.0] * 7]
    assert seen_load(even(2.0, 0.0, 600.0), 600.0, lull).base == pytest.approx(12.0)
    over = [*[2.0] * 21, *[6.0] * 7, *[2.0] * 2]  # two bins of five minutes are high, and the crowd has gone
    assert seen_load(even(2.0, 0.0, 600.0), 600.0, over).base == pytest.approx(4.0)


def test_a_slope_is_a_median_so_one_burst_does_not_make_one() -> None:
    rising = [2.0 + 0.1 * minute for minute in range(10)]
    assert seen_load(even(2.9, 0.0, 600.0), 600.0, rising).slope == pytest.approx(2.0 * 0.1 / 60.0)
    assert seen_load(even(2.0, 0.0, 600.0), 600.0, [2.0] * 9 + [20.0]).slope == 0.0
    assert seen_load(even(6.0, 0.0, 600.0), 600.0, [2.0] * 5 + [6.0] * 5).slope == 0.0, "it has stepped and stays"
    assert seen_load(even(2.0, 0.0, 600.0), 600.0, rising[::-1]).slope == 0.0, "falling is not counted on"


# Path


def test_a_surge_belongs_to_the_base_and_not_to_the_crest() -> None:
    crest = Load(at=12.0, base=4.0, slope=0.0, backlog_s=0.0)
    assert path(crest, Growth(3.0), math.inf, 600.0).max() == pytest.approx(GROWTH * 12.0)
    assert path(Load(4.0, 4.0, 0.0, 0.0), Growth(3.0), math.inf, 600.0).max() == 12.0


def test_no_surge_goes_beyond_what_is_remembered_but_what_is_here_goes_on() -> None:
    assert path(Load(4.0, 4.0, 0.0, 0.0), Growth(3.0), 9.0, 600.0).max() == 9.0
    assert path(Load(10.0, 4.0, 0.0, 0.0), Growth(3.0), 9.0, 600.0).max() == pytest.approx(11.0)


def test_high_load_grows_by_what_high_load_has_grown() -> None:
    assert path(Load(10.0, 4.0, 0.0, 0.0), Growth(3.0, high=1.6), 99.0, 600.0).max() == pytest.approx(16.0)
    assert path(Load(4.5, 4.0, 0.0, 0.0), Growth(3.0, high=9.0), 99.0, 600.0).max() == pytest.approx(12.0), "not high"


def test_what_has_ebbed_grows_from_where_it_is_and_a_lull_leaves_the_base() -> None:
    assert path(Load(5.0, 9.0, 0.0, 0.0), Growth(3.0), math.inf, 600.0).max() == pytest.approx(15.0)
    assert path(Load(2.0, 9.0, 0.0, 0.0), Growth(3.0), math.inf, 600.0).max() == pytest.approx(GROWTH * 9.0)
    assert path(Load(0.0, 9.0, 0.0, 0.0), Growth(3.0), math.inf, 600.0).max() == pytest.approx(GROWTH * 9.0)


def test_a_trend_goes_on_to_half_as_much_again_and_the_season_comes_in_time() -> None:
    rising = path(Load(4.0, 0.0, 0.01, 0.0), Growth(2.0), math.inf, 1200.0)
    assert rising[0] == pytest.approx(4.0 + 0.01 * 157.5)
    assert rising[-1] == 6.0
    assert path(Load(4.0, 0.0, 0.0, 0.0), Growth(2.0), math.inf, 600.0, expected=30.0).max() == 30.0


# Who survives


def test_who_survives_by_arithmetic() -> None:
    """4 replicas that carry 1 each put off 4 of 8 busy a second: 100 s of their work is full after 100 s."""
    levels = np.full(60, 8.0)
    assert survives(levels, [0.0] * 4, 0.0, Buffer(1.0, 100.0)) == pytest.approx(105.0)
    assert survives(levels, [0.0] * 4, 0.0, Buffer(1.0, 100.0), until_s=100.0) is None
    assert survives(levels, [0.0] * 4, 200.0, Buffer(1.0, 100.0)) == pytest.approx(60.0), "half of it is used"
    assert survives(levels, [0.0] * 4 + [75.0] * 4, 0.0, Buffer(1.0, 100.0)) is None, "help came in time"
    assert survives(levels, [0.0] * 8, 0.0, Buffer(1.0, 0.0)) is None, "nothing is put off"
    assert survives(levels, [], 0.0, ANDES) == STEP_S


def test_idle_time_is_not_saved_up() -> None:
    levels = np.concatenate([np.zeros(40), np.full(40, 8.0)])
    begun_s = 40 * STEP_S
    assert survives(levels, [0.0] * 4, 0.0, Buffer(1.0, 100.0)) == pytest.approx(begun_s + 105.0)


# What is asked for


def asked(now: Load, replicas: int, buffer: Buffer, growth: Growth, **more: float) -> int:
    fleet = [0.0] * replicas
    options = {"cold_s": COLD_S, "tick_s": TICK_S, "work_s": 1.0, **more}
    return size(now, growth, fleet, buffer, max_replicas=40, **options).replicas  # type: ignore[arg-type]


def rest(base: float, buffer: Buffer, growth: Growth, replicas: int = 30) -> int:
    for _ in range(10):
        replicas = asked(Load(base, base, 0.0, 0.0), replicas, buffer, growth)
    return replicas


def test_a_reserve_costs_the_surge_over_one_and_the_buffer_by_the_cold_start() -> None:
    for buffer in (ANDES, STOCK):
        for surge in (2.0, 3.0):
            fluid = surge * 8.0 / (1 + buffer.seconds / (COLD_S + TICK_S)) / buffer.rho
            assert rest(8.0, buffer, Growth(surge), 39) == pytest.approx(max(fluid, 8.0 / buffer.rho), abs=1.0)


def test_surges_up_to_what_readers_can_wait_for_are_free() -> None:
    assert rest(20.0, Buffer(1.0, 250.0), Growth(1.5)) == 20
    assert rest(20.0, Buffer(1.0, 30.0), Growth(1.5)) > 26


def test_present_load_is_never_carried_on_credit() -> None:
    now = Load(20.0, 20.0, 0.0, 0.0)
    assert asked(now, 12, Buffer(1.0, 1000.0), Growth(1.0)) == 20
    assert asked(now, 30, Buffer(1.0, 1000.0), Growth(1.0)) == 20


def test_a_crowd_orders_no_more_than_it_needs_and_all_at_once() -> None:
    crowd = Load(12.0, 4.0, 0.0, 300.0)
    ordered = asked(crowd, 6, ANDES, Growth(3.0))
    assert 8 <= ordered <= math.ceil(1.1 * GROWTH * 12.0 / ANDES.rho)
    assert asked(Load(12.0, 4.0, 0.0, 30_000.0), 6, ANDES, Growth(3.0)) <= math.ceil(1.1 * GROWTH * 12.0 / ANDES.rho), (
        "a backlog is not cleared at once"
    )


def test_what_starts_counts_from_when_it_will_serve() -> None:
    now, more = Load(12.0, 4.0, 0.0, 0.0), {"cold_s": COLD_S, "tick_s": TICK_S, "work_s": 1.0}
    soon = size(now, Growth(3.0), [0.0] * 6 + [60.0] * 6, ANDES, max_replicas=40, **more)
    none = size(now, Growth(3.0), [0.0] * 6, ANDES, max_replicas=40, **more)
    assert soon.replicas <= 12 < none.replicas + 6
    assert soon.breach_s is None or (none.breach_s is not None and soon.breach_s > none.breach_s)


@given(
    st.floats(0, 50), st.floats(0, 50), st.floats(0, 0.1), st.floats(0, 5000), st.integers(0, 30), st.floats(1, 4),
    st.sampled_from([ANDES, STOCK]),
)  # fmt: skip
def test_bounds_are_kept_and_more_backlog_asks_for_no_less(
    at: float, base: float, slope: float, backlog: float, replicas: int, surge: float, buffer: Buffer
) -> None:
    less = asked(Load(at, base, slope, 0.0), replicas, buffer, Growth(surge))
    more = asked(Load(at, base, slope, backlog), replicas, buffer, Growth(surge))
    assert 1 <= less <= more <= 40
