"""The replicas that work without a reader asks for beside the readers' own, at one reconcile. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from andes_operator.memory import Memory
from andes_operator.observe import Observation
from andes_operator.offline import MIN_MEASURED_S, replicas_for

__all__ = ["Deadlines", "book"]

FAR = 4.0
"""Times of measuring and of a cold start; a deadline that is farther away waits until the slack has been measured."""


def book(memory: Memory, seen: Observation, before_s: float | None, guess_tps: float | None) -> Memory:
    """With what was made of the slack since ``before_s``, the last reconcile (Unix seconds); of a time whose data may be
    wrong nothing is. guess_tps: tokens/s of a replica without readers, by the simulator."""
    if seen.fault is not None:
        return memory
    elapsed_s = 0.0 if before_s is None else max(0.0, seen.now_s - before_s)
    work_s, ready = memory.ledger.work_s, seen.pods.ready
    busy = None if work_s is None else min(float(ready), seen.rate_rps * work_s)
    return replace(memory, slack=memory.slack.enter(seen.offline, elapsed_s, ready, busy, guess_tps))


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Of the batches that are ``seen``. cold_s: until a replica that is started now serves; guess_tps: see :func:`book`."""

    seen: Observation
    memory: Memory
    cold_s: float
    guess_tps: float | None

    def beside(self, readers: int) -> int:
        """Replicas beside the ``readers`` that they ask for themselves."""
        seen, slack, work = self.seen, self.memory.slack, self.seen.offline
        first_s = work.earliest_s
        if first_s is None:
            return 0
        added = min(slack.added, max(0, seen.pods.wanted - readers))
        unmeasured = readers > 0 and work.measured_s < MIN_MEASURED_S
        if unmeasured and first_s - seen.now_s > FAR * (MIN_MEASURED_S + self.cold_s):
            return added
        replica_tps = slack.rate_tps(self.guess_tps)
        serving = max(0, min(added, seen.pods.ready - readers))
        others = (
            seen.pods.ready - serving
        )  # what was measured beside these is the slack of the rest, some of which may go
        slack_tps = max(0.0, work.tokens_per_s - serving * replica_tps) * min(1.0, readers / max(1, others))
        return replicas_for(work.batches, seen.now_s, slack_tps, replica_tps, cold_s=self.cold_s, added=added)

    def describe(self, beside: int, readers: int) -> str:
        """Why, in words."""
        work = self.seen.offline
        left_s = (work.earliest_s or self.seen.now_s) - self.seen.now_s
        return (
            f"batches of {work.tokens:.3g} tokens, the first due in {left_s:.0f} s, take {beside} replicas beside the "
            f"{readers} of readers"
        )
