"""Quality of Experience of a text stream (Andes, arXiv 2404.16283, version 2, section 3).

A reader expects the first token ``ttft_s`` after arrival and then digests ``tds`` tokens per second.
Token k is digested at ``digest[k] = max(delivered[k], digest[k-1] + 1/tds)``; QoE is the area under the
digested-token curve over the area under the expected curve, up to the moment the last token is digested.

A token that is not shown is not read: of a model that thinks first, only the tokens of the answer are tokens above, and the
reader, who sees that it thinks, waits for them from ``arrival + ttft_s + thought / think_tds`` on: the thinking tokens so
far, those of the whole thought once a token has been shown.

All state here is kept relative to the ideal start of reading (arrival + ttft): that makes the state O(1) per
stream, lets several tokens be delivered in one step, and keeps sums exact whatever the epoch of the clock.
Every function works on scalars and on numpy arrays of one common shape alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["THINK_TDS", "QoETarget", "ReaderStream", "Readers", "qoe_of_deliveries"]

Array = npt.NDArray[np.float64]
MIN_STALL_S = 1e-6
"""Shorter waits are rounding: today's clock seconds are doubles 2.4e-7 s apart."""
MIN_READING_S = 1e-9
"""Closer to the ideal start both curves' areas are rounding, and QoE is 1."""
THINK_TDS = 25.0
"""Tokens/s: a thought of 500 tokens may take 20 s (assumed: answers after 2 s are taken for less thoughtful than after 9)."""
MIN_TTFT_S, MAX_TTFT_S = 0.0, 1e6
MIN_TDS, MAX_TDS = 1e-3, 1e9
"""Seconds and tokens/s: within these no area or sum overflows, and none loses more than 1e-9 of itself."""


