"""Reports of several gateways become one observation, or a fault that says which gateway and what."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from cases import seconds

from andes_operator.gateway_report import FleetReplica, GatewayReport, ObservedRequest, options_of
from andes_operator.names import Reason
from andes_operator.observe import Observation, PodCounts, merge
from andes_sglang.objective import Metric
from andes_sglang.qoe import QoETarget
from andes_sglang.sketch import Sketch

NOW_S = 1_000_000.0


def sketch(*scores: float) -> Sketch:
    made = Sketch()
    for score in scores:
        made.add(score)
    return made


def report(name: str = "a", **more: Any) -> GatewayReport:
    given: dict[str, Any] = {
        "now_s": NOW_S,
        "received_s": NOW_S,
        "demand_since_s": NOW_S - 600,
        "requests": tuple(ObservedRequest(NOW_S - 60 + i, "reading", 100, 50, True) for i in range(60)),
        "ended": {"reading": sketch(*[1.0] * 30)},
        "running": {"reading": sketch(*[0.9] * 4)},
        "replicas": (
            FleetReplica("10.0.0.1:80", True, False, 3, 1, 2),
            FleetReplica("10.0.0.2:80", True, True, 1, 0, 1),
        ),
    }
    return GatewayReport(gateway=name, **{**given, **more})


def merged(*reports: GatewayReport, **more: Any) -> Observation:
    return merge(reports, PodCounts(2, 2, 2), NOW_S, 120.0, **more)


def test_the_policy_of_most_engines_is_known() -> None:
    said = {"name": "10.0.0.3:80", "healthy": True, "draining": False, "streams": 0, "waiting": 0, "others": 0}
    policies = [{"name": "andes", "options": {"stall_bound_s": 30}}] * 2 + [{"name": "stock", "options": {}}, None]
    sketches = {"now_s": NOW_S, "classes": {}, "running": {}}
    answer = {"replicas": [{**said, "policy": policy} for policy in policies]}
    made = GatewayReport.parse(
        "a", {"now_s": NOW_S, "records": []}, sketches, answer, since_s=NOW_S - 600, received_s=NOW_S
    )
    assert merged(made).policy == ("andes", (("stall_bound_s", 30),))
    assert merged(report()).policy is None
    odd = {"replicas": [{**said, "policy": {"name": "andes", "options": {"x": [1]}}}]}
    made = GatewayReport.parse("a", {"now_s": NOW_S, "records": []}, sketches, odd, since_s=0, received_s=NOW_S)
    assert merged(made).policy == ("andes", (("x", "[1]"),)), (
        "an option that the what-if will name is no fault of the data"
    )


def test_gateways_are_added_up_not_averaged() -> None:
    other = report(
        "b",
        ended={"reading": sketch(*[0.5] * 10), "code": sketch(0.7)},
        replicas=(FleetReplica("10.0.0.1:80", True, False, 2, 0, 3),),
        running={"reading": sketch(0.8, 0.8)},
    )
    seen = merged(report(), other)
    assert seen.fault is None
    assert seen.rate_rps == pytest.approx(120 / 120)
    assert (seen.open_streams, seen.waiting, seen.last_arrival_s) == (6, 1, NOW_S - 1.0)
    assert seen.figures[Metric.QOE]["reading"].count == 30 + 4 + 10 + 2
    assert seen.figures[Metric.QOE]["reading"].mean == pytest.approx((30 + 3.6 + 5 + 1.6) / 46)
    assert seen.figures[Metric.QOE]["code"].mean == pytest.approx(0.7)
    assert seen.streams_by_replica == {"10.0.0.1:80": 5, "10.0.0.2:80": 1}


def test_the_rate_counts_only_the_time_that_is_known() -> None:
    assert merged(report(demand_since_s=NOW_S - 30)).rate_rps == pytest.approx(29 / 30)


def test_streams_held_without_an_engine_wait() -> None:
    seen = merged(report(replicas=(), held=2), report("b", replicas=(), held=1))
    assert (seen.open_streams, seen.waiting) == (3, 3)


@pytest.mark.parametrize(
    ("reports", "more", "reason", "said"),
    [
        ([], {}, Reason.DATA_MISSING, "no gateway to ask"),
        ([report()], {"missing": ["gateway b: timed out"]}, Reason.DATA_MISSING, "gateway b: timed out"),
        ([report()], {"broken": ["gateway b: KeyError 'records'"]}, Reason.DATA_CONTRADICTORY, "gateway b"),
        ([report(received_s=NOW_S - 90, now_s=NOW_S - 90)], {}, Reason.DATA_STALE, "answer of gateway a is 90 s old"),
        ([report(now_s=NOW_S - 45)], {}, Reason.DATA_STALE, "gateway a is 45 s behind"),
        ([report(now_s=NOW_S + 45)], {}, Reason.DATA_CONTRADICTORY, "gateway a is 45 s ahead"),
        ([report(replicas=(FleetReplica("x:1", False, False, 0, 0, 0),))], {}, Reason.DATA_CONTRADICTORY,
         "2 replicas are ready, but no gateway finds a healthy one"),
        ([report(replicas=(FleetReplica("x:1", True, False, 5, 0, 40),))], {}, Reason.DATA_CONTRADICTORY,
         "the engines hold 45 requests of which no gateway sent 40"),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted_is_named(
    reports: list[GatewayReport], more: dict[str, Any], reason: Reason, said: str
) -> None:
    fault = merged(*reports, **more).fault
    assert fault is not None
    assert fault.reason is reason
    assert said in fault.message


def test_others_of_one_gateway_are_streams_of_another() -> None:
    a = report(replicas=(FleetReplica("x:1", True, False, 30, 0, 20),), running={})
    b = report("b", replicas=(FleetReplica("x:1", True, False, 20, 0, 30),), running={})
    assert merged(a, b).fault is None


def test_engines_count_for_themselves_where_they_can() -> None:
    def engine(name: str, streams: int, requests: int | None) -> FleetReplica:
        return FleetReplica(name, True, False, streams, 0, 0, requests=requests)

    a = report(replicas=(engine("x:1", 30, 12), engine("x:2", 7, None)), held=2)
    b = report("b", replicas=(engine("x:1", 20, 14), engine("x:2", 5, None)))
    assert merged(a, b).open_streams == 64
    assert merged(a, b).engine_requests == 14 + 12 + 2, "slow readers are no load; what cannot count has its streams"


def test_a_report_is_read_from_what_the_gateway_answers() -> None:
    demand = {"now_s": NOW_S, "complete_since_s": NOW_S - 50, "records": [
        {"arrival_s": NOW_S - 5, "class": "code", "prompt_tokens": 10, "output_tokens": 3, "outcome": "open"},
        {"arrival_s": NOW_S - 4, "class": "code", "prompt_tokens": 10, "output_tokens": 0, "outcome": "shed",
         "ttft_target_s": 0.5, "tds": 20.0}]}  # fmt: skip
    qoe = {"now_s": NOW_S, "classes": {"code": sketch(0.5).to_dict()}, "running": {}}
    replicas = {
        "replicas": [{"name": "x:1", "healthy": None, "draining": False, "streams": 1, "waiting": 1, "others": 0}]
    }
    read = GatewayReport.parse("a", demand, qoe, replicas, since_s=NOW_S - 600, received_s=NOW_S)
    assert read.requests == (
        ObservedRequest(NOW_S - 5, "code", 10, 3, False),
        ObservedRequest(NOW_S - 4, "code", 10, 0, False, refused=True, target=QoETarget(0.5, 20.0)),
    )
    assert read.demand_since_s == NOW_S - 50
    assert read.ended["code"].mean == 0.5
    assert (read.ttft, read.stall) == ({}, {}), "of a gateway that does not tell"
    waited = {name: {"classes": seconds(1.0), "running": seconds(4.0, 4.0)} for name in ("ttft_s", "stall_s")}
    said = json.loads(json.dumps(qoe | waited, default=lambda s: s.to_dict()))
    read = GatewayReport.parse("a", demand, said, replicas, since_s=NOW_S - 600, received_s=NOW_S)
    two = merged(read, read).figures
    for metric in (Metric.TTFT, Metric.STALL):
        assert two[metric]["reading"].count == 6
        assert two[metric]["reading"].quantile(0.5) == pytest.approx(4.0, rel=0.02)
    assert read.replicas == (FleetReplica("x:1", False, False, 1, 1, 0),)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("now_s", float("nan")),
        ("now_s", None),
        ("records", None),
        ("records", [{"arrival_s": 1.0}]),
        ("records", [{"arrival_s": -1.0, "class": "a", "prompt_tokens": 1, "output_tokens": 1, "outcome": "done"}]),
    ],
)
def test_nonsense_is_refused_with_the_gateways_name(part: str, value: Any) -> None:
    demand = {"now_s": NOW_S, "records": [], part: value}
    with pytest.raises(ValueError, match="gateway a: "):
        GatewayReport.parse(
            "a", demand, {"now_s": NOW_S, "classes": {}, "running": {}}, {"replicas": []}, since_s=0.0, received_s=NOW_S
        )
    with pytest.raises(ValueError, match="gateway a: "):
        GatewayReport.parse("a", {"now_s": NOW_S, "records": []}, {"now_s": NOW_S, "classes": {"x": {"counts": {"999": 1}}}},
                  {"replicas": []}, since_s=0.0, received_s=NOW_S)  # fmt: skip


def test_pods_that_are_wanted_or_there_but_not_ready_are_on_their_way() -> None:
    assert PodCounts(5, 2, 2).starting == 3
    assert PodCounts(2, 4, 2).starting == 2
    assert PodCounts(2, 2, 2).starting == 0
    assert replace(PodCounts(2, 2, 2), ready=3).starting == 0


# Rules at their bounds


def engine(name: str = "x:1", streams: int = 0, others: int = 0, **more: Any) -> FleetReplica:
    given: dict[str, Any] = {"healthy": True, "draining": False, "waiting": 0}
    return FleetReplica(name, streams=streams, others=others, **{**given, **more})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"received_s": NOW_S - 60, "now_s": NOW_S - 60}, None),
        ({"received_s": NOW_S - 61, "now_s": NOW_S - 61}, Reason.DATA_STALE),
        ({"now_s": NOW_S + 30}, None), ({"now_s": NOW_S + 31}, Reason.DATA_CONTRADICTORY),
        ({"now_s": NOW_S - 30}, None), ({"now_s": NOW_S - 31}, Reason.DATA_STALE),
        ({"received_s": NOW_S - 40, "now_s": NOW_S}, Reason.DATA_CONTRADICTORY),  # its clock against when it answered
        ({"replicas": (engine(streams=10, others=10),)}, None),
        ({"replicas": (engine(streams=9, others=10),)}, Reason.DATA_CONTRADICTORY),
        ({"replicas": (engine(streams=0, others=9), engine("y:1"))}, None),
        ({"replicas": (engine(healthy=False), engine("y:1"))}, None),
    ],
)  # fmt: skip
def test_how_far_data_is_trusted(given: dict[str, Any], reason: Reason | None) -> None:
    fault = merged(report(), report("b", **given)).fault if "replicas" not in given else merged(report(**given)).fault
    assert (fault.reason if fault else None) is reason


def test_unreadable_answers_come_before_missing_ones_and_all_are_named() -> None:
    fault = merged(report(), missing=["b: timed out", "c: timed out"]).fault
    assert fault is not None
    assert fault.message == "b: timed out; c: timed out"
    both = merged(report(), missing=["b: timed out"], broken=["c: KeyError", "d: KeyError"]).fault
    assert both is not None
    assert (both.reason, both.message) == (Reason.DATA_CONTRADICTORY, "c: KeyError; d: KeyError")


def test_without_ready_pods_no_healthy_engine_is_no_contradiction() -> None:
    sick = report(replicas=(engine(healthy=False),))
    assert merge([sick], PodCounts(2, 2, 0), NOW_S, 120.0).fault is None
    assert merge([sick], PodCounts(2, 2, 1), NOW_S, 120.0).fault is not None
    busy = replace(sick, replicas=tuple(replace(r, streams=3) for r in sick.replicas))
    assert merge([busy], PodCounts(2, 2, 1), NOW_S, 120.0).fault is None, (
        "overload makes health checks late: the floor is to act"
    )


def test_what_has_no_reader_counts_in_no_objective() -> None:
    requests = (
        ObservedRequest(NOW_S - 9, "offline", 1, 1, True, yields=True), ObservedRequest(NOW_S - 8, "reading", 1, 1, True),
        ObservedRequest(NOW_S - 7, "reading", 1, 1, True, yields=True),
    )  # fmt: skip
    bad = Sketch()
    bad.add(0.0)
    one = replace(report(requests=requests), ended={"offline": bad, "reading": bad}, running={"offline": bad})
    assert set(merged(one).figures[Metric.QOE]) == {"reading"}
    still = replace(one, requests=(replace(requests[0], done=False), requests[1]))
    assert merged(one).engine_requests - merged(still).engine_requests == 1, "what it holds is no load of readers"


def test_without_reports_nothing_is_known() -> None:
    empty = Observation(NOW_S, PodCounts(2, 2, 2))
    assert (empty.open_streams, empty.engine_requests, empty.waiting, empty.rate_rps) == (0, 0, 0, 0.0)
    seen = merge([], PodCounts(2, 2, 2), NOW_S, 120.0)
    assert (seen.rate_rps, seen.last_arrival_s, seen.complete_since_s) == (0.0, None, NOW_S)
    assert not any(seen.figures.values())


def test_the_rate_is_of_the_window_or_of_as_much_as_is_known() -> None:
    requests = tuple(ObservedRequest(NOW_S - 1.5 * i, "reading", 100, 50, True) for i in range(200))
    assert merged(report(requests=requests)).rate_rps == 80 / 120
    short = merged(report(requests=requests, demand_since_s=NOW_S - 30), report("b", requests=()))
    assert (short.rate_rps, short.complete_since_s) == (20 / 30, NOW_S - 30), "complete only as far as every gateway's"
    just_now = report(requests=(ObservedRequest(NOW_S, "reading", 1, 1, True),), demand_since_s=NOW_S - 0.1)
    assert merged(just_now).rate_rps == 1.0, "at least a second"


def test_requests_of_all_gateways_are_in_order_of_arrival() -> None:
    early, late = (ObservedRequest(NOW_S - ago_s, "reading", 1, 1, True) for ago_s in (9.0, 2.0))
    seen = merged(report(requests=(late,)), report("b", requests=(early,)))
    assert seen.recent == (early, late)
    assert seen.last_arrival_s == NOW_S - 2.0


def test_policy_and_routing_are_those_that_most_report() -> None:
    one, two = ("andes", ()), ("fcfs", ())
    a = report(replicas=(engine(policy=one), engine("y:1", policy=two), engine("z:1", policy=two)), routing_policy=one)
    assert merged(a).policy == two
    sick = report(
        replicas=(
            engine(policy=one),
            engine("y:1", policy=two, healthy=False),
            engine("z:1", policy=two, healthy=False),
        )
    )
    assert merged(sick).policy == one, "an engine that is not healthy may run an old one"
    assert merged(a, report("b", routing_policy=two), report("c", routing_policy=two)).routing_policy == two
    assert merged(report()).routing_policy is None


def answers(**more: Any) -> GatewayReport:
    demand = {"now_s": NOW_S, "records": [], **more.pop("demand", {})}
    qoe = {"now_s": NOW_S - 5, "classes": {}, "running": {}}
    return GatewayReport.parse("a", demand, qoe, {"replicas": [], **more}, since_s=NOW_S - 600, received_s=NOW_S + 1)


def test_what_a_gateway_may_leave_out_has_a_default() -> None:
    read = answers()
    assert (read.now_s, read.received_s, read.demand_since_s) == (NOW_S - 5, NOW_S + 1, NOW_S - 600)
    assert (read.held, read.routing_policy) == (0, None)
    assert answers(demand={"complete_since_s": NOW_S - 700}).demand_since_s == NOW_S - 600, "no more was asked for"
    assert answers(demand={"complete_since_s": None, "held": 3}).held == 3


def test_the_routing_policy_is_read() -> None:
    assert answers(routing={"name": "prefix", "options": {"b": 1, "a": True}}).routing_policy == (
        "prefix", (("a", True), ("b", 1)))  # fmt: skip
    assert answers(routing={"name": "qoe"}).routing_policy == ("qoe", ())
    assert answers(routing={"name": "mine", "options": {"limit": None}}).routing_policy == ("mine", (("limit", None),))


@pytest.mark.parametrize(
    "options",
    [{"tiers": ["h100", "l4"]}, {"weights": {"b": 2, "a": [1.5, None]}, "name": "[x]"}, {"none": [], "empty": {}}],
)
def test_options_that_are_lists_or_mappings_reach_the_what_if_as_they_are(options: dict[str, Any]) -> None:
    one, two = (
        answers(routing={"name": "mine", "options": dict(order(options.items()))}) for order in (list, reversed)
    )
    found = merged(one, two).routing_policy
    assert found is not None
    assert options_of(found) == options
    assert one.routing_policy == two.routing_policy, "counted as one, whatever their order"


def test_all_that_a_request_says_of_its_reader_is_read() -> None:
    record = {"arrival_s": 1.0, "class": "code", "prompt_tokens": 1, "output_tokens": 1, "outcome": "failed",
              "ttft_target_s": 0.5, "tds": 20.0, "weight": 2.5, "yield": True, "expected_tokens": 70, "reason_tokens": 9,
              "think_tds": None}  # fmt: skip
    (request,) = answers(demand={"records": [record]}).requests
    assert request == ObservedRequest(
        1.0,
        "code",
        1,
        1,
        False,
        True,
        QoETarget(0.5, 20.0, math.inf),
        weight=2.5,
        yields=True,
        expected_tokens=70,
        reason_tokens=9,
    )
    with pytest.raises(ValueError, match="gateway a"):
        answers(demand={"records": [{**record, "weight": -1}]})
