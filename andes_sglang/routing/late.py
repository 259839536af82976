"""Which of several replicas that serve in order is late for the others' sake, while more comes than they can serve.

A stream that joins a queue puts off all that come after it, for as long as the overload lasts; of a queue that is long
already it costs next to nothing more. Spread evenly all streams are late, and soon all are lost. So newcomers go where
they are in time, and what is too much goes to one replica as long as few enough are late there: that whose loss is the
smallest, by the QoE per second that it still makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from andes_sglang.stream_forecast import IN_TIME, IncomingStream, ReplicaView, StreamForecast, final_qoe
from andes_sglang.waits import RATE_WINDOW_S

__all__ = ["in_time_first"]

SIGNIFICANT = 2.0
"""More must come than is served by so many standard deviations of the counts."""
LONGEST_LATE_S = 240.0
"""A replica on which newcomers would wait for longer gets no more for the others' sake (our choice)."""


def in_time_first(
    new: IncomingStream, ranked: Sequence[tuple[ReplicaView, StreamForecast]], sacrifice_share: float
) -> list[ReplicaView]:
    """The views of ``ranked``, which stand as they are good for ``new``: in an overload those first that have it in time;
    where none has, that which is late for the others, if at most ``sacrifice_share`` of all streams are."""
    views = [view for view, _ in ranked]
    if not _overloaded(views):
        return views
    waits_s = [_wait_s(view, forecast) for view, forecast in ranked]
    qoes = [final_qoe(new, wait_s, 0.0) for wait_s in waits_s]
    late = [qoe < IN_TIME for qoe in qoes]
    if not all(late):
        return [views[k] for k in sorted(range(len(views)), key=late.__getitem__)]
    coming_rps, rates = sum(view.waits.sent_rps for view in views), [view.waits.rate_rps or 0.0 for view in views]
    left_rps = sum(rates)
    for k in sorted(range(len(views)), key=lambda k: rates[k] * qoes[k]):
        left_rps -= rates[k]
        if left_rps < (1.0 - sacrifice_share) * coming_rps:
            break
        if waits_s[k] < LONGEST_LATE_S:
            return [views[k], *views[:k], *views[k + 1 :]]
    return views


def _overloaded(views: Sequence[ReplicaView]) -> bool:
    """Whether all serve in order, and significantly more comes than they serve."""
    if not all(view.waits.queues and view.waits.rate_rps for view in views):
        return False
    coming_rps = sum(view.waits.sent_rps for view in views)
    chance = SIGNIFICANT * math.sqrt(2.0 / max(1.0, RATE_WINDOW_S * coming_rps))
    return coming_rps > (1.0 + chance) * sum(view.waits.rate_rps or 0.0 for view in views)


def _wait_s(view: ReplicaView, forecast: StreamForecast) -> float:
    """Until the first token that is shown, with what waits there at the rate at which it goes."""
    waits = view.waits
    queue_s = waits.waiting / waits.rate_rps if waits.rate_rps else 0.0
    return max(forecast.ttft_s, queue_s) + forecast.thinking_s
