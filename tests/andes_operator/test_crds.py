"""The resources on a real API server: defaults, what is refused and with which words, columns, short names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from e2e.control_plane import ApiError, ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TARGET: dict[str, Any] = {
    "apiVersion": "andes.dev/v1alpha1",
    "kind": "QoETarget",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
        "objectives": [{"class": "reading", "statistic": "ShareAbove", "threshold": 0.95, "value": 0.95}],
        "maxReplicas": 10,
        "demand": {"gateway": {"service": "gateway"}},
        "whatIf": {"profile": "h100-llama-3.1-8b"},
    },
}
CLASS: dict[str, Any] = {
    "apiVersion": "andes.dev/v1alpha1",
    "kind": "QoEClass",
    "metadata": {"name": "reading", "namespace": "default"},
    "spec": {},
}


POOL: dict[str, Any] = {
    "apiVersion": "andes.dev/v1alpha1",
    "kind": "QoEPool",
    "metadata": {"name": "gpus", "namespace": "default"},
    "spec": {"budget": {"gpus": 24, "pricePerHour": 40}, "members": [{"target": "chat", "price": 2.5}]},
}


def refused(plane: ControlPlane, kind: str, body: dict[str, Any]) -> str:
    """What the API server says against ``body``; empty: nothing."""
    path = f"/apis/andes.dev/v1alpha1/namespaces/default/{kind}?dryRun=All"
    try:
        plane("POST", path, body)
    except ApiError as error:
        return error.message
    return ""


def changed(body: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A copy with ``where`` (dots between names) set, or removed where the value is None."""
    body = copy.deepcopy(body)
    *path, last = where.split(".")
    at = body
    for step in path:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    if value is None:
        at.pop(last)
    else:
        at[last] = value
    return body


