"""QoEClasses as the gateway's settings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml

from andes_api.classes import ClassSettings
from andes_operator.class_publisher import ClassPublisher
from andes_operator.classes import reader, settings, settings_yaml
from andes_operator.cluster import ClusterError


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


def test_a_class_without_readers_yields_in_gateway_and_what_if() -> None:
    spec = {"yields": True, "ttftSeconds": 600, "tokensPerSecond": 1}
    assert ClassSettings(**settings(spec)).expectation == reader(spec)
    assert reader(spec).yields
    assert not reader({}).yields


class Namespace:
    """One QoEClass, and a ConfigMap that can be written or not."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"metadata": {"name": "speech", "generation": 1}, "spec": {}}
        self.refusal: ClusterError | None = ClusterError(403, "write ConfigMap andes-qoe-classes: forbidden")
        self.said: list[tuple[str, str]] = []

    async def list_all(self, plural: str, namespace: str) -> list[dict[str, Any]]:
        return [self.found]

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        return {}

    async def write_config_map(self, namespace: str, name: str, data: dict[str, str]) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def patch_status(self, plural: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        self.found["status"] = status
        (condition,) = status["conditions"]
        self.said.append((condition["status"], condition["reason"]))


def test_classes_that_cannot_be_published_say_so_once_and_say_when_they_are() -> None:
    namespace = Namespace()
    publisher = ClassPublisher(namespace)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ClusterError, match="forbidden"):
            asyncio.run(publisher.publish("chat"))
    assert namespace.said == [("False", "NotPublished")]
    namespace.refusal = None
    for _ in range(2):
        asyncio.run(publisher.publish("chat"))
    assert namespace.said == [("False", "NotPublished"), ("True", "Published")]
