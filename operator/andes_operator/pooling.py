"""A QoEPool and its members' statuses as :func:`~andes_operator.sharing.divide` needs them, its answer as a status. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from andes_operator.decide import FLOOR_GROWTH, ScaleDecision
from andes_operator.explain import SpecError, required, shown
from andes_operator.forecast import DemandForecast
from andes_operator.names import Condition, Mode, Reason
from andes_operator.observe import Observation
from andes_operator.sharing import Allotment, Member, PoolBudget, divide
from andes_operator.sizing import Headroom
from andes_operator.spec import TargetSpec
from andes_operator.status import Finding, conditions, timestamp
from andes_operator.whatif import Prediction

__all__ = [
    "Ask", "Grant", "Membership", "PoolMember", "PoolSpec", "ask", "in_pool", "member_of", "membership", "parse_pool",
    "pool_part", "pool_status", "pooled",
]  # fmt: skip

Resource = Mapping[str, Any]
URGENT = (Reason.QOE_BELOW_TARGET, Reason.QUEUE_GROWING)
"""Reasons for which readers of a shared model get a quarter more than what is predicted to do."""


@dataclass(frozen=True, slots=True)
class PoolMember:
    """target: its QoETarget's name. profile: of its hardware, empty: the target's own. price: of a replica, an hour; None, as
    for all members: it costs its GPUs. priority: what its readers' QoE is worth beside the others'."""

    target: str
    profile: str = ""
    price: float | None = None
    priority: float = 1.0


@dataclass(frozen=True, slots=True)
class PoolSpec:
    budget: PoolBudget
    members: tuple[PoolMember, ...]


@dataclass(frozen=True, slots=True)
class Membership:
    """A target's place in a pool. shares: whether another member serves its model. given: None: nothing yet. uid: of the
    pool."""

    pool: str
    member: PoolMember
    shares: bool = False
    given: Grant | None = None
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a pool's status says that a member may have. number: grows with every change, and is told back by the target once
    no older one can still be acted on. reserved: the most that those which are not told back may have led to."""

    replicas: int = 0
    exact: bool = False
    number: int = 0
    reserved: int = 0

    @classmethod
    def of(cls, pool: Resource, target: str) -> Grant | None:
        """As it was written last; None for what cannot be read."""
        for said in (pool.get("status") or {}).get("members") or []:
            if said.get("target") == target:
                try:
                    found = cls(int(said["replicas"]), bool(said["exact"]), int(said["grant"]), int(said["reserved"]))
                except (KeyError, TypeError, ValueError):
                    return None
                return found if min(found.replicas, found.number, found.reserved) >= 0 else None
        return None

    def held(self, told_back: int | None) -> int:
        """Replicas that may exist, or come, by it and those before."""
        return self.replicas if told_back == self.number else max(self.reserved, self.replicas)

    def next(self, allotment: Allotment, told_back: int | None) -> Grant:
        """The one that follows it."""
        held = self.held(told_back)
        changed = allotment.replicas != self.replicas or allotment.exact != self.exact
        return Grant(
            allotment.replicas, allotment.exact, self.number + changed,
            max(held, allotment.replicas) if changed else held,
        )  # fmt: skip


def parse_pool(spec: Mapping[str, Any]) -> PoolSpec:
    """Of a QoEPool. Raises :class:`~andes_operator.explain.SpecError` naming field and value."""
    said = required(spec, "budget")
    budget = PoolBudget(_above_0(said, "gpus", "spec.budget"), _above_0(said, "pricePerHour", "spec.budget"))
    if budget == PoolBudget():
        raise SpecError("spec.budget is empty: give gpus, pricePerHour or both")
    members = tuple(_member(of, f"spec.members[{i}]") for i, of in enumerate(required(spec, "members")))
    for i, member in enumerate(members):
        if member.target in {m.target for m in members[:i]}:
            raise SpecError(f"spec.members[{i}].target {shown(member.target)} is a member already")
        if member.price is None and budget.price < math.inf:
            raise SpecError(f"spec.members[{i}].price is missing, which spec.budget.pricePerHour needs")
        if member.price is None and any(m.price is not None for m in members):
            raise SpecError(
                f"spec.members[{i}].price is missing, and others have one: give every member a price, or none"
            )
    return PoolSpec(budget, members)


