"""KV that will be needed again, on a radix tree of native code, which evicts the least recently used and does not ask.

So what is wanted is used: looked up once more after other answers have ended, whose KV would otherwise be the newer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

__all__ = ["LOOKUPS_PER_ANSWER", "MAX_TOUCHED", "Touches"]

LOOKUPS_PER_ANSWER = 32
"""For each answer that has ended (our choice: a look-up takes some 0.05 ms on a CPU). More than these are looked up after
several answers; an engine that has room for their KV evicts none of it so soon."""
MAX_TOUCHED = 512
"""Conversations that are looked up, those that return first (our choice)."""


class Touches:
    """look_up: of a request, in the tree. wanted: a copy of each conversation's request (``Req``), and when it returns."""

    def __init__(self, look_up: Callable[[Any], object], wanted: Callable[[], Iterable[tuple[Any, float]]]) -> None:
        self._look_up, self._wanted = look_up, wanted
        self._allowed = 0

    def answer_ended(self) -> None:
        """Its KV is in the tree now, and the most recently used."""
        self._allowed += LOOKUPS_PER_ANSWER

    def look_again(self) -> None:
        """Use what is wanted, once as many look-ups are allowed. The soonest is looked up last."""
        first = sorted(self._wanted(), key=itemgetter(1))[:MAX_TOUCHED] if self._allowed else []
        if not first or self._allowed < len(first):
            return
        self._allowed = 0
        for req, _ in reversed(first):
            self._look_up(req)
