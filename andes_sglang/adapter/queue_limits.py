"""SGLang's queue limits and time-outs: a stream that has begun is never turned away from the queue, and what it waits off the
engine is no running time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from andes_sglang.adapter.records import StreamRecords
from andes_sglang.metrics import EngineMetrics

__all__ = ["QueueLimits"]


class QueueLimits:
    """Of the waiting queue of ``scheduler``, an SGLang scheduler."""

    def __init__(self, scheduler: Any, records: StreamRecords, metrics: EngineMetrics) -> None:
        self._scheduler = scheduler
        self._records = records
        self._metrics = metrics

    @contextmanager
    def only_new(self) -> Iterator[None]:
        """Inside, the waiting queue holds only requests that never ran; afterwards the others are in front of them."""
        queue = self._scheduler.waiting_queue
        begun = [req for req in queue if self._records.has_begun(req)]
        self._scheduler.waiting_queue = [req for req in queue if not self._records.has_begun(req)]
        try:
            yield
        finally:
            self._scheduler.waiting_queue = begun + self._scheduler.waiting_queue

    def ran_for(self, reqs: Iterable[Any], timeout_s: float, now_s: float) -> list[Any]:
        """Of ``reqs`` those that have been on the engine for ``timeout_s`` or longer."""
        found = ((req, self._records.find(req)) for req in reqs)
        return [req for req, record in found if record is None or record.on_engine_s(now_s) >= timeout_s]

    @contextmanager
    def hidden_begun(self) -> Iterator[None]:
        """Inside, the waiting queue is a copy without the requests that have run; afterwards it is what it was."""
        queue = self._scheduler.waiting_queue
        self._scheduler.waiting_queue = [req for req in queue if not self._records.has_begun(req)]
        try:
            yield
        finally:
            self._scheduler.waiting_queue = queue

    def without_rested(self, aborts: Sequence[Any], timeout_s: float, now_s: float) -> list[Any]:
        """``aborts`` but for those of streams that have begun and been on the engine for less than ``timeout_s``."""

        def has_rested(rid: str) -> bool:
            if rid not in self._records:
                return False
            record = self._records[rid]
            return record.has_begun and record.on_engine_s(now_s) < timeout_s

        return [abort for abort in aborts if not has_rested(abort.rid)]

    @contextmanager
    def departures(self) -> Iterator[None]:
        """A request that leaves the waiting queue inside leaves for good: its stream ends with what was delivered."""
        before = [req.rid for req in self._scheduler.waiting_queue]
        yield
        if len(self._scheduler.waiting_queue) < len(before):
            still = {req.rid for req in self._scheduler.waiting_queue}
            for rid in dict.fromkeys(before):  # in order: slots are freed in the same order on all ranks of an engine
                if rid in still or rid not in self._records:
                    continue
                self._metrics.finished(self._records[rid].reader.final_qoe())
                self._records.forget(rid)
