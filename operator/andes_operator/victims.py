"""Which pods are removed first. Pure; a pod is its JSON from the API server."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

from andes_operator.names import DELETION_COST, DRAINING
from andes_operator.supply import has_node, is_leaving, is_ready

__all__ = ["deletion_cost", "deletion_costs", "replica_of", "to_undrain", "victims"]

Pod = Mapping[str, Any]
UNREADY_COST = -1000
"""Below the cost of any pod that serves: one that is not ready is removed first."""
GOING_COST = -500
"""Of a pod whose node may go: before any other that serves."""
ORDERED_KINDS = ("StatefulSet", "LeaderWorkerSet")
"""Kinds that always remove the highest ordinal."""


def replica_of(pod: Pod, replicas: Mapping[str, Any]) -> str | None:
    """The gateway's name (``podIP:port``) of this pod's engine, among ``replicas``."""
    ip = (pod.get("status") or {}).get("podIP")
    return next((name for name in replicas if ip and name.rpartition(":")[0].strip("[]") == ip), None)


def deletion_costs(
    pods: Sequence[Pod], streams_by_replica: Mapping[str, int], going: Container[str] = ()
) -> dict[str, int]:
    """By pod name, the streams that its deletion would disturb; ``UNREADY_COST`` where it is not ready, ``GOING_COST`` where
    it is one of ``going``. An engine that no gateway reports serves no streams."""
    costs = {}
    for pod in pods:
        if not is_leaving(pod):
            name = replica_of(pod, streams_by_replica)
            streams = streams_by_replica[name] if name is not None else 0
            name_of_pod = str(pod["metadata"]["name"])
            cost = GOING_COST if name_of_pod in going else streams
            costs[name_of_pod] = cost if is_ready(pod) else UNREADY_COST
    return costs


def victims(kind: str, pods: Sequence[Pod], costs: Mapping[str, int], count: int) -> list[Pod]:
    """The pods that are removed when ``count`` fewer are wanted: by ordinal where the kind does so, else those of least cost,
    the youngest of equals (as a ReplicaSet chooses)."""
    existing = [pod for pod in pods if pod["metadata"]["name"] in costs]
    if kind in ORDERED_KINDS:
        existing.sort(key=lambda pod: -_ordinal(pod["metadata"]["name"]))
    else:
        existing.sort(key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
        existing.sort(key=lambda pod: (*_progress(pod), costs[pod["metadata"]["name"]]))
    return existing[: max(0, count)]


def _progress(pod: Pod) -> tuple[bool, bool, bool]:
    """What a ReplicaSet looks at before the cost."""
    return has_node(pod), (pod.get("status") or {}).get("phase") == "Running", is_ready(pod)


def _ordinal(name: str) -> int:
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else -1


def _since_s(mark: str) -> float:
    """Unix seconds; of a mark that cannot be read, long ago."""
    try:
        return datetime.fromisoformat(mark).timestamp()
    except ValueError:
        return 0.0


def to_undrain(pods: Sequence[Pod], wanted: int, now_s: float, after_s: float, going: Container[str] = ()) -> list[Pod]:
    """Pods that were told to drain ``after_s`` ago or earlier, and that are still wanted: no more pods exist than
    ``wanted``, and it is none of ``going``."""
    existing = [pod for pod in pods if not is_leaving(pod)]
    marks = [(pod, (pod["metadata"].get("annotations") or {}).get(DRAINING)) for pod in existing]
    due = [pod for pod, mark in marks if mark and len(existing) <= wanted and now_s - _since_s(mark) >= after_s]
    return [pod for pod in due if pod["metadata"]["name"] not in going]


def deletion_cost(pod: Pod) -> str | None:
    """The cost that is annotated now."""
    cost = (pod["metadata"].get("annotations") or {}).get(DELETION_COST)
    return None if cost is None else str(cost)
