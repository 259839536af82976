"""How requests ended in the last hour, by model and class and minute by minute, for people to look at. Refusals are kept
apart from what was served, however badly: both score 0 and mean different things to the one who runs a fleet."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from andes_sglang.sketch import Sketch

__all__ = ["History", "Kind", "Tally"]

SLICE_S = 60.0
MAX_SLICES = 60
MAX_KINDS = 64
"""Models and classes told apart in a minute; a fleet has fewer of both together."""
OTHER = "other"
Kind = tuple[str, str]
"""Model and class."""
_SERVED = ("done", "abandoned")


@dataclass(slots=True)
class Tally:
    """outcomes: as in ``/fleet/demand``, how many of each. qoe: of streams that were served to their end or until the reader
    left. retries, moves: tries on another replica before and after a stream had begun."""

    outcomes: Counter[str] = field(default_factory=Counter)
    qoe: Sketch = field(default_factory=Sketch)
    retries: int = 0
    moves: int = 0

    @classmethod
    def merged(cls, tallies: Iterable[Tally]) -> Tally:
        found = list(tallies)
        whole = cls(qoe=Sketch.merged(tally.qoe for tally in found))
        for tally in found:
            whole.outcomes += tally.outcomes
            whole.retries += tally.retries
            whole.moves += tally.moves
        return whole

    def to_dict(self) -> dict[str, Any]:
        """Counts, and of QoE the figures alone."""
        figures = self.qoe.to_dict()
        return {
            **{name: self.outcomes[name] for name in ("done", "abandoned", "error", "shed", "failed")},
            "qoe": {name: figures[name] for name in ("count", "mean", "p5", "p50", "share_095")},
            "retries": self.retries,
            "moves": self.moves,
        }


class History:
    """now_s: seconds of one clock, never decreasing."""

    def __init__(self) -> None:
        self._slices: deque[tuple[float, dict[Kind, Tally]]] = deque(maxlen=MAX_SLICES)

    def tally(self, now_s: float, kind: Kind) -> Tally:
        """To count a request in that ends now."""
        start_s = now_s - now_s % SLICE_S
        if not self._slices or self._slices[-1][0] < start_s:
            self._slices.append((start_s, {}))
        kinds = self._slices[-1][1]
        if kind not in kinds and len(kinds) >= MAX_KINDS:
            kind = (OTHER, OTHER)
        return kinds.setdefault(kind, Tally())

    def add(
        self, now_s: float, kind: Kind, outcome: str, qoe: float | None, *, retries: int = 0, moves: int = 0
    ) -> None:
        """A request has ended."""
        tally = self.tally(now_s, kind)
        tally.outcomes[outcome] += 1
        tally.retries += retries
        tally.moves += moves
        if qoe is not None and outcome in _SERVED:
            tally.qoe.add(qoe)

    def of(self, now_s: float, window_s: float) -> dict[Kind, Tally]:
        """By kind, what ended in the last ``window_s`` seconds (to the minute)."""
        found: dict[Kind, list[Tally]] = {}
        for start_s, kinds in self._slices:
            if start_s + SLICE_S > now_s - window_s:
                for kind, tally in kinds.items():
                    found.setdefault(kind, []).append(tally)
        return {kind: Tally.merged(found[kind]) for kind in sorted(found)}

    def minutes(self, now_s: float) -> dict[float, Tally]:
        """Minute by minute, the oldest first: when it began, and all that ended in it."""
        return {start_s: Tally.merged(kinds.values()) for start_s, kinds in self._slices
                if start_s + SLICE_S > now_s - MAX_SLICES * SLICE_S}  # fmt: skip
