"""Pods as supply: which serve, which are on their way, which will not come. Pure; a pod is its JSON from the API server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any, NamedTuple

from andes_operator.names import Reason
from andes_operator.observe import PodCounts, PodFailure

__all__ = ["ColdStarts", "Patience", "count_pods", "has_node", "is_leaving", "is_ready", "was_ready"]

Pod = Mapping[str, Any]

FAILING_COLD_STARTS, MIN_FAILING_S = 3.0, 300.0
"""Cold starts after which a pod that is not ready is no supply, where scheduler or kubelet say why; and seconds, at least,
where the cold start was learned: it begins when there is a node, which a cluster autoscaler takes minutes to bring."""
SILENT_COLD_STARTS, MIN_SILENT_S = 10.0, 600.0
"""The same where they say nothing: an image that is pulled on a new node can take this long."""
MAX_COLD_START_S = 3600.0
"""Seconds; what ``behavior.coldStartSeconds`` may be at most."""
USUAL_COLD_START_S = 300.0
"""Seconds; where nothing is known: an 8B model from a network disk."""
COLD_START_PODS = 10
"""Youngest pods whose median is the cold start: enough that one slow image pull does not count."""
START_TOLERANCE_S = 5.0
"""Seconds between a kubelet's first report of a pod and its ``startTime``, of which both are rounded to seconds."""
REVISION_LABELS = ("pod-template-hash", "controller-revision-hash")
"""Labels that Deployments, and StatefulSets and LeaderWorkerSets, give to pods of one template."""
PROGRESS = ("", "ContainerCreating", "PodInitializing")
"""What a kubelet says of a container that waits as it should."""


class Patience(NamedTuple):
    """Seconds after which a pod that is not ready is no supply. said_s: where scheduler or kubelet say why; silent_s: where
    they do not."""

    said_s: float = FAILING_COLD_STARTS * USUAL_COLD_START_S
    silent_s: float = SILENT_COLD_STARTS * USUAL_COLD_START_S

    @classmethod
    def of(cls, set_s: float | None, learned_s: float | None) -> Patience:
        """By the cold start that the target sets, or that was learned from the pods."""
        if set_s is not None:
            return cls(FAILING_COLD_STARTS * set_s, SILENT_COLD_STARTS * set_s)
        cold_start_s = USUAL_COLD_START_S if learned_s is None else learned_s
        said_s, silent_s = FAILING_COLD_STARTS * cold_start_s, SILENT_COLD_STARTS * cold_start_s
        return cls(max(MIN_FAILING_S, said_s), max(MIN_SILENT_S, silent_s))


USUAL_PATIENCE = Patience()


def is_ready(pod: Pod) -> bool:
    return not is_leaving(pod) and _condition(pod, "Ready").get("status") == "True"


def is_leaving(pod: Pod) -> bool:
    """Terminating, or ended."""
    return _ended(pod) or "deletionTimestamp" in pod["metadata"]


def was_ready(pod: Pod) -> bool:
    """Whether a pod that is not ready has been: its readiness changed after its kubelet's first report."""
    changed, began = _condition(pod, "Ready").get("lastTransitionTime"), (pod.get("status") or {}).get("startTime")
    if not changed or not began or is_ready(pod):
        return False
    return _unix_s(changed) - _unix_s(began) > START_TOLERANCE_S


def count_pods(
    pods: Sequence[Pod],
    wanted: int,
    removal_order: Sequence[Pod] = (),
    *,
    now_s: float = 0.0,
    patience: Patience = USUAL_PATIENCE,
    short_since_s: float | None = None,
) -> PodCounts:
    """Pending pods exist and are not ready; terminating ones are counted apart, ended ones not at all.

    removal_order: existing pods, the first to be removed first. short_since_s: since when fewer pods exist than are wanted
    (Unix seconds); None: as many do.
    """
    existing = [pod for pod in pods if not is_leaving(pod)]
    found = {id(pod): failure for pod in existing if (failure := _failure(pod, now_s, patience)) is not None}
    missing, short_s = max(0, wanted - len(existing)), 0.0 if short_since_s is None else now_s - short_since_s
    failures = _summaries(found.values())
    if missing and short_s >= patience.said_s:
        words = f"not created for {short_s:.0f} s; the events of what owns them say why (a quota, an admission rule)"
        failures.append(PodFailure(Reason.NOT_CREATED, missing, words))
    rolling = len({_revision(pod) for pod in existing}) > 1
    return PodCounts(
        wanted,
        len(existing),
        sum(map(is_ready, existing)),
        sum(is_leaving(pod) and not _ended(pod) for pod in pods),
        unready=sum(was_ready(pod) and id(pod) not in found for pod in existing),
        unscheduled=len(existing) - sum(map(has_node, existing)),
        returnable=0 if rolling else missing + _never_serving(removal_order, found.keys()),
        failures=tuple(failures),
    )


