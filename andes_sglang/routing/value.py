"""The replica whose answer is worth the most, less what it costs the streams there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.stream_forecast import IncomingStream, ReplicaView, StreamForecast, forecast_streams

__all__ = ["Value", "worth"]

WORTH_DIGITS = 3
"""Decimals of value and of seconds that count, as in :mod:`andes_sglang.routing.qoe`."""


def worth(new: IncomingStream, view: ReplicaView, forecast: StreamForecast) -> float:
    """What the fleet gains by the new stream on this replica: ``weight * quality * QoE - loss``, where what the streams
    there lose is worth their answers' quality too. Below 0, refusing is worth more."""
    return view.quality * (new.weight * forecast.qoe - forecast.loss)


class Value:
    """Most predicted value: quality of the model times QoE of its reader, less what that takes from the streams there. Equals
    go where the first token comes soonest, then to the least load. Among replicas of one model it is nearly ``qoe``.

    A prompt that waits where every slot is taken waits for KV that is being read from, not for the prefills before it alone:
    ``min_late_ratio`` is the least that its wait is taken for, relative to those. Without it, replicas of the best model are
    crowded at the start of a burst, before the forecast sees any reader lose.

    When: several models may answer, and a weaker answer in time is better than a good one that comes late (ladders; "learned
    best-effort", arXiv 2401.07886, without the learning). Cost: as ``qoe``. horizon_s: how far QoE is projected, seconds,
    > 0. min_late_ratio: >= 1. Raises ``ValueError``.
    """

    name: ClassVar[str] = "value"

    def __init__(self, horizon_s: float = 60.0, min_late_ratio: float = 20.0) -> None:
        if not (isinstance(horizon_s, int | float) and 0 < horizon_s < math.inf):
            raise ValueError(f"horizon_s must be a number of seconds > 0, got {horizon_s!r}")
        if not (isinstance(min_late_ratio, int | float) and 1 <= min_late_ratio < math.inf):
            raise ValueError(f"min_late_ratio must be a ratio >= 1, got {min_late_ratio!r}")
        self._horizon_s, self._min_late_ratio = horizon_s, min_late_ratio
        self._turns = RoundRobinRouting()

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        views = self._turns.order(new, views, now_s)
        forecasts = forecast_streams(new, [self._crowded(view) for view in views], now_s, self._horizon_s)

        def rank(pair: tuple[ReplicaView, StreamForecast]) -> tuple[float, float, int]:
            view, forecast = pair
            return -round(worth(new, view, forecast), WORTH_DIGITS), round(forecast.ttft_s, WORTH_DIGITS), view.load

        return [view for view, _ in sorted(zip(views, forecasts), key=rank)]

    def _crowded(self, view: ReplicaView) -> ReplicaView:
        if not view.pending_tokens or view.load < view.slots or view.late_ratio >= self._min_late_ratio:
            return view
        return replace(view, late_ratio=self._min_late_ratio)
