"""Whose KV is given up first, on the device and in host memory: that of paused streams without a reader; that of finished
conversations, the least recently used before others; then that of the paused stream whose reader runs dry last.

The engine and the simulator ask the same order. Both show it their own nodes of a radix tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = ["NO_READER", "EvictionOrder", "TreeNode"]

NO_READER = float("inf")
"""Seconds: when the reader runs dry of a stream that has none."""


class TreeNode(Protocol):
    """last_access_time: on any clock. parent: None above the root, or the root itself."""

    last_access_time: float

    @property
    def parent(self) -> Any: ...


class EvictionOrder:
    """SGLang's ``EvictionStrategy``: the smallest goes first. ``paused`` names the streams that are to come back: the last
    node of each, and when its reader runs dry (:data:`NO_READER`: it has none). It is asked once after each
    :meth:`look_again`."""

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