def _member(of: Mapping[str, Any], where: str) -> PoolMember:
    price = _above_0(of, "price", where)
    return PoolMember(
        str(required(of, "target", where)),
        str(of.get("profile", "")),
        None if price == math.inf else price,
        _above_0({"priority": 1.0, **of}, "priority", where),
    )


def _above_0(of: Mapping[str, Any], name: str, where: str) -> float:
    """``inf`` where it is not given."""
    value = float(of.get(name, math.inf))
    if not value > 0:
        raise SpecError(f"{where}.{name} must be above 0, got {shown(value)}")
    return value


def membership(target: Resource, pools: Iterable[Resource], targets: Iterable[Resource]) -> Membership | None:
    """Of a target in mode Pooled: in the oldest pool that names it; None: none does. Pools that cannot be read have no
    members."""
    name = target["metadata"]["name"]
    for pool in sorted(pools, key=lambda p: (p["metadata"]["creationTimestamp"], p["metadata"]["name"])):
        try:
            members = parse_pool(pool.get("spec") or {}).members
        except (ValueError, TypeError):
            continue
        mine = next((m for m in members if m.target == name), None)
        if mine is not None:
            others = {m.target for m in members} - {name}
            shares = any(_model(t) == _model(target) for t in targets if t["metadata"]["name"] in others and _pooled(t))
            return Membership(pool["metadata"]["name"], mine, shares, Grant.of(pool, name), _uid(pool))
    return None


def _uid(pool: Resource) -> str:
    return str(pool["metadata"].get("uid", ""))


def _pooled(target: Resource) -> bool:
    return bool((target.get("spec") or {}).get("mode") == Mode.POOLED)


def _model(target: Resource) -> tuple[str, str]:
    """Service of the gateways and model; a target of which neither is known is alone."""
    gateway = ((target.get("spec") or {}).get("demand") or {}).get("gateway") or {}
    model = gateway.get("model") or ((target.get("status") or {}).get("demand") or {}).get("model")
    return (str(gateway.get("service")), str(model)) if model else ("", str(target["metadata"]["name"]))


def in_pool(spec: TargetSpec, of: Membership | None) -> TargetSpec:
    """With the profile that the pool names; one in mode Pooled that no pool names only recommends."""
    if of is not None:
        return replace(spec, profile=of.member.profile or spec.profile)
    return replace(spec, mode=Mode.ADVISORY, no_pool=True) if spec.mode is Mode.POOLED else spec


class Ask(NamedTuple):
    """replicas: with what may come; None: not known, and it stays as it is. present: of them, for the present demand."""

    replicas: int | None = None
    present: int | None = None


def ask(
    spec: TargetSpec, seen: Observation, decision: ScaleDecision, found: Headroom | None,
    prediction: tuple[DemandForecast, Prediction] | None, *, shares: bool,
) -> Ask:  # fmt: skip
    """What the target would have for itself; of one that shares its model, of its kind for all of the model's demand."""
    if seen.fault is not None or spec.paused:
        return Ask()
    present = None if found is None else max(1, math.ceil(found.load.at / found.buffer.rho - 1e-9))
    if not shares:
        return Ask(decision.replicas, present)
    if found is not None:
        surge = found.sized.surge / (1.0 + found.buffer.seconds / found.sized.horizon_s)
        wanted = max(found.load.base, found.load.at, surge) / found.buffer.rho
    elif prediction is not None:
        wanted = float(prediction[1].fewest or spec.max_replicas)
    else:
        return Ask()
    more = FLOOR_GROWTH if decision.reason in URGENT else 1.0
    return Ask(max(1, math.ceil(wanted * more - 1e-9)), present)


