"""QoEClasses as the gateway's settings."""

from __future__ import annotations

from typing import Any

import yaml

from andes_api.classes import ClassSettings
from andes_operator.classes import reader, settings, settings_yaml


def qoe_class(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


def test_a_weight_from_before_the_schemas_minimum_is_raised_to_it() -> None:
    spec = {"weight": 0.0001, "shedBelow": 0.0}
    assert ClassSettings(**settings(spec)).weight == reader(spec).weight == 0.001
    assert reader({"weight": 0.002}).weight == 0.002


def test_the_gateway_reads_what_is_published() -> None:
    text = settings_yaml([qoe_class("speech", tokensPerSecond=3), qoe_class("code", maxTtftSeconds=9.5, pace=True)])
    read = yaml.safe_load(text)["classes"]
    assert list(read) == ["code", "speech"]
    assert ClassSettings(**read["code"]) == ClassSettings(max_ttft_s=9.5, pace=True)
    assert ClassSettings(**read["speech"]) == ClassSettings(tds=3)
