"""How requests leave the batch before they have finished, and come back: parked, released, offloaded, retracted, resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from andes_sglang import protocol
from andes_sglang.metrics import EngineMetrics
from andes_sglang.policy.eviction import NO_READER
from andes_sglang.sim.batch import Batch
from andes_sglang.sim.job import Job
from andes_sglang.sim.job_queue import JobQueue
from andes_sglang.sim.kv_pool import KvPool
from andes_sglang.sim.population import Population
from andes_sglang.sim.radix import Node
from andes_sglang.sim.step_clock import StepClock
from andes_sglang.state import Phase

__all__ = ["Preemptor", "paused_kv"]


def paused_kv(waiting: Iterable[Job], population: Population) -> Iterator[tuple[Node, float]]:
    """Where the KV of each stream that waits for its return ends in the cache, and when its reader runs dry: what an
    :class:`~andes_sglang.policy.eviction.EvictionOrder` asks for."""
    for job in waiting:
        if job.stopped is not None:
            yield job.kept_node, NO_READER if job.spec.yields else population.dry_at_s(job.slot)


class Preemptor:
    """Moves requests between batch, parked and queue; queue, batch, KV pool and population are kept consistent."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        batch: Batch,
        pool: KvPool,
        clock: StepClock,
        population: Population,
        metrics: EngineMetrics,
    ) -> None:
        self._queue = queue
        self._batch = batch
        self._pool = pool
        self._clock = clock
        self._population = population
        self._metrics = metrics

    def settle(self) -> None:
        """Send the result in flight now, so that a release loses no token."""
        self._clock.send(self._clock.now_s)
        self._population.follow(list(self._batch.running.values()), self._clock, self._clock.steps)

    def park(self, job: Job) -> None:
        """Out of the batch; it keeps slot and KV."""
        self._population.follow([job.slot], self._clock, self._clock.steps)
        self._batch.leave(job)
        job.phase = Phase.PARKED
        job.preemptions += 1
        job.stopped = "park"
        job.resuming_tokens = 0
        self._batch.parked[job] = job.slot
        self._population.stop(job.slot, self._clock, Phase.PARKED, 0)

    def resume(self, jobs: Sequence[Job]) -> None:
        """Parked requests go back into the batch."""
        for job in jobs:
            del self._batch.parked[job]
            self._metrics.resume("park", 0)
            self._batch.join(job)
            self._population.join(job.slot, self._clock.steps)
            self._population.start(job.slot, self._clock.now_s)

    def release(self, job: Job, *, offload: bool = False) -> str:
        """Its KV goes into the cache, unlocked, and it waits again; how that is counted: release or offload."""
        self._batch.leave(job)
        self._pool.give_up(job, keep=True, offload=offload)
        mode = protocol.off_device_mode("release", job.kept_node.host_s is not None)
        job.preemptions += 1
        self._wait(job, mode, job.context_tokens - 1)
        return mode

    def retract_for_policy(self, chunked: Job | None) -> Job | None:
        """KV has run out under a policy: KV stays in the cache, the parked go first, the youngest before others. chunked: the
        prompt that is half computed; returns it, or None where it waits again."""
        batch = self._batch
        while self._pool.available_tokens() < len(batch.running):
            job = protocol.retraction_victim(
                batch.parked,
                batch.running,
                lambda job: (job.spec.yields, job.spec.arrival_s, job.index),
                prefilling=chunked is not None,
            )
            if chunked is not None and protocol.prompt_makes_way(chunked.spec.yields, job.spec.yields if job else None):
                self._retract(chunked, self._pool.give_up_chunks(chunked))
                chunked = None
                continue
            if job is None:
                break
            batch.leave(job)
            self._pool.give_up(job, keep=True)
            self._retract(job, job.context_tokens - 1)
        return chunked

    def retract_stock(self, *, prefilling: bool) -> float:
        """KV has run out (``ScheduleBatch.retract_decode``): the shortest answer goes first, its KV is dropped; the last
        request stays, unless a prompt is half computed (``prefilling``; SGLang would end). Returns the new-token ratio to go
        on with."""
        batch, pool = self._batch, self._pool
        stay = sorted(
            batch.running,
            key=lambda job: protocol.stock_retraction_rank(batch.generated(job), job.spec.prompt_tokens),
            reverse=True,
        )
        while len(stay) > (0 if prefilling else 1):
            job = stay.pop()
            batch.leave(job)
            pool.give_up(job, keep=False)
            self._retract(job, 0)
            pool.make_free(len(stay) * protocol.SGLANG_RETRACT_DECODE_STEPS)
            if pool.available_tokens() >= len(stay):
                break
        output_tokens = sum(batch.generated(job) for job in stay)
        max_tokens = sum(job.max_tokens for job in stay)
        return protocol.new_token_ratio_after_retraction(output_tokens, max_tokens, len(stay))

    def _retract(self, job: Job, cached_tokens: int) -> None:
        job.retractions += 1
        self._wait(job, "retracted", cached_tokens)
        self._metrics.retraction()

    def _wait(self, job: Job, stopped: str, cached_tokens: int) -> None:
        """Back into the queue, behind all others."""
        job.phase = Phase.WAITING
        job.stopped = stopped
        self._queue.waiting.append(job)
        self._pool.cache.order.look_again()
        self._population.stop(job.slot, self._clock, Phase.WAITING, cached_tokens)
