"""How fast demand has grown, learned by the minute."""

from __future__ import annotations

import math

import pytest

from andes_operator.growth import CAP, DAY_MINUTES, KEPT_MINUTES, MIN_SURGE, NEW_SURGE, GrowthHistory
from andes_operator.headroom import GROWTH


def learned(rates: list[float], history: GrowthHistory | None = None) -> GrowthHistory:
    history = history or GrowthHistory()
    for minute in range(len(rates)):
        history.add(minute, rates[max(0, minute - KEPT_MINUTES + 1) : minute + 1])
    return history


def stepping(times: float, every: int, minutes: int) -> list[float]:
    """One request a second, and ``times`` as many for ten minutes of every ``every``."""
    return [times if minute % every >= every - 10 else 1.0 for minute in range(minutes)]


def test_a_new_service_is_prepared_for_three_times_its_base() -> None:
    growth = GrowthHistory().growth()
    assert (growth.surge, growth.high, growth.cap_rps) == (NEW_SURGE, GROWTH, math.inf)
    assert growth.why == "assumed: 0 of 24 hours of history"
    assert "12 of 24 hours" in learned([1.0] * (DAY_MINUTES // 2 + 9)).growth().why


def test_a_new_service_on_the_crest_of_its_first_ramp_is_prepared_for_three_times_its_usual_load() -> None:
    climbing = [*[2.0] * 40, *[2.0 + 0.1 * k for k in range(30)]]
    assert learned(climbing).growth().cap_rps == pytest.approx(NEW_SURGE * 2.0, rel=0.05)
    assert learned(climbing[:20]).growth().cap_rps == math.inf
    mostly = [*[2.0] * 20, *[2.0 + 0.1 * k for k in range(1, 41)]]
    assert learned(mostly).growth().cap_rps < 1.2 * NEW_SURGE * 2.0, "also where the ramp is most of what is known"


def test_a_calm_service_is_prepared_for_the_least() -> None:
    growth = learned([1.0] * (DAY_MINUTES + 20)).growth()
    assert growth.surge == MIN_SURGE
    assert growth.cap_rps == pytest.approx(CAP)


def test_the_thousandth_part_of_minutes_decides() -> None:
    often = learned(stepping(4.0, 60, 2 * DAY_MINUTES)).growth()
    assert often.surge == pytest.approx(4.0, rel=0.06), "steps every hour: five minutes of each see them ahead"
    assert often.cap_rps == pytest.approx(CAP * 4.0)
    assert "99.9% of growth in 2 days" in often.why
    daily = learned(stepping(4.0, 1400, 2 * DAY_MINUTES)).growth()
    assert daily.surge > 3.0, "a crowd a day is more than a minute in a thousand"
    once = learned([*stepping(4.0, 1400, DAY_MINUTES), *[1.0] * (9 * DAY_MINUTES)])
    assert once.growth().surge == MIN_SURGE, "one in ten days is not"


def test_growth_of_high_load_is_learned_apart() -> None:
    history = learned(stepping(4.0, 60, 2 * DAY_MINUTES))
    assert history.high.total() > 300
    assert GROWTH < history.growth().high < 0.7 * history.growth().surge, "what began minutes ago grows on by less"


def test_few_requests_say_nothing() -> None:
    assert learned([0.05, 0.0] * 40).days == 0.0


def test_it_survives_a_restart_and_old_peaks_fade() -> None:
    history = learned(stepping(4.0, 60, DAY_MINUTES + 60))
    again = GrowthHistory.from_json(history.to_json())
    assert again.growth() == history.growth()
    assert (again.calm, again.high, again.levels) == (history.calm, history.high, history.levels)
    assert again.peaks_rps == history.peaks_rps
    history.add(40 * DAY_MINUTES, [1.0] * 10)
    assert history.growth().cap_rps == pytest.approx(CAP)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"binRatio": 1.05, "calm": {"99": 1}, "high": {}, "levels": {}, "peaks": {}}',
     '{"binRatio": 1.05, "calm": {}, "high": {}, "levels": {}, "peaks": {"1": NaN}}', '{"binRatio": 2, "calm": {}, "high": {}, "levels": {}, "peaks": {}}'],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a history of growth|Expecting"):
        GrowthHistory.from_json(text)
