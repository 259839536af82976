"""A replica in real time: the wall clock says how far it may get, and tasks that wait for tokens are woken when they are due.

The replica is always one iteration ahead: the one that runs now, which a request that arrives meanwhile cannot join. Its
tokens go out when it ends. Where this process cannot keep up, several tokens go out at once; ``lag_s`` tells how far it is
behind.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from andes_sglang.metrics import EngineMetrics
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.replica import Replica
from andes_sglang.sim.server.generation import Answer, Generation, Observer
from andes_sglang.sim.server.spans import Spans
from andes_sglang.state import Phase

__all__ = ["DrainingError", "LiveReplica", "QueueFullError"]

_SLICE_S = 0.02
"""Wall-clock time that catching up may take before requests get their turn."""


class QueueFullError(Exception):
    """As many requests wait as may."""


class DrainingError(Exception):
    """The engine takes no new requests."""


class LiveReplica:
    """Serves in real time, ``speed`` simulated seconds a second. max_queued: most requests that wait for their first turn.

    Lengths in tokens; the sums are over all requests that have finished.
    """

    def __init__(
        self,
        engine: EngineModel,
        policy: SchedulingPolicy | None,
        *,
        metrics: EngineMetrics,
        observer: Observer,
        spans: Spans | None = None,
        speed: float = 1.0,
        max_queued: int | None = None,
    ) -> None:
        self.metrics = metrics
        self.replica = Replica(engine, policy, sink=self._finished, metrics=metrics)
        self.draining = self.stopping = False
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.retractions = 0
        self.spans = spans or Spans()
        self._observer = observer
        self._speed = speed
        self._max_queued = max_queued
        self._started_s = time.monotonic()
        self._open: dict[Job, Answer] = {}
        self._submitted = 0
        self._arrival = asyncio.Event()
        self._generated_tokens = 0
        self._window = (0.0, 0)
        self._tokens_per_s = 0.0

    @property
    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return (time.monotonic() - self._started_s) * self._speed

    @property
    def open_answers(self) -> int:
        return len(self._open)

    @property
    def lag_s(self) -> float:
        """Simulated seconds by which this process is too slow; 0 where it keeps up."""
        return max(0.0, self.now_s - self.replica.now_s) if self.replica.open_requests else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._tokens_per_s if self.replica.running else 0.0

    @property
    def cache_hit_ratio(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def waiting(self) -> list[Answer]:
        """Neither in the batch nor parked."""
        return [answer for answer in self._open.values() if answer.job.phase is Phase.WAITING]

    # Requests come and go

    def submit(self, rid: str, specs: Callable[[float], Sequence[RequestSpec]], *, stream: bool) -> Generation:
        """``specs(now_s)``: one per choice. Raises :class:`DrainingError`, :class:`QueueFullError` and
        :class:`~andes_sglang.sim.replica.RefusedError`; then nothing was submitted."""
        if self.draining:
            raise DrainingError
        requested = specs(self.now_s)
        for spec in requested:
            self.replica.check(spec)
        if self._max_queued is not None:
            queued = sum(not answer.has_begun for answer in self.waiting())
            if queued + len(requested) > self._max_queued:
                for _ in requested:
                    self.metrics.finished(0.0)
                raise QueueFullError
        generation = Generation(rid, stream=stream)
        for spec in requested:
            job = self.replica.submit(spec, rid=f"{rid}#{self._submitted}")
            self._submitted += 1
            self._open[job] = Answer(generation, job)
            generation.answers.append(self._open[job])
        self._arrival.set()
        return generation

    @contextmanager
    def attended(self, generation: Generation, receive: Callable[[], Awaitable[Any]]) -> Iterator[None]:
        """Whatever ends the block early, and a client that goes (``receive`` is ASGI's), frees what ``generation`` holds."""
        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(lambda _: self.abort(generation))
        try:
            yield
        finally:
            gone.cancel()
            self.abort(generation)

    def abort(self, generation: Generation) -> None:
        """End ``generation`` and free what it holds; nothing happens to one that is done."""
        for answer in generation.answers:
            job = answer.job
            if self._open.pop(job, None) is None:
                continue
            self.replica.abort(job)
            answer.aborted = True
            self.metrics.finished(job.score().qoe)
            self._observer.ended(answer, self.now_s - job.spec.arrival_s)
            self.spans.ended(answer)
        generation.wake()
        self._arrival.set()

    def hear(self, readers: Mapping[str, int | None]) -> None:
        """What readers have received, by the id of their generation (:func:`andes_sglang.reception.parse`); of one of several
        answers nothing can be said."""
        if self.replica.waits_for_readers:
            self.replica.advance(self.now_s)
        for generation in {answer.generation for answer in self._open.values()}:
            if generation.rid in readers and len(generation.answers) == 1:
                self.replica.hear(generation.answers[0].job, readers[generation.rid])
        self._arrival.set()

    def stop(self) -> None:
        """End all: streams with an error."""
        self.stopping = True
        self.abort_matching()

    def abort_matching(self, rid: str = "") -> None:
        """Those whose id begins with ``rid``."""
        for generation in {answer.generation for answer in self._open.values()}:
            if generation.rid.startswith(rid):
                self.abort(generation)

    def _finished(self, record: RequestRecord) -> None:
        self.metrics.finished(record.qoe)
        self.prompt_tokens += record.prompt_tokens
        self.cached_tokens += min(record.prompt_tokens, record.prefix_hit_tokens or 0)
        self.retractions += record.retractions or 0

    # The clock

    async def run(self) -> None:
        """Serve until cancelled; an error of the policy or the replica ends it."""
        while True:
            if not self.replica.open_requests or self.replica.waits_for_readers:
                self._arrival.clear()
                await self._arrival.wait()
            await asyncio.sleep(max(0.0, self.replica.now_s - self.now_s) / self._speed)
            self._catch_up()

    def _catch_up(self) -> None:
        """Send what is due and begin the iteration that runs now."""
        now_s, until_s = self.now_s, time.monotonic() + _SLICE_S
        while self.replica.now_s <= now_s and self.replica.open_requests:
            self._send()
            soonest_s = math.nextafter(self.replica.now_s, math.inf)
            self.replica.advance(soonest_s)
            if self.replica.now_s == soonest_s:  # nothing to do before the next arrival
                self.replica.advance(now_s)
            if time.monotonic() >= until_s:
                break
        if not self.replica.open_requests:  # at many times real time an answer may begin and end in one advance
            self._send()

    def _send(self) -> None:
        """What the iteration that has just ended generated goes out."""
        at_s = self.replica.now_s
        gaps: dict[float, int] = {}
        done: list[Answer] = []
        for job, answer in self._open.items():
            if answer.off or job.preemptions + job.retractions != answer.stops:
                self._note_stops(job, answer)
            tokens = self.replica.generated(job)
            news = tokens - answer.tokens
            if news <= 0:
                continue
            self._generated_tokens += news
            if answer.tokens:
                gap_s = (at_s - answer.last_s) / news
                gaps[gap_s] = gaps.get(gap_s, 0) + news
            else:
                answer.cached_tokens = job.prefix_hit_tokens
                self._observer.first(answer, at_s - job.spec.arrival_s)
            answer.tokens, answer.last_s = tokens, at_s
            answer.generation.wake()
            if answer.done:
                done.append(answer)
        for gap_s, count in gaps.items():
            self._observer.tokens(count, gap_s)
        for answer in done:
            del self._open[answer.job]
            self._observer.ended(answer, at_s - answer.job.spec.arrival_s)
            self.spans.ended(answer)
        since_s, before = self._window
        if at_s - since_s >= 1.0:
            self._tokens_per_s = (self._generated_tokens - before) / (at_s - since_s)
            self._window = (at_s, self._generated_tokens)

    def _note_stops(self, job: Job, answer: Answer) -> None:
        stops = job.preemptions + job.retractions
        if stops != answer.stops:
            answer.stops, answer.off = stops, True
            self.spans.preempted(answer)
        if answer.off and job.phase is Phase.RUNNING:
            answer.off = False
            self.spans.resumed(answer)
