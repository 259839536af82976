"""A decision survives the way to the other ranks, and ranks that do not know the same requests notice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.adapter import wire
from andes_sglang.state import Decision, Preemption, PreemptionMode

RIDS = [f"request-{k}" for k in range(40)]
SLOTS = {rid: 3 * k for k, rid in enumerate(RIDS)}
SOME = st.lists(st.sampled_from(RIDS), max_size=40)
MODES = st.sampled_from(list(PreemptionMode))


def slot_of(rid: str) -> int:
    return SLOTS.get(rid, wire.UNKNOWN)


def rid_at(slot: int) -> str:
    return RIDS[slot // 3]


@given(SOME, SOME, st.lists(st.tuples(st.sampled_from(RIDS), MODES), max_size=10))
def test_all_but_the_reasons_arrives(
    admit: list[str], resume: list[str], preempt: list[tuple[str, PreemptionMode]]
) -> None:
    said = Decision(tuple(admit), tuple(resume), tuple(Preemption(rid, mode, "kv") for rid, mode in preempt))
    words = wire.encode(said, slot_of)
    assert wire.HEADER_WORDS + wire.words_after_header(words) == len(words)
    heard = wire.decode(words, rid_at)
    assert (heard.admit, heard.resume) == (said.admit, said.resume)
    assert [(p.rid, p.mode) for p in heard.preempt] == preempt


def test_what_no_request_is_called_counts_and_names_nothing() -> None:
    said = Decision(("request-1", "gone"), (), (Preemption("unheard of", PreemptionMode.PARK, ""),))
    heard = wire.decode(wire.encode(said, slot_of), rid_at)
    assert heard.admit == ("request-1", "")
    assert heard.preempt == (Preemption("", PreemptionMode.PARK, ""),)


@pytest.mark.parametrize("said", [Decision(("request-1",)), Decision((), ("request-1", "request-2"))])
def test_ranks_that_know_other_requests_by_the_same_slots_stop(said: Decision) -> None:
    words = wire.encode(said, slot_of)
    with pytest.raises(wire.DisagreementError, match="different requests by the same slots"):
        wire.decode(words, lambda slot: RIDS[slot // 3 + 1])


def test_a_decision_of_nothing_is_a_header() -> None:
    words = wire.encode(Decision(), slot_of)
    assert words.dtype == np.int32
    assert len(words) == wire.HEADER_WORDS
    assert wire.decode(words, rid_at) == Decision()
