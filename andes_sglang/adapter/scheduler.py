"""SGLang's scheduler with a policy in charge of who runs.

Once per iteration, after SGLang has merged the last prefill into the running batch and before it looks for a new one,
the policy sees everybody and its decision is applied:

- park: the request moves from the running batch to a batch of its own; slot and KV stay.
- release: its KV goes into the radix tree unlocked and it joins the waiting queue; the stock prefill path brings it
  back, with a prefix hit for whatever is still there.
- admit: the waiting queue, in the policy's order, is handed to SGLang's own prefill admission; the others stay back.

In overlap mode the result of the last iteration is processed before anything is released, so no token in flight is
ever lost, computed twice or sent twice. Never preempted (they run to their end): requests with LoRA, sessions,
multimodal input, input embeddings, logprobs, penalties, hidden states, and any under speculative decoding.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.managers.schedule_policy import match_prefix_for_req
from sglang.srt.managers.scheduler import NextBatchPlan, Scheduler
from sglang.srt.mem_cache.common import release_kv_cache

from andes_sglang.adapter import expectations
from andes_sglang.adapter.forced import Forced
from andes_sglang.adapter.metrics import Metrics, PrometheusMetrics
from andes_sglang.adapter.options import Options
from andes_sglang.adapter.snapshot import Ledger
from andes_sglang.latency import LatencyModel
from andes_sglang.policy import SchedulingPolicy, make
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Decision, Phase, PreemptionMode, RequestView, SchedulerState

__all__ = ["ADMISSION_RESERVE_TOKENS", "QoEScheduler"]

ADMISSION_RESERVE_TOKENS = 16
_PREFIX_LOOKUPS_PER_DECISION = 1


class _Served:
    """What we know of one request beside SGLang's own ``Req``."""

    __slots__ = (
        "cached_tokens",
        "preemptible",
        "preemptions",
        "reader",
        "req",
        "seen",
        "since_s",
        "slice_start",
        "slot",
        "stopped",
    )

    def __init__(self, req: Any, now_s: float, target: QoETarget, preemptible: bool) -> None:
        self.req = req
        self.reader = ReaderStream(now_s, target)
        self.seen = 0
        self.slice_start = 0
        self.since_s = now_s
        self.preemptions = 0
        self.cached_tokens = 0
        self.preemptible = preemptible
        self.stopped: str | None = None
        self.slot = -1


