"""Which nodes are about to go."""

from __future__ import annotations

from typing import Any

import pytest

from andes_operator.nodes import GOING_TAINTS, Nodes


def node(*taints: str, name: str = "n", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints], **spec},
    }


def pod(name: str | None = "n") -> dict[str, Any]:
    return {"metadata": {"name": "engine"}, "spec": {} if name is None else {"nodeName": name}}


@pytest.mark.parametrize("taint", sorted(GOING_TAINTS))
def test_a_node_that_is_about_to_go_is_known_by_its_taint(taint: str) -> None:
    nodes = Nodes()
    assert nodes.see(node("nvidia.com/gpu", taint))
    assert not nodes.see(node("nvidia.com/gpu", taint)), "nothing new"
    assert nodes.notice(pod()) == taint
    assert nodes.is_doubtful(pod())
    assert nodes.notice(pod("other")) is None
    assert nodes.notice(pod(None)) is None
    assert nodes.see(node("nvidia.com/gpu")), "it stays after all"
    assert nodes.notice(pod()) is None
    assert not nodes.is_doubtful(pod())


@pytest.mark.parametrize("spec", [
    node(unschedulable=True), node("DeletionCandidateOfClusterAutoscaler"), node("aws-node-termination-handler/rebalance-recommendation"),
])  # fmt: skip
def test_a_node_that_may_go_is_doubtful_and_gets_no_notice(spec: dict[str, Any]) -> None:
    nodes = Nodes()
    assert not nodes.see(spec), "no reconcile is due for it"
    assert nodes.is_doubtful(pod())
    assert nodes.notice(pod()) is None


@pytest.mark.parametrize("toleration", [
    {"operator": "Exists"}, {"key": "karpenter.sh/disrupted", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "karpenter.sh/disrupted", "value": ""},
])  # fmt: skip
def test_a_pod_that_tolerates_the_taint_stays_or_it_would_come_back_and_be_evicted_for_ever(
    toleration: dict[str, Any],
) -> None:
    nodes = Nodes()
    assert nodes.see(node("karpenter.sh/disrupted"))
    engine = pod()
    engine["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert nodes.notice(engine) == "karpenter.sh/disrupted"
    engine["spec"]["tolerations"].append(toleration)
    assert nodes.notice(engine) is None
    assert nodes.is_doubtful(engine), "it costs least all the same"
    assert nodes.see(node("karpenter.sh/disrupted", "node.cloudprovider.kubernetes.io/shutdown"))
    all_of_them = None if "key" not in toleration else "node.cloudprovider.kubernetes.io/shutdown"
    assert nodes.notice(engine) == all_of_them


def test_a_taint_that_is_but_a_preference_keeps_no_pod_from_coming_back() -> None:
    nodes, spot = Nodes(), node("aws-node-termination-handler/spot-itn")
    spot["spec"]["taints"][0]["effect"] = "PreferNoSchedule"
    assert not nodes.see(spot)
    assert nodes.notice(pod()) is None
    assert nodes.is_doubtful(pod())


def test_other_taints_and_odd_nodes_mean_nothing() -> None:
    nodes = Nodes()
    assert not nodes.see(
        node("nvidia.com/gpu", "kubernetes.azure.com/scalesetpriority", "node.kubernetes.io/not-ready")
    )
    assert not nodes.see({"metadata": {"name": "bare"}})
    assert not nodes.see({"metadata": {"name": "null"}, "spec": {"taints": None}})
    assert not any(nodes.is_doubtful(pod(name)) for name in ("n", "bare", "null", None))


def test_a_node_that_is_gone_is_forgotten() -> None:
    nodes = Nodes()
    nodes.see(node("ToBeDeletedByClusterAutoscaler"))
    assert nodes.see(node("ToBeDeletedByClusterAutoscaler"), deleted=True)
    assert nodes.notice(pod()) is None
