"""How many tokens are drafted for each request, whatever the policy: first what its reader needs, then what is likeliest to
be accepted (:func:`andes_sglang.speculation.draft_lengths`). A reader who has text unread needs no draft."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from andes_sglang.speculation import draft_lengths
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["CUSHION_S", "with_drafts"]

CUSHION_S = 0.5
"""A reader with less than this unread needs every step to bring what it takes (our choice: a few steps)."""


def with_drafts(state: SchedulerState, decision: Decision) -> Decision:
    """``decision`` with the drafts of what runs once it is carried out; unchanged where the engine drafts nothing."""
    if state.drafting is None:
        return decision
    t = state.requests
    leave = {preemption.rid for preemption in decision.preempt}
    stays = [row for row in np.flatnonzero(t.phase == Phase.RUNNING).tolist() if t.rids[row] not in leave]
    resume = set(decision.resume)
    rows = np.array(stays + [row for row, rid in enumerate(t.rids) if rid in resume], dtype=np.intp)
    if not len(rows):
        return decision
    short = t.readers.buffered_s(state.now_s)[rows] < CUSHION_S
    drafting = state.drafting
    lengths = draft_lengths(
        drafting.speculation, drafting.step_s, t.readers.tds[rows], short, drafting.acceptance[rows]
    )
    drafts = zip(t.names(rows), lengths.tolist(), strict=True)
    return replace(decision, draft=tuple((rid, length) for rid, length in drafts if length))
