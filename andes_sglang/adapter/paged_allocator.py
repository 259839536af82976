"""SGLang's allocator of KV in pages (``--page-size`` above 1), with torch in the place of its Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator, alloc_extend_naive
from sglang.srt.utils import get_num_new_pages

__all__ = ["PagedAllocator"]


class PagedAllocator(PagedTokenToKVPoolAllocator):  # type: ignore[misc]
    """Where each request's next tokens go: behind its last one, then on pages of its own. None where pages do not suffice."""

    free_pages: Any

    def alloc_extend(self, prefix_lens: Any, prefix_lens_cpu: Any, *lengths: Any, **_known: Any) -> Any:
        """For prefills that take requests from ``prefix_lens`` to other lengths, shape (requests,). lengths: these, the same
        on the CPU, where each request's last token is (-1: nowhere), and how many tokens are new in all."""
        _, seq_lens_cpu, last_loc, extend_num_tokens = lengths[:4]
        pages = get_num_new_pages(seq_lens=seq_lens_cpu, page_size=self.page_size, prefix_lens=prefix_lens_cpu)
        if not self._has(pages):
            return None
        where = torch.empty((extend_num_tokens,), dtype=torch.int64)
        alloc_extend_naive(prefix_lens_cpu, seq_lens_cpu, last_loc, self.free_pages, where, self.page_size, self.device)
        self.free_pages = self.free_pages[pages:]
        return where

    def alloc_decode(self, seq_lens: Any, seq_lens_cpu: Any, last_loc: Any) -> Any:
        """For a token each, as of which requests have ``seq_lens`` tokens, shape (requests,)."""
        begins = seq_lens_cpu % self.page_size == 1
        pages = int(begins.sum())
        if not self._has(pages):
            return None
        where = last_loc.to(torch.int64) + 1
        where[begins] = self.free_pages[:pages] * self.page_size
        self.free_pages = self.free_pages[pages:]
        return where

    def _has(self, pages: int) -> bool:
        if self.need_sort and pages > len(self.free_pages):
            self.merge_and_sort_free()
        return pages <= len(self.free_pages)
