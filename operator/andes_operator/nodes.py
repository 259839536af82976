"""Which nodes are about to go, and which get no new pods: by their taints, as the watch sees them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

Node = Mapping[str, Any]


class Nodes:
    """Of a cluster. Empty where they are not watched."""

    def __init__(self) -> None:
        self._going: dict[str, str] = {}
        self._doubtful: set[str] = set()

    def see(self, node: Node, *, deleted: bool = False) -> bool:
        """Take in what a node is now; whether it has become one that is about to go, or is one no more."""
        name, before = str(node["metadata"]["name"]), dict(self._going)
        spec = {} if deleted else node.get("spec") or {}
        keys = {str(taint.get("key")) for taint in spec.get("taints") or ()}
        self._going.pop(name, None)
        self._doubtful.discard(name)
        if said := keys & GOING_TAINTS:
            self._going[name] = min(said)
        elif spec.get("unschedulable") or keys & LIKELY_TAINTS:
            self._doubtful.add(name)
        return before != self._going

    def notice(self, pod: Mapping[str, Any]) -> str | None:
        """The taint by which this pod's node is about to go; None: it stays."""
        return self._going.get(_node_of(pod))

    def is_doubtful(self, pod: Mapping[str, Any]) -> bool:
        """Whether this pod's node is about to go, cordoned, or a candidate for removal."""
        return _node_of(pod) in self._going or _node_of(pod) in self._doubtful


def _node_of(pod: Mapping[str, Any]) -> str:
    return str((pod.get("spec") or {}).get("nodeName", ""))
