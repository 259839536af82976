"""What an API server without CEL rules lets through is refused here, with field and value."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from andes_operator.names import Mode
from andes_operator.spec import (
    ClassObjective,
    DemandSource,
    ScaleTargetRef,
    ScalingBehavior,
    SpecError,
    TargetSpec,
    parse,
)  # fmt: skip
from andes_sglang.objective import LatencyObjective, Metric, QoEObjective, Statistic
from andes_sglang.sketch import DurationSketch, Sketch

SPEC: dict[str, Any] = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
    "objectives": [{"class": "reading", "statistic": "ShareAbove", "threshold": 0.95, "value": 0.9}],
    "maxReplicas": 4,
    "demand": {"gateway": {"service": "gateway"}},
    "whatIf": {"profile": "h100-llama-3.1-8b"},
}


def test_what_is_not_said_has_a_default() -> None:
    spec = parse(SPEC)
    assert (spec.mode, spec.min_replicas, spec.baseline_replicas, spec.gpus_per_replica) == (Mode.AUTO, 1, 4, 1.0)
    assert spec.behavior.cold_start_s is None, "learned"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"minReplicas": 5}, "spec.minReplicas 5 must be between 0 and spec.maxReplicas 4"),
        ({"objectives": []}, "spec.objectives is empty"),
        ({"objectives": [{"statistic": "Percentile", "value": 0.9}]}, "spec.objectives[0].percentile is missing"),
        (
            {"objectives": [{"statistic": "Median", "value": 0.9}]},
            "spec.objectives[0].statistic must be one of Mean, Percentile, ShareAbove, got \"Median\"",
        ),
        ({"objectives": [{"statistic": "Mean", "value": 2}]}, "spec.objectives[0].value must be in [0, 1], got 2.0"),
        ({"objectives": [{"statistic": "Mean", "threshold": 1}]}, "spec.objectives[0].value is missing"),
        ({"objectives": [{"metric": "TTFT", "statistic": "Percentile", "percentile": 95}]}, "spec.objectives[0].seconds is missing"),
        ({"objectives": [{"metric": "TTFT", "statistic": "Percentile", "percentile": 95, "seconds": 0}]},
         "spec.objectives[0].seconds must be seconds > 0, got 0.0"),
        ({"objectives": [{"metric": "Stall", "statistic": "Percentile", "percentile": 101, "seconds": 1}]},
         "spec.objectives[0].percentile must be in [0, 100], got 101.0"),
        ({"objectives": [{"metric": "Stall", "statistic": "Mean", "seconds": 1}]},
         "spec.objectives[0].statistic of Stall must be Percentile, got \"Mean\""),
        ({"objectives": [{"metric": "ITL", "statistic": "Mean", "value": 1}]},
         "spec.objectives[0].metric must be one of QoE, TTFT, Stall, got \"ITL\""),
        ({"demand": {}}, "exactly one of gateway and prometheus"),
        ({"scaleTargetRef": {"kind": "Deployment"}}, "spec.scaleTargetRef.apiVersion is missing"),
        ({"whatIf": {}}, "spec.whatIf.profile is missing"),
        ({"mode": "Sometimes"}, "spec.mode must be one of Auto, Advisory, Pooled, got \"Sometimes\""),
        ({"minReplicas": -1}, "spec.minReplicas -1 must be between 0 and spec.maxReplicas 4"),
        ({"objectives": [{"statistic": "Mean", "value": 0.9}, {"class": "code", "statistic": "Mean", "value": 0.9},
                         {"statistic": "Mean", "value": 0.8}]},
         "spec.objectives[2]: the QoE mean of all classes is there twice, give one value for it"),
        ({"objectives": [{"statistic": "Percentile", "percentile": 101, "value": 0.9}]},
         "spec.objectives[0].percentile must be in [0, 100] for Percentile, got 101.0"),
        ({"demand": {"gateway": {"service": "g"}, "prometheus": {"url": "http://p"}}}, "exactly one of gateway and prometheus"),
        ({"behavior": {"scaleDown": {"idleSeconds": "inf"}}}, "idleSeconds must be seconds >= 0, got Infinity"),
        ({"behavior": {"windowSeconds": -1}}, "windowSeconds must be seconds >= 0, got -1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse({**copy.deepcopy(SPEC), **changed})
    assert said in str(refused.value)
    assert isinstance(refused.value, SpecError)


def test_each_statistic_is_of_its_class() -> None:
    good, bad = Sketch(), Sketch()
    for score in (1.0, 1.0, 1.0, 0.5):
        good.add(score)
    bad.add(0.0)
    got = {Metric.QOE: {"reading": good, "code": bad}}

    def value(name: str, statistic: Statistic, at: float | None = None) -> float | None:
        return ClassObjective(name, QoEObjective(statistic, 0.9, at)).evaluate(got)

    assert value("reading", Statistic.MEAN) == pytest.approx(0.875)
    assert value("reading", Statistic.SHARE_ABOVE, 0.95) == pytest.approx(0.75)
    assert value("reading", Statistic.PERCENTILE, 5.0) == pytest.approx(0.5, abs=0.01)
    assert value("*", Statistic.MEAN) == pytest.approx(0.7)
    assert value("batch", Statistic.MEAN) is None


def test_a_latency_is_of_its_class_and_metric() -> None:
    quick, slow = DurationSketch(), DurationSketch()
    for k in range(1, 101):
        quick.add(0.01 * k)
        slow.add(1.0 * k)
    got = {Metric.TTFT: {"reading": quick, "code": slow}, Metric.STALL: {"reading": slow}}
    objective = ClassObjective("reading", LatencyObjective(Metric.TTFT, 0.8, 95.0))
    assert objective.evaluate(got) == pytest.approx(0.95, rel=0.021)
    assert replace(objective, class_name="code").evaluate(got) == pytest.approx(95.0, rel=0.021)
    assert replace(objective, class_name="*").evaluate(got) == pytest.approx(90.0, rel=0.03)
    assert replace(objective, objective=LatencyObjective(Metric.STALL, 1.0, 50.0)).evaluate(got) == pytest.approx(
        50.0, rel=0.03
    )
    assert objective.missed(0.961) == "the p95(ttft) of reading is 0.96 s, above 0.8 s"
    assert (objective.objective.margin(0.4), objective.objective.margin(1.2)) == (
        pytest.approx(0.5),
        pytest.approx(-0.5),
    )


def test_every_field_is_read() -> None:
    spec = parse({
        **SPEC, "mode": "Advisory", "minReplicas": 2, "gpusPerReplica": 0.5, "baselineReplicas": 9,
        "objectives": [{"class": "a", "statistic": "Percentile", "percentile": 5, "value": 0.8}, {"statistic": "Mean", "value": 0.7}],
        "demand": {"prometheus": {"url": "http://p", "selector": "x", "promptTokens": 10, "outputTokens": 20}},
        "whatIf": {"profile": "p", "policy": "andes", "policyOptions": {"b": True, "a": 4}, "margin": 0.02},
        "behavior": {
            "tickSeconds": 1, "windowSeconds": 2, "coldStartSeconds": 3,
            "scaleUp": {"stabilizationWindowSeconds": 4, "maxReplicasPerMinute": 5},
            "scaleDown": {"stabilizationWindowSeconds": 6, "periodSeconds": 7, "idleSeconds": 8},
        },
    })  # fmt: skip
    assert spec == TargetSpec(
        ScaleTargetRef("apps/v1", "Deployment", "engine"),
        (
            ClassObjective("a", QoEObjective(Statistic.PERCENTILE, 0.8, 5.0)),
            ClassObjective("*", QoEObjective(Statistic.MEAN, 0.7)),
        ),
        2, 4, DemandSource(None, None, "http://p", "x", 10.0, 20.0), Mode.ADVISORY, "p", "andes", (("a", 4), ("b", True)),
        0.5, 9, ScalingBehavior(1.0, 2.0, 0.02, 3.0, 4.0, 5, 6.0, 7.0, 8.0),
    )  # fmt: skip
    assert dict(spec.policy_options)["b"] is True
    assert type(dict(spec.policy_options)["a"]) is int, "as it was written: an option may insist on whole numbers"


def test_the_port_of_the_gateway_is_read() -> None:
    for port in ("http", 80):
        assert parse({**SPEC, "demand": {"gateway": {"service": "g", "port": port}}}).demand == DemandSource("g", port)


def test_bounds_clamp() -> None:
    spec = parse({**SPEC, "minReplicas": 2})
    assert [spec.clamp(n) for n in (0, 2, 3, 4, 9)] == [2, 2, 3, 4, 4]


@pytest.mark.parametrize(("window_s", "history_s"), [(10.0, 50.0), (120.0, 600.0), (300.0, 600.0), (900.0, 900.0)])
def test_the_history_is_five_windows_but_ten_minutes_at_most(window_s: float, history_s: float) -> None:
    assert ScalingBehavior(window_s=window_s).history_s == history_s


def test_an_objective_in_words() -> None:
    said = {
        "QoE mean of all classes": ClassObjective("*", QoEObjective(Statistic.MEAN, 0.9)),
        "QoE p5 of code": ClassObjective("code", QoEObjective(Statistic.PERCENTILE, 0.9, 5.0)),
        "QoE share(0.95) of code": ClassObjective("code", QoEObjective(Statistic.SHARE_ABOVE, 0.9, 0.95)),
    }
    assert {text: str(objective) for text, objective in said.items()} == {text: text for text in said}
