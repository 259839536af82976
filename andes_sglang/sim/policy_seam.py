"""Where a replica meets its policy: when the policy is asked, what it is shown, and what becomes of its decision.

As in the engine's adapter (:mod:`andes_sglang.protocol` holds the rules of both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from andes_sglang import protocol
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics
from andes_sglang.policy import SchedulingPolicy, ask
from andes_sglang.policy.drafting import with_drafts
from andes_sglang.policy.yielding import decide_readers_first
from andes_sglang.sim.batch import Batch
from andes_sglang.sim.drafter import Drafter
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.job_queue import JobQueue
from andes_sglang.sim.kv_pool import KvPool
from andes_sglang.sim.population import Population
from andes_sglang.sim.preemption import Preemptor
from andes_sglang.sim.prefill import Admission
from andes_sglang.sim.step_clock import StepClock
from andes_sglang.state import Decision, Drafting, Phase, PreemptionMode, SchedulerState

__all__ = ["PolicySeam"]


class PolicySeam:
    """decisions: how often the policy was asked. interval_s: between decode steps it is asked no more often than that; after
    a chunk of prefill it is always asked."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        engine: EngineModel,
        *,
        by_rid: Mapping[str, Job],
        queue: JobQueue,
        batch: Batch,
        pool: KvPool,
        clock: StepClock,
        population: Population,
        admission: Admission,
        preemptor: Preemptor,
        latency: LatencyModel,
        metrics: EngineMetrics,
        interval_s: float,
        drafter: Drafter | None = None,
    ) -> None:
        self.policy = policy
        self.decisions = 0
        self._max_running = engine.max_running
        self._running_bound = protocol.running_bound(engine.max_running, engine.chunk_tokens, engine.mixed)
        self._chunk_tokens = engine.chunk_tokens
        self._decision_s = engine.decision_s
        self._by_rid = by_rid
        self._queue = queue
        self._batch = batch
        self._pool = pool
        self._clock = clock
        self._population = population
        self._admission = admission
        self._preemptor = preemptor
        self._latency = latency
        self._metrics = metrics
        self._interval_s = interval_s
        self._costs = engine.costs
        self._drafter = drafter if engine.drafts_by_reader else None
        self._due_s = 0.0
        self._lookup_cursor = 0

    def is_due(self) -> bool:
        """Whether the policy is asked before this iteration."""
        batch = self._batch
        if self._interval_s and self._clock.now_s < self._due_s and batch.running:
            return False
        spare_tokens = self._pool.available_tokens() - self._admission.owed_tokens
        waiting, parked, behind = len(self._queue.waiting), len(batch.parked), self._population.behind
        if behind:
            waiting, parked = sum(map(self.can_receive, self._queue.waiting)), sum(map(self.can_receive, batch.parked))
        if self._drafter is not None and batch.running:
            return True
        return protocol.asks_policy(waiting, parked, len(batch.running), spare_tokens, behind)

    def can_receive(self, job: Job) -> bool:
        """Whether the reader of ``job``, which is off the engine, can receive more."""
        return self._population.can_receive(job.slot)

    def waits_for_readers(self) -> bool:
        """Whether all that is off the engine is there because its reader cannot receive."""
        off = (*self._queue.waiting, *self._batch.parked)
        return bool(off) and not any(map(self.can_receive, off))

    def resume_rather_than_idle(self, decision: Decision) -> None:
        """No prefill follows ``decision``."""
        waits = any(map(self.can_receive, self._queue.waiting))
        running, preempted = len(self._batch.running), len(decision.preempt)
        jobs = protocol.parked_to_resume(running, self._batch.parked, preempted, self.can_receive, waits=waits)
        self._preemptor.resume(jobs)

    def plan_steps(self, steps: int, until_s: float, available_tokens: int) -> tuple[int, float]:
        """Of ``steps`` decode steps up to ``until_s`` those before the policy is asked again."""
        if not (self._queue.waiting or self._batch.parked or self._population.behind):
            pressure = protocol.steps_to_kv_pressure(available_tokens, len(self._batch.running))
            return min(steps, max(1, pressure)), until_s
        return (steps, min(until_s, self._due_s)) if self._interval_s else (1, until_s)

    def decide(self) -> Decision:
        """Ask the policy."""
        self.decisions += 1
        self._look_up_prefixes()
        state = self.state()
        decision = with_drafts(state, decide_readers_first(self.policy, state, ask=ask))
        if self._drafter is not None:
            self._drafter.decided(decision)
        self._metrics.decision(self._decision_s)
        return decision

    def note_decided(self, *, prefills: bool) -> None:
        """A decision has been carried out now; ``prefills``: and a prefill follows it."""
        self._due_s = self._clock.now_s + (0.0 if prefills else self._interval_s)

    def state(self) -> SchedulerState:
        """What the policy sees now."""
        batch, capacity_tokens, chunked = self._batch, self._pool.capacity_tokens, self._admission.chunked
        table, held_tokens = self._population.table(
            self._clock,
            running=batch.continuing_slots(),
            parked=list(batch.parked.values()),
            waiting=[job.slot for job in self._queue.waiting],
        )
        return SchedulerState(
            now_s=self._clock.now_s,
            requests=table,
            kv_capacity_tokens=capacity_tokens,
            kv_reserved_tokens=min(
                capacity_tokens,
                capacity_tokens - self._pool.available_tokens() - held_tokens + self._admission.owed_tokens,
            ),
            max_running=self._running_bound,
            running_reserved=int(chunked is not None),
            yielding_reserved=int(chunked is not None and chunked.spec.yields),
            latency=self._latency,
            chunk_tokens=self._chunk_tokens,
            drafting=self._drafting(table.rids) if self._drafter is not None else None,
        )

    def _drafting(self, rids: Sequence[str]) -> Drafting | None:
        running = len(self._batch.running)
        if self._drafter is None or not running:
            return None
        step_s = self._costs.decode_s(running, self._batch.context_tokens + running)
        return self._drafter.drafting([self._by_rid[rid] for rid in rids], step_s)

    def apply(self, decision: Decision) -> list[Job]:
        """Preempt and resume as decided; the requests to admit, in order."""
        released: set[Job] = set()
        preempt = decision.preempt_for_slots(
            len(self._batch.running),
            self._max_running,
            self._admission.free_slots(),
            (job.rid for job in self._batch.parked),
        )
        if any(preemption.mode is not PreemptionMode.PARK for preemption in preempt):
            self._preemptor.settle()
        for preemption in preempt:
            job, mode = self._by_rid[preemption.rid], PreemptionMode.PARK.value
            if preemption.mode is PreemptionMode.PARK:
                self._preemptor.park(job)
            else:
                mode = self._preemptor.release(job, offload=preemption.mode is PreemptionMode.OFFLOAD)
                released.add(job)
            self._metrics.preemption(mode, preemption.reason)
        self._preemptor.resume([self._by_rid[rid] for rid in decision.resume])
        return protocol.admissible((self._by_rid[rid] for rid in decision.admit), _Waiting(), released)

    def _look_up_prefixes(self) -> None:
        """What the cache holds for some of those that wait, in turn."""
        waiting = self._queue.waiting
        for row in protocol.prefix_lookup_rows(self._lookup_cursor, len(waiting)):
            self._lookup_cursor = row
            job = waiting[row]
            if job.uncacheable:
                continue
            limit_tokens = protocol.max_prefix_hit_tokens(job.context_tokens)
            match = self._pool.cache.match(job.runs(job.context_tokens), limit_tokens, self._clock.now_s)
            self._population.set_cached(job.slot, match.tokens + match.host_tokens, match.host_tokens)


class _Waiting:
    """All waiting requests, as a container that costs nothing to make."""

    def __contains__(self, job: Any) -> bool:
        return job.phase is Phase.WAITING
