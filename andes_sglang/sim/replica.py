"""One replica at iteration level: prefill first, then decode; a KV pool with an LRU prefix cache behind it.

Time is virtual, costs come from a cost function pair, and every decision is made by a real policy object. Released KV
stays in the cache until someone needs the room, so a resume recomputes exactly what was evicted meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from andes_sglang.latency import LatencyModel
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Phase, PreemptionMode, RequestTable, RequestView, SchedulerState

__all__ = ["Costs", "Job", "Replica"]


@dataclass(frozen=True, slots=True)
class Costs:
    """True durations of the simulated engine, seconds (per token, per request)."""

    decode_fixed_s: float
    decode_request_s: float
    decode_context_s: float
    prefill_fixed_s: float
    prefill_token_s: float
    prefill_prefix_s: float = 0.0

    def decode_s(self, batch: int, context_tokens: int) -> float:
        return self.decode_fixed_s + self.decode_request_s * batch + self.decode_context_s * context_tokens

    def prefill_s(self, new_tokens: int, prefix_tokens: int) -> float:
        return self.prefill_fixed_s + self.prefill_token_s * new_tokens + self.prefill_prefix_s * prefix_tokens


@dataclass(slots=True, eq=False)
class Job:
    """One request and, as it is served, its record."""

    rid: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    target: QoETarget
    reader: ReaderStream = field(init=False)
    phase: Phase = Phase.WAITING
    generated: int = 0
    kv_tokens: int = 0
    slice_tokens: int = 0
    phase_since_s: float = 0.0
    preemptions: int = 0
    retractions: int = 0
    recomputed_tokens: int = 0
    first_token_s: float | None = None
    finish_s: float | None = None

    def __post_init__(self) -> None:
        self.reader = ReaderStream(self.arrival_s, self.target)
        self.phase_since_s = self.arrival_s

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.generated

    def move(self, phase: Phase, now_s: float) -> None:
        self.phase, self.phase_since_s, self.slice_tokens = phase, now_s, 0


class Replica:
    """Serves ``jobs`` (ordered by arrival) under ``policy``; ``run`` returns them with their records filled in."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        costs: Costs,
        kv_capacity_tokens: int,
        max_running: int = 64,
        chunk_tokens: int = 2048,
    ) -> None:
        self.policy = policy
        self.costs = costs
        self.kv_capacity_tokens = kv_capacity_tokens
        self.max_running = max_running
        self.chunk_tokens = chunk_tokens
        self.latency = LatencyModel()
        self.now_s = 0.0
        self.live: dict[str, Job] = {}
        self.cached: OrderedDict[str, int] = OrderedDict()
        self.iterations = 0

    def run(self, jobs: Sequence[Job], until_s: float = float("inf")) -> list[Job]:
        arrivals = iter(jobs)
        coming = next(arrivals, None)
        while self.now_s < until_s:
            while coming is not None and coming.arrival_s <= self.now_s:
                self.live[coming.rid] = coming
                coming = next(arrivals, None)
            if not self.live:
                if coming is None:
                    break
                self.now_s = coming.arrival_s
                continue
            self.step()
        return list(jobs)

    def step(self) -> None:
        """One decision and the iteration that follows it."""
        self.iterations += 1
        admitted = self._apply()
        running = [job for job in self.live.values() if job.phase == Phase.RUNNING]
        if admitted:
            self._prefill(admitted)
        elif running:
            self._decode(running)
        else:
            raise RuntimeError(f"policy {self.policy.name} leaves the engine idle with {len(self.live)} requests")

    def state(self) -> SchedulerState:
        views = [
            RequestView(
                rid=j.rid,
                phase=j.phase,
                arrival_s=j.arrival_s,
                reader=j.reader,
                prompt_tokens=j.prompt_tokens,
                output_tokens=j.generated,
                kv_tokens=j.kv_tokens,
                cached_tokens=min(self.cached.get(j.rid, 0), j.context_tokens - 1),
                remaining_tokens=4096,
                slice_tokens=j.slice_tokens,
                phase_since_s=j.phase_since_s,
                preemptions=j.preemptions,
            )
            for j in self.live.values()
        ]
        return SchedulerState(
            now_s=self.now_s,
            requests=RequestTable.of(views),
            kv_capacity_tokens=self.kv_capacity_tokens,
            max_running=self.max_running,
            latency=self.latency,
            chunk_tokens=self.chunk_tokens,
        )

    def _apply(self) -> list[Job]:
        decision = self.policy.decide(self.state())
        for preemption in decision.preempt:
            job = self.live[preemption.rid]
            job.preemptions += 1
            if preemption.mode is PreemptionMode.PARK:
                job.move(Phase.PARKED, self.now_s)
            else:
                self._release(job)
        for rid in decision.resume:
            self.live[rid].move(Phase.RUNNING, self.now_s)
        return [self.live[rid] for rid in decision.admit]

    def _release(self, job: Job) -> None:
        self.cached[job.rid] = job.kv_tokens
        self.cached.move_to_end(job.rid)
        job.kv_tokens = 0
        job.move(Phase.WAITING, self.now_s)

    def _locked_tokens(self) -> int:
        return sum(job.kv_tokens for job in self.live.values())

    def _make_room(self) -> None:
        """Evict least recently used cache until what is locked fits; retract the youngest runner as a last resort."""
        excess = self._locked_tokens() + sum(self.cached.values()) - self.kv_capacity_tokens
        while excess > 0 and self.cached:
            rid, tokens = self.cached.popitem(last=False)
            kept = max(0, tokens - excess)
            excess -= tokens - kept
            if kept:
                self.cached[rid] = kept
                self.cached.move_to_end(rid, last=False)
        while excess > 0:
            victim = max((j for j in self.live.values() if j.phase == Phase.RUNNING), key=lambda j: j.arrival_s)
            excess -= victim.kv_tokens
            victim.kv_tokens = 0
            victim.retractions += 1
            victim.move(Phase.WAITING, self.now_s)

    def _prefill(self, admitted: Iterable[Job]) -> None:
        new = prefix = 0
        batch: list[Job] = []
        for job in admitted:
            hit = min(self.cached.pop(job.rid, 0), job.context_tokens - 1)
            compute = job.context_tokens - hit
            if batch and new + compute > self.chunk_tokens:
                self.cached[job.rid] = hit
                break
            new, prefix = new + compute, prefix + hit
            job.recomputed_tokens += max(0, compute - 1) if job.generated else 0
            job.kv_tokens = job.context_tokens
            batch.append(job)
        seconds = self.costs.prefill_s(new, prefix)
        self.latency.observe_prefill(new, prefix, seconds)
        self.now_s += seconds
        for job in batch:
            job.move(Phase.RUNNING, self.now_s)
        self._make_room()
        for job in batch:
            self._token(job)

    def _decode(self, running: list[Job]) -> None:
        for job in running:
            job.kv_tokens = job.context_tokens
        self._make_room()
        running = [job for job in running if job.phase == Phase.RUNNING]
        seconds = self.costs.decode_s(len(running), sum(j.kv_tokens for j in running))
        self.latency.observe_decode(len(running), sum(j.kv_tokens for j in running), seconds)
        self.now_s += seconds
        for job in running:
            self._token(job)

    def _token(self, job: Job) -> None:
        if job.phase != Phase.RUNNING:
            return
        job.generated += 1
        job.slice_tokens += 1
        job.reader.deliver(self.now_s)
        if job.first_token_s is None:
            job.first_token_s = self.now_s
        if job.generated >= job.output_tokens:
            job.finish_s = self.now_s
            self.cached[job.rid] = job.kv_tokens
            job.kv_tokens = 0
            del self.live[job.rid]
