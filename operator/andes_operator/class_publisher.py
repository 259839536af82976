"""All QoEClasses of a namespace as one ConfigMap, which the gateways read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from andes_operator import names
from andes_operator.classes import settings_yaml
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.names import Condition
from andes_operator.status import Finding, conditions

__all__ = ["ClassPublisher"]


class ClassPublisher:
    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.time) -> None:
        self._cluster, self._clock = cluster, clock

    async def publish(self, namespace: str) -> None:
        """Write the ConfigMap where it has changed, and the status of each class. Raises
        :class:`~andes_operator.cluster.ClusterError`."""
        found = await self._cluster.list_all(names.CLASSES, namespace)
        text = settings_yaml(found)
        held = await self._cluster.config_map(namespace, names.CLASSES_CONFIGMAP)
        if held.get(names.CLASSES_KEY) != text and (found or held):
            await self._cluster.write_config_map(namespace, names.CLASSES_CONFIGMAP, {names.CLASSES_KEY: text})
        finding: Finding = (
            Condition.READY, True, "Published", f"in ConfigMap {names.CLASSES_CONFIGMAP}, for the gateways"
        )  # fmt: skip
        for one in found:
            generation, old = one["metadata"]["generation"], one.get("status") or {}
            if old.get("observedGeneration") != generation:
                made = conditions([finding], old.get("conditions") or [], generation, self._clock())
                body = {"observedGeneration": generation, "conditions": made}
                with contextlib.suppress(ClusterError):  # written with the next change or resync
                    await self._cluster.patch_status(names.CLASSES, namespace, one["metadata"]["name"], body)
