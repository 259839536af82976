"""What an API server without CEL rules lets through is refused here, with field and value."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from andes_operator.names import Mode
from andes_operator.spec import ClassObjective, SpecError, parse
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.sketch import Sketch

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
            "spec.objectives[0].statistic must be one of Mean, Percentile, ShareAbove, got 'Median'",
        ),
        ({"objectives": [{"statistic": "Mean", "value": 2}]}, "spec.objectives[0].value must be in [0, 1], got 2.0"),
        ({"demand": {}}, "exactly one of gateway and prometheus"),
        ({"scaleTargetRef": {"kind": "Deployment"}}, "spec.scaleTargetRef.apiVersion is missing"),
        ({"whatIf": {}}, "spec.whatIf.profile is missing"),
        ({"behavior": {"windowSeconds": -1}}, "windowSeconds must be seconds >= 0, got -1.0"),
    ],
)
def test_what_cannot_be_used_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse({**copy.deepcopy(SPEC), **changed})
    assert said in str(refused.value)
    assert isinstance(refused.value, SpecError) or "Statistic" in said


def test_each_statistic_is_of_its_class() -> None:
    good, bad = Sketch(), Sketch()
    for score in (1.0, 1.0, 1.0, 0.5):
        good.add(score)
    bad.add(0.0)
    classes = {"reading": good, "code": bad}
    assert ClassObjective("reading", QoEObjective(Statistic.MEAN, 0.9)).evaluate(classes) == pytest.approx(0.875)
    assert ClassObjective("reading", QoEObjective(Statistic.SHARE_ABOVE, 0.9, 0.95)).evaluate(classes) == pytest.approx(
        0.75
    )
    assert ClassObjective("reading", QoEObjective(Statistic.PERCENTILE, 0.9, 5.0)).evaluate(classes) == pytest.approx(
        0.5, abs=0.01
    )
    assert ClassObjective("*", QoEObjective(Statistic.MEAN, 0.9)).evaluate(classes) == pytest.approx(0.7)
    assert ClassObjective("batch", QoEObjective(Statistic.MEAN, 0.9)).evaluate(classes) is None
