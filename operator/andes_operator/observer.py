"""What one reconcile knows: :meth:`Observer.observe` reads pods, gateways and other writers into a
:class:`ReconcileContext`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from andes_operator import names, pool, victims
from andes_operator.cluster import Cluster, Scale
from andes_operator.conflict import other_writer
from andes_operator.gateways import Answers, Gateways
from andes_operator.memory import Memory
from andes_operator.names import Mode
from andes_operator.observe import Observation, merge
from andes_operator.pooling import Membership, membership
from andes_operator.spec import TargetSpec
from andes_operator.state import TargetState
from andes_operator.supply import Patience, count_pods

__all__ = ["LIST_TTL_S", "Observer", "ReconcileContext"]

log = logging.getLogger(__name__)

MANY_TARGETS = 100
"""Of a namespace, from which on the API server is spared: targets and pods are listed once for all (a list of 2,000 pods
costs it as much as 34 lists of four of them by label, measured on 1.20, and 100 targets at 15 s ask for as many in
``LIST_TTL_S``), and a status is written when there is something to act on."""
MANY_TTL_S = 15.0
"""Seconds for which a list of many targets is reused: one of 500 costs the API server a tenth of a second of CPU (measured
with the CRD server of 1.36), and an edit drops it."""
LIST_TTL_S = 5.0
"""Seconds for which a list of a namespace's resources is reused: one request for all targets that are due together."""


@dataclass(frozen=True, slots=True)
class ReconcileContext:
    """What one reconcile has observed. conflict: message about another writer of the scale, None: there is none.
    classes: names of the namespace's QoEClasses."""

    target: Mapping[str, Any]
    spec: TargetSpec
    scale: Scale
    pods: list[dict[str, Any]]
    answers: Answers
    seen: Observation
    memory: Memory
    state: TargetState
    conflict: str | None
    classes: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.target["metadata"]["namespace"], self.target["metadata"]["name"]

    @property
    def generation(self) -> int:
        return int(self.target["metadata"]["generation"])


