"""The replica with the fewest open streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["LeastLoad"]


class LeastLoad:
    """Fewest open streams, then fewest prompt tokens that wait for their prefill; equals in turn.

    When: replicas are alike and prompts short. Cost: a sort. Blind to caches and readers.
    """

    name: ClassVar[str] = "least_load"

    def __init__(self) -> None:
        self._turns = RoundRobinRouting()

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        return sorted(self._turns.order(new, views, now_s), key=lambda view: (view.load, view.pending_tokens))
