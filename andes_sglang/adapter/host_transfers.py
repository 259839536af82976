"""When KV is copied to host memory and back (``--preemption-mode offload``): the schedule of the copies.

What is copied is the business of :class:`andes_sglang.adapter.host_tier.HostTier`, on newer releases of SGLang of
:class:`andes_sglang.adapter.unified_host_tier.UnifiedHostTier`. Without one (``tier`` None) every method
says so and does nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from andes_sglang import protocol
from andes_sglang.adapter.compat import HICACHE_EVENTS_APART, protected_tokens
from andes_sglang.adapter.copies import copies_behind
from andes_sglang.adapter.records import StreamRecord, StreamRecords
from andes_sglang.adapter.sglang_request import prefix_hit
from andes_sglang.latency import LatencyModel

if TYPE_CHECKING:  # not every release of SGLang has what it extends
    from andes_sglang.adapter.host_tier import HostTier
    from andes_sglang.adapter.unified_host_tier import UnifiedHostTier

__all__ = ["WRITE_CHUNK_TOKENS", "HostTransfers", "tier_of_release"]

WRITE_CHUNK_TOKENS = 64
"""Tokens that a running stream generates before they are copied: one copy a chunk keeps the fixed cost of a copy small beside
its decode steps (our choice, not measured)."""


def tier_of_release() -> tuple[str, type[HostTier] | type[UnifiedHostTier]]:
    """The class of SGLang that holds KV in host memory, by its dotted name, and what takes its place."""
    if importlib.util.find_spec("sglang.srt.mem_cache.hiradix_cache") is not None:
        from andes_sglang.adapter.host_tier import HostTier

        return "sglang.srt.mem_cache.hiradix_cache.HiRadixCache", HostTier
    from andes_sglang.adapter.unified_host_tier import UnifiedHostTier  # since 0.5.21

    return "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache", UnifiedHostTier


class HostTransfers:
    """Copies for the streams of ``scheduler``, an SGLang scheduler."""

    def __init__(
        self, scheduler: Any, records: StreamRecords, tier: HostTier | UnifiedHostTier | None, *, latency: LatencyModel
    ) -> None:
        self._scheduler = scheduler
        self._records = records
        self._latency = latency
        self.tier = tier

    def write_through(self, running_batch: Any, parked: Sequence[Any]) -> None:
        """Copy what running and parked streams have generated, in chunks, as much as one decode step hides; those first whose
        reader has most in store: the likeliest to be preempted. On several ranks, all of it."""
        if self.tier is None:
            return
        for tokens, seconds in self.tier.counts.take_loads():
            self._latency.observe_load(tokens, seconds)
        if not self.tier.writes_through:
            return
        due = [record for req in (*running_batch.reqs, *parked) if (record := self._due(req)) is not None]
        if not due:
            return
        prompts = sum(len(req.origin_input_ids) for req in running_batch.reqs)
        step_s = self._latency.decode_s(len(running_batch.reqs), prompts)
        copy_s = [self._latency.load_s(_computed_tokens(record) - protected_tokens(record.req)) for record in due]
        rows: Sequence[int] = range(len(due))
        if self._scheduler.attn_tp_group.world_size == 1:  # what a step hides is an estimate of each rank's own
            rows = copies_behind([record.dry_at_s for record in due], copy_s, step_s)
        for row in rows:
            self.tier.back_up(due[row].req, _computed_tokens(due[row]))

    def _due(self, req: Any) -> StreamRecord | None:
        """The record of ``req`` where a chunk of it waits to be copied."""
        record = self._records.find(req)
        if record is None or not record.preemptible or req.finished():
            return None
        whole_chunk = _computed_tokens(record) - protected_tokens(req) >= WRITE_CHUNK_TOKENS
        return record if whole_chunk and len(req.output_ids) > record.slice_start_tokens else None

    def load_ahead(self, admitted: Sequence[Any], running_batch: Any) -> bool:
        """Start the loads of ``admitted`` behind one more decode step, where these requests have next to nothing to compute
        that loads could hide behind, once for each return. True: they are under way, and none is admitted yet."""
        tier, scheduler = self.tier, self._scheduler
        if tier is None or not tier.overlaps or scheduler.chunked_req is not None or running_batch.is_empty():
            return False
        returning = [self._records[req.rid] for req in admitted]
        if any(record.stopped is None or record.loaded_ahead for record in returning):
            return False
        room = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
        room -= protocol.ADMISSION_RESERVE_TOKENS * len(running_batch.reqs)
        for record in returning:
            hit = prefix_hit(scheduler.tree_cache, record.req)
            if hit.host_tokens and tier.load_ahead(hit.host_node, room):
                record.loaded_ahead = True
                room -= hit.host_tokens + protocol.ADMISSION_RESERVE_TOKENS
                self._records.set_prefix_hit(record.req, hit.device_tokens + hit.host_tokens)
        tier.begin_loads()
        return any(record.loaded_ahead for record in returning)

    def save(self, req: Any) -> bool:
        """Copy the KV of ``req``, which has just been released; whether all of it has a copy or gets one."""
        if self.tier is None:
            return False
        node = prefix_hit(self._scheduler.tree_cache, req).device_node
        self.tier.save(node)
        return self.tier.is_copied(node)

    def finish_writes(self) -> None:
        """Wait for the copies under way: what they read cannot be evicted before."""
        if self.tier is not None:
            self.tier.finish_writes()

    def kept_tokens(self, req: Any) -> int:
        """What a request that holds its KV would not lose by a release: all, if its part in the tree has a copy or would find
        room in host memory (the rest follows it there), otherwise nothing."""
        if self.tier is None or req.last_node is None:
            return 0
        tokens = len(req.origin_input_ids) + len(req.output_ids)
        return tokens if self.tier.keeps(req.last_node, tokens) else 0

    def loading_tokens(self) -> int:
        """KV tokens on the device that are locked for loads only."""
        return self.tier.loading_tokens() if self.tier is not None else 0

    def check_events(self) -> None:
        """What SGLang does about finished copies when it looks for a prefill."""
        if self._scheduler.enable_hierarchical_cache and not HICACHE_EVENTS_APART:
            self._scheduler.tree_cache.check_hicache_events()


def _computed_tokens(record: StreamRecord) -> int:
    """Tokens of a running request whose KV is complete: all but the last."""
    return record.context_tokens - 1
