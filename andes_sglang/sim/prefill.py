"""Which waiting requests are prefilled next: SGLang's ``schedule_policy.PrefillAdder`` over a simulated KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from andes_sglang import protocol
from andes_sglang.sim.batch import Batch
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.job_queue import JobQueue
from andes_sglang.sim.kv_pool import KvPool
from andes_sglang.sim.step_clock import StepClock

__all__ = ["AddReqResult", "Admission", "PrefillAdder", "PrefillChunk", "PrefillWork"]


class PrefillChunk(NamedTuple):
    """Tokens of one request in one prefill: ``new`` are computed after ``prefix`` cached ones, of which ``loaded`` come from
    host memory. last: its prompt is complete with it."""

    job: Job
    new: int
    prefix: int
    loaded: int
    last: bool


class PrefillWork(NamedTuple):
    """Sums over the ``requests`` chunks of one prefill. pairs: of query and key tokens, see
    :class:`~andes_sglang.sim.engine.Costs`."""

    new: int
    prefix: int
    loaded: int
    pairs: float
    requests: int

    @classmethod
    def of(cls, chunks: Sequence[PrefillChunk], *, pads_prefix: bool) -> PrefillWork:
        new = prefix = loaded = 0
        pairs = 0.0
        for chunk in chunks:
            new += chunk.new
            prefix += chunk.prefix
            loaded += chunk.loaded
            pairs += chunk.new * (chunk.prefix + 0.5 * chunk.new)
        if pads_prefix:
            pairs = sum(0.5 * (chunk.prefix + chunk.new) ** 2 for chunk in chunks)
        return cls(new, prefix, loaded, pairs, len(chunks))


class AddReqResult(Enum):
    """SGLang's answers of :meth:`PrefillAdder.add_one_req`. CONTINUE: the next request may fit too. NO_TOKEN: KV or slots are
    used up, and stay so until something is freed. OTHER: the chunk is used up."""

    CONTINUE = auto()
    NO_TOKEN = auto()
    OTHER = auto()


class PrefillAdder:
    """The budget of one prefill. slots: requests that may join. chunk_tokens: left of the chunk. reserved_tokens: KV that
    those running may still need and that the chunks so far take. clip_tokens: most tokens of one answer that are reserved.
    chunks: what has been added; chunked: the request whose prompt is not complete with them."""

    def __init__(
        self, pool: KvPool, *, slots: int, chunk_tokens: int, reserved_tokens: float, clip_tokens: int, now_s: float
    ) -> None:
        self.chunks: list[PrefillChunk] = []
        self.chunked: Job | None = None
        self._pool = pool
        self._slots = slots
        self._chunk_tokens = chunk_tokens
        self._reserved_tokens = reserved_tokens
        self._clip_tokens = clip_tokens
        self._now_s = now_s

    def add_chunked_req(self, job: Job) -> None:
        """The next chunk of a prompt that has begun. What those running may still need does not stop it half way."""
        new = job.context_tokens - job.protected_tokens
        room = min(self._chunk_tokens, int(self._pool.available_tokens() - self._reserved_tokens))
        last = new <= room
        if not last:
            new = room if room > 0 else self._chunk_tokens
        self._take(PrefillChunk(job, new, job.protected_tokens, 0, last))

    def add_one_req(self, job: Job) -> AddReqResult:
        """The first chunk of a waiting request, its prefix locked."""
        pool, cache, reserved_tokens = self._pool, self._pool.cache, self._reserved_tokens
        available_tokens = pool.available_tokens()
        if available_tokens <= reserved_tokens or self._chunk_tokens <= 0:
            return AddReqResult.OTHER
        if self._slots <= 0:
            return AddReqResult.NO_TOKEN
        context_tokens = job.context_tokens
        limit_tokens = protocol.max_prefix_hit_tokens(context_tokens)
        match = cache.match(job.runs(context_tokens), limit_tokens, self._now_s)
        new = context_tokens - match.tokens
        wanted = protocol.admission_tokens(new, job.max_tokens - job.generated, self._clip_tokens)
        if wanted >= available_tokens - reserved_tokens:
            return AddReqResult.NO_TOKEN
        cache.lock(match.node)
        if wanted >= pool.available_tokens() - reserved_tokens:
            cache.unlock(match.node)
            return AddReqResult.NO_TOKEN
        found = match.tokens + match.host_tokens
        new -= match.host_tokens
        last = new <= self._chunk_tokens
        job.cache_node, job.protected_tokens = match.node, match.tokens
        job.prefix_hit_tokens += found
        job.resuming_tokens = 0
        self._slots -= 1
        self._take(PrefillChunk(job, new if last else self._chunk_tokens, found, match.host_tokens, last))
        return AddReqResult.CONTINUE if last else AddReqResult.OTHER

    def _take(self, chunk: PrefillChunk) -> None:
        job, new, _, loaded, last = chunk
        answer_tokens = min(job.max_tokens, self._clip_tokens) if last else 0
        self._reserved_tokens += new + loaded + protocol.PAGE_TOKENS + answer_tokens
        self._chunk_tokens -= new
        if not last:
            self.chunked = job
        self.chunks.append(chunk)


class Admission:
    """Forms one prefill after the other. chunked: the request whose prompt is not complete yet. batch_is_full: the last
    request looked at did not fit, and nothing has been freed since. new_token_ratio: share of their possible answers that is
    reserved for those running. All three are SGLang's."""

    def __init__(self, engine: EngineModel, *, queue: JobQueue, batch: Batch, pool: KvPool, clock: StepClock) -> None:
        self.chunked: Job | None = None
        self.batch_is_full = False
        self.new_token_ratio = protocol.INIT_NEW_TOKEN_RATIO
        self._max_running = engine.max_running
        self._chunk_tokens = engine.chunk_tokens
        self._mixed = engine.mixed
        self._queue = queue
        self._batch = batch
        self._pool = pool
        self._clock = clock

    def free_slots(self) -> int:
        """Requests that can begin: neither running, nor parked, nor being prefilled."""
        return self._max_running - len(self._batch.running) - len(self._batch.parked) - (self.chunked is not None)

    @property
    def owed_tokens(self) -> int:
        """KV that the rest of the chunked prompt will take."""
        return self.chunked.context_tokens - self.chunked.protected_tokens if self.chunked is not None else 0

    def form(self, candidates: Sequence[Job], clip_tokens: int) -> list[PrefillChunk]:
        """The chunked prompt first, then ``candidates`` from the front as long as tokens, chunk and slots allow; none
        where KV does not suffice beside the step of the batch. Those taken leave the queue, and the other candidates go to
        its front."""
        if self.chunked is None and (self.batch_is_full or not candidates):
            return []
        slots = self.free_slots()
        if slots <= 0 and self.chunked is None:
            self.batch_is_full = True
            return []
        beside = len(self._batch.running) if self._mixed else 0
        room_tokens = protocol.prefill_room_tokens(self._chunk_tokens, self._pool.available_tokens(), beside, beside)
        if room_tokens < 1:
            return []
        adder = PrefillAdder(
            self._pool,
            slots=slots,
            chunk_tokens=room_tokens,
            reserved_tokens=beside + self.new_token_ratio * self._batch.reserved_tokens(clip_tokens),
            clip_tokens=clip_tokens,
            now_s=self._clock.now_s,
        )
        if self.chunked is not None:
            adder.add_chunked_req(self.chunked)
        if not self.batch_is_full:
            for job in candidates:
                if (result := adder.add_one_req(job)) is not AddReqResult.CONTINUE:
                    self.batch_is_full = result is AddReqResult.NO_TOKEN
                    break
        self.chunked = adder.chunked
        if adder.chunks:
            self._queue.reorder(candidates, {chunk.job for chunk in adder.chunks})
            self._pool.cache.order.look_again()
        return adder.chunks