class QoEScheduler(Scheduler):  # type: ignore[misc]
    """See the module."""

    waiting_queue: list[Any]
    running_batch: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = Options.from_env()
        self._qoe_policy: SchedulingPolicy = (
            Forced(**options.policy_options)
            if options.policy == "forced"
            else make(options.policy or "andes", **options.policy_options)
        )
        self._qoe_target = options.default_target
        self._served: dict[str, _Served] = {}
        self._ledger = Ledger()
        self._in_charge = False
        self._parked: Any = None
        self._launches: deque[tuple[float, str, int, int]] = deque()
        self._last_result_s = 0.0
        self._lookup_cursor = 0
        self._released_now: set[str] = set()
        self.latency = LatencyModel()
        self.qoe_metrics = Metrics()
        super().__init__(*args, **kwargs)
        if self.server_args.enable_metrics:
            self.qoe_metrics = PrometheusMetrics()

    # Requests come and go

    def init_schedule_policy(self) -> None:
        super().init_schedule_policy()
        self.policy.calc_priority = lambda *_args, **_kwargs: None

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        """A stream that has begun goes back without limits, without a new clock; only new ones can be turned away."""
        if (known := self._served.get(req.rid)) is not None:
            if known.req is req:
                self._stop(req, "retracted")
                self._set_cached(req, 0)
                self.waiting_queue.append(req)
                return
            self._forget(req.rid)
        waiting = len(self.waiting_queue)
        with self._only_fresh():
            super()._add_request_to_queue(req, is_retracted=is_retracted)
        if len(self.waiting_queue) > waiting and self.waiting_queue[-1] is req:
            target = expectations.parse(req.sampling_params.custom_params, self._qoe_target)
            served = _Served(req, time.perf_counter(), target, self._is_preemptible(req))
            self._served[req.rid] = served
            served.slot = self._ledger.add(self._view(req, Phase.WAITING))

    def _is_preemptible(self, req: Any) -> bool:
        params = req.sampling_params
        return bool(
            self.spec_algorithm.is_none()
            and req.lora_id is None
            and req.session is None
            and req.multimodal_inputs is None
            and req.input_embeds is None
            and not req.return_logprob
            and not req.return_hidden_states
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
            with self._only_fresh():
                super()._abort_on_waiting_timeout()

    def abort_request(self, recv_req: Any) -> None:
        if self._parked is not None:
            self._unpark([r.rid for r in self._parked.reqs if recv_req.abort_all or r.rid.startswith(recv_req.rid)])
        super().abort_request(recv_req)

    def pause_generation(self, recv_req: Any) -> None:
        if recv_req.mode == "retract" and self._parked is not None:
            self._unpark([r.rid for r in self._parked.reqs])
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
        if self._parked is not None:
            self._parked.filter_batch()  # a token in flight when it was parked may have been its last
            if self._parked.is_empty():
                self._parked = None
        if not self.waiting_queue and self._parked is None and not self._needs_decision(running_batch):
            return super().get_new_batch_prefill(running_batch)
        started = time.perf_counter()
        state = self._state(running_batch)
        decision = self._qoe_policy.decide(state)
        self.qoe_metrics.decision(time.perf_counter() - started)
        if not self._in_charge:
            self.qoe_metrics.in_charge(self._qoe_policy.name)
            self._in_charge = True
        running_batch = self._apply(decision, running_batch)
        self._report_population(running_batch)

        by_rid = {req.rid: req for req in self.waiting_queue}
        admitted = [by_rid.pop(rid) for rid in decision.admit if rid in by_rid and rid not in self._released_now]
        held_back = list(by_rid.values())
        if not admitted and self.chunked_req is None:
            return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        self.waiting_queue = admitted
        running_batch.batch_is_full = False
        try:
            plan = super().get_new_batch_prefill(running_batch)
        finally:
            self.waiting_queue = self.waiting_queue + held_back
        if plan.batch_to_run is not None:
            self._note_admitted(plan.batch_to_run)
        return plan

    def _needs_decision(self, running_batch: Any) -> bool:
        """With nobody waiting only memory pressure, or a policy that preempts for its own sake, calls for one."""
        if running_batch.is_empty():
            return False
        free = self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size()
        return bool(free < 8 * len(running_batch.reqs) or isinstance(self._qoe_policy, Forced))

    def update_running_batch(self, batch: Any) -> Any:
        """When KV is about to run out, retract with the KV kept in the tree, the youngest first."""
        batch.filter_batch()
        if not batch.is_empty() and not batch.check_decode_mem():
            self._settle()
            while len(batch.reqs) > 1 and not batch.check_decode_mem():
                victim = max(
                    (r for r in batch.reqs if self._served[r.rid].preemptible),
                    key=lambda r: self._served[r.rid].reader.start_s,
                    default=None,
                )
                if victim is None:
                    break
                self._release(victim, batch, "retracted")
                self.qoe_metrics.retraction()
        return super().update_running_batch(batch)

    def run_batch(self, batch: Any, pp_proxy_tensors: Any = None) -> Any:
        now_s = time.perf_counter()
        if batch.forward_mode.is_decode():
            self._launches.append((now_s, "decode", len(batch.reqs), int(batch.seq_lens_cpu.sum())))
        elif batch.forward_mode.is_extend() and not batch.forward_mode.is_mixed():
            self._launches.append((now_s, "prefill", int(batch.extend_num_tokens), int(sum(batch.prefix_lens))))
        else:
            self._launches.append((now_s, "other", 0, 0))
        return super().run_batch(batch, pp_proxy_tensors)

    def process_batch_result(self, batch: Any, result: Any) -> None:
        if batch is None:
            return
        super().process_batch_result(batch, result)
        now_s = time.perf_counter()
        self._observe_iteration(now_s)
        for req in batch.reqs:
            served = self._served.get(req.rid)
            if served is None:
                continue
            new = len(req.output_ids) - served.seen
            if new > 0:
                served.reader.deliver(now_s, new)
                served.seen += new
            if req.finished():
                self.qoe_metrics.finished(served.reader.final_qoe())
                self._forget(req.rid)

    def _observe_iteration(self, now_s: float) -> None:
        if not self._launches:
            return
        launched_s, kind, first, second = self._launches.popleft()
        seconds = now_s - max(launched_s, self._last_result_s)
        self._last_result_s = now_s
        if kind == "decode":
            self.latency.observe_decode(first, second, seconds)
        elif kind == "prefill":
            self.latency.observe_prefill(first, second, seconds)

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
        return RequestView(
            rid=req.rid,
            phase=phase,
            arrival_s=served.reader.start_s,
            reader=served.reader,
            prompt_tokens=prompt,
            output_tokens=output,
            kv_tokens=0 if phase is Phase.WAITING else prompt + output,
            cached_tokens=min(served.cached_tokens, prompt + output - 1) if phase is Phase.WAITING else 0,
            remaining_tokens=max(0, req.sampling_params.max_new_tokens - output),
            slice_tokens=output - served.slice_start,
            phase_since_s=served.since_s,
            preemptions=served.preemptions,
            preemptible=served.preemptible,
        )

    def _look_up_prefixes(self) -> None:
        """Refresh the prefix hits of a few waiting requests, in turn: the tree changes, and a look-up is not free."""
        queue = self.waiting_queue
        for _ in range(min(len(queue), _PREFIX_LOOKUPS_PER_DECISION)):
            self._lookup_cursor = (self._lookup_cursor + 1) % len(queue)
            req = queue[self._lookup_cursor]
            match = match_prefix_for_req(self.tree_cache, req)
            self._set_cached(req, len(match.device_indices))

    def _set_cached(self, req: Any, tokens: int) -> None:
        served = self._served[req.rid]
        served.cached_tokens = tokens
        self._ledger.write(served.slot, self._view(req, Phase.WAITING))

    # What the policy said

    def _apply(self, decision: Decision, running_batch: Any) -> Any:
        if decision.preempt and any(p.mode is not PreemptionMode.PARK for p in decision.preempt):
            self._settle()
        by_rid = {req.rid: req for req in running_batch.reqs}
        park = [p for p in decision.preempt if p.mode is PreemptionMode.PARK and p.rid in by_rid]
        if park:
            self._park({p.rid for p in park}, running_batch)
        for preemption in decision.preempt:
            self.qoe_metrics.preemption(preemption.mode.value, preemption.reason)
            if preemption.mode is PreemptionMode.PARK:
                continue
            if preemption.rid in by_rid and not by_rid[preemption.rid].finished():
                self._release(by_rid[preemption.rid], running_batch, "release")
            elif self._parked is not None:
                parked = {req.rid: req for req in self._parked.reqs}
                if preemption.rid in parked:
                    self._release(parked[preemption.rid], self._parked, "release")
        if self._parked is not None and self._parked.is_empty():
            self._parked = None
        if decision.resume:
            running_batch = self._resume(decision.resume, running_batch)
        return running_batch

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
        served.preemptions += 1
        served.stopped = how
        served.since_s = time.perf_counter()

    def _start(self, rid: str, recomputed_tokens: int = 0) -> None:
        served = self._served[rid]
        if served.stopped is not None:
            self.qoe_metrics.resume(served.stopped, recomputed_tokens)
        served.stopped = None
        served.slice_start = len(served.req.output_ids)
        served.since_s = time.perf_counter()

    def _release(self, req: Any, batch: Any, how: str) -> None:
        release_kv_cache(req, self.tree_cache, is_insert=True)
        req.reset_for_retract()
        batch.filter_batch(keep_indices=[i for i, r in enumerate(batch.reqs) if r is not req])
        batch.batch_is_full = False
        self._stop(req, how)
        self._set_cached(req, len(req.origin_input_ids) + len(req.output_ids) - 1)
        self._released_now.add(req.rid)
        self.waiting_queue.append(req)

    def _park(self, rids: set[str], batch: Any) -> None:
        stay = [i for i, req in enumerate(batch.reqs) if req.rid not in rids]
        leave = [i for i, req in enumerate(batch.reqs) if req.rid in rids and not req.finished()]
        stay += [i for i, req in enumerate(batch.reqs) if req.rid in rids and req.finished()]
        if not leave:
            return
        parked = _split(batch, leave, sorted(stay))
        for req in parked.reqs:
            self._stop(req, "park")
        if self._parked is None:
            self._parked = parked
        else:
            self._parked.merge_batch(parked)
        batch.batch_is_full = False

    def _resume(self, rids: tuple[str, ...], running_batch: Any) -> Any:
        wanted = set(rids)
        if self._parked is None:
            return running_batch
        leave = [i for i, req in enumerate(self._parked.reqs) if req.rid in wanted]
        stay = [i for i, req in enumerate(self._parked.reqs) if req.rid not in wanted]
        back = _split(self._parked, leave, stay)
        if not stay:
            self._parked = None
        for req in back.reqs:
            self._start(req.rid)
        if running_batch.is_empty():
            return back
        running_batch.merge_batch(back)
        return running_batch

    def _unpark(self, rids: list[str]) -> None:
        if rids:
            self.running_batch = self._resume(tuple(rids), self.running_batch)

    def _note_admitted(self, batch: Any) -> None:
        for req in batch.reqs:
            served = self._served.get(req.rid)
            if served is None or req is self.chunked_req:
                continue
            if served.stopped is not None or served.since_s == 0.0 or not served.seen:
                computed = req.extend_range.length if req.extend_range is not None else 1
                self._start(req.rid, max(0, computed - 1) if served.seen else 0)

    def _report_population(self, running_batch: Any) -> None:
        released = sum(1 for req in self.waiting_queue if self._has_begun(req))
        self.qoe_metrics.population(
            running=len(running_batch.reqs),
            parked=len(self._parked.reqs) if self._parked is not None else 0,
            released=released,
            waiting=len(self.waiting_queue) - released,
        )


def _split(batch: Any, leave: list[int], stay: list[int]) -> Any:
    """Take the rows ``leave`` out of ``batch`` into a batch of their own; ``batch`` keeps the rows ``stay``."""
    other = copy.copy(batch)
    other.reqs = list(batch.reqs)
    if stay:
        other.sampling_info = copy.copy(batch.sampling_info)
        other.sampling_info.penalizer_orchestrator = copy.copy(batch.sampling_info.penalizer_orchestrator)
    other.filter_batch(keep_indices=leave)
    batch.filter_batch(keep_indices=stay)
    return other
