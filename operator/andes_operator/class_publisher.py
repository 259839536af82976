"""All QoEClasses of a namespace as one ConfigMap, which the gateways read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        try:
            held = await self._cluster.config_map(namespace, names.CLASSES_CONFIGMAP)
            if held.get(names.CLASSES_KEY) != text and (found or held):
                await self._cluster.write_config_map(namespace, names.CLASSES_CONFIGMAP, {names.CLASSES_KEY: text})
        except ClusterError as error:
            await self._say(namespace, found, (Condition.READY, False, "NotPublished", str(error)))
            raise
        said = f"in ConfigMap {names.CLASSES_CONFIGMAP}, for the gateways"
        await self._say(namespace, found, (Condition.READY, True, "Published", said))

    async def _say(self, namespace: str, found: Sequence[Mapping[str, Any]], finding: Finding) -> None:
        """The status of each class of which this is news; best effort: written with the next change or resync."""
        _, _, reason, _ = finding
        for one in found:
            generation, old = one["metadata"]["generation"], one.get("status") or {}
            known = {condition.get("reason") for condition in old.get("conditions") or []}
            if old.get("observedGeneration") != generation or reason not in known:
                made = conditions([finding], old.get("conditions") or [], generation, self._clock())
                body = {"observedGeneration": generation, "conditions": made}
                with contextlib.suppress(ClusterError):
                    await self._cluster.patch_status(names.CLASSES, namespace, one["metadata"]["name"], body)
