"""Which nodes are about to go, and which get no new pods: by their taints, as the watch sees them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["GOING_TAINTS", "Nodes"]

GOING_TAINTS = frozenset({
    "ToBeDeletedByClusterAutoscaler",  # kubernetes/autoscaler
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",  # before Karpenter 1.0
    "aws-node-termination-handler/spot-itn",
    "aws-node-termination-handler/scheduled-maintenance",
    "aws-node-termination-handler/asg-lifecycle-termination",
    "cloud.google.com/impending-node-termination",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.kubernetes.io/out-of-service",
})  # fmt: skip
"""Keys of taints that say: this node is gone within minutes."""
LIKELY_TAINTS = frozenset({
    "DeletionCandidateOfClusterAutoscaler",
    "aws-node-termination-handler/rebalance-recommendation",
    "node.kubernetes.io/unschedulable",
})  # fmt: skip
"""Keys of taints that say: it may go."""
PREFERENCE = "PreferNoSchedule"
"""Effect of a taint that keeps no new pod away: what is evicted from there may come back to it."""

Node = Mapping[str, Any]
Pod = Mapping[str, Any]


class Taint(NamedTuple):
    key: str
    value: str
    effect: str


class Nodes:
    """Of a cluster. Empty where they are not watched."""

    def __init__(self) -> None:
        self._going: dict[str, tuple[Taint, ...]] = {}
        self._doubtful: set[str] = set()

    def see(self, node: Node, *, deleted: bool = False) -> bool:
        """Take in what a node is now; whether it has become one that is about to go, or is one no more."""
        name, spec = str(node["metadata"]["name"]), {} if deleted else node.get("spec") or {}
        taints = sorted(Taint(*(str(t.get(f) or "") for f in Taint._fields)) for t in spec.get("taints") or ())
        before = self._going.pop(name, ())
        self._doubtful.discard(name)
        going = tuple(t for t in taints if t.key in GOING_TAINTS and t.effect != PREFERENCE)
        if going:
            self._going[name] = going
        elif spec.get("unschedulable") or {t.key for t in taints} & (GOING_TAINTS | LIKELY_TAINTS):
            self._doubtful.add(name)
        return before != going

    def notice(self, pod: Pod) -> str | None:
        """Key of the taint by which this pod's node is about to go; None: it stays, or the pod tolerates that, so that the
        one that replaces it could come back there."""
        return next((t.key for t in self._going.get(_node_of(pod), ()) if not _tolerates(pod, t)), None)

    def is_doubtful(self, pod: Pod) -> bool:
        """Whether this pod's node is about to go, cordoned, or a candidate for removal."""
        return _node_of(pod) in self._going or _node_of(pod) in self._doubtful


def _node_of(pod: Pod) -> str:
    return str((pod.get("spec") or {}).get("nodeName", ""))


def _tolerates(pod: Pod, taint: Taint) -> bool:
    """As the scheduler says."""
    return any(
        (said.get("key") or taint.key) == taint.key
        and (said.get("effect") or taint.effect) == taint.effect
        and (said.get("operator") == "Exists" or (said.get("value") or "") == taint.value)
        for said in (pod.get("spec") or {}).get("tolerations") or ()
    )
