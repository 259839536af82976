"""Prompts that begin alike go to the same replica."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import ClassVar

from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["PrefixAffinity", "PrefixTracker"]


class PrefixAffinity:
    """Prompts that begin alike go to the same replica (rendezvous hashing), unless it holds ``bound`` times its share of
    all streams: then to the next in that prompt's own order (consistent hashing with bounded loads, arXiv 1608.01350).

    When: many requests share long prefixes. Cost: a hash per replica. A popular prefix spreads only at the bound; blind to
    lengths and readers. bound: ratio to the mean load, >= 1. Raises ``ValueError``.
    """

    name: ClassVar[str] = "prefix"

    def __init__(self, bound: float = 1.25) -> None:
        if not (isinstance(bound, int | float) and 1.0 <= bound < math.inf):
            raise ValueError(f"bound must be a ratio >= 1, got {bound!r}")
        self._bound = bound

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:  # noqa: ARG002
        max_load = math.ceil(self._bound * (sum(view.load for view in views) + 1) / max(1, len(views)))
        return sorted(views, key=lambda view: (view.load >= max_load, _rank(new.prefix_key, view.name)))


def _rank(key: int | str, name: str) -> bytes:
    return hashlib.blake2b(f"{key}/{name}".encode(), digest_size=8).digest()


class PrefixTracker:
    """Prompt blocks that a replica probably still has in its cache: the last ``max_blocks`` it was sent."""

    def __init__(self, max_blocks: int = 20_000) -> None:
        self._blocks: OrderedDict[Hashable, None] = OrderedDict()
        self._max_blocks = max_blocks

    def add(self, blocks: Iterable[Hashable]) -> None:
        """A prompt of these blocks was sent there; each block stands for itself and all before it."""
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def matched(self, blocks: Iterable[Hashable]) -> int:
        """How many of ``blocks``, from the first, were seen."""
        count = 0
        for block in blocks:
            if block not in self._blocks:
                break
            count += 1
        return count
