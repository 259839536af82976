"""How long a new stream waits for its first token on one replica: learned from those before it. Pure: time is an argument.

    waits = FirstTokens()
    forecast = waits.view(now_s).forecast(base_s=0.9, alone_s=0.2)      # seconds: expected, and the bounds of 90 %
    waits.sent(stream, now_s, forecast)
    waits.first(stream, later_s)                                        # or waits.gone(stream)

Two explanations of a wait, of which the one that lately fitted better is believed. *Queue*: those ahead without a first token
over the measured rate of first tokens, as in an engine that serves in order (QLM, arXiv 2407.00047, counts tokens ahead over
their rate; requests over theirs hold slots, KV and prefill at once). *Usual*: what those of the streams sent last had whose
prompts take about as long; so it is where a policy serves short prompts first, lets newcomers in at once and takes others
off. Those still waiting count by their age: a wait is at least that long (Kaplan and Meier 1958). The bounds are the
quantiles of what came of earlier forecasts (conformal prediction), so that they hold whatever the engine does, as long as it
goes on as it did.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["FirstTokens", "UsualWaits", "WaitForecast", "WaitView"]

RATE_WINDOW_S = 30.0
"""Seconds over which the rate of first tokens is measured (chosen; 15 and 60 differ by hundredths)."""
USUAL_STREAMS, ALIKE_STREAMS = 120, 16
"""Streams sent last that tell what is usual, and how many of them, the nearest by time alone, tell it of a new one (60
to 200, and 10 to 20, differ by hundredths of the error)."""
JUDGED_STREAMS, CALIBRATION_STREAMS = 40, 80
"""First tokens that tell which explanation fits, and streams sent last that tell how good forecasts are."""
MIN_STREAMS = 8
"""Of them known, before anything is learned."""
UNKNOWN_FACTOR = 3.0
"""Bounds are so far from the forecast while nothing is known."""
REFRESH_S, AGEING_S = 0.25, 2.0
"""Seconds after which what has come since counts, and the age of those that wait: learning takes a fifth of a millisecond."""
MIN_WAIT_S = 1e-3


class WaitForecast(NamedTuple):
    """Seconds. ttft_s: to the first token, expected; it lies between low_s and high_s nine times of ten. queue_s, usual_s: by
    each explanation; alone_s: on an idle engine."""

    ttft_s: float
    low_s: float
    high_s: float
    queue_s: float
    usual_s: float
    alone_s: float


class UsualWaits:
    """Waits of the streams sent last, the last first, shape (N,): seconds alone; seconds waited, and whether that is all."""

    __slots__ = ("_alone_s", "_waits")

    def __init__(self, alone_s: npt.NDArray[np.float64], waits: list[tuple[float, bool]]) -> None:
        self._alone_s, self._waits = np.log(alone_s), waits

    def wait_s(self, alone_s: float) -> float:
        """The median of those that would take about as long alone."""
        alike = np.argsort(np.abs(self._alone_s - math.log(alone_s)), kind="stable")[:ALIKE_STREAMS]
        return quantile([self._waits[int(k)] for k in alike], 0.5)


@dataclass(frozen=True, slots=True)
class WaitView:
    """waiting: streams without a first token; rate_rps: first tokens per second, None: too few to tell. usual: waits of the
    streams sent last, None likewise. queues: whether the queue explains waits better. low, high: of what came of the
    forecasts, over the forecast. offered, offered_rps: streams that lately asked for a place here, sent or not, and how many
    a second; sent_rps: of those sent."""

    waiting: int = 0
    rate_rps: float | None = None
    usual: UsualWaits | None = None
    queues: bool = True
    low: float = 1.0 / UNKNOWN_FACTOR
    high: float = UNKNOWN_FACTOR
    offered: int = 0
    offered_rps: float = 0.0
    sent_rps: float = 0.0

    def forecast(self, base_s: float, alone_s: float) -> WaitForecast:
        """Of a new stream. base_s: seconds to its first token by the engine's costs, what waits to be computed included."""
        queue_s = max(base_s, self.waiting / self.rate_rps) if self.waiting and self.rate_rps else base_s
        usual_s = base_s if self.usual is None else self.usual.wait_s(alone_s)
        ttft_s = queue_s if self.queues else usual_s
        return WaitForecast(ttft_s, self.low * ttft_s, self.high * ttft_s, queue_s, usual_s, alone_s)


@dataclass(slots=True)
class _Sent:
    sent_s: float
    forecast: WaitForecast
    waited_s: float | None = None

    def seen(self, now_s: float) -> tuple[float, bool]:
        """How long it has waited, and whether that is all."""
        return (now_s - self.sent_s, False) if self.waited_s is None else (self.waited_s, True)


