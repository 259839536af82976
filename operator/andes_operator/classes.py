"""QoEClass resources as the gateway's settings (published in a ConfigMap) and as the what-if's readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from andes_sglang.expectations import MIN_WEIGHT, ReaderExpectation
from andes_sglang.qoe import QoETarget

__all__ = ["reader", "settings", "settings_yaml"]

FIELDS = {
    "ttftSeconds": "ttft_s",
    "tokensPerSecond": "tds",
    "minTtftSeconds": "min_ttft_s",
    "maxTtftSeconds": "max_ttft_s",
    "minTokensPerSecond": "min_tds",
    "maxTokensPerSecond": "max_tds",
    "reasoning": "reasoning",
    "thinkTokensPerSecond": "think_tds",
    "weight": "weight",
    "yields": "yields",
    "shedBelow": "shed_below",
    "maxWaitSeconds": "max_wait_s",
    "pace": "pace",
}
"""By the resource's field, the gateway's (``andes_api.settings.ClassSettings``)."""


def settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The ``spec`` of a QoEClass as a class in the gateway's settings."""
    known = {gateway_name: spec[name] for name, gateway_name in FIELDS.items() if name in spec}
    if 0.0 < known.get("weight", 1.0) < MIN_WEIGHT:  # stored before the schema had this minimum
        known["weight"] = MIN_WEIGHT
    return known


def settings_yaml(classes: Iterable[Mapping[str, Any]]) -> str:
    """What the gateway reads: all classes of a namespace (whole resources), by name."""
    by_name = {c["metadata"]["name"]: settings(c.get("spec") or {}) for c in classes}
    return str(yaml.safe_dump({"classes": dict(sorted(by_name.items()))}, sort_keys=False))


def reader(spec: Mapping[str, Any]) -> ReaderExpectation:
    """What the class says of requests that do not say it themselves. Raises ``ValueError`` naming field and value."""
    known, default = settings(spec), ReaderExpectation()
    target = QoETarget(*(known.get(name, getattr(default.target, name)) for name in ("ttft_s", "tds", "think_tds")))
    reasoning = known.get("reasoning", default.reasoning)
    weight, yields = known.get("weight", default.weight), known.get("yields", default.yields)
    return ReaderExpectation(target, weight, yields, reasoning=reasoning)
