"""Work without a reader: how much is to be done by when, how many replicas that takes, and what the slack was worth. Pure.

It runs on what readers leave over. Replicas are added for it at the last moment at which they still make the deadline, and
then as many as that takes: what the readers' fleet does until then costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from andes_operator.explain import shown

__all__ = ["OfflineWork", "PendingBatch", "Slack", "replicas_for"]

MARGIN = 0.1
"""Share of the work by which it may be more than estimated."""
EARLY = 0.1
"""Share of a replica's time until the deadline that is left as a reserve: one more is added when the work takes the rest."""
MIN_MEASURED_S = 120.0
"""Seconds of work after which its rate is believed."""
UNKNOWN_TPS = 500.0
"""Tokens/s of a replica of which nothing is known: a small engine's."""
GUESSED = 0.8
"""Ratio to what the simulator says of a replica; what is measured beside readers is less than it can do alone."""
FADING_S = 86_400.0
"""Seconds in which the share of the slack that is filled forgets, and the best rate: a day has a night."""


class PendingBatch(NamedTuple):
    """deadline_s: Unix seconds. tokens: of prompts and answers that are left, estimated; requests: likewise."""

    deadline_s: float
    tokens: float
    requests: int


@dataclass(frozen=True, slots=True)
class OfflineWork:
    """batches: those that have not ended. tokens_per_s: done lately, by all replicas together; measured_s: over how many
    seconds with something to do."""

    batches: tuple[PendingBatch, ...] = ()
    tokens_per_s: float = 0.0
    measured_s: float = 0.0

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> OfflineWork:
        """From the answer of ``/fleet/batches``. Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``AttributeError``
        where it is none."""
        batches = tuple(
            PendingBatch(_number(b["deadline_s"]), _number(b["tokens"]), int(_number(b["requests"])))
            for b in said["batches"]
        )
        rates = said["done"].values()
        return cls(
            batches,
            sum(_number(rate["tokens_per_s"]) for rate in rates),
            max((_number(rate["measured_s"]) for rate in rates), default=0.0),
        )

    @classmethod
    def merged(cls, parts: Iterable[OfflineWork]) -> OfflineWork:
        """What several gateways have."""
        parts = list(parts)
        batches = tuple(sorted(batch for part in parts for batch in part.batches))
        measured_s = max((part.measured_s for part in parts), default=0.0)
        return cls(batches, sum(part.tokens_per_s for part in parts), measured_s)

    def part(self, of: float) -> OfflineWork:
        """The share ``of`` it."""
        batches = tuple(PendingBatch(b.deadline_s, of * b.tokens, math.ceil(of * b.requests)) for b in self.batches)
        return replace(self, batches=batches, tokens_per_s=of * self.tokens_per_s)

    @property
    def tokens(self) -> float:
        return sum(batch.tokens for batch in self.batches)

    @property
    def requests(self) -> int:
        return sum(batch.requests for batch in self.batches)

    @property
    def earliest_s(self) -> float | None:
        """The first deadline, Unix seconds."""
        return min((batch.deadline_s for batch in self.batches), default=None)


def replicas_for(
    work: Sequence[PendingBatch], now_s: float, slack_tps: float, replica_tps: float, *, cold_s: float, added: int = 0
) -> int:
    """The replicas beside those of readers that make all deadlines, now.

    slack_tps: tokens/s on what readers leave over; replica_tps: of a replica without readers. cold_s: until one that is
    started now serves. added: that are there for this already, serving or starting; those that are still needed stay to
    the end, so that no cold start is paid twice. A deadline that no new replica can help to make asks for none.
    """
    wanted, tokens = 0, 0.0
    for batch in sorted(work):
        left_s = batch.deadline_s - now_s
        tokens += (1.0 + MARGIN) * batch.tokens
        if left_s <= 0:
            continue
        beyond = tokens - slack_tps * left_s  # tokens that the slack does not do in time
        if beyond <= 0:
            continue
        kept = min(added, math.ceil(beyond / (replica_tps * left_s)))
        short = beyond - added * replica_tps * left_s
        new = 0
        if short > 0 and left_s > cold_s:
            new = math.floor(short / (replica_tps * (left_s - cold_s)) + EARLY)
        wanted = max(wanted, kept + new)
    return wanted


@dataclass(frozen=True, slots=True)
class Slack:
    """What is remembered of it. idle_s, filled_s: replica-seconds that readers left over, and that were filled, of about the
    last day; worth_s: that were filled since the beginning: a separate fleet would have taken them. replica_tps: the most
    that a replica was seen to do; None: nothing was. added: replicas that are there for a deadline."""

    idle_s: float = 0.0
    filled_s: float = 0.0
    worth_s: float = 0.0
    replica_tps: float | None = None
    added: int = 0

    def rate_tps(self, guess_tps: float | None) -> float:
        """Tokens/s of a replica that does nothing else. guess_tps: by the simulator."""
        return max(self.replica_tps or 0.0, GUESSED * (guess_tps or 0.0)) or UNKNOWN_TPS

    def enter(
        self, work: OfflineWork, elapsed_s: float, ready: int, busy: float | None, guess_tps: float | None
    ) -> Slack:
        """After ``elapsed_s`` more seconds. ready: replicas; busy: by readers, None: not known; guess_tps: see
        :meth:`rate_tps`."""
        fading = math.exp(-elapsed_s / FADING_S)
        seen = replace(self, replica_tps=None if self.replica_tps is None else fading * self.replica_tps)
        if work.batches and ready and work.measured_s >= MIN_MEASURED_S:
            seen = replace(seen, replica_tps=max(seen.replica_tps or 0.0, work.tokens_per_s / ready))
        filled_s = min(ready, work.tokens_per_s / seen.rate_tps(guess_tps)) * elapsed_s if work.batches else 0.0
        idle_s = max(filled_s, elapsed_s * (ready - busy)) if busy is not None else filled_s
        return replace(
            seen,
            idle_s=fading * seen.idle_s + idle_s,
            filled_s=fading * seen.filled_s + filled_s,
            worth_s=seen.worth_s + filled_s,
        )

    @property
    def filled(self) -> float | None:
        """Share of what readers left over; None where they left nothing."""
        return self.filled_s / self.idle_s if self.idle_s > 0 else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "idleSeconds": round(self.idle_s, 1), "filledSeconds": round(self.filled_s, 1),
            "worthSeconds": round(self.worth_s, 1), "replicaTokensPerSecond": self.replica_tps, "added": self.added,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Slack:
        """Inverse of :meth:`to_dict`; empty where ``data`` is. Raises ``ValueError`` for what is not a number >= 0."""
        if not data:
            return cls()
        tps = data.get("replicaTokensPerSecond")
        return cls(
            _number(data["idleSeconds"]), _number(data["filledSeconds"]), _number(data["worthSeconds"]),
            None if tps is None else _number(tps), int(_number(data["added"])),
        )  # fmt: skip


def _number(said: Any) -> float:
    number = float(said)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected a number >= 0, got {shown(said)}")
    return number
