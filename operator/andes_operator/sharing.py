"""A budget of GPUs or money divided between targets: :func:`divide`. Pure.

Members that serve one model are kinds of hardware for one demand: a replica of a member that would need ``alone`` of them
carries 1 / alone of it. What is wished for is the cheapest mix that carries all; where all wishes together exceed the budget,
replicas go, one by one, where readers gain most for what they cost. No replica begins before there is room for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

__all__ = ["Allotment", "Member", "PoolBudget", "divide"]

HORIZON_S = 1800.0
"""Seconds for which a replica is likely to be needed; a cold start takes its share of them from what it is worth."""
MOVE = 0.1
"""What a replica that does not exist yet is worth less, at least, as a share: values waver, and replicas are not to."""
RESERVE = 0.1
"""What being ready for more than the present demand is worth, as a share of what serving it is worth."""
TRIES = 300_000
"""Counts of kinds that are tried for one model, in less than a second: all mixes of three kinds of a hundred; of more, those
of the kinds that carry demand at the least price."""
Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class PoolBudget:
    """What all members together may hold at once: GPUs, and money an hour; ``inf``: as much as they like."""

    gpus: float = math.inf
    price: float = math.inf

    def cost(self, member: Member) -> float:
        """One replica's share of the budget, of GPUs or of money, whichever is more; above 0."""
        return max(1e-9, member.gpus / self.gpus, member.price / self.price)

    def holds(self, members: Sequence[Member], counts: Mapping[str, int]) -> bool:
        gpus = sum(m.gpus * counts[m.name] for m in members)
        price = sum(m.price * counts[m.name] for m in members)
        return gpus <= self.gpus + 1e-9 and price <= self.price + 1e-9


@dataclass(frozen=True, slots=True)
class Member:
    """A target as its pool sees it.

    model: members of one model share its demand. alone: replicas that the whole demand of its model would take of this
    kind, with what may come; None: not known yet, and it stays as it is. present: of them, for the present demand; None:
    all. least, most: its bounds, with what can be scheduled. existing: replicas that hold GPUs, or soon may; draining:
    beside them, those that hold theirs until they have gone; ready: that serve. gpus, price: of a replica, price per hour.
    value: of its model's readers, their requests/s times their priority. cold_s: until a new replica serves. granted: what
    it was given last; None: nothing yet.
    """

    name: str
    model: str
    alone: int | None
    least: int
    most: int
    existing: int
    ready: int
    gpus: float = 1.0
    price: float = 1.0
    value: float = 1.0
    cold_s: float = 0.0
    present: int | None = None
    granted: int | None = None
    draining: int = 0

    @property
    def serves(self) -> float:
        """The share of its model's present demand that a replica takes."""
        return 1.0 / max(1, self.present or self.alone or 1) if self.alone else 0.0

    @property
    def carries(self) -> float:
        """The share of its model's demand that a replica takes, with what may come."""
        return 1.0 / self.alone if self.alone else 0.0

    @property
    def floor(self) -> int:
        """Replicas that it has before others have more than theirs."""
        return self.least if self.alone is not None else min(self.most, max(self.least, self.existing))

    def fresh(self, replicas: int) -> float:
        """What the next replica beyond ``replicas`` loses of its worth to a cold start, as a share."""
        return 0.0 if replicas < self.existing else min(1.0, max(MOVE, self.cold_s / HORIZON_S))


class Allotment(NamedTuple):
    """replicas: that the member may have; exact: shall have, its model's other members having the rest. wished: without a
    budget."""

    replicas: int
    exact: bool
    wished: int


def divide(budget: PoolBudget, members: Sequence[Member]) -> dict[str, Allotment]:
    """For each member by name, its part of ``budget``, which all parts and what exists never exceed together."""
    by_model = [list(kinds) for _, kinds in groupby(sorted(members, key=_model), key=_model)]
    wished = {name: n for kinds in by_model for name, n in _cheapest(kinds).items()}
    wanted = wished if budget.holds(members, wished) else _ration(budget, by_model)
    counts = _with_room(budget, members, _kept(budget, by_model, wanted))
    shared = {m.name for kinds in by_model if len(kinds) > 1 for m in kinds}
    return {m.name: Allotment(counts[m.name], m.name in shared, wished[m.name]) for m in members}


def _model(member: Member) -> str:
    return member.model