def pool_part(of: Membership | None, asks: Ask, seen: Observation) -> dict[str, Any] | None:
    """Of a member's status, for its pool."""
    if of is None:
        return None
    given, grant = (None, None) if of.given is None else (of.given.replicas, of.given.number)
    return {
        "name": of.pool, "uid": of.uid, "asks": asks.replicas, "present": asks.present, "given": given, "grant": grant,
        "placeable": seen.pods.placeable, "draining": seen.pods.terminating,
    }  # fmt: skip


def pooled(spec: TargetSpec, seen: Observation, decision: ScaleDecision, of: Membership) -> ScaleDecision:
    """``decision`` within what the pool gives; without an allotment the replicas stay. A paused target only recommends."""
    if spec.paused:
        return decision
    given, current = of.given, seen.pods.wanted
    if given is None:
        message = f"{decision.message}; the QoEPool {of.pool} has not divided its budget yet"
        return replace(decision, replicas=current, reason=Reason.POOL, message=message)
    replicas = min(given.replicas, spec.max_replicas) if given.exact else min(decision.replicas, given.replicas)
    if replicas == decision.replicas:
        return decision
    message = f"the QoEPool {of.pool} gives {replicas}; {decision.message}"
    return replace(decision, replicas=replicas, reason=Reason.POOL, message=message)


def member_of(member: PoolMember, target: Resource, given: Grant | None = None, uid: str = "") -> Member | None:
    """As the pool of this ``uid`` sees a target by its spec and status, and by what it was given last; None where it is not
    in mode Pooled or was never reconciled. One that does not know of the pool yet asks for nothing, and stays as it is."""
    spec, status = target.get("spec") or {}, target.get("status") or {}
    said = status.get("pool") or {}
    if not _pooled(target) or not status:
        return None
    gpus, (least, most) = float(spec.get("gpusPerReplica", 1)), _bounds(spec, status, said.get("placeable"))
    first = Grant(reserved=_given_before(target, uid))
    existing = max(int(status.get("replicas", 0)), (given or first).held(_told_back(target, uid)))
    asked, present = said.get("asks"), said.get("present")
    rate_rps = float((status.get("demand") or {}).get("requestsPerSecond") or 0.0)
    cold_s = float(status.get("coldStartSeconds") or 0.0)
    return Member(
        member.target, "/".join(_model(target)), None if asked is None else max(0, int(asked)), least, most, existing,
        int(status.get("readyReplicas", 0)), gpus=gpus, price=gpus if member.price is None else member.price,
        value=member.priority * max(rate_rps, 1e-6), cold_s=cold_s, present=None if present is None else int(present),
        granted=None if given is None else given.replicas, draining=int(said.get("draining") or 0),
    )  # fmt: skip


def _bounds(spec: Resource, status: Resource, placeable: int | None) -> tuple[int, int]:
    """Least and most replicas, as they held at the last reconcile, of those that can be had."""
    written = {"minReplicas": spec.get("minReplicas", 1), "maxReplicas": spec["maxReplicas"]}
    said = {**written, **(status.get("bounds") or {})}
    least, most = (max(0, int(said[name])) for name in written)
    if placeable is not None:
        most = min(most, max(int(placeable), int(status.get("readyReplicas", 0))))
    return min(least, most), most


