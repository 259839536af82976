"""SGLang's limits and time-outs meet new requests only, and what leaves the queue is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter.queue_limits import QueueLimits
from andes_sglang.adapter.records import StreamRecord, StreamRecords
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.metrics import EngineMetrics


class Finished(EngineMetrics):
    """Keeps the QoE of streams that have ended."""

    def __init__(self) -> None:
        self.qoe: list[float] = []

    def finished(self, qoe: float) -> None:
        self.qoe.append(qoe)


def queue(*rids: str) -> tuple[QueueLimits, Any, StreamRecords, Finished]:
    """A waiting queue of requests; those called "begun..." have run before."""
    records, finished = StreamRecords(), Finished()
    scheduler = SimpleNamespace(waiting_queue=[])
    for rid in rids:
        sampling = SimpleNamespace(max_new_tokens=10)
        req = SimpleNamespace(rid=rid, origin_input_ids=[0], output_ids=[], sampling_params=sampling, to_finish=None)
        scheduler.waiting_queue.append(req)
        records.add(StreamRecord(req, 0.0, 0.0, ReaderExpectation(), True))
        if rid.startswith("begun"):
            records[rid].stop("release", 1.0)
    return QueueLimits(scheduler, records, finished), scheduler, records, finished


def rids(scheduler: Any) -> list[str]:
    return [req.rid for req in scheduler.waiting_queue]


def test_limits_see_only_requests_that_never_ran() -> None:
    limits, scheduler, _, _ = queue("new-1", "begun-1", "new-2", "begun-2")
    with limits.only_new():
        assert rids(scheduler) == ["new-1", "new-2"]
        scheduler.waiting_queue.pop(0)
    assert rids(scheduler) == ["begun-1", "begun-2", "new-2"]


def test_streams_that_have_begun_come_back_after_an_error() -> None:
    limits, scheduler, _, _ = queue("begun", "new")
    with pytest.raises(RuntimeError, match="inside"), limits.only_new():
        raise RuntimeError("inside")
    assert rids(scheduler) == ["begun", "new"]


def test_what_leaves_is_counted_and_forgotten() -> None:
    limits, scheduler, records, finished = queue("new", "begun", "stays")
    with limits.departures():
        scheduler.waiting_queue = scheduler.waiting_queue[2:]
    assert [record.req.rid for record in records] == ["stays"]
    assert finished.qoe == [0.0, 0.0]
    with limits.departures():
        pass
    assert len(finished.qoe) == 2


def test_only_time_on_the_engine_is_running_time() -> None:
    limits, scheduler, records, _ = queue("new", "stays", "leaves")
    stays, leaves = records["stays"], records["leaves"]
    for record in (stays, leaves):
        record.start(10.0)
    leaves.stop("park", 12.0)
    leaves.start(40.0)

    def over(timeout_s: float, now_s: float) -> list[str]:
        return [req.rid for req in limits.ran_for(scheduler.waiting_queue, timeout_s, now_s)]

    assert over(30.0, 41.0) == ["stays"]
    assert over(3.0, 41.0) == ["stays", "leaves"]
    leaves.stop("release", 41.5)
    assert over(4.0, 90.0) == ["stays"]
    assert over(3.5, 90.0) == ["stays", "leaves"]


def test_a_time_out_of_a_stream_that_has_rested_is_dropped() -> None:
    limits, _, records, _ = queue("waits", "begun-rested", "begun-long")
    records["begun-rested"].start(10.0)
    records["begun-rested"].stop("park", 12.0)
    records["begun-long"].start(10.0)
    aborts = [SimpleNamespace(rid=rid) for rid in ("waits", "begun-rested", "begun-long", "unknown")]
    kept = limits.without_rested(aborts, 30.0, 50.0)
    assert [abort.rid for abort in kept] == ["waits", "begun-long", "unknown"]