def _cheapest(kinds: Sequence[Member]) -> Counts:
    """The cheapest counts that carry all of the model's demand; as much as can be had where that is not enough."""
    unknown = {m.name: m.floor for m in kinds if m.alone is None}
    known = sorted((m for m in kinds if m.alone is not None), key=lambda m: m.price * (m.alone or 0))
    return unknown | _cover(known, 1.0, TRIES // max(1, len(known)))[1]


def _cover(kinds: Sequence[Member], demand: float, tries: int) -> tuple[tuple[float, float], Counts]:
    """What is left of ``demand`` (a share of the model's), then the price, and the counts for which both are least, of at
    most ``tries``; beyond them each kind takes what it can."""
    if not kinds:
        return (round(max(0.0, demand), 9), 0.0), {}
    kind, rest = kinds[0], kinds[1:]
    enough = math.ceil(max(0.0, demand) * (kind.alone or 0) - 1e-9)
    highest = max(kind.least, min(kind.most, enough))
    lowest = kind.least if rest and tries > highest - kind.least else highest
    options = []
    for n in range(highest, lowest - 1, -1):
        (left, price), counts = _cover(rest, demand - n * kind.carries, tries // (highest - lowest + 1))
        fresh = sum(kind.fresh(k) for k in range(n))
        options.append(((left, price + kind.price * (n + fresh)), {kind.name: n, **counts}))
    return min(options, key=lambda option: option[0])


def _ration(budget: PoolBudget, by_model: Sequence[Sequence[Member]]) -> Counts:
    """One replica after the other to where readers gain most for what it costs, beginning with the least of each."""
    members = [m for kinds in by_model for m in kinds]
    counts = _least(budget, members)
    while True:
        free = {m.name for m in members if counts[m.name] < m.most and budget.holds(members, _with_one(counts, m))}
        gains = [(_gain(budget, kinds, m, counts), m) for kinds in by_model for m in kinds if m.name in free]
        best = max(gains, key=lambda gain: gain[0], default=None)
        if best is None or best[0] <= 0.0:
            return counts
        counts = _with_one(counts, best[1])


def _least(budget: PoolBudget, members: Sequence[Member]) -> Counts:
    """The least of each, of those that are worth most first; what is not known yet stays as it is."""
    counts = dict.fromkeys((m.name for m in members), 0)
    while True:
        short = [m for m in members if counts[m.name] < m.floor and budget.holds(members, _with_one(counts, m))]
        if not short:
            return counts
        counts = _with_one(counts, max(short, key=lambda m: m.value * (1.0 - m.fresh(counts[m.name]))))


def _with_one(counts: Mapping[str, int], member: Member) -> Counts:
    """With one replica of ``member`` more."""
    return {**counts, member.name: counts[member.name] + 1}


def _gain(budget: PoolBudget, kinds: Sequence[Member], member: Member, counts: Mapping[str, int]) -> float:
    """What one more replica of ``member`` gains its model's readers, for its share of the budget."""
    more = _worth(kinds, _with_one(counts, member)) - _worth(kinds, counts)
    return member.value * more * (1.0 - member.fresh(counts[member.name])) / budget.cost(member)


def _worth(kinds: Sequence[Member], counts: Mapping[str, int]) -> float:
    """What a model's readers have of ``counts``: up to 1 for the present demand and, beside it, ``RESERVE`` for what may
    come. Of a share s that is served, s (2 - s), since what is served first is what is worth most."""
    served = min(1.0, sum(counts[m.name] * m.serves for m in kinds))
    ready = min(1.0, sum(counts[m.name] * m.carries for m in kinds))
    return served * (2.0 - served) + RESERVE * ready * (2.0 - ready)


def _kept(budget: PoolBudget, by_model: Sequence[Sequence[Member]], wanted: Counts) -> Counts:
    """With what exists beyond: of one kind alone while there is room, its target itself knows when to let go; of several,
    until the others serve what it did."""
    members = [m for kinds in by_model for m in kinds]
    counts = dict(wanted)
    for kinds in by_model:
        for m in kinds:
            others = sum(min(o.ready, wanted[o.name]) * o.carries for o in kinds if o is not m)
            bridges = len(kinds) > 1 and others + wanted[m.name] * m.carries < 1.0 - 1e-9
            more = {**counts, m.name: max(wanted[m.name], min(m.existing, m.most))}
            if (len(kinds) == 1 or bridges) and budget.holds(members, more):
                counts = more
    return counts


def _with_room(budget: PoolBudget, members: Sequence[Member], counts: Counts) -> Counts:
    """No more than there is room for beside what still exists: what is taken from one is another's when it has gone."""
    held = {m.name: m.existing + m.draining for m in members}
    given = {m.name: min(counts[m.name], m.existing if m.granted is None else m.granted) for m in members}
    for m in sorted(members, key=lambda m: -m.value / budget.cost(m)):
        while given[m.name] < counts[m.name]:
            beside = {**held, m.name: max(held[m.name], given[m.name] + 1 + m.draining)}
            if not budget.holds(members, beside):
                break
            held, given[m.name] = beside, given[m.name] + 1
    return given
