"""The replica whose answer is worth the most, less what it costs the streams there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.stream_forecast import IncomingStream, ReplicaView, StepCosts, StreamForecast, forecast_streams

__all__ = ["Value", "worth"]

WORTH_DIGITS = 3
"""Decimals of value and of seconds that count, as in :mod:`andes_sglang.routing.qoe`."""


def worth(new: IncomingStream, view: ReplicaView, forecast: StreamForecast) -> float:
    """What the fleet gains by the new stream on this replica: ``weight * quality * QoE - loss``, where what the streams
    there lose is worth their answers' quality too. Below 0, refusing is worth more."""
    return view.quality * (new.weight * forecast.qoe - forecast.loss)


class _Slower:
    """Costs whose decode steps take ``ratio`` times as long."""

    def __init__(self, costs: StepCosts, ratio: float) -> None:
        self._costs, self._ratio = costs, ratio

    def decode_s(self, batch: float, context_tokens: float, /) -> float:
        return self._ratio * self._costs.decode_s(batch, context_tokens)

    def prefill_s(self, new_tokens: float, prefix_tokens: float, /) -> float:
        return self._costs.prefill_s(new_tokens, prefix_tokens)


class Value:
    """Most predicted value: quality of the model times QoE of its reader, less what that takes from the streams there. Equals
    go where the first token comes soonest, then to the least load. Among replicas of one model it is nearly ``qoe``.

    Greedy by a forecast that sees what is there and not what comes, it would crowd the best model before any reader loses.
    So the forecast is taken with two margins. ``pace_margin``: a token takes this many decode steps, for prefills and
    preemptions come between; 1 where costs are fitted to what streams get, as a gateway's are. ``min_late_ratio``: a prompt
    that waits where every slot is taken waits for KV that is being read from, this many times its prefill and that of those
    before it.

    When: several models may answer, and a weaker answer in time is better than a good one that comes late (ladders; "learned
    best-effort", arXiv 2401.07886, without the learning). Cost: as ``qoe``. horizon_s: how far QoE is projected, seconds,
    > 0. pace_margin, min_late_ratio: >= 1. Raises ``ValueError``.
    """

    name: ClassVar[str] = "value"

    def __init__(self, horizon_s: float = 60.0, pace_margin: float = 2.0, min_late_ratio: float = 20.0) -> None:
        if not (isinstance(horizon_s, int | float) and 0 < horizon_s < math.inf):
            raise ValueError(f"horizon_s must be a number of seconds > 0, got {horizon_s!r}")
        for name, ratio in (("pace_margin", pace_margin), ("min_late_ratio", min_late_ratio)):
            if not (isinstance(ratio, int | float) and 1 <= ratio < math.inf):
                raise ValueError(f"{name} must be a ratio >= 1, got {ratio!r}")
        self._horizon_s, self._pace_margin, self._min_late_ratio = horizon_s, pace_margin, min_late_ratio
        self._turns = RoundRobinRouting()

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        views = self._turns.order(new, views, now_s)
        forecasts = forecast_streams(new, [self._with_margins(view) for view in views], now_s, self._horizon_s)

        def rank(pair: tuple[ReplicaView, StreamForecast]) -> tuple[float, float, int]:
            view, forecast = pair
            return -round(worth(new, view, forecast), WORTH_DIGITS), round(forecast.ttft_s, WORTH_DIGITS), view.load

        return [view for view, _ in sorted(zip(views, forecasts), key=rank)]

    def _with_margins(self, view: ReplicaView) -> ReplicaView:
        crowded = view.pending_tokens > 0 and view.load >= view.slots
        late = max(view.late_ratio, self._min_late_ratio) if crowded else view.late_ratio
        return replace(view, latency=_Slower(view.latency, self._pace_margin), late_ratio=late)
