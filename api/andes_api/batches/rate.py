"""How fast work without a reader gets done: tokens per second while there was some, per model. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["OfflineRate"]

SLICE_S, WINDOW_S = 10.0, 300.0
"""Seconds: a rate is that of the last five minutes, a few answers of long requests."""


@dataclass(slots=True)
class _Slice:
    start_s: float
    tokens: int = 0
    active_s: float = 0.0


class OfflineRate:
    """Of one model. now_s: clock seconds. done: tokens of prompts and answers since the beginning."""

    def __init__(self) -> None:
        self.done = 0
        self._slices: deque[_Slice] = deque(maxlen=int(WINDOW_S / SLICE_S))

    def add(self, now_s: float, tokens: int = 0, active_s: float = 0.0) -> None:
        """``tokens`` are done; for ``active_s`` more seconds there was something to do."""
        start_s = now_s - now_s % SLICE_S
        if not self._slices or self._slices[-1].start_s < start_s:
            self._slices.append(_Slice(start_s))
        self._slices[-1].tokens += tokens
        self._slices[-1].active_s += active_s
        self.done += tokens

    def measured(self, now_s: float) -> tuple[float, float]:
        """Tokens/s of the last ``WINDOW_S`` seconds, and for how many of them there was something to do."""
        recent = [s for s in self._slices if s.start_s > now_s - WINDOW_S]
        active_s = sum(s.active_s for s in recent)
        return sum(s.tokens for s in recent) / active_s if active_s > 0 else 0.0, active_s