def _never_serving(removal_order: Sequence[Pod], lost: Set[int]) -> int:
    """How many pods would be removed before the first that serves, or did and may again. lost: ``id`` of those that will
    not."""
    serving = (is_ready(pod) or (was_ready(pod) and id(pod) not in lost) for pod in removal_order)
    return next((i for i, serves in enumerate(serving) if serves), len(removal_order))


def _failure(pod: Pod, now_s: float, patience: Patience) -> tuple[Reason, str] | None:
    """Why a pod is no supply, in the scheduler's or kubelet's words; None where it is ready, or can still become so."""
    if is_ready(pod):
        return None
    scheduled, status = _condition(pod, "PodScheduled"), pod.get("status") or {}
    placed = has_node(pod)
    since = pod["metadata"].get("creationTimestamp")
    if was_ready(pod):
        since = _condition(pod, "Ready")["lastTransitionTime"]
    elif placed:
        since = scheduled.get("lastTransitionTime") or status.get("startTime") or since
    words = _kubelet_words(status) if placed else str(scheduled.get("message", ""))
    waited_s = now_s - _unix_s(since) if since else 0.0
    if waited_s < (patience.said_s if words else patience.silent_s):
        return None
    words = words or f"not ready after {waited_s:.0f} s"
    return (Reason.ENGINES_FAILING if placed else Reason.UNSCHEDULABLE), words


def _kubelet_words(status: Mapping[str, Any]) -> str:
    """Of the first container that waits for something other than its start, or has ended before; empty: there is none."""
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason", "") not in PROGRESS:
            return ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if container.get("restartCount") and ended:
            return f"restarted {container['restartCount']} times, exit code {ended.get('exitCode')}"
    return ""


def _summaries(found: Collection[tuple[Reason, str]]) -> list[PodFailure]:
    """One for each reason, the most frequent first, with the words that most pods have in common."""
    made = []
    for reason, number in Counter(reason for reason, _ in found).most_common():
        words = Counter(words for why, words in found if why is reason)
        made.append(PodFailure(reason, number, words.most_common(1)[0][0]))
    return made


def _revision(pod: Pod) -> str:
    """Of the template that it was made from; pods have several while a change is rolled out."""
    labels = pod["metadata"].get("labels") or {}
    return next((str(labels[name]) for name in REVISION_LABELS if name in labels), "")


def has_node(pod: Pod) -> bool:
    """Whether it is placed, and so holds what it asked for."""
    status = pod.get("status") or {}
    return bool((pod.get("spec") or {}).get("nodeName") or status.get("podIP") or status.get("startTime"))


def _condition(pod: Pod, kind: str) -> Mapping[str, Any]:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def _ended(pod: Pod) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@dataclass(slots=True)
class ColdStarts:
    """How long pods take from the scheduler's decision to their first readiness, one figure a pod.

    A pod that loses its readiness and finds it again teaches nothing. known_s: what an earlier operator learned. Pods that
    were ready before the first look may have lost it meanwhile: they serve as a first guess, the shortest of them.
    """

    known_s: float | None = None
    _starting: set[str] = field(default_factory=set)
    _measured: set[str] = field(default_factory=set)
    _took_s: list[float] = field(default_factory=list)
    _guess_s: float | None = None

    def observe(self, pods: Sequence[Pod]) -> None:
        there = {_uid(pod): pod for pod in pods if not is_leaving(pod)}
        self._measured &= there.keys()
        self._starting &= there.keys()
        for uid, pod in sorted(there.items(), key=lambda item: str(item[1]["metadata"].get("creationTimestamp", ""))):
            if uid not in self._measured and not is_ready(pod) and not was_ready(pod):
                self._starting.add(uid)
            elif uid not in self._measured:
                self._measured.add(uid)
                if is_ready(pod):
                    self._learn(pod, witnessed=uid in self._starting)

    def _learn(self, pod: Pod, *, witnessed: bool) -> None:
        """A container that was restarted does not count: its readiness is that of the restart."""
        status = pod.get("status") or {}
        began = _condition(pod, "PodScheduled").get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
        if not began or any(c.get("restartCount", 0) for c in status.get("containerStatuses") or []):
            return
        took_s = max(0.0, _unix_s(_condition(pod, "Ready")["lastTransitionTime"]) - _unix_s(began))
        if witnessed:
            self._took_s = [*self._took_s, min(took_s, MAX_COLD_START_S)][-COLD_START_PODS:]
        elif took_s <= MAX_COLD_START_S:
            self._guess_s = took_s if self._guess_s is None else min(self._guess_s, took_s)

    @property
    def seconds(self) -> float | None:
        """The median of the last pods that were seen to start, else what is known, else the guess; None: nothing is."""
        if self._took_s:
            return float(median(self._took_s))
        return self.known_s if self.known_s is not None else self._guess_s


def _uid(pod: Pod) -> str:
    return str(pod["metadata"].get("uid") or pod["metadata"]["name"])
