"""Pods as supply, and who goes first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.names import DRAINING
from andes_operator.observe import PodCounts
from andes_operator.victims import UNREADY_COST, cold_start_s, count_pods, deletion_costs, to_undrain, victims


def pod(
    name: str, ip: str | None = None, *, ready: bool = True, made: int = 0, start_s: int = 40, **more: Any
) -> dict[str, Any]:
    at = f"2026-11-21T08:{made:02}:00Z"
    then = f"2026-11-21T08:{made + start_s // 60:02}:{start_s % 60:02}Z"
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": then}
    return {
        "metadata": {"name": name, "creationTimestamp": at, **more},
        "status": {"phase": "Running", "podIP": ip, "conditions": [condition]},
    }


def test_pending_pods_are_supply_on_its_way_and_leaving_ones_are_none() -> None:
    ended = pod("d")
    ended["status"]["phase"] = "Failed"
    pods = [pod("a"), pod("b", ready=False), pod("c", deletionTimestamp="2026-11-21T09:00:00Z"), ended]
    assert count_pods(pods, 3) == PodCounts(3, 2, 1, terminating=1)


def test_a_cold_start_is_the_median_of_those_that_are_ready() -> None:
    pods = [pod("a", start_s=30), pod("b", start_s=50), pod("c", start_s=100), pod("d", ready=False, start_s=999)]
    restarted = pod("e", start_s=1900)
    restarted["status"]["containerStatuses"] = [{"restartCount": 2}]
    assert cold_start_s([*pods, restarted]) == 50.0
    assert cold_start_s([pod("d", ready=False)]) is None


def test_the_one_with_least_to_lose_goes_first() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3"), pod("d", "10.0.0.4", ready=False)]
    cost = deletion_costs(pods, {"10.0.0.1:80": 7, "10.0.0.2:80": 2, "[fd00::1]:80": 1})
    assert cost == {"a": 7, "b": 2, "c": 0, "d": UNREADY_COST}
    assert [p["metadata"]["name"] for p in victims("Deployment", pods, cost, 3)] == ["d", "c", "b"]
    assert victims("Deployment", pods, cost, -1) == []


def test_an_address_of_version_six() -> None:
    assert deletion_costs([pod("a", "fd00::1")], {"[fd00::1]:80": 4}) == {"a": 4}


def test_ordered_kinds_give_up_the_highest_ordinal() -> None:
    pods = [pod(f"engine-{i}", f"10.0.0.{i}") for i in (2, 10, 9)]
    cost = deletion_costs(pods, {"10.0.0.10:80": 50})
    assert [p["metadata"]["name"] for p in victims("StatefulSet", pods, cost, 2)] == ["engine-10", "engine-9"]


def test_who_was_to_go_and_stayed_works_again() -> None:
    mark = {"annotations": {DRAINING: "2026-11-21T09:00:00Z"}}
    stayed, fresh = pod("a", **mark), pod("b", annotations={DRAINING: "2026-11-21T09:01:30Z"})
    now_s = 1795251720.0  # 2026-11-21 09:02:00 UTC
    assert to_undrain([stayed, fresh, pod("c")], 3, now_s, 60) == [stayed]
    assert to_undrain([stayed, fresh, pod("c")], 2, now_s, 60) == [], "one is still to go"


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=12), st.integers(0, 12))
@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_nobody_goes_who_has_more_to_lose_than_one_who_stays(
    kind: str, fleet: list[tuple[int, bool]], many: int
) -> None:
    pods = [pod(f"e-{i}", f"10.0.0.{i}", ready=ready, made=i) for i, (_, ready) in enumerate(fleet)]
    cost = deletion_costs(pods, {f"10.0.0.{i}:80": streams for i, (streams, _) in enumerate(fleet)})
    gone = [p["metadata"]["name"] for p in victims(kind, pods, cost, many)]
    stay = [name for name in cost if name not in gone]
    assert len(gone) == min(many, len(fleet))
    if kind == "Deployment" and gone and stay:
        assert max(cost[name] for name in gone) <= min(cost[name] for name in stay)
