"""Before pods are removed: which ones, told to the API server and to the gateways. After: taken back where they stayed. And
pods whose nodes are about to go, which are moved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from andes_operator import names, victims
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.gateways import Gateways
from andes_operator.nodes import Nodes
from andes_operator.status import timestamp
from andes_operator.supply import is_leaving, is_ready

__all__ = ["Drainer"]

log = logging.getLogger(__name__)

UNDRAIN_AFTER_S = 60.0
"""Seconds after which a pod that was told to drain and still is wanted serves again: controllers delete within seconds."""

Pod = Mapping[str, Any]


class Drainer:
    """addresses, in its methods: of the gateways; streams: by the gateways' names of the engines."""

    def __init__(self, cluster: Cluster, gateways: Gateways, nodes: Nodes, clock: Callable[[], float]) -> None:
        self._cluster, self._gateways, self._nodes, self._clock = cluster, gateways, nodes, clock

    async def prepare(
        self, namespace: str, kind: str, pods: Sequence[Pod], count: int, *,
        streams: Mapping[str, int], addresses: Sequence[str],
    ) -> None:  # fmt: skip
        """Before ``count`` pods of a ``kind`` are removed: annotate what each one's deletion costs, and tell the gateways to
        send no new streams to those that will go."""
        going = {pod["metadata"]["name"] for pod in pods if self._nodes.is_doubtful(pod)}
        costs = victims.deletion_costs(pods, streams, going)
        for pod in pods:
            cost = costs.get(pod["metadata"]["name"])
            if cost is not None and victims.deletion_cost(pod) != str(cost):
                await self._annotate(namespace, pod, {names.DELETION_COST: str(cost)})
        for victim in victims.victims(kind, pods, costs, count):
            replica = victims.replica_of(victim, streams)
            if replica is not None:
                await self._annotate(namespace, victim, {names.DRAINING: timestamp(self._clock())})
                await self._tell(namespace, addresses, replica, drained=True)

    async def undrain(
        self, namespace: str, pods: Sequence[Pod], wanted: int, *, streams: Mapping[str, int], addresses: Sequence[str]
    ) -> None:
        """Let engines serve again that were told to drain and have stayed: the scale could not be written, or was raised."""
        going = {pod["metadata"]["name"] for pod in pods if self._nodes.notice(pod)}
        for pod in victims.to_undrain(pods, wanted, self._clock(), UNDRAIN_AFTER_S, going):
            replica = victims.replica_of(pod, streams)
            if replica is not None:
                await self._tell(namespace, addresses, replica, drained=False)
            await self._annotate(namespace, pod, {names.DRAINING: None})

    async def move(
        self, namespace: str, pods: Sequence[Pod], *, streams: Mapping[str, int], addresses: Sequence[str]
    ) -> list[str]:
        """Pods on nodes that are about to go: gateways send them no new streams while others serve, and they are evicted, so
        that what replaces them starts now. What to say of those that were not known."""
        said, others = [], any(is_ready(pod) and self._nodes.notice(pod) is None for pod in pods)
        for pod in pods:
            name, taint = pod["metadata"]["name"], self._nodes.notice(pod)
            if taint is None or is_leaving(pod):
                continue
            if names.DRAINING not in (pod["metadata"].get("annotations") or {}):
                await self._annotate(namespace, pod, {names.DRAINING: timestamp(self._clock())})
                said.append(f"engine {name} is moved: its node {pod['spec']['nodeName']} has the taint {taint}")
            replica = victims.replica_of(pod, streams)
            if replica is not None and others:
                await self._tell(namespace, addresses, replica, drained=True)
            await self._evict(namespace, name)
        return said

    async def _evict(self, namespace: str, name: str) -> None:
        """Best effort: where a PodDisruptionBudget forbids it, or the right is missing, again at the next reconcile."""
        try:
            await self._cluster.evict_pod(namespace, name)
        except ClusterError as error:
            log.warning("%s: %s", namespace, error)

    async def _tell(self, namespace: str, addresses: Sequence[str], replica: str, *, drained: bool) -> None:
        for failed in await self._gateways.drain(addresses, replica, drained=drained):
            log.warning("%s: %s", namespace, failed)

    async def _annotate(self, namespace: str, pod: Pod, annotations: Mapping[str, str | None]) -> None:
        try:
            await self._cluster.annotate_pod(namespace, pod["metadata"]["name"], annotations)
        except ClusterError as error:
            if error.status != 404:  # it has gone meanwhile
                raise
