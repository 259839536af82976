"""What a new stream would get on a replica, and what it would cost the streams already there. Pure: closed forms only.

    view = ReplicaView("a", streams=3, open_streams=OpenStreams.of(readers, weights), slots=64, context_tokens=4000.0)
    forecast_stream(IncomingStream(500.0, QoETarget(1.0, 4.8)), view, now_s, horizon_s=60.0).cost(weight=1.0)

A replica decodes at most ``slots`` streams at a time; beyond that its streams share the slots (a QoE engine takes turns)
while new ones wait for their prefill. QoE is projected as in Andes, section 4, with the formulas of
:mod:`andes_sglang.qoe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from andes_sglang.latency import LatencyModel
from andes_sglang.lengths import PRIOR_MEDIAN_TOKENS
from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.waits import WaitForecast, WaitView

__all__ = [
    "IN_TIME", "IncomingStream", "OpenStreams", "ReplicaView", "StepCosts", "StreamForecast", "final_qoe", "forecast_stream",
    "forecast_streams", "forecast_wait", "project_qoe", "usable_slots",
]  # fmt: skip

Array = npt.NDArray[np.float64]
IN_TIME = 0.95
"""QoE of an answer that is in time (our choice)."""


class StepCosts(Protocol):
    """Seconds of an engine's iterations: :class:`~andes_sglang.latency.LatencyModel`, or the simulator's true costs."""

    def decode_s(self, batch: float, context_tokens: float, /) -> float:
        """One decode step of ``batch`` requests over ``context_tokens`` KV tokens in all."""
        ...

    def prefill_s(self, new_tokens: float, prefix_tokens: float, /) -> float:
        """The prefill of ``new_tokens`` after a cached prefix."""
        ...


@dataclass(frozen=True, slots=True)
class IncomingStream:
    """A stream to place. prompt_tokens: estimated; target: what its reader expects; weight: value of its QoE relative to
    others; prefix_key: equal for prompts that begin alike. thought_tokens: expected before the answer and not shown.
    answer_tokens: expected of the answer."""

    prompt_tokens: float
    target: QoETarget
    weight: float = 1.0
    prefix_key: int | str = 0
    thought_tokens: float = 0.0
    answer_tokens: float = PRIOR_MEDIAN_TOKENS

    @property
    def answer_target(self) -> QoETarget:
        """What its reader expects of the answer, after the thought."""
        target = self.target
        return replace(target, ttft_s=target.start_s(0.0, self.thought_tokens)) if self.thought_tokens else target


def final_qoe(new: IncomingStream, answer_s: float, interval_s: float) -> float:
    """QoE of the whole answer where its first shown token comes after ``answer_s`` and one every ``interval_s``: 1 less the
    area of lateness over that of the reading."""
    target, tokens, pace_s = new.answer_target, new.answer_tokens, 1.0 / new.target.tds
    first_s, slower_s = answer_s - target.ttft_s, max(0.0, interval_s - pace_s)
    first_late_s, last_late_s = max(0.0, first_s), max(0.0, first_s + tokens * slower_s)
    area = (
        tokens * first_late_s if last_late_s == first_late_s else (last_late_s**2 - first_late_s**2) / (2.0 * slower_s)
    )
    return 1.0 - area / (tokens * last_late_s + 0.5 * tokens**2 * pace_s)


class OpenStreams:
    """Readers of one replica's open streams: states and weights, arrays of shape (N,).

    dry_at_s: when the first of those that have a token runs out of unread text (clock seconds; infinity: none has one).
    max_tds: the fastest reader, tokens/s.
    """

    __slots__ = ("dry_at_s", "max_tds", "readers", "weights")

    def __init__(
        self, readers: Readers, weights: Array, dry_at_s: float | None = None, max_tds: float | None = None
    ) -> None:
        self.readers, self.weights = readers, weights
        if dry_at_s is None:
            dry_s = np.where(readers.delivered > 0, readers.start_s + readers.end_s, np.inf)
            dry_at_s = float(dry_s.min(initial=np.inf))
        self.dry_at_s = dry_at_s
        self.max_tds = float(readers.tds.max(initial=0.0)) if max_tds is None else max_tds

    def sample(self, max_readers: int) -> OpenStreams:
        """These, or of more than ``max_readers`` every second, third, ... that counts for as many."""
        step = -(-len(self) // max_readers)
        if step <= 1:
            return self
        readers = Readers(*(column[::step] for column in self.readers))
        return OpenStreams(readers, self.weights[::step] * step, self.dry_at_s, self.max_tds)

    @classmethod
    def of(cls, readers: Readers) -> OpenStreams:
        """Streams of equal weight."""
        return cls(readers, np.ones(len(readers.tds)))

    def __len__(self) -> int:
        return len(self.weights)


_NO_WAITS = WaitView()
_NONE = OpenStreams.of(Readers.of([]))


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaView:
    """A replica as a gateway sees it at one moment.

    streams: those the gateway has open there; open_streams: their readers, or a sample with weights in proportion.
    prompt_tokens: of those streams, in all; pending_tokens: of those that have no token yet. others: streams there that
    other gateways opened. slots: streams it can decode at a time. context_tokens: KV tokens in use. latency: its costs.
    hit_tokens: prompt tokens of the incoming stream that are probably in its cache. late_ratio: observed over predicted
    time to first token. waits: what its streams tell of the wait for one. quality: what an answer of its model is worth
    relative to the best one's, in (0, 1].
    """

    name: str
    latency: StepCosts = field(default_factory=LatencyModel)
    streams: int = 0
    open_streams: OpenStreams = _NONE
    prompt_tokens: float = 0.0
    pending_tokens: float = 0.0
    others: int = 0
    slots: int = 256
    context_tokens: float = 0.0
    hit_tokens: float = 0.0
    late_ratio: float = 1.0
    quality: float = 1.0
    waits: WaitView = _NO_WAITS

    @property
    def load(self) -> int:
        return self.streams + self.others


class StreamForecast(NamedTuple):
    """ttft_s: expected seconds to the new stream's first token. interval_s: seconds per token after it. qoe: its QoE at
    the horizon, in [0, 1]. loss: weighted QoE that the streams already there lose by it, >= 0. thinking_s: seconds from the
    first token to the first that is shown. wait: for the first token as streams before it tell, for people: by it, replicas
    on which newcomers come first and others starve would get still more of them (docs/benchmarks/waits.md)."""

    ttft_s: float
    interval_s: float
    qoe: float
    loss: float
    thinking_s: float = 0.0
    wait: WaitForecast | None = None

    @property
    def answer_s(self) -> float:
        """Expected seconds to the first token that is shown."""
        return self.ttft_s + self.thinking_s

    def cost(self, weight: float) -> float:
        """Weighted QoE that the fleet would lose: the new stream's own shortfall and what it costs the others."""
        return weight * (1.0 - self.qoe) + self.loss


