"""What a policy sees of the engine: a :class:`andes_sglang.state.SchedulerState` for one decision."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from andes_sglang import protocol
from andes_sglang.adapter.host_transfers import HostTransfers
from andes_sglang.adapter.parked import ParkedRequests
from andes_sglang.adapter.prefill_room import PrefillRoom
from andes_sglang.adapter.records import StreamRecords
from andes_sglang.adapter.sglang_request import prefix_hit, uncomputed_tokens
from andes_sglang.latency import LatencyModel
from andes_sglang.state import Phase, SchedulerState

__all__ = ["Snapshot"]

_SPARE_RECORDS = 64
"""Records beyond twice the requests in sight before those of departed requests are looked for: a scan of all records costs
about as much as a decision (our choice, not measured)."""


class Snapshot:
    """Of ``scheduler``, an SGLang scheduler. Only what holds KV is read again; a waiting request does not change."""

    def __init__(
        self,
        scheduler: Any,
        records: StreamRecords,
        parked: ParkedRequests,
        transfers: HostTransfers,
        *,
        room: PrefillRoom,
        latency: LatencyModel,
    ) -> None:
        self._scheduler = scheduler
        self._records = records
        self._parked = parked
        self._transfers = transfers
        self._room = room
        self._latency = latency
        self._lookup_cursor = 0

    def spare_kv_tokens(self) -> int:
        """KV tokens that are free or can be evicted, but for those that the rest of a half computed prompt will take."""
        chunked = self._scheduler.chunked_req
        return self._room.free_tokens() - (uncomputed_tokens(chunked) if chunked is not None else 0)

    def look_around(self, running_batch: Any) -> None:
        """Before each decision, on every rank of an engine: drop the records of departed requests, and refresh the prefix hit
        of the request whose turn it is, which the radix tree counts as a use."""
        waiting, running = len(self._scheduler.waiting_queue), len(running_batch.reqs)
        if len(self._records) > 2 * (waiting + running) + _SPARE_RECORDS:
            self._forget_departed()
        self._look_up_prefixes()

    def take(self, running_batch: Any, hidden: Collection[str] = ()) -> SchedulerState:
        """The state as of now, without the waiting requests of the ids ``hidden``."""
        scheduler, now_s = self._scheduler, time.perf_counter()
        waiting = (
            [req for req in scheduler.waiting_queue if req.rid not in hidden] if hidden else scheduler.waiting_queue
        )
        running = [req for req in running_batch.reqs if not req.finished()]
        parked = self._parked.reqs
        held = 0
        for reqs, phase in ((running, Phase.RUNNING), (parked, Phase.PARKED)):
            for req in reqs:
                held += self._records.refresh(req, phase, self._transfers.kept_tokens(req))
        capacity_tokens, spare_tokens = scheduler.max_total_num_tokens, self.spare_kv_tokens()
        chunk_tokens = scheduler.chunked_prefill_size or scheduler.max_prefill_tokens
        return SchedulerState(
            now_s=now_s,
            requests=self._records.table([*running, *parked, *waiting]),
            kv_capacity_tokens=capacity_tokens,
            kv_reserved_tokens=min(
                capacity_tokens, capacity_tokens - spare_tokens - self._transfers.loading_tokens() - held
            ),
            max_running=protocol.running_bound(
                scheduler.max_running_requests, chunk_tokens, scheduler.is_mixed_chunk, scheduler.page_size
            ),
            running_reserved=int(scheduler.chunked_req is not None),
            yielding_reserved=int(self._records.yields(scheduler.chunked_req)),
            latency=self._latency,
            chunk_tokens=chunk_tokens,
            page_tokens=scheduler.page_size,
        )

    def _look_up_prefixes(self) -> None:
        """The tree changes all the time, and a look-up is not free: a few requests a decision, in turn."""
        queue = self._scheduler.waiting_queue
        for row in protocol.prefix_lookup_rows(self._lookup_cursor, len(queue)):
            self._lookup_cursor = row
            hit = prefix_hit(self._scheduler.tree_cache, queue[row])
            self._records.set_prefix_hit(queue[row], hit.device_tokens + hit.host_tokens, hit.host_tokens)

    def _forget_departed(self) -> None:
        """Drop the records of requests that have left without our hooks being told."""
        scheduler = self._scheduler
        present = {req.rid for req in scheduler.waiting_queue}
        for batch in (scheduler.running_batch, scheduler.last_batch, self._parked.batch):
            present.update(req.rid for req in batch.reqs) if batch is not None else None
        if scheduler.chunked_req is not None:
            present.add(scheduler.chunked_req.rid)
        self._records.forget_all_but(present)
