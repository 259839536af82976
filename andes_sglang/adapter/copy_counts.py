"""What copies to host memory and back have come to: counted by the host tier of every release of SGLang alike."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from andes_sglang.adapter import copy_streams
from andes_sglang.metrics import HostUse

__all__ = ["CopyCounts"]


@dataclass
class CopyCounts:
    """Since the start. load_s, waited_s: seconds of loads, and that the engine stood still for copies."""

    written_tokens: int = 0
    refused_tokens: int = 0
    loaded_tokens: int = 0
    ahead_tokens: int = 0
    load_s: float = 0.0
    waited_s: float = 0.0
    _loads: list[tuple[int, float]] = field(default_factory=list)

    def write(self, tokens: int, *, written: bool) -> None:
        """``tokens`` were to be copied to host memory; whether they found room there."""
        self.written_tokens += tokens if written else 0
        self.refused_tokens += 0 if written else tokens

    def wait(self, copies: Iterable[Any]) -> None:
        """Until SGLang's records of ``copies`` say that they have ended."""
        started_s = time.perf_counter()
        for copied in copies:
            copied.finish_event.synchronize()
        self.waited_s += time.perf_counter() - started_s

    def measure(self, loads: Iterable[Any]) -> None:
        """``loads`` have ended."""
        for ack in loads:
            if ack.timing_enabled:
                ack.finish_event.synchronize()
                seconds = ack.start_event.elapsed_time(ack.finish_event) / 1e3
                self._loads.append((ack.num_tokens, seconds))
                self.load_s += seconds

    def take_loads(self) -> list[tuple[int, float]]:
        """Tokens and seconds of each load since the last call."""
        loads, self._loads = self._loads, []
        return loads

    def use(self, token_bytes: int, write_stream: Any, *, used_tokens: int, capacity_tokens: int) -> HostUse:
        """token_bytes: of KV. write_stream: that of the copies to host memory. used_tokens, capacity_tokens: there."""
        return HostUse(
            written_bytes=self.written_tokens * token_bytes,
            loaded_bytes=self.loaded_tokens * token_bytes,
            write_s=write_stream.busy_s if isinstance(write_stream, copy_streams.CopyStream) else 0.0,
            load_s=self.load_s,
            waited_s=self.waited_s + copy_streams.waited_s(),
            hit_tokens=self.loaded_tokens,
            ahead_tokens=self.ahead_tokens,
            refused_tokens=self.refused_tokens,
            used_tokens=used_tokens,
            capacity_tokens=capacity_tokens,
        )
