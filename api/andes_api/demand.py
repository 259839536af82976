"""Recent requests and what readers got: the record that capacity is planned from, bounded in memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Self

from andes_sglang.expectations import ReaderExpectation
from andes_sglang.sketch import DurationSketch, Sketch

__all__ = ["DemandLog", "DemandRecord", "Experience", "QoEWindow", "Served"]

SLICE_S = 10.0
"""Seconds of a slice of the window: three per scrape of Prometheus at its usual 30 s."""
MAX_SLICES = 360
"""One hour, the longest ``window_s`` of ``/fleet/qoe``."""


@dataclass(slots=True)
class DemandRecord:
    """One request. arrival_s: Unix seconds. prompt_tokens: estimated until the engine has said. reader: what it says of its
    reader, clamped. reason_tokens: of a thought before the answer, not shown, that took thinking_s until the first token that
    was. ttft_s, qoe: None where there is none (not streamed, no token yet). outcome: open, done, shed, failed,
    abandoned, error. model: the one asked for, None while no engine has said; adapter: LoRA adapter on it; fallback: the
    model that answered instead. ladder: the one asked for, None where it was a model: then ``model`` is who answers, or the
    best one while that is open, and quality what the owner says its answers are worth."""

    arrival_s: float
    class_name: str
    stream: bool
    prompt_tokens: int
    reader: ReaderExpectation
    output_tokens: int = 0
    reason_tokens: int = 0
    thinking_s: float | None = None
    ttft_s: float | None = None
    qoe: float | None = None
    outcome: str = "open"
    model: str | None = None
    adapter: str | None = None
    fallback: str | None = None
    ladder: str | None = None
    quality: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in ``/fleet/demand`` and the access log; docs/gateway.md describes every field."""
        target = self.reader.target
        return {
            "arrival_s": self.arrival_s,
            "class": self.class_name,
            "model": self.model,
            "adapter": self.adapter,
            "fallback": self.fallback,
            "ladder": self.ladder,
            "quality": self.quality,
            "stream": self.stream,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "reason_tokens": self.reason_tokens,
            "ttft_target_s": target.ttft_s,
            "tds": target.tds,
            "think_tds": None if target.think_tds == math.inf else target.think_tds,
            "weight": self.reader.weight,
            "yield": self.reader.yields,
            "expected_tokens": self.reader.expected_tokens,
            "thinking_s": None if self.thinking_s is None else round(self.thinking_s, 4),
            "ttft_s": None if self.ttft_s is None else round(self.ttft_s, 4),
            "qoe": None if self.qoe is None else round(self.qoe, 4),
            "outcome": self.outcome,
        }


class DemandLog:
    """The last ``max_records`` requests, in order of arrival. begins_s: what arrived before it is not there, Unix seconds."""

    def __init__(self, max_records: int, begins_s: float | None = None) -> None:
        self._records: deque[DemandRecord] = deque(maxlen=max_records)
        self._begins_s = begins_s

    def add(self, record: DemandRecord) -> None:
        self._records.append(record)

    def since(self, arrival_s: float, model: str | None = None) -> list[DemandRecord]:
        """Those that arrived after ``arrival_s`` (Unix seconds), in order; of ``model`` where one is given."""
        recent = []
        for record in reversed(self._records):
            if record.arrival_s <= arrival_s:
                break
            if model is None or record.model == model:
                recent.append(record)
        return recent[::-1]

    def last(self, count: int) -> list[DemandRecord]:
        """The newest ``count`` of them, the newest first."""
        return list(islice(reversed(self._records), count))

    @property
    def complete_since_s(self) -> float | None:
        """The oldest arrival when records have been dropped: before it the record is not complete; None when it is."""
        return self._records[0].arrival_s if len(self._records) == self._records.maxlen else self._begins_s


class Served(NamedTuple):
    """What one reader got. ttft_s: to the first token that is shown, inf: it never comes, None: not known yet; stall_s: for
    how long it waited inside the answer."""

    qoe: float
    ttft_s: float | None
    stall_s: float


class Experience(NamedTuple):
    """What the readers of several streams got."""

    qoe: Sketch
    ttft_s: DurationSketch
    stall_s: DurationSketch

    @classmethod
    def none(cls) -> Self:
        return cls(Sketch(), DurationSketch(), DurationSketch())

    def add(self, served: Served) -> None:
        """One stream; its stalls are not known before its first token."""
        self.qoe.add(served.qoe)
        if served.ttft_s is not None:
            self.ttft_s.add(served.ttft_s)
            self.stall_s.add(served.stall_s)

    @classmethod
    def merged(cls, parts: Iterable[Experience]) -> Self:
        found = list(parts)
        return cls(
            Sketch.merged(part.qoe for part in found),
            DurationSketch.merged(part.ttft_s for part in found),
            DurationSketch.merged(part.stall_s for part in found),
        )


class QoEWindow:
    """What the streams that ended in the last hour gave their readers, per model and class, in slices of ten seconds."""

    def __init__(self) -> None:
        self._slices: deque[tuple[float, dict[tuple[str | None, str], Experience]]] = deque(maxlen=MAX_SLICES)

    def add(self, now_s: float, model: str | None, class_name: str, served: Served) -> None:
        """A stream ends now."""
        start_s = now_s - now_s % SLICE_S
        if not self._slices or self._slices[-1][0] < start_s:
            self._slices.append((start_s, {}))
        self._slices[-1][1].setdefault((model, class_name), Experience.none()).add(served)

    def of(self, now_s: float, window_s: float) -> dict[tuple[str | None, str], Experience]:
        """Per model and class, of what ended in the last ``window_s`` seconds (to the slice)."""
        recent = [kinds for start_s, kinds in self._slices if start_s + SLICE_S > now_s - window_s]
        found: dict[tuple[str | None, str], list[Experience]] = {}
        for kinds in recent:
            for kind, experience in kinds.items():
                found.setdefault(kind, []).append(experience)
        return {kind: Experience.merged(parts) for kind, parts in found.items()}
