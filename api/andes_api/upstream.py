"""One engine behind the gateway: what is known of it, and what is learned from its streams. No I/O; time is an argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from andes_api.board import Board, ReplicaNumbers
from andes_api.breaker import CircuitBreaker
from andes_api.models import ModelRoute, Offer
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import Readers
from andes_sglang.routing import PrefixTracker, ReplicaView
from andes_sglang.stream_forecast import OpenStreams, StreamForecast, usable_slots
from andes_sglang.waits import FirstTokens

__all__ = ["Upstream"]

DEAD_AFTER_S = 5.0
"""Seconds without an answer to a probe after which an engine is taken for dead; a healthy one answers in milliseconds."""
MAX_VIEW_AGE_S = 0.1
"""Seconds; in less a reader's buffer changes by less than a token."""
MAX_READERS = 256
"""Streams of a replica that a forecast goes through; of more, every second, third, ... counts for as many."""
LATE_MEMORY_S = 10.0
"""Seconds after which a late first token has lost 63 % of its weight: a few health checks."""
LATE_STEP, MIN_LATE_RATIO, MAX_LATE_RATIO = 0.2, 0.2, 50.0
"""Weight of the newest first token, and bounds of one observation (ratios)."""
STREAM_S = 5.0
"""Seconds a stream is taken to last before one has ended."""
MIN_PACE_TOKENS, MIN_PACE_S, MIN_BATCH = 10, 0.2, 0.5
"""Tokens, seconds and mean streams below which the pace of a replica is not observed."""


