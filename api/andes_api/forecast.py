"""What a new stream would get on a replica, and what it would cost the readers already there. Pure: closed forms only.

A replica decodes at most ``slots`` streams at a time; beyond that its streams share the slots (a QoE engine takes turns)
while newcomers wait for their prefill turn. QoE is projected as in Andes, section 4, with the core's own formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import QoETarget, Readers, ReaderStream

__all__ = ["Forecast", "Newcomer", "ReplicaView", "forecast"]

_NOBODY = Readers.of([])


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A stream to place. prompt_tokens: estimated; target: what its reader expects; weight: value of its QoE; key: hash of
    how its prompt begins."""

    prompt_tokens: float
    target: QoETarget
    weight: float = 1.0
    key: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaView:
    """A replica as the gateway sees it at one moment.

    streams: those the gateway has open there. readers, weights: they or a sample of them, arrays of shape (N,), weights in
    proportion. pending_tokens: prompt tokens of those that have no token yet. others: streams there that are not ours.
    slots: streams it can decode at a time. context_tokens: KV tokens in use. latency: its costs, fitted from what was seen.
    hit_tokens: prompt tokens of the newcomer it probably has in its cache. late: observed over predicted time to first token.
    """

    name: str
    latency: LatencyModel = field(default_factory=LatencyModel)
    streams: int = 0
    readers: Readers = _NOBODY
    weights: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    pending_tokens: float = 0.0
    others: int = 0
    slots: int = 256
    context_tokens: float = 0.0
    hit_tokens: float = 0.0
    late: float = 1.0

    @property
    def load(self) -> int:
        return self.streams + self.others


@dataclass(frozen=True, slots=True)
class Forecast:
    """ttft_s: expected seconds to the newcomer's first token. interval_s: seconds per token after it. qoe: its QoE at the
    horizon. loss: weighted QoE that the streams already there lose by it."""

    ttft_s: float
    interval_s: float
    qoe: float
    loss: float

    def cost(self, weight: float) -> float:
        """Weighted QoE that the fleet would lose: the newcomer's own shortfall and what it costs the others."""
        return weight * (1.0 - self.qoe) + self.loss


@lru_cache(maxsize=64)  # routing asks for all replicas, admission for the chosen one again
def forecast(new: Newcomer, view: ReplicaView, now_s: float, horizon_s: float) -> Forecast:
    """The newcomer on this replica from ``now_s`` over ``horizon_s`` seconds."""
    own_tokens = max(1.0, new.prompt_tokens - view.hit_tokens)
    interval_s = _interval_s(view, view.load, 0.0)
    crowded_s = _interval_s(view, view.load + 1, new.prompt_tokens)
    prefill_s = view.latency.prefill_s(own_tokens, view.hit_tokens)
    queue_s = view.latency.prefill_s(view.pending_tokens) if view.pending_tokens else 0.0
    ttft_s = view.late * (queue_s + prefill_s) + crowded_s
    qoe = qoe_if(new.target, ttft_s, crowded_s, horizon_s)
    loss = 0.0
    if len(view.weights):
        started_s = np.array(
            [[interval_s], [prefill_s + crowded_s]]
        )  # to the next token: without the newcomer, with it
        first_s = np.where(view.readers.delivered == 0, queue_s, started_s)
        before, after = view.readers.served(now_s, horizon_s, first_s, np.array([[interval_s], [crowded_s]]))
        loss = max(0.0, float(view.weights @ (before - after)))
    return Forecast(ttft_s, crowded_s, qoe, loss)


def qoe_if(target: QoETarget, ttft_s: float, interval_s: float, horizon_s: float) -> float:
    """QoE after ``horizon_s`` of a stream that gets its first token after ``ttft_s`` and one every ``interval_s``."""
    horizon_s = max(horizon_s, 2 * target.ttft_s)
    return float(Readers.of([ReaderStream(0.0, target)]).served(0.0, horizon_s, ttft_s, interval_s)[0])


def _interval_s(view: ReplicaView, streams: int, more_context: float) -> Any:
    if not streams:
        return view.latency.decode_s(1, 0)
    batch = min(streams, view.slots)
    step_s = view.latency.decode_s(batch, (view.context_tokens + more_context) * batch / streams)
    return step_s * max(1.0, streams / view.slots)
