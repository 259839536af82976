"""The operator over a simulated fleet: what it is shown, how it decides, when it asks the simulator again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from andes_operator import fleet_autoscaler as module
from andes_operator.demand import Lengths
from andes_operator.fleet_autoscaler import MIN_REQUESTS, READER_CLASS, FleetAutoscaler
from andes_operator.table import Table
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim.autoscaling import FinishedRequests, Scenario, simulate_scenario
from andes_sglang.sim.buffer import Buffer
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.whatif import work_s

LENGTHS = Lengths(100.0, 50.0, 4.5, 1.0, 50.0, 1.0)
ENGINE = EngineModel(Costs(0.01, 0.002, 1e-5, 0.02, 1e-3), kv_capacity_tokens=2000, chunk_tokens=500)


def steady(rate_rps: float, seconds: float, since_s: float = 0.0) -> list[RequestSpec]:
    times_s = since_s + np.arange(1, round(rate_rps * seconds) + 1) / rate_rps
    return [RequestSpec(float(t), 100, 50, QoETarget(1.0, 4.5)) for t in times_s]


def autoscaler(scenario: Scenario, **more: Any) -> FleetAutoscaler:
    options: dict[str, Any] = {"target": 0.95, "max_replicas": 9, "headroom": False, **more}
    return FleetAutoscaler(scenario, FinishedRequests(), ENGINE, lambda: None, **options)


def served(scenario: Scenario, until_s: float, finished: FinishedRequests, replicas: int = 1) -> Fleet:
    fleet = Fleet(ENGINE, replicas=replicas, sink=finished.add)
    for spec in scenario.between(0.0, until_s):
        fleet.submit(spec)
    fleet.advance(until_s)
    return fleet


def test_it_sees_what_gateways_and_pods_would_tell() -> None:
    scenario = Scenario(steady(4.0, 60.0), ENGINE)
    scaler = autoscaler(scenario)
    fleet = served(scenario, 30.0, scaler.finished, replicas=2)
    seen = scaler.observe(fleet)
    assert seen.now_s == 30.0
    assert seen.pods.ready == 2
    assert seen.rate_rps == pytest.approx(4.0, rel=0.05)
    assert seen.open_streams == fleet.open_requests > 0
    silent = [job for r in fleet.replicas for job in r.by_rid.values() if not r.generated(job)]
    assert seen.waiting == seen.running[READER_CLASS].count == len(silent) < fleet.open_requests
    assert seen.ended[READER_CLASS].count == len(scaler.finished.records) > 0
    assert len(seen.recent) == len(scenario.between(0.0, 30.0)) < MIN_REQUESTS
    assert sum(not r.done for r in seen.recent) == fleet.open_requests
    assert all(r.output_tokens < 50 for r in seen.recent if not r.done), "of an open stream only how far it is"


def test_it_sees_how_much_of_an_answer_was_thought() -> None:
    """What is not shown is not read: a table that takes it for read counts on buffers that are not there."""
    scenario = Scenario([replace(r, reason_tokens=40) for r in steady(4.0, 60.0)], ENGINE)
    scaler = autoscaler(scenario)
    seen = scaler.observe(served(scenario, 30.0, scaler.finished, replicas=2))
    assert {r.reason_tokens for r in seen.recent if r.done} == {40}
    assert all(r.reason_tokens == min(40, r.output_tokens) for r in seen.recent)


def test_a_stream_without_a_first_token_counts_as_missed_once_it_is_late() -> None:
    scenario = Scenario(
        [RequestSpec(1.0, 1900, 50, QoETarget(1.0, 4.5)), RequestSpec(1.0, 100, 50, QoETarget(9.0, 4.5))], ENGINE
    )
    scaler = autoscaler(scenario)
    seen = scaler.observe(served(scenario, 2.5, scaler.finished))
    assert seen.waiting == 2
    assert seen.running[READER_CLASS].mean == 0.5, "one expected its first token at 2 s, one at 10 s"


def test_the_what_if_is_asked_once_for_a_rate_and_again_when_it_is_out_of_date() -> None:
    scenario = Scenario(steady(4.0, 100.0), ENGINE)
    scaler = autoscaler(scenario, remember_s=60.0)
    asked = []
    for now_s in (30.0, 30.0, 59.9, 59.9, 60.0):
        scaler.predict(scaler.observe(served(scenario, now_s, FinishedRequests(), replicas=3)))
        asked.append(scaler.what_ifs)
    assert asked[:2] == [1, 1], "the same rate"
    assert asked[3] == asked[2] < asked[4], "after remember_s nothing is kept"
    assert all(n is not None and 1 <= n <= 9 for n in scaler.known.values())


def test_forecasts_are_shared_between_runs_with_a_season() -> None:
    scenario = Scenario(steady(4.0, 60.0), ENGINE, past=((600.0, 2.0),))
    scaler = autoscaler(scenario, forecasts={630.0: 40.0})
    scaler.predict(scaler.observe(served(scenario, 30.0, scaler.finished, replicas=3)))
    assert max(scaler.known) == pytest.approx(40.0, rel=0.05)
    kept: dict[float, float] = {}
    scaler = autoscaler(scenario, forecasts=kept)
    scaler.predict(scaler.observe(served(scenario, 30.0, scaler.finished, replicas=3)))
    assert kept == {630.0: pytest.approx(4.0, rel=0.2)}, "by the clock, which begins after the past"


def test_it_follows_a_surge_up_and_keeps_its_bound() -> None:
    scenario = Scenario([*steady(1.0, 100.0), *steady(12.0, 60.0, 100.0)], ENGINE, clock_cold_start_s=10.0)
    scaler = autoscaler(scenario, max_replicas=4, remember_s=60.0)
    run = simulate_scenario(scenario, lambda: None, scaler, replicas=1, finished=scaler.finished)
    before = [n for at_s, n in run.timeline if at_s < 100.0]
    assert max(before) <= 2
    assert run.max_replicas == 4


def test_it_remembers_its_decisions_and_goes_down_late() -> None:
    scenario = Scenario([*steady(12.0, 30.0), *steady(0.5, 400.0, 30.0)], ENGINE)
    scaler = autoscaler(scenario, max_replicas=6)
    high = scaler.desired_replicas(served(scenario, 30.0, FinishedRequests(), replicas=6))
    assert high > 2
    in_calm = [served(scenario, now_s, FinishedRequests(), replicas=high) for now_s in (140.0, 400.0)]
    assert [scaler.desired_replicas(fleet) for fleet in in_calm] == [high, high - 1], (
        "two minutes after the last higher figure"
    )


class Order:
    """An autoscaler that orders three replicas."""

    interval_s = 10.0

    def desired_replicas(self, fleet: Fleet) -> int:
        return 3


def test_replicas_that_start_are_there_but_not_ready() -> None:
    scenario = Scenario(steady(1.0, 60.0), ENGINE)
    fleet = Fleet(ENGINE, autoscaler=Order(), start_s=100.0)
    fleet.submit(scenario.requests[0])
    fleet.advance(30.0)
    pods = autoscaler(scenario).observe(fleet).pods
    assert (pods.wanted, pods.existing, pods.ready) == (3, 3, 1)


def test_it_keeps_what_survives_a_surge_and_asks_the_what_if_only_before_a_step_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "tabulate", lambda *_, **__: Table(Buffer(1.0, 100.0), LENGTHS, 0.0))
    scenario = Scenario(steady(4.0, 1000.0), ENGINE, clock_cold_start_s=100.0)
    scaler = autoscaler(scenario, headroom=True)
    run = simulate_scenario(scenario, lambda: None, scaler, replicas=2, finished=scaler.finished)
    busy = 4.0 * float(work_s(ENGINE, scenario.requests).mean())
    reserve = math.ceil(3.0 * busy / (1 + 100.0 / 115.0))
    assert [n for at_s, n in run.timeline if at_s < 600.0][-1] == 2, "the first minutes read high"
    assert run.timeline[-1][1] == pytest.approx(reserve, abs=1)
    assert scaler.what_ifs == 0
    assert scaler.headroom is not None
    assert "survive 3.0 x" in str(scaler.headroom)
