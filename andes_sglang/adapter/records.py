"""What is known of each stream beside SGLang's own ``Req``: its reader, its slice, and how often it was stopped.

:class:`StreamRecords` holds one :class:`StreamRecord` a request from its arrival to its end, and keeps the rows that a policy
sees (:class:`andes_sglang.adapter.ledger.Ledger`) in step with them. Times in seconds of ``time.perf_counter``.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import Any

from andes_sglang import expectations, protocol, reception
from andes_sglang.adapter.ledger import Ledger
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.lengths import AnswerLengths, Asked, EngineLengths
from andes_sglang.metrics import EngineMetrics
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Phase, RequestTable, RequestView

__all__ = ["StreamRecord", "StreamRecords", "expectation_of"]

HEAD_TOKENS = 32
"""Of a prompt that tell one application from another (our choice)."""


class StreamRecord:
    """One stream. ``req``: SGLang's request; ``slot``: its row in the ledger."""

    __slots__ = (
        "arrival_s", "cached_tokens", "expectation", "expected_tokens", "hidden_tokens", "host_tokens", "loaded_ahead",
        "number", "preemptible", "preemptions", "prefilled_tokens", "ran_s", "reader", "received_tokens", "req", "running",
        "seen_tokens", "since_s", "slice_start_tokens", "slot", "stopped",
    )  # fmt: skip

    def __init__(
        self, req: Any, arrival_s: float, now_s: float, expectation: ReaderExpectation, preemptible: bool
    ) -> None:
        self.req = req
        self.arrival_s = arrival_s
        self.expectation = expectation
        self.reader = ReaderStream(arrival_s, expectation.target)
        told = expectation.expected_tokens
        self.expected_tokens = math.nan if told is None else float(told)
        """Length of its answer, as far as it is known beforehand."""
        self.seen_tokens = 0
        """Generated tokens that the reader was told of; ``hidden_tokens`` of them as a thought that is not shown."""
        self.hidden_tokens = 0
        self.received_tokens: int | None = None
        """What its reader has got, with the thought, as far as a gateway has said; None: it keeps up."""
        self.slice_start_tokens = 0
        """Generated tokens when it last began to run."""
        self.since_s = now_s
        self.running = False
        self.ran_s = 0.0
        """On the engine, but for the slice that it is in."""
        self.preemptions = 0
        self.prefilled_tokens = 0
        """Since it was last stopped."""
        self.cached_tokens = 0
        """Prefix hit while it waits; ``host_tokens`` of it in host memory only."""
        self.host_tokens = 0
        self.loaded_ahead = False
        self.preemptible = preemptible
        self.stopped: str | None = None
        """How it was taken off the engine (park, release, offload, retracted), until it runs again."""
        self.slot = -1
        self.number = 0
        """In the order in which requests began to wait: the same on all ranks of an engine, as times are not."""

    @property
    def context_tokens(self) -> int:
        return len(self.req.origin_input_ids) + len(self.req.output_ids)

    @property
    def held_tokens(self) -> int:
        """KV tokens of one that is not waiting. Under speculative decoding more than it has said: drafts need room."""
        return self.context_tokens if self.req.kv is None else max(self.context_tokens, self.req.kv.kv_allocated_len)

    @property
    def has_begun(self) -> bool:
        """Whether it ever ran."""
        return self.preemptions > 0 or self.seen_tokens > 0

    @property
    def may_leave(self) -> bool:
        """Whether it can be stopped now. One whose client has gone ends with its next token: stopped, it would keep KV and
        slot for as long as others come first."""
        return self.preemptible and self.req.to_finish is None

    @property
    def unreceived_tokens(self) -> int:
        """Generated and not with the reader yet."""
        return 0 if self.received_tokens is None else max(0, len(self.req.output_ids) - self.received_tokens)

    @property
    def can_receive(self) -> bool:
        """Of one that is off the engine: whether its reader can receive more."""
        return not reception.cannot_receive(self.unreceived_tokens, self.reader.tds, runs=False)

    @property
    def dry_at_s(self) -> float:
        """When its reader has read everything delivered so far."""
        return self.reader.start_s + self.reader.end_s

    def on_engine_s(self, now_s: float) -> float:
        """How long it has been on the engine in all."""
        return self.ran_s + (now_s - self.since_s if self.running else 0.0)

    def deliver(self, now_s: float) -> int:
        """Tell the reader of the tokens generated since the last call; how many there are. SGLang counts those of a thought
        that its reasoning parser takes out of the answer, and none where it takes none out."""
        new = len(self.req.output_ids) - self.seen_tokens
        if new > 0:
            hidden = self.req.reasoning_tokens - self.hidden_tokens if self.expectation.hides_reasoning else 0
            self.reader.think(hidden)
            self.reader.deliver(now_s, new - hidden)
            self.hidden_tokens += hidden
            self.seen_tokens += new
        return max(0, new)

    def stop(self, mode: str, now_s: float) -> None:
        """It leaves the batch."""
        self.ran_s = self.on_engine_s(now_s)
        self.running = False
        self.preemptions += 1
        self.stopped = mode
        self.loaded_ahead = False
        self.prefilled_tokens = 0
        self.since_s = now_s

    def start(self, now_s: float) -> None:
        """It runs: a new slice begins."""
        self.ran_s = self.on_engine_s(now_s)
        self.running = True
        self.stopped = None
        self.slice_start_tokens = len(self.req.output_ids)
        self.since_s = now_s

    def view(self, phase: Phase, kept_tokens: int = 0) -> RequestView:
        """As a policy sees it. kept_tokens: of a request that holds its KV, what a release would not lose."""
        prompt, output = len(self.req.origin_input_ids), len(self.req.output_ids)
        waits = phase is Phase.WAITING
        return RequestView(
            rid=self.req.rid,
            phase=phase,
            arrival_s=self.arrival_s,
            reader=self.reader,
            prompt_tokens=prompt,
            output_tokens=output,
            kv_tokens=0 if waits else self.held_tokens,
            cached_tokens=min(self.cached_tokens, protocol.max_prefix_hit_tokens(prompt + output)) if waits else 0,
            host_tokens=self.host_tokens if waits else kept_tokens,
            remaining_tokens=max(0, self.req.sampling_params.max_new_tokens - output),
            slice_tokens=output - self.slice_start_tokens,
            phase_since_s=self.since_s,
            preemptions=self.preemptions,
            preemptible=self.may_leave,
            weight=self.expectation.weight,
            yields=self.expectation.yields,
            expected_tokens=self.expected_tokens,
            unreceived_tokens=self.unreceived_tokens,
        )


