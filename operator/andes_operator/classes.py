"""QoEClass resources as the gateway's settings and as the what-if's readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from andes_operator.demand import Reader
from andes_sglang.qoe import QoETarget

__all__ = ["reader", "settings", "settings_yaml"]

FIELDS = {
    "ttftSeconds": "ttft_s",
    "tokensPerSecond": "tds",
    "minTtftSeconds": "min_ttft_s",
    "maxTtftSeconds": "max_ttft_s",
    "minTokensPerSecond": "min_tds",
    "maxTokensPerSecond": "max_tds",
    "weight": "weight",
    "shedBelow": "shed_below",
    "pace": "pace",
}
"""The resource's field: the gateway's (``andes_api.settings.ClassSettings``)."""


def settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: spec[theirs] for theirs, ours in FIELDS.items() if theirs in spec}


def settings_yaml(classes: Iterable[Mapping[str, Any]]) -> str:
    """What the gateway reads: all classes of a namespace (whole resources), by name."""
    by_name = {c["metadata"]["name"]: settings(c.get("spec") or {}) for c in classes}
    return str(yaml.safe_dump({"classes": dict(sorted(by_name.items()))}, sort_keys=False))


def reader(spec: Mapping[str, Any]) -> Reader:
    """Raises ``ValueError`` naming field and value."""
    known = settings(spec)
    default = QoETarget()
    target = QoETarget(known.get("ttft_s", default.ttft_s), known.get("tds", default.tds))
    return Reader(target, float(known.get("weight", 1.0)))
