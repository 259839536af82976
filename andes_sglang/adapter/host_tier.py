"""SGLang's hierarchical cache, extended to hold the KV of preempted requests in host memory.

All KV that enters the radix tree is copied to host memory in the background (SGLang's write-through). Here running streams
enter it too, in chunks as they grow (:mod:`andes_sglang.adapter.host_transfers` says when), so that a release has next to
nothing left to copy. What was loaded back keeps its host copy: the next preemption, and the next turn of the conversation,
move only what is new.

A copy is not evicted from host memory while its KV is on the device too: with host memory full of such copies a stream gets
none, and its preemption is a plain release.

Three parts can be left out, to measure what each is worth (``--offload-without``): the write-through, the overlap of copies
and compute, and the increments.
"""

from __future__ import annotations

import copy
import logging
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
from sglang.srt.mem_cache.hiradix_cache import HiRadixCache

from andes_sglang.adapter.copy_counts import CopyCounts
from andes_sglang.adapter.memory import pool_bytes
from andes_sglang.adapter.options import PluginOptions
from andes_sglang.metrics import HostUse

__all__ = ["HostTier"]

logger = logging.getLogger(__name__)


class HostTier(HiRadixCache):  # type: ignore[misc]
    """In the place of SGLang's ``HiRadixCache``; overrides say what they change, other methods are called by our adapter."""

    several_ranks = False
    """Whether it holds the same on all ranks of an engine: its order of eviction follows from each rank's clock."""
    evicts_as_told = True
    """Whether what is wanted again is evicted last."""

    def __init__(self, params: Any, server_args: Any) -> None:
        self.counts = CopyCounts()
        self._early_load = -1
        self._outdated: list[Any] = []
        options = PluginOptions.from_env()
        self._without = options.offload_without
        server_args = copy.copy(server_args)
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        device_bytes = float(np.sum(pool.get_kv_size_bytes()))  # of keys and values, or under MLA one number
        size = pool_bytes(options.host_kv_gib, device_bytes, ranks=server_args.dp_size)
        object.__setattr__(server_args, "hicache_size", size / 1e9)
        super().__init__(params, server_args)
        self.load_back_threshold = 1  # token; SGLang's default of 10 computes a shorter hit again, which is no cheaper
        if not self.writes_through:
            self.write_through_threshold = sys.maxsize

    @property
    def writes_through(self) -> bool:
        """Whether all that enters the tree is copied at once; otherwise only what is handed to :meth:`save`."""
        return self._without != "write-through"

    def is_copied(self, node: Any) -> bool:
        return bool(node.backuped)

    def back_up(self, req: Any, tokens: int) -> None:
        """Put the first ``tokens`` tokens of a running request into the tree, locked, and so on their way to the host."""
        ids = (req.origin_input_ids + req.output_ids)[:tokens]
        begun = SimpleNamespace(
            get_fill_ids=lambda: ids,
            req_pool_idx=req.req_pool_idx,
            extra_key=req.extra_key,
            priority=getattr(req, "priority", 0),
            cache_protected_len=req.cache_protected_len,
            last_node=req.last_node,
        )
        self.cache_unfinished_req(begun)
        req.cache_protected_len, req.last_node = begun.cache_protected_len, begun.last_node

    @property
    def overlaps(self) -> bool:
        """Whether copies are made beside the engine's work."""
        return self._without != "overlap"

    def save(self, node: Any) -> None:
        """Without write-through: copy what has no copy yet of ``node`` and of the nodes above it."""
        path = []
        while not self.writes_through and node is not self.root_node and not node.backuped:
            path.append(node)
            node = node.parent
        while path and self.write_backup(path[-1]):
            path.pop()

    def keeps(self, node: Any, tokens: int) -> bool:
        """Whether a request of ``tokens`` tokens, which the tree holds up to ``node``, has a copy or finds room for one."""
        return bool(node.backuped or self.token_to_kv_pool_host.available_size() >= tokens)

    def write_backup(self, node: Any, write_back: bool = False) -> int:
        """Counts what is written and refused. A node larger than host memory is not tried: other copies would be evicted and
        it would still not fit."""
        fits = len(node.value) <= self.token_to_kv_pool_host.logical_size
        written = int(super().write_backup(node, write_back)) if fits else 0
        self.counts.write(written or len(node.value), written=bool(written))
        if not self.overlaps:
            self.counts.wait(self.cache_controller.ack_write_queue)
        return written

    def finish_writes(self) -> None:
        """Wait for the copies under way: the KV that they read is locked and cannot be evicted before."""
        self.counts.wait(self.cache_controller.ack_write_queue)
        self.writing_check()

    def load_back(self, node: Any, mem_quota: int | None = None) -> Any:
        """Counts what is loaded."""
        loaded = super().load_back(node, mem_quota)
        self.counts.loaded_tokens += 0 if loaded is None else len(loaded)
        return loaded

    def load_ahead(self, node: Any, room_tokens: int) -> bool:
        """Begin to load ``node`` and what is above it before its request is admitted; False: no room."""
        loaded = self.load_back(node, room_tokens)
        self.counts.ahead_tokens += 0 if loaded is None else len(loaded)
        return loaded is not None

    def begin_loads(self) -> None:
        """They begin when SGLang looks after copies, later in this iteration."""

    def loading_check(self, finish_count: int | None = None) -> None:
        """Measures the loads that have ended."""
        ended = self.cache_controller.ack_load_queue[: finish_count or 0]
        self.counts.measure(ended)
        if self._without == "increments":
            self._outdated += [self.ongoing_load_back[node_id] for ack in ended for node_id in ack.node_ids]
        super().loading_check(finish_count)

    def _give_up_copies(self) -> None:
        """Without increments: give up the copies of what has been loaded, and of what has grown below it since (SGLang allows
        no gap above a copy). A copy stays where there is no KV on the device, or where other branches need it."""
        for node in self._outdated:
            below, found = [node], []
            while below:
                found.append(below.pop())
                below += found[-1].children.values()
            if any(n.evicted for n in found):
                continue
            while node.parent is not self.root_node and sum(n.backuped for n in node.parent.children.values()) == 1:
                node = node.parent
                found.append(node)
            for n in found:
                if n.backuped:
                    self.cache_controller.evict_host(n.host_value)
                    n.host_value = None
        self._outdated.clear()

    def loading_tokens(self) -> int:
        """KV tokens on the device that are locked for loads only: they belong to requests that wait."""
        tokens = 0
        for node in self.ongoing_load_back.values():
            while node is not self.root_node:
                tokens += len(node.key) if node.lock_ref == 1 else 0
                node = node.parent
        return tokens

    def check_hicache_events(self) -> None:
        """Also starts a load that was queued for a batch which then was not formed (the next batch waits for it), and gives
        up copies while none is read or written."""
        super().check_hicache_events()
        if not (self.ongoing_load_back or self.ongoing_write_through):
            self._give_up_copies()
        if self.cache_controller.load_queue and not self.cache_controller.ack_load_queue:
            self._early_load = self._start_loads()

    def _start_loads(self) -> int:
        load = int(super().ready_to_load_host_cache())
        if not self.overlaps:
            self.counts.wait(self.cache_controller.ack_load_queue)
        return load

    def ready_to_load_host_cache(self) -> int:
        """The load that the next batch waits for: this one, or one that has started early."""
        load = self._start_loads()
        early, self._early_load = self._early_load, -1
        return load if load >= 0 else early

    def reset(self) -> None:
        """A flush, and the start. SGLang has made sure that nothing runs: host memory that the tree does not hold is lost."""
        if hasattr(self, "root_node"):
            self.counts.wait([*self.cache_controller.ack_write_queue, *self.cache_controller.ack_load_queue])
            lost = self._used_tokens() - self._held_tokens()
            if lost:
                logger.error("leak: %d tokens of host memory are in use, but not held by the radix tree", lost)
            self._outdated.clear()
        super().reset()

    def _used_tokens(self) -> int:
        pool = self.token_to_kv_pool_host
        return int(pool.logical_size - pool.available_size())

    def _held_tokens(self) -> int:
        held, nodes = 0, [self.root_node]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            held += len(node.host_value) if node.host_value is not None else 0
        return held

    def use(self) -> HostUse:
        """What has been copied so far, and how full host memory is."""
        pool = self.token_to_kv_pool_host
        return self.counts.use(
            pool.size_per_token, self.cache_controller.write_stream,
            used_tokens=self._used_tokens(), capacity_tokens=int(pool.logical_size),
        )  # fmt: skip
