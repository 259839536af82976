"""The status as Kubernetes does it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cases import SPEC, TARGET, Run, predicted, scores, seconds, seen

from andes_operator.decide import Failure, ScaleDecision, decide
from andes_operator.forecast import DemandForecast
from andes_operator.memory import Memory
from andes_operator.names import Condition, Mode, Reason
from andes_operator.observe import DataFault, Observation, PodCounts, PodFailure
from andes_operator.pooling import in_pool
from andes_operator.spec import ClassObjective, TargetSpec
from andes_operator.status import conditions, findings, invalid_status, ready, status, summary, timestamp
from andes_operator.telemetry import OperatorMetrics
from andes_operator.whatif import Prediction
from andes_sglang.objective import LatencyObjective, Metric, QoEObjective, Statistic

NOW_S = 1_795_251_720.0  # 2026-11-21 09:02:00 UTC
GOOD = seen(NOW_S, 2, ended=scores(*[1.0] * 20))


def made(
    look: Observation = GOOD, prediction: Prediction | None = None, *, spec: TargetSpec = SPEC, conflict: str | None = None,
    decision: ScaleDecision | None = None, old: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    prediction = prediction or predicted(2)
    return status(
        spec, look, decision or decide(spec, look, prediction, Memory()), expected=DemandForecast(6.0, 75.0, "trend"),
        predicted=prediction, conflict=conflict, cold_start_s=60.04, old=old or {}, generation=3,
    )  # fmt: skip


def by_type(of: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in of["conditions"]}


def test_all_is_well() -> None:
    found = made()
    assert by_type(found) == {
        "Conflict": ("False", "SoleWriter"), "TargetFound": ("True", "Found"), "DataAvailable": ("True", "Complete"),
        "ObjectiveMet": ("True", "Met"), "Attainable": ("True", "Predicted"), "Ready": ("True", "AsExpected"),
        "EnginesFailing": ("False", "AsExpected"), "Schedulable": ("True", "AsExpected"),
    }  # fmt: skip
    assert {c["observedGeneration"] for c in found["conditions"]} == {3}
    assert (found["observedGeneration"], found["observedAt"], found["summary"]) == (3, timestamp(NOW_S), "1.000/0.95")
    assert (found["reason"], found["recommendedReplicas"], found["coldStartSeconds"]) == ("Steady", 2, 60.0)
    assert found["message"].startswith("5 requests/s expected: 2 replicas")
    assert found["objectives"] == [
        {
            "class": "*",
            "metric": "QoE",
            "statistic": "ShareAbove",
            "at": 0.95,
            "target": 0.95,
            "met": "True",
            "current": 1.0,
            "predicted": 1.0,
            "streams": 20,
        }
    ]
    assert Memory.from_dict(found["memory"]).at_s == NOW_S


def test_figures_of_demand_and_pods() -> None:
    look = replace(GOOD, pods=PodCounts(2, 3, 1), rate_rps=5.12345, open_streams=7, waiting=4)
    found = made(look, replace(predicted(2), load_factor=1.2345))
    assert (found["replicas"], found["readyReplicas"]) == (3, 1)
    assert found["demand"] == {
        "requestsPerSecond": 5.123, "expectedRequestsPerSecond": 6.0, "loadFactor": 1.23, "horizonSeconds": 75.0,
        "forecast": "trend", "openStreams": 7, "waitingStreams": 4, "model": None, "share": None,
    }  # fmt: skip


def test_engines_that_fail_are_said_and_make_the_target_not_ready() -> None:
    failures = (PodFailure(Reason.ENGINES_FAILING, 3, "CrashLoopBackOff"), PodFailure(Reason.NOT_CREATED, 1, "a quota"))
    found = made(replace(GOOD, pods=PodCounts(10, 9, 6, failures=failures)))
    conditions = by_type(found)
    assert conditions["EnginesFailing"] == ("True", "EnginesFailing")
    assert conditions["Schedulable"] == ("False", "NotCreated")
    assert conditions["Ready"] == ("False", "EnginesFailing")
    (ready,) = (c for c in found["conditions"] if c["type"] == "Ready")
    assert ready["message"] == "3 engines are failing: CrashLoopBackOff"
    assert (found["readyReplicas"], found["startingReplicas"], found["failingReplicas"]) == (6, 0, 4)


def test_an_objective_of_a_class_that_no_request_has_is_unknown_and_named() -> None:
    misspelt = ClassObjective("readng", TARGET.objective)
    found = made(GOOD, spec=replace(SPEC, objectives=(misspelt,)))
    assert found["objectives"][0]["met"] == "Unknown"
    assert by_type(found)["ObjectiveMet"] == by_type(found)["Ready"] == ("Unknown", "ClassUnseen")
    (said,) = (c["message"] for c in found["conditions"] if c["type"] == "Ready")
    assert said == "no request is of class readng, which the objectives are about; requests come of reading"


def test_an_objective_of_a_class_that_does_not_exist_is_named_though_others_are_met() -> None:
    spec = replace(SPEC, objectives=(TARGET, ClassObjective("voice", TARGET.objective)))

    def met(*classes: str) -> tuple[str, str]:
        decision = decide(spec, GOOD, predicted(2), Memory())
        found = findings(spec, GOOD, decision, None, classes)
        return next((str(holds), str(reason)) for kind, holds, reason, _ in found if kind is Condition.MET)

    assert met("reading") == ("None", "ClassUnseen")
    assert met("reading", "voice") == ("True", "Met"), "it has no reader now"
    assert met() == ("True", "Met"), "classes may be in the gateway's own settings"


def test_figures_are_rounded() -> None:
    prediction = replace(predicted(2), values={2: (0.123456,)})
    found = status(
        SPEC, seen(NOW_S, 2, ended=scores(*[1.0] * 2, 0.0)), decide(SPEC, GOOD, prediction, Memory()),
        expected=DemandForecast(6.12345, 75.06, "trend"), predicted=prediction, conflict=None, cold_start_s=1.26, old={},
        generation=1,
    )  # fmt: skip
    assert (found["demand"]["expectedRequestsPerSecond"], found["demand"]["horizonSeconds"]) == (6.123, 75.1)
    assert (found["objectives"][0]["current"], found["objectives"][0]["predicted"]) == (0.6667, 0.1235)
    assert found["coldStartSeconds"] == 1.3


def test_figures_that_are_unknown_are_null() -> None:
    decision = decide(SPEC, GOOD, None, Memory())
    found = status(
        SPEC, GOOD, decision, expected=None, predicted=None, conflict=None, cold_start_s=None, old={}, generation=1
    )
    unknown = ("expectedRequestsPerSecond", "loadFactor", "horizonSeconds", "forecast")
    assert [found["demand"][name] for name in unknown] == [None] * 4
    assert (found["coldStartSeconds"], found["objectives"][0]["predicted"]) == (None, None)
    empty = made(seen(NOW_S, 2))
    assert (empty["objectives"][0]["current"], empty["summary"]) == (None, "-/0.95")


def test_each_objective_has_its_figures() -> None:
    mean = ClassObjective("code", QoEObjective(Statistic.MEAN, 0.5))
    spec = replace(SPEC, objectives=(TARGET, mean))
    look = replace(GOOD, ended={**scores(1.0), "code": scores(*[0.25] * 3)["reading"]})
    prediction = Prediction(5.0, spec.objectives, 0.01, 2, {2: (0.96, 0.7), 3: (1.0, None)})
    found = made(look, prediction, spec=spec)["objectives"]
    assert [(o["class"], o["current"], o["predicted"], o["streams"]) for o in found] == [
        ("*", 0.25, 0.96, 4), ("code", 0.25, 0.7, 3)]  # fmt: skip
    three = made(replace(look, pods=PodCounts(3, 3, 3)), prediction, spec=spec)["objectives"]
    assert [o["predicted"] for o in three] == [1.0, None], "with the replicas that are decided for"


@pytest.mark.parametrize(
    ("more", "conflict", "expected"),
    [
        ({"fault": DataFault(Reason.DATA_STALE, "old")}, None, ("False", "DataStale")),
        ({"ended": scores(*[0.1] * 20)}, None, ("False", "BelowTarget")),
        ({"ended": scores(*[0.1] * 9)}, None, ("True", "AsExpected")),
        ({}, None, ("True", "AsExpected")),
        ({}, "an HPA scales it too", ("False", "OtherWriter")),
        ({"fault": DataFault(Reason.DATA_STALE, "old")}, "an HPA", ("False", "OtherWriter")),
    ],
)  # fmt: skip
def test_ready_is_the_most_severe(more: dict[str, Any], conflict: str | None, expected: tuple[str, str]) -> None:
    found = by_type(made(seen(NOW_S, 2, **more), conflict=conflict))
    assert found["Ready"] == expected
    assert found["Conflict"] == (("True", "OtherWriter") if conflict else ("False", "SoleWriter"))
    if "fault" in more:
        assert found["ObjectiveMet"] == ("Unknown", "DataStale")
        assert found["DataAvailable"] == ("False", "DataStale")
    elif "ended" not in more:
        assert found["ObjectiveMet"] == ("Unknown", "NoStreams")


def test_ready_is_unknown_where_what_it_rests_on_is() -> None:
    for kind in (Condition.TARGET_FOUND, Condition.OBSERVED):
        assert ready([(kind, None, "Reason", "why")]) == (Condition.READY, None, "Reason", "why")
    assert ready([(Condition.MET, None, "NoStreams", "none")])[1] is True
    assert ready([(Condition.OBSERVED, None, "R", "a"), (Condition.MET, False, "BelowTarget", "b")])[1:3] == (
        False, "BelowTarget")  # fmt: skip


def test_what_the_maximum_does_not_meet_is_said() -> None:
    found = made(prediction=predicted(None))
    assert by_type(found)["Attainable"] == by_type(found)["Ready"] == ("False", "MaxReplicas")
    message = next(c["message"] for c in found["conditions"] if c["type"] == "Attainable")
    assert message == found["message"]
    assert "even 20 replicas" in message


@pytest.mark.parametrize("reason", [Reason.PREDICTION_FAILED, Reason.INVALID_SPEC])
def test_a_failed_prediction_is_not_ready(reason: Reason) -> None:
    failure = Failure(reason, "spec.whatIf.policyOptions: no such option")
    found = made(decision=decide(SPEC, GOOD, None, Memory(), failure))
    assert by_type(found)["Attainable"] == ("Unknown", str(reason))
    assert by_type(found)["Ready"] == ("False", str(reason))
    ready_condition = next(c for c in found["conditions"] if c["type"] == "Ready")
    assert ready_condition["message"] == "spec.whatIf.policyOptions: no such option"


def test_no_prediction_without_a_failure_is_unknown_and_ready() -> None:
    found = by_type(made(decision=decide(SPEC, GOOD, None, Memory())))
    assert (found["Attainable"], found["Ready"]) == (("Unknown", "NoPrediction"), ("True", "AsExpected"))


def test_advice_is_no_conflict() -> None:
    spec = replace(SPEC, mode=Mode.ADVISORY)
    decision = decide(spec, GOOD, predicted(2), Memory())
    assert findings(spec, GOOD, decision, None)[0][:3] == (Condition.CONFLICT, False, "Advisory")


def test_the_time_of_transition_moves_only_with_the_status() -> None:
    first = conditions([(Condition.READY, True, "A", "a")], [], 1, NOW_S)
    second = conditions([(Condition.READY, True, "B", "b")], first, 2, NOW_S + 60)
    third = conditions([(Condition.READY, False, "C", "c")], second, 3, NOW_S + 120)
    assert [c[0]["lastTransitionTime"] for c in (first, second, third)] == [
        timestamp(NOW_S), timestamp(NOW_S), timestamp(NOW_S + 120)]  # fmt: skip
    assert (second[0]["reason"], second[0]["message"], second[0]["observedGeneration"]) == ("B", "b", 2)
    others = [{"type": "Others", "status": "True", "lastTransitionTime": "x", "reason": "y"}]
    assert conditions([(Condition.READY, True, "A", "a")], others, 1, NOW_S)[0] == others[0]
    assert timestamp(NOW_S) == "2026-11-21T09:02:00Z"


def test_a_target_that_cannot_be_observed_says_why_and_nothing_else() -> None:
    found = invalid_status((Condition.TARGET_FOUND, False, "NotFound", "no engine"), {}, 4, NOW_S)
    assert by_type(found) == {
        "TargetFound": ("False", "NotFound"), "Ready": ("False", "NotFound"), "DataAvailable": ("Unknown", "NotFound"),
        "Conflict": ("Unknown", "NotFound"), "ObjectiveMet": ("Unknown", "NotFound"), "Attainable": ("Unknown", "NotFound"),
        "EnginesFailing": ("Unknown", "NotFound"), "Schedulable": ("Unknown", "NotFound"),
    }  # fmt: skip
    assert {c["message"] for c in found["conditions"]} == {"no engine"}
    assert found.keys() == {"observedGeneration", "observedAt", "reason", "message", "conditions"}
    assert (found["observedGeneration"], found["reason"], found["message"]) == (4, "NotFound", "no engine")
    kept = invalid_status((Condition.OBSERVED, None, "Forbidden", "x"), found, 4, NOW_S + 60)
    assert {c["lastTransitionTime"] for c in kept["conditions"]} == {timestamp(NOW_S)}


def test_gpu_hours_and_what_was_saved() -> None:
    run = Run(6)
    run.for_s(3600 + 15, predicted(6))
    spec = replace(SPEC, gpus_per_replica=4.0)
    look = seen(run.now_s, 6)
    found = made(look, spec=spec, decision=decide(spec, look, predicted(6), run.memory))
    assert (found["gpuHours"], found["gpuHoursSaved"]) == ("24.00", "56.00")


def test_the_summary_is_of_the_objective_that_is_missed_by_most() -> None:
    mean = ClassObjective("code", QoEObjective(Statistic.MEAN, 0.9))
    late = ClassObjective("*", LatencyObjective(Metric.STALL, 2.0, 99.0))
    spec = replace(SPEC, objectives=(mean, late))
    look = replace(GOOD, ended={"code": scores(*[0.8] * 20)["reading"]}, stall=seconds(*[2.1] * 20))
    assert summary(spec, look) == "0.800/0.9"
    assert summary(spec, replace(look, stall=seconds(*[3.0] * 20))) == "3.04 s/2 s"
    assert summary(replace(spec, objectives=(late,)), GOOD) == "-/2 s"


def test_an_objective_of_seconds_in_status_conditions_and_metrics() -> None:
    late = ClassObjective("*", LatencyObjective(Metric.TTFT, 2.0, 95.0))
    spec = replace(SPEC, objectives=(TARGET, late))
    prediction = replace(predicted(2), objectives=spec.objectives, values={2: (0.97, 1.5)})
    for waited_s, met in ((1.0, "True"), (3.0, "False")):
        found = made(replace(GOOD, ttft=seconds(*[waited_s] * 20)), prediction, spec=spec)
        assert found["objectives"][1] == {
            "class": "*", "metric": "TTFT", "statistic": "Percentile", "at": 95.0, "target": 2.0, "met": met,
            "current": pytest.approx(waited_s, rel=0.02), "predicted": 1.5, "streams": 20,
        }  # fmt: skip
        assert by_type(found)["ObjectiveMet"][0] == met
    assert [c["message"] for c in found["conditions"] if c["type"] == "ObjectiveMet"] == [
        "the p95(ttft) of all classes is 3.04 s, above 2 s"
    ]
    metrics = OperatorMetrics()
    metrics.show("n", "t", found)
    shown = metrics.exposition().decode()
    for kind, value in (("target", 2.0), ("predicted", 1.5)):
        labels = f'class="*",kind="{kind}",metric="TTFT",namespace="n",percentile="95",target="t"'
        assert f"andes_operator_objective_seconds{{{labels}}} {value}" in shown
    assert shown.count("andes_operator_objective_ratio{") == 3, "of QoE alone"


def test_several_percentiles_of_one_class() -> None:
    """The median and the tail, say: each is to be met, and has series of its own."""
    p50, p99 = (ClassObjective("*", LatencyObjective(Metric.TTFT, *of)) for of in ((0.5, 50.0), (3.0, 99.0)))
    p5, p1 = (ClassObjective("*", QoEObjective(Statistic.PERCENTILE, *of)) for of in ((0.9, 5.0), (0.8, 1.0)))
    spec = replace(SPEC, objectives=(TARGET, p50, p99, p5, p1))
    prediction = replace(predicted(2), objectives=spec.objectives, values={2: (0.97, 0.4, 2.0, 0.95, 0.9)})
    found = made(replace(GOOD, ttft=seconds(*[0.2] * 95, *[4.0] * 5)), prediction, spec=spec)
    assert [(o["statistic"], o["at"], o["met"]) for o in found["objectives"]] == [
        ("ShareAbove", 0.95, "True"), ("Percentile", 50, "True"), ("Percentile", 99, "False"),
        ("Percentile", 5, "True"), ("Percentile", 1, "True"),
    ]  # fmt: skip
    (said,) = (c["message"] for c in found["conditions"] if c["type"] == "ObjectiveMet")
    assert said.startswith("the p99(ttft) of all classes is 4.0")
    metrics = OperatorMetrics()
    metrics.show("n", "t", found)
    shown = metrics.exposition().decode()
    for percentile, target in (("50", 0.5), ("99", 3.0)):
        labels = f'class="*",kind="target",metric="TTFT",namespace="n",percentile="{percentile}",target="t"'
        assert f"andes_operator_objective_seconds{{{labels}}} {target}" in shown
    for statistic, target in (("ShareAbove", 0.95), ("Percentile 5", 0.9), ("Percentile 1", 0.8)):
        labels = f'class="*",kind="target",namespace="n",statistic="{statistic}",target="t"'
        assert f"andes_operator_objective_ratio{{{labels}}} {target}" in shown


def test_gateways_that_do_not_report_seconds_are_named() -> None:
    spec = replace(SPEC, objectives=(TARGET, ClassObjective("*", LatencyObjective(Metric.STALL, 2.0, 95.0))))
    found = made(GOOD, replace(predicted(2), values={}), spec=spec)
    assert by_type(found)["ObjectiveMet"] == by_type(found)["Ready"] == ("Unknown", "MetricUnseen")
    (said,) = (c["message"] for c in found["conditions"] if c["type"] == "ObjectiveMet")
    assert said.startswith("the gateways report no Stall")


def test_a_member_that_no_pool_names_is_not_ready() -> None:
    """It would keep its replicas for ever, and all would be green."""
    lonely = in_pool(replace(SPEC, mode=Mode.POOLED), None)
    found = by_type(made(seen(NOW_S, 2), spec=lonely))
    assert found["Conflict"] == ("False", "NoPool")
    assert found["Ready"] == ("False", "NoPool")
    assert by_type(made(seen(NOW_S, 2), spec=replace(SPEC, mode=Mode.ADVISORY)))["Ready"] == ("True", "AsExpected")
