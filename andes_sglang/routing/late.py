"""Which of several replicas is late for the others' sake, where all of them serve in order and none can be in time.

A stream that joins a queue puts off all that come after it, so of a queue that is long already it costs the fleet next to
nothing more. While more comes than can be served, somebody is late; spread evenly all are. As long as few enough would be
late, all that is too much goes to one replica: the one whose loss is the smallest, by the QoE per second that it still
makes. The others keep their newcomers in time, and get all of them again as soon as one of them can.
"""

from __future__ import annotations

from collections.abc import Sequence

from andes_sglang.stream_forecast import IncomingStream, ReplicaView, StreamForecast

__all__ = ["in_time_first"]

IN_TIME = 0.95
"""QoE of an answer that is in time, if it is only late to begin."""


def in_time_first(
    new: IncomingStream, ranked: Sequence[tuple[ReplicaView, StreamForecast]], late_share: float
) -> list[ReplicaView]:
    """The views of ``ranked``, which are in the order in which they are good for ``new``: those first that have it in time;
    where none has, the one that is to be late, if at most ``late_share`` of all streams are then; else as they are."""
    views = [view for view, _ in ranked]
    qoes = [_qoe(new, view, forecast) for view, forecast in ranked]
    late = [qoe < IN_TIME for qoe in qoes]
    if not all(late):
        return [view for _, view in sorted(zip(late, views), key=lambda pair: pair[0])]
    rates = [view.waits.rate_rps or 0.0 for view in views]
    coming_rps = sum(view.waits.sent_rps for view in views)
    worst = min(range(len(views)), key=lambda k: rates[k] * qoes[k])
    in_order = all(view.waits.queues and view.waits.rate_rps for view in views)
    if in_order and sum(rates) - rates[worst] >= (1.0 - late_share) * coming_rps:
        views.insert(0, views.pop(worst))
    return views


def _qoe(new: IncomingStream, view: ReplicaView, forecast: StreamForecast) -> float:
    """Of the whole answer of ``new`` if it is read at its reader's pace once it has begun: half / (half + lateness), half of
    the seconds in which it is read (:mod:`andes_sglang.admission`)."""
    waits, target = view.waits, new.answer_target
    wait_s = forecast.ttft_s
    if waits.queues and waits.rate_rps:
        wait_s = max(wait_s, waits.waiting / waits.rate_rps)
    half_s = 0.5 * new.answer_tokens / target.tds
    return half_s / (half_s + max(0.0, wait_s + forecast.thinking_s - target.ttft_s))
