"""How long a conversation stays away while a tool runs, by tool: learned, and told to engines, which keep its KV so long."""

from __future__ import annotations

from collections.abc import Iterable

from andes_sglang.expectations import MAX_RETURNS_S

__all__ = ["ToolTimes"]

UNKNOWN_S = 2.0
"""Seconds of a tool that has never run (our choice)."""
NEW_SHARE = 0.2
"""Of the latest time in the running mean: the last ten or so count (our choice)."""


class ToolTimes:
    """Seconds from the end of an answer that calls a tool to the next round, a running mean by the tool's name."""

    def __init__(self) -> None:
        self._away_s: dict[str, float] = {}

    def learn(self, names: Iterable[str], away_s: float) -> None:
        """A round that has called ``names`` went on after ``away_s``."""
        for name in set(names):
            known_s = self._away_s.get(name, away_s)
            self._away_s[name] = known_s + NEW_SHARE * (away_s - known_s)

    def expected_s(self, names: Iterable[str]) -> float:
        """For an answer that may call any of ``names``: the longest."""
        return min(
            MAX_RETURNS_S, round(max((self._away_s.get(name, UNKNOWN_S) for name in names), default=UNKNOWN_S), 2)
        )
