"""What a policy sees and says: the table of requests, and preemptions for request slots."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import (
    ROW_WIDTH,
    Decision,
    Phase,
    Preemption,
    PreemptionMode,
    RequestTable,
    RequestView,
    SchedulerState,
)

PARK, RELEASE, OFFLOAD = PreemptionMode.PARK, PreemptionMode.RELEASE, PreemptionMode.OFFLOAD


def view(rid: str = "a", phase: Phase = Phase.RUNNING, **more: Any) -> RequestView:
    return RequestView(rid, phase, 5.0, ReaderStream(5.0, QoETarget(1.0, 4.0)), **{"prompt_tokens": 100, **more})


def test_every_field_of_a_view_is_a_column_of_that_name() -> None:
    numbers = {f.name: 10.0 + k for k, f in enumerate(fields(RequestView)) if f.name not in ("rid", "phase", "reader")}
    table = RequestTable.of([view(), RequestView("b", Phase.PARKED, reader=view().reader, **numbers)])  # type: ignore[arg-type]
    assert table.columns.shape == (ROW_WIDTH, 2)
    for name, number in numbers.items():
        assert getattr(table, name)[1] == number, name
    assert table.phase.tolist() == [Phase.RUNNING, Phase.PARKED]


def test_what_a_view_does_not_say() -> None:
    table = RequestTable.of([view()])
    said = (
        table.kv_tokens[0],
        table.cached_tokens[0],
        table.host_tokens[0],
        table.output_tokens[0],
        table.slice_tokens[0],
    )
    assert said == (0, 0, 0, 0, 0)
    assert (table.preemptions[0], table.preemptible[0], table.weight[0], table.yields[0]) == (0, 1, 1, 0)
    assert table.phase_since_s[0] == 0
    assert table.remaining_tokens[0] == 2**20
    assert np.isnan(table.expected_tokens[0])


def test_readers_are_those_of_the_views() -> None:
    one = view()
    one.reader.deliver(7.0, 3)
    readers = RequestTable.of([view(), one]).readers
    assert [column[1] for column in readers] == [6.0, 4.0, 3.0, 1.75, one.reader.lateness_s]


def test_an_empty_table() -> None:
    table = RequestTable.of([])
    assert len(table) == 0
    assert table.rows(Phase.RUNNING).tolist() == []


def test_rows_by_phase_and_names_by_row() -> None:
    table = RequestTable.of([view("a", Phase.RUNNING), view("b", Phase.WAITING), view("c", Phase.RUNNING)])
    assert len(table) == 3
    assert table.rows(Phase.RUNNING).tolist() == [0, 2]
    assert table.is_in(Phase.WAITING).tolist() == [False, True, False]
    assert table.names([2, 0]) == ("c", "a")


def test_the_context_is_what_is_held_or_would_be() -> None:
    table = RequestTable.of(
        [view(output_tokens=20), view(output_tokens=20, kv_tokens=119), view(output_tokens=20, kv_tokens=150)]
    )
    assert table.context_tokens.tolist() == [120, 120, 150]


def test_an_array_of_rows_is_copied() -> None:
    rows = np.zeros((1, ROW_WIDTH))
    table = RequestTable.of_rows(("a",), rows)
    rows[:] = 1.0
    assert not table.columns.any()


def test_the_pool_is_what_others_do_not_hold() -> None:
    state = SchedulerState(0.0, RequestTable.of([]), 1000, 8, LatencyModel(), kv_reserved_tokens=300)
    assert state.pool_tokens == 700
    assert (state.running_reserved, state.chunk_tokens) == (0, 8192)
    assert replace(state, kv_reserved_tokens=0).pool_tokens == 1000


# Request slots: a parked request keeps its own


def slots(decision: Decision, *, running: int = 4, most: int = 4, free: int = 0, parked: str = "") -> str:
    preempt = decision.preempt_for_slots(running, most, free, iter(parked))
    return " ".join(f"{p.mode.value}:{p.rid}:{p.reason}" for p in preempt)


def deciding(admit: str, preempt: str = "", *, mode: PreemptionMode = PARK, resume: str = "") -> Decision:
    return Decision(tuple(admit), tuple(resume), tuple(Preemption(rid, mode, "displaced") for rid in preempt))


def test_parks_stay_parks_while_there_are_slots() -> None:
    assert slots(deciding("xy", "ab"), free=2) == "park:a:displaced park:b:displaced"


def test_a_park_becomes_a_release_for_each_slot_that_is_missing() -> None:
    assert slots(deciding("xy", "ab"), free=1) == "release:a:displaced park:b:displaced"
    assert slots(deciding("xy", "ab"), free=0) == "release:a:displaced release:b:displaced"


def test_a_release_gives_its_slot_already() -> None:
    assert slots(deciding("xy", "ab", mode=RELEASE)) == "release:a:displaced release:b:displaced"
    mixed = Decision(("x", "y"), (), (Preemption("a", PARK, "displaced"), Preemption("b", OFFLOAD, "displaced")))
    assert slots(mixed) == "release:a:displaced offload:b:displaced"
    assert slots(mixed, free=1) == "park:a:displaced offload:b:displaced"


def test_parked_requests_are_released_before_what_runs() -> None:
    assert slots(deciding("xy", "ab"), parked="pq") == "park:a:displaced park:b:displaced release:p:slot release:q:slot"
    assert slots(deciding("xy", "ab"), parked="p") == "release:a:displaced park:b:displaced release:p:slot"
    assert slots(deciding("xy", "ab"), free=1, parked="pq") == "park:a:displaced park:b:displaced release:p:slot"


def test_what_is_named_already_is_not_released_for_its_slot() -> None:
    assert slots(deciding("x", "ab", resume="p"), parked="paq") == "park:a:displaced park:b:displaced release:q:slot"


def test_no_more_slots_than_the_batch_admits() -> None:
    assert slots(deciding("xyz"), running=3, most=4, parked="pq") == "release:p:slot"
    assert slots(deciding("xyz", resume="p"), running=3, most=4, parked="pq") == ""
    assert slots(deciding("xyz"), running=3, most=4, free=1, parked="pq") == ""
