"""What one reconcile leaves for the next, kept in ``status.memory``: a restarted operator continues where the last one
was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from andes_operator.explain import explain, shown
from andes_operator.ledger import Ledger
from andes_operator.observe import Observation
from andes_operator.offline import Slack
from andes_operator.spec import ScalingBehavior, TargetSpec

__all__ = ["QUEUE_LENGTHS", "RATE_PERIOD_S", "Ask", "Change", "Memory"]

Number = TypeVar("Number", int, float)

QUEUE_LENGTHS = 3
"""Reconciles over which a queue has to grow before it counts as growing: with two, one burst of arrivals is enough."""
RATE_PERIOD_S = 60.0
"""Period of ``maxReplicasPerMinute``."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A number of replicas that was asked for, before stabilisation. at_s: Unix seconds."""

    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Change:
    """The scale changed by ``delta`` between two reconciles, by this operator or another writer. at_s: Unix seconds."""

    at_s: float
    delta: int


@dataclass(frozen=True, slots=True)
class Memory:
    """All times are Unix seconds.

    at_s: of the last reconcile. replicas: ``spec.replicas`` then. since_s: trustworthy data without a gap from then on;
    None: none now. idle_since_s: the last arrival, or the beginning of the record where none is known. settled_s: no
    pod was starting from then on; None: one is. short_since_s: fewer pods exist than are wanted from then on; None: as many
    do. asks: those that can still be the highest or lowest of a stabilisation window. changes: those that rate limits still
    count, and orders while pods start. queue: streams without a first token at the last reconciles. replica_s, baseline_s:
    replica-seconds that held GPUs, draining pods included, and that the baseline would have run. ledger: of demand.
    slack: what readers left over, and what was made of it."""

    at_s: float | None = None
    replicas: int | None = None
    since_s: float | None = None
    idle_since_s: float | None = None
    settled_s: float | None = None
    asks: tuple[Ask, ...] = ()
    changes: tuple[Change, ...] = ()
    queue: tuple[int, ...] = ()
    replica_s: float = 0.0
    baseline_s: float = 0.0
    short_since_s: float | None = None
    ledger: Ledger = field(default_factory=Ledger)
    slack: Slack = field(default_factory=Slack)

    def observe(self, spec: TargetSpec, seen: Observation) -> Memory:
        """With this reconcile's observation."""
        now_s, wanted = seen.now_s, seen.pods.wanted
        elapsed_s = 0.0 if self.at_s is None else max(0.0, now_s - self.at_s)
        moved = self.replicas is not None and wanted != self.replicas
        return replace(
            self,
            at_s=now_s,
            replicas=wanted,
            since_s=self.since_s if self.since_s is not None else now_s,
            idle_since_s=self._idle_since_s(spec.behavior, seen),
            settled_s=None if seen.pods.starting else (self.settled_s if self.settled_s is not None else now_s),
            short_since_s=self._short_since_s(seen),
            changes=self._changes(spec.behavior, seen),
            queue=(seen.waiting,) if moved else (*self.queue, seen.waiting)[-QUEUE_LENGTHS:],
            replica_s=self.replica_s + elapsed_s * seen.pods.holding,
            baseline_s=self.baseline_s + elapsed_s * spec.baseline_replicas,
        )

    def _short_since_s(self, seen: Observation) -> float | None:
        if seen.pods.existing >= seen.pods.wanted:
            return None
        return seen.now_s if self.short_since_s is None else self.short_since_s

    def _idle_since_s(self, behavior: ScalingBehavior, seen: Observation) -> float:
        """What came since the last reconcile is in the record, unless that was longer ago than gateways are asked for."""
        known_s = self.idle_since_s
        if known_s is None or (self.at_s is not None and self.at_s < seen.now_s - behavior.history_s):
            known_s = min(seen.now_s, seen.complete_since_s)
        return known_s if seen.last_arrival_s is None else max(known_s, seen.last_arrival_s)

    def _changes(self, behavior: ScalingBehavior, seen: Observation) -> tuple[Change, ...]:
        now_s, wanted = seen.now_s, seen.pods.wanted
        since_s = now_s - max(RATE_PERIOD_S, behavior.down_period_s)
        kept = tuple(c for c in self.changes if c.at_s >= since_s or (c.delta > 0 and seen.pods.starting))
        if self.replicas is not None and wanted != self.replicas:
            return (*kept, Change(now_s, wanted - self.replicas))
        if wanted == 0 and not kept:  # a request after the last step down is what starts the first replica
            return tuple([c for c in self.changes if c.delta < 0][-1:])
        return kept

    def ask(self, behavior: ScalingBehavior, ask: Ask) -> Memory:
        """With ``ask``, and of the earlier ones those that no later one dominates: they can still be the highest or lowest of
        their window."""
        kept: list[Ask] = [ask]
        high = low = ask.replicas
        for old in reversed(self.asks):
            highest = old.replicas > high and old.at_s >= ask.at_s - behavior.down_stabilization_s
            lowest = old.replicas < low and old.at_s >= ask.at_s - behavior.up_stabilization_s
            if highest or lowest:
                kept.append(old)
                high, low = max(high, old.replicas), min(low, old.replicas)
        return replace(self, asks=tuple(reversed(kept)))

    def distrust(self) -> Memory:
        """Without what untrustworthy data would spoil: stabilisation and the queue's growth start again."""
        return replace(self, since_s=None, queue=())

    def highest_ask(self, since_s: float) -> int:
        return max(a.replicas for a in self.asks if a.at_s >= since_s)

    def lowest_ask(self, since_s: float) -> int:
        return min(a.replicas for a in self.asks if a.at_s >= since_s)

    @property
    def last_down_s(self) -> float | None:
        return max((c.at_s for c in self.changes if c.delta < 0), default=None)

    def added(self, since_s: float) -> int:
        """Replicas added after ``since_s``."""
        return sum(c.delta for c in self.changes if c.delta > 0 and c.at_s > since_s)

    def to_dict(self) -> dict[str, Any]:
        return {
            "at": self.at_s,
            "replicas": self.replicas,
            "since": self.since_s,
            "idleSince": self.idle_since_s,
            "settled": self.settled_s,
            "shortSince": self.short_since_s,
            "asks": [{"at": ask.at_s, "replicas": ask.replicas} for ask in self.asks],
            "changes": [{"at": change.at_s, "delta": change.delta} for change in self.changes],
            "queue": list(self.queue),
            "replicaSeconds": self.replica_s,
            "baselineSeconds": self.baseline_s,
            "ledger": self.ledger.to_dict(),
            "slack": self.slack.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Memory:
        """Inverse of :meth:`to_dict`; empty where ``data`` is. Raises ``ValueError`` for anything else."""
        if not data:
            return cls()
        try:
            return cls(
                at_s=_optional(_time, data.get("at")),
                replicas=_optional(_count, data.get("replicas")),
                since_s=_optional(_time, data.get("since")),
                idle_since_s=_optional(_time, data.get("idleSince")),
                settled_s=_optional(_time, data.get("settled")),
                short_since_s=_optional(_time, data.get("shortSince")),
                asks=tuple(Ask(_time(a["at"]), _count(a["replicas"])) for a in data.get("asks") or ()),
                changes=tuple(Change(_time(c["at"]), int(c["delta"])) for c in data.get("changes") or ()),
                queue=tuple(_count(n) for n in data.get("queue") or ()),
                replica_s=_time(data.get("replicaSeconds", 0.0)),
                baseline_s=_time(data.get("baselineSeconds", 0.0)),
                ledger=Ledger.from_dict(data.get("ledger")),
                slack=Slack.from_dict(data.get("slack")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"status.memory cannot be used: {explain(error)}") from None

    def until(self, now_s: float) -> Memory:
        """Without what lies in the future: edited by hand, or written by another clock."""

        def past(at_s: float | None) -> float | None:
            return None if at_s is None or at_s > now_s else at_s

        return replace(
            self,
            at_s=past(self.at_s),
            since_s=past(self.since_s),
            idle_since_s=past(self.idle_since_s),
            settled_s=past(self.settled_s),
            short_since_s=past(self.short_since_s),
            asks=tuple(ask for ask in self.asks if ask.at_s <= now_s),
            changes=tuple(change for change in self.changes if change.at_s <= now_s),
        )


def _optional(read: Callable[[Any], Number], value: Any) -> Number | None:
    return None if value is None else read(value)


def _time(value: Any) -> float:
    """Seconds."""
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"expected seconds >= 0, got {shown(value)}")
    return seconds


def _count(value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(f"expected a number >= 0, got {shown(value)}")
    return number