def test_defaults_are_filled_in(plane: ControlPlane) -> None:
    made = plane("POST", "/apis/andes.dev/v1alpha1/namespaces/default/qoetargets?dryRun=All", TARGET)["spec"]
    assert (made["minReplicas"], made["mode"], made["gpusPerReplica"]) == (1, "Auto", 1)
    assert made["whatIf"] == {"profile": "h100-llama-3.1-8b", "margin": 0.01}
    assert made["behavior"]["scaleDown"] == {"stabilizationWindowSeconds": 120, "periodSeconds": 60, "idleSeconds": 600}
    made = plane("POST", "/apis/andes.dev/v1alpha1/namespaces/default/qoeclasses?dryRun=All", CLASS)["spec"]
    assert (made["ttftSeconds"], made["tokensPerSecond"], made["shedBelow"], made["yields"]) == (1, 4.8, 0.05, False)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("spec.minReplicas", 11, "minReplicas must not be more than maxReplicas"),
        ("spec.minReplicas", -1, "spec.minReplicas"),
        ("spec.maxReplicas", 0, "spec.maxReplicas"),
        ("spec.maxReplicas", None, "spec.maxReplicas: Required"),
        ("spec.objectives", [], "spec.objectives"),
        ("spec.objectives.0.value", 1.5, "spec.objectives[0].value"),
        ("spec.objectives.0.statistic", "Median", "spec.objectives[0].statistic"),
        ("spec.objectives.0.statistic", "Mean", "threshold belongs to the statistic ShareAbove"),
        ("spec.objectives.0.threshold", None, "threshold belongs to the statistic ShareAbove"),
        ("spec.objectives.0.percentile", 5, "percentile belongs to the statistic Percentile"),
        ("spec.objectives.0.value", None, "value belongs to the metric QoE"),
        ("spec.objectives.0.seconds", 1.5, "seconds belong to the metrics TTFT and Stall"),
        ("spec.objectives", [{"metric": "TTFT", "statistic": "Percentile", "percentile": 95}], "seconds belong to the metrics"),
        ("spec.objectives", [{"metric": "TTFT", "statistic": "Mean", "seconds": 1}], "the statistic of TTFT and Stall is Percentile"),
        ("spec.objectives", [{"metric": "Stall", "statistic": "Percentile", "percentile": 95, "seconds": 0}],
         "spec.objectives[0].seconds"),
        ("spec.objectives", [{"metric": "ITL", "statistic": "Percentile", "percentile": 95, "seconds": 1}],
         "spec.objectives[0].metric"),
        ("spec.objectives.0.class", "No Good", "spec.objectives[0].class"),
        ("spec.demand.prometheus", {"url": "http://p:9090", "promptTokens": 1, "outputTokens": 1}, "exactly one of"),
        ("spec.demand", {}, "give exactly one of gateway and prometheus"),
        ("spec.demand", {"prometheus": {"url": "ftp://p", "promptTokens": 1, "outputTokens": 1}}, "spec.demand.prometheus.url"),
        ("spec.mode", "auto", "spec.mode"),
        ("spec.budget", {}, "give gpus, or perHour with gpuPricePerHour"),
        ("spec.budget", {"perHour": 40}, "perHour and gpuPricePerHour belong together"),
        ("spec.schedule", [{"start": "0 8 * * *", "end": "0 20 * * *"}], "spec.schedule[0].minReplicas: Required"),
        ("spec.pause", {"until": "tomorrow"}, "spec.pause.until"),
        ("spec.behavior.tickSeconds", 0, "spec.behavior.tickSeconds"),
        ("spec.whatIf", None, "spec.whatIf: Required"),
        ("spec.whatIf.policyOptions", {f"o{i}": i for i in range(33)}, "spec.whatIf.policyOptions"),
        ("spec.whatIf.policyOptions", [1], "spec.whatIf.policyOptions"),
        ("spec.scaleTargetRef.name", "", "spec.scaleTargetRef.name"),
    ],
)  # fmt: skip
def test_an_invalid_target_is_refused(plane: ControlPlane, where: str, value: Any, said: str) -> None:
    assert refused(plane, "qoetargets", TARGET) == ""
    assert said in refused(plane, "qoetargets", changed(TARGET, where, value))


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("spec.ttftSeconds", 700, "ttftSeconds must be between minTtftSeconds and maxTtftSeconds"),
        ("spec.tokensPerSecond", 0.1, "tokensPerSecond must be between"),
        ("spec.weight", 0.0009, "spec.weight"),
        ("spec.shedBelow", 2, "spec.shedBelow"),
        ("metadata.name", "a.b", "the name is the name of the class"),
    ],
)
def test_an_invalid_class_is_refused(plane: ControlPlane, where: str, value: Any, said: str) -> None:
    assert refused(plane, "qoeclasses", CLASS) == ""
    assert said in refused(plane, "qoeclasses", changed(CLASS, where, value))


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("spec.budget", {}, "give gpus, pricePerHour or both"),
        ("spec.budget.gpus", 0, "spec.budget.gpus"),
        ("spec.members", [], "spec.members"),
        ("spec.members.0.price", None, "give every member a price, or none and no pricePerHour"),
        (
            "spec",
            {"budget": {"gpus": 2}, "members": [{"target": "a", "price": 1}, {"target": "b"}]},
            "give every member a price",
        ),
        ("spec.members.0.priority", 0, "spec.members[0].priority"),
        ("spec.members", [{"target": "a", "price": 1}, {"target": "a", "price": 2}], "Duplicate"),
    ],
)
def test_an_invalid_pool_is_refused(plane: ControlPlane, where: str, value: Any, said: str) -> None:
    assert refused(plane, "qoepools", POOL) == ""
    assert said in refused(plane, "qoepools", changed(POOL, where, value))
    assert refused(plane, "qoepools", {**POOL, "spec": {"budget": {"gpus": 2}, "members": [{"target": "a"}]}}) == ""


def test_two_objectives_about_the_same_are_refused(plane: ControlPlane) -> None:
    said, (one,) = "two objectives are about the same", TARGET["spec"]["objectives"]
    for twice in ([one, one], [one, {**one, "value": 0.5}]):
        assert said in refused(plane, "qoetargets", changed(TARGET, "spec.objectives", twice))
    several = [one, {**one, "threshold": 0.9}, {**one, "class": "code"}]
    ttft = {"metric": "TTFT", "statistic": "Percentile", "percentile": 50, "seconds": 0.5}
    several += [ttft, {**ttft, "percentile": 99, "seconds": 3}, {**ttft, "metric": "Stall"}]
    assert refused(plane, "qoetargets", changed(TARGET, "spec.objectives", several)) == ""
    assert said in refused(plane, "qoetargets", changed(TARGET, "spec.objectives", [*several, ttft]))
    most = [{**ttft, "class": "c" * 61 + f"{i:02}"} for i in range(32)]
    assert refused(plane, "qoetargets", changed(TARGET, "spec.objectives", most)) == "", "within what rules may cost"


