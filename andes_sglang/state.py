"""What a scheduling policy sees and what it says. Pure data: no clock, no engine, no I/O.

A request is in one of three places. WAITING holds no KV of its own (new, or released: then part of its KV may
still be in the radix cache, or have a copy in host memory). RUNNING is in the decode batch. PARKED has left the batch and
keeps its KV.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import Readers, ReaderStream
from andes_sglang.speculation import Speculation

__all__ = [
    "ROW_WIDTH",
    "Decision",
    "Drafting",
    "Phase",
    "Preemption",
    "PreemptionMode",
    "RequestTable",
    "RequestView",
    "SchedulerState",
]


class Phase(IntEnum):
    """Where a request is. Parked: off the batch, its KV kept on the GPU. Released requests wait again."""

    WAITING = 0
    RUNNING = 1
    PARKED = 2


class PreemptionMode(Enum):
    """PARK leaves the batch and keeps its KV; RELEASE gives the KV to the radix cache, unlocked; OFFLOAD also keeps a copy
    in host memory. On an engine with a host tier a RELEASE is an OFFLOAD as long as there is room."""

    PARK = "park"
    RELEASE = "release"
    OFFLOAD = "offload"


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request as a policy sees it.

    prompt_tokens, output_tokens: prompt length and tokens generated so far (known to the engine, which may be ahead of
    what was delivered). kv_tokens: KV tokens held now (0 while WAITING). cached_tokens: leading tokens a WAITING
    request need not compute (its prefix hit). host_tokens: those of them that are in host memory only and have to be loaded;
    of a RUNNING or PARKED request the tokens that it would not lose by a release.
    remaining_tokens: most tokens it may still generate.
    slice_tokens: tokens generated since it last started running. phase_since_s: when it entered its phase.
    preemptions: how often it was preempted so far.
    preemptible: False for what must not be chosen as a victim (features that do not survive preemption, chunk in
    flight). weight: value of this request's QoE relative to others, > 0. yields: it has no reader who waits, and runs on what
    those with one leave over (:mod:`andes_sglang.policy.yielding`), whatever the policy.
    expected_tokens: length of the whole answer, as the caller told it or as the engine has learned, NaN where it is unknown;
    ``andes`` uses it with ``fairness``.
    unreceived_tokens: of those generated the last ones, which have not reached the reader as far as is known
    (:mod:`andes_sglang.reception`). Where there is KV for all, nothing runs whose reader cannot receive, whatever the policy
    (:mod:`andes_sglang.policy.yielding`).
    """

    rid: str
    phase: Phase
    arrival_s: float
    reader: ReaderStream
    prompt_tokens: int
    output_tokens: int = 0
    kv_tokens: int = 0
    cached_tokens: int = 0
    host_tokens: int = 0
    remaining_tokens: int = 1 << 20
    slice_tokens: int = 0
    phase_since_s: float = 0.0
    preemptions: int = 0
    preemptible: bool = True
    weight: float = 1.0
    yields: bool = False
    expected_tokens: float = math.nan
    unreceived_tokens: int = 0

    def row(self) -> tuple[float, ...]:
        """This request as a row of a :class:`RequestTable`: the reader's columns, then the others, in order."""
        r = self.reader
        return (
            r.start_s,
            r.tds,
            r.delivered,
            r.end_s,
            r.lateness_s,
            self.phase,
            self.arrival_s,
            self.prompt_tokens,
            self.output_tokens,
            self.kv_tokens,
            self.cached_tokens,
            self.host_tokens,
            self.remaining_tokens,
            self.slice_tokens,
            self.phase_since_s,
            self.preemptions,
            self.preemptible,
            self.weight,
            self.yields,
            self.expected_tokens,
            self.unreceived_tokens,
        )


Array = npt.NDArray[np.float64]
READER_WIDTH = len(Readers._fields)
ROW_WIDTH = 21


class _Column:
    """The columns after the readers' are numbered in the order in which the table declares them."""

    _numbers = itertools.count(READER_WIDTH)

    def __init__(self) -> None:
        self.number = next(self._numbers)

    def __get__(self, table: RequestTable, owner: type) -> Array:
        column: Array = table.columns[self.number]
        return column


