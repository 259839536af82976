"""What a replica carries for ever and what it can put off, as the simulator finds it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from andes_sglang.objective import LatencyObjective, Metric, QoEObjective
from andes_sglang.policy import make
from andes_sglang.request import RequestSpec
from andes_sglang.routing import QoE
from andes_sglang.sim import buffer as module
from andes_sglang.sim.buffer import Buffer, _highest, _Table, buffer
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.outcomes import Goal
from andes_sglang.sim.whatif import work_s
from andes_sglang.workload import SyntheticWorkload, readers_of

ENGINE = EngineModel(Costs(0.09, 0.002, 1e-6, 0.06, 1e-4), 2000, 8, 4096, mixed=True)
GOAL = Goal(QoEObjective.parse("mean>=0.95"))
LONG = list(SyntheticWorkload("long", ((100.0, 2.0),), "40-60", "150-250", readers_of("reading"), 1))


def policy(name: str) -> object:
    return None if name == "stock" else make(name)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of what is played otherwise."""
    for name, value in {"FLOOD_S": 200.0, "STEADY_S": 200.0, "SURGE_REQUESTS": 60}.items():
        monkeypatch.setattr(module, name, value)


@cache
def found(name: str, slower: float = 1.0, goal: Goal = GOAL) -> Buffer:
    engine = replace(ENGINE, costs=ENGINE.costs.times(slower))
    return buffer(engine, lambda: policy(name), LONG, [goal], surge_s=60.0)  # type: ignore[arg-type, return-value]


def test_a_preempting_scheduler_carries_as_much_and_puts_off_more() -> None:
    stock, andes = found("stock"), found("andes")
    assert 0.5 < stock.rho <= andes.rho < 1.5
    assert andes.seconds > 1.5 * stock.seconds > 0.0


def test_load_is_counted_in_the_engine_s_own_work() -> None:
    assert found("stock", 1.25).rho == pytest.approx(found("stock").rho, rel=0.15)


@pytest.mark.parametrize(("metric", "name"), [(Metric.TTFT, "stock"), (Metric.STALL, "andes")])
def test_readers_who_may_wait_longer_let_more_be_put_off(metric: Metric, name: str) -> None:
    short, long = (found(name, 1.0, Goal(LatencyObjective(metric, seconds, 90.0))) for seconds in (1.0, 30.0))
    carried = [table.rho * (1.0 + table.seconds / 60.0) for table in (short, long)]
    assert short.rho <= long.rho
    assert carried[1] > 1.03 * carried[0], "in a surge of a minute"


def test_a_goal_that_nothing_meets_leaves_nothing_to_put_off() -> None:
    slow = found("stock", 60.0)
    assert slow.seconds == 0.0
    assert slow.rho < 0.2


def test_the_same_question_gets_the_same_answer() -> None:
    assert buffer(ENGINE, lambda: None, LONG, [GOAL], surge_s=60.0) == found("stock")


@pytest.mark.parametrize("phases", [[(100.0, 1.0)], [(60.0, 0.5), (100.0, 3.0), (60.0, 0.0)]])
def test_as_much_work_arrives_in_a_phase_as_it_says(phases: list[tuple[float, float]]) -> None:
    table = _Table(ENGINE, lambda: None, LONG, [GOAL], np.zeros(len(LONG), dtype=np.int64), QoE, 120.0, 0)
    picked, at_s, works = table._arrivals(phases, 2)
    assert list(at_s) == sorted(at_s)
    begin_s = 0.0
    for seconds, load in phases:
        inside = (at_s >= begin_s) & (at_s < begin_s + seconds)
        assert works[inside].sum() == pytest.approx(2 * seconds * load, abs=2 * work_s(ENGINE, LONG).max())
        begin_s += seconds
    assert works == pytest.approx(work_s(ENGINE, LONG)[picked])


def test_a_search_brackets_then_bisects_and_keeps_its_bounds() -> None:
    for limit in (0.4, 1.3, 3.0):
        assert _highest(lambda x, limit=limit: x <= limit, 0.5, (0.05, 8.0)) == pytest.approx(limit, rel=0.2)  # type: ignore[misc]
    assert _highest(lambda _: True, 0.5, (0.05, 8.0)) == 8.0
    assert _highest(lambda _: False, 0.5, (0.05, 8.0)) is None


def test_what_cannot_be_asked_is_named() -> None:
    with pytest.raises(ValueError, match="requests must not be empty"):
        buffer(ENGINE, lambda: None, [], [GOAL])
    with pytest.raises(ValueError, match="surge_s must be > 0 seconds, got 0"):
        buffer(ENGINE, lambda: None, [RequestSpec(0.0, 10, 10)], [GOAL], surge_s=0)
