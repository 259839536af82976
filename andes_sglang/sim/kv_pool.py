"""The KV pool of one engine: the radix cache, what running requests hold beside it, and copies to host memory."""

from __future__ import annotations

from andes_sglang.policy.eviction import EvictionOrder, Returns
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.radix import Node, RadixCache
from andes_sglang.sim.step_clock import StepClock

__all__ = ["KvPool"]


class KvPool:
    """Tokens of KV. capacity_tokens: the whole pool. uncached_tokens: held by requests beside the cache: generated, or being
    prefilled. returns: finished conversations that are to go on."""

    def __init__(
        self, engine: EngineModel, clock: StepClock, order: EvictionOrder, returns: Returns | None = None
    ) -> None:
        self.capacity_tokens = engine.kv_capacity_tokens
        self.cache = RadixCache(engine.host_room_tokens, order)
        self.uncached_tokens = 0
        self._returns = Returns() if returns is None else returns
        self._clock = clock
        self._host_write_s = engine.host_write_s
        self._has_host = engine.host_capacity_tokens > 0
        self._write_through = engine.write_through
        self._host_link_free_s = 0.0

    def free_tokens(self) -> int:
        return self.capacity_tokens - self.cache.tokens - self.uncached_tokens

    def available_tokens(self) -> int:
        """Free, or in the cache and not locked."""
        cache = self.cache
        return self.capacity_tokens - cache.tokens - self.uncached_tokens + cache.evictable

    @property
    def used_tokens(self) -> int:
        """Held by requests: locked in the cache, or beside it."""
        return self.cache.tokens - self.cache.evictable + self.uncached_tokens

    def allocate(self, tokens: int) -> None:
        """Take ``tokens`` beside the cache, evicting what has no place beside them. Raises ``RuntimeError`` where there is no
        room, as SGLang does: who asks has made sure of it."""
        if tokens > self.free_tokens():
            self.make_free(tokens)
            if tokens > self.free_tokens():
                raise RuntimeError(f"out of memory: {tokens} tokens do not fit, {self.free_tokens()} are free")
        self.uncached_tokens += tokens

    def make_free(self, tokens: int) -> None:
        """Evict until ``tokens`` are free, or nothing is left to evict."""
        if (short := tokens - self.free_tokens()) > 0:
            if gone := self._returns.drop(self._clock.now_s):
                self.cache.order.look_again()
                for node in gone:
                    self.cache.offer(node)
            self.cache.evict(short)

    def expect(self, node: Node, returns_s: float) -> None:
        """The conversation that ends with ``node`` is to go on in ``returns_s`` seconds."""
        self._returns.ended(node, self._clock.now_s, returns_s)
        self.cache.order.look_again()

    def cache_prefix(self, job: Job, tokens: int) -> None:
        """``tokens`` that were allocated for ``job`` enter the cache behind those it holds there, locked."""
        before = job.cache_node
        held = job.protected_tokens + tokens
        self.uncached_tokens -= tokens
        job.cache_node, _ = self.cache.insert(job.runs(held))
        if self._write_through:
            self._back_up(job.cache_node)
        job.protected_tokens = held
        self.cache.lock(job.cache_node)
        self.cache.unlock(before)

    def give_up(self, job: Job, *, keep: bool, offload: bool = False) -> None:
        """``job`` holds no KV any more. keep: all of it enters the cache, unlocked; offload: and is copied to host memory."""
        self.uncached_tokens -= job.uncached_tokens
        if keep:
            job.kept_node, _ = self.cache.insert(job.runs(job.context_tokens - 1))
            if offload or self._write_through:
                self._back_up(job.kept_node)
        self.cache.unlock(job.cache_node)
        job.cache_node, job.protected_tokens, job.uncached_tokens = self.cache.root, 0, 0

    def give_up_chunks(self, job: Job) -> int:
        """``job``, half computed, holds no KV any more; tokens of it that stay in the cache, unlocked."""
        cached_tokens, job.kept_node = job.protected_tokens, job.cache_node
        self.cache.unlock(job.cache_node)
        job.cache_node, job.protected_tokens = self.cache.root, 0
        return cached_tokens

    def _back_up(self, node: Node) -> None:
        """Copy to host memory what has no copy there yet, in the background, over one link."""
        if not self._has_host:
            return
        path = []
        while node is not self.cache.root:
            if node.host_s is None:
                path.append(node)
            node = node.parent
        for node in reversed(path):
            complete_s = max(self._clock.now_s, self._host_link_free_s) + self._host_write_s(node.tokens)
            if not self.cache.back_up(node, complete_s):
                break
            self._host_link_free_s = complete_s
