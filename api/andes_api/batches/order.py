"""In which order the lines of a batch go to which engine, so that prompts that begin alike share a cache. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from andes_api.batches.lines import Line

__all__ = ["PrefixOrder"]

FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0


class PrefixOrder:
    """Lines of one model, sorted by prompt: the depth-first order of the trie of their prompts, in which the cache of one
    engine is hit most. Every engine goes through a stretch of it; one whose stretch is done takes half of the longest left.
    now_s: clock seconds."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = sorted(lines, key=lambda line: (line.key, line.number))
        self._stretches: dict[str, tuple[int, int]] = {"": (0, len(self._lines))}
        self._again: list[tuple[float, int, Line]] = []
        self._tries: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._again) or any(at < end for at, end in self._stretches.values())

    def __len__(self) -> int:
        """Those that no engine has now."""
        return sum(end - at for at, end in self._stretches.values()) + len(self._again)

    def take(self, engine: str, now_s: float) -> Line | None:
        """The next one for ``engine``; None where there is none now."""
        if self._again and self._again[0][0] <= now_s:
            return heapq.heappop(self._again)[2]
        at, end = self._stretches.get(engine, (0, 0))
        if at == end:
            at, end = self._split(engine)
        if at == end:
            return None
        self._stretches[engine] = (at + 1, end)
        return self._lines[at]

    def put_back(self, line: Line, now_s: float, *, failed: bool = True) -> None:
        """It was not answered: it is tried again, later each time it ``failed``."""
        tries = self._tries.get(line.number, 0)
        wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(tries, 10)) if failed else 0.0
        self._tries[line.number] = tries + failed
        heapq.heappush(self._again, (now_s + wait_s, line.number, line))

    def drain(self) -> list[Line]:
        """All that no engine has, which is then none."""
        left = [line for at, end in self._stretches.values() for line in self._lines[at:end]]
        left += [line for _, _, line in self._again]
        self._stretches, self._again = {}, []
        return left

    def _split(self, engine: str) -> tuple[int, int]:
        """The second half of the longest stretch, or all of one that nothing goes through."""
        self._stretches.pop(engine, None)
        if not self._stretches:
            return 0, 0
        longest = max(self._stretches, key=lambda name: self._stretches[name][1] - self._stretches[name][0])
        at, end = self._stretches[longest]
        middle = at if longest == "" or end - at == 1 else (at + end + 1) // 2
        self._stretches[longest] = (at, middle)
        return middle, end
