"""Who makes room on an engine whose KV has run out, told by what an SGLang scheduler holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter import preemption
from andes_sglang.adapter.host_transfers import HostTransfers
from andes_sglang.adapter.parked import ParkedRequests
from andes_sglang.adapter.preemption import EnginePreemptor
from andes_sglang.adapter.records import StreamRecord, StreamRecords
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics


class Batch:
    """``ScheduleBatch``: as many steps fit as requests have left it."""

    def __init__(self, reqs: list[Any], scheduler: Any) -> None:
        self.reqs, self.scheduler = reqs, scheduler
        self.batch_is_full = True

    def is_empty(self) -> bool:
        return not self.reqs

    def filter_batch(self, keep_indices: list[int] | None = None) -> None:
        if keep_indices is not None:
            self.reqs = [self.reqs[i] for i in keep_indices]

    def check_decode_mem(self) -> bool:
        return bool(self.scheduler.waiting_queue)


def request(records: StreamRecords, rid: str, *, yields: bool = False, preemptible: bool = True, **more: Any) -> Any:
    trace = SimpleNamespace(trace_event=lambda *_, **__: None)
    req = SimpleNamespace(
        rid=rid, origin_input_ids=[0] * 900, output_ids=[], sampling_params=SimpleNamespace(max_new_tokens=9),
        to_finish=None, prefix_indices=[0] * 64, prefix_len=64, time_stats=SimpleNamespace(trace_ctx=trace), **more,
    )  # fmt: skip
    records.add(StreamRecord(req, 0.0, 0.0, ReaderExpectation(yields=yields), preemptible))
    return req


@pytest.mark.parametrize(
    ("prompt", "running", "leaves"),
    [
        ({"yields": True}, [{}], "prompt"),
        ({}, [{}], "0"),
        ({}, [{"yields": True}, {}], "0"),
        ({"yields": True}, [{"yields": True}], "0"),
        ({"yields": True, "preemptible": False}, [{}], "0"),
        ({}, [{"preemptible": False}], "prompt"),
        ({"preemptible": False}, [{"preemptible": False}], None),
    ],
    ids=[
        "the prompt has no reader", "the last makes way", "of those running who has none", "of equals who runs",
        "the prompt cannot be stopped", "only the prompt can be stopped", "none can be stopped",
    ],
)  # fmt: skip
def test_who_makes_room(
    monkeypatch: pytest.MonkeyPatch, prompt: dict[str, Any], running: list[dict[str, Any]], leaves: str | None
) -> None:
    monkeypatch.setattr(preemption, "release_into_tree", lambda _tree, _req: None)
    records, parked, latency = StreamRecords(), ParkedRequests(), LatencyModel()
    reqs = [request(records, str(k), **each) for k, each in enumerate(running)]
    scheduler = SimpleNamespace(waiting_queue=[], tree_cache=None, chunked_req=request(records, "prompt", **prompt))
    transfers = HostTransfers(scheduler, records, None, latency=latency)
    stops = EnginePreemptor(scheduler, records, parked, transfers, latency=latency, metrics=EngineMetrics())
    stops.retract(Batch(reqs, scheduler))
    assert [req.rid for req in scheduler.waiting_queue] == ([leaves] if leaves else [])
    assert (scheduler.chunked_req is None) == (leaves == "prompt")
    if leaves == "prompt":
        assert records["prompt"].cached_tokens == 64, "what was computed is found in the tree"
