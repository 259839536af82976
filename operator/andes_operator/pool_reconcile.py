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
from andes_operator.pooling import parse_pool, pool_status
from andes_operator.reconcile import CHANGED_S, Key, Result
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
            made, changed = self._invalid(pool, str(error)), list[str]()
        else:
            found = await self._cluster.list_all(names.TARGETS, namespace)
            made, changed = pool_status(pool, spec, {t["metadata"]["name"]: t for t in found}, now_s=self._clock())
        self._metrics.show_pool(namespace, name, made)
        try:
            version = str(pool["metadata"]["resourceVersion"])
            await self._cluster.patch_status(names.POOLS, namespace, name, made, resource_version=version)
        except ClusterError as error:
            if error.status not in (404, 409):
                raise
            return Result(
                CHANGED_S
            )  # deleted, edited, or divided by another operator meanwhile: what was given is to be read
        self._cluster.forget_list(names.POOLS, namespace)
        for target in changed:
            self._wake((namespace, target))
        return Result(TICK_S)

    def _invalid(self, pool: Mapping[str, Any], message: str) -> dict[str, Any]:
        old, generation = pool.get("status") or {}, int(pool["metadata"]["generation"])
        finding = (Condition.READY, False, Reason.INVALID_SPEC, message)
        said = conditions([finding], old.get("conditions") or [], generation, self._clock())
        return {"observedGeneration": generation, "observedAt": timestamp(self._clock()), "conditions": said}