class RequestTable:
    """The population as columns: every array is float64 of shape (N,); row i is the request ``rids[i]``. columns: all of
    them, shape (ROW_WIDTH, N), in the order of :meth:`RequestView.row`."""

    __slots__ = ("columns", "rids")

    def __init__(self, rids: tuple[str, ...], columns: Array) -> None:
        self.rids = rids
        self.columns = columns

    phase = _Column()
    arrival_s = _Column()
    prompt_tokens = _Column()
    output_tokens = _Column()
    kv_tokens = _Column()
    cached_tokens = _Column()
    host_tokens = _Column()
    remaining_tokens = _Column()
    slice_tokens = _Column()
    phase_since_s = _Column()
    preemptions = _Column()
    preemptible = _Column()
    weight = _Column()
    yields = _Column()
    expected_tokens = _Column()
    unreceived_tokens = _Column()

    @property
    def readers(self) -> Readers:
        return Readers(*self.columns[:READER_WIDTH])

    @classmethod
    def of(cls, views: Iterable[RequestView]) -> RequestTable:
        views = list(views)
        rows = np.array([view.row() for view in views], dtype=np.float64).reshape(len(views), ROW_WIDTH)
        return cls.of_rows(tuple(view.rid for view in views), rows)

    @classmethod
    def of_rows(cls, rids: tuple[str, ...], rows: Array) -> RequestTable:
        """From an array of shape (N, ROW_WIDTH), a row as :meth:`RequestView.row` gives it; the array is copied."""
        return cls(rids, rows.T.copy())

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    def only(self, rows: npt.NDArray[np.bool_]) -> RequestTable:
        """Those rows, shape (N,), as a table of its own."""
        readers = np.stack(self.readers)[:, rows]
        rids = tuple(itertools.compress(self.rids, rows.tolist()))
        return RequestTable(rids, np.vstack([readers, self.columns[READER_WIDTH:, rows]]))

    def is_in(self, phase: Phase) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""
        inside: npt.NDArray[np.bool_] = self.phase == float(phase)  # numpy compares floats faster than enums
        return inside

    def rows(self, phase: Phase) -> npt.NDArray[np.intp]:
        """Row numbers of the requests in ``phase``, ascending."""
        return np.flatnonzero(self.is_in(phase))

    @property
    def context_tokens(self) -> Array:
        """KV tokens each request holds or would hold once it runs, shape (N,)."""
        return np.maximum(self.kv_tokens, self.prompt_tokens + self.output_tokens)

    def names(self, rows: Iterable[Any]) -> tuple[str, ...]:
        return tuple(self.rids[int(i)] for i in rows)


class Drafting(NamedTuple):
    """What drafts cost, how probable it is that a token drafted for each request is accepted, shape (N,), and how long a step
    of the batch takes without any, in seconds."""

    speculation: Speculation
    acceptance: Array
    step_s: float


@dataclass(frozen=True, slots=True, eq=False)
class SchedulerState:
    """One engine at one moment.

    now_s: clock seconds, the clock of arrivals and deliveries. kv_capacity_tokens: KV tokens of the whole pool.
    max_running: batch bound. latency: cost model of this engine. kv_reserved_tokens, running_reserved: KV tokens and places
    in the batch held by what is not in ``requests`` (a prefill in flight); yielding_reserved: places of those that are held
    by what yields. chunk_tokens: prefill tokens of one iteration. page_tokens: KV is allotted in pages of so many. drafting:
    of an engine that decodes speculatively, by the decision's ``draft``.
    """

    now_s: float
    requests: RequestTable
    kv_capacity_tokens: int
    max_running: int
    latency: LatencyModel
    kv_reserved_tokens: int = 0
    running_reserved: int = 0
    yielding_reserved: int = 0
    chunk_tokens: int = 8192
    page_tokens: int = 1
    drafting: Drafting | None = None

    @property
    def pool_tokens(self) -> int:
        """KV tokens that ``requests`` may hold."""
        return self.kv_capacity_tokens - self.kv_reserved_tokens


@dataclass(frozen=True, slots=True)
class Preemption:
    """Take ``rid`` off the engine in ``mode``; ``reason`` is one word for metrics and traces."""

    rid: str
    mode: PreemptionMode
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do before the next iteration.

    preempt: RUNNING (or, with RELEASE, PARKED) requests to take off, applied first. resume: PARKED requests to put back
    into the batch. admit: WAITING requests to prefill, most urgent first; the engine takes from the front as many as
    fit its prefill budget and leaves the others for the next decision. draft: of requests that run, how many tokens are
    drafted for them in a step (:mod:`andes_sglang.speculation`); the simulator alone does so. What is named nowhere stays as
    it is; what ``draft`` does not name has none.
    """

    admit: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    preempt: tuple[Preemption, ...] = field(default=())
    draft: tuple[tuple[str, int], ...] = ()

    def preempt_for_slots(
        self, running: int, max_running: int, free_slots: int, parked: Iterable[str]
    ) -> list[Preemption]:
        """``preempt``, with releases in the place of parks, and of ``parked`` requests too, where those admitted need the
        request slots: what is parked keeps its slot. running: requests in the batch; free_slots: unused request slots."""
        preempt = list(self.preempt)
        wanted = min(len(self.admit), max_running - (running + len(self.resume) - len(preempt)))
        short = wanted - sum(p.mode is not PreemptionMode.PARK for p in preempt) - free_slots
        if short <= 0:
            return preempt
        named = {p.rid for p in preempt}.union(self.resume)
        idle = [rid for rid in parked if rid not in named]
        preempt += [Preemption(rid, PreemptionMode.RELEASE, "slot") for rid in idle[:short]]
        short -= len(idle)
        for i, preemption in enumerate(preempt):
            if short > 0 and preemption.mode is PreemptionMode.PARK:
                preempt[i] = replace(preemption, mode=PreemptionMode.RELEASE)
                short -= 1
        return preempt