class FirstTokens:
    """Of the streams sent to one replica. Clock seconds, never decreasing."""

    def __init__(self) -> None:
        self._last: deque[_Sent] = deque(maxlen=USUAL_STREAMS)
        self._waiting: dict[Hashable, _Sent] = {}
        self._firsts: deque[float] = deque()
        self._offered: deque[float] = deque()
        self._sent: deque[float] = deque()
        self._judged: deque[tuple[float, float]] = deque(maxlen=JUDGED_STREAMS)
        self._since_s: float | None = None
        self._view, self._viewed_s, self._changed = WaitView(), -math.inf, False

    def offered(self, now_s: float) -> None:
        """A stream asks for a place here, and may be refused."""
        self._offered.append(now_s)
        self._changed = True

    def sent(self, stream: Hashable, now_s: float, forecast: WaitForecast) -> None:
        """``stream`` is sent, of which ``forecast`` was said."""
        if self._since_s is None:
            self._since_s = now_s
        self._changed = True
        self._waiting[stream] = sent = _Sent(now_s, forecast)
        self._last.append(sent)
        self._sent.append(now_s)

    def first(self, stream: Hashable, now_s: float) -> None:
        """Its first token has come."""
        if (sent := self._waiting.pop(stream, None)) is not None:
            sent.waited_s = max(MIN_WAIT_S, now_s - sent.sent_s)
            queue_s, usual_s = sent.forecast.queue_s, sent.forecast.usual_s
            self._judged.append((_miss(sent.waited_s, queue_s), _miss(sent.waited_s, usual_s)))
            self._firsts.append(now_s)
            self._changed = True

    def gone(self, stream: Hashable) -> None:
        """It has ended; without a first token it tells nothing more."""
        if (sent := self._waiting.pop(stream, None)) is not None and sent in self._last:
            self._last.remove(sent)
            self._changed = True

    def view(self, now_s: float) -> WaitView:
        """As of a moment ago."""
        age_s = now_s - self._viewed_s
        if (age_s >= REFRESH_S and self._changed) or (age_s >= AGEING_S and self._waiting):
            self._view, self._viewed_s, self._changed = self._learned(now_s), now_s, False
        view = self._view
        if view.waiting == len(self._waiting):
            return view
        return replace(view, waiting=len(self._waiting))

    def _learned(self, now_s: float) -> WaitView:
        for times_s in (self._firsts, self._offered, self._sent):
            while times_s and times_s[0] <= now_s - RATE_WINDOW_S:
                times_s.popleft()
        span_s = min(RATE_WINDOW_S, now_s - (now_s if self._since_s is None else self._since_s))
        rate = len(self._firsts) / span_s if len(self._firsts) >= 3 and span_s > 0 else None
        offered, per_s = len(self._offered), 1.0 / max(1.0, span_s)
        view = WaitView(
            len(self._waiting), rate, offered=offered, offered_rps=offered * per_s, sent_rps=len(self._sent) * per_s
        )
        recent = list(reversed(self._last))
        if len(recent) < MIN_STREAMS:
            return view
        waits = [sent.seen(now_s) for sent in recent]
        by_queue, by_usual = np.median(self._judged or [(0.0, 0.0)], axis=0)
        usual = UsualWaits(np.array([sent.forecast.alone_s for sent in recent]), waits)
        view = replace(view, usual=usual, queues=bool(by_queue <= by_usual))
        errors = [
            (wait / sent.forecast.ttft_s, known) for (wait, known), sent in zip(waits[:CALIBRATION_STREAMS], recent)
        ]
        if sum(known for _, known in errors) < MIN_STREAMS:
            return view
        return replace(view, low=quantile(errors, 0.05), high=quantile(errors, 0.95))


def quantile(values: Iterable[tuple[float, bool]], share: float) -> float:
    """Of values of which some, not known, are only lower bounds (Kaplan and Meier's estimate); at least one value. Where it
    lies beyond the largest bound, half as much again."""
    ordered = sorted(values)
    left, survive = len(ordered), 1.0
    for value, known in ordered:
        if known:
            survive *= 1.0 - 1.0 / left
        if survive <= 1.0 - share + 1e-12:
            return value
        left -= 1
    return 1.5 * ordered[-1][0]


def _miss(wait_s: float, forecast_s: float) -> float:
    """By how much a forecast was wrong, as a logarithm."""
    return abs(math.log(wait_s / max(forecast_s, MIN_WAIT_S)))
