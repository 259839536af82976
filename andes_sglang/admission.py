"""Which new streams are refused, and when they may come back: the same objects in the gateway and in the simulated fleet.

    admission = Admission()
    refusal = admission.refuse(new, expected, view, Wish(shed_below=0.05), now_s, ticket=key)    # None: let it in

A refused stream scores 0, so it is refused only where letting it in would cost others more than it gains, or where its class
would rather be told at once. What it costs depends on how the engine serves. Where newcomers come first, and an engine that
knows its readers leaves out what would cost too much, a stream that is let in takes nothing that is worth more: a refusal
gains nothing (docs/benchmarks/admission.md). Where first tokens come in order, each stream puts off all that come after it,
for as long as the queue lasts. Of every stream's final QoE,

    q(d) = half / (half + d)                  half: half the seconds in which its answer is read; d: seconds late

so while work comes ``load`` times as fast as it is done, for another ``OVERLOAD_S``, letting in all of it gives (in seconds
of answers that are read in time) the integral of ``q`` over the delays to come, and refusing until the queue has gone gives
what is served without delay after that. The larger of both is done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from typing import NamedTuple

from andes_sglang.stream_forecast import IN_TIME, IncomingStream, ReplicaView, StreamForecast, final_qoe

__all__ = ["MAX_RETRY_AFTER_S", "Admission", "Refusal", "Wish"]

MAX_RETRY_AFTER_S = 120.0
"""Seconds; the official clients obey no longer one."""
KEPT_S = 30.0
"""Seconds for which a promised place is kept."""
OVERLOAD_S = 180.0
"""Seconds for which an overload is taken to go on (chosen). Where it ends within 3 times ``half``, refusing has cost more
than it gained."""
MIN_EXCESS, SIGNIFICANT = 1.0 / 3.0, 3.0
"""More must come than is served by this share, and by so many standard deviations of a count: at a load that the engine can
just carry half a minute's arrivals are often a fourth more (measured), and their queue goes by itself."""

_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""


class Wish(NamedTuple):
    """What a class would rather be told at once. shed_below: that the final QoE would be less; 0: nothing is refused for its
    QoE, nor for others. max_wait_s: that the first token would take longer; None: any wait is better than a refusal."""

    shed_below: float = 0.0
    max_wait_s: float | None = None


class Refusal(NamedTuple):
    """reason: one word for headers and metrics. message: a sentence. retry_after_s: seconds until there is a place."""

    reason: str
    message: str
    retry_after_s: float


class _Place(NamedTuple):
    """at_s: clock seconds, gap_s after the one before it on ``replica``."""

    at_s: float
    replica: str
    gap_s: float


class Admission:
    """Of the streams of one gateway. Clock seconds, never decreasing."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}
        self._places: dict[Hashable, _Place] = {}
        self._beyond = 0.0

    def refuse(
        self,
        new: IncomingStream,
        expected: StreamForecast,
        view: ReplicaView,
        wish: Wish,
        now_s: float,
        *,
        ticket: Hashable | None = None,
    ) -> Refusal | None:
        """The refusal of ``new``, which would get ``expected`` on the replica ``view``, the best there is for it. ticket:
        the same when it comes again; it is let in where a place was promised to it and the time has come."""
        place = self._places.get(ticket) if ticket is not None else None
        if place is not None and place.at_s <= now_s:
            del self._places[ticket]
            if now_s <= place.at_s + KEPT_S:
                return None
            place = None
        found = self._found(new, expected, view, wish)
        if found is None:
            return None
        reason, message, late_s = found
        if place is not None:
            return Refusal(reason, message, max(1.0, place.at_s - now_s))
        return Refusal(reason, message, self._promise_s(view, late_s, now_s, ticket))

    def let_in(self, ticket: Hashable) -> None:
        """Who was refused on one replica is let in on another, and is not told of it: what was promised is free again."""
        place = self._places.pop(ticket, None)
        if place is not None and self._last_s[place.replica] == place.at_s:
            self._last_s[place.replica] -= place.gap_s

    def _found(
        self, new: IncomingStream, expected: StreamForecast, view: ReplicaView, wish: Wish
    ) -> tuple[str, str, float] | None:
        """Reason and message of a refusal, and by how many seconds ``new`` is too early; None: let it in."""
        wait = expected.wait
        if wait is None:
            return None
        wait_s = wait.ttft_s
        qoe = final_qoe(new, wait_s + expected.thinking_s, expected.interval_s)
        if wish.max_wait_s is not None and wait_s > wish.max_wait_s:
            reason, late_s = "predicted_wait", wait_s - wish.max_wait_s
            what = f"the first token of this stream would take {wait_s:.0f} s, more than the {wish.max_wait_s:g} of its class"
        elif wish.shed_below <= 0.0:
            return None
        elif qoe < wish.shed_below:
            reason, late_s = "predicted_qoe", wait_s - _wait_for(new, wish.shed_below)
            what = f"the predicted QoE of this stream, {qoe:.2f}, is below the {wish.shed_below:g} of its class"
        elif _costs_more(new, view, wait_s, qoe):
            reason, late_s = "predicted_loss", wait_s - _wait_for(new, IN_TIME)
            what = "admitting this stream would cost those after it more QoE than it would gain"
        else:
            return None
        return reason, what, late_s

    def _promise_s(self, view: ReplicaView, late_s: float, now_s: float, ticket: Hashable | None) -> float:
        """Seconds until the place that is promised to one who is refused: each has one of its own, as far apart as the engine
        gives first tokens, once what makes them late has gone. Beyond two minutes none is left: those are spread over the
        second one, and take their chance."""
        gap_s = 1.0 / (view.waits.rate_rps or 1.0)
        at_s = max(now_s + max(1.0, late_s), self._last_s.get(view.name, -math.inf) + gap_s)
        if at_s > now_s + MAX_RETRY_AFTER_S:
            self._beyond = (self._beyond + _GOLDEN) % 1.0
            return MAX_RETRY_AFTER_S * (0.5 + 0.5 * self._beyond)
        self._last_s[view.name] = at_s
        if ticket is not None:
            for old in list(itertools.takewhile(lambda key: self._places[key].at_s + KEPT_S < now_s, self._places)):
                del self._places[old]
            self._places[ticket] = _Place(at_s, view.name, gap_s)
        return at_s - now_s


def _half_s(new: IncomingStream) -> float:
    return 0.5 * new.answer_tokens / new.target.tds


def _wait_for(new: IncomingStream, qoe: float) -> float:
    """Seconds to the first token of an answer that has this final QoE and keeps its reader's pace."""
    return new.target.ttft_s + _half_s(new) * (1.0 / qoe - 1.0)


def _costs_more(new: IncomingStream, view: ReplicaView, wait_s: float, qoe: float) -> bool:
    """Whether those after it lose more than it gains. One that is in time is never refused for them: the engine would stand
    idle."""
    waits = view.waits
    if not waits.queues or not waits.rate_rps or qoe >= IN_TIME:
        return False
    load = waits.offered_rps / waits.rate_rps
    if load <= 1.0 + max(MIN_EXCESS, SIGNIFICANT / math.sqrt(max(1, waits.offered))):
        return False
    half_s, late_s = _half_s(new), max(0.0, wait_s - new.target.ttft_s)
    more_s = (load - 1.0) * OVERLOAD_S
    with_all_s = load / (load - 1.0) * half_s * math.log1p(more_s / (half_s + late_s))
    without_s = max(0.0, OVERLOAD_S - late_s)
    weights = view.open_streams.weights
    usual = float(weights.mean()) if len(weights) else 1.0
    return new.weight * with_all_s < usual * without_s
