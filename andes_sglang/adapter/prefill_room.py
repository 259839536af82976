"""How much the next prefill may compute, so that KV suffices for it and for the requests that decode beside it.

SGLang looks at KV when it admits a request. It does not look again at each chunk of a long prompt, although all that decodes
beside the chunks (``--enable-mixed-chunk``) has grown meanwhile, nor at the pages that such a step begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from andes_sglang import protocol

__all__ = ["PrefillRoom"]


class PrefillRoom:
    """Of ``scheduler``, an SGLang scheduler, before it forms a prefill; running_batch: what would decode beside it."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def free_tokens(self) -> int:
        """KV tokens that are free or can be evicted."""
        scheduler = self._scheduler
        return int(scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size())

    def tokens(self, running_batch: Any) -> int:
        """See :func:`andes_sglang.protocol.prefill_room_tokens`."""
        free_tokens = self.free_tokens()
        chunk_tokens = self._scheduler.chunked_prefill_size or free_tokens
        beside, growth_tokens = self._beside(running_batch)
        return protocol.prefill_room_tokens(chunk_tokens, free_tokens, beside, growth_tokens, self._scheduler.page_size)

    def newcomers(self, chosen: Sequence[str], waiting: Mapping[str, Any], running_batch: Any) -> Sequence[str]:
        """``chosen`` of those ``waiting``, or none: SGLang reserves a token for each request that decodes beside them, which
        may be too little where pages begin. Contexts count whole, since a prefix hit takes from what can be evicted."""
        beside, growth_tokens = self._beside(running_batch)
        if growth_tokens <= beside:
            return chosen
        reqs = [waiting[rid] for rid in chosen]
        needed = sum(len(req.origin_input_ids) + len(req.output_ids) + self._scheduler.page_size for req in reqs)
        return chosen if needed + growth_tokens <= self.free_tokens() else ()

    @contextmanager
    def chunk(self, running_batch: Any) -> Iterator[None]:
        """Inside, a chunk of SGLang's is no larger than the room."""
        scheduler = self._scheduler
        whole_tokens = scheduler.chunked_prefill_size
        if whole_tokens is not None:
            scheduler.chunked_prefill_size = self._beside(running_batch)[0] + self.tokens(running_batch)
        try:
            yield
        finally:
            scheduler.chunked_prefill_size = whole_tokens

    def _beside(self, running_batch: Any) -> tuple[int, int]:
        """Requests that decode beside a prefill, and the KV tokens of their step."""
        if not self._scheduler.is_mixed_chunk or running_batch.is_empty():
            return 0, 0
        return len(running_batch.reqs), int(running_batch.new_tokens_required_next_decode())