class _Pace(NamedTuple):
    """Seconds on one replica: until what waits there is computed, per token without and with the new stream, from one
    token of those decoding to the next across the new prefill, and to the new stream's first token."""

    queue_s: float
    alone_s: float
    shared_s: float
    gap_s: float
    ttft_s: float


def forecast_stream(new: IncomingStream, view: ReplicaView, now_s: float, horizon_s: float) -> StreamForecast:
    """The new stream on this replica from ``now_s`` (clock seconds) over ``horizon_s`` seconds."""
    return forecast_streams(new, [view], now_s, horizon_s)[0]._replace(wait=forecast_wait(new, view))


def forecast_streams(
    new: IncomingStream, views: Sequence[ReplicaView], now_s: float, horizon_s: float
) -> list[StreamForecast]:
    """:func:`forecast_stream` for each of ``views``, in order, without ``wait``; all readers in one array expression."""
    paces = [_pace(new, view) for view in views]
    qoes = _own_qoe(new, paces, horizon_s)
    losses = [0.0] * len(views)
    touched = [i for i, (view, pace) in enumerate(zip(views, paces)) if not _unaffected(view.open_streams, pace, now_s)]
    if touched:
        lost = _losses([views[i].open_streams for i in touched], [paces[i] for i in touched], now_s, horizon_s)
        for i, loss in zip(touched, lost):
            losses[i] = loss
    return [
        StreamForecast(p.ttft_s, p.shared_s, qoe, loss, new.thought_tokens * p.shared_s)
        for p, qoe, loss in zip(paces, qoes, losses)
    ]


