"""Replicas by the clock, what a budget buys, and a pause."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from andes_operator.allowance import Allowance, Bounds, Budget, Pause, Period, parse_allowance
from andes_operator.explain import SpecError

OFFICE = {"start": "0 8 * * 1-5", "end": "0 20 * * 1-5", "minReplicas": 6, "timeZone": "Europe/Berlin"}


def at(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


@pytest.mark.parametrize(
    ("stamp", "least"),
    [
        ("2026-11-27T07:59:59+01:00", 1),
        ("2026-11-27T08:00:00+01:00", 6),
        ("2026-11-27T19:59:59+01:00", 6),
        ("2026-11-27T20:00:00+01:00", 1),
        ("2026-11-28T12:00:00+01:00", 1),  # a Saturday
        ("2026-07-01T08:00:00+02:00", 6),  # summer time
    ],
)
def test_a_period_begins_and_ends_by_its_own_clock(stamp: str, least: int) -> None:
    allowance = parse_allowance({"schedule": [OFFICE]}, 1, 10, 1.0)
    assert allowance.apply(1, 10, 1.0, at(stamp)).minimum == least


def test_of_several_periods_the_most_counts() -> None:
    always = Period("0 0 1 1 *", "0 0 31 12 *", 3)
    crest = Period("0 18 * * *", "0 22 * * *", 5)
    allowance = Allowance((always, crest))
    assert allowance.apply(1, 9, 1.0, at("2026-11-27T12:00:00+00:00")).minimum == 3
    bounds = allowance.apply(1, 9, 1.0, at("2026-11-27T19:00:00+00:00"))
    assert bounds == Bounds(5, 9, 'at least 5: schedule "0 18 * * *" to "0 22 * * *" UTC')
    assert allowance.apply(7, 9, 1.0, at("2026-11-27T19:00:00+00:00")) == Bounds(7, 9), "what is written holds anyway"


@pytest.mark.parametrize(
    ("budget", "gpus_per_replica", "bought"),
    [
        (Budget(gpus=24), 4, 6),
        (Budget(gpus=23), 4, 5),
        (Budget(per_hour=40.0, gpu_price_per_hour=2.5), 4, 4),
        (Budget(gpus=8, per_hour=40.0, gpu_price_per_hour=2.5), 4, 2),
        (Budget(per_hour=0.3, gpu_price_per_hour=0.1), 1, 3),  # 0.3 / 0.1 is 2.9999999999999996
    ],
)
def test_a_budget_buys_whole_replicas(budget: Budget, gpus_per_replica: float, bought: int) -> None:
    assert budget.replicas(gpus_per_replica) == bought


def test_a_budget_goes_before_a_schedule() -> None:
    allowance = Allowance((Period("0 0 1 1 *", "0 0 31 12 *", 8),), Budget(gpus=5))
    bounds = allowance.apply(1, 10, 1.0, at("2026-11-27T12:00:00+00:00"))
    assert (bounds.minimum, bounds.maximum) == (5, 5)
    assert bounds.why.endswith("at most 5: budget of 5 GPUs")
    assert Allowance(budget=Budget(gpus=99)).apply(1, 10, 1.0, 0.0) == Bounds(1, 10)


def test_a_pause_ends_by_itself() -> None:
    allowance = parse_allowance({"pause": {"until": "2026-12-01T06:00:00Z", "reason": "new drivers"}}, 1, 10, 1.0)
    pause = allowance.apply(1, 10, 1.0, at("2026-12-01T05:59:59+00:00")).pause
    assert str(pause) == "paused until 2026-12-01T06:00:00Z: new drivers"
    assert allowance.apply(1, 10, 1.0, at("2026-12-01T06:00:00+00:00")).pause is None
    assert isinstance(pause, Pause)
    for_good = parse_allowance({"pause": {"until": "9999-12-31T23:59:59Z"}}, 1, 10, 1.0).apply(1, 10, 1.0, 0.0).pause
    assert str(for_good) == "paused until 9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"schedule": [{**OFFICE, "start": "8 o'clock"}]},
         "spec.schedule[0].start \"8 o'clock\" is no cron expression of minute, hour, day, month and weekday: Wrong number"),
        ({"schedule": [OFFICE, {**OFFICE, "end": "0 25 * * *"}]}, 'spec.schedule[1].end "0 25 * * *" is no cron expression'),
        ({"schedule": [{**OFFICE, "end": "0 0 30 2 *"}]}, 'spec.schedule[0].end "0 0 30 2 *" is no cron expression'),
        ({"schedule": [{**OFFICE, "timeZone": "Berlin"}]}, 'spec.schedule[0].timeZone "Berlin" is not known: give a name like'),
        ({"schedule": [{**OFFICE, "timeZone": "../etc"}]}, "spec.schedule[0].timeZone"),
        ({"schedule": [{**OFFICE, "minReplicas": 11}]}, "spec.schedule[0].minReplicas 11 must be between 0 and spec.maxReplicas 10"),
        ({"schedule": [{"start": "0 8 * * *", "minReplicas": 1}]}, "spec.schedule[0].end is missing"),
        ({"budget": {}}, "spec.budget is empty: give gpus, or perHour with gpuPricePerHour"),
        ({"budget": {"perHour": 40}}, "spec.budget: perHour and gpuPricePerHour belong together"),
        ({"budget": {"gpus": 0}}, "spec.budget.gpus must be above 0, got 0"),
        ({"budget": {"gpus": "inf"}}, "spec.budget.gpus must be above 0, got Infinity"),
        ({"budget": {"gpus": 3}}, "spec.budget: a budget of 3 GPUs buys 1 replicas of 2 GPUs, fewer than spec.minReplicas 2"),
        ({"pause": {}}, "spec.pause.until is missing"),
        ({"pause": {"until": "tomorrow"}}, 'spec.pause.until must be a time with its zone like 2026-12-01T06:00:00Z, got "tomorrow"'),
        ({"pause": {"until": "2026-12-01T06:00:00"}}, "spec.pause.until must be a time with its zone"),
        ({"pause": {"until": "9999-12-31T23:59:59-05:00"}}, "spec.pause.until must be a time with its zone"),  # the year 10000
        ({"pause": {"until": "0001-01-01T00:00:00+05:00"}}, "spec.pause.until must be a time with its zone"),
        ({"schedule": [{**OFFICE, "start": "0 0  * * *", "end": "0 0 * * *"}]},
         'spec.schedule[0].start and end are both "0 0  * * *": it would never begin'),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_allowance(spec, 2, 10, 2.0)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("start", "end", "zone", "begins", "ends"),
    [
        ("30 2 * * *", "30 3 * * *", "Europe/Berlin", "2026-10-25T02:30:00+02:00", "2026-10-25T03:30:00+01:00"),
        ("0 0 * * *", "30 2 * * *", "Europe/Berlin", "2026-10-25T00:00:00+02:00", "2026-10-25T02:30:00+02:00"),
        ("0 1 * * *", "30 1 * * *", "America/New_York", "2026-11-01T01:00:00-04:00", "2026-11-01T01:30:00-04:00"),
        ("30 2 * * *", "30 4 * * *", "Europe/Berlin", "2026-03-29T03:00:00+02:00", "2026-03-29T04:30:00+02:00"),
        ("0 1 * * *", "30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00"),
        ("0 22 * * 6", "0 6 * * 0", "Europe/Berlin", "2026-10-24T22:00:00+02:00", "2026-10-25T06:00:00+01:00"),
    ],
)  # fmt: skip
def test_a_period_is_whole_where_clocks_are_set_back_or_on(
    start: str, end: str, zone: str, begins: str, ends: str
) -> None:
    """An hour that is there twice, or not at all: what it names begins and ends once."""
    period = Period(start, end, 3, zone)
    minutes = range(int(at(begins)) - 3600, int(at(ends)) + 7200, 60)
    assert [at_s for at_s in minutes if period.active(at_s)] == list(range(int(at(begins)), int(at(ends)), 60))
