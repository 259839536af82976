"""SGLang's scheduler with a policy in charge of who runs.

Once per iteration, after SGLang has merged the last prefill into the running batch and before it looks for a new one,
the policy sees everybody and its decision is applied:

- park: the request moves from the running batch to a batch of its own; slot and KV stay.
- release: its KV goes into the radix tree unlocked and it joins the waiting queue; the stock prefill path brings it
  back, with a prefix hit for whatever is still there.
- offload: a release on an engine with a host tier (:mod:`andes_sglang.adapter.host_tier`): what is evicted meanwhile is
  loaded back instead of computed again. Without room in host memory it is a plain release, and is counted as one.
- admit: the waiting queue, in the policy's order, is handed to SGLang's own prefill admission; the others stay back.

In overlap mode the result of the last iteration is processed before anything is released, so no token in flight is
ever lost, computed twice or sent twice. A parked request keeps its slot of the request pool: where those admitted need
the slot, it is released instead. When KV runs out all the same, parked requests go first, then the youngest.

Never preempted (they run to their end): requests with LoRA, sessions, multimodal input, input embeddings, logprobs,
penalties, ``min_tokens``, custom logit processors, sampling masks, hidden states, routed experts, and any under speculative
decoding. Refused at start: engines of several ranks
(tensor, pipeline, data-parallel attention), whose clocks would decide differently, and disaggregated serving.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.managers.schedule_policy import match_prefix_for_req
from sglang.srt.managers.scheduler import NextBatchPlan, Scheduler
from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

from andes_sglang import expectations
from andes_sglang.adapter import seams
from andes_sglang.adapter.copies import copies_behind
from andes_sglang.adapter.forced import Forced
from andes_sglang.adapter.host_tier import HostTier
from andes_sglang.adapter.options import Options
from andes_sglang.adapter.snapshot import Ledger
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import Metrics, PrometheusMetrics
from andes_sglang.policy import SchedulingPolicy, make
from andes_sglang.policy.eviction import EvictionOrder
from andes_sglang.qoe import ReaderStream
from andes_sglang.state import Decision, Phase, PreemptionMode, RequestView, SchedulerState

__all__ = ["ADMISSION_RESERVE_TOKENS", "QoEScheduler"]

ADMISSION_RESERVE_TOKENS = 16
_PREFIX_LOOKUPS_PER_DECISION = 1
_REPORT_PERIOD_S = 0.1
_COSTS_PERIOD_S = 2.0
_WRITE_CHUNK_TOKENS = 64


class _Served:
    """What we know of one request beside SGLang's own ``Req``."""

    __slots__ = (
        "arrival_s",
        "cached_tokens",
        "expectation",
        "host_tokens",
        "loaded_ahead",
        "preemptible",
        "preemptions",
        "reader",
        "recomputed",
        "req",
        "seen",
        "since_s",
        "slice_start",
        "slot",
        "stopped",
    )

    def __init__(
        self, req: Any, arrival_s: float, now_s: float, expectation: ReaderExpectation, preemptible: bool
    ) -> None:
        self.req = req
        self.arrival_s = arrival_s
        self.expectation = expectation
        self.reader = ReaderStream(arrival_s, expectation.target)
        self.seen = 0
        self.slice_start = 0
        self.since_s = now_s
        self.preemptions = 0
        self.recomputed = 0
        self.cached_tokens = 0
        self.host_tokens = 0
        self.loaded_ahead = False
        self.preemptible = preemptible
        self.stopped: str | None = None
        self.slot = -1


