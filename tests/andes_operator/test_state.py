"""What is kept of a target between two reconciles."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from cases import SPEC, predicted, seen

from andes_operator import names
from andes_operator.forecast import BIN_S, DemandForecast, DemandHistory
from andes_operator.state import REUSE_S, LastPrediction, TargetState, TargetStates

NOW_S = 1_000_000.0
LAST = LastPrediction(3, 5.0, DemandForecast(6.0, 75.0, "trend"), replace(predicted(2), at_s=NOW_S))


@pytest.mark.parametrize(
    ("generation", "after_s", "rate_rps", "holds"),
    [
        (3, 59.9, 5.0, True), (3, REUSE_S, 5.0, False), (4, 1.0, 5.0, False),
        (3, 1.0, 5.2, True), (3, 1.0, 4.8, True), (3, 1.0, 5.26, False), (3, 1.0, 4.74, False),
    ],
)  # fmt: skip
def test_a_prediction_holds_for_a_minute_while_demand_is_the_same(
    generation: int, after_s: float, rate_rps: float, holds: bool
) -> None:
    look = seen(NOW_S + after_s, 2, rate_rps=rate_rps)
    assert LAST.holds(generation, spec=SPEC, seen=look) is holds


def test_counting_noise_is_no_other_demand() -> None:
    slow = replace(LAST, rate_rps=0.1)  # 12 requests in a window, give or take 3.5
    assert slow.holds(3, SPEC, seen(NOW_S + 1, 2, rate_rps=0.128))
    assert not slow.holds(3, SPEC, seen(NOW_S + 1, 2, rate_rps=0.130))
    idle = replace(LAST, rate_rps=0.0)
    assert idle.holds(3, SPEC, seen(NOW_S + 1, 2, rate_rps=0.0))
    assert not idle.holds(3, SPEC, seen(NOW_S + 1, 2, rate_rps=0.01))


def test_another_load_is_another_question() -> None:
    """Without confirmation a load factor of 2 is at 1 after five windows, and so 5 % lower after half a window."""
    doubled = replace(LAST, predicted=replace(LAST.predicted, load_factor=2.0))
    short = replace(SPEC, behavior=replace(SPEC.behavior, window_s=60.0))
    assert doubled.holds(3, short, seen(NOW_S + 29.0, 2))
    assert not doubled.holds(3, short, seen(NOW_S + 31.0, 2))


def resource(uid: str = "u", **status: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "chat", "name": "t", "uid": uid}, "status": status}


def test_a_target_that_was_created_again_starts_afresh_from_its_status() -> None:
    states = TargetStates()
    state = states.of(resource(coldStartSeconds=42.0))
    assert state.cold_starts.seconds == 42.0
    assert states.of(resource(coldStartSeconds=50.0)) is state
    assert states.of(resource("other")).cold_starts.seconds is None
    states.forget("chat", "t")
    states.forget("chat", "unknown")
    assert states.of(resource(coldStartSeconds=1.0)).cold_starts.seconds == 1.0


@pytest.mark.parametrize("edited", [-5.0, 200_000.0, 1e300])
def test_a_cold_start_that_cannot_be_is_not_believed(edited: float) -> None:
    assert TargetStates().of(resource(coldStartSeconds=edited)).cold_starts.seconds is None


class Maps:
    """ConfigMaps in memory."""

    def __init__(self, **data: str) -> None:
        self.data, self.reads, self.writes = data, 0, 0

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        self.reads += 1
        assert (namespace, name) == ("chat", "t-demand")
        return self.data

    async def write_config_map(self, namespace: str, name: str, data: dict[str, str], owner: Any) -> None:
        self.writes += 1
        self.data = data
        assert owner["metadata"]["uid"] == "u", "it is deleted with its target"


def add(state: TargetState, maps: Maps, now_s: float, rate_rps: float, elapsed_s: float = 15.0) -> DemandHistory:
    look = seen(now_s, 2, rate_rps=rate_rps)
    return asyncio.run(state.add_demand(maps, resource(), look, elapsed_s))  # type: ignore[arg-type]


def test_demand_is_read_once_and_saved_once_in_the_time_of_a_bin() -> None:
    start_s = BIN_S * 1000
    before = DemandHistory(999, [3.0])
    maps, state = Maps(**{names.HISTORY_KEY: before.to_json()}), TargetState("u")
    assert add(state, maps, start_s, 4.0).rates_rps == [3.0, 4.0]
    assert add(state, maps, start_s + 15, 8.0).rates_rps == [3.0, 6.0]
    assert maps.reads == 1
    for k in range(3):
        add(state, maps, start_s + (k + 1) * BIN_S, 1.0)
        assert (maps.reads, maps.writes) == (1, k + 1)
    assert DemandHistory.from_json(maps.data[names.HISTORY_KEY]).rates_rps == [3.0, 6.0, 1.0, 1.0, 1.0]
    new = Maps()
    add(TargetState("u"), new, start_s, 4.0)
    assert new.writes == 1, "of a new target at once"


def test_the_histories_of_many_are_saved_one_after_another() -> None:
    start_s, saved = BIN_S * 1000, Counter[float]()
    for n in range(100):
        maps, state = Maps(**{names.HISTORY_KEY: DemandHistory(999, [3.0]).to_json()}), TargetState(f"uid-{n}")
        for k in range(41):
            before = maps.writes
            add(state, maps, start_s + 15.0 * k, 4.0)
            saved[k] += maps.writes - before
    assert saved.total() == 100
    assert max(saved.values()) <= 10, "of 2.5 on average"


def test_an_unreadable_history_is_replaced() -> None:
    maps = Maps(**{names.HISTORY_KEY: "spoilt"})
    assert add(TargetState("u"), maps, BIN_S * 1000, 4.0).rates_rps == [4.0]
    assert "spoilt" not in maps.data[names.HISTORY_KEY]


def test_a_rate_counts_for_a_minute_at_most_and_for_something_at_least() -> None:
    state, maps = TargetState("u"), Maps()
    add(state, maps, BIN_S * 1000, 0.0, elapsed_s=60.0)
    assert add(state, maps, BIN_S * 1000 + 1, 6.0, elapsed_s=5000.0).rates_rps == [3.0]
    assert add(state, maps, BIN_S * 1000 + 2, 6.0, elapsed_s=-5.0).rates_rps == [pytest.approx(3.0, abs=0.01)]
