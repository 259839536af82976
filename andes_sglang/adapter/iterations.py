"""How long the engine's iterations take, told to the latency model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from andes_sglang.latency import LatencyModel

__all__ = ["IterationTimes"]

ACCEPTED_MEMORY = 50.0
"""Decode steps over which the tokens that each gives a request are averaged (our choice)."""


class IterationTimes:
    """Batches by the order of their launch. In overlap mode the next one is launched before the last one has ended: an
    iteration lasts from its launch, or from the end of the one before it if that is later. Under speculative decoding a step
    gives each request several tokens; what the latency model learns, and policies reckon with, is the time of one."""

    def __init__(self, latency: LatencyModel, clock: Callable[[], float] = time.perf_counter) -> None:
        self._latency = latency
        self._clock = clock
        self._launched: deque[tuple[float, Callable[[float, float], None] | None]] = deque()
        self._last_end_s = 0.0
        self._tokens_each = 1.0

    def launched(self, batch: Any) -> None:
        """``batch``, a ``ScheduleBatch``, goes to the device now."""
        self._launched.append((self._clock(), self._observation(batch)))

    def ended(self, now_s: float, tokens_each: float = 1.0) -> None:
        """The results of the earliest batch under way have been processed, by which a request has got so many tokens."""
        if not self._launched:
            return
        launched_s, observe = self._launched.popleft()
        seconds = now_s - max(launched_s, self._last_end_s)
        self._last_end_s = now_s
        if observe is not None:
            observe(seconds, tokens_each)

    def _observation(self, batch: Any) -> Callable[[float, float], None] | None:
        """What the duration of ``batch`` and the tokens of each are to be told to; None: it teaches nothing."""
        if batch.forward_mode.is_decode():
            return partial(self._decoded, len(batch.reqs), int(batch.seq_lens_cpu.sum()))
        if batch.forward_mode.is_mixed():
            decoding = len(batch.decoding_reqs)
            new, prefix = int(batch.extend_num_tokens) - decoding, int(sum(batch.prefix_lens[:-decoding]))
            context = int(batch.seq_lens_cpu[-decoding:].sum())
            mixed = partial(self._latency.observe_mixed, new, prefix, decoding, context)
            return lambda seconds, _: mixed(seconds)
        if batch.forward_mode.is_extend():
            prefill = partial(self._latency.observe_prefill, int(batch.extend_num_tokens), int(sum(batch.prefix_lens)))
            return lambda seconds, _: prefill(seconds)
        return None

    def _decoded(self, batch: int, context_tokens: int, seconds: float, tokens_each: float) -> None:
        self._tokens_each += (max(1.0, tokens_each) - self._tokens_each) / ACCEPTED_MEMORY
        self._latency.observe_decode(batch, context_tokens, seconds / self._tokens_each)
