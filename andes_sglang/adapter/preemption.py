"""Taking requests off the engine and putting them back.

- park: the request moves to a batch of its own and keeps its KV and its slot of the request pool. Where an engine serves LoRA
  adapters, all are released instead: a batch holds only so many adapters, and only an admission counts them.
- release: its KV goes into the radix tree unlocked and it joins the waiting queue; SGLang's prefill brings it back, with a
  prefix hit for what is still there.
- offload: a release on an engine with a host tier; without room in host memory it is a plain release, and counted as one.
- retraction: a release because KV has run out, of the request that :func:`andes_sglang.protocol.retraction_victim` names.

In overlap mode the result in flight is processed before anything is released (:meth:`EnginePreemptor.settle`), so no token is
lost, computed twice or sent twice.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping
from typing import Any

from andes_sglang import protocol
from andes_sglang.adapter.compat import BLANK, MIXED_PREFIX_BY_OUTPUT, computed_tokens, extend_tokens
from andes_sglang.adapter.host_transfers import HostTransfers
from andes_sglang.adapter.parked import ParkedRequests
from andes_sglang.adapter.penalties import restore_penalties
from andes_sglang.adapter.records import StreamRecord, StreamRecords
from andes_sglang.adapter.sglang_request import release_into_tree
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics
from andes_sglang.state import Decision, PreemptionMode

__all__ = ["EnginePreemptor"]


class EnginePreemptor:
    """Stops and starts the requests of ``scheduler``, an SGLang scheduler. ``released``: rids given up at this decision."""

    def __init__(
        self,
        scheduler: Any,
        records: StreamRecords,
        parked: ParkedRequests,
        transfers: HostTransfers,
        *,
        latency: LatencyModel,
        metrics: EngineMetrics,
    ) -> None:
        self._scheduler = scheduler
        self._records = records
        self._parked = parked
        self._transfers = transfers
        self._latency = latency
        self._metrics = metrics
        self.released: set[str] = set()

    def apply(self, decision: Decision, running_batch: Any) -> Any:
        """Preempt, then resume; the running batch as it is then."""
        free_slots = self._scheduler.req_to_token_pool.available_size()
        parked = [req.rid for req in self._parked.reqs]
        preempt = decision.preempt_for_slots(
            len(running_batch.reqs), self._scheduler.max_running_requests, free_slots, parked
        )
        may_park = not self._scheduler.enable_lora
        park = {p.rid: p.reason for p in preempt if may_park and p.mode is PreemptionMode.PARK}
        release = {p.rid: p.reason for p in preempt if p.rid not in park}
        if release:
            self.settle()
        for req in self._parked.take_from(running_batch, park):
            self.stop(req, "park")
            self._metrics.preemption("park", park[req.rid])
        if release:
            self._release_all(release, running_batch)
        self._parked.drop_finished()
        return self.resume(set(decision.resume), running_batch)

    def _release_all(self, reasons: Mapping[str, str], running_batch: Any) -> None:
        """Release the requests ``reasons`` names, running or parked."""
        for batch in [batch for batch in (running_batch, self._parked.batch) if batch is not None]:
            for req in [req for req in batch.reqs if req.rid in reasons and not req.finished()]:
                self._metrics.preemption(self._release(req, batch, "release"), reasons[req.rid])
        self._transfers.finish_writes()

    def resume(self, rids: Container[str], running_batch: Any) -> Any:
        """Put the parked requests ``rids`` back; the running batch as it is then."""
        back = self._parked.give_back(rids)
        if back is None:
            return running_batch
        for req in back.reqs:
            self._start(self._records[req.rid])
        self._restore_penalties(back, range(len(back.reqs)), before_decode=True)
        if running_batch.is_empty():
            return back
        running_batch.merge_batch(back)
        return running_batch

    def resume_all(self, running_batch: Any) -> Any:
        return self.resume({req.rid for req in self._parked.reqs}, running_batch)

    def retract(self, batch: Any) -> None:
        """KV does not suffice for the next decode step of ``batch``: make room, as far as requests can be stopped."""
        self.settle()
        self._transfers.finish_writes()
        batch.filter_batch()
        self._parked.drop_finished()
        while not batch.is_empty() and not batch.check_decode_mem():
            victim = protocol.retraction_victim(
                self._parked.reqs,
                batch.reqs,
                age=lambda req: (self._records.yields(req), self._records[req.rid].number),
                may_leave=lambda req: self._records[req.rid].may_leave,
                prefilling=self._scheduler.chunked_req is not None,
            )
            if not self._release_chunked(victim):
                if victim is None:
                    break
                self._release(victim, self._parked.batch if self._parked else batch, "retracted")
            self._transfers.finish_writes()
            self._parked.drop_finished()
            self._metrics.retraction()

    def _release_chunked(self, victim: Any) -> bool:
        """Give up the chunks of the prompt that is half computed, if there is one that can wait again, and that makes way in
        the place of ``victim``."""
        req, yields = self._scheduler.chunked_req, self._records.yields
        if req is None or not self._records[req.rid].may_leave:
            return False
        if not protocol.prompt_makes_way(yields(req), None if victim is None else yields(victim)):
            return False
        self._scheduler.chunked_req = None
        computed = computed_tokens(req)
        release_into_tree(self._scheduler.tree_cache, req)
        self._wait(req, "retracted", computed)
        return True

    def settle(self) -> None:
        """Process the result in flight, if any, so that output, KV and reader of every request agree. SGLang's loop finds a
        blank in its place."""
        results = getattr(self._scheduler, "result_queue", None)
        if results and results[0][0] is not BLANK:
            batch, result = results.popleft()
            self._scheduler.process_batch_result(batch, result)
            results.appendleft((BLANK, None))

    def stop(self, req: Any, mode: str) -> None:
        """Record that ``req`` has left the batch."""
        req.time_stats.trace_ctx.trace_event("andes.preempted", 1, attrs={"andes.preemption.mode": mode})
        self._records[req.rid].stop(mode, time.perf_counter())

    def note_prefill(self, batch: Any) -> None:
        """SGLang has formed the prefill ``batch`` (None: none): what was waiting runs, as of its last chunk."""
        if batch is None:
            return
        if MIXED_PREFIX_BY_OUTPUT:
            _correct_mixed_prefix(batch)
        records = [self._records.find(req) for req in batch.reqs]
        back = [row for row, record in enumerate(records) if record is not None and record.stopped is not None]
        self._restore_penalties(batch, back, before_decode=False)
        for req, record in zip(batch.reqs, records, strict=True):
            if record is None:
                continue
            if record.stopped is not None:
                record.prefilled_tokens += extend_tokens(req)
            if req is not self._scheduler.chunked_req and (record.stopped is not None or not record.seen_tokens):
                self._start(record)

    def _restore_penalties(self, batch: Any, rows: Iterable[int], *, before_decode: bool) -> None:
        restore_penalties(batch, rows, before_decode=before_decode, overlap=self._scheduler.enable_overlap)

    def _start(self, record: StreamRecord) -> None:
        if record.stopped is not None:
            again = protocol.recomputed_tokens(record.prefilled_tokens)
            self._metrics.resume(record.stopped, again)
            if record.stopped == "offload" and not record.expectation.yields:  # whose copies are the first to go
                self._latency.observe_return(record.context_tokens, again)
            record.req.time_stats.trace_ctx.trace_event("andes.resumed", 1)
        record.start(time.perf_counter())

    def _release(self, req: Any, batch: Any, mode: str) -> str:
        """Give up the KV of ``req``, which is in ``batch``; the mode under which it is counted."""
        release_into_tree(self._scheduler.tree_cache, req)
        batch.filter_batch(keep_indices=[i for i, other in enumerate(batch.reqs) if other is not req])
        batch.batch_is_full = False
        mode = protocol.off_device_mode(mode, self._transfers.save(req))
        self._wait(req, mode, protocol.max_prefix_hit_tokens(self._records[req.rid].context_tokens))
        return mode

    def _wait(self, req: Any, mode: str, cached_tokens: int) -> None:
        """``req``, whose KV has been given up to the tree, waits for its return."""
        self.stop(req, mode)
        self._records.set_prefix_hit(req, cached_tokens)
        self.released.add(req.rid)
        self._scheduler.waiting_queue.append(req)


def _correct_mixed_prefix(batch: Any) -> None:
    """Tell the prefix lengths of the decoding requests of a mixed ``batch`` by their KV.

    In overlap mode ``ScheduleBatch.mix_with_running`` of 0.5.17 takes it that their output lags a token behind. It does not
    where :meth:`EnginePreemptor.settle` has processed a result early.
    """
    if batch.forward_mode.is_mixed():
        decoding = len(batch.decoding_reqs)
        batch.prefix_lens[-decoding:] = [length - 1 for length in batch.seq_lens_cpu[-decoding:].tolist()]
