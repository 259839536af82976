"""The host tier on releases of SGLang whose radix tree is native code (since 0.5.22): ``UnifiedRadixCache``, extended.

As :mod:`andes_sglang.adapter.host_tier`: what running streams generate goes into the tree in chunks, and so to host memory; a
release has next to nothing left to copy; what was loaded back keeps its copy. Two things differ. The order of eviction is
SGLang's own (least recently used), because a native tree asks no Python; so the copy of a paused stream can go before that of
a finished one that was used later, and its return then computes again. And ``--offload-without`` is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_memory, get_parallel

from andes_sglang.adapter.copy_counts import CopyCounts
from andes_sglang.adapter.memory import pool_bytes
from andes_sglang.adapter.options import PluginOptions
from andes_sglang.metrics import HostUse

__all__ = ["UnifiedHostTier"]


class UnifiedHostTier(UnifiedRadixCache):  # type: ignore[misc]
    """In the place of SGLang's class; overrides say what they change, other methods are called by our adapter."""

    several_ranks = True
    """It is evicted in the order of use, which is the same on all ranks of an engine."""
    evicts_as_told = False
    """Its order is SGLang's own."""
    writes_through = True
    overlaps = True

    def __init__(self, params: Any) -> None:
        self.counts = CopyCounts()
        self._early_load = -1
        self._ahead: dict[int, int] = {}
        super().__init__(params)

    def init_hicache(self, server_args: Any, params: Any) -> None:
        """With as much host memory as our options say, shared by the ranks of an engine and the same on all."""
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        device_bytes = float(np.sum(pool.get_kv_size_bytes()))  # of keys and values, or under MLA one number
        ranks = get_parallel().tp_group
        all_ranks = ranks.world_size * server_args.dp_size
        size = pool_bytes(PluginOptions.from_env().host_kv_gib, device_bytes, ranks=all_ranks)
        common = torch.tensor(size, dtype=torch.float64)
        if ranks.world_size > 1:  # each has found another amount of free memory
            torch.distributed.all_reduce(common, op=torch.distributed.ReduceOp.MIN, group=ranks.cpu_group)
        with get_memory().override(hicache_size=common.item() / 1e9):
            super().init_hicache(server_args, params)
        self.load_back_threshold = 1  # token; SGLang's default of 10 computes a shorter hit again, which is no cheaper

    def is_copied(self, node: Any) -> bool:
        return bool(self.is_backuped(node))

    def back_up(self, req: Any, tokens: int) -> None:
        """Put the first ``tokens`` tokens of a running request into the tree, locked, and so on their way to the host."""
        req.refresh_fill_ids()
        self.checkpoint_into_tree(req, up_to=tokens)

    def save(self, node: Any) -> None:
        """All that enters the tree is on its way already."""

    def keeps(self, node: Any, tokens: int) -> bool:
        """Whether a request of ``tokens`` tokens, which the tree holds up to ``node``, has a copy or finds room for one."""
        return bool(self.is_backuped(node) or self._host_pool.available_size() >= tokens)

    @property
    def _host_pool(self) -> Any:
        return self.cache_controller.mem_pool_host

    def _execute_kv_backup(self, node_id: Any, device_value: Any, *transfers: Any) -> Any:
        """Counts what is written and refused. A node larger than host memory is not tried: other copies would be evicted and
        it would still not fit."""
        tokens = len(device_value)
        fits = tokens <= self._host_pool.logical_size
        written = super()._execute_kv_backup(node_id, device_value, *transfers) if fits else None
        self.counts.write(tokens, written=written is not None)
        return written

    def finish_writes(self) -> None:
        """Wait for the copies under way: the KV that they read is locked and cannot be evicted before."""
        self.flush_pending_backups()
        self.counts.wait(self.cache_controller.ack_write_queue)
        self.writing_check()

    def load_back(self, node_id: Any, mem_quota: int | None = None, req: Any = None) -> bool:
        """Counts what is loaded."""
        loaded = bool(super().load_back(node_id, mem_quota, req=req))
        if loaded:
            self.counts.loaded_tokens += len(self.cache_controller.load_queue[-1].device_indices)
        return loaded

    def load_ahead(self, node: Any, room_tokens: int) -> bool:
        """Begin to load ``node`` and what is above it before its request is admitted; False: no room."""
        before = self.counts.loaded_tokens
        if not self.load_back(node, room_tokens):
            return False
        self._ahead[node] = self.counts.loaded_tokens - before
        self.counts.ahead_tokens += self._ahead[node]
        return True

    def begin_loads(self) -> None:
        """Start what :meth:`load_ahead` has queued, behind the next step; one at a time."""
        if self.cache_controller.load_queue and not self.cache_controller.ack_load_queue:
            self._early_load = int(super().ready_to_load_host_cache())

    def loading_check(self, finish_count: int | None = None) -> None:
        """Measures the loads that have ended."""
        self.counts.measure(self.cache_controller.ack_load_queue[: finish_count or 0])
        super().loading_check(finish_count)
        self._ahead = {node: tokens for node, tokens in self._ahead.items() if node in self.ongoing_load_back}

    def loading_tokens(self) -> int:
        """KV tokens on the device that are locked for loads ahead: they belong to requests that wait."""
        return sum(self._ahead.values())

    def check_hicache_events(self) -> None:
        """Also starts a load that was queued for a batch which then was not formed (the next batch waits for it)."""
        super().check_hicache_events()
        self.begin_loads()

    def ready_to_load_host_cache(self) -> int:
        """The load that the next batch waits for: this one, or one that has started early."""
        load = int(super().ready_to_load_host_cache())
        early, self._early_load = self._early_load, -1
        return load if load >= 0 else early

    def reset(self) -> None:
        """A flush, and the start. SGLang has made sure that nothing runs."""
        if getattr(self, "cache_controller", None) is not None:
            self.counts.wait([*self.cache_controller.ack_write_queue, *self.cache_controller.ack_load_queue])
        self._ahead.clear()
        super().reset()

    def use(self) -> HostUse:
        """What has been copied so far, and how full host memory is."""
        pool, copies = self._host_pool, self.cache_controller.l2_transfer_engine
        return self.counts.use(
            pool.anchor_entry.host_pool.size_per_token, copies.device_to_host_stream,
            used_tokens=int(pool.logical_size - pool.available_size()), capacity_tokens=int(pool.logical_size),
        )  # fmt: skip
