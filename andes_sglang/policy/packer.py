"""From a ranking to a decision: the step that every policy shares.

A policy ranks the requests and says who may displace whom; :func:`pack` keeps the KV and batch bounds, fills the room
there is, and makes room by preempting from the bottom of the ranking::

    decision = pack(state, value)                                          # a queue: never preempts
    decision = pack(state, value, displacement=Displacement(displacers, victims))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

__all__ = ["Accept", "Displacement", "Packer", "pack"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Accept = Callable[[int, list[int], float], bool]
"""``accept(row, victims, stall_s)``: the last word on a displacement that would stop the engine for ``stall_s``."""

PRESSURE_TOKENS = 4
"""KV tokens that must be free for each running request, or victims are released. Assumed: the decode steps that can pass
until the next decision."""
MAX_REFUSALS = 8
"""Displacements refused in one decision before the rest is left to the next one. Refusing takes 10 us each
(benchmarks/policy_decision.py)."""


@dataclass(frozen=True, eq=False, slots=True)
class Displacement:
    """Who may take whose place. displacers: rows that may preempt victims ranked below them; victims: rows that may be
    preempted, running or parked. Both of shape (N,)."""

    displacers: Mask
    victims: Mask
    accept: Accept | None = None


def pack(
    state: SchedulerState,
    value: Array,
    *,
    tier: Array | None = None,
    batch: int | None = None,
    growth_tokens: float = 64.0,
    displacement: Displacement | None = None,
    strict: bool = False,
) -> Decision:
    """Admit and resume by descending ``(tier, value)``, ties by row, within the bounds of ``state``.

    value: shape (N,). tier: shape (N,), whole numbers that outweigh any value; None: all alike. batch: batch bound, at
    most ``state.max_running``. growth_tokens: KV tokens kept free for each running request to grow into. strict: stop at
    the first request that does not fit, as a plain queue does, instead of letting a shorter one past it.
    """
    packer = Packer(
        state, value, tier=tier, batch=batch, growth_tokens=growth_tokens, displacement=displacement, strict=strict
    )
    return packer.pack()


class Packer:
    """One decision in the making. The phases of :meth:`pack` are its methods, in the order in which they run.

    free_tokens, free_slots: room that is left, negative when there is too little. candidates: rows that do not run, best
    first. victims: rows that may still be preempted, best first.
    """

    def __init__(
        self,
        state: SchedulerState,
        value: Array,
        *,
        tier: Array | None,
        batch: int | None,
        growth_tokens: float,
        displacement: Displacement | None,
        strict: bool,
    ) -> None:
        t = state.requests
        self.state, self.value, self.tier, self.strict = state, value, tier, strict
        self.running, self.parked = t.is_in(Phase.RUNNING), t.is_in(Phase.PARKED)
        self.context, self.held = t.context_tokens, t.kv_tokens
        growth = np.minimum(growth_tokens, t.remaining_tokens)
        self.growing = np.where(self.running, growth, 0.0)
        self.need = np.minimum(self.context - self.held + growth, state.pool_tokens)
        self.running_count = int(np.count_nonzero(self.running))
        self.free_tokens = state.pool_tokens - float(self.held.sum()) - float(self.growing.sum())
        bound = state.max_running if batch is None else min(batch, state.max_running)
        self.free_slots = bound - state.running_reserved - self.running_count

        waiting = self._best_first(~self.running)
        self.candidates: list[int] = waiting.tolist()
        needed = self.need[waiting]
        self.smallest_need_left = needed if len(waiting) < 2 else np.minimum.accumulate(needed[::-1])[::-1]
        self.victims: list[int] = []
        self.displacers: Mask | None = None
        self.accept: Accept | None = None
        self.last_displacer = -1
        if displacement is not None:
            self.victims = self._best_first(displacement.victims).tolist()
            self.displacers, self.accept = displacement.displacers, displacement.accept
            self.last_displacer = int(np.max(np.flatnonzero(self.displacers[waiting]), initial=-1))

        self.admit: list[int] = []
        self.resume: list[int] = []
        self.preempted: list[Preemption] = []
        self.settled: set[int] = set()
        self.prefill_tokens = 0.0
        self.refusals = 0

    def pack(self) -> Decision:
        """The decision. Call it once."""
        self.relieve_kv_pressure()
        self.relieve_batch_pressure()
        self.fill()
        self.run_at_least_one()
        names = self.state.requests.names
        return Decision(admit=names(self.admit), resume=names(self.resume), preempt=tuple(self.preempted))

    def relieve_kv_pressure(self) -> None:
        """Release victims, worst first, while those that run have no room to grow until the next decision."""
        grown = float(self.held.sum()) + PRESSURE_TOKENS * self.running_count
        spare = self.state.pool_tokens - grown
        while spare < 0 and (row := self._pop_worst_victim()) is not None:
            self.take_off(row, PreemptionMode.RELEASE, "kv")
            spare += float(self.held[row]) + PRESSURE_TOKENS

    def relieve_batch_pressure(self) -> None:
        """Park victims, worst first, while more run than the batch may hold."""
        while self.free_slots < 0 and (row := self._pop_worst_victim()) is not None:
            if self.running[row]:
                self.take_off(row, PreemptionMode.PARK, "pace")

    def fill(self) -> None:
        """Give room to the candidates in order; where there is none, :meth:`displace`. Stop at a full prefill chunk."""
        for position, row in enumerate(self.candidates):
            if row in self.settled:
                continue
            if self._is_full(position) and not self._can_displace(position, row):
                break
            if not self.fits(row) and not self.displace(row):
                if self.strict:
                    break
                continue
            self.place(row)
            if self.prefill_tokens > self.state.chunk_tokens:
                break

    def displace(self, row: int) -> bool:
        """Make room for ``row`` by preempting; False where that is not possible, not allowed or not accepted."""
        if self.displacers is None or not self.displacers[row] or self.refusals >= MAX_REFUSALS:
            return False
        victims = self.least_victims(row)
        if not victims:
            return False
        if self.accept is not None and not self.accept(row, victims, self._stall_s(row)):
            self.refusals += 1
            return False
        for victim in victims:
            only_slot = self.free_tokens >= self.need[row]
            self.take_off(victim, PreemptionMode.PARK if only_slot else PreemptionMode.RELEASE, "displaced")
        return True

    def run_at_least_one(self) -> None:
        """The best candidate starts on an empty engine, whatever it needs: nothing would ever run otherwise."""
        if self.running_count or self.state.running_reserved or self.admit or self.resume:
            return
        best = next((row for row in self.candidates if row not in self.settled), None)
        if best is not None:
            (self.resume if self.parked[best] else self.admit).append(best)

    def fits(self, row: int) -> bool:
        return bool(self.free_slots >= 1 and self.free_tokens >= self.need[row])

    def outranks(self, row: int, other: int) -> bool:
        """Strictly: of equals neither displaces the other."""
        if self.tier is not None and self.tier[row] != self.tier[other]:
            return bool(self.tier[row] > self.tier[other])
        return bool(self.value[row] > self.value[other])

    def least_victims(self, row: int) -> list[int]:
        """The victims that make room for ``row``, worst first and as few as will do; empty when all that it outranks would
        not do."""
        tokens, slots = self.free_tokens, self.free_slots
        out: list[int] = []
        for victim in reversed(self.victims):
            if victim in self.settled:
                continue
            if not self.outranks(row, victim):
                return []
            helps = (slots < 1 and self.running[victim]) or (tokens < self.need[row] and self.held[victim])
            if not helps:
                continue
            out.append(victim)
            tokens += float(self.held[victim] + self.growing[victim])
            slots += bool(self.running[victim])
            if slots >= 1 and tokens >= self.need[row]:
                return out
        return []

    def take_off(self, row: int, mode: PreemptionMode, reason: str) -> None:
        self.settled.add(row)
        self.preempted.append(Preemption(self.state.requests.rids[row], mode, reason))
        self.free_slots += bool(self.running[row])
        self.free_tokens += float(self.growing[row])
        if mode is not PreemptionMode.PARK:
            self.free_tokens += float(self.held[row])

    def place(self, row: int) -> None:
        self.settled.add(row)
        self.free_tokens -= float(self.need[row])
        self.free_slots -= 1
        (self.resume if self.parked[row] else self.admit).append(row)
        self.prefill_tokens += self._new_tokens(row)

    def _best_first(self, among: Mask) -> npt.NDArray[np.intp]:
        rows = np.flatnonzero(among)
        if len(rows) < 2:
            return rows
        if self.tier is None:
            return rows[np.argsort(-self.value[rows], kind="stable")]
        return rows[np.lexsort((-self.value[rows], -self.tier[rows]))]

    def _new_tokens(self, row: int) -> float:
        """Tokens to compute before ``row`` runs."""
        if self.parked[row]:
            return 0.0
        return max(1.0, float(self.context[row] - self.state.requests.cached_tokens[row]))

    def _stall_s(self, row: int) -> float:
        """Seconds that starting ``row`` keeps the others from their next token."""
        if self.parked[row]:
            return 0.0
        t = self.state.requests
        cached, host = float(t.cached_tokens[row]), float(t.host_tokens[row])
        return float(self.state.latency.resume_s(self._new_tokens(row), cached, host))

    def _is_full(self, position: int) -> bool:
        """No candidate from ``position`` on fits."""
        return bool(self.free_slots <= 0 or self.free_tokens < self.smallest_need_left[position])

    def _can_displace(self, position: int, row: int) -> bool:
        """A candidate from ``position`` on, where ``row`` is, may still displace a victim."""
        if position > self.last_displacer or self.refusals >= MAX_REFUSALS:
            return False
        while self.victims and self.victims[-1] in self.settled:
            self.victims.pop()
        return bool(self.victims) and self.outranks(row, self.victims[-1])

    def _pop_worst_victim(self) -> int | None:
        return self.victims.pop() if self.victims else None