@dataclass(frozen=True, slots=True)
class QoETarget:
    """What the reader of one request expects.

    ``ttft_s``: seconds to the first token, 0 to 1e6. ``tds``: token delivery speed, the speed of reading, tokens/s, 1e-3 to
    1e9. ``think_tds``: tokens/s at which a thought that is not shown may go on before the reader waits, likewise or infinite:
    ``ttft_s`` then holds whatever the model thinks. Defaults: 1 s, 222 words a minute at 1.3 tokens a word, and 25 (assumed).
    Raises ``ValueError`` naming field and value.
    """

    ttft_s: float = 1.0
    tds: float = 4.8
    think_tds: float = THINK_TDS

    def __post_init__(self) -> None:
        if not (_is_number(self.ttft_s) and MIN_TTFT_S <= self.ttft_s <= MAX_TTFT_S):
            raise ValueError(f"ttft must be a number of seconds from 0 to 1e6, got {self.ttft_s!r}")
        if not (_is_number(self.tds) and MIN_TDS <= self.tds <= MAX_TDS):
            raise ValueError(f"tds must be a number of tokens/s from 1e-3 to 1e9, got {self.tds!r}")
        if not (_is_number(self.think_tds) and (MIN_TDS <= self.think_tds <= MAX_TDS or self.think_tds == math.inf)):
            raise ValueError(
                f"think_tds must be a number of tokens/s from 1e-3 to 1e9, or infinite, got {self.think_tds!r}"
            )

    def start_s(self, arrival_s: float, thought_tokens: float = 0) -> float:
        """When the reader begins to wait for the answer to a request that arrived at ``arrival_s`` (clock seconds), for which
        ``thought_tokens`` have been generated that are not shown."""
        return arrival_s + self.ttft_s + thought_tokens / self.think_tds


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class ReaderStream:
    """The reader of one stream: O(1) state, updated as tokens are delivered.

    ``delivered`` tokens so far; ``end_s``, when the reader runs dry, and ``lateness_s``, the sum over tokens of
    digest time minus ideal time, both in seconds relative to ``start_s`` (:meth:`QoETarget.start_s`, clock seconds).
    ``thought_tokens``: generated before the first that was delivered, and not shown.
    """

    __slots__ = (
        "_arrival_s",
        "_target",
        "delivered",
        "end_s",
        "lateness_s",
        "longest_stall_s",
        "stall_s",
        "stalls",
        "start_s",
        "tds",
        "thought_tokens",
    )

    def __init__(self, arrival_s: float, target: QoETarget) -> None:
        self._arrival_s = arrival_s
        self._target = target
        self.start_s = target.start_s(arrival_s)
        self.tds = target.tds
        self.thought_tokens = 0
        self.delivered = 0
        self.end_s = 0.0
        self.lateness_s = 0.0
        self.stalls = 0
        self.stall_s = 0.0
        self.longest_stall_s = 0.0

    def deliver(self, now_s: float, tokens: int = 1) -> None:
        """``tokens`` more tokens reach the user at ``now_s`` (clock seconds, never decreasing)."""
        if tokens <= 0:
            return
        at = now_s - self.start_s
        wait = at - self.end_s
        if wait > MIN_STALL_S and self.delivered:
            self.stalls += 1
            self.stall_s += wait
            self.longest_stall_s = max(self.longest_stall_s, wait)
        digest = max(at, self.end_s)
        self.lateness_s += tokens * (digest - self.delivered / self.tds)
        self.end_s = digest + tokens / self.tds
        self.delivered += tokens

    def think(self, tokens: int) -> None:
        """``tokens`` more were generated that are not shown. The reader's clock waits for those before the first that is."""
        if not self.delivered:
            self.thought_tokens += tokens
            self.start_s = self._target.start_s(self._arrival_s, self.thought_tokens)

    def copy(self) -> ReaderStream:
        """As it is now."""
        other: ReaderStream = object.__new__(ReaderStream)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def stand_still(self, until_s: float) -> float:
        """What kept text from the reader was no fault of who serves it: its clock has stood still, so that it runs dry at
        ``until_s`` (clock seconds) and not before. The seconds for which it has; 0 where it had enough anyway."""
        stood_s = max(0.0, until_s - self.start_s - self.end_s)
        self.start_s += stood_s
        self._arrival_s += stood_s  # for what is thought from now on
        return stood_s

    def buffered_tokens(self, now_s: float) -> float:
        """Delivered tokens that the reader has not digested yet at ``now_s``."""
        return min(float(self.delivered), max(0.0, self.end_s - (now_s - self.start_s)) * self.tds)

    def stalled_s(self, now_s: float) -> float:
        """Seconds that the reader has waited inside the answer, at ``now_s`` of a running stream."""
        return self.stall_s + (max(0.0, now_s - self.start_s - self.end_s) if self.delivered else 0.0)

    def qoe_at(self, now_s: float) -> float:
        """QoE in [0, 1] of the running stream at ``now_s``; the expected curve is not capped by a length."""
        u = now_s - self.start_s
        if u <= MIN_READING_S:
            return 1.0
        area = _digested_area(u, self.tds, self.delivered, self.end_s, self.lateness_s)
        return _clip(float(area) / (0.5 * self.tds * u * u))

    def final_qoe(self) -> float:
        """QoE in [0, 1] of the finished stream; 0 when nothing was ever delivered (shed, failed)."""
        if not self.delivered:
            return 0.0
        n = self.delivered
        return _clip(1.0 - self.lateness_s / (n * self.end_s - n * n / (2 * self.tds)))


def _clip(score: float) -> float:
    return min(1.0, max(0.0, score))


def qoe_of_deliveries(delivery_s: Iterable[float], arrival_s: float, target: QoETarget) -> float:
    """QoE in [0, 1] of a finished stream from its delivery times (clock seconds, in order)."""
    stream = ReaderStream(arrival_s, target)
    for at in delivery_s:
        stream.deliver(at)
    return stream.final_qoe()


def _digested_area(u: Any, tds: Any, n: Any, end: Any, lateness: Any) -> Any:
    """Area under the digested curve up to ``u`` seconds after the ideal start (u > 0).

    Up to the moment the reader runs dry the curve is a ramp of slope tds, so the area of what is still unread
    is a triangle: nothing but count, end and lateness is needed.
    """
    unread_s = np.maximum(end - u, 0.0) if isinstance(u, np.ndarray) else max(end - u, 0.0)
    return n * u - lateness - n * n / (2 * tds) + 0.5 * tds * unread_s * unread_s


