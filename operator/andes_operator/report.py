"""Writes what a reconcile found: status, metrics and events of a QoETarget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from andes_operator import names
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.names import Condition
from andes_operator.status import Finding, invalid_status
from andes_operator.telemetry import OperatorMetrics

__all__ = ["Reporter"]

log = logging.getLogger(__name__)

Resource = Mapping[str, Any]


class Reporter:
    """All methods but :meth:`event` raise :class:`~andes_operator.cluster.ClusterError`."""

    def __init__(self, cluster: Cluster, metrics: OperatorMetrics, clock: Callable[[], float]) -> None:
        self._cluster, self._metrics, self._clock = cluster, metrics, clock

    async def invalid(self, target: Resource, finding: Finding) -> None:
        """A target that cannot be observed: only its conditions change, the rest of the status stays as it was."""
        metadata = target["metadata"]
        made = invalid_status(finding, target.get("status") or {}, metadata["generation"], self._clock())
        self._metrics.count_reconcile(made["reason"])
        await self.status(target, made)

    async def status(self, target: Resource, status: Mapping[str, Any], *, written: bool = True) -> None:
        """Its metrics; and where it is to be ``written``, that, and an event where Ready has changed."""
        namespace, name = target["metadata"]["namespace"], target["metadata"]["name"]
        self._metrics.show(namespace, name, status)
        if not written:
            return
        try:
            await self._cluster.patch_status(names.TARGETS, namespace, name, status)
        except ClusterError as error:
            if error.status != 404:  # deleted meanwhile: the next reconcile finds out
                raise
        before = _ready((target.get("status") or {}).get("conditions") or [])
        after = _ready(status["conditions"])
        if after and before.get("status") != after["status"] and (before or after["status"] == "False"):
            await self.event(target, after["reason"], after["message"], warning=after["status"] != "True")

    async def event(self, target: Resource, reason: str, message: str, *, warning: bool) -> None:
        """Best effort: a failure is logged."""
        try:
            await self._cluster.event(target, reason, message, warning=warning, now_s=self._clock())
        except ClusterError as error:
            log.warning("event %s was not created: %s", reason, error)


def _ready(conditions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((c for c in conditions if c["type"] == Condition.READY), {})
