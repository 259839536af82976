"""One engine in virtual time: SGLang's continuous batching, with the policy objects that the real one runs.

What is modelled is SGLang 0.5.17 (`schedule_policy.PrefillAdder`, `schedule_batch.retract_decode`, `radix_cache`) and our
adapter over it: prefill goes before decode; admission reserves a share of what the running may still generate; retraction
when KV runs out; prefixes shared and evicted in a radix cache; a policy is asked when the adapter would ask it, sees what
the adapter would show it, and its latency model learns from the iterations that happen.

While nothing can change, many decode steps are taken at once: their end times come from a closed form, and a request's
delivery times are a slice of the replica's step clock. So cost grows with events (arrivals, decisions, ends), not tokens.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import Metrics
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.policy.eviction import EvictionOrder
from andes_sglang.request import RequestRecord, RequestSpec, TokenTimes
from andes_sglang.sim.engine import EngineModel, Overlap
from andes_sglang.sim.population import Population
from andes_sglang.sim.radix import Match, Node, RadixCache, Run, sequence
from andes_sglang.state import Decision, Phase, PreemptionMode, SchedulerState

__all__ = ["Job", "RefusedError", "Replica", "simulate"]

STOCK_CLIP_TOKENS = 4096
POLICY_CLIP_TOKENS = 16
"""Most tokens reserved for what a request may still generate: SGLang's default, and the adapter's under a policy."""
FIRST_RATIO, LAST_RATIO, DECAY_STEPS, RETRACT_STEPS = 0.7, 0.7 * 0.14, 600, 20
"""SGLang's new-token ratio: the share of it that admission reserves, falling as decoding goes well."""
PRESSURE_STEPS = 8
"""With KV for fewer steps than this a policy is asked although nobody waits, as in the adapter."""
MOST_STEPS = 4096
_RAMP = np.arange(1.0, MOST_STEPS + 1)
_TRIANGLE = _RAMP * (_RAMP - 1) / 2


class RefusedError(ValueError):
    """A request that the engine can never serve; the text names field and value."""


class Job:
    """A request on the engine. ``generated``: tokens as of its last joining or leaving of the batch."""

    __slots__ = (
        "cache_node", "enters_s", "epoch", "generated", "index", "joined_step", "kept_node", "loose_tokens",
        "max_tokens", "phase", "pieces", "preemptions",
        "prefix_hit_tokens", "protected_tokens", "recomputed_tokens", "resuming_tokens", "retractions",
        "rid", "seat", "slot", "spec", "stopped", "stream",
    )  # fmt: skip

    def __init__(self, spec: RequestSpec, index: int, rid: str, engine: EngineModel, root: Node) -> None:
        self.spec = spec
        most = engine.kv_capacity_tokens - POLICY_CLIP_TOKENS - spec.prompt_tokens
        self.max_tokens = min(max(spec.max_tokens or 0, spec.output_tokens), most)
        self.enters_s = spec.arrival_s + engine.entry_s
        self.index = index
        self.rid = rid
        self.stream = rid if spec.session_id is None or spec.blocks else f"session {spec.session_id}"
        self.slot = -1
        self.seat = -1
        self.phase = Phase.WAITING
        self.generated = 0
        self.joined_step = 0
        self.epoch = 0
        self.cache_node = self.kept_node = root
        self.protected_tokens = 0
        self.loose_tokens = 0
        self.pieces: list[npt.NDArray[np.float64]] = []
        self.stopped: str | None = None
        self.resuming_tokens = 0
        self.preemptions = 0
        self.retractions = 0
        self.recomputed_tokens = 0
        self.prefix_hit_tokens = 0

    @property
    def context_tokens(self) -> int:
        return self.spec.prompt_tokens + self.generated

    @property
    def unheard_of(self) -> bool:
        """Nothing of it can be in the cache: it has no session, no blocks, and has never run."""
        return self.stream is self.rid and self.stopped is None and not self.spec.blocks

    def runs(self, tokens: int) -> list[Run]:
        return sequence(self.stream, tokens, self.spec.blocks)