class Readers(NamedTuple):
    """Reader states of a whole population: arrays of one shape (N,), fields as in :class:`ReaderStream`."""

    start_s: Array
    tds: Array
    delivered: Array
    end_s: Array
    lateness_s: Array

    @classmethod
    def of(cls, streams: Iterable[ReaderStream]) -> Readers:
        """Columns of ``streams``, in their order, shape (N,)."""
        rows = [(s.start_s, s.tds, s.delivered, s.end_s, s.lateness_s) for s in streams]
        return cls(*np.array(rows, dtype=np.float64).reshape(-1, 5).T.copy())

    def take(self, index: npt.NDArray[Any]) -> Readers:
        """The readers at ``index`` (whole numbers or a mask), shape (M,)."""
        return Readers(*(column[index] for column in self))

    def buffered_s(self, now_s: float) -> Array:
        """Seconds, shape (N,), until each reader runs dry; negative: how long it has been dry (or unstarted)."""
        return self.start_s + self.end_s - now_s

    def qoe_at(self, now_s: float) -> Array:
        """QoE of each running stream at ``now_s``, shape (N,); also: its projection when not served until then."""
        return self._score(now_s, self.delivered, self.end_s, self.lateness_s)

    def deliver(self, at_s: Array, tokens: Array) -> Readers:
        """The readers after ``tokens`` more tokens reached each at ``at_s`` (clock seconds), shapes (N,); as
        :meth:`ReaderStream.deliver` for each."""
        digest = np.maximum(at_s - self.start_s, self.end_s)
        end_s = np.where(tokens > 0, digest + tokens / self.tds, self.end_s)
        lateness_s = self.lateness_s + tokens * (digest - self.delivered / self.tds)
        return self._replace(delivered=self.delivered + tokens, end_s=end_s, lateness_s=lateness_s)

    def waiting(self, now_s: float, dt_s: float) -> Array:
        """QoE at ``now_s + dt_s``, shape (N,), of each stream if it receives nothing meanwhile (version 2, Q_wait)."""
        return self.qoe_at(now_s + dt_s)

    def served(self, now_s: float, dt_s: float, first_s: Any, interval_s: Any) -> Array:
        """QoE at ``now_s + dt_s`` of each stream if it receives a token at ``now_s + first_s + j * interval_s``
        for every j >= 0 within the horizon (version 2, Q_serve). ``first_s`` >= 0 and ``interval_s`` > 0 in seconds:
        scalars, or arrays that broadcast against (N,), a leading axis of candidate batch sizes included.

        The new tokens are digested at ``max(s + j/tds, f + j*interval)``: the maximum of two linear sequences,
        which cross at most once.
        """
        pace = 1.0 / self.tds
        f = now_s + first_s - self.start_s
        x = np.asarray(interval_s, dtype=np.float64)
        m = np.maximum(np.floor((dt_s - first_s) / x + 1e-12) + 1.0, 0.0)
        s = np.maximum(self.end_s, f)
        slower = x - pace
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = np.ceil((s - f) / slower)
        paced = np.where(slower > 0, np.clip(crossing, 0.0, m), m)
        late = m - paced
        digest_sum = paced * s + pace * paced * (paced - 1) / 2 + late * f + x * (m * (m - 1) - paced * (paced - 1)) / 2
        n = self.delivered
        ideal_sum = pace * (n * m + m * (m - 1) / 2)
        last = np.where(late > 0, f + (m - 1) * x, s + (m - 1) * pace)
        end = np.where(m > 0, last + pace, self.end_s)
        return self._score(now_s + dt_s, n + m, end, self.lateness_s + digest_sum - ideal_sum)

    def _score(self, at_s: float, n: Array, end: Array, lateness: Array) -> Array:
        begun = at_s - self.start_s > MIN_READING_S
        u = np.where(begun, at_s - self.start_s, 1.0)
        area = _digested_area(u, self.tds, n, end, lateness)
        return np.where(begun, np.clip(area / (0.5 * self.tds * u * u), 0.0, 1.0), 1.0)
