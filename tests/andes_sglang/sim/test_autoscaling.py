"""The autoscalers rule by rule, on fleets that stand still; and one scenario from end to end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.autoscaling import (
    AutoscalingRun,
    ClairvoyantAutoscaler,
    FinishedRequests,
    MetricAutoscaler,
    RatePlanner,
    Scenario,
    busy_rps,
    kv_utilisation,
    open_requests,
    simulate_scenario,
    waiting_requests,
)
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.plan import capacity_rps
from andes_sglang.sim.replica import Replica
from andes_sglang.workload import Workload, mean_length

ENGINE = EngineModel(Costs(0.01, 0.002, 1e-5, 0.02, 1e-3), kv_capacity_tokens=2000, chunk_tokens=500)


@dataclass
class Load:
    """What an autoscaler reads of a replica."""

    open_requests: int = 0
    kv_used_tokens: int = 0
    waiting: list[int] = field(default_factory=list)
    engine: EngineModel = ENGINE


@dataclass
class FleetState:
    """What an autoscaler reads of a fleet, standing still at ``now_s``."""

    now_s: float
    serving: list[Load]
    starting: list[Load] = field(default_factory=list)
    draining: list[Load] = field(default_factory=list)

    @property
    def replicas(self) -> list[Load]:
        return self.serving + self.draining


def fleet(now_s: float, *open_: int, starting: int = 0, draining: tuple[int, ...] = ()) -> Fleet:
    state = FleetState(now_s, [Load(n) for n in open_], [Load()] * starting, [Load(n) for n in draining])
    return cast("Fleet", state)


def steady(
    rate_rps: float, seconds: float, since_s: float = 0.0, prompt: int = 100, output: int = 50
) -> list[RequestSpec]:
    times_s = since_s + np.arange(1, round(rate_rps * seconds) + 1) / rate_rps
    return [RequestSpec(float(t), prompt, output, QoETarget(1.0, 4.5)) for t in times_s]


def finished(end_s: float, ttft_s: float) -> RequestRecord:
    """Three tokens in the last second, the first one ``ttft_s`` after the arrival, where 1 s was expected."""
    first_s = end_s - 1.0
    deliveries = [(first_s, 1), (end_s - 0.5, 1), (end_s, 1)]
    arrival_s = first_s - ttft_s
    return RequestRecord(0, arrival_s, arrival_s, 100, 3, 1.0, 4.5, deliveries, end_s)


# The horizontal pod autoscaler's formula, and the metrics that HPA and KEDA are set up with


def test_metric_over_target_rounded_up_draining_load_included() -> None:
    scaler = MetricAutoscaler(4.0)
    assert scaler.desired_replicas(fleet(0.0, 4, 4)) == 2
    assert scaler.desired_replicas(fleet(0.0, 5, 4)) == 3
    assert scaler.desired_replicas(fleet(0.0, 4, 4, draining=(5,))) == 4


def test_up_at_once_and_down_to_the_largest_figure_of_the_window() -> None:
    scaler = MetricAutoscaler(1.0, stabilization_s=60.0)
    assert scaler.desired_replicas(fleet(0.0, 2)) == 2
    assert scaler.desired_replicas(fleet(10.0, 7)) == 7
    assert scaler.desired_replicas(fleet(70.0, 3)) == 7, "60 s after the 7 it still counts"
    assert scaler.desired_replicas(fleet(70.1, 1)) == 3, "then the largest since"


def test_a_fleet_that_has_just_begun_is_not_cut_to_what_its_first_requests_need() -> None:
    """Kubernetes records the replicas that it finds as its first recommendation."""
    scaler = MetricAutoscaler(1.0, stabilization_s=60.0)
    assert scaler.desired_replicas(fleet(0.0, 1, 0, 0, starting=2)) == 5
    assert scaler.desired_replicas(fleet(60.0, 1, 1, 0, starting=2)) == 5
    assert scaler.desired_replicas(fleet(60.1, 1, 1, 0, starting=2)) == 2


def test_within_the_tolerance_nothing_changes() -> None:
    def desired(*open_: int, starting: int = 0, tolerance: float = 0.1) -> int:
        scaler = MetricAutoscaler(10.0, tolerance=tolerance)
        scaler.desired_replicas(fleet(0.0, *open_, starting=starting))
        return scaler.desired_replicas(fleet(1000.0, *open_, starting=starting))

    assert desired(11, 10, tolerance=0.0) == 3
    assert desired(11, 10) == 2, "5 % above the target"
    assert desired(11, 10, starting=3) == 5, "those that start stay"
    assert desired(10, 9, 9, 9, 9, 9, 9, 9, 9, 9) == 10, "8 % below it"
    assert desired(12, 11) == 3, "15 % above"
    assert desired(9, 8) == 2
    assert desired(5, 5) == 1


def test_bounds_hold() -> None:
    scaler = MetricAutoscaler(1.0, min_replicas=2, max_replicas=5, stabilization_s=0.0)
    assert [scaler.desired_replicas(fleet(float(t), n)) for t, n in enumerate((0, 3, 90))] == [2, 3, 5]


def test_metrics_read_what_their_names_say() -> None:
    smaller = replace(ENGINE, kv_capacity_tokens=1000)
    replica = cast("Replica", Load(open_requests=7, kv_used_tokens=500, waiting=[1, 2, 3], engine=smaller))
    assert kv_utilisation(replica) == 0.5
    assert open_requests(replica) == 7.0
    assert waiting_requests(replica) == 3.0
    served = Replica(ENGINE, None, sink=[].append)
    for _ in range(3):
        served.submit(RequestSpec(0.0, 1000, 50))
    served.advance(2.0)
    assert kv_utilisation(served) > 0.4
    assert open_requests(served) == 3.0
    assert waiting_requests(served) >= 1.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": 0.0}, "target must be > 0, got 0.0"),
        (
            {"target": 1.0, "min_replicas": 3, "max_replicas": 2},
            "min_replicas must be between 1 and max_replicas 2, got 3",
        ),
        ({"target": 1.0, "min_replicas": 0}, "min_replicas must be between 1"),
        ({"target": 1.0, "tolerance": 1.0}, r"tolerance must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MetricAutoscaler(**options)
    scenario = Scenario(steady(1.0, 5.0), ENGINE)
    for make_it in (
        lambda: RatePlanner(scenario, FinishedRequests(), 0.0),
        lambda: ClairvoyantAutoscaler(scenario, 0.0),
    ):
        with pytest.raises(ValueError, match=r"utilisation must be > 0, got 0\.0"):
            make_it()


# The planner by rate


def planner(requests: list[RequestSpec], utilisation: float = 1.0, **more: Any) -> RatePlanner:
    return RatePlanner(Scenario(requests, ENGINE, **more), FinishedRequests(), utilisation)


def test_the_planner_divides_the_last_minutes_rate_by_what_a_replica_takes() -> None:
    each_rps = busy_rps(ENGINE, steady(1.0, 1.0))
    requests = steady(5.4 * each_rps, 200.0)
    assert planner(requests).desired_replicas(fleet(150.0, 0)) == 6
    assert planner(requests, 0.5).desired_replicas(fleet(150.0, 0)) == 11
    busier = [*requests, *steady(20.5 * each_rps, 60.0, 200.0)]
    assert planner(busier).desired_replicas(fleet(200.0, 0)) == 6
    assert planner(busier).desired_replicas(fleet(260.0, 0)) == 21, "of the last minute only"


def test_the_planner_takes_the_last_fifty_requests_where_a_minute_has_fewer() -> None:
    each_rps = busy_rps(ENGINE, steady(1.0, 1.0))
    sparse = [*steady(0.5, 100.0), RequestSpec(100.5, 2000, 500, QoETarget(1.0, 4.5))]
    found = planner(sparse, utilisation=0.01)
    seen = sparse[-50:]
    assert found.desired_replicas(fleet(101.0, 0)) == np.ceil(
        len(seen) / (101.0 - seen[0].arrival_s) / (0.01 * busy_rps(ENGINE, seen))
    )
    first_s = 1.0 / each_rps
    for now_s in (first_s, 1.5 * first_s):
        found = planner(steady(each_rps, 100.0))
        assert found.desired_replicas(fleet(now_s, 0, 0, 0)) == 3, "too few requests to say: as it is"


def test_late_first_tokens_correct_the_planner_up_to_twice_the_rate() -> None:
    each_rps = busy_rps(ENGINE, steady(1.0, 1.0))
    for ttft_s, correction in ((0.2, 1.0), (1.5, 1.5), (9.0, 2.0)):
        scaler = planner(steady(4.4 * each_rps, 200.0))
        scaler.finished.add(finished(30.0, 100.0))
        scaler.finished.add(finished(149.0, ttft_s))
        assert scaler.correction(90.0) == pytest.approx(correction), "of what ended in the window"
        assert scaler.desired_replicas(fleet(150.0, 0)) == np.ceil(4.4 * correction)


def test_the_planner_goes_down_after_five_minutes_of_its_clock() -> None:
    each_rps = busy_rps(ENGINE, steady(1.0, 1.0))
    requests = [*steady(8.5 * each_rps, 100.0), *steady(2.5 * each_rps, 600.0, 100.0)]
    scaler = planner(requests)
    assert [scaler.desired_replicas(fleet(t, 0)) for t in (100.0, 390.0, 401.0)] == [9, 9, 3]
    fast = planner(requests, speed=10.0)
    assert fast.interval_s == 6.0
    assert [fast.desired_replicas(fleet(t, 0)) for t in (100.0, 129.0, 131.0)] == [9, 9, 3], "30 simulated seconds"


# The clairvoyant one


def test_the_clairvoyant_is_ready_for_the_busiest_stretch_before_a_replica_would_serve() -> None:
    """At ten times the clock a stretch is 60 s, and a replica takes 30 s to start."""
    each_rps = busy_rps(ENGINE, steady(1.0, 1.0))
    scenario = Scenario([*steady(1.4 * each_rps, 300.0), *steady(6.4 * each_rps, 200.0, 300.0)], ENGINE, speed=10.0)
    scaler = ClairvoyantAutoscaler(scenario, 1.0)
    assert scaler.replicas_at(150.0) == 2
    assert scaler.replicas_at(240.0) == 7, "a replica ordered now serves when the surge has begun"
    assert scaler.replicas_at(270.0) == 7
    assert scaler.desired_replicas(fleet(270.0, 0)) == 7
    assert ClairvoyantAutoscaler(scenario, 0.5).replicas_at(150.0) == 3
    assert ClairvoyantAutoscaler(scenario, 1.0, max_replicas=4).replicas_at(270.0) == 4
    assert scaler.replicas_at(900.0) == 1, "nothing to come"


# Scenarios


def test_a_compressed_day_keeps_requests_and_shortens_the_autoscalers_clock() -> None:
    rates = tuple((600.0, 1.0 + 3.0 * (k % 6 == 4)) for k in range(12))
    scenario = Scenario.of_day(
        rates, ENGINE, day=1, day_windows=6, peak_replicas=2.0, lengths=("100", "50"), speed=10.0, seed=1
    )
    each_rps = capacity_rps(ENGINE, mean_length("100"), mean_length("50"))
    assert scenario.cold_start_s == 30.0
    assert scenario.clock_origin_s == 3600.0
    assert len(scenario.past) == 6
    assert scenario.span_s == pytest.approx(360.0, abs=3.0)
    peak = len(scenario.between(240.0, 300.0)) / 60.0
    assert peak == pytest.approx(2.0 * each_rps, rel=0.25), "Poisson"
    assert scenario.past[4][1] == pytest.approx(2.0 * each_rps / 10.0), "by the autoscaler's clock"
    assert {(r.prompt_tokens, r.output_tokens) for r in scenario.requests} == {(100, 50)}


def test_recorded_requests_are_thinned_and_stretched_and_get_readers() -> None:
    recorded = Workload("recorded", tuple(steady(1.0, 10.0)))
    scenario = Scenario.of_requests(recorded, ENGINE, every=3, stretch=2.0, speed=1.0, seed=2)
    assert [r.arrival_s for r in scenario.requests] == [4.0, 10.0, 16.0]
    assert {r.target.tds for r in scenario.requests} != {4.5}


def test_what_is_recent_is_a_window_or_as_many_as_asked_for() -> None:
    scenario = Scenario(steady(1.0, 100.0), ENGINE)
    assert [i for i, _ in scenario.recent(50.5, 10.0, 1)] == list(range(40, 50))
    assert [i for i, _ in scenario.recent(50.5, 10.0, 20)] == list(range(30, 50))
    assert [i for i, _ in scenario.recent(5.5, 10.0, 20)] == list(range(5))
    assert scenario.rate_rps(50.5, 10.0) == pytest.approx(1.0)
    assert scenario.rate_rps(5.0, 10.0) == pytest.approx(4 / 5.0), "of the seconds that there have been"


def test_finished_requests_out_of_order_are_found() -> None:
    log = FinishedRequests()
    for end_s in (10.0, 22.0, 19.0, 30.0, 27.0):
        log.add(finished(end_s, 0.5))
    assert [r.end_s for r in log.since(20.0)] == [27.0, 30.0, 22.0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"requests": []}, "requests must not be empty"),
        ({"speed": 0.0}, "speed must be > 0, got 0.0"),
        ({"clock_cold_start_s": -1.0}, "clock_cold_start_s must be >= 0 seconds, got -1.0"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Scenario(**({"requests": steady(1.0, 5.0), "engine": ENGINE} | options))


# A run

QUIET_SURGE_QUIET = [*steady(0.4, 240.0), *steady(12.0, 20.0, 240.0), *steady(0.4, 60.0, 260.0)]


def test_a_run_counts_what_readers_got() -> None:
    scenario, told, log = Scenario(QUIET_SURGE_QUIET, ENGINE), [], FinishedRequests()
    run = simulate_scenario(scenario, lambda: None, None, replicas=1, finished=log, progress=told.append)
    assert run.replica_hours == pytest.approx(run.end_s / 3600.0)
    assert run.max_replicas == 1
    assert len(log.records) == run.requests == len(scenario.requests)
    qoe = np.array([r.qoe for r in sorted(log.records, key=lambda r: r.arrival_s)])
    assert run.mean == pytest.approx(qoe.mean())
    assert run.p5 == pytest.approx(np.percentile(qoe, 5))
    assert run.share == pytest.approx(np.mean(qoe >= 0.95))
    assert 0.0 < run.share < np.mean(qoe >= 0.5)
    part = np.minimum(23, np.floor(np.array(scenario.arrivals_s) * 24 / scenario.span_s))
    assert run.windows == pytest.approx([qoe[part == k].mean() for k in range(24)])
    assert min(run.windows) < 0.8
    assert run.backlog_requests == sum(r.end_s > scenario.arrivals_s[-1] for r in log.records) > 0
    assert told == sorted(told)
    assert told[-1] <= 1.0


def test_the_objective_is_met_in_a_share_of_the_windows() -> None:
    run = AutoscalingRun(1.0, 1, 4, 0, 4.0, 5.0, 0.9, 0.5, 0.5, (0.94, 0.95, 0.96, 1.0), ())
    assert run.met(0.95) == 0.75
    assert run.met(0.97) == 0.25


def test_a_run_under_an_autoscaler_pays_for_what_starts_and_serves_with_it_later() -> None:
    def scaled(cold_start_s: float) -> AutoscalingRun:
        scaler = MetricAutoscaler(4.0, interval_s=5.0, stabilization_s=20.0, max_replicas=8)
        scenario = Scenario(QUIET_SURGE_QUIET, ENGINE, clock_cold_start_s=cold_start_s)
        return simulate_scenario(scenario, lambda: None, scaler, replicas=1)

    static = simulate_scenario(Scenario(QUIET_SURGE_QUIET, ENGINE), lambda: None, None, replicas=1)
    soon, never = scaled(10.0), scaled(10_000.0)
    assert soon.mean > static.mean
    assert 1 < soon.max_replicas <= 8
    assert never.mean == pytest.approx(static.mean), "none had started in time"
    for run in (soon, never):
        assert run.replica_hours > 1.2 * run.end_s / 3600.0
        assert max(n for _, n in run.timeline) == run.max_replicas
        assert run.timeline[0][1] == 1
