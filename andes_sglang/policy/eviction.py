"""Whose KV is given up first, on the device and in host memory: that of paused streams without a reader; that of finished
conversations, the least recently used before others; then that of what will be needed last: a paused stream when its reader
runs dry, a conversation whose tool runs when it returns.

The engine and the simulator ask the same order. Both show it their own nodes of a radix tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

__all__ = ["NO_READER", "EvictionOrder", "Returns", "TreeNode"]

NO_READER = float("inf")
"""Seconds: when the reader runs dry of a stream that has none."""
MAX_OVERDUE, MIN_OVERDUE_S = 1.0, 1.0
"""A conversation is expected for so many times as long again as it was to stay away, a second at least; then it is a finished
one (our choice)."""
MAX_EXPECTED = 4096
"""Conversations, the last that have ended, that may be expected: every caller may say that his returns, and all are looked at
when KV is given up (our choice; more than an engine has room for)."""


class TreeNode(Protocol):
    """last_access_time: on any clock. parent: None above the root, or the root itself."""

    last_access_time: float

    @property
    def parent(self) -> Any: ...


class EvictionOrder:
    """SGLang's ``EvictionStrategy``: the smallest goes first. ``paused`` names what is to come back: the last node of each,
    and when it is needed: when its reader runs dry (:data:`NO_READER`: it has none), or a conversation returns. It is asked
    once after each :meth:`look_again`."""

    def __init__(self, paused: Callable[[], Iterable[tuple[Any, float]]] = tuple) -> None:
        self._paused = paused
        self._dry_at_s: dict[Any, float] | None = None

    def look_again(self) -> None:
        self._dry_at_s = None

    def get_priority(self, node: TreeNode) -> tuple[int, float]:
        if self._dry_at_s is None:
            self._dry_at_s = {}
            for last, dry_at_s in self._paused():
                if dry_at_s == NO_READER:  # what it shares with others, above its last node, is theirs
                    self._dry_at_s.setdefault(last, NO_READER)
                    continue
                at = last
                while at is not None and self._dry_at_s.get(at, float("inf")) > dry_at_s:
                    self._dry_at_s[at] = dry_at_s
                    at = at.parent
        if node not in self._dry_at_s:
            return 0, node.last_access_time
        dry_at_s = self._dry_at_s[node]
        return (-1, node.last_access_time) if dry_at_s == NO_READER else (1, -dry_at_s)


class Returns:
    """Conversations whose answer has ended and that are to go on soon. Clock seconds."""

    def __init__(self) -> None:
        self._expected: list[tuple[float, float, Any]] = []  # until when, from when on, the last node

    def __len__(self) -> int:
        return len(self._expected)

    def ended(self, node: Any, now_s: float, returns_s: float) -> None:
        """The KV of an answer that has ended now lies up to ``node``; the conversation returns in ``returns_s`` seconds."""
        at_s = now_s + returns_s
        self._expected.append((at_s + max(MIN_OVERDUE_S, MAX_OVERDUE * returns_s), at_s, node))

    def drop(self, now_s: float) -> list[Any]:
        """The last nodes of those that are expected no longer."""
        gone: list[tuple[float, float, Any]] = []
        left: list[tuple[float, float, Any]] = []
        for at, expected in enumerate(self._expected, MAX_EXPECTED - len(self._expected)):
            (left if at >= 0 and expected[0] > now_s else gone).append(expected)
        self._expected = left
        return [node for _, _, node in gone]

    def expected(self) -> Iterator[tuple[Any, float]]:
        """The last node of each, and when it is to return: as :class:`EvictionOrder` asks for them."""
        return ((node, at_s) for _, at_s, node in self._expected)
