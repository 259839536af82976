"""Pods as supply, and who goes first. Pure: pods are what the API server says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any

from andes_operator.names import DELETION_COST, DRAINING
from andes_operator.observe import Pods

__all__ = ["cold_start_s", "costs", "count", "going", "ready", "replica_of", "to_undrain", "victims"]

Pod = Mapping[str, Any]
UNREADY_COST = -1000
ORDERED_KINDS = ("StatefulSet", "LeaderWorkerSet")
"""Kinds that always give up the highest ordinal."""


def ready(pod: Pod) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return not going(pod) and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def going(pod: Pod) -> bool:
    return _ended(pod) or "deletionTimestamp" in pod["metadata"]


def _ended(pod: Pod) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def count(pods: Sequence[Pod], wanted: int) -> Pods:
    """Those that are pending are supply on its way; those that are going are none."""
    there = [pod for pod in pods if not going(pod)]
    leaving = sum(going(pod) and not _ended(pod) for pod in pods)
    return Pods(wanted, len(there), sum(ready(pod) for pod in there), leaving)


def cold_start_s(pods: Sequence[Pod]) -> float | None:
    """From being made to being ready, the median of the ten youngest pods; None where none is ready. A restarted container
    makes a pod ready anew: such pods do not count."""
    took = []
    for pod in pods:
        status = pod.get("status") or {}
        restarts = sum(c.get("restartCount", 0) for c in status.get("containerStatuses") or [])
        for condition in status.get("conditions") or []:
            if condition["type"] == "Ready" and condition["status"] == "True" and not restarts:
                made_s = _time_s(pod["metadata"]["creationTimestamp"])
                took.append((-made_s, _time_s(condition["lastTransitionTime"]) - made_s))
    youngest = [max(0.0, s) for _, s in sorted(took)[:10]]
    return float(median(youngest)) if youngest else None


def _time_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def replica_of(pod: Pod, replicas: Mapping[str, Any]) -> str | None:
    """The gateway's name (``podIP:port``) of this pod's engine, among ``replicas``."""
    ip = (pod.get("status") or {}).get("podIP")
    return next((name for name in replicas if ip and name.rpartition(":")[0].strip("[]") == ip), None)


def costs(pods: Sequence[Pod], streams_by_replica: Mapping[str, int]) -> dict[str, int]:
    """By pod's name, what its deletion would cost: the streams that it serves; an engine that is not ready is the first to
    go. An engine that no gateway knows serves nobody."""
    found = {}
    for pod in pods:
        if not going(pod):
            name = replica_of(pod, streams_by_replica)
            streams = streams_by_replica[name] if name is not None else 0
            found[str(pod["metadata"]["name"])] = streams if ready(pod) else UNREADY_COST
    return found


def victims(kind: str, pods: Sequence[Pod], cost: Mapping[str, int], many: int) -> list[Pod]:
    """The pods that will go when ``many`` fewer are wanted: by ordinal where the kind says so, else those of least cost, the
    youngest of equals (as a ReplicaSet would choose)."""
    there = [pod for pod in pods if pod["metadata"]["name"] in cost]
    if kind in ORDERED_KINDS:
        there.sort(key=lambda pod: -_ordinal(pod["metadata"]["name"]))
    else:
        there.sort(key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
        there.sort(key=lambda pod: cost[pod["metadata"]["name"]])
    return there[: max(0, many)]


def _ordinal(name: str) -> int:
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else -1


def to_undrain(pods: Sequence[Pod], wanted: int, now_s: float, after_s: float) -> list[Pod]:
    """Pods that were told to drain some time ago, and that nobody has taken away since: as many are wanted as there are."""
    there = [pod for pod in pods if not going(pod)]
    marks = [(pod, (pod["metadata"].get("annotations") or {}).get(DRAINING)) for pod in there]
    return [pod for pod, mark in marks if mark and len(there) <= wanted and now_s - _time_s(mark) >= after_s]


def deletion_cost(pod: Pod) -> str | None:
    found = (pod["metadata"].get("annotations") or {}).get(DELETION_COST)
    return None if found is None else str(found)
