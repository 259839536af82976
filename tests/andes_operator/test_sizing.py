"""What is booked of demand, and the fleet that survives it, from what gateways and pods tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cases import SPEC, Run, predicted, scores, seen

from andes_operator.decide import decide
from andes_operator.gateway_report import ObservedRequest
from andes_operator.growth import GrowthHistory
from andes_operator.ledger import Ledger
from andes_operator.memory import Change, Memory
from andes_operator.names import Reason
from andes_operator.observe import Observation
from andes_operator.sizing import headroom, ready_at_s
from andes_sglang.sim.buffer import Buffer

NOW_S = 1_000_020.0  # a whole minute
ANDES = Buffer(1.1, 200.0)


def arrivals(rate_rps: float, since_s: float, until_s: float) -> tuple[ObservedRequest, ...]:
    return tuple(
        ObservedRequest(since_s + k / rate_rps, "reading", 100, 50, True)
        for k in range(int((until_s - since_s) * rate_rps))
    )


def looked(now_s: float, replicas: int, rate_rps: float, **more: Any) -> Observation:
    recent = arrivals(rate_rps, now_s - 600.0, now_s)
    return seen(now_s, replicas, rate_rps=rate_rps, recent=recent, engine_requests=50, **more)


def booked(rate_rps: float, minutes: int, work_s: float = 2.0, replicas: int = 7) -> Ledger:
    ledger = Ledger()
    for k in range(minutes):
        ledger = ledger.enter(looked(NOW_S + 60.0 * (k - minutes + 1), replicas, rate_rps), work_s, ANDES.rho)
    return ledger


def test_minutes_are_counted_once_however_often_one_looks() -> None:
    ledger = Ledger()
    for k in range(30):
        ledger = ledger.enter(looked(NOW_S + 15.0 * k, 7, 2.0), 2.0, ANDES.rho)
    assert len(ledger.minutes_rps) == 17, "ten in the first record, and seven since"
    assert ledger.minutes_rps == pytest.approx((2.0,) * 17, abs=0.05)
    assert len(booked(2.0, 50).minutes_rps) == 30, "half an hour is kept"


def test_a_minute_before_the_record_counts_at_the_present_rate() -> None:
    ledger = booked(2.0, 20)
    restarted = looked(NOW_S + 120.0, 7, 3.0, complete_since_s=NOW_S + 119.0)
    assert ledger.enter(restarted, 2.0, ANDES.rho).minutes_rps[-2:] == (3.0, 3.0)


def test_backlog_is_what_came_less_what_can_be_done() -> None:
    ledger = booked(2.0, 10)
    assert ledger.backlog_s == 0.0
    for k in range(1, 11):
        ledger = ledger.enter(looked(NOW_S + 15.0 * k, 7, 6.0), 2.0, ANDES.rho)
    assert ledger.backlog_s == pytest.approx(150.0 * (12.0 - 7 * 1.1), rel=0.05)
    assert ledger.enter(looked(NOW_S + 165.0, 7, 6.0, ready=0), 2.0, ANDES.rho).backlog_s > ledger.backlog_s + 170.0
    empty = replace(looked(NOW_S + 165.0, 7, 6.0), engine_requests=0)
    assert ledger.enter(empty, 2.0, ANDES.rho).backlog_s == 0.0, "the engines hold nothing"


def test_the_work_of_a_request_changes_slowly() -> None:
    ledger = booked(2.0, 10, work_s=2.0)
    ledger = ledger.enter(looked(NOW_S + 60.0, 7, 2.0), 4.0, ANDES.rho)
    assert ledger.work_s == pytest.approx(2.2)
    assert ledger.enter(looked(NOW_S + 120.0, 7, 2.0), None, None).work_s == pytest.approx(2.2)


def test_a_ledger_goes_through_the_status() -> None:
    memory = Memory(ledger=Ledger(NOW_S, 16666, (2.0, 1.983), 2.125, 17.5))
    assert Memory.from_dict(json.loads(json.dumps(memory.to_dict()))) == memory
    assert Memory.from_dict({"at": 1.0}).ledger == Ledger(), "of an earlier release"
    for wrong in ({"minute": 1}, {**memory.ledger.to_dict(), "backlogSeconds": -1}, "many"):
        with pytest.raises(ValueError, match=r"status\.memory"):
            Memory.from_dict({"at": 1.0, "ledger": wrong})


def test_it_says_what_a_fleet_survives_and_when_the_next_order_is_due() -> None:
    found = headroom(SPEC, looked(NOW_S, 9, 2.0), booked(2.0, 30), GrowthHistory(), ANDES, cold_s=300.0)
    assert found is not None
    assert found.replicas == 7
    assert str(found) == "7 replicas: survive 3.0 x 4.0 busy for 315 s; the next order would be due in 60 s"
    assert found.due_s == 60.0
    overrun = headroom(SPEC, looked(NOW_S, 2, 9.0), booked(2.0, 30), GrowthHistory(), ANDES, cold_s=300.0)
    assert overrun is not None
    assert "would be noticed in" in str(overrun)


def test_too_little_known_is_no_headroom() -> None:
    ledger, new = booked(2.0, 30), GrowthHistory()
    early = looked(NOW_S, 7, 2.0, complete_since_s=NOW_S - 540.0)
    assert headroom(SPEC, looked(NOW_S, 7, 2.0), ledger, new, None, cold_s=300.0) is None
    assert headroom(SPEC, looked(NOW_S, 7, 2.0), replace(ledger, work_s=None), new, ANDES, cold_s=300.0) is None
    assert headroom(SPEC, early, replace(ledger, minutes_rps=()), new, ANDES, cold_s=300.0) is None
    assert headroom(SPEC, early, ledger, new, ANDES, cold_s=300.0) is not None


def test_a_small_service_is_not_said_to_be_idle() -> None:
    small = headroom(SPEC, looked(NOW_S, 1, 2.0), booked(2.0, 30, work_s=0.01), GrowthHistory(), ANDES, cold_s=300.0)
    assert "survive 3.0 x 0.02 busy for 315 s" in str(small)


def test_pods_that_start_serve_when_their_order_is_a_cold_start_old() -> None:
    starting = seen(NOW_S, 9, ready=4)
    orders = (Change(NOW_S - 250.0, 2), Change(NOW_S - 100.0, -1), Change(NOW_S - 90.0, 2), Change(NOW_S - 30.0, 1))
    assert ready_at_s(starting, orders, 300.0) == [0.0] * 4 + [270.0, 210.0, 210.0, 50.0, 50.0]
    assert ready_at_s(starting, (), 300.0) == [0.0] * 4 + [300.0] * 5, "of unknown orders: as if made now"
    late = (Change(NOW_S - 400.0, 5),)
    assert ready_at_s(starting, late, 300.0) == [0.0] * 4 + [50.0] * 5, "half as late again"
    assert ready_at_s(starting, (Change(NOW_S - 601.0, 5),), 300.0) == [0.0] * 4, "not counted on any more"


# In the decision


def test_headroom_is_asked_for_instead_of_what_steady_demand_needs() -> None:
    found = headroom(SPEC, looked(NOW_S, 7, 2.0), booked(2.0, 30), GrowthHistory(), ANDES, cold_s=300.0)
    decision = decide(SPEC, looked(NOW_S, 7, 2.0), predicted(12), Memory(), headroom=found)
    assert (decision.replicas, decision.reason) == (7, Reason.STEADY)
    decision = decide(SPEC, looked(NOW_S, 5, 2.0), predicted(2), Memory(), headroom=found)
    assert (decision.replicas, decision.reason) == (7, Reason.HEADROOM)
    assert decision.message == str(found)


def test_what_survives_needs_no_prediction_to_grow_and_one_to_shrink() -> None:
    found = headroom(SPEC, looked(NOW_S, 7, 2.0), booked(2.0, 30), GrowthHistory(), ANDES, cold_s=300.0)
    assert decide(SPEC, looked(NOW_S, 5, 2.0), None, Memory(), headroom=found).replicas == 7
    run = Run(9)
    for _ in range(40):
        decision = decide(SPEC, looked(run.now_s, 9, 2.0), None, run.memory, headroom=found)
        run.memory, run.now_s = decision.memory, run.now_s + 15.0
        assert decision.replicas == 9
    assert decide(SPEC, looked(run.now_s, 9, 2.0), predicted(9), run.memory, headroom=found).replicas == 9, "the check"
    assert decide(SPEC, looked(run.now_s, 9, 2.0), predicted(6), run.memory, headroom=found).replicas < 9


def test_the_floor_stays_the_last_resort() -> None:
    found = headroom(SPEC, looked(NOW_S, 7, 2.0), booked(2.0, 30), GrowthHistory(), ANDES, cold_s=300.0)
    bad = looked(NOW_S, 7, 2.0, ended=scores(*[0.5] * 50))
    decision = decide(SPEC, bad, predicted(5), Memory(settled_s=NOW_S - 500, since_s=NOW_S - 500), headroom=found)
    assert (decision.replicas, decision.reason) == (9, Reason.QOE_BELOW_TARGET)


def test_orders_are_remembered_while_pods_start() -> None:
    memory = Memory(at_s=NOW_S - 15.0, replicas=9, changes=(Change(NOW_S - 250.0, 4),))
    assert memory.observe(SPEC, seen(NOW_S, 9, ready=5)).changes == memory.changes
    assert memory.observe(SPEC, seen(NOW_S, 9)).changes == ()


def test_what_yields_brings_no_replica() -> None:
    mixed = looked(NOW_S, 7, 2.0)
    offline = tuple(replace(r, arrival_s=r.arrival_s + 0.1, yields=True) for r in mixed.recent)
    mixed = replace(mixed, recent=tuple(sorted((*mixed.recent, *offline), key=lambda r: r.arrival_s)))
    ledger, new = booked(2.0, 30), GrowthHistory()
    alone = headroom(SPEC, looked(NOW_S, 7, 2.0), ledger, new, ANDES, cold_s=300.0)
    assert headroom(SPEC, mixed, ledger, new, ANDES, cold_s=300.0) == alone
    later = {"now_s": NOW_S + 60.0}
    assert ledger.enter(replace(mixed, **later), 2.0, 1.1) == ledger.enter(
        replace(looked(NOW_S, 7, 2.0), **later), 2.0, 1.1
    )
