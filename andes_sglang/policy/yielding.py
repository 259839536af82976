"""Readers first: what has no reader (``yields``) runs on what every policy leaves over, and nothing that its
reader cannot receive takes what others could use.

The policy decides for the streams with readers as if they were alone on the engine. Then, in one place for all policies:

- while a reader waits for a first token, or is off the engine for any other reason, no yielding stream runs: each is parked;
- a yielding stream gives up its KV as soon as readers need it, the last to arrive first, with no slice owed to it;
- otherwise yielding streams fill the room, in order of arrival, as far as no running reader would notice: a decode step
  stays within :data:`PACE_SHARE` of the fastest reader's time per token, and a prefill within what the readers have unread.

The policy sees what is on its way to a reader who lags as read more slowly (:data:`LAG`): what is ahead of its reader comes
late in its turn. Where there is KV for all readers, a stream whose reader cannot receive more
(:func:`andes_sglang.reception.cannot_receive`) is set aside too, with no place at all: it is parked, and is the policy's
again once most has been read. Where KV is short it is the policy's all the time: parked, it would keep what others wait for,
or come back by a prefill while they wait (docs/benchmarks/slow-readers.md).

So the policy's decision for readers is the same with and without yielding streams. What is left of their cost: one chunk of
prefill that is in flight when a reader arrives, and decode steps that are longer than they were, though short enough.

The idea that work without a reader fills the slack is HyGen's (arXiv 2501.14808), where a latency budget limits it; there
nothing is parked, and a reader who arrives finds it running.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.base import SchedulingPolicy
from andes_sglang.policy.packer import PRESSURE_TOKENS, pack
from andes_sglang.protocol import ADMISSION_RESERVE_TOKENS
from andes_sglang.reception import cannot_receive
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, RequestTable, SchedulerState

__all__ = ["PACE_SHARE", "decide_readers_first"]

PACE_SHARE = 0.5
"""Of the fastest reader's time per token: as long may a decode step be with yielding streams in the batch. The other half
builds up the buffers from which readers read while others are prefilled (our choice)."""
LINGER_SHARE = 0.1
"""Of the KV pool, or of the batch: so much more than alone may readers hold because they stay longer beside yielding streams;
where steps take twice as long, they hold twice as much. It is what a surge finds taken (our choice; docs/offline.md)."""
GROWTH_TOKENS = 64.0
"""KV tokens that stay free for each running stream where yielding streams fill the room, so that these are not given up again
after a few steps: the room that :func:`andes_sglang.policy.packer.pack` keeps for a queue."""
LAG = 4.0
"""So many times as long as it would take to read is what is on its way to a reader known to lag: its link is slower than it
reads, by how much is not known (our choice; docs/benchmarks/slow-readers.md)."""
REASONS = ("yield", "reader")
"""Of these preemptions, in ``andes_preemptions_total``: without a reader, or with one who cannot receive."""


Ask = Callable[[SchedulingPolicy, SchedulerState], Decision]


def _ask(policy: SchedulingPolicy, state: SchedulerState) -> Decision:
    return policy.decide(state)


def decide_readers_first(policy: SchedulingPolicy, state: SchedulerState, *, ask: Ask = _ask) -> Decision:
    """The decision of ``policy`` for those with readers who can receive, and what it leaves to the others. ask: how the
    policy is asked; a live engine passes over unknown names, a simulation checks (:mod:`andes_sglang.policy.checked`)."""
    if not state.requests.unreceived_tokens.any() and not state.requests.yields.any():
        return ask(policy, state)  # as nearly always; a decision must cost no more for the others
    state = _as_received(state)
    t = state.requests
    blocked = _blocked(state)
    aside = (t.yields > 0) | blocked
    if not aside.any():
        return ask(policy, state)
    readers = replace(state, requests=t.only(~aside))
    decision = ask(policy, readers)
    others = _beside(readers, decision, replace(state, requests=t.only(aside)), blocked[aside])
    return Decision(
        admit=decision.admit + others.admit,
        resume=decision.resume + others.resume,
        preempt=decision.preempt + others.preempt,
    )


def _as_received(state: SchedulerState) -> SchedulerState:
    """``state`` in which readers known to lag read what is on its way as slowly as it comes."""
    t = state.requests
    if not t.unreceived_tokens.any():
        return state
    t = RequestTable(t.rids, t.columns.copy())
    end_s = t.readers.end_s
    end_s += (LAG - 1.0) * t.unreceived_tokens / t.readers.tds
    return replace(state, requests=t)


def _blocked(state: SchedulerState) -> npt.NDArray[np.bool_]:
    """Who is set aside because its reader cannot receive, shape (N,): none where there is not KV for all readers, and not
    what runs and cannot be taken off."""
    t = state.requests
    if not t.unreceived_tokens.any():
        return np.zeros(len(t), dtype=np.bool_)
    wanted_tokens = ((t.context_tokens + GROWTH_TOKENS + state.page_tokens) * (t.yields == 0)).sum()
    if wanted_tokens > state.pool_tokens:
        return np.zeros(len(t), dtype=np.bool_)
    runs = t.is_in(Phase.RUNNING)
    full = cannot_receive(t.unreceived_tokens, t.readers.tds, runs)
    blocked: npt.NDArray[np.bool_] = full & ~(runs & (t.preemptible == 0))
    return blocked


def _beside(
    readers: SchedulerState, decision: Decision, state: SchedulerState, blocked: npt.NDArray[np.bool_]
) -> Decision:
    """What becomes of the others, all that ``state`` shows, beside ``decision`` for the ``readers``. blocked: whose reader
    cannot receive, shape (N,)."""
    claimed_tokens, reader_waits = _claim(readers, decision)
    t = state.requests
    yielding = replace(
        state, requests=t.only(~blocked), kv_reserved_tokens=state.kv_reserved_tokens + int(t.kv_tokens[blocked].sum())
    )
    places = 0 if reader_waits or blocked.all() else _places(readers, yielding)
    stoppable = np.flatnonzero((t.preemptible > 0) & (t.kv_tokens > 0) & ~blocked)
    stoppable = stoppable[np.argsort(-t.arrival_s[stoppable], kind="stable")]
    running = t.is_in(Phase.RUNNING)
    held_tokens = float(t.kv_tokens.sum()) + PRESSURE_TOKENS * np.count_nonzero(running)
    short_tokens = claimed_tokens + held_tokens - state.pool_tokens
    given_tokens = np.cumsum(t.kv_tokens[stoppable]) - t.kv_tokens[stoppable]
    released = stoppable[given_tokens < short_tokens]
    running[released] = False
    excess = max(0, int(np.count_nonzero(running & ~blocked)) - places)
    stopping = stoppable[running[stoppable]]
    parked = np.concatenate([np.flatnonzero(running & blocked), stopping[:excess]])
    if len(released) or len(parked) or not places:
        return Decision(
            preempt=_taken_off(t, released, PreemptionMode.RELEASE, blocked)
            + _taken_off(t, parked, PreemptionMode.PARK, blocked)
        )
    return _fill(readers, yielding, places)


def _claim(readers: SchedulerState, decision: Decision) -> tuple[float, bool]:
    """KV tokens that the readers hold once ``decision`` is carried out, with room to go on; and whether one of them still
    waits: for a first token, even if its prefill comes next, or because it is off the engine."""
    t = readers.requests
    row = {rid: k for k, rid in enumerate(t.rids)}
    on_engine, held = t.is_in(Phase.RUNNING), t.kv_tokens.copy()
    for preemption in decision.preempt:
        if (k := row.get(preemption.rid)) is None:  # engines pass over a name that no request has
            continue
        on_engine[k] = False
        if preemption.mode is not PreemptionMode.PARK:
            held[k] = 0.0
    on_engine[[row[rid] for rid in decision.resume if rid in row]] = True
    waits = not on_engine.all() or readers.running_reserved > readers.yielding_reserved
    admitted = [row[rid] for rid in decision.admit if rid in row]
    on_engine[admitted] = True
    held[admitted] = t.context_tokens[admitted]
    reserve_tokens = ADMISSION_RESERVE_TOKENS + readers.page_tokens  # SGLang's, to admit one, and for each that runs
    return float(held.sum() + reserve_tokens * np.count_nonzero(on_engine)), bool(waits)


def _places(readers: SchedulerState, state: SchedulerState) -> int:
    """How many yielding streams the batch may hold beside the ``readers``, all of whom run."""
    r, t, latency = readers.requests, state.requests, state.latency
    places = state.max_running - state.running_reserved - len(r)
    if not len(r):
        return places
    alone_s = latency.decode_s(len(r), float(r.kv_tokens.sum()))
    one_more_s = latency.decode_s(len(r) + 1, float(r.kv_tokens.sum() + t.context_tokens.mean())) - alone_s
    held_share = max(float(r.kv_tokens.sum()) / max(1, state.pool_tokens), len(r) / state.max_running)
    slower_s = alone_s * LINGER_SHARE / held_share
    spare_s = min(PACE_SHARE / float(r.readers.tds.max()) - alone_s, slower_s)
    return int(min(places, max(0.0, spare_s) / max(one_more_s, 1e-9)))


def _fill(readers: SchedulerState, state: SchedulerState, places: int) -> Decision:
    """Yielding streams into the room that is left: first those that were parked, then by arrival."""
    r, t = readers.requests, state.requests
    fits = ~t.is_in(Phase.WAITING)
    waiting = t.rows(Phase.WAITING)
    waiting = waiting[np.argsort(t.arrival_s[waiting], kind="stable")]
    stall_s = np.cumsum(
        state.latency.resume_s(
            (t.context_tokens - t.cached_tokens)[waiting], t.cached_tokens[waiting], t.host_tokens[waiting]
        )
    )
    unread_s = float(r.readers.buffered_s(state.now_s).min()) if len(r) else np.inf
    fits[waiting[stall_s <= unread_s]] = True
    beside = replace(
        state,
        requests=t.only(fits),
        kv_reserved_tokens=state.kv_reserved_tokens + int(r.kv_tokens.sum() + GROWTH_TOKENS * len(r)),
        running_reserved=state.running_reserved + len(r),
    )
    t = beside.requests
    return pack(
        beside,
        -t.arrival_s,
        tier=t.is_in(Phase.PARKED).astype(float),
        batch=beside.running_reserved + places,
        growth_tokens=GROWTH_TOKENS,
    )


def _taken_off(
    t: RequestTable, rows: npt.NDArray[np.intp], mode: PreemptionMode, blocked: npt.NDArray[np.bool_]
) -> tuple[Preemption, ...]:
    return tuple(Preemption(t.rids[row], mode, REASONS[int(blocked[row])]) for row in rows)