class _Piece(NamedTuple):
    """Part of a prefill: ``new`` tokens computed after ``prefix`` tokens, of which ``loaded`` come from host memory."""

    job: Job
    new: int
    prefix: int
    loaded: int
    last: bool


class Replica:
    """Serves requests on ``engine`` under ``policy``; None: SGLang untouched. A record per request goes to ``sink``.

    Submit requests in order of arrival and :meth:`advance` in between. decision_interval_s: between decode steps, ask the
    policy no more often than that (0: at every iteration, as the adapter does); after a chunk of prefill it is always asked.
    """

    def __init__(
        self,
        engine: EngineModel,
        policy: SchedulingPolicy | None = None,
        *,
        sink: Callable[[RequestRecord], None] = lambda _record: None,
        metrics: Metrics | None = None,
        index: int = 0,
        decision_interval_s: float = 0.0,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.sink = sink
        self.metrics = metrics or Metrics()
        self.index = index
        self.decision_interval_s = decision_interval_s
        self.latency = LatencyModel(mixed=engine.mixed)
        paused = self._paused_kv if policy is not None and engine.host_capacity_tokens else tuple
        self.cache = RadixCache(engine.host_capacity_tokens, EvictionOrder(paused))
        self.now_s = 0.0
        self.iterations = 0
        self.decisions = 0
        self.busy_s = 0.0
        self.waiting: list[Job] = []
        self.running: dict[Job, int] = {}
        self.parked: dict[Job, int] = {}
        self.by_rid: dict[str, Job] = {}
        self.open_prompt_tokens = 0
        self._submitted = 0
        self._incoming: deque[Job] = deque()
        self._received: list[Job] = []
        self._chunked: Job | None = None
        self._full = False
        self._ratio = FIRST_RATIO
        self._loose_tokens = 0
        self._context_tokens = 0
        self._limits = np.zeros(min(engine.max_running, 64), dtype=np.int64)
        self._seats = list(range(len(self._limits)))
        self._steps = 0
        self._ends = np.empty(4096)
        self._ends_from = 0
        self._late = engine.overlap is Overlap.SYNC
        self._unsent_step = False
        self._unsent_firsts: dict[Job, npt.NDArray[np.float64]] = {}
        self._leaving: list[tuple[int, int, int, Job]] = []
        self._people = Population(written_through=engine.write_through and engine.host_capacity_tokens > 0)
        self._cursor = 0
        self._decide_due_s = 0.0
        self._out_link_free_s = 0.0
        self._idle_decisions = 0
        self._batch_changed = True
        self._quiet_until_s: float | None = None

    # From outside

    @property
    def open_requests(self) -> int:
        return len(self.by_rid)

    @property
    def kv_used_tokens(self) -> int:
        """KV that somebody holds: locked cache and what was generated since."""
        return self.cache.tokens - self.cache.evictable + self._loose_tokens

    @property
    def quiet_until_s(self) -> float:
        """Nobody begins or ends before then, unless somebody is submitted or aborted: advancing can wait."""
        if self._quiet_until_s is None:
            self._quiet_until_s = self._quiet()
        return self._quiet_until_s

    def _quiet(self) -> float:
        if not self.by_rid:
            return float("inf")
        if self.waiting or self._received or self._incoming or self._chunked or self.parked or not self.running:
            return self.now_s
        batch, costs = len(self.running), self.engine.costs
        steps = max(0, min(self._next_leave() - self._steps, self._room() // batch - PRESSURE_STEPS) - 1)
        first_s = costs.decode_s(batch, self._context_tokens + batch)
        return self.now_s + steps * first_s + costs.decode_context_s * batch * steps * (steps - 1) / 2

    def generated(self, job: Job) -> int:
        """Tokens of ``job`` that have been sent by now."""
        if job in self._unsent_firsts:
            return job.generated - 1
        if job.phase is not Phase.RUNNING:
            return job.generated
        return min(job.spec.output_tokens, job.generated + self._sent_steps - job.joined_step)

    def fits(self, spec: RequestSpec) -> bool:
        """Whether ``spec`` can ever be served here."""
        return spec.prompt_tokens + spec.output_tokens <= self.engine.kv_capacity_tokens - 2 * POLICY_CLIP_TOKENS

    def check(self, spec: RequestSpec) -> None:
        """Raise :class:`RefusedError` for what can never fit."""
        if not self.fits(spec):
            raise RefusedError(
                f"prompt_tokens {spec.prompt_tokens} with output_tokens {spec.output_tokens}: more than the KV pool holds "
                f"({self.engine.kv_capacity_tokens} tokens)"
            )

    def submit(self, spec: RequestSpec, rid: str | None = None, index: int | None = None) -> Job:
        """A request arrives at ``spec.arrival_s``, no earlier than the one before. Raises :class:`RefusedError`."""
        self.check(spec)
        self._quiet_until_s = None
        index = self._submitted if index is None else index
        job = Job(spec, index, rid if rid is not None else f"r{index}", self.engine, self.cache.root)
        self._submitted += 1
        self.by_rid[job.rid] = job
        self.open_prompt_tokens += spec.prompt_tokens
        self._incoming.append(job)
        return job

    def advance(self, until_s: float = float("inf")) -> None:
        """Serve until the first end of an iteration at or after ``until_s``, or until nothing is left to do."""
        self._quiet_until_s = None
        while self.now_s < until_s:
            self._let_leave()
            self._receive()
            if self._iterate(until_s):
                continue
            if self._received:
                continue
            self._ratio = FIRST_RATIO
            self._send_late(self.now_s)
            if not self._incoming or self._incoming[0].enters_s > until_s:
                if until_s < float("inf"):
                    self.now_s = until_s
                return
            self.now_s = max(self.now_s, self._incoming[0].enters_s)

    def abort(self, job: Job) -> None:
        """The client has gone: drop ``job`` without a record."""
        if job.rid not in self.by_rid:
            return
        self._quiet_until_s = None
        if job.phase is Phase.WAITING:
            for queue in (self.waiting, self._received, self._incoming):
                if job in queue:
                    queue.remove(job)
            if job is self._chunked:
                self._chunked = None
            self.cache.unlock(job.cache_node)
            self.cache.order.look_again()
            self.cache.offer(job.kept_node)
        else:
            self._take_off(job)
            self._free(job, keep=True)
        self._unsent_firsts.pop(job, None)
        self._forget(job)

    # One iteration

    def _let_leave(self) -> None:
        """Whoever has generated everything leaves, one step late where the engine plans ahead."""
        while self._leaving and self._leaving[0][0] <= self._steps:
            _, _, epoch, job = heapq.heappop(self._leaving)
            if job.epoch == epoch:
                self._take_off(job)
                self._finish(job)
                self._full = False

    def _receive(self) -> None:
        busy = bool(self.running or self._chunked)
        if self._received:
            self.waiting += self._received
            self._received = []
        ahead = busy and self.engine.overlap is Overlap.ASYNC
        while self._incoming and self._incoming[0].enters_s <= self.now_s:
            job = self._incoming.popleft()
            (self._received if ahead else self.waiting).append(job)
            if self.policy is not None:
                job.slot = self._people.add(job.rid, job.spec, job.max_tokens)

    def _iterate(self, until_s: float) -> bool:
        """Decide, then prefill or decode; False when there is nothing to do."""
        pieces = self._plan()
        if pieces:
            self._prefill(pieces)
        elif self.running:
            self._decode(until_s)
        elif self.waiting or self.parked:
            self._idle_decisions += 1
            if self._idle_decisions > 3:
                name = self.policy.name if self.policy is not None else "stock"
                raise RuntimeError(f"policy {name} leaves the engine idle with {self.open_requests} requests")
            return True
        else:
            return False
        self._idle_decisions = 0
        return True

    def _plan(self) -> list[_Piece]:
        if self.policy is None:
            return self._form_prefill(self.waiting, STOCK_CLIP_TOKENS)
        if not self._asks_policy():
            return self._form_prefill([], POLICY_CLIP_TOKENS) if self._chunked else []
        decision = self._decide(self.policy)
        released = self._apply(decision)
        waiting = (self.by_rid[rid] for rid in decision.admit)
        admitted = [job for job in waiting if job.phase is Phase.WAITING and job not in released]
        self._full = False
        pieces = self._form_prefill(admitted, POLICY_CLIP_TOKENS) if admitted or self._chunked else []
        self._decide_due_s = self.now_s + (0.0 if pieces else self.decision_interval_s)
        if not pieces and not self.running and self.parked and not decision.preempt:
            self._resume(list(self.parked))
        return pieces

    def _asks_policy(self) -> bool:
        if self.decision_interval_s and self.now_s < self._decide_due_s and self.running:
            return False
        if self.waiting or self.parked:
            return True
        return bool(self.running) and self._room() < PRESSURE_STEPS * len(self.running)

    def _free_tokens(self) -> int:
        return self.engine.kv_capacity_tokens - self.cache.tokens - self._loose_tokens

    def _room(self) -> int:
        """KV tokens that are free or can be evicted."""
        cache = self.cache
        return self.engine.kv_capacity_tokens - cache.tokens - self._loose_tokens + cache.evictable

    # Admission and prefill

    def _form_prefill(self, queue: list[Job], clip: int) -> list[_Piece]:
        """SGLang's ``PrefillAdder``: from the front of ``queue`` as long as tokens, chunk and slots allow."""
        if self._chunked is None and (self._full or not queue):
            return []
        running = len(self.running)
        slots = self.engine.max_running - running - len(self.parked) - (self._chunked is not None)
        if slots <= 0 and self._chunked is None:
            self._full = True
            return []
        beside = running if self.engine.mixed else 0
        chunk = self.engine.chunk_tokens - beside
        offset = beside + self._ratio * int(np.minimum(np.maximum(self._limits - self._steps, 0), clip).sum())
        pieces: list[_Piece] = []
        if (job := self._chunked) is not None:
            new = job.context_tokens - job.protected_tokens
            room = min(chunk, int(self._room() - offset))
            new, last = (new, True) if new <= room else (room if room > 0 else chunk, False)
            pieces.append(_Piece(job, new, job.protected_tokens, 0, last))
            offset += new + 1 + (min(job.max_tokens, clip) if last else 0)
            chunk -= new
            self._chunked = None if last else job
        begun = len(pieces)
        for job in queue:
            if self._full or self._room() - offset <= 0 or chunk <= 0:
                break
            if len(pieces) - begun >= slots:
                self._full = True
                break
            match = self.cache.match(job.runs(job.context_tokens), job.context_tokens - 1, self.now_s)
            new = job.context_tokens - match.tokens
            wanted = new + min(max(job.max_tokens - job.generated, 0), clip) + 1
            if wanted >= self._room() - offset:
                self._full = True
                break
            self.cache.lock(match.node)
            if wanted >= self._room() - offset:
                self.cache.unlock(match.node)
                self._full = True
                break
            new -= match.host_tokens
            last = new <= chunk
            new = min(new, chunk)
            pieces.append(_Piece(job, new, match.tokens + match.host_tokens, match.host_tokens, last))
            self._begin(job, match)
            offset += new + match.host_tokens + 1 + (min(job.max_tokens, clip) if last else 0)
            chunk -= new
            if not last:
                self._chunked = job
                break
        if pieces:
            taken = {piece.job for piece in pieces}
            self.waiting = [job for job in queue if job not in taken] + (
                [] if queue is self.waiting else self._held_back(queue, taken)
            )
            self.cache.order.look_again()
        return pieces

    def _held_back(self, queue: list[Job], taken: set[Job]) -> list[Job]:
        named = taken.union(queue)
        return [job for job in self.waiting if job not in named]

    def _begin(self, job: Job, match: Match) -> None:
        job.cache_node, job.protected_tokens = match.node, match.tokens
        job.prefix_hit_tokens += match.tokens + match.host_tokens
        job.resuming_tokens = 0

    def _prefill(self, pieces: list[_Piece]) -> None:
        """Compute ``pieces``; whoever is complete gets a token and joins the batch. Mixed, the batch decodes beside it."""
        new = prefix = loaded = 0
        pairs = 0.0
        for piece in pieces:
            new += piece.new
            prefix += piece.prefix
            loaded += piece.loaded
            pairs += piece.new * (piece.prefix + 0.5 * piece.new)
        if self.engine.pads_prefix:
            pairs = sum(0.5 * (p.prefix + p.new) ** 2 for p in pieces)
        batch = len(self.running) if self.engine.mixed else 0
        self._allocate(new + loaded + batch)
        if batch:
            context = self._context_tokens + batch
            seconds = self.engine.costs.mixed_s(new, prefix, pairs, len(pieces), batch, context)
            if self.policy is not None:
                self.latency.observe_mixed(new, prefix, batch, context, seconds)
        else:
            seconds = self.engine.costs.prefill_s(new, prefix, pairs, len(pieces))
            if self.policy is not None:
                self.latency.observe_prefill(new, prefix, seconds)
        if loaded:
            load_s = loaded / self.engine.host_tokens_per_s
            self.latency.observe_load(loaded, load_s)
            seconds = max(seconds, load_s)
        end_s = self._pass(seconds)
        if batch:
            self._log_steps(np.array([end_s]), batch)
        for job, tokens, _, from_host, last in pieces:
            before = job.cache_node
            job.resuming_tokens += tokens
            held = job.protected_tokens + tokens + from_host
            self._loose_tokens -= tokens + from_host
            job.cache_node, _ = self.cache.insert(job.runs(held))
            if self.engine.write_through:
                self._back_up(job.cache_node)
            job.protected_tokens = held
            self.cache.lock(job.cache_node)
            self.cache.unlock(before)
            if last:
                self._first_token(job, end_s)

    def _allocate(self, tokens: int) -> None:
        if (short := tokens - self._free_tokens()) > 0:
            self.cache.evict(short)
        self._loose_tokens += tokens

    def _first_token(self, job: Job, end_s: float) -> None:
        if job.stopped is not None:
            again = max(0, job.resuming_tokens - 1)
            job.recomputed_tokens += again
            self.metrics.resume(job.stopped, again)
            if job.stopped == "offload":
                self.latency.observe_return(job.context_tokens, again)
        first = np.array([end_s])
        job.pieces.append(first)
        job.generated += 1
        if self._late:
            self._unsent_firsts[job] = first
        self._join(job)
        if self.policy is not None:
            self._people.start(job.slot, self.now_s)
            if not self._late:
                self._people.deliver(job.slot, end_s)

    # Decode

    def _decode(self, until_s: float) -> None:
        """As many steps at once as change nothing: up to the next end, arrival, decision or eviction of the last KV."""
        if self._room() < len(self.running):
            self._retract()
        if not (batch := len(self.running)):
            return
        if self._incoming:
            until_s = min(until_s, self._incoming[0].enters_s)
        steps = min(self._next_leave() - self._steps, self._room() // batch, MOST_STEPS)
        if self._received or (self.waiting and self.policy is None and not self._full):
            steps = 1
        elif self.policy is not None:
            if self.waiting or self.parked:
                if self.decision_interval_s:
                    until_s = min(until_s, self._decide_due_s)
                else:
                    steps = 1
            else:
                steps = min(steps, max(1, self._room() // batch - PRESSURE_STEPS + 1))
        costs = self.engine.costs
        first_s = costs.decode_s(batch, self._context_tokens + batch)
        if until_s < self.now_s + first_s * steps:
            steps = min(steps, max(1, int((until_s - self.now_s) / first_s) + 1))
        if self.policy is not None and (self._batch_changed or self.waiting or self.parked):
            self.latency.observe_decode(batch, self._context_tokens + batch, first_s)
            self._batch_changed = False
        first_s = self._pass_s(first_s)
        if steps == 1:
            ends_s = np.array([self.now_s + first_s])
        else:
            ends_s = first_s * _RAMP[:steps] + costs.decode_context_s * batch * _TRIANGLE[:steps]
            ends_s += self.now_s
            if ends_s[-2] >= until_s:
                steps = int(np.searchsorted(ends_s, until_s)) + 1
                ends_s = ends_s[:steps]
        self._allocate(batch * steps)
        self.iterations += steps
        end_s = float(ends_s[-1])
        self.busy_s += end_s - self.now_s
        self._send_late(float(ends_s[0]))
        self.now_s = end_s
        self._ratio = max(LAST_RATIO, self._ratio - steps * (FIRST_RATIO - LAST_RATIO) / DECAY_STEPS)
        self._log_steps(ends_s, batch)

    def _next_leave(self) -> int:
        while self._leaving[0][2] != self._leaving[0][3].epoch:
            heapq.heappop(self._leaving)
        return self._leaving[0][0]

    def _leaving_next(self) -> list[Job]:
        """Who leaves at the next step that anybody leaves at."""
        heap, todo, jobs = self._leaving, [0], []
        while todo:
            at = todo.pop()
            if at < len(heap) and heap[at][0] == heap[0][0]:
                _, _, epoch, job = heap[at]
                jobs += [job] * (job.epoch == epoch)
                todo += (2 * at + 1, 2 * at + 2)
        return jobs

    def _pass_s(self, seconds: float) -> float:
        """With the CPU time of a decision, where one is taken each iteration."""
        if self.policy is None or not self.engine.decision_s or not (self.waiting or self.parked):
            return seconds
        if self.engine.overlap is Overlap.NONE:
            return seconds + self.engine.decision_s
        return max(seconds, self.engine.decision_s)

    def _pass(self, seconds: float) -> float:
        """One forward pass; its end."""
        self.iterations += 1
        seconds = self._pass_s(seconds)
        self.busy_s += seconds
        self.now_s += seconds
        self._send_late(self.now_s)
        return self.now_s

    def _send_late(self, end_s: float) -> None:
        """On an engine that sends results one iteration late, that of the last one goes out now."""
        if self._unsent_step:
            self._ends[self._steps - 1 - self._ends_from] = end_s
            self._unsent_step = False
        for job, first in self._unsent_firsts.items():
            first[0] = end_s
            if self.policy is not None:
                self._people.deliver(job.slot, end_s)
        self._unsent_firsts.clear()

    def _log_steps(self, ends_s: npt.NDArray[np.float64], batch: int) -> None:
        """Every request in the batch gets a token at each of ``ends_s``."""
        count = len(ends_s)
        self._context_tokens += batch * count
        at = self._steps - self._ends_from
        if at + count > len(self._ends):
            self._trim(count)
            at = self._steps - self._ends_from
        self._ends[at : at + count] = ends_s
        if self._late:
            self._ends[at : at + count - 1] = ends_s[1:]
            self._unsent_step = True
        self._steps += count

    def _trim(self, count: int) -> None:
        """Forget the steps that no running request can ask for any more."""
        if self.policy is not None:
            self._follow(self._sent_steps)
        oldest = min((job.joined_step for job in self.running), default=self._steps)
        oldest = min(oldest, self._sent_steps)
        kept = self._ends[oldest - self._ends_from : self._steps - self._ends_from].copy()
        if len(kept) + count > len(self._ends) // 2:
            self._ends = np.empty(2 * (len(kept) + count))
        self._ends[: len(kept)] = kept
        self._ends_from = oldest

    @property
    def _sent_steps(self) -> int:
        return self._steps - self._unsent_step

    # Into and out of the batch

    def _join(self, job: Job) -> None:
        job.phase = Phase.RUNNING
        job.joined_step = self._steps
        job.epoch += 1
        self.running[job] = job.slot
        self._batch_changed = True
        self._context_tokens += job.context_tokens
        if not self._seats:
            self._seats = list(range(len(self._limits), 2 * len(self._limits)))
            self._limits = np.concatenate([self._limits, np.zeros_like(self._limits)])
        job.seat = self._seats.pop()
        self._limits[job.seat] = self._steps + job.max_tokens - job.generated
        last = self._steps + job.spec.output_tokens - job.generated
        late = self.engine.overlap is not Overlap.NONE
        heapq.heappush(self._leaving, (last + late, job.index, job.epoch, job))
        if self.policy is not None:
            self._people.join(job.slot, self._steps)

    def _take_off(self, job: Job) -> None:
        """Out of the batch or out of those parked, with what was generated written down; KV stays."""
        job.epoch += 1
        if job.phase is Phase.PARKED:
            del self.parked[job]
            return
        del self.running[job]
        self._batch_changed = True
        self._limits[job.seat] = 0
        self._seats.append(job.seat)
        steps = self._steps - job.joined_step
        self._context_tokens -= job.context_tokens + steps
        job.loose_tokens += steps
        tokens = min(steps, job.spec.output_tokens - job.generated)
        if tokens:
            at = job.joined_step - self._ends_from
            job.pieces.append(self._ends[at : at + tokens].copy())
            job.generated += tokens

    def _free(self, job: Job, *, keep: bool, offload: bool = False) -> None:
        """Give up the KV; ``keep``: into the cache, where whoever asks next finds it."""
        self._loose_tokens -= job.loose_tokens
        if keep:
            job.kept_node, _ = self.cache.insert(job.runs(job.context_tokens - 1))
            if offload or self.engine.write_through:
                self._back_up(job.kept_node)
        self.cache.unlock(job.cache_node)
        job.cache_node, job.protected_tokens, job.loose_tokens = self.cache.root, 0, 0

    def _back_up(self, node: Node) -> None:
        """Copy to host memory what has no copy there yet, in the background, over the one link."""
        if not self.engine.host_capacity_tokens:
            return
        path = []
        while node is not self.cache.root:
            if node.host_s is None:
                path.append(node)
            node = node.parent
        for node in reversed(path):
            complete_s = max(self.now_s, self._out_link_free_s) + node.tokens / self.engine.host_tokens_per_s
            if not self.cache.back_up(node, complete_s):
                break
            self._out_link_free_s = complete_s

    def _paused_kv(self) -> Iterator[tuple[Node, float]]:
        """Where the KV of each stream that waits for its return ends in the cache, and when its reader runs dry."""
        for job in self.waiting:
            if job.stopped is not None:
                yield job.kept_node, self._people.dry_at_s(job.slot)

    def _finish(self, job: Job) -> None:
        self._free(job, keep=True)
        spec = job.spec
        times_s = np.concatenate(job.pieces)
        record = RequestRecord(
            job.index, spec.arrival_s, spec.arrival_s, spec.prompt_tokens, spec.output_tokens, spec.target.ttft_s,
            spec.target.tds, TokenTimes(times_s), float(times_s[-1]), None, self.index, job.prefix_hit_tokens,
            job.recomputed_tokens, job.preemptions, job.retractions,
        )  # fmt: skip
        self._forget(job)
        self.sink(record)

    def _forget(self, job: Job) -> None:
        del self.by_rid[job.rid]
        self.open_prompt_tokens -= job.spec.prompt_tokens
        if job.slot >= 0:
            self._people.remove(job.slot)

    def _wait(self, job: Job, how: str, cached_tokens: int) -> None:
        """Back into the queue, behind everybody."""
        job.phase = Phase.WAITING
        job.stopped = how
        job.preemptions += how != "retracted"
        job.retractions += how == "retracted"
        self.waiting.append(job)
        self.cache.order.look_again()
        if self.policy is not None:
            self._people.stop(job.slot, self._steps, Phase.WAITING, self.now_s, cached_tokens)

    def _release(self, job: Job, how: str, *, offload: bool = False) -> str:
        """``how``, or offload in the place of release where all of it is in host memory or on its way."""
        self._take_off(job)
        self._free(job, keep=True, offload=offload)
        how = "offload" if how == "release" and job.kept_node.host_s is not None else how
        self._wait(job, how, job.context_tokens - 1)
        return how

    def _retract(self) -> None:
        """KV has run out: as SGLang does it, or as the adapter does it under a policy."""
        if self.policy is not None:
            self._settle()
            for job in [job for job in self.running if self._output(job) >= job.spec.output_tokens]:
                self._take_off(job)
                self._finish(job)
            while self._room() < len(self.running) and (self.parked or len(self.running) > 1):
                home = self.parked or self.running
                self._release(max(home, key=lambda job: (job.spec.arrival_s, job.index)), "retracted")
                self.metrics.retraction()
            return
        by_output = sorted(self.running, key=lambda j: (self._output(j), -j.spec.prompt_tokens), reverse=True)
        while len(by_output) > 1:
            job = by_output.pop()
            self._take_off(job)
            self._free(job, keep=False)
            self._wait(job, "retracted", 0)
            self.metrics.retraction()
            if (short := len(by_output) * RETRACT_STEPS - self._free_tokens()) > 0:
                self.cache.evict(short)
            if self._room() >= len(by_output):
                break
        generated = sum(self._output(job) for job in by_output) + RETRACT_STEPS * len(by_output)
        self._ratio = min(1.0, generated / (sum(job.max_tokens for job in by_output) + 1))
        self._full = False

    def _output(self, job: Job) -> int:
        return job.generated + self._steps - job.joined_step

    # The policy

    def _decide(self, policy: SchedulingPolicy) -> Decision:
        self.decisions += 1
        self._look_up_prefix()
        decision = policy.decide(self.state())
        self.metrics.decision(self.engine.decision_s)
        return decision

    def state(self) -> SchedulerState:
        """What the policy sees."""
        step = self._sent_steps
        running = list(self.running.values())
        if running and self.engine.overlap is not Overlap.NONE and self._next_leave() == self._steps + 1:
            for job in self._leaving_next():
                running.remove(job.slot)
        waiting = [job.slot for job in self.waiting]
        table, held = self._people.table(
            step, self._ends, self._ends_from, running, list(self.parked.values()), waiting
        )
        return SchedulerState(
            now_s=self.now_s,
            requests=table,
            kv_capacity_tokens=self.engine.kv_capacity_tokens,
            kv_reserved_tokens=self.engine.kv_capacity_tokens - self._room() - held,
            max_running=self.engine.max_running,
            running_reserved=int(self._chunked is not None),
            latency=self.latency,
            chunk_tokens=self.engine.chunk_tokens,
        )

    def _look_up_prefix(self) -> None:
        """One waiting request a decision learns anew what the cache holds for it, as in the adapter."""
        if self.waiting:
            self._cursor = (self._cursor + 1) % len(self.waiting)
            job = self.waiting[self._cursor]
            if job.unheard_of:
                return
            match = self.cache.match(job.runs(job.context_tokens), job.context_tokens - 1, self.now_s)
            self._people.set_cached(job.slot, match.tokens + match.host_tokens, match.host_tokens)

    def _apply(self, decision: Decision) -> set[Job]:
        """Preempt and resume; those released, who cannot come back at once."""
        released: set[Job] = set()
        held = len(self.running) + len(self.parked) + (self._chunked is not None)
        most = self.engine.max_running
        preempt = decision.preempt_for_slots(len(self.running), most, most - held, (job.rid for job in self.parked))
        if any(p.mode is not PreemptionMode.PARK for p in preempt):
            self._settle()
        for preemption in preempt:
            job, how = self.by_rid[preemption.rid], "park"
            if preemption.mode is PreemptionMode.PARK:
                self._park(job)
            else:
                how = self._release(job, "release", offload=preemption.mode is PreemptionMode.OFFLOAD)
                released.add(job)
            self.metrics.preemption(how, preemption.reason)
        self._resume([self.by_rid[rid] for rid in decision.resume])
        return released

    def _settle(self) -> None:
        """Send the result in flight now, so that nothing is lost with a release."""
        self._send_late(self.now_s)
        if self.policy is not None:
            self._follow(self._steps)

    def _follow(self, step: int) -> None:
        self._people.follow(list(self.running.values()), self._ends, self._ends_from, step)

    def _park(self, job: Job) -> None:
        self._people.follow([job.slot], self._ends, self._ends_from, self._steps)
        self._take_off(job)
        job.phase = Phase.PARKED
        job.preemptions += 1
        job.stopped = "park"
        job.resuming_tokens = 0
        self.parked[job] = job.slot
        self._people.stop(job.slot, self._steps, Phase.PARKED, self.now_s, 0)

    def _resume(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            del self.parked[job]
            self.metrics.resume("park", 0)
            self._join(job)
            self._people.start(job.slot, self.now_s)


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