class QoEScheduler(Scheduler):  # type: ignore[misc]
    """See the module."""

    waiting_queue: list[Any]
    running_batch: Any
    load_inquirer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = Options.from_env()
        self._qoe_policy: SchedulingPolicy = (
            Forced(**options.policy_options)
            if options.policy == "forced"
            else make(options.policy or "andes", **options.policy_options)
        )
        self._qoe_options = {"policy": options.policy or "andes", "policy_options": options.policy_options}
        self._qoe_target = options.default_target
        self._served: dict[str, _Served] = {}
        self._ledger = Ledger()
        self._in_charge = False
        self._parked: Any = None
        self._launches: deque[tuple[float, Callable[[float], None] | None]] = deque()
        self._last_result_s = 0.0
        self._report_due_s = 0.0
        self._costs_due_s = 0.0
        self._lookup_cursor = 0
        self._released_now: set[str] = set()
        self._host: HostTier | None = None
        self.qoe_metrics = Metrics()
        if fault := seams.unsupported(args[0] if args else kwargs["server_args"]):
            raise ValueError(f"andes: {fault}")
        super().__init__(*args, **kwargs)
        self.latency = LatencyModel(mixed=self.is_mixed_chunk)
        if self.server_args.enable_metrics:
            self.qoe_metrics = PrometheusMetrics()
        if isinstance(self.tree_cache, HostTier):
            self._host = self.tree_cache
            self._host.eviction_strategy = EvictionOrder(self._paused_kv)
        elif options.preemption_mode == "offload":
            raise ValueError("andes: --preemption-mode offload is not supported for the KV cache of this model")

    # SGLang's own accounting sees the parked

    def init_invariant_checker(self) -> None:
        super().init_invariant_checker()
        self.invariant_checker.get_running_batch = lambda: self._with_parked(besides=self.last_batch)

    def init_load_inquirer(self) -> None:
        super().init_load_inquirer()
        self.load_inquirer = replace(self.load_inquirer, get_running_batch=self._with_parked)

    def _with_parked(self, besides: Any = None) -> Any:
        """The running batch with the parked in it, for those who only count; without what ``besides`` has anyway."""
        running = self.running_batch
        if self._parked is None:
            return running
        reqs = self._parked.reqs + ([] if running is besides else running.reqs)
        return SimpleNamespace(reqs=reqs, is_empty=lambda: not reqs)

    def get_internal_state(self, recv_req: Any) -> Any:
        """With the policy in charge, for ``/server_info``."""
        said = super().get_internal_state(recv_req)
        said.internal_state["andes"] = self._qoe_options
        return said

    # Requests come and go

    def init_schedule_policy(self) -> None:
        super().init_schedule_policy()
        self.policy.calc_priority = lambda *_args, **_kwargs: None

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        """A stream that has begun goes back without limits, without a new clock; only new ones can be turned away."""
        if (known := self._served.get(req.rid)) is not None:
            if known.req is req:
                if is_retracted:
                    self.qoe_metrics.retraction()
                self._stop(req, "retracted")
                self._set_cached(req, 0)
                self.waiting_queue.append(req)
                return
            self._forget(req.rid)
        with self._only_fresh():
            super()._add_request_to_queue(req, is_retracted=is_retracted)
        if self.waiting_queue and self.waiting_queue[-1] is req:
            expectation = expectations.parse(req.sampling_params.custom_params, self._qoe_target)
            now_s = time.perf_counter()
            arrival_s = req.time_stats.scheduler_recv_time or now_s  # before its grammar was compiled
            served = _Served(req, arrival_s, now_s, expectation, self._is_preemptible(req))
            self._served[req.rid] = served
            served.slot = self._ledger.add(self._view(req, Phase.WAITING))

    def _abort_on_queued_limit(self, recv_req: Any) -> bool:
        with self._departures():
            shed = bool(super()._abort_on_queued_limit(recv_req))
        if shed:
            self.qoe_metrics.finished(0.0)
        return shed

    @contextmanager
    def _departures(self) -> Iterator[None]:
        """Whoever leaves the waiting queue inside leaves for good: its stream ends with what was delivered."""
        rids = [req.rid for req in self.waiting_queue]
        yield
        if len(self.waiting_queue) < len(rids):
            left = set(rids).difference(req.rid for req in self.waiting_queue)
            for rid in left.intersection(self._served):
                self.qoe_metrics.finished(self._served[rid].reader.final_qoe())
                self._forget(rid)

    def _is_preemptible(self, req: Any) -> bool:
        params = req.sampling_params
        return bool(
            self.spec_algorithm.is_none()
            and req.lora_id is None
            and req.session is None
            and req.session_id is None
            and req.multimodal_inputs is None
            and req.input_embeds is None
            and req.positional_embed_overrides is None
            and not req.custom_logit_processor
            and not req.return_logprob
            and not req.return_sampling_mask
            and not req.return_hidden_states
            and not req.return_routed_experts
            and not req.return_indexer_topk
            and not params.frequency_penalty
            and not params.presence_penalty
            and params.repetition_penalty in (None, 1.0)
            and not params.min_new_tokens
        )

    @contextmanager
    def _only_fresh(self) -> Iterator[None]:
        """Inside, the waiting queue holds only requests that never ran: limits and time-outs are for them."""
        begun = [req for req in self.waiting_queue if self._has_begun(req)]
        self.waiting_queue = [req for req in self.waiting_queue if not self._has_begun(req)]
        try:
            yield
        finally:
            self.waiting_queue = begun + self.waiting_queue

    def _has_begun(self, req: Any) -> bool:
        served = self._served.get(req.rid)
        return served is not None and (served.preemptions > 0 or served.seen > 0)

    def _abort_on_waiting_timeout(self) -> None:
        if envs.SGLANG_REQ_WAITING_TIMEOUT.get() > 0:
            with self._only_fresh(), self._departures():
                super()._abort_on_waiting_timeout()

    def abort_request(self, recv_req: Any) -> None:
        self._unpark(recv_req)
        with self._departures():
            super().abort_request(recv_req)

    def pause_generation(self, recv_req: Any) -> None:
        if recv_req.mode == "retract":
            self._unpark()
        super().pause_generation(recv_req)

    def is_fully_idle(self, for_health_check: bool = False) -> bool:
        return bool(self._parked is None and super().is_fully_idle(for_health_check))

    def _forget_departed(self) -> None:
        """Drop the records of requests that were aborted while waiting."""
        present = {req.rid for req in self.waiting_queue}
        for batch in (self.running_batch, self.last_batch, self._parked):
            present.update(req.rid for req in batch.reqs) if batch is not None else None
        if self.chunked_req is not None:
            present.add(self.chunked_req.rid)
        for rid in [rid for rid in self._served if rid not in present]:
            self._forget(rid)

    def _forget(self, rid: str) -> None:
        self._ledger.remove(self._served.pop(rid).slot)

    # One iteration

    def get_new_batch_prefill(self, running_batch: Any) -> Any:
        """Decide and apply, then let SGLang form the prefill batch from those admitted."""
        self._released_now.clear()
        self._drop_finished_parked()
        self._report_population(running_batch)
        self._write_through(running_batch)
        if not self.waiting_queue and self._parked is None and not self._needs_decision(running_batch):
            plan = super().get_new_batch_prefill(running_batch)
            self._note_admitted(plan.batch_to_run)
            _correct_mixed(plan.batch_to_run)
            return plan
        started = time.perf_counter()
        state = self._state(running_batch)
        decision = self._qoe_policy.decide(state)
        self.qoe_metrics.decision(time.perf_counter() - started)
        if not self._in_charge:
            self.qoe_metrics.in_charge(self._qoe_policy.name)
            self._in_charge = True
        running_batch = self._apply(decision, running_batch)

        by_rid = {req.rid: req for req in self.waiting_queue}
        admitted = [by_rid.pop(rid) for rid in decision.admit if rid in by_rid and rid not in self._released_now]
        held_back = list(by_rid.values())
        if self._load_ahead(admitted, running_batch):
            admitted, held_back = [], admitted + held_back
        if not admitted and self.chunked_req is None:
            self._look_after_queues()
            return NextBatchPlan(batch_to_run=None, running_batch=self._never_idle(running_batch, decision))
        self.waiting_queue = admitted
        running_batch.batch_is_full = False
        try:
            plan = super().get_new_batch_prefill(running_batch)
        finally:
            self.waiting_queue = self.waiting_queue + held_back
        self._note_admitted(plan.batch_to_run)
        _correct_mixed(plan.batch_to_run)
        if plan.batch_to_run is None:
            return NextBatchPlan(batch_to_run=None, running_batch=self._never_idle(plan.running_batch, decision))
        return plan

    def _load_ahead(self, admitted: list[Any], running_batch: Any) -> bool:
        """Where those admitted have next to nothing to compute that loads could hide behind, the loads start now and go
        behind one more decode step, once for each return: True, nobody is admitted yet."""
        if self._host is None or not self._host.overlaps or self.chunked_req is not None or running_batch.is_empty():
            return False
        returning = [self._served[req.rid] for req in admitted]
        if not all(served.stopped is not None and not served.loaded_ahead for served in returning):
            return False
        room = self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size()
        room -= ADMISSION_RESERVE_TOKENS * len(running_batch.reqs)
        for served in returning:
            match = match_prefix_for_req(self.tree_cache, served.req)
            if match.host_hit_length and self._host.load_ahead(match.best_match_node, room):
                served.loaded_ahead = True
                room -= match.host_hit_length + ADMISSION_RESERVE_TOKENS
                self._set_cached(served.req, len(match.device_indices) + match.host_hit_length)
        return any(served.loaded_ahead for served in returning)

    def _look_after_queues(self) -> None:
        """What SGLang does whenever it looks for a prefill, for the iterations in which we do not let it look."""
        if self.grammar_manager.has_waiting_grammars():
            for req in self.grammar_manager.get_ready_grammar_requests():
                self._add_request_to_queue(req)
        if self.enable_hierarchical_cache:
            self.tree_cache.check_hicache_events()

    def _never_idle(self, running_batch: Any, decision: Decision) -> Any:
        """Whoever is parked runs rather than nobody, should SGLang not have admitted what the policy chose."""
        if running_batch.is_empty() and self._parked is not None and not decision.preempt:
            return self._resume([req.rid for req in self._parked.reqs], running_batch)
        return running_batch

    def _drop_finished_parked(self) -> None:
        """The token in flight when a request was parked may have been its last."""
        if self._parked is not None:
            self._parked.filter_batch()
            if self._parked.is_empty():
                self._parked = None

    def on_idle(self) -> None:
        self._report_due_s = 0.0
        self._report_population(self.running_batch)
        super().on_idle()

    def _needs_decision(self, running_batch: Any) -> bool:
        """With nobody waiting only memory pressure, or a policy that preempts for its own sake, calls for one."""
        if running_batch.is_empty():
            return False
        free = self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size()
        return bool(free < 8 * len(running_batch.reqs) or isinstance(self._qoe_policy, Forced))

    def update_running_batch(self, batch: Any) -> Any:
        """When KV is about to run out, retract with the KV kept in the tree: parked requests, then the youngest."""
        batch.filter_batch()
        if not batch.is_empty() and not batch.check_decode_mem():
            self._settle()
            self._finish_writes()
            batch.filter_batch()
            self._drop_finished_parked()
            while not batch.is_empty() and not batch.check_decode_mem():
                home = batch if self._parked is None else self._parked
                victims = [req for req in home.reqs if self._served[req.rid].preemptible]
                if not victims or (home is batch and len(batch.reqs) == 1):
                    break
                self._release(max(victims, key=lambda req: self._served[req.rid].arrival_s), home, "retracted")
                self._finish_writes()
                self._drop_finished_parked()
                self.qoe_metrics.retraction()
        return super().update_running_batch(batch)

    def _write_through(self, running_batch: Any) -> None:
        """Send what has been generated to host memory, a chunk a stream, as much as fits behind one decode step; of whose
        reader has most in store first: the likeliest to be taken off."""
        if self._host is None:
            return
        self._host.eviction_strategy.look_again()
        for tokens, seconds in self._host.take_loads():
            self.latency.observe_load(tokens, seconds)
        if not self._host.writes_through:
            return
        due: list[tuple[Any, int]] = []
        dry_s, new_tokens = [], []
        for batch in (running_batch, self._parked):
            for req in batch.reqs if batch is not None else ():
                served = self._served.get(req.rid)
                computed = len(req.origin_input_ids) + len(req.output_ids) - 1
                if (
                    served is not None
                    and served.req is req
                    and served.preemptible
                    and computed - req.cache_protected_len >= _WRITE_CHUNK_TOKENS
                    and len(req.output_ids) > served.slice_start
                    and not req.finished()
                ):
                    due.append((req, computed))
                    dry_s.append(served.reader.start_s + served.reader.end_s)
                    new_tokens.append(computed - req.cache_protected_len)
        if not due:
            return
        prompts = sum(len(req.origin_input_ids) for req in running_batch.reqs)
        step_s = self.latency.decode_s(len(running_batch.reqs), prompts)
        for row in copies_behind(dry_s, [self.latency.load_s(tokens) for tokens in new_tokens], step_s):
            self._host.back_up(*due[row])

    def _paused_kv(self) -> Iterator[tuple[Any, float]]:
        """Where the KV of each stream that waits for its return ends in the tree, and when its reader runs dry."""
        for served in self._served.values():
            req = served.req
            if served.stopped not in (None, "park") and req.last_node is not None:
                last = req.best_match_node if req.host_hit_length else req.last_node
                yield last, served.reader.start_s + served.reader.end_s

    def _finish_writes(self) -> None:
        if self._host is not None:
            self._host.finish_writes()

    def run_batch(self, batch: Any, pp_proxy_tensors: Any = None) -> Any:
        self._launches.append((time.perf_counter(), self._observer(batch)))
        return super().run_batch(batch, pp_proxy_tensors)

    def _observer(self, batch: Any) -> Callable[[float], None] | None:
        """Where the seconds go that this batch takes."""
        if batch.forward_mode.is_decode():
            return partial(self.latency.observe_decode, len(batch.reqs), int(batch.seq_lens_cpu.sum()))
        if batch.forward_mode.is_mixed():
            beside = len(batch.decoding_reqs)
            new, prefix = int(batch.extend_num_tokens) - beside, int(sum(batch.prefix_lens[:-beside]))
            return partial(self.latency.observe_mixed, new, prefix, beside, int(batch.seq_lens_cpu[-beside:].sum()))
        if batch.forward_mode.is_extend():
            return partial(self.latency.observe_prefill, int(batch.extend_num_tokens), int(sum(batch.prefix_lens)))
        return None

    def process_batch_result(self, batch: Any, result: Any) -> None:
        if batch is None:
            return
        super().process_batch_result(batch, result)
        now_s = time.perf_counter()
        self._observe_iteration(now_s)
        for req in batch.reqs:
            served = self._served.get(req.rid)
            if served is None or served.req is not req:
                continue
            new = len(req.output_ids) - served.seen
            if new > 0:
                served.reader.deliver(now_s, new)
                served.seen += new
            if req.finished():
                if not is_health_check_generate_req(req):
                    self.qoe_metrics.finished(served.reader.final_qoe())
                self._forget(req.rid)

    def _observe_iteration(self, now_s: float) -> None:
        if not self._launches:
            return
        launched_s, observe = self._launches.popleft()
        seconds = now_s - max(launched_s, self._last_result_s)
        self._last_result_s = now_s
        if observe is not None:
            observe(seconds)

    # What the policy sees

    def _state(self, running_batch: Any) -> SchedulerState:
        now_s = time.perf_counter()
        if len(self._served) > 2 * (len(self.waiting_queue) + len(running_batch.reqs)) + 64:
            self._forget_departed()
        self._look_up_prefixes()
        resident = [(req, Phase.RUNNING) for req in running_batch.reqs if not req.finished()]
        if self._parked is not None:
            resident += [(req, Phase.PARKED) for req in self._parked.reqs]
        slots, held = [], 0
        for req, phase in resident:
            view = self._view(req, phase)
            slot = self._served[req.rid].slot
            self._ledger.write(slot, view)
            slots.append(slot)
            held += view.kv_tokens
        slots += [self._served[req.rid].slot for req in self.waiting_queue]
        free = self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size()
        free += self._host.loading_tokens() if self._host is not None else 0
        return SchedulerState(
            now_s=now_s,
            requests=self._ledger.table(slots),
            kv_capacity_tokens=self.max_total_num_tokens,
            kv_reserved_tokens=self.max_total_num_tokens - free - held,
            max_running=self.max_running_requests,
            running_reserved=int(self.chunked_req is not None),
            latency=self.latency,
            chunk_tokens=self.chunked_prefill_size or self.max_prefill_tokens,
        )

    def _view(self, req: Any, phase: Phase) -> RequestView:
        served = self._served[req.rid]
        prompt, output = len(req.origin_input_ids), len(req.output_ids)
        expected = served.expectation.expected_tokens
        return RequestView(
            rid=req.rid,
            phase=phase,
            arrival_s=served.arrival_s,
            reader=served.reader,
            prompt_tokens=prompt,
            output_tokens=output,
            kv_tokens=0 if phase is Phase.WAITING else prompt + output,
            cached_tokens=min(served.cached_tokens, prompt + output - 1) if phase is Phase.WAITING else 0,
            host_tokens=served.host_tokens if phase is Phase.WAITING else self._keeps_tokens(req),
            remaining_tokens=max(0, req.sampling_params.max_new_tokens - output),
            slice_tokens=output - served.slice_start,
            phase_since_s=served.since_s,
            preemptions=served.preemptions,
            preemptible=served.preemptible,
            weight=served.expectation.weight,
            yields=served.expectation.yields,
            expected_tokens=math.nan if expected is None else float(expected),
        )

    def _look_up_prefixes(self) -> None:
        """Refresh the prefix hits of a few waiting requests, in turn: the tree changes, and a look-up is not free."""
        queue = self.waiting_queue
        for _ in range(min(len(queue), _PREFIX_LOOKUPS_PER_DECISION)):
            self._lookup_cursor = (self._lookup_cursor + 1) % len(queue)
            req = queue[self._lookup_cursor]
            match = match_prefix_for_req(self.tree_cache, req)
            self._set_cached(req, len(match.device_indices) + match.host_hit_length, match.host_hit_length)

    def _keeps_tokens(self, req: Any) -> int:
        """What a request that holds its KV would not lose by a release: all, if its part in the tree has found room in host
        memory, or would; the rest follows it there."""
        tokens = len(req.origin_input_ids) + len(req.output_ids)
        kept = self._host is not None and req.last_node is not None and self._host.keeps(req.last_node, tokens)
        return tokens if kept else 0

    def _set_cached(self, req: Any, tokens: int, host_tokens: int = 0) -> None:
        served = self._served[req.rid]
        served.cached_tokens, served.host_tokens = tokens, host_tokens
        self._ledger.write(served.slot, self._view(req, Phase.WAITING))

    # What the policy said

    def _apply(self, decision: Decision, running_batch: Any) -> Any:
        parked = [req.rid for req in self._parked.reqs] if self._parked is not None else []
        free_slots = self.req_to_token_pool.available_size()
        preempt = decision.preempt_for_slots(len(running_batch.reqs), self.max_running_requests, free_slots, parked)
        release = {p.rid: p for p in preempt if p.mode is not PreemptionMode.PARK}
        park = {p.rid: p for p in preempt if p.mode is PreemptionMode.PARK}
        if release:
            self._settle()
        for req in self._park(park, running_batch):
            self.qoe_metrics.preemption("park", park[req.rid].reason)
        for home in (running_batch, self._parked) if release else ():
            for req in [r for r in home.reqs if r.rid in release and not r.finished()] if home is not None else ():
                how = self._release(req, home, "release")
                self.qoe_metrics.preemption(how, release[req.rid].reason)
        if release:
            self._finish_writes()
        self._drop_finished_parked()
        return self._resume(decision.resume, running_batch)

    def _settle(self) -> None:
        """Process the result in flight, if any, so that output, KV and reader of every request agree. SGLang's loop
        finds a blank in its place."""
        results = getattr(self, "result_queue", None)
        if results and results[0][0] is not None:
            batch, result = results.popleft()
            self.process_batch_result(batch, result)
            results.appendleft((None, None))

    def _stop(self, req: Any, how: str) -> None:
        served = self._served[req.rid]
        req.time_stats.trace_ctx.trace_event("andes.preempted", 1, attrs={"andes.preemption.mode": how})
        served.preemptions += 1
        served.stopped = how
        served.loaded_ahead = False
        served.recomputed = 0
        served.since_s = time.perf_counter()

    def _start(self, served: _Served) -> None:
        if served.stopped is not None:
            again = max(0, served.recomputed - 1)
            self.qoe_metrics.resume(served.stopped, again)
            if served.stopped == "offload":
                self.latency.observe_return(len(served.req.origin_input_ids) + len(served.req.output_ids), again)
            served.req.time_stats.trace_ctx.trace_event("andes.resumed", 1)
        served.stopped = None
        served.slice_start = len(served.req.output_ids)
        served.since_s = time.perf_counter()

    def _release(self, req: Any, batch: Any, how: str) -> str:
        """Give up its KV; ``how``, or offload in the place of release where all of it is in host memory or on its way."""
        release_kv_cache(req, self.tree_cache, is_insert=True)
        req.reset_for_retract()
        batch.filter_batch(keep_indices=[i for i, r in enumerate(batch.reqs) if r is not req])
        batch.batch_is_full = False
        if self._host is not None:
            last = match_prefix_for_req(self.tree_cache, req).last_device_node
            self._host.save(last)
            how = "offload" if last.backuped and how == "release" else how
        self._stop(req, how)
        self._set_cached(req, len(req.origin_input_ids) + len(req.output_ids) - 1)
        self._released_now.add(req.rid)
        self.waiting_queue.append(req)
        return how

    def _park(self, rids: Iterable[str], batch: Any) -> list[Any]:
        """Move those of ``rids`` that run out of ``batch``; the requests that moved."""
        wanted = set(rids)
        leave = [i for i, req in enumerate(batch.reqs) if req.rid in wanted and not req.finished()]
        if not leave:
            return []
        parked = _split(batch, leave)
        moved = list(parked.reqs)
        for req in moved:
            self._stop(req, "park")
        if self._parked is None:
            self._parked = parked
        else:
            self._parked.merge_batch(parked)
        batch.batch_is_full = False
        return moved

    def _resume(self, rids: Iterable[str], running_batch: Any) -> Any:
        wanted = set(rids)
        leave = [i for i, req in enumerate(self._parked.reqs) if req.rid in wanted] if self._parked is not None else []
        if not leave:
            return running_batch
        back = _split(self._parked, leave)
        if self._parked.is_empty():
            self._parked = None
        for req in back.reqs:
            self._start(self._served[req.rid])
        if running_batch.is_empty():
            return back
        running_batch.merge_batch(back)
        return running_batch

    def _unpark(self, recv_req: Any = None) -> None:
        """Put those that ``recv_req`` aborts (everybody without one) back into the running batch."""
        self._drop_finished_parked()
        if self._parked is not None:
            everybody = recv_req is None or recv_req.abort_all
            rids = [req.rid for req in self._parked.reqs if everybody or req.rid.startswith(recv_req.rid)]
            self.running_batch = self._resume(rids, self.running_batch)

    def _note_admitted(self, batch: Any) -> None:
        """A prefill was formed: who was waiting runs, as of its last chunk."""
        for req in batch.reqs if batch is not None else ():
            served = self._served.get(req.rid)
            if served is None or served.req is not req:
                continue
            if served.stopped is not None and req.extend_range is not None:
                served.recomputed += req.extend_range.length
            if req is not self.chunked_req and (served.stopped is not None or not served.seen):
                self._start(served)

    def _report_population(self, running_batch: Any) -> None:
        now_s = time.perf_counter()
        if now_s < self._report_due_s:
            return
        self._report_due_s = now_s + _REPORT_PERIOD_S
        released = sum(1 for req in self.waiting_queue if self._has_begun(req))
        self.qoe_metrics.population(
            running=len(running_batch.reqs),
            parked=len(self._parked.reqs) if self._parked is not None else 0,
            released=released,
            waiting=len(self.waiting_queue) - released,
        )
        if self._host is not None:
            self.qoe_metrics.host(self._host.use())
        if now_s >= self._costs_due_s:
            self._costs_due_s = now_s + _COSTS_PERIOD_S
            self.qoe_metrics.costs(self.latency)


