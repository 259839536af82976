"""Who else writes a scale."""

from __future__ import annotations

from typing import Any

import pytest

from andes_operator.conflict import other_writer
from andes_operator.spec import ScaleTargetRef

REF = ScaleTargetRef("apps/v1", "Deployment", "engine")
SAME = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}


def autoscaler(**ref: str) -> dict[str, Any]:
    return {"metadata": {"name": "old"}, "spec": {"scaleTargetRef": {**SAME, **ref}}}


def target(name: str, created: str = "2026-11-21T09:00:00Z", mode: str | None = None, **ref: str) -> dict[str, Any]:
    spec = {"scaleTargetRef": {**SAME, **ref}, **({"mode": mode} if mode else {})}
    return {"metadata": {"name": name, "creationTimestamp": created}, "spec": spec}


MINE = target("m")


@pytest.mark.parametrize(
    ("ref", "conflicts"),
    [
        ({}, True), ({"apiVersion": "apps/v1beta1"}, True), ({"name": "other"}, False), ({"kind": "StatefulSet"}, False),
        ({"apiVersion": "other/v1"}, False),
    ],
)  # fmt: skip
def test_an_autoscaler_on_the_same_object_in_any_version(ref: dict[str, str], conflicts: bool) -> None:
    found = other_writer(MINE, REF, [autoscaler(name="unrelated"), autoscaler(**ref)], [])
    said = "HorizontalPodAutoscaler old scales Deployment/engine too: remove one of them"
    assert found == (said if conflicts else None)


@pytest.mark.parametrize(
    ("other", "conflicts"),
    [
        (target("a", "2026-11-21T08:59:59Z"), True), (target("z", "2026-11-21T08:59:59Z"), True),
        (target("a"), True), (target("z"), False), (target("a", "2026-11-21T09:00:01Z"), False), (MINE, False),
        (target("a", mode="Advisory"), False), (target("a", mode="Auto"), True), (target("a", kind="StatefulSet"), False),
        ({"metadata": {"name": "a", "creationTimestamp": ""}}, False),
    ],
)  # fmt: skip
def test_of_two_targets_the_older_writes(other: dict[str, Any], conflicts: bool) -> None:
    found = other_writer(MINE, REF, [], [MINE, other])
    said = f"QoETarget {other['metadata']['name']} scales Deployment/engine already: remove one of them"
    assert found == (said if conflicts else None)
