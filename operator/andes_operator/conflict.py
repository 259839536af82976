"""Who else writes the scale of a target: :func:`other_writer`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from andes_operator.names import Mode
from andes_operator.spec import ScaleTargetRef

__all__ = ["other_writer"]

Resource = Mapping[str, Any]


def other_writer(
    target: Resource, ref: ScaleTargetRef, autoscalers: Iterable[Resource], targets: Iterable[Resource]
) -> str | None:
    """A message naming the HorizontalPodAutoscaler that scales ``ref`` too, or the QoETarget that did so before ``target``;
    None where there is neither. All are of one namespace. A QoETarget in mode Advisory writes nothing."""
    for autoscaler in autoscalers:
        if _refers(autoscaler["spec"]["scaleTargetRef"], ref):
            return f"HorizontalPodAutoscaler {autoscaler['metadata']['name']} scales {ref} too: remove one of them"
    for other in targets:
        spec = other.get("spec") or {}
        writes = spec.get("mode", Mode.AUTO) != Mode.ADVISORY and _refers(spec.get("scaleTargetRef") or {}, ref)
        if writes and _age(other) < _age(target):
            return f"QoETarget {other['metadata']['name']} scales {ref} already: remove one of them"
    return None


def _age(target: Resource) -> tuple[str, str]:
    """Sorts the older first; by name where both were created in one second."""
    return target["metadata"]["creationTimestamp"], target["metadata"]["name"]


def _refers(ref: Mapping[str, Any], to: ScaleTargetRef) -> bool:
    """Whether it is the same object, in any version of its group."""
    group, wanted = str(ref.get("apiVersion", "")).rpartition("/")[0], to.api_version.rpartition("/")[0]
    return (group, ref.get("kind"), ref.get("name")) == (wanted, to.kind, to.name)
