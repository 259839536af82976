"""The replica with the fewest prompt tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["LeastTokens"]


class LeastTokens:
    """Fewest prompt tokens of open streams, so that a long prompt counts for what it costs; then fewest streams; equals in
    turn.

    When: prompts differ much in length. Cost: a sort. Blind to caches, to readers and to streams of other gateways.
    """

    name: ClassVar[str] = "least_tokens"

    def __init__(self) -> None:
        self._turns = RoundRobinRouting()

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        return sorted(self._turns.order(new, views, now_s), key=lambda view: (view.prompt_tokens, view.load))
