"""Pods as supply, and which of them are removed first. Pure; a pod is its JSON from the API server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any

from andes_operator.names import DELETION_COST, DRAINING
from andes_operator.observe import PodCounts

__all__ = [
    "cold_start_s", "count_pods", "deletion_cost", "deletion_costs", "is_leaving", "is_ready", "replica_of", "to_undrain",
    "victims",
]  # fmt: skip

Pod = Mapping[str, Any]
UNREADY_COST = -1000
"""Below the cost of any pod that serves: one that is not ready is removed first."""
ORDERED_KINDS = ("StatefulSet", "LeaderWorkerSet")
"""Kinds that always remove the highest ordinal."""
COLD_START_PODS = 10
"""Youngest pods whose median is the cold start: enough that one slow image pull does not count."""


def is_ready(pod: Pod) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return not is_leaving(pod) and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_leaving(pod: Pod) -> bool:
    """Terminating, or ended."""
    return _ended(pod) or "deletionTimestamp" in pod["metadata"]


def _ended(pod: Pod) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def count_pods(pods: Sequence[Pod], wanted: int) -> PodCounts:
    """Pending pods exist and are not ready; terminating ones are counted apart, ended ones not at all."""
    existing = [pod for pod in pods if not is_leaving(pod)]
    terminating = sum(is_leaving(pod) and not _ended(pod) for pod in pods)
    return PodCounts(wanted, len(existing), sum(is_ready(pod) for pod in existing), terminating)


def cold_start_s(pods: Sequence[Pod]) -> float | None:
    """Seconds from creation to readiness: the median of the youngest pods; None where none is ready. A pod with a restarted
    container does not count: its readiness is that of the restart."""
    took = []
    for pod in pods:
        status = pod.get("status") or {}
        restarts = sum(c.get("restartCount", 0) for c in status.get("containerStatuses") or [])
        for condition in status.get("conditions") or []:
            if condition["type"] == "Ready" and condition["status"] == "True" and not restarts:
                created_s = _unix_s(pod["metadata"]["creationTimestamp"])
                took.append((-created_s, _unix_s(condition["lastTransitionTime"]) - created_s))
    youngest = [max(0.0, s) for _, s in sorted(took)[:COLD_START_PODS]]
    return float(median(youngest)) if youngest else None


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def replica_of(pod: Pod, replicas: Mapping[str, Any]) -> str | None:
    """The gateway's name (``podIP:port``) of this pod's engine, among ``replicas``."""
    ip = (pod.get("status") or {}).get("podIP")
    return next((name for name in replicas if ip and name.rpartition(":")[0].strip("[]") == ip), None)


def deletion_costs(pods: Sequence[Pod], streams_by_replica: Mapping[str, int]) -> dict[str, int]:
    """By pod name, the streams that its deletion would disturb; ``UNREADY_COST`` where it is not ready. An engine that no
    gateway reports serves no streams."""
    costs = {}
    for pod in pods:
        if not is_leaving(pod):
            name = replica_of(pod, streams_by_replica)
            streams = streams_by_replica[name] if name is not None else 0
            costs[str(pod["metadata"]["name"])] = streams if is_ready(pod) else UNREADY_COST
    return costs


def victims(kind: str, pods: Sequence[Pod], costs: Mapping[str, int], count: int) -> list[Pod]:
    """The pods that are removed when ``count`` fewer are wanted: by ordinal where the kind does so, else those of least cost,
    the youngest of equals (as a ReplicaSet chooses)."""
    existing = [pod for pod in pods if pod["metadata"]["name"] in costs]
    if kind in ORDERED_KINDS:
        existing.sort(key=lambda pod: -_ordinal(pod["metadata"]["name"]))
    else:
        existing.sort(key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
        existing.sort(key=lambda pod: costs[pod["metadata"]["name"]])
    return existing[: max(0, count)]


def _ordinal(name: str) -> int:
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else -1


def to_undrain(pods: Sequence[Pod], wanted: int, now_s: float, after_s: float) -> list[Pod]:
    """Pods that were told to drain ``after_s`` ago or earlier, and that are still wanted: no more pods exist than
    ``wanted``."""
    existing = [pod for pod in pods if not is_leaving(pod)]
    marks = [(pod, (pod["metadata"].get("annotations") or {}).get(DRAINING)) for pod in existing]
    return [pod for pod, mark in marks if mark and len(existing) <= wanted and now_s - _unix_s(mark) >= after_s]


def deletion_cost(pod: Pod) -> str | None:
    """The cost that is annotated now."""
    cost = (pod["metadata"].get("annotations") or {}).get(DELETION_COST)
    return None if cost is None else str(cost)