def forecast_wait(new: IncomingStream, view: ReplicaView) -> WaitForecast:
    """The new stream's first token on this replica."""
    pace = _pace(new, view)
    alone_s = pace.gap_s - pace.shared_s + view.latency.decode_s(1, new.prompt_tokens)
    return view.waits.forecast(pace.ttft_s, alone_s)


def project_qoe(target: QoETarget, ttft_s: float, interval_s: float, horizon_s: float) -> float:
    """QoE after ``horizon_s`` of a stream that gets its first token after ``ttft_s`` and one every ``interval_s``."""
    if ttft_s <= target.ttft_s and interval_s * target.tds <= 1.0:
        return 1.0
    return float(_project(target, np.array([ttft_s]), np.array([interval_s]), horizon_s)[0])


def usable_slots(max_running: int, kv_capacity_tokens: int, context_tokens: float, decoding: int) -> int:
    """Streams an engine can decode at a time: its limit, or fewer where KV holds fewer of the length that decodes now."""
    if not (kv_capacity_tokens and context_tokens and decoding):
        return max_running
    return min(max_running, max(1, int(kv_capacity_tokens / (context_tokens / decoding))))


def _pace(new: IncomingStream, view: ReplicaView) -> _Pace:
    costs, hit = view.latency, view.hit_tokens
    prefill_s = costs.prefill_s(max(1.0, new.prompt_tokens - hit), hit)
    queue_s = costs.prefill_s(view.pending_tokens, 0) if view.pending_tokens else 0.0
    alone_s = _interval_s(view, view.load, 0.0)
    shared_s = _interval_s(view, view.load + 1, new.prompt_tokens)
    ttft_s = view.late_ratio * (queue_s + prefill_s) + shared_s
    return _Pace(queue_s, alone_s, shared_s, prefill_s + shared_s, ttft_s)


def _interval_s(view: ReplicaView, streams: int, more_context: float) -> float:
    if not streams:
        return view.latency.decode_s(1, 0)
    batch = min(streams, view.slots)
    context = (view.context_tokens + more_context) * batch / streams
    return view.latency.decode_s(batch, context) * max(1.0, streams / view.slots)


def _own_qoe(new: IncomingStream, paces: Sequence[_Pace], horizon_s: float) -> list[float]:
    target = new.answer_target
    firsts = [(p.ttft_s + new.thought_tokens * p.shared_s, p.shared_s) for p in paces]
    if all(first_s <= target.ttft_s and interval_s * target.tds <= 1.0 for first_s, interval_s in firsts):
        return [1.0] * len(paces)
    ttft_s, interval_s = np.array(firsts).T
    return [float(qoe) for qoe in _project(target, ttft_s, interval_s, horizon_s)]


def _project(target: QoETarget, ttft_s: Array, interval_s: Array, horizon_s: float) -> Array:
    horizon_s = max(horizon_s, 2 * target.ttft_s)
    return Readers.of([ReaderStream(0.0, target)]).served(0.0, horizon_s, ttft_s, interval_s)


def _unaffected(streams: OpenStreams, pace: _Pace, now_s: float) -> bool:
    """Whether the streams there keep all of their QoE: none runs dry across the new prefill, and each is read no faster
    than it comes, with the new stream as without. Then the loss is 0 without an array."""
    slowest_s = max(pace.alone_s, pace.shared_s)
    next_s = max(pace.alone_s, pace.gap_s)
    return slowest_s * streams.max_tds <= 1.0 and now_s + next_s <= streams.dry_at_s


def _losses(replicas: Sequence[OpenStreams], paces: Sequence[_Pace], now_s: float, horizon_s: float) -> Iterable[float]:
    """Weighted QoE that each replica's streams lose, in order."""
    counts = [len(streams) for streams in replicas]
    readers = Readers(*(np.concatenate(column) for column in zip(*(streams.readers for streams in replicas))))
    weights = np.concatenate([streams.weights for streams in replicas])
    owner = np.repeat(np.arange(len(counts)), counts)
    queue_s, alone_s, shared_s, gap_s = np.array([pace[:4] for pace in paces]).T[:, owner]
    interval_s = np.array([alone_s, shared_s])
    first_s = np.where(readers.delivered == 0, queue_s, np.array([alone_s, gap_s]))
    before, after = readers.served(now_s, horizon_s, first_s, interval_s)
    lost = np.bincount(owner, weights * (before - after), len(counts))
    return [max(0.0, float(loss)) for loss in lost]