def _split(batch: Any, leave: list[int]) -> Any:
    """Take the rows ``leave`` out of ``batch`` into a batch of their own.

    Penalties are never among them, but may stay behind: the new batch gets penalizers of its own, since a filter changes
    them in place and a merge asks them for the requests of their batch."""
    gone = set(leave)
    other = copy.copy(batch)
    other.reqs = list(batch.reqs)
    other.sampling_info = copy.copy(batch.sampling_info)
    other.sampling_info.penalizer_orchestrator = penalizers = copy.copy(batch.sampling_info.penalizer_orchestrator)
    penalizers.is_required = False
    other.filter_batch(keep_indices=leave)
    other.sampling_info.penalizer_orchestrator = BatchedPenalizerOrchestrator(
        penalizers.vocab_size, other, set(penalizers.penalizers)
    )
    batch.filter_batch(keep_indices=[i for i in range(len(batch.reqs)) if i not in gone])
    return other


def _correct_mixed(batch: Any) -> None:
    """In overlap mode SGLang takes it that the output of who decodes in a mixed batch lags a token behind. It does not
    where we have processed a result early, so the length of the prefix is told by the KV instead."""
    if batch is not None and batch.forward_mode.is_mixed():
        decoding = len(batch.decoding_reqs)
        batch.prefix_lens[-decoding:] = [length - 1 for length in batch.seq_lens_cpu[-decoding:].tolist()]