def expectation_of(req: Any, default: QoETarget) -> ReaderExpectation:
    """What ``req`` says of its reader. Where that is malformed and SGLang's front end has not refused it, ``req`` is marked
    to end with 400 and the message, as SGLang does with what it finds invalid here."""
    try:
        return expectations.parse(req.sampling_params.custom_params, default)
    except ValueError as error:
        req.set_finish_with_abort(str(error))
        return ReaderExpectation(default)


def _asked(req: Any, told_tokens: int | None = None) -> Asked:
    """What is known of ``req`` when it comes."""
    ids = req.origin_input_ids
    return Asked(len(ids), told_tokens, ",".join(map(str, ids[:HEAD_TOKENS])).encode())


class StreamRecords:
    """The records of all streams on this engine, by request id. lengths: foresees those of answers."""

    def __init__(self, lengths: AnswerLengths | None = None) -> None:
        self._by_rid: dict[str, StreamRecord] = {}
        self._ledger = Ledger()
        self._lengths = EngineLengths() if lengths is None else lengths
        self._added = 0
        self._behind: set[str] = set()

    def __len__(self) -> int:
        return len(self._by_rid)

    def __contains__(self, rid: object) -> bool:
        return rid in self._by_rid

    def __iter__(self) -> Iterator[StreamRecord]:
        return iter(self._by_rid.values())

    def __getitem__(self, rid: str) -> StreamRecord:
        return self._by_rid[rid]

    def find(self, req: Any) -> StreamRecord | None:
        """The record of ``req``; None where there is none, or one of an earlier request with the same id."""
        record = self._by_rid.get(req.rid)
        return record if record is not None and record.req is req else None

    def has_begun(self, req: Any) -> bool:
        record = self._by_rid.get(req.rid)
        return record is not None and record.has_begun

    def yields(self, req: Any) -> bool:
        """Whether ``req``, None for none, has no reader."""
        record = self.find(req) if req is not None else None
        return record is not None and record.expectation.yields

    @property
    def behind(self) -> int:
        """How many readers are known to lag behind what was generated for them."""
        return len(self._behind)

    def can_receive(self, req: Any) -> bool:
        """Whether the reader of ``req``, which is off the engine, can receive more."""
        return req.rid not in self._behind or self._by_rid[req.rid].can_receive

    def hear(self, rid: str, tokens: int | None, now_s: float) -> None:
        """The reader of the request ``rid``, if there is one, has received ``tokens`` by now; None: it keeps up."""
        record = self._by_rid.get(rid)
        if record is None:
            return
        record.received_tokens = tokens
        if tokens is None:
            self._behind.discard(rid)
        else:
            self._behind.add(rid)
            unreceived = min(record.seen_tokens - tokens, record.reader.delivered)
            record.reader.stand_still(reception.has_until_s(now_s, unreceived, record.reader.tds))
        if not record.running:  # of the parked it is written once more before it is read
            self._ledger.write(record.slot, record.view(Phase.WAITING))

    def add(self, record: StreamRecord) -> None:
        """A request begins to wait."""
        record.expected_tokens = self._lengths.expected_tokens(_asked(record.req, record.expectation.expected_tokens))
        self._by_rid[record.req.rid] = record
        record.slot = self._ledger.add(record.view(Phase.WAITING))
        self._added += 1
        record.number = self._added

    def end(self, req: Any, metrics: EngineMetrics) -> None:
        """``req`` has finished. A health check is no answer: it neither counts nor teaches a length; nor does what yields
        teach those of readers."""
        if not protocol.is_health_check(req.rid):
            metrics.finished(self._by_rid[req.rid].reader.final_qoe())
            if not self.yields(req):
                self.learn_length(req)
        self.forget(req.rid)

    def learn_length(self, req: Any) -> None:
        """Its answer has ended. One that was aborted teaches nothing, one that ``max_tokens`` cut that it would have been
        longer; with ``ignore_eos`` the limit is the length that was asked for."""
        reason = req.finished_reason.to_json()["type"]
        if reason != "abort":
            finished = reason != "length" or bool(req.sampling_params.ignore_eos)
            self._lengths.learn(_asked(req), len(req.output_ids), finished=finished)

    def forget(self, rid: str) -> None:
        self._ledger.remove(self._by_rid.pop(rid).slot)
        self._behind.discard(rid)

    def forget_all_but(self, rids: Container[str]) -> None:
        for rid in [rid for rid in self._by_rid if rid not in rids]:
            self.forget(rid)

    def slot_of(self, rid: str) -> int:
        """Its row in the ledger; -1 without such a request."""
        record = self._by_rid.get(rid)
        return record.slot if record is not None else -1

    def rid_at(self, slot: int) -> str:
        return self._ledger.rid(slot)

    def set_prefix_hit(self, req: Any, tokens: int, host_tokens: int = 0) -> None:
        """What a waiting request would find in the radix tree, ``host_tokens`` of it in host memory only."""
        record = self._by_rid[req.rid]
        record.cached_tokens, record.host_tokens = tokens, host_tokens
        self._ledger.write(record.slot, record.view(Phase.WAITING))

    def refresh(self, req: Any, phase: Phase, kept_tokens: int) -> int:
        """Bring the row of a request that holds KV up to date; its KV tokens."""
        record = self._by_rid[req.rid]
        view = record.view(phase, kept_tokens)
        self._ledger.write(record.slot, view)
        return view.kv_tokens

    def table(self, reqs: Sequence[Any]) -> RequestTable:
        """The rows of ``reqs``, in that order."""
        return self._ledger.table([self._by_rid[req.rid].slot for req in reqs])
