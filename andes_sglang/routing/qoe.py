"""The replica where the fleet is predicted to lose the least QoE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.stream_forecast import IncomingStream, ReplicaView, StreamForecast, forecast_streams

__all__ = ["QoE"]

COST_DIGITS = 3
"""Decimals of QoE and of seconds that count: a thousandth is below what the forecast can tell apart."""


class QoE:
    """Least predicted loss of QoE: the new stream's own, from its expected first token and pace there, and what it takes
    from the streams there. Equals go where the first token comes soonest (the warmest cache), then to the least load.

    When: the default. Cost: an array expression over all open streams, about 0.1 ms. horizon_s: how far QoE is projected,
    seconds, > 0. Raises ``ValueError``.
    """

    name: ClassVar[str] = "qoe"

    def __init__(self, horizon_s: float = 60.0) -> None:
        if not (isinstance(horizon_s, int | float) and 0 < horizon_s < math.inf):
            raise ValueError(f"horizon_s must be a number of seconds > 0, got {horizon_s!r}")
        self._horizon_s = horizon_s
        self._turns = RoundRobinRouting()

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        views = self._turns.order(new, views, now_s)
        forecasts = forecast_streams(new, views, now_s, self._horizon_s)

        def cost(pair: tuple[ReplicaView, StreamForecast]) -> tuple[float, float, int]:
            view, forecast = pair
            return round(forecast.cost(new.weight), COST_DIGITS), round(forecast.ttft_s, COST_DIGITS), view.load

        return [view for view, _ in sorted(zip(views, forecasts), key=cost)]
