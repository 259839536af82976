"""KV that will be needed again, in the engine's order of eviction (:mod:`andes_sglang.policy.eviction`): that of paused
streams, and of conversations whose tool runs.

An engine with a host tier asks it all the time. Without one a release leaves KV to be evicted, the least recently used first,
and SGLang's own order holds as long as no conversation is to return. Where the tree is native code it always holds, and
conversations that return are used meanwhile (:mod:`andes_sglang.adapter.touches`). Nothing is done where several ranks would
evict by clocks of their own, nor where ``--radix-eviction-policy`` asks for another order.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from andes_sglang.adapter.records import StreamRecord, StreamRecords
from andes_sglang.adapter.sglang_request import prefix_hit, tree_node
from andes_sglang.adapter.touches import Touches
from andes_sglang.policy.eviction import NO_READER, EvictionOrder, Returns

if TYPE_CHECKING:
    from andes_sglang.adapter.host_tier import HostTier
    from andes_sglang.adapter.unified_host_tier import UnifiedHostTier

__all__ = ["WantedKv"]

log = logging.getLogger(__name__)


class WantedKv:
    """Of the streams of ``scheduler``, an SGLang scheduler."""

    def __init__(self, scheduler: Any, records: StreamRecords, tier: HostTier | UnifiedHostTier | None) -> None:
        tree, one_rank = scheduler.tree_cache, scheduler.attn_tp_group.world_size == 1
        self._tree = tree
        self._records = records
        self._returns = Returns()
        self._has_tier = tier is not None
        self._order: EvictionOrder | Touches | None = None
        self._said = False
        asks = one_rank and getattr(tree, "eviction_policy", "") == "lru" and hasattr(tree, "eviction_strategy")
        if asks if tier is None else tier.evicts_as_told:
            self._order = tree.eviction_strategy = EvictionOrder(self._wanted)
        elif one_rank and scheduler.server_args.radix_eviction_policy == "lru":
            self._order = Touches(partial(prefix_hit, tree), self._returns.expected)

    def look_again(self) -> None:
        """Once an iteration: what is wanted may have changed."""
        if self._order is not None:
            self._returns.drop(time.perf_counter())
            self._order.look_again()

    def ended(self, record: StreamRecord, now_s: float) -> None:
        """An answer has ended: its KV is the tree's, and its conversation may be about to go on. One that yields has none who
        waits for it: its KV does not outlive that of readers."""
        expectation, req = record.expectation, record.req
        if isinstance(self._order, Touches):
            self._order.answer_ended()
        if expectation.returns_s is None or expectation.yields:
            return
        if self._order is None:
            self._say_once_that_none_is_kept()
            return
        if req.finished_reason.to_json()["type"] == "abort":
            return
        req = copy.copy(req)  # a look-up leaves its marks on a request
        if isinstance(self._order, Touches):
            self._returns.ended(req, now_s, expectation.returns_s)
            return
        hit = prefix_hit(self._tree, req)
        self._returns.ended(hit.host_node if hit.host_tokens else hit.device_node, now_s, expectation.returns_s)
        self._order.look_again()

    def _say_once_that_none_is_kept(self) -> None:
        if not self._said:
            log.warning(
                "custom_params.qoe.returns has no effect on this engine: its radix tree keeps its own order of eviction"
            )
        self._said = True

    def _wanted(self) -> Iterator[tuple[Any, float]]:
        """Where the KV of each ends in the tree, and when it is needed."""
        yield from self._returns.expected()
        if not (self._has_tier or self._returns):
            return
        for record in self._records:
            if record.stopped not in (None, "park") and (node := tree_node(record.req)) is not None:
                yield node, NO_READER if record.expectation.yields else record.dry_at_s
