"""Each replica in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["RoundRobinRouting"]


class RoundRobinRouting:
    """Each replica in turn.

    When: replicas and requests are alike. Cost: none. Fair in numbers; blind to lengths, prompts and readers.
    """

    name: ClassVar[str] = "round_robin"

    def __init__(self) -> None:
        self._turn = -1

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:  # noqa: ARG002
        self._turn += 1
        first = self._turn % max(1, len(views))
        return [*views[first:], *views[:first]]
