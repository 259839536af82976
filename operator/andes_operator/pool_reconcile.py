"""One reconcile of one QoEPool: read its members' statuses, divide its budget, write who gets what.

The members' own reconciles set their scales, within what they are given: each scale has one writer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from andes_operator import names
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.names import Condition, Reason
from andes_operator.pooling import PoolSpec, member_of, parse_pool, pool_status
from andes_operator.reconcile import Key, Result
from andes_operator.sharing import divide
from andes_operator.status import conditions, timestamp
from andes_operator.telemetry import OperatorMetrics

__all__ = ["PoolReconciler"]

TICK_S = 5.0
"""Seconds between two reconciles: a third of a target's."""


class PoolReconciler:
    """Of all pools. wake: has a target reconciled now. clock: Unix seconds."""

    def __init__(
        self, cluster: Cluster, wake: Callable[[Key], None], *, metrics: OperatorMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._cluster, self._wake, self._metrics, self._clock = cluster, wake, metrics, clock

    async def reconcile(self, key: Key) -> Result:
        """Raises :class:`~andes_operator.cluster.ClusterError` where the API server fails."""
        namespace, name = key
        try:
            pool = await self._cluster.get(names.POOLS, namespace, name)
        except ClusterError as error:
            if error.status != 404:
                raise
            self._metrics.forget_pool(*key)
            return Result(None)
        try:
            spec = parse_pool(pool.get("spec") or {})
        except ValueError as error:
            made = self._invalid(pool, str(error))
        else:
            made = await self._divided(pool, spec)
        await self._cluster.patch_status(names.POOLS, namespace, name, made)
        return Result(TICK_S)

    def _invalid(self, pool: Mapping[str, Any], message: str) -> dict[str, Any]:
        old, generation = pool.get("status") or {}, int(pool["metadata"]["generation"])
        finding = (Condition.READY, False, Reason.INVALID_SPEC, message)
        said = conditions([finding], old.get("conditions") or [], generation, self._clock())
        return {"observedGeneration": generation, "observedAt": timestamp(self._clock()), "conditions": said}

    async def _divided(self, pool: Mapping[str, Any], spec: PoolSpec) -> dict[str, Any]:
        """The status with the division; wakes the targets whose part has changed."""
        namespace, name = pool["metadata"]["namespace"], pool["metadata"]["name"]
        targets = {t["metadata"]["name"]: t for t in await self._cluster.list_all(names.TARGETS, namespace)}
        found = {m.target: member_of(m, targets[m.target]) if m.target in targets else None for m in spec.members}
        members = [member for member in found.values() if member is not None]
        missing = [target for target, member in found.items() if member is None]
        given = divide(spec.budget, members)
        made = pool_status(pool, spec, members, given, missing, now_s=self._clock())
        self._metrics.show_pool(namespace, name, made)
        before = {said.get("target"): said.get("replicas") for said in (pool.get("status") or {}).get("members") or []}
        for member in members:
            if before.get(member.name) != given[member.name].replicas:
                self._wake((namespace, member.name))
        return made