def test_latencies_may_stand_beside_qoe(plane: ControlPlane) -> None:
    latency = {"statistic": "Percentile", "percentile": 95, "seconds": 2}
    beside = [{**latency, "class": "reading", "metric": metric} for metric in ("TTFT", "Stall")]
    objectives = [*TARGET["spec"]["objectives"], *beside]
    assert refused(plane, "qoetargets", changed(TARGET, "spec.objectives", objectives)) == ""
    made = plane("POST", "/apis/andes.dev/v1alpha1/namespaces/default/qoetargets?dryRun=All", TARGET)["spec"]
    assert made["objectives"][0]["metric"] == "QoE", "as before it could be said"


def test_kubectl_shows_columns_under_short_names(plane: ControlPlane) -> None:
    plane("POST", "/apis/andes.dev/v1alpha1/namespaces/default/qoetargets", changed(TARGET, "metadata.name", "shown"))
    plane("POST", "/apis/andes.dev/v1alpha1/namespaces/default/qoeclasses", CLASS)
    try:
        head, row, *_ = plane.kubectl("get", "qt", "shown").splitlines()
        assert head.split() == ["NAME", "TARGET", "MODE", "QOE", "REPLICAS", "WANTED", "READY", "REASON", "AGE"]
        assert row.split()[:3] == ["shown", "engine", "Auto"]
        assert {"SAVED", "WHY"} <= set(plane.kubectl("get", "qoetarget", "shown", "-o", "wide").splitlines()[0].split())
        assert plane.kubectl("get", "qc", "reading").splitlines()[1].split()[:5] == ["reading", "1", "4.8", "1", "0.05"]
    finally:
        plane.kubectl("delete", "qt/shown", "qc/reading")


def test_schema_and_code_speak_of_the_same_fields(plane: ControlPlane) -> None:
    """A target with every field that the schema knows is read without loss; its names are the code's names."""
    from andes_operator.allowance import Allowance, Budget, Pause, Period
    from andes_operator.spec import parse

    full = changed(TARGET, "spec.behavior", {
        "tickSeconds": 5, "windowSeconds": 60, "coldStartSeconds": 90,
        "scaleUp": {"stabilizationWindowSeconds": 1, "maxReplicasPerMinute": 2},
        "scaleDown": {"stabilizationWindowSeconds": 3, "periodSeconds": 4, "idleSeconds": 6},
    })  # fmt: skip
    full = changed(
        full,
        "spec.whatIf",
        {"profile": "p", "policy": "fcfs", "policyOptions": {"a": 1.5, "b": True, "c": "x", "d": 4}, "margin": 0.02},
    )
    full = changed(full, "spec.schedule", [{"start": "0 8 * * *", "end": "0 20 * * *", "minReplicas": 2}])
    full = changed(full, "spec.budget", {"gpus": 24, "perHour": 40, "gpuPricePerHour": 2.5})
    ttft = {"class": "reading", "metric": "TTFT", "statistic": "Percentile", "percentile": 95, "seconds": 1.5}
    full = changed(full, "spec.objectives", [*full["spec"]["objectives"], ttft])
    full = changed(full, "spec.pause", {"until": "2026-12-01T06:00:00Z", "reason": "new drivers"})
    made = plane("POST", "/apis/andes.dev/v1alpha1/namespaces/default/qoetargets?dryRun=All", full)["spec"]
    assert made["behavior"] == full["spec"]["behavior"]
    spec = parse(made)
    b = spec.behavior
    assert (b.tick_s, b.window_s, b.cold_start_s, b.up_stabilization_s, b.up_step) == (5, 60, 90, 1, 2)
    assert (b.down_stabilization_s, b.down_period_s, b.idle_s, b.margin) == (3, 4, 6, 0.02)
    assert str(spec.objectives[1].objective) == "p95(ttft)<=1.5"
    assert (spec.profile, spec.policy) == ("p", "fcfs")
    assert repr(dict(spec.policy_options)) == "{'a': 1.5, 'b': True, 'c': 'x', 'd': 4}", "types as they were written"
    assert (spec.baseline_replicas, spec.gpus_per_replica) == (10, 1)
    assert spec.allowance == Allowance(
        (Period("0 8 * * *", "0 20 * * *", 2),), Budget(24, 40, 2.5), Pause(1796104800.0, "new drivers")
    )
