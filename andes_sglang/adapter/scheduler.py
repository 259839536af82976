"""SGLang's scheduler with a policy in charge of which requests run.

:class:`QoEScheduler` overrides methods of SGLang's ``Scheduler`` and says at each when SGLang calls it. What is done there is
in the parts: ``records`` (what is known of each stream), ``snapshot`` (what the policy sees), ``preemption`` and ``parked``
(park, release, resume, retract), ``prefill_room``, ``queue_limits``, ``host_transfers`` (copies to host memory),
``wanted_kv`` (what is evicted last), ``iterations`` (what they cost) and ``reports``. The rules that the simulator shares are
in :mod:`andes_sglang.protocol`.

Once per iteration, after SGLang has merged the last prefill into the running batch and before it looks for a new one, the
policy sees all requests and its decision is applied: preempt, resume, then admit; the waiting requests that it admits are
handed, in its order, to SGLang's own prefill admission.

On an engine of several tensor-parallel ranks every rank runs this scheduler, and the first one decides for all
(:mod:`andes_sglang.adapter.ranks`). Refused at start: pipelines, data-parallel attention, context parallelism, and
disaggregated serving (:func:`andes_sglang.adapter.seams.unsupported`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import SetInternalStateReqOutput
from sglang.srt.managers.scheduler import NextBatchPlan, Scheduler

from andes_sglang import protocol
from andes_sglang.adapter import seams
from andes_sglang.adapter.adapter_places import AdapterPlaces
from andes_sglang.adapter.compat import BLANK, own_time_outs
from andes_sglang.adapter.forced import Forced, make_engine_policy
from andes_sglang.adapter.host_transfers import HostTransfers, tier_of_release
from andes_sglang.adapter.iterations import IterationTimes
from andes_sglang.adapter.options import PluginOptions
from andes_sglang.adapter.parked import ParkedRequests
from andes_sglang.adapter.preemption import EnginePreemptor
from andes_sglang.adapter.prefill_room import PrefillRoom
from andes_sglang.adapter.queue_limits import QueueLimits
from andes_sglang.adapter.ranks import RankGroup
from andes_sglang.adapter.reader_reports import read_readers
from andes_sglang.adapter.records import StreamRecord, StreamRecords, expectation_of
from andes_sglang.adapter.reports import Reports
from andes_sglang.adapter.sglang_request import is_preemptible
from andes_sglang.adapter.snapshot import Snapshot
from andes_sglang.adapter.wanted_kv import WantedKv
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics, PrometheusEngineMetrics
from andes_sglang.policy import answer_lengths, effective_options
from andes_sglang.policy.yielding import decide_readers_first
from andes_sglang.state import Decision

if TYPE_CHECKING:  # not every release of SGLang has what it extends
    from andes_sglang.adapter.host_tier import HostTier
    from andes_sglang.adapter.unified_host_tier import UnifiedHostTier

__all__ = ["QoEScheduler"]


class QoEScheduler(Scheduler):  # type: ignore[misc]
    """See the module."""

    waiting_queue: list[Any]
    running_batch: Any
    load_inquirer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = PluginOptions.from_env()
        name = options.policy or "andes"
        self._qoe_policy = make_engine_policy(name, options.policy_options)
        told = effective_options(self._qoe_policy, options.policy_options)
        self._qoe_info: dict[str, Any] = {"policy": name, "policy_options": told}
        self._qoe_target = options.default_target
        self._in_charge = False
        self._parked = ParkedRequests()
        offload = options.preemption_mode == "offload"
        one_rank = offload and not tier_of_release()[1].several_ranks
        if fault := seams.unsupported(args[0] if args else kwargs["server_args"], one_rank, own_time_outs()):
            raise ValueError(f"andes: {fault}")
        super().__init__(*args, **kwargs)
        self._make_parts(self._host_tier() if offload else None)

    def _host_tier(self) -> HostTier | UnifiedHostTier:
        tree, (_, tier) = self.tree_cache, tier_of_release()
        if not isinstance(tree, tier) or tree.cache_controller is None:
            raise ValueError("andes: --preemption-mode offload is not supported for the KV cache of this model")
        return tree

    def _make_parts(self, tier: HostTier | UnifiedHostTier | None) -> None:
        records, parked = StreamRecords(answer_lengths(self._qoe_policy)), self._parked
        self._ranks = RankGroup(self.attn_tp_group, records)
        told = self.server_args.enable_metrics and self._ranks.is_first
        metrics = PrometheusEngineMetrics() if told else EngineMetrics()
        latency = LatencyModel(mixed=self.is_mixed_chunk)
        transfers = HostTransfers(self, records, tier, latency=latency)
        self._qoe_info["preemption_mode"] = "release" if tier is None else "offload"
        self._qoe_info["host_tokens"] = 0 if tier is None else tier.use().capacity_tokens
        self._qoe_metrics = metrics
        self._records = records
        self._transfers = transfers
        self._wanted_kv = WantedKv(self, records, tier)
        self._limits = QueueLimits(self, records, metrics)
        self._room = room = PrefillRoom(self)
        self._adapters = AdapterPlaces(self)
        self._snapshot = Snapshot(self, records, parked, transfers, room=room, latency=latency)
        self._preemptor = EnginePreemptor(self, records, parked, transfers, latency=latency, metrics=metrics)
        self._iterations = IterationTimes(latency)
        self._reports = Reports(metrics, records, latency=latency, host_use=tier.use if tier is not None else None)

    # Set-up: SGLang's accounting counts the parked, and its queue order is ours

    def init_schedule_policy(self) -> None:
        """At start. The waiting queue stays in the order of the policy, and no priority preempts."""
        super().init_schedule_policy()
        self.policy.calc_priority = lambda *_args, **_kwargs: None
        self.enable_priority_preemption = False

    def init_invariant_checker(self) -> None:
        """At start. The check for leaks adds up the running batch and the last one."""
        super().init_invariant_checker()
        self.invariant_checker.get_running_batch = lambda: self._parked.beside(self.running_batch, self.last_batch)

    def init_load_inquirer(self) -> None:
        """At start. What load balancers are told."""
        super().init_load_inquirer()
        self.load_inquirer = replace(
            self.load_inquirer, get_running_batch=lambda: self._parked.beside(self.running_batch)
        )

    def get_internal_state(self, recv_req: Any) -> Any:
        """For ``/server_info``: with the policy in charge and what it may do with KV."""
        said = super().get_internal_state(recv_req)
        said.internal_state["andes"] = self._qoe_info
        return said

    # Requests come and go

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        """A request arrives, or SGLang has retracted one. A stream that has begun goes back without limits and without a new
        clock; only a new one can be turned away."""
        if self._records.find(req) is not None:
            if is_retracted:
                self._qoe_metrics.retraction()
            self._preemptor.stop(req, "retracted")
            self._records.set_prefix_hit(req, 0)
            self.waiting_queue.append(req)
            return
        if req.rid in self._records:
            self._records.forget(req.rid)
        expectation = expectation_of(req, self._qoe_target)
        with self._limits.only_new():
            super()._add_request_to_queue(req, is_retracted=is_retracted)
        if self.waiting_queue and self.waiting_queue[-1] is req:
            now_s = time.perf_counter()
            arrival_s = req.time_stats.scheduler_recv_time or now_s  # before its grammar was compiled
            preemptible = is_preemptible(req, self.spec_algorithm)
            self._records.add(StreamRecord(req, arrival_s, now_s, expectation, preemptible))

    def _abort_on_queued_limit(self, recv_req: Any) -> bool:
        """At each arrival, inside ``_add_request_to_queue``: True where the queue is full and ``recv_req`` is turned away."""
        with self._limits.departures():
            shed = bool(super()._abort_on_queued_limit(recv_req))
        if shed:
            self._qoe_metrics.finished(0.0)
        return shed

    def _abort_on_waiting_timeout(self) -> None:
        """Once an iteration (``SGLANG_REQ_WAITING_TIMEOUT``), until 0.5.19."""
        if envs.SGLANG_REQ_WAITING_TIMEOUT.get() > 0:
            with self._limits.only_new(), self._limits.departures():
                super()._abort_on_waiting_timeout()

    def _abort_on_running_timeout(self, running_batch: Any) -> None:
        """Once an iteration (``SGLANG_REQ_RUNNING_TIMEOUT``), until 0.5.19. SGLang's clock goes on while a stream is off the
        engine."""
        timeout_s = envs.SGLANG_REQ_RUNNING_TIMEOUT.get()
        if timeout_s > 0:
            reqs = self._limits.ran_for(running_batch.reqs, timeout_s, time.perf_counter())
            super()._abort_on_running_timeout(SimpleNamespace(reqs=reqs, is_empty=lambda: not reqs))

    def _poll_timeout_aborts(self) -> Any:
        """Both since 0.5.20: whom :meth:`abort_request` is told of next, on all ranks."""
        with self._limits.hidden_begun():
            aborts = super()._poll_timeout_aborts()
        return self._limits.without_rested(aborts, envs.SGLANG_REQ_RUNNING_TIMEOUT.get(), time.perf_counter())

    def abort_request(self, recv_req: Any) -> None:
        """A client has gone. SGLang looks for its request in the queue and in the running batch."""
        self._parked.drop_finished()
        aborted = {r.rid for r in self._parked.reqs if recv_req.abort_all or r.rid.startswith(recv_req.rid)}
        self.running_batch = self._preemptor.resume(aborted, self.running_batch)
        with self._limits.departures():
            super().abort_request(recv_req)

    def set_internal_state(self, recv_req: Any) -> Any:
        """On every rank: what readers have received (:func:`andes_sglang.adapter.http_workers.take_readers`), or a setting of
        SGLang's own."""
        readers = read_readers(recv_req.server_args)
        if readers is None:
            return super().set_internal_state(recv_req)
        now_s = time.perf_counter()
        for rid, tokens in readers.items():
            self._records.hear(rid, tokens, now_s)
        return SetInternalStateReqOutput(updated=True)

    def pause_generation(self, recv_req: Any) -> None:
        """An administrator pauses the engine; in mode ``retract`` SGLang retracts the running batch."""
        if recv_req.mode == "retract":
            self._parked.drop_finished()
            self.running_batch = self._preemptor.resume_all(self.running_batch)
        super().pause_generation(recv_req)

    # One iteration

    def get_new_batch_prefill(self, running_batch: Any) -> Any:
        """Once an iteration, when SGLang looks for a prefill: decide, apply, and let it form one from those admitted."""
        self._preemptor.released.clear()
        self._parked.drop_finished()
        self._send_reports(running_batch)
        self._wanted_kv.look_again()
        self._transfers.write_through(running_batch, self._parked.reqs)
        if not self._asks_policy(running_batch):
            return self._form_prefill(running_batch, held_back=self.waiting_queue)
        decision = self._decide(running_batch)
        running_batch = self._preemptor.apply(decision, running_batch)
        by_rid = {req.rid: req for req in self.waiting_queue}
        chosen = protocol.admissible(decision.admit, by_rid, self._preemptor.released)
        admitted = [by_rid.pop(rid) for rid in self._room.newcomers(chosen, by_rid, running_batch)]
        prefills = bool(admitted) or self.chunked_req is not None
        if prefills and not self._transfers.load_ahead(admitted, running_batch):
            running_batch.batch_is_full = False
            plan = self._form_prefill(running_batch, admitted, held_back=list(by_rid.values()))
        else:
            plan = self._form_no_prefill(running_batch)
        return self._never_idle(plan, decision)

    def _asks_policy(self, running_batch: Any) -> bool:
        """Whether there is anything to decide; ``forced`` preempts for its own sake."""
        waiting, parked, running = len(self.waiting_queue), len(self._parked), len(running_batch.reqs)
        if running and isinstance(self._qoe_policy, Forced):
            return True
        behind, can_receive = self._records.behind, self._records.can_receive
        if behind:
            waiting, parked = sum(map(can_receive, self.waiting_queue)), sum(map(can_receive, self._parked.reqs))
        return protocol.asks_policy(waiting, parked, running, self._snapshot.spare_kv_tokens(), behind)

    def _decide(self, running_batch: Any) -> Decision:
        """What to do now; of several ranks the first decides for all."""
        self._snapshot.look_around(running_batch)
        return self._ranks.agree(lambda: self._ask_policy(running_batch))

    def _ask_policy(self, running_batch: Any) -> Decision:
        started_s = time.perf_counter()
        decision = self._adapters.decide(
            lambda hidden: decide_readers_first(self._qoe_policy, self._snapshot.take(running_batch, hidden)),
            running_batch,
        )
        self._qoe_metrics.decision(time.perf_counter() - started_s)
        if not self._in_charge:
            self._qoe_metrics.in_charge(self._qoe_policy.name)
            self._in_charge = True
        return decision

    def _form_prefill(self, running_batch: Any, admitted: Sequence[Any] = (), held_back: Sequence[Any] = ()) -> Any:
        """SGLang's own prefill admission over ``admitted``; those ``held_back`` do not exist for it. Without room for a chunk
        also a prompt that has begun waits."""
        if self._room.tokens(running_batch) < 1:
            return self._form_no_prefill(running_batch)
        self.waiting_queue = list(admitted)
        try:
            with self._room.chunk(running_batch):
                plan = super().get_new_batch_prefill(running_batch)
        finally:
            self.waiting_queue = [*self.waiting_queue, *held_back]
        self._preemptor.note_prefill(plan.batch_to_run)
        return plan

    def _form_no_prefill(self, running_batch: Any) -> Any:
        """What SGLang does besides when it looks for a prefill, for an iteration in which it is not to look."""
        if self.grammar_manager.has_waiting_grammars():
            for req in self.grammar_manager.get_ready_grammar_requests():
                self._add_request_to_queue(req)
        self._transfers.check_events()
        return NextBatchPlan(batch_to_run=None, running_batch=running_batch)

    def _never_idle(self, plan: Any, decision: Decision) -> Any:
        """Parked requests run rather than none, should SGLang not have admitted what the policy chose."""
        if plan.batch_to_run is not None or not self._parked:
            return plan
        running, can_receive = len(plan.running_batch.reqs), self._records.can_receive
        waits = any(map(can_receive, self.waiting_queue))
        reqs = protocol.parked_to_resume(running, self._parked.reqs, len(decision.preempt), can_receive, waits=waits)
        running_batch = self._preemptor.resume({req.rid for req in reqs}, plan.running_batch)
        return NextBatchPlan(batch_to_run=None, running_batch=running_batch)

    def update_running_batch(self, batch: Any) -> Any:
        """Before a decode step. Where KV is about to run out we retract first, and SGLang finds room enough."""
        batch.filter_batch()
        if not batch.is_empty() and not batch.check_decode_mem():
            self._preemptor.retract(batch)
        return super().update_running_batch(batch)

    def run_batch(self, batch: Any, pp_proxy_tensors: Any = None) -> Any:
        """A batch goes to the device."""
        self._iterations.launched(batch)
        return super().run_batch(batch, pp_proxy_tensors)

    def process_batch_result(self, batch: Any, result: Any) -> None:
        """A batch has come back, in overlap mode an iteration later: its tokens reach their readers. Blank: settled."""
        if batch is BLANK:
            return
        super().process_batch_result(batch, result)
        now_s = time.perf_counter()
        told = [record.deliver(now_s) for req in batch.reqs if (record := self._records.find(req)) is not None]
        self._iterations.ended(now_s, sum(told) / max(1, len(told)))
        for req in batch.reqs:
            record = self._records.find(req)
            if record is not None and req.finished():
                self._wanted_kv.ended(record, now_s)
                self._records.end(req, self._qoe_metrics)

    # Idle

    def is_fully_idle(self, *args: Any, **kwargs: Any) -> bool:
        """Asked before a flush and by the health check."""
        return bool(not self._parked and super().is_fully_idle(*args, **kwargs))

    def on_idle(self) -> None:
        """No batch to run: the last figures go out at once. What waits for its reader lets the engine sleep as if it were not
        there; SGLang's message wakes it."""
        self._send_reports(self.running_batch, now=True)
        super().on_idle()
        if self._records.behind and self.idle_sleeper is not None and not self.is_fully_idle():
            self.idle_sleeper.maybe_sleep()

    def _send_reports(self, running_batch: Any, *, now: bool = False) -> None:
        self._reports.send(running=running_batch.reqs, parked=len(self._parked), waiting=self.waiting_queue, now=now)
