"""SGLang on a machine without an accelerator: an out-of-tree platform on torch's own kernels."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

__all__ = ["CpuPlatform", "activate"]


def activate() -> str | None:
    """The platform's dotted name where torch sees no accelerator, otherwise None: SGLang then picks its own."""
    if torch.cuda.is_available() or torch.xpu.is_available():
        return None
    return f"{__name__}.CpuPlatform"


class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]
    _enum = PlatformEnum.OOT

    def init_backend(self) -> None:
        """Give the hierarchical cache (``--hicache-io-backend direct``) what it takes from CUDA: streams, a copy, and
        host memory, which need not be pinned here and of which no reserve is kept."""
        import importlib.util

        from sglang.srt.managers import cache_controller
        from sglang.srt.mem_cache.pool_host import base, common, mha

        from andes_sglang.adapter import copy_streams

        def allocate(dims: tuple[int, ...], *, dtype: Any, device: str, **_: Any) -> Any:
            return torch.empty(dims, dtype=dtype, device=device)

        cache_controller.device_module = copy_streams
        if importlib.util.find_spec("sglang.srt.mem_cache.l2_transfer") is not None:  # since 0.5.19
            from sglang.srt.mem_cache import l2_transfer

            l2_transfer.device_module = copy_streams
        mha.transfer_kv_direct = copy_streams.transfer_kv_direct
        common.ALLOC_MEMORY_FUNCS["cpu"] = allocate
        base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool  # type: ignore[no-any-return]

    def get_paged_allocator_cls(self) -> Any:
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

        from andes_sglang.adapter.paged_allocator import PagedAllocator

        def allocator(*args: Any, page_size: int, **kwargs: Any) -> Any:
            if page_size == 1:
                return TokenToKVPoolAllocator(*args, **kwargs)
            return PagedAllocator(*args, page_size=page_size, **kwargs)

        return allocator
