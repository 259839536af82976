"""A radix cache of prefixes as SGLang keeps it (``mem_cache.radix_cache``): nodes locked by what runs, leaves evicted whole,
the least recently used first, or in the order of a policy.

A sequence is up to two runs of tokens: ids of shared prefix blocks, then a range of positions in a stream of its own (a
request, or the session it continues). A node holds a piece of one run. With a host tier behind it, an evicted node whose
copy is complete can be loaded back. Host memory gives up copies of what the device has evicted, never of what it holds.

    cache = RadixCache()
    node, _ = cache.insert(sequence("r0", 100))
    cache.match(sequence("r0", 120), 119).tokens  # 100
    cache.lock(node)  # nothing on the way to it is evicted
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from andes_sglang.policy.eviction import EvictionOrder

__all__ = ["Match", "Node", "RadixCache", "Run", "sequence"]


class Run(NamedTuple):
    """``ids``: block ids, or ``range(start, end)`` of positions in ``stream``; each stands for ``unit`` tokens."""

    stream: Hashable
    ids: Sequence[int]
    unit: int


def sequence(stream: Hashable, tokens: int, blocks: tuple[int, ...] = (), block_tokens: int = 512) -> list[Run]:
    """The first ``tokens`` tokens of ``stream``, which begins with the shared ``blocks``."""
    shared = blocks[: tokens // block_tokens]
    own = Run(stream, range(len(shared) * block_tokens, tokens), 1)
    return [Run(None, shared, block_tokens), own] if shared else [own]


class Node:
    """last_access_time: accesses so far. on_device: its KV is in the pool. host_s: when its copy in host memory is complete,
    None without one. device_children: children on the device. The root is its own parent."""

    __slots__ = (
        "children",
        "device_children",
        "host_s",
        "ids",
        "last_access_time",
        "locks",
        "on_device",
        "parent",
        "serial",
        "stream",
        "tokens",
        "unit",
    )

    def __init__(self, parent: Node | None, run: Run, used: float, serial: int) -> None:
        self.parent: Node = parent or self
        self.serial = serial
        self.stream, self.ids, self.unit = run
        self.tokens = len(self.ids) * self.unit
        self.children: dict[tuple[Hashable, int], Node] = {}
        self.locks = self.device_children = 0
        self.last_access_time = float(used)
        self.on_device = False
        self.host_s: float | None = None


class Match(NamedTuple):
    """The deepest node on the device, tokens found there, and below it the nodes found in host memory only."""

    node: Node
    tokens: int
    host: list[Node]
    host_tokens: int


class RadixCache:
    """tokens: on the device, of which ``evictable`` are not locked. host_tokens: in host memory. evicted_tokens: since the
    start. order: what is evicted first, on the device and in host memory."""

    def __init__(self, host_capacity_tokens: int = 0, order: EvictionOrder | None = None) -> None:
        self.order = order or EvictionOrder()
        self.root = Node(None, Run(None, (), 1), 0, 0)
        self.tokens = 0
        self.evictable = 0
        self.host_capacity_tokens = host_capacity_tokens
        self.host_tokens = 0
        self.evicted_tokens = 0
        self._clock = 0
        self._serials = itertools.count(1)
        self._leaves: list[tuple[tuple[int, float], int, Node]] = []
        self._host_leaves: list[tuple[tuple[int, float], int, Node]] = []

    def match(self, runs: list[Run], limit_tokens: int, now_s: float = 0.0) -> Match:
        """What is cached of ``runs``, up to ``limit_tokens``; it counts as an access. Nodes are split where it ends."""
        node, found = self.root, 0
        host: list[Node] = []
        host_found = 0
        for child in self._walk(runs, limit_tokens)[0]:
            if child.on_device and not host:
                node, found = child, found + child.tokens
            elif child.host_s is not None and child.host_s <= now_s:
                host.append(child)
                host_found += child.tokens
            else:
                break
        return Match(node, found, host, host_found)

    def insert(self, runs: list[Run]) -> tuple[Node, int]:
        """Put ``runs`` on the device; the last node, and how many of their tokens were there already."""
        node, found = self.root, 0
        path, k, at = self._walk(runs, None)
        for node in path:
            if not node.on_device:
                self._put_on_device(node)
            else:
                found += node.tokens
        for run in runs[k:]:
            if ids := run.ids[at:]:
                fresh = Node(node, Run(run.stream, ids, run.unit), self._clock, next(self._serials))
                node.children[run.stream, ids[0]] = fresh
                self._put_on_device(fresh)
                node = fresh
            at = 0
        self.offer(node)
        return node, found

    def _walk(self, runs: list[Run], limit_tokens: int | None) -> tuple[list[Node], int, int]:
        """Nodes along ``runs``, the last split so that it lies within; in which run they end, and after how many ids."""
        self._clock += 1
        path: list[Node] = []
        node = self.root
        left = limit_tokens if limit_tokens is not None else 1 << 62
        for k, run in enumerate(runs):
            at = 0
            while at < len(run.ids):
                child = node.children.get((run.stream, run.ids[at]))
                if child is None:
                    return path, k, at
                common = min(_common(child.ids, run.ids, at), left // child.unit)
                if not common:
                    return path, k, at
                if common < len(child.ids):
                    child = self._split(child, common)
                child.last_access_time = self._clock
                at += common
                left -= child.tokens
                path.append(child)
                node = child
        return path, len(runs), 0

    def _split(self, node: Node, length: int) -> Node:
        """Cut ``node`` after ``length`` ids; the upper part, which takes its place."""
        parent = node.parent
        upper = Node(parent, Run(node.stream, node.ids[:length], node.unit), node.last_access_time, next(self._serials))
        upper.locks, upper.on_device, upper.host_s = node.locks, node.on_device, node.host_s
        parent.children[node.stream, node.ids[0]] = upper
        node.ids, node.parent = node.ids[length:], upper
        node.tokens -= upper.tokens
        upper.children[node.stream, node.ids[0]] = node
        upper.device_children = int(node.on_device)
        self.order.look_again()
        return upper

    def lock(self, node: Node) -> None:
        """``node`` and everything above it stay on the device until unlocked as often."""
        at = node
        while at is not self.root:
            if not at.locks and at.on_device:
                self.evictable -= at.tokens
            at.locks += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        at = node
        while at is not self.root:
            at.locks -= 1
            if not at.locks and at.on_device:
                self.evictable += at.tokens
                self.offer(at)
            at = at.parent

    def _put_on_device(self, node: Node) -> None:
        node.on_device = True
        node.parent.device_children += 1
        self.tokens += node.tokens
        if not node.locks:
            self.evictable += node.tokens

    def offer(self, node: Node) -> None:
        """A candidate for eviction, unless something on the device hangs below it."""
        if node is not self.root and not node.locks and node.on_device and not node.device_children:
            heapq.heappush(self._leaves, (self.order.get_priority(node), node.serial, node))

    def evict(self, tokens: int) -> int:
        """Free at least ``tokens`` on the device; how many were freed."""
        freed = 0
        while freed < tokens and self._leaves:
            priority, _, node = heapq.heappop(self._leaves)
            if node.locks or not node.on_device or node.device_children:
                continue
            if priority != self.order.get_priority(node):
                self.offer(node)
                continue
            freed += node.tokens
            node.on_device = False
            parent = node.parent
            parent.device_children -= 1
            if node.host_s is None:
                self._drop(node)
            else:
                self._offer_copy(node)
            self.offer(parent)
        self.tokens -= freed
        self.evictable -= freed
        self.evicted_tokens += freed
        return freed

    def _drop(self, node: Node) -> None:
        """Forget a node that is neither on the device nor in host memory; nothing hangs below it, for a child is in neither
        without its parent."""
        del node.parent.children[node.stream, node.ids[0]]

    def back_up(self, node: Node, complete_s: float) -> bool:
        """A copy of ``node`` will be complete in host memory at ``complete_s``; False: there is no room, or none above it."""
        if node.tokens > self.host_capacity_tokens or (node.parent is not self.root and node.parent.host_s is None):
            return False
        while self.host_tokens + node.tokens > self.host_capacity_tokens:
            if not self._host_leaves:
                return False
            priority, _, old = heapq.heappop(self._host_leaves)
            if not self._is_host_leaf(old):
                continue
            if priority != self.order.get_priority(old):
                self._offer_copy(old)
                continue
            self.host_tokens -= old.tokens
            old.host_s = None
            self._drop(old)
            self._offer_copy(old.parent)
        self.host_tokens += node.tokens
        node.host_s = complete_s
        return True

    def _is_host_leaf(self, node: Node) -> bool:
        return node.host_s is not None and not node.on_device and not node.children

    def _offer_copy(self, node: Node) -> None:
        if self._is_host_leaf(node):
            heapq.heappush(self._host_leaves, (self.order.get_priority(node), node.serial, node))


def _common(ids: Sequence[int], run: Sequence[int], at: int) -> int:
    """How many of ``ids`` are those of ``run`` from ``at`` on; the first one is."""
    most = min(len(ids), len(run) - at)
    if isinstance(ids, range) or ids[:most] == run[at : at + most]:
        return most
    return next(k for k in range(most) if ids[k] != run[at + k])