def pool_status(
    pool: Resource, spec: PoolSpec, targets: Mapping[str, Resource], *, now_s: float
) -> tuple[dict[str, Any], list[str]]:
    """The status with a new division, and the members whose part has changed. targets: of the namespace, by name."""
    before = {m.target: Grant.of(pool, m.target) for m in spec.members}
    name, uid = pool["metadata"]["name"], _uid(pool)
    members = _members(name, uid, spec, targets, before)
    given = divide(spec.budget, members)
    rows, changed = list[dict[str, Any]](), list[str]()
    for m in members:
        old = before[m.name] or Grant(reserved=_given_before(targets[m.name], uid))
        grant = old.next(given[m.name], _told_back(targets[m.name], uid))
        if before[m.name] is None or grant.number != old.number:
            changed.append(m.name)
        rows.append({
            "target": m.name, "replicas": grant.replicas, "exact": grant.exact, "grant": grant.number,
            "reserved": grant.reserved, "wished": given[m.name].wished, "existing": m.existing,
        })  # fmt: skip
    missing = {m.target: _pool_of(targets.get(m.target, {})) for m in spec.members if m.target not in given}
    generation, conditions_before = int(pool["metadata"]["generation"]), (pool.get("status") or {}).get("conditions")
    findings = [_ready(missing), _fits(spec, members, given)]
    return {
        "observedGeneration": generation,
        "observedAt": timestamp(now_s),
        "gpus": round(sum(m.gpus * (m.existing + m.draining) for m in members), 3),
        "pricePerHour": _price(spec, members),
        "members": rows,
        "conditions": conditions(findings, conditions_before or [], generation, now_s),
    }, changed


def _price(spec: PoolSpec, members: Sequence[Member]) -> float | None:
    """Of what is held, an hour; None where a member has no price."""
    if any(m.price is None for m in spec.members):
        return None
    return round(sum(m.price * (m.existing + m.draining) for m in members), 3)


def _members(
    pool: str, uid: str, spec: PoolSpec, targets: Mapping[str, Resource], before: Mapping[str, Grant | None]
) -> list[Member]:
    """Those that are there and not in another pool; what they hold counts also before they know of this one."""
    there = [m for m in spec.members if m.target in targets and _pool_of(targets[m.target]) in ("", pool)]
    found = (member_of(m, targets[m.target], before[m.target], uid) for m in there)
    return [member for member in found if member is not None]


def _pool_of(target: Resource) -> str:
    """The pool that a target in mode Pooled was in at its last reconcile; empty: none."""
    said = (target.get("status") or {}).get("pool") or {}
    return str(said.get("name", "")) if _pooled(target) else ""


def _told_back(target: Resource, uid: str) -> int | None:
    """The grant that the target had seen at its last reconcile; None also for one of another pool, which may have had the
    same name."""
    said = (target.get("status") or {}).get("pool") or {}
    return said.get("grant") if said.get("uid", "") == uid else None


def _given_before(target: Resource, uid: str) -> int:
    """What a pool of another ``uid`` and the same name gave, which the target may still act on."""
    said = (target.get("status") or {}).get("pool") or {}
    return 0 if said.get("uid", "") == uid else int(said.get("given") or 0)


def _ready(missing: Mapping[str, str]) -> Finding:
    """missing: with the pools that they are in, empty: none."""
    nowhere = sorted(target for target, pool in missing.items() if not pool)
    elsewhere = [f"{target} is in the QoEPool {pool}" for target, pool in sorted(missing.items()) if pool]
    if missing:
        said = [f"no QoETarget in mode Pooled that was reconciled: {', '.join(nowhere)}"] if nowhere else []
        return Condition.READY, False, Reason.MEMBER_MISSING, "; ".join(said + elsewhere)
    return Condition.READY, True, "AsExpected", "every member has its part"


def _fits(spec: PoolSpec, members: Sequence[Member], given: Mapping[str, Allotment]) -> Finding:
    if spec.budget.holds(members, {name: allotment.wished for name, allotment in given.items()}):
        return Condition.ATTAINABLE, True, "Fits", "the budget is enough for what all members need"
    short = [m.name for m in members if given[m.name].wished > given[m.name].replicas]
    said = f"the budget is too small for what {', '.join(short) or 'the members'} would need"
    return Condition.ATTAINABLE, False, "Budget", said
