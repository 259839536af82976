"""A QoEPool and its members' statuses: what is read of them, and what is written."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from cases import SPEC, predicted, seen

from andes_operator.cluster import ClusterError
from andes_operator.decide import ScaleDecision
from andes_operator.explain import SpecError
from andes_operator.forecast import DemandForecast
from andes_operator.memory import Memory
from andes_operator.names import Mode, Reason
from andes_operator.observe import DataFault
from andes_operator.pool_reconcile import PoolReconciler
from andes_operator.pooling import (
    Ask,
    Grant,
    Membership,
    PoolMember,
    ask,
    in_pool,
    member_of,
    membership,
    parse_pool,
    pool_status,
    pooled,
)
from andes_operator.sharing import Allotment, PoolBudget
from andes_operator.spec import parse
from andes_operator.telemetry import OperatorMetrics

POOL: dict[str, Any] = {
    "metadata": {"name": "gpus", "namespace": "n", "generation": 2, "creationTimestamp": "2026-11-27T08:00:00Z"},
    "spec": {
        "budget": {"gpus": 8, "pricePerHour": 40},
        "members": [{"target": "chat", "price": 2.5}, {"target": "code", "price": 5, "priority": 2, "profile": "l4-llama-3.1-8b"}],
    },
}  # fmt: skip


def target(
    name: str, *, asks: int | None = 3, mode: str = "Pooled", model: str | None = None, **status: Any
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "n", "creationTimestamp": "2026-11-27T08:00:00Z"},
        "spec": {"mode": mode, "minReplicas": 1, "maxReplicas": 10, "gpusPerReplica": 2, "demand": {"gateway": {"service": "g"}}},
        "status": {"replicas": 2, "readyReplicas": 1, "coldStartSeconds": 60, "demand": {"requestsPerSecond": 4.0, "model": model},
                   "pool": {"name": "gpus", "asks": asks, "placeable": None, "given": 2}, **status},
    }  # fmt: skip


def test_a_pool_is_read() -> None:
    spec = parse_pool(POOL["spec"])
    assert spec.budget == PoolBudget(8, 40)
    assert spec.members == (PoolMember("chat", "", 2.5, 1.0), PoolMember("code", "l4-llama-3.1-8b", 5.0, 2.0))
    assert parse_pool({"budget": {"gpus": 4}, "members": [{"target": "a"}]}).members[0].price is None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"members": []}, "spec.budget is missing"),
        ({"budget": {}, "members": []}, "spec.budget is empty: give gpus, pricePerHour or both"),
        ({"budget": {"gpus": 0}, "members": []}, "spec.budget.gpus must be above 0, got 0.0"),
        ({"budget": {"gpus": 1}}, "spec.members is missing"),
        ({"budget": {"pricePerHour": 1}, "members": [{"target": "a"}]}, "spec.members[0].price is missing"),
        ({"budget": {"gpus": 1}, "members": [{"target": "a"}, {"target": "a"}]}, 'spec.members[1].target "a" is a member already'),
        ({"budget": {"gpus": 1}, "members": [{"price": 1}]}, "spec.members[0].target is missing"),
        ({"budget": {"gpus": 1}, "members": [{"target": "a", "price": 1}, {"target": "b"}]},
         "spec.members[1].price is missing, and others have one: give every member a price, or none"),
        ({"budget": {"gpus": 1}, "members": [{"target": "a"}, {"target": "b"}, {"target": "c", "price": 1}]},
         "spec.members[0].price is missing, and others have one"),
        ({"budget": {"gpus": 1}, "members": [{"target": "a", "priority": -1}]}, "spec.members[0].priority must be above 0, got -1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said.replace("[", r"\[").replace("]", r"\]")):
        parse_pool(spec)


def test_a_member_is_what_its_target_says() -> None:
    found = member_of(PoolMember("chat", price=2.5, priority=3.0), target("chat"))
    assert found is not None
    assert (found.alone, found.least, found.most, found.existing, found.ready) == (3, 1, 10, 2, 1)
    assert (found.gpus, found.price, found.value, found.cold_s) == (2.0, 2.5, 12.0, 60.0)
    assert member_of(PoolMember("chat"), target("chat", mode="Auto")) is None
    assert member_of(PoolMember("chat"), {**target("chat"), "status": {}}) is None, "never reconciled"
    going = member_of(PoolMember("chat"), target("chat", pool={"name": "gpus", "draining": 3}))
    assert going is not None
    assert (going.existing, going.draining) == (2, 3)
    few = target("chat", pool={"name": "gpus", "asks": 9, "placeable": 4})
    made = member_of(PoolMember("chat"), few)
    assert made is not None
    assert (made.most, made.price) == (4, 2.0), "what cannot be had; without a price its GPUs are its price"


def test_members_of_one_model_behind_one_gateway_share_its_demand() -> None:
    def shares(*models: str | None) -> bool:
        targets = [target(name, model=model) for name, model in zip(("chat", "code"), models)]
        found = membership(targets[0], [POOL], targets)
        assert found is not None
        return found.shares

    assert shares("llama", "llama")
    assert not shares("llama", "qwen")
    assert not shares(None, None), "not known"


def test_a_target_is_in_the_oldest_pool_that_names_it() -> None:
    younger = {**POOL, "metadata": {**POOL["metadata"], "name": "a", "creationTimestamp": "2026-11-27T09:00:00Z"}}
    given = {"members": [{"target": "chat", "replicas": 5, "exact": False, "grant": 3, "reserved": 6}]}
    found = membership(target("chat"), [younger, {**POOL, "status": given}], [])
    assert found == Membership("gpus", PoolMember("chat", "", 2.5, 1.0), False, Grant(5, False, 3, 6))
    assert membership(target("other"), [POOL], []) is None
    assert membership(target("chat"), [{**POOL, "spec": {}}], []) is None, "that cannot be read"
    broken = {**POOL, "status": {"members": [{"target": "chat", "replicas": "many"}]}}
    unread = membership(target("chat"), [broken], [])
    assert unread is not None
    assert unread.given is None


def test_a_pool_gives_nothing_to_a_target_of_another_pool() -> None:
    spec = parse_pool(POOL["spec"])
    chat = target("chat", pool={"name": "older", "asks": 3, "grant": 1})
    made, changed = pool_status(POOL, spec, {"chat": chat, "code": target("code", mode="Auto")}, now_s=0.0)
    assert (made["members"], made["gpus"], changed) == ([], 0.0, [])
    said = "no QoETarget in mode Pooled that was reconciled: code; chat is in the QoEPool older"
    assert made["conditions"][0]["message"] == said


def test_a_target_that_does_not_know_of_its_pool_yet_keeps_what_it_has_and_it_counts() -> None:
    spec = parse_pool(POOL["spec"])
    made, _ = pool_status(POOL, spec, {"chat": target("chat", asks=9), "code": target("code", pool=None)}, now_s=0.0)
    assert {m["target"]: m["replicas"] for m in made["members"]} == {"chat": 2, "code": 2}
    assert (made["gpus"], made["conditions"][0]["reason"]) == (8.0, "AsExpected")


def test_the_bounds_of_a_member_are_those_of_the_time() -> None:
    found = member_of(PoolMember("chat"), target("chat", bounds={"minReplicas": 4, "maxReplicas": 6}))
    assert found is not None
    assert (found.least, found.most) == (4, 6)


PREDICTION = DemandForecast(5.0, 315.0, "trend"), predicted(3)
DECISION = ScaleDecision(6, Reason.HEADROOM, "six survive", Memory())
MEMBER = Membership("gpus", PoolMember("chat", "l4-llama-3.1-8b"))


def test_what_is_decided_stays_within_what_is_given() -> None:
    def given(grant: Grant | None) -> ScaleDecision:
        return pooled(SPEC, seen(1e6, 4), DECISION, replace(MEMBER, given=grant))

    assert given(Grant(8)) == DECISION
    less = given(Grant(5))
    assert (less.replicas, less.reason) == (5, Reason.POOL)
    assert less.message == "the QoEPool gpus gives 5; six survive"
    assert given(Grant(8, True)).replicas == 8, "another member has the rest of its model"
    assert (
        pooled(replace(SPEC, min_replicas=3), seen(1e6, 1), DECISION, replace(MEMBER, given=Grant(2, True))).replicas
        == 2
    ), "also where that is less than the least"
    waits = given(None)
    assert (waits.replicas, waits.message) == (4, "six survive; the QoEPool gpus has not divided its budget yet")


def test_a_pool_s_profile_goes_before_the_target_s_and_without_a_pool_it_only_recommends() -> None:
    spec = replace(SPEC, mode=Mode.POOLED)
    assert in_pool(spec, MEMBER).profile == "l4-llama-3.1-8b"
    assert in_pool(spec, replace(MEMBER, member=PoolMember("chat"))).profile == SPEC.profile
    lonely = in_pool(spec, None)
    assert (lonely.mode, lonely.no_pool) == (Mode.ADVISORY, True)
    assert in_pool(SPEC, None) == SPEC


def test_what_a_member_asks_for() -> None:
    look = seen(1e6, 4)
    assert ask(SPEC, look, DECISION, None, PREDICTION, shares=False) == Ask(6)
    assert ask(SPEC, look, DECISION, None, PREDICTION, shares=True) == Ask(3), "of its kind for all of the model"
    urgent = replace(DECISION, reason=Reason.QOE_BELOW_TARGET)
    assert ask(SPEC, look, urgent, None, PREDICTION, shares=True) == Ask(4)
    assert ask(SPEC, look, DECISION, None, None, shares=True) == Ask()
    fault = replace(look, fault=DataFault(Reason.DATA_MISSING, "gone"))
    assert ask(SPEC, fault, DECISION, None, PREDICTION, shares=False) == Ask()


def test_a_paused_member_keeps_its_part_and_recommends_as_if_it_had_no_pool() -> None:
    paused = replace(SPEC, mode=Mode.ADVISORY, paused="paused until tomorrow")
    assert ask(paused, seen(1e6, 4), DECISION, None, PREDICTION, shares=True) == Ask(), "it stays as it is"
    assert pooled(paused, seen(1e6, 4), DECISION, replace(MEMBER, given=Grant(2))) == DECISION


class Store:
    """One pool and its targets, with versions. meanwhile: runs between reading and writing."""

    def __init__(self, pool: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        self.pool, self.targets, self.version, self.forgotten = pool, targets, 1, 0
        self.meanwhile: Callable[[], Awaitable[Any]] | None = None

    async def get(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        pool = copy.deepcopy(self.pool)
        pool["metadata"]["resourceVersion"] = str(self.version)
        return pool

    async def list_all(self, plural: str, namespace: str, ttl_s: float = 0.0) -> list[dict[str, Any]]:
        if self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            await act()
        return self.targets

    async def patch_status(
        self, plural: str, namespace: str, name: str, status: dict[str, Any], *, resource_version: str | None = None
    ) -> None:
        if resource_version not in (None, str(self.version)):
            raise ClusterError(409, "changed")
        self.pool, self.version = {**self.pool, "status": status}, self.version + 1

    def forget_list(self, plural: str, namespace: str) -> None:
        self.forgotten += 1


def test_of_two_operators_that_divide_at_once_one_writes_and_the_other_reads_it_first() -> None:
    """Both would give the same number to different parts, and a target tells only the number."""
    store, woken = Store(POOL, [target("chat"), target("code")]), list[tuple[str, str]]()
    first, second = (PoolReconciler(store, woken.append, metrics=OperatorMetrics()) for _ in range(2))  # type: ignore[arg-type]
    store.meanwhile = lambda: second.reconcile(("n", "gpus"))
    again = asyncio.run(first.reconcile(("n", "gpus"))).requeue_after_s
    assert again is not None
    assert again <= 1.0
    assert (store.version, woken, store.forgotten) == (2, [("n", "chat"), ("n", "code")], 1)
    assert asyncio.run(first.reconcile(("n", "gpus"))).requeue_after_s == 5.0
    assert [m["grant"] for m in store.pool["status"]["members"]] == [1, 1]


def test_the_status_says_who_gets_what_and_whether_it_is_enough() -> None:
    spec = parse_pool(POOL["spec"])
    made, changed = pool_status(POOL, spec, {"chat": target("chat", asks=5)}, now_s=1_795_251_720.0)
    assert (made["gpus"], made["pricePerHour"], made["observedGeneration"], changed) == (4.0, 5.0, 2, ["chat"])
    assert made["members"] == [
        {"target": "chat", "replicas": 4, "exact": False, "grant": 1, "reserved": 4, "wished": 5, "existing": 2}]  # fmt: skip
    said = {c["type"]: (c["status"], c["reason"], c["message"]) for c in made["conditions"]}
    assert said["Ready"] == ("False", "MemberMissing", "no QoETarget in mode Pooled that was reconciled: code")
    assert said["Attainable"] == ("False", "Budget", "the budget is too small for what chat would need")
    free = replace(spec, budget=PoolBudget(8), members=(PoolMember("chat"),))
    priceless, _ = pool_status(POOL, free, {"chat": target("chat")}, now_s=0.0)
    assert (priceless["gpus"], priceless["pricePerHour"]) == (4.0, None), "GPUs are no money"
    metrics = OperatorMetrics()
    for shown in (made, priceless):
        metrics.show_pool("n", "gpus", shown)
    assert b'andes_operator_pool_gpus{namespace="n",pool="gpus"} 4.0' in metrics.exposition()
    assert b"andes_operator_pool_price_per_hour{" not in metrics.exposition()
    assert b'andes_operator_pool_ready{namespace="n",pool="gpus",reason="AsExpected"} 1.0' in metrics.exposition()
    assert b"MemberMissing" not in metrics.exposition(), "one series at a time"
    enough = replace(spec, budget=PoolBudget(10), members=spec.members[:1])
    made, changed = pool_status({**POOL, "status": made}, enough, {"chat": target("chat", asks=5)}, now_s=0.0)
    assert [c["status"] for c in made["conditions"]] == ["True", "True"]
    assert changed == ["chat"]


def test_what_was_given_counts_until_the_target_has_told_that_it_knows_of_less() -> None:
    first = Grant().next(Allotment(2, False, 2), None)
    assert (first, first.held(None), first.held(1)) == (Grant(2, False, 1, 2), 2, 2)
    less = first.next(Allotment(1, False, 2), None)
    assert less == Grant(1, False, 2, 2)
    assert (less.held(0), less.held(1), less.held(2)) == (2, 2, 1), (
        "it may still act on the first, until it tells the second"
    )
    assert less.next(Allotment(1, False, 2), 1) == less
    assert less.next(Allotment(1, False, 2), 2) == Grant(1, False, 2, 1)
    held = member_of(PoolMember("chat"), target("chat", replicas=1), less)
    assert held is not None
    assert held.existing == 2


@pytest.mark.parametrize(
    "edited",
    [{"bounds": {"maxReplicas": 10}}, {"bounds": {"minReplicas": 1}}, {"bounds": {"minReplicas": 1, "maxReplicas": -5}},
     {"pool": {"asks": -5}}, {"pool": {}}, {"demand": {}}, {"replicas": -3}, {"coldStartSeconds": -1.0}],
)  # fmt: skip
def test_a_member_s_status_that_was_edited_by_hand_stops_no_pool(edited: dict[str, Any]) -> None:
    members = {"chat": target("chat", **edited), "code": target("code")}
    made, _ = pool_status(POOL, parse_pool(POOL["spec"]), members, now_s=0.0)
    assert [row["target"] for row in made["members"]] == ["chat", "code"]
    assert all(row["replicas"] >= 0 for row in made["members"])


@pytest.mark.parametrize("edited", [{"replicas": -5}, {"grant": -1}, {"reserved": -2}, {"exact": None, "grant": None}])
def test_what_was_given_and_cannot_be_is_not_acted_on(edited: dict[str, Any]) -> None:
    row = {"target": "chat", "replicas": 2, "exact": False, "grant": 3, "reserved": 2}
    assert Grant.of({"status": {"members": [row]}}, "chat") == Grant(2, False, 3, 2)
    assert Grant.of({"status": {"members": [{**row, **edited}]}}, "chat") is None


def test_a_pool_that_was_made_again_is_another_pool() -> None:
    """Its parts are counted from one again: what a target tells of the first is nothing about the second."""
    spec = parse_pool({"budget": {"gpus": 12}, "members": [{"target": "chat"}, {"target": "code"}]})
    first, second = ({**POOL, "metadata": {**POOL["metadata"], "uid": uid}} for uid in ("1", "2"))
    acting = target("chat", replicas=1, pool={"name": "gpus", "uid": "1", "asks": 1, "given": 4, "grant": 1})
    others = {"code": target("code", asks=9, replicas=1, pool={"name": "gpus", "uid": "2", "asks": 9})}

    def given(pool: dict[str, Any], chat: dict[str, Any]) -> dict[str, int]:
        made, _ = pool_status(pool, spec, {"chat": chat, **others}, now_s=0.0)
        pool["status"] = made
        return {m["target"]: m["replicas"] for m in made["members"]}

    assert given(second, acting)["code"] <= 2, "chat may still grow to the four that it was given before"
    assert given(second, acting)["code"] <= 2
    known = target("chat", replicas=1, pool={"name": "gpus", "uid": "2", "asks": 1, "given": 1, "grant": 1})
    given(second, known)
    assert given(second, known)["code"] == 5
    assert given(first, acting)["chat"] == 1, "the same pool knows that its number 1 was read"


def test_members_that_act_late_never_exceed_the_budget_together() -> None:
    """A target acts on what it read some looks ago, and its status is as old; the pool's wishes change at every look."""
    spec = parse_pool({"budget": {"gpus": 6}, "members": [{"target": "chat"}, {"target": "code"}]})
    pool, chance = {**POOL}, random.Random(3)  # noqa: S311
    scales, statuses = (
        {"chat": 1, "code": 1},
        {name: target(name, replicas=1, pool={"name": "gpus", "asks": 2}) for name in ("chat", "code")},
    )
    read: dict[str, Any] = {}
    for look in range(400):
        for said in statuses.values():
            said["status"]["pool"]["asks"] = chance.choice((1, 2, 3))
        made, _ = pool_status(pool, spec, statuses, now_s=float(look))
        pool = {**pool, "status": made}
        for name in scales:
            if name not in read and chance.random() < 0.5:
                read[name] = membership(target(name), [pool], [])  # a reconcile begins
            elif name in read and chance.random() < 0.5:
                given = read.pop(name).given
                there = scales[name]
                scales[name] = min(statuses[name]["status"]["pool"]["asks"], given.replicas)
                seen_before = {"replicas": there, "readyReplicas": there}
                statuses[name] = target(
                    name,
                    pool={"name": "gpus", "asks": 2, "given": given.replicas, "grant": given.number},
                    **seen_before,
                )
        assert 2 * sum(scales.values()) <= 6
    assert max(scales.values()) >= 1


def test_mode_pooled_is_read() -> None:
    made = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "e"}, "maxReplicas": 4, "mode": "Pooled",
            "objectives": [{"statistic": "Mean", "value": 0.9}], "demand": {"gateway": {"service": "g"}},
            "whatIf": {"profile": "p"}}  # fmt: skip
    assert parse(made).mode is Mode.POOLED
