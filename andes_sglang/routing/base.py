"""What a routing policy is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["RoutingPolicy"]


class RoutingPolicy(Protocol):
    """Orders replicas for one stream: the first is where it goes, the next are where it is retried.

    Pure but for whose turn it is: no clock, no chance; ``views`` are not changed. Its options are the keyword arguments of
    its constructor.
    """

    name: ClassVar[str]

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        """All of ``views`` (those that may get new streams), best first. now_s: clock seconds, as in the views."""
        ...
