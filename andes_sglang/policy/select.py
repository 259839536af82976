"""From priorities to a decision: the step that every policy shares.

A policy ranks the requests and says who may displace whom; :func:`select` keeps the KV and batch bounds, fills the
room there is, and makes room by preempting from the bottom of the ranking.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

__all__ = ["Accept", "select"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Accept = Callable[[int, list[int], float], bool]

PRESSURE_TOKENS = 4
MOST_REFUSED = 8
"""Displacements refused in one decision before the rest is left to the next one: refusing takes time."""


def select(
    state: SchedulerState,
    priority: Array,
    *,
    batch: int | None = None,
    growth_tokens: float = 64.0,
    displacing: Mask | None = None,
    victims: Mask | None = None,
    accept: Accept | None = None,
    strict: bool = False,
) -> Decision:
    """Admit and resume by descending ``priority`` (shape (N,), ties by row) within the bounds of ``state``.

    batch: batch bound, at most ``state.max_running``. growth_tokens: KV kept free for each running request to grow
    into. displacing: rows that may preempt rows of lower priority among ``victims``. accept(row, victims, stall_s): last
    word on a displacement that would stop the engine for ``stall_s``. strict: stop at the first request that does not
    fit, as a plain queue does, instead of letting a shorter one past it.
    """
    t = state.requests
    running, is_parked = t.is_in(Phase.RUNNING), t.is_in(Phase.PARKED)
    context = t.context_tokens
    outside = _by_priority(np.flatnonzero(~running), priority)
    count = len(t) - len(outside)
    batch = min(state.max_running, state.max_running if batch is None else batch) - state.running_reserved
    held = t.kv_tokens
    growth = np.minimum(growth_tokens, t.remaining_tokens)
    pool = state.kv_capacity_tokens - state.kv_reserved_tokens
    growing = float(growth[running].sum())
    free = pool - float(held.sum()) - growing
    slots = batch - count
    need = np.minimum(context - held + growth, pool)
    smallest_left = np.minimum.accumulate(need[outside][::-1])[::-1]
    pool_of_victims: list[int] = []
    if victims is not None:
        pool_of_victims = _by_priority(np.flatnonzero(victims), priority).tolist()
    displacers_left = int(np.count_nonzero(displacing[outside])) if displacing is not None and pool_of_victims else 0

    admit: list[int] = []
    resume: list[int] = []
    preempted: list[Preemption] = []
    gone: set[int] = set()
    new_tokens = 0.0
    refused = 0

    def take_off(row: int, mode: PreemptionMode, reason: str) -> None:
        nonlocal free, slots
        gone.add(row)
        preempted.append(Preemption(t.rids[row], mode, reason))
        if running[row]:
            slots += 1
            free += float(growth[row])
        if mode is not PreemptionMode.PARK:
            free += float(held[row])

    def pop_victim() -> int | None:
        while pool_of_victims:
            row = pool_of_victims.pop()
            if row not in gone and row not in taken:
                return row
        return None

    def worst_victim() -> float:
        return next((float(priority[i]) for i in reversed(pool_of_victims) if i not in gone and i not in taken), np.inf)

    taken: set[int] = set()
    pressure = free + growing - PRESSURE_TOKENS * count
    while pressure < 0 and (row := pop_victim()) is not None:
        take_off(row, PreemptionMode.RELEASE, "kv")
        pressure += float(held[row]) + PRESSURE_TOKENS
    while slots < 0 and (row := pop_victim()) is not None:
        if running[row]:
            take_off(row, PreemptionMode.PARK, "pace")

    for position, row in enumerate(outside.tolist()):
        if row in gone:
            continue
        full = slots <= 0 or free < smallest_left[position]
        if full and (not displacers_left or priority[row] <= worst_victim()):
            break
        displaces = bool(displacers_left) and displacing is not None and bool(displacing[row])
        displacers_left -= displaces and bool(pool_of_victims)
        parked = bool(is_parked[row])
        compute = 0.0 if parked else max(1.0, float(context[row] - t.cached_tokens[row]))
        out: list[int] = []
        if slots < 1 or free < need[row]:
            if displaces:
                out = _least_victims(
                    pool_of_victims, gone | taken, priority, row, free, slots, need, held, growth, running
                )
            if not out:
                if strict:
                    break
                continue
            cached, host = float(t.cached_tokens[row]), float(t.host_tokens[row])
            stall = 0.0 if parked else float(state.latency.resume_s(compute, cached, host))
            if accept is not None and not accept(row, out, stall):
                refused += 1
                displacers_left *= refused < MOST_REFUSED
                continue
            for victim in out:
                keeps = free >= need[row]
                take_off(victim, PreemptionMode.PARK if keeps else PreemptionMode.RELEASE, "displaced")
        free -= float(need[row])
        slots -= 1
        taken.add(row)
        (resume if parked else admit).append(row)
        new_tokens += compute
        if new_tokens > state.chunk_tokens:
            break
    if not (count or admit or resume or state.running_reserved) and len(outside):
        row = int(outside[0])
        (resume if is_parked[row] else admit).append(row)
    return Decision(admit=t.names(admit), resume=t.names(resume), preempt=tuple(preempted))


def _by_priority(rows: npt.NDArray[np.intp], priority: Array) -> npt.NDArray[np.intp]:
    """Highest first, ties by row."""
    return rows[np.argsort(-priority[rows], kind="stable")]


def _least_victims(
    candidates: list[int],
    excluded: set[int],
    priority: Array,
    row: int,
    free: float,
    slots: int,
    need: Array,
    held: Array,
    growth: Array,
    running: Mask,
) -> list[int]:
    """The lowest-ranked victims that make room for ``row``, fewest first; empty when all of them would not."""
    out: list[int] = []
    for victim in reversed(candidates):
        if victim in excluded or victim == row:
            continue
        if priority[victim] >= priority[row]:
            return []
        if slots >= 1 and not held[victim]:
            continue
        out.append(victim)
        free += float(held[victim] + (growth[victim] if running[victim] else 0.0))
        slots += bool(running[victim])
        if slots >= 1 and free >= need[row]:
            return out
    return []
