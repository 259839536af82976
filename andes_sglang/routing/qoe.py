"""The replica where the fleet is predicted to lose the least QoE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from andes_sglang.routing.late import in_time_first
from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.stream_forecast import IncomingStream, ReplicaView, StreamForecast, forecast_streams

__all__ = ["QoE"]

COST_DIGITS = 3
"""Decimals of QoE and of seconds that count: a thousandth is below what the forecast can tell apart."""


class QoE:
    """Least predicted loss of QoE: the new stream's own, from its expected first token and pace there, and what it takes
    from the streams there. Equals go where the first token comes soonest (the warmest cache), then to the least load.

    Before engines that serve in order, and while more comes than they can serve, newcomers go where they are in time, and
    what is too much to one replica (:mod:`andes_sglang.routing.late`).

    When: the default. Cost: an array expression over all open streams, about 0.1 ms. horizon_s: how far QoE is projected,
    seconds, > 0. sacrifice_share: the most streams that may be late for the others' sake, a share in [0, 1); 0: all are late
    alike. Raises ``ValueError``.
    """

    name: ClassVar[str] = "qoe"

    def __init__(self, horizon_s: float = 60.0, sacrifice_share: float = 1.0 / 3.0) -> None:
        if not (isinstance(horizon_s, int | float) and 0 < horizon_s < math.inf):
            raise ValueError(f"horizon_s must be a number of seconds > 0, got {horizon_s!r}")
        if not (isinstance(sacrifice_share, int | float) and 0 <= sacrifice_share < 1):
            raise ValueError(f"sacrifice_share must be a share >= 0 and < 1, got {sacrifice_share!r}")
        self._horizon_s, self._sacrifice_share = horizon_s, sacrifice_share
        self._turns = RoundRobinRouting()

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        views = self._turns.order(new, views, now_s)
        forecasts = forecast_streams(new, views, now_s, self._horizon_s)

        def cost(pair: tuple[ReplicaView, StreamForecast]) -> tuple[float, float, int]:
            view, forecast = pair
            return round(forecast.cost(new.weight), COST_DIGITS), round(forecast.ttft_s, COST_DIGITS), view.load

        ranked = sorted(zip(views, forecasts), key=cost)
        if not self._sacrifice_share or len(ranked) < 2:
            return [view for view, _ in ranked]
        return in_time_first(new, ranked, self._sacrifice_share)
