"""Who goes first."""

from __future__ import annotations

import pytest
from cases import pod
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.names import DELETION_COST, DRAINING
from andes_operator.victims import (
    GOING_COST,
    UNREADY_COST,
    deletion_cost,
    deletion_costs,
    replica_of,
    to_undrain,
    victims,
)  # fmt: skip


def test_the_one_with_least_to_lose_goes_first() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3"), pod("d", "10.0.0.4", ready=False)]
    cost = deletion_costs(pods, {"10.0.0.1:80": 7, "10.0.0.2:80": 2, "[fd00::1]:80": 1})
    assert cost == {"a": 7, "b": 2, "c": 0, "d": UNREADY_COST}
    assert [p["metadata"]["name"] for p in victims("Deployment", pods, cost, 3)] == ["d", "c", "b"]
    assert victims("Deployment", pods, cost, -1) == []


def test_of_those_that_serve_what_stands_on_a_node_that_may_go_is_removed_first() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3", ready=False)]
    cost = deletion_costs(pods, {"10.0.0.1:80": 90, "10.0.0.2:80": 0}, going={"a", "c"})
    assert cost == {"a": GOING_COST, "b": 0, "c": UNREADY_COST}
    assert [p["metadata"]["name"] for p in victims("Deployment", pods, cost, 2)] == ["c", "a"]


def test_what_stands_on_a_node_that_goes_does_not_serve_again() -> None:
    stayed = pod("a", annotations={DRAINING: "2026-11-21T09:00:00Z"})
    assert to_undrain([stayed], 1, 1795251720.0, 60, going={"a"}) == []
    assert to_undrain([stayed], 1, 1795251720.0, 60, going={"b"}) == [stayed]


def test_an_address_of_version_six() -> None:
    assert deletion_costs([pod("a", "fd00::1")], {"[fd00::1]:80": 4}) == {"a": 4}


def test_ordered_kinds_give_up_the_highest_ordinal() -> None:
    pods = [pod(f"engine-{i}", f"10.0.0.{i}") for i in (2, 10, 9)]
    cost = deletion_costs(pods, {"10.0.0.10:80": 50})
    assert [p["metadata"]["name"] for p in victims("StatefulSet", pods, cost, 2)] == ["engine-10", "engine-9"]


def test_a_pod_that_was_to_go_and_stayed_serves_again() -> None:
    mark = {"annotations": {DRAINING: "2026-11-21T09:00:00Z"}}
    stayed, fresh = pod("a", **mark), pod("b", annotations={DRAINING: "2026-11-21T09:01:30Z"})
    now_s = 1795251720.0  # 2026-11-21 09:02:00 UTC
    assert to_undrain([stayed, fresh, pod("c")], 3, now_s, 60) == [stayed]
    assert to_undrain([stayed, fresh, pod("c")], 2, now_s, 60) == [], "one is still to go"


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=12), st.integers(0, 12))
@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_no_pod_goes_that_costs_more_than_one_that_stays(kind: str, fleet: list[tuple[int, bool]], many: int) -> None:
    pods = [pod(f"e-{i}", f"10.0.0.{i}", ready=ready, made=i) for i, (_, ready) in enumerate(fleet)]
    cost = deletion_costs(pods, {f"10.0.0.{i}:80": streams for i, (streams, _) in enumerate(fleet)})
    gone = [p["metadata"]["name"] for p in victims(kind, pods, cost, many)]
    stay = [name for name in cost if name not in gone]
    assert len(gone) == min(many, len(fleet))
    if kind == "Deployment" and gone and stay:
        assert max(cost[name] for name in gone) <= min(cost[name] for name in stay)


# Rules at their bounds


def test_a_pod_without_an_address_has_no_engine() -> None:
    assert replica_of(pod("a"), {":80": 1, "None:80": 2}) is None
    assert replica_of({"metadata": {"name": "a"}}, {"10.0.0.1:80": 1}) is None
    assert replica_of(pod("a", "10.0.0.1"), {"10.0.0.11:80": 1, "10.0.0.1:80": 1}) == "10.0.0.1:80"


def test_a_leaving_pod_has_no_cost_and_is_no_victim() -> None:
    pods = [pod("a", "10.0.0.1", deletionTimestamp="2026-11-21T09:00:00Z"), pod("b", "10.0.0.2")]
    costs = deletion_costs(pods, {"10.0.0.1:80": 0, "10.0.0.2:80": 9})
    assert costs == {"b": 9}
    assert [p["metadata"]["name"] for p in victims("Deployment", pods, costs, 2)] == ["b"]


def test_of_equals_the_youngest_is_removed() -> None:
    pods = [pod("a", made=1), pod("c", made=3), pod("b", made=2)]
    assert [p["metadata"]["name"] for p in victims("Deployment", pods, {"a": 5, "b": 5, "c": 5}, 2)] == ["c", "b"]


def test_a_name_without_an_ordinal_is_removed_last() -> None:
    pods = [pod("engine"), pod("engine-x"), pod("engine-0")]
    costs = {"engine": 0, "engine-x": 0, "engine-0": 9}
    assert victims("LeaderWorkerSet", pods, costs, 1)[0]["metadata"]["name"] == "engine-0"


def test_a_pod_serves_again_exactly_after_its_time_and_only_if_it_is_wanted() -> None:
    marked = pod("a", annotations={DRAINING: "2026-11-21T09:00:00Z"})
    start_s = 1795251600.0  # 2026-11-21 09:00:00 UTC
    assert to_undrain([marked], 1, start_s + 60, 60) == [marked]
    assert to_undrain([marked], 1, start_s + 59, 60) == []
    leaving = pod("b", deletionTimestamp="2026-11-21T09:00:00Z", annotations={DRAINING: "2026-11-21T09:00:00Z"})
    assert to_undrain([marked, leaving], 1, start_s + 60, 60) == [marked], "the other is going"
    assert to_undrain([marked, pod("c")], 1, start_s + 60, 60) == []


def test_the_cost_that_is_annotated() -> None:
    assert deletion_cost(pod("a")) is None
    assert deletion_cost(pod("a", annotations={DELETION_COST: -5})) == "-5"
    assert deletion_cost(pod("a", annotations={})) is None


def test_what_holds_least_goes_first_as_a_replica_set_has_it() -> None:
    """Not placed, then pending, then not ready, then by cost."""
    placed = {**pod("c", "10.0.0.3", ready=False), "spec": {"nodeName": "n"}}
    pending = {**pod("b", None, ready=False), "spec": {"nodeName": "n"}}
    pending["status"]["phase"] = "Pending"
    pods = [pod("a", "10.0.0.1", made=9), placed, pending, {"metadata": pod("d")["metadata"]}]
    costs = deletion_costs(pods, {"10.0.0.1:80": 0})
    assert [p["metadata"]["name"] for p in victims("Deployment", pods, costs, 4)] == ["d", "b", "c", "a"]


def test_a_mark_that_was_edited_by_hand_is_taken_back() -> None:
    assert to_undrain([marked := pod("a", annotations={DRAINING: "soon"})], 1, 1795251600.0, 60) == [marked]