class Upstream:
    """One engine. now_s in its methods: seconds of the monotonic clock. numbers: of this replica, with other workers."""

    def __init__(
        self,
        url: str,
        settings: GatewaySettings,
        now_s: float = 0.0,
        model: str | None = None,
        *,
        numbers: ReplicaNumbers | None = None,
    ) -> None:
        self.url = url
        self.numbers = Board().replica(url) if numbers is None else numbers
        self.configured = model  # the model that it has by the settings
        self.offers: dict[str, Offer] | None = None  # by model; None: it has not been asked yet; none: it does not say
        self.name = url.partition("://")[2]
        self.breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_cooldown_s)
        self.healthy: bool | None = None
        self.fault: str | None = None  # what it failed by last, until it answers again
        self.unanswered_since_s: float | None = None  # when a probe was sent that got no answer
        self.full_until_s = -math.inf  # it had no room for another stream
        self.drained = False  # by hand
        self.gone = False  # no longer listed
        self.policy: dict[str, Any] | None = None  # name and options, as the engine says; None: it does not say
        self.flags: EngineFlags | None = None  # None: it does not say
        self.takes_readers = True  # until it has no place to tell it of them
        self.streams: set[Stream] = set()  # of readers
        self._pending: set[Stream] = set()  # of them, those without a token
        self.offline: set[Stream] = set()  # those that yield
        self.others = 0
        self.others_offline = 0  # requests of batches that other gateways have there
        self.asked_load = False  # whether it has been asked for its load, answer or not
        self.requests: int | None = None  # all that it holds, by its own count
        self.slots = settings.max_streams_per_replica
        self.context_tokens = 0.0
        self.latency = LatencyModel()
        self.waits = FirstTokens()
        self.prefixes = PrefixTracker()
        self.stream_s = STREAM_S  # how long a stream usually lasts
        self._max_streams = settings.max_streams_per_replica
        self._late_ratio, self._late_at_s = 1.0, 0.0
        self._decoding = 0
        self._decoding_at_s = self._observed_at_s = now_s
        self._decoding_s = 0.0
        self.tokens = 0  # received since its pace was last observed
        self._counted_at_s = -math.inf
        self._rows, self._count = np.empty((6, 0)), 0
        self._prompt_tokens = self._pending_tokens = 0.0

    @property
    def draining(self) -> bool:
        return self.drained or self.gone

    def accepts(self, now_s: float) -> bool:
        """Whether it may get a new stream: listed, not known to be down, breaker closed, not full."""
        return (
            self.healthy is not False
            and not self.draining
            and self.breaker.allows(now_s)
            and self.open_streams < self._max_streams
        )

    @property
    def open_streams(self) -> int:
        """This gateway's streams of readers there, of all its workers."""
        return len(self.streams) + int(self.numbers.streams.others)

    @property
    def held(self) -> int:
        """Requests there, as far as is known: of readers and without one, ours and others'."""
        return self.open_streams + len(self.offline) + self.others + self.others_offline

    def holds(self, stream: Stream) -> bool:
        return stream in self.streams or stream in self.offline

    def is_dead(self, now_s: float) -> bool:
        """Whether it has answered no probe for so long that what it has should go on elsewhere."""
        return self.unanswered_since_s is not None and now_s - self.unanswered_since_s >= DEAD_AFTER_S

    def is_full(self, now_s: float) -> bool:
        """Whether it has said a moment ago that it has no room; it is asked last."""
        return now_s < self.full_until_s

    def failed(self, kind: str, now_s: float, *, enough: bool = False) -> None:
        """It is at fault. ``enough``: it need not happen several times."""
        self.fault = kind
        self.breaker.failed(now_s, enough=enough)

    def succeeded(self) -> None:
        """It has answered a request, or a probe after it was down."""
        self.fault = None
        self.breaker.succeeded()

    def serves(self, route: ModelRoute) -> bool:
        """Whether it has this model, and the adapter."""
        if self.offers:
            return route.model in self.offers and self.offers[route.model].has(route)
        says_nothing = self.offers is not None or self.configured is not None
        return says_nothing and route == ModelRoute(self.configured)

    def asked_for(self, route: ModelRoute, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` with the engine's own name of the model."""
        offer = (self.offers or {}).get(route.model or "")
        if offer is None or body.get("model") == (name := offer.name_of(route)):
            return body
        return {**body, "model": name}

    def view(self, now_s: float, prompt: Prompt, prompt_tokens: float, quality: float = 1.0) -> ReplicaView:
        """This replica as routing and admission see it; its readers are at most 0.1 s old, or have come since. quality: what
        the answers of its model are worth."""
        if now_s - self._counted_at_s > MAX_VIEW_AGE_S:
            self._recount(now_s)
        *readers, weights = self._rows[:, : self._count]
        own, siblings = len(self.streams), int(self.numbers.streams.others)
        if siblings and own:  # connections come to a worker by chance: its readers are a sample of all
            weights = weights * ((own + siblings) / own)
        pending_tokens = self._pending_tokens + self.numbers.pending_tokens.others
        crowded = pending_tokens > 0 or own + siblings + self.others >= self.slots
        return ReplicaView(
            name=self.name,
            latency=self.latency,
            streams=own,
            open_streams=OpenStreams(Readers(*readers), weights).sample(MAX_READERS),
            prompt_tokens=self._prompt_tokens + self.numbers.prompt_tokens.others,
            pending_tokens=pending_tokens,
            others=self.others + siblings,
            slots=self.slots,
            context_tokens=self.context_tokens,
            hit_tokens=prompt.share(self.prefixes) * prompt_tokens,
            late_ratio=self.late_ratio(now_s) if crowded else 1.0,
            quality=quality,
            waits=self.waits.view(now_s),
        )

    def _recount(self, now_s: float) -> None:
        self._counted_at_s, self._count = now_s, 0
        self._prompt_tokens = self._pending_tokens = 0.0
        self._rows = np.empty((6, 2 * len(self.streams) + 64))
        for stream in self.streams:
            self._append(stream)

    def _append(self, stream: Stream) -> None:
        if self._count == self._rows.shape[1]:
            self._counted_at_s = -math.inf
            return
        r = stream.reader
        row = (r.start_s, r.tds, r.delivered, r.end_s, r.lateness_s, stream.expectation.weight)
        self._rows[:, self._count] = row
        self._count += 1
        self._prompt_tokens += stream.prompt_tokens
        self._pending_tokens += 0.0 if stream.tokens else stream.prompt_tokens

    def late_ratio(self, now_s: float) -> float:
        """Observed over predicted time to first token lately, drifting back to 1."""
        return 1.0 + (self._late_ratio - 1.0) * math.exp((self._late_at_s - now_s) / LATE_MEMORY_S)

    # What is learned from its streams

    def finds_no_queue(self, stream: Stream) -> bool:
        """Whether ``stream``, sent now, would find nothing queued ahead of it."""
        before, numbers = self.streams - {stream}, self.numbers
        load = len(before) + int(numbers.streams.others) + self.others
        return load < self.slots and not numbers.pending_tokens.others and all(s.tokens for s in before)

    def opened(self, stream: Stream) -> None:
        if stream.yields:  # readers are forecast as if it were not there: it gives way
            self.offline.add(stream)
        elif stream not in self.streams:
            self.streams.add(stream)
            self._append(stream)
            if not stream.tokens:
                self._pending.add(stream)
            self._tell_siblings(stream.prompt_tokens, 0.0 if stream.tokens else stream.prompt_tokens)

    def awaits(self, stream: Stream, now_s: float) -> None:
        """``stream``, whose first token was forecast, is to be sent now."""
        if stream.streams and not stream.yields and stream.expected is not None and stream.expected.wait is not None:
            self.waits.sent(stream, now_s, stream.expected.wait)

    def _tell_siblings(self, more_prompt_tokens: float, more_pending_tokens: float) -> None:
        numbers = self.numbers
        numbers.streams.set(len(self.streams))
        numbers.prompt_tokens.add(round(more_prompt_tokens))  # whole, so that nothing is left of sums
        numbers.pending_tokens.add(round(more_pending_tokens))

    def first_token(
        self, stream: Stream, waited_s: float, now_s: float, *, expected: StreamForecast | None, alone: bool
    ) -> None:
        """A stream has its first token ``waited_s`` after it was sent. ``alone``: nothing was queued ahead of it. One that
        yields teaches nothing: what it waits for is readers."""
        if stream.yields:
            return
        self._count_decoding(now_s, +1)
        self.waits.first(stream, now_s)
        if stream in self._pending:
            self._pending.remove(stream)
            self._tell_siblings(0.0, -stream.prompt_tokens)
        if alone:
            self.latency.observe_prefill(round(stream.prompt_tokens), 0, waited_s)
        elif expected is not None:
            late = self.late_ratio(now_s)
            base_s = max(1e-4, (expected.ttft_s - expected.interval_s) / late)
            seen = min(MAX_LATE_RATIO, max(MIN_LATE_RATIO, (waited_s - expected.interval_s) / base_s))
            self._late_ratio, self._late_at_s = late + LATE_STEP * (seen - late), now_s

    def closed(self, stream: Stream, sent_s: float, now_s: float, *, started: bool) -> None:
        self.left(stream)
        if started and not stream.yields:
            self._count_decoding(now_s, -1)
            self.stream_s += 0.1 * (now_s - sent_s - self.stream_s)

    def left(self, stream: Stream) -> None:
        """It does not hold ``stream`` any more."""
        self.offline.discard(stream)
        self.waits.gone(stream)
        if stream in self.streams:
            self.streams.remove(stream)
            self._tell_siblings(-stream.prompt_tokens, -stream.prompt_tokens if stream in self._pending else 0.0)
            self._pending.discard(stream)

    def _count_decoding(self, now_s: float, change: int) -> None:
        self._decoding_s += self._decoding * (now_s - self._decoding_at_s)
        self._decoding_at_s = now_s
        self._decoding += change

    def observe_pace(self, now_s: float) -> None:
        """Since the last call: how long its streams took per token, as one observation of a decode step."""
        self._count_decoding(now_s, 0)
        elapsed_s = now_s - self._observed_at_s
        if self.tokens >= MIN_PACE_TOKENS and elapsed_s > MIN_PACE_S:
            batch = self._decoding_s / elapsed_s + self.numbers.streams.others
            sharing = max(1.0, batch / self.slots)
            interval_s = self._decoding_s / self.tokens / sharing
            if batch >= MIN_BATCH:
                self.latency.observe_decode(round(min(batch, self.slots)) or 1, int(self.context_tokens), interval_s)
        self.tokens, self._decoding_s, self._observed_at_s = 0, 0.0, now_s

    def set_load(self, loads: list[dict[str, Any]], sent: int) -> None:
        """What the engine's ``/v1/loads`` says. ``sent``: our streams there when it was asked. Raises ``KeyError``,
        ``TypeError`` or ``ValueError`` where it is not SGLang's."""
        self.requests = sum(int(load["num_running_reqs"]) + int(load["num_waiting_reqs"]) for load in loads)
        ours = max(sent, self.open_streams + len(self.offline))
        self.others = max(0, self.requests - ours - self.others_offline)
        self.context_tokens = float(sum(int(load["num_used_tokens"]) for load in loads))
        max_running = sum(int(load["max_running_requests"]) for load in loads)
        capacity = sum(int(load["max_total_num_tokens"]) for load in loads)
        decoding = sum(int(load["num_running_reqs"]) for load in loads)
        if max_running > 0:
            self.slots = usable_slots(max_running, capacity, self.context_tokens, decoding)

    def describe(self, now_s: float) -> dict[str, Any]:
        """As in ``/fleet/replicas``."""
        rests = not self.breaker.allows(now_s)
        return {
            "name": self.name,
            "model": next(iter(self.offers), None) if self.offers else self.configured,
            "models": sorted({name for offer in (self.offers or {}).values() for name in offer.cards}),
            "healthy": False if rests else self.healthy,
            "reason": self._reason(now_s),
            "draining": self.draining,
            "breaker_open": rests,
            "streams": len(self.streams),
            "waiting": sum(not s.tokens for s in self.streams),
            "offline": len(self.offline),
            "others": self.others,
            "requests": self.requests,
            "slots": self.slots,
            "policy": self.policy,
            "flags": None if self.flags is None else self.flags.to_dict(),
            "context_tokens": int(self.context_tokens),
            "decode_s": round(self.latency.decode_s(max(1, len(self.streams)), self.context_tokens), 5),
        }

    def _reason(self, now_s: float) -> str | None:
        """Why it gets nothing; None where it may."""
        if self.healthy is False:
            return "no answer to a probe" if self.unanswered_since_s is not None else self.fault or "unhealthy"
        if not self.breaker.allows(now_s):
            return self.fault
        return "full" if self.is_full(now_s) else None
