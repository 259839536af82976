"""One engine in virtual time: SGLang's continuous batching, with the policy objects that the real one runs.

What is modelled is SGLang (:data:`andes_sglang.protocol.SGLANG_RELEASE`) and our adapter over it: prefill goes before decode;
admission reserves a share of what the running may still generate (:mod:`~andes_sglang.sim.prefill`); retraction when KV runs
out (:mod:`~andes_sglang.sim.preemption`); prefixes shared and evicted in a radix cache (:mod:`~andes_sglang.sim.radix`); a
policy is asked when the adapter would ask it, sees what the adapter would show it
(:mod:`~andes_sglang.sim.policy_seam`), and its latency model learns from the iterations that happen.

While nothing can change, many decode steps are taken at once: their end times come from a closed form, and a request's
delivery times are a slice of the replica's :mod:`~andes_sglang.sim.step_clock`. So cost grows with events (arrivals,
decisions, ends), not tokens.

    replica = Replica(profile.load("h100-llama-3.1-8b").engine, make_policy("andes"), sink=records.append)
    for spec in specs:  # in order of arrival
        replica.advance(spec.arrival_s)
        replica.submit(spec)
    replica.advance()

Over 400 lines: the loop and what fleets and servers read of it are one class, read top to bottom; each noun that it
works with has a file of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from andes_sglang import protocol
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics
from andes_sglang.policy import PolicyError, SchedulingPolicy, answer_lengths
from andes_sglang.policy.eviction import EvictionOrder, Returns
from andes_sglang.request import RequestRecord, RequestSpec, TokenTimes
from andes_sglang.sim.batch import Batch
from andes_sglang.sim.drafter import Drafter
from andes_sglang.sim.engine import EngineModel, Overlap
from andes_sglang.sim.job import Job
from andes_sglang.sim.job_queue import JobQueue
from andes_sglang.sim.kv_pool import KvPool
from andes_sglang.sim.policy_seam import PolicySeam
from andes_sglang.sim.population import NoPopulation, Population
from andes_sglang.sim.preemption import Preemptor, paused_kv
from andes_sglang.sim.prefill import Admission, PrefillChunk, PrefillWork
from andes_sglang.sim.radix import Node, RadixCache
from andes_sglang.sim.step_clock import MAX_STEPS, StepClock
from andes_sglang.state import Phase

__all__ = ["Job", "RefusedError", "Replica", "simulate"]

MAX_IDLE_DECISIONS = 3
"""Decisions in a row that leave an idle engine idle before the policy counts as broken (our choice)."""


class RefusedError(ValueError):
    """A request that the engine can never serve; the text names field and value."""


class Replica:
    """Serves requests on ``engine`` under ``policy``; None: SGLang untouched. A record per request goes to ``sink``.

    Submit requests in order of arrival and :meth:`advance` in between. decision_interval_s: between decode steps, ask the
    policy no more often than that (0: at every iteration, as the adapter does); after a chunk of prefill it is always asked.
    ``engine`` may be replaced while it runs by one with other costs and the same sizes.
    """

    def __init__(
        self,
        engine: EngineModel,
        policy: SchedulingPolicy | None = None,
        *,
        sink: Callable[[RequestRecord], None] = lambda _record: None,
        metrics: EngineMetrics | None = None,
        index: int = 0,
        decision_interval_s: float = 0.0,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.sink = sink
        self.metrics = metrics or EngineMetrics()
        self.index = index
        self.latency = LatencyModel(mixed=engine.mixed)
        self.by_rid: dict[str, Job] = {}
        self.open_prompt_tokens = 0
        has_host = engine.host_capacity_tokens > 0
        self._population = population = (
            NoPopulation()
            if policy is None
            else Population(written_through=engine.write_through and has_host, lengths=answer_lengths(policy))
        )
        self._clock = clock = StepClock(
            sends_late=engine.overlap is Overlap.SYNC,
            first_needed=self._first_needed_step,
            on_late_first=lambda job, at_s: population.deliver(job.slot, at_s),
        )
        self._batch = batch = Batch(clock, engine.max_running, leaves_late=engine.overlap is not Overlap.NONE)
        self._queue = queue = JobQueue()
        returns = Returns()

        def wanted() -> Iterator[tuple[Node, float]]:
            """KV that will be needed again; without host memory a release gives it up, but for none that is needed later."""
            yield from returns.expected()
            if policy is not None and (has_host or returns):
                yield from paused_kv(queue.waiting, population)

        self._pool = pool = KvPool(engine, clock, EvictionOrder(wanted), returns)
        self._admission = Admission(engine, queue=queue, batch=batch, pool=pool, clock=clock)
        self._preemptor = Preemptor(
            queue=queue, batch=batch, pool=pool, clock=clock, population=population, metrics=self.metrics
        )
        self._drafter: Drafter | None = None
        if engine.drafts and engine.speculation is not None:
            self._drafter = Drafter(engine.speculation, engine.draft_tokens, batch, seed=index)
        self._seam: PolicySeam | None = None
        if policy is not None:
            self._seam = PolicySeam(
                policy, engine, by_rid=self.by_rid, queue=queue, batch=batch, pool=pool, clock=clock,
                population=population, admission=self._admission, preemptor=self._preemptor, latency=self.latency,
                metrics=self.metrics, interval_s=decision_interval_s, drafter=self._drafter,
            )  # fmt: skip
        self._submitted = 0
        self._idle_decisions = 0
        self._quiet_until_s: float | None = None

    # What others read

    @property
    def now_s(self) -> float:
        return self._clock.now_s

    @property
    def iterations(self) -> int:
        """Forward passes so far."""
        return self._clock.iterations

    @property
    def busy_s(self) -> float:
        """Time spent in them."""
        return self._clock.busy_s

    @property
    def decisions(self) -> int:
        """How often the policy was asked."""
        return self._seam.decisions if self._seam is not None else 0

    @property
    def running(self) -> dict[Job, int]:
        """Requests in the decode batch, with their rows of the population."""
        return self._batch.running

    @property
    def parked(self) -> dict[Job, int]:
        """Requests out of the batch that keep slot and KV, likewise."""
        return self._batch.parked

    @property
    def waiting(self) -> list[Job]:
        """Requests that wait for a prefill."""
        return self._queue.waiting

    @property
    def open_requests(self) -> int:
        return len(self.by_rid)

    @property
    def cache(self) -> RadixCache:
        return self._pool.cache

    @property
    def kv_used_tokens(self) -> int:
        """KV that requests hold: locked cache and what was generated since."""
        return self._pool.used_tokens

    @property
    def kv_uncached_tokens(self) -> int:
        """KV that requests hold beside the cache."""
        return self._pool.uncached_tokens

    @property
    def quiet_until_s(self) -> float:
        """No request begins or ends before then, unless one is submitted or aborted: advancing can wait."""
        if self._quiet_until_s is None:
            self._quiet_until_s = self._find_quiet_until()
        return self._quiet_until_s

    def _find_quiet_until(self) -> float:
        if not self.by_rid:
            return float("inf")
        clock, batch = self._clock, self._batch
        moves = self._queue or self._admission.chunked or batch.parked or self._drafter or self._population.behind
        if moves or not batch.running:
            return clock.now_s
        running, costs = len(batch.running), self.engine.costs
        to_pressure = protocol.steps_to_kv_pressure(self._pool.available_tokens(), running) - 1
        steps = max(0, min(batch.next_leave() - clock.steps, to_pressure) - 1)
        first_s = costs.decode_s(running, batch.context_tokens + running)
        return clock.now_s + steps * first_s + costs.decode_context_s * running * steps * (steps - 1) / 2

    def generated(self, job: Job) -> int:
        """Tokens of ``job`` that have been sent by now."""
        if self._clock.is_unsent(job):
            return job.generated - 1
        if job.phase is not Phase.RUNNING:
            return job.generated
        return min(job.spec.output_tokens, job.generated + self._clock.sent_steps - job.joined_step)

    @property
    def waits_for_readers(self) -> bool:
        """Whether nothing happens until a reader can receive again, or a request comes."""
        moves = self._batch.running or self._admission.chunked or self._queue.incoming or self._queue.received
        return self._seam is not None and not moves and self._seam.waits_for_readers()

    def fits(self, spec: RequestSpec) -> bool:
        """Whether ``spec`` can ever be served here."""
        return spec.prompt_tokens + spec.output_tokens <= self.engine.max_request_tokens

    def check(self, spec: RequestSpec) -> None:
        """Raise :class:`RefusedError` for what can never fit."""
        if not self.fits(spec):
            raise RefusedError(
                f"prompt_tokens {spec.prompt_tokens} with output_tokens {spec.output_tokens}: more than the KV pool holds "
                f"({self.engine.kv_capacity_tokens} tokens)"
            )

    # Requests come and go

    def submit(self, spec: RequestSpec, rid: str | None = None, index: int | None = None) -> Job:
        """A request arrives at ``spec.arrival_s``, no earlier than the one before. Raises :class:`RefusedError`."""
        self.check(spec)
        self._quiet_until_s = None
        index = self._submitted if index is None else index
        room_tokens = self.engine.kv_capacity_tokens - protocol.ADMISSION_RESERVE_TOKENS - spec.prompt_tokens
        job = Job(
            spec,
            rid if rid is not None else f"r{index}",
            index=index,
            max_tokens=min(max(spec.max_tokens or 0, spec.output_tokens), room_tokens),
            enters_s=spec.arrival_s + self.engine.entry_s,
            root=self.cache.root,
        )
        self._submitted += 1
        self.by_rid[job.rid] = job
        self.open_prompt_tokens += spec.prompt_tokens
        self._queue.incoming.append(job)
        return job

    def abort(self, job: Job) -> None:
        """The client has gone: drop ``job`` without a record."""
        if job.rid not in self.by_rid:
            return
        self._quiet_until_s = None
        if job.phase is Phase.WAITING:
            self._queue.remove(job)
            if job is self._admission.chunked:
                self._admission.chunked = None
            self.cache.unlock(job.cache_node)
            self.cache.order.look_again()
            self.cache.offer(job.kept_node)
        else:
            self._batch.leave(job)
            self._pool.give_up(job, keep=True)
        self._clock.forget(job)
        self._forget(job)

    def hear(self, job: Job, tokens: int | None) -> None:
        """The reader of ``job`` has received ``tokens`` by now; None: it keeps up."""
        if job.rid in self.by_rid and job.slot >= 0:
            self._quiet_until_s = None
            if held_s := self._population.hear(job.slot, self._clock, tokens):
                job.holds.append((self._clock.now_s, held_s))

    def _finish(self, job: Job) -> None:
        """It has generated everything: its KV stays in the cache, its record goes out."""
        self._batch.leave(job)
        self._pool.give_up(job, keep=True)
        spec, times_s = job.spec, np.concatenate(job.times_s)
        if spec.returns_s is not None and not spec.yields and self.policy is not None:  # stock SGLang is not told
            self._pool.expect(job.kept_node, spec.returns_s)
        shown_s = times_s[spec.reason_tokens :]
        record = RequestRecord(
            job.index, spec.arrival_s, spec.arrival_s, spec.prompt_tokens, spec.output_tokens, spec.target.ttft_s,
            spec.target.tds, TokenTimes(shown_s), float(times_s[-1]), None, self.index, job.prefix_hit_tokens,
            job.recomputed_tokens, job.preemptions, job.retractions, spec.reason_tokens, spec.target.think_tds,
            job.holds or None, spec.reader_class, spec.tenant, spec.yields,
        )  # fmt: skip
        if not spec.yields:
            self._population.learn(spec)
        self._forget(job)
        self.sink(record)

    def _forget(self, job: Job) -> None:
        del self.by_rid[job.rid]
        self.open_prompt_tokens -= job.spec.prompt_tokens
        if job.slot >= 0:
            self._population.remove(job.slot)

    # The loop

    def advance(self, until_s: float = float("inf")) -> None:
        """Serve until the first end of an iteration at or after ``until_s``, or until nothing is left to do."""
        self._quiet_until_s = None
        clock, queue = self._clock, self._queue
        while clock.now_s < until_s:
            for job in self._batch.pop_completed():
                self._finish(job)
                self._admission.batch_is_full = False
            self._receive()
            if self._iterate(until_s) or queue.received:
                continue
            self._admission.new_token_ratio = protocol.INIT_NEW_TOKEN_RATIO
            clock.send(clock.now_s)
            if queue.next_entry_s > until_s or not queue.incoming:
                if until_s < float("inf"):
                    clock.now_s = until_s
                return
            clock.now_s = max(clock.now_s, queue.next_entry_s)

    def _receive(self) -> None:
        queue, incoming = self._queue, self._queue.incoming
        if not queue.received and not (incoming and incoming[0].enters_s <= self._clock.now_s):
            return
        busy = bool(self._batch.running or self._admission.chunked)
        plans_ahead = busy and self.engine.overlap is Overlap.ASYNC
        for job in queue.receive(self._clock.now_s, plans_ahead=plans_ahead):
            job.slot = self._population.add(job.rid, job.spec, job.max_tokens)

    def _iterate(self, until_s: float) -> bool:
        """One prefill, or decode steps; False when there is nothing to do."""
        if chunks := self._plan_prefill():
            self._prefill(chunks)
        elif self._batch.running:
            self._decode(until_s)
        elif (self._queue.waiting or self._batch.parked) and not (self._seam and self._seam.waits_for_readers()):
            self._note_idle_decision()
            return True
        else:
            return False
        self._idle_decisions = 0
        return True

    def _note_idle_decision(self) -> None:
        self._idle_decisions += 1
        if self._idle_decisions > MAX_IDLE_DECISIONS:
            name = self.policy.name if self.policy is not None else "stock"
            raise PolicyError(
                f"policy {name!r} leaves the engine idle with {self.open_requests} requests: "
                "it must admit or resume what fits"
            )

    def _plan_prefill(self) -> list[PrefillChunk]:
        """The next prefill: in order of arrival, or from those that the policy admits."""
        if self._seam is None:
            return self._admission.form(self._queue.waiting, protocol.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)
        if not self._seam.is_due():
            return self._admission.form((), protocol.ADMISSION_RESERVE_TOKENS) if self._admission.chunked else []
        decision = self._seam.decide()
        admitted = self._seam.apply(decision)
        self._admission.batch_is_full = False
        chunks = self._admission.form(admitted, protocol.ADMISSION_RESERVE_TOKENS)
        self._seam.note_decided(prefills=bool(chunks))
        if not chunks and self._batch.parked:
            self._seam.resume_rather_than_idle(decision)
        return chunks

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """Compute ``chunks``; a request whose prompt is complete gets a token and joins the batch. Mixed, the batch decodes
        beside it."""
        work = PrefillWork.of(chunks, pads_prefix=self.engine.pads_prefix)
        batch = len(self._batch.running) if self.engine.mixed else 0
        self._pool.allocate(work.new + work.loaded + batch)
        end_s = self._clock.run(self._with_decision_s(self._prefill_s(work, batch)))
        if batch:
            self._batch.context_tokens += batch
            self._clock.record(np.array([end_s]))
        for chunk in chunks:
            chunk.job.resuming_tokens += chunk.new
            self._pool.cache_prefix(chunk.job, chunk.new + chunk.loaded)
            if chunk.last:
                self._first_token(chunk.job, end_s)

    def _prefill_s(self, work: PrefillWork, batch: int) -> float:
        """Duration of a prefill beside which ``batch`` requests decode; the latency model learns it."""
        costs, latency = self.engine.costs, self.latency
        if batch:
            context = self._batch.context_tokens + batch
            seconds = costs.mixed_s(
                work.new, work.prefix, work.pairs, work.requests, batch=batch, context_tokens=context
            )
            if self.policy is not None:
                latency.observe_mixed(work.new, work.prefix, batch, context, seconds)
        else:
            seconds = costs.prefill_s(work.new, work.prefix, work.pairs, work.requests)
            if self.policy is not None:
                latency.observe_prefill(work.new, work.prefix, seconds)
        if not work.loaded:
            return seconds
        load_s = self.engine.host_load_s(work.loaded)
        latency.observe_load(work.loaded, load_s)
        return max(seconds, load_s)

    def _first_token(self, job: Job, end_s: float) -> None:
        if job.stopped is not None:
            recomputed = protocol.recomputed_tokens(job.resuming_tokens)
            job.recomputed_tokens += recomputed
            self.metrics.resume(job.stopped, recomputed)
            if job.stopped == "offload" and not job.spec.yields:  # whose copies are the first to go
                self.latency.observe_return(job.context_tokens, recomputed)
        job.generated += 1
        sent = self._clock.record_first(job, end_s)
        self._batch.join(job)
        self._population.join(job.slot, self._clock.steps)
        self._population.start(job.slot, end_s)
        if sent:
            self._population.deliver(job.slot, end_s)

    def _decode(self, until_s: float) -> None:
        """As many steps at once as change nothing: up to the next end, arrival, decision or eviction of the last KV."""
        batch, clock = self._batch, self._clock
        if (available_tokens := self._pool.available_tokens()) < len(batch.running):
            self._retract()
            available_tokens = self._pool.available_tokens()
        if not (running := len(batch.running)):
            return
        if self._drafter is not None and (drafts := self._drafter.lengths(available_tokens)):
            self._decode_drafts(self._drafter, drafts)
            return
        steps, until_s = self._steps_without_change(available_tokens, until_s)
        costs = self.engine.costs
        first_s = costs.decode_s(running, batch.context_tokens + running)
        if until_s < clock.now_s + first_s * steps:
            steps = min(steps, max(1, int((until_s - clock.now_s) / first_s) + 1))
        if self.policy is not None and (batch.changed or self._queue.waiting or batch.parked):
            self.latency.observe_decode(running, batch.context_tokens + running, first_s)
            batch.changed = False
        ends_s = clock.plan(self._with_decision_s(first_s), costs.decode_context_s * running, steps, until_s)
        self._pool.allocate(running * len(ends_s))
        clock.run_steps(ends_s)
        self._admission.new_token_ratio = protocol.decayed_new_token_ratio(self._admission.new_token_ratio, len(ends_s))
        batch.context_tokens += running * len(ends_s)

    def _decode_drafts(self, drafter: Drafter, drafts: Mapping[Job, int]) -> None:
        """One step that verifies ``drafts``: every running request gets a token, and what is accepted of its draft."""
        batch, clock, running = self._batch, self._clock, len(self._batch.running)
        plain_s = self.engine.costs.decode_s(running, batch.context_tokens + running)
        step_s = plain_s + float(drafter.speculation.step_s(float(max(drafts.values())), float(sum(drafts.values()))))
        end_s = clock.now_s + self._with_decision_s(step_s)
        self._pool.allocate(running)
        clock.run_steps(np.array([end_s]))
        batch.context_tokens += running
        self._admission.new_token_ratio = protocol.decayed_new_token_ratio(self._admission.new_token_ratio, 1)
        jobs, counts = drafter.accept(drafts)
        self._pool.allocate(sum(counts))
        self._population.add_tokens([job.slot for job in jobs], counts, clock, end_s)
        for job, tokens in zip(jobs, counts, strict=True):
            batch.add(job, tokens, end_s)
        if self.policy is not None:
            self.latency.observe_decode(running, batch.context_tokens, step_s * running / (running + sum(counts)))
            batch.changed = False

    def _steps_without_change(self, available_tokens: int, until_s: float) -> tuple[int, float]:
        """Most decode steps that can be taken at once, and the time after which no further one begins."""
        queue = self._queue
        if queue.incoming:
            until_s = min(until_s, queue.incoming[0].enters_s)
        if queue.received or (queue.waiting and self._seam is None and not self._admission.batch_is_full):
            return 1, until_s
        kv_steps = available_tokens // len(self._batch.running)
        steps = min(self._batch.next_leave() - self._clock.steps, kv_steps, MAX_STEPS)
        return (steps, until_s) if self._seam is None else self._seam.plan_steps(steps, until_s, available_tokens)

    def _retract(self) -> None:
        """A decode step no longer fits into the KV pool."""
        admission = self._admission
        if self.policy is None:
            admission.new_token_ratio = self._preemptor.retract_stock(prefilling=admission.chunked is not None)
            admission.batch_is_full = False
            return
        self._preemptor.settle()
        for job in [job for job in self._batch.running if self._batch.generated(job) >= job.spec.output_tokens]:
            self._finish(job)
        admission.chunked = self._preemptor.retract_for_policy(admission.chunked)

    def _with_decision_s(self, seconds: float) -> float:
        """Duration of an iteration with the CPU time of the decision that goes before it."""
        decision_s = self.engine.decision_s
        if self.policy is None or not decision_s or not (self._queue.waiting or self._batch.parked):
            return seconds
        return seconds + decision_s if self.engine.overlap is Overlap.NONE else max(seconds, decision_s)

    def _first_needed_step(self) -> int:
        """The first step that a request in the batch still reads; the population has read those before."""
        self._population.follow(list(self._batch.running.values()), self._clock, self._clock.sent_steps)
        return self._batch.oldest_step


def simulate(
    engine: EngineModel, policy: SchedulingPolicy | None, requests: Iterable[RequestSpec], **options: object
) -> Iterator[RequestRecord]:
    """Records of ``requests`` (in order of arrival) as they finish on one replica; memory does not grow with their number."""
    done: deque[RequestRecord] = deque()
    replica = Replica(engine, policy, sink=done.append, **options)  # type: ignore[arg-type]
    for spec in requests:
        replica.advance(spec.arrival_s)
        replica.submit(spec)
        while done:
            yield done.popleft()
    replica.advance()
    yield from done