class Observer:
    """Of all targets. clock: Unix seconds."""

    def __init__(
        self, cluster: Cluster, gateways: Gateways, *, tracer: trace.Tracer, clock: Callable[[], float]
    ) -> None:
        self._cluster, self._gateways, self._tracer, self._clock = cluster, gateways, tracer, clock
        self._many = set[str]()

    async def _targets(self, namespace: str) -> list[dict[str, Any]]:
        """Of a namespace, as they were a few seconds ago."""
        found = await self._cluster.list_all(
            names.TARGETS, namespace, MANY_TTL_S if namespace in self._many else LIST_TTL_S
        )
        (self._many.add if len(found) >= MANY_TARGETS else self._many.discard)(namespace)
        return found

    async def target(self, namespace: str, name: str) -> tuple[Mapping[str, Any], bool]:
        """A QoETarget, and whether it is one of many: then as it was ``MANY_TTL_S`` ago at most. Raises
        :class:`~andes_operator.cluster.ClusterError`, of status 404 where it is gone."""
        targets = await self._targets(namespace)
        if len(targets) >= MANY_TARGETS:
            for found in targets:
                if found["metadata"]["name"] == name:
                    return found, True
        return await self._cluster.get(names.TARGETS, namespace, name), False

    async def membership(self, target: Mapping[str, Any], spec: TargetSpec) -> Membership | None:
        """Of a target whose mode is Pooled, also while it is paused, where a QoEPool names it."""
        if spec.mode is not Mode.POOLED and not (spec.paused and target["spec"].get("mode") == Mode.POOLED):
            return None
        namespace = target["metadata"]["namespace"]
        pools = await self._cluster.list_all(names.POOLS, namespace, LIST_TTL_S)
        return membership(target, pools, await self._targets(namespace))

    async def observe(
        self, target: Mapping[str, Any], spec: TargetSpec, scale: Scale, state: TargetState, *, whole: bool = False
    ) -> ReconcileContext:
        """whole: with all of its model's demand, which its pool divides. Raises
        :class:`~andes_operator.cluster.ClusterError`."""
        namespace = target["metadata"]["namespace"]
        conflict = await self._conflict(target, spec)
        with self._tracer.start_as_current_span("andes.observe"):
            pods = await self._pods(namespace, scale.selector, spec.behavior.tick_s)
            answers = await self._ask(namespace, spec, state, pods)
        now_s = self._clock()
        state.nodes = frozenset(node for pod in pods if (node := (pod.get("spec") or {}).get("nodeName")))
        memory = _memory(target, now_s)
        state.cold_starts.observe(pods)
        by_removal = victims.victims(spec.ref.kind, pods, victims.deletion_costs(pods, {}), len(pods))
        patience = Patience.of(spec.behavior.cold_start_s, state.cold_starts.seconds)
        counts = count_pods(
            pods, scale.wanted, by_removal, now_s=now_s, patience=patience, short_since_s=memory.short_since_s
        )
        own = pool.addresses(pods)
        share = state.share.update(pool.share(answers.reports, own), now_s, spec.behavior.window_s)
        mine = not whole and state.share.value is not None
        reports = pool.part(answers.reports, own, share) if mine else answers.reports
        seen = merge(reports, counts, now_s, spec.behavior.window_s, missing=answers.missing, broken=answers.broken)
        found = await self._cluster.list_all(names.CLASSES, namespace, LIST_TTL_S)
        known = tuple(c["metadata"]["name"] for c in found)
        return ReconcileContext(target, spec, scale, pods, answers, seen, memory, state, conflict, known)

    async def _pods(self, namespace: str, selector: str, tick_s: float) -> list[dict[str, Any]]:
        targets = await self._targets(namespace)
        if len(targets) < MANY_TARGETS:
            return await self._cluster.pods(namespace, selector)
        return await self._cluster.shared_pods(namespace, selector, min(LIST_TTL_S, tick_s / 3))

    async def _ask(
        self, namespace: str, spec: TargetSpec, state: TargetState, pods: Sequence[Mapping[str, Any]]
    ) -> Answers:
        """Of the gateways, what is about this target's model: the one that the target names, else that its engines announce;
        it is remembered while it has none."""
        named, own = spec.demand.model, pool.addresses(pods)
        answers = await self._gateways.ask(self._cluster, namespace, spec, self._clock(), named or state.model)
        known, announced = pool.known_models(answers.reports), pool.model_of(answers.reports, own)
        if named is not None:
            if known and named not in known:
                return Answers(missing=(f"no gateway knows the model {named}; they know {', '.join(known)}",))
            return answers
        if state.model is not None and (announced == state.model or not own):
            return answers
        if announced is None and state.model is not None:  # its engines have another model than before, or do not say
            state.model = None
            answers = await self._gateways.ask(self._cluster, namespace, spec, self._clock())
            announced = pool.model_of(answers.reports, own)
        if announced is not None:
            state.model = announced
            return await self._gateways.ask(self._cluster, namespace, spec, self._clock(), announced)
        if len(known) > 1 and not own:
            said = "which of the gateways' models this is for is not known without an engine: name it in demand.gateway.model"
            return Answers(missing=(f"{said}; they know {', '.join(known)}",))
        return answers

    async def _conflict(self, target: Mapping[str, Any], spec: TargetSpec) -> str | None:
        if spec.mode is Mode.ADVISORY:
            return None
        namespace = target["metadata"]["namespace"]
        autoscalers = await self._cluster.autoscalers(namespace)
        targets = await self._targets(namespace)
        return other_writer(target, spec.ref, autoscalers, targets)


def _memory(target: Mapping[str, Any], now_s: float) -> Memory:
    """From the status; an invalid memory is discarded, and what lies in the future."""
    try:
        return Memory.from_dict((target.get("status") or {}).get("memory")).until(now_s)
    except ValueError as error:
        metadata = target["metadata"]
        log.warning("%s/%s: %s: discarded", metadata["namespace"], metadata["name"], error)
        return Memory()
