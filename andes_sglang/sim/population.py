"""A replica's requests as the columns that a policy is shown, kept up to date instead of built for every decision.

A waiting request does not change, so its column entries are written once. Of what runs, tokens are counted from the step
at which it joined the batch, and readers are brought up to date in a few array expressions, however many steps have passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from andes_sglang.lengths import AnswerLengths, Asked, EngineLengths
from andes_sglang.qoe import Readers
from andes_sglang.reception import cannot_receive, has_until_s
from andes_sglang.request import RequestSpec
from andes_sglang.sim.step_clock import StepClock
from andes_sglang.state import READER_WIDTH, ROW_WIDTH, Phase, RequestTable

__all__ = ["NoPopulation", "Population"]

Array = npt.NDArray[np.float64]
(
    START, TDS, DELIVERED, END, LATENESS, PHASE, ARRIVAL, PROMPT, OUTPUT, KV, CACHED, HOST, REMAINING, SLICE, SINCE,
    PREEMPTIONS, PREEMPTIBLE, WEIGHT, YIELDS, EXPECTED, UNRECEIVED,
) = range(ROW_WIDTH)  # fmt: skip
"""The order of :meth:`andes_sglang.state.RequestView.row`."""


class _Table(RequestTable):
    """Its readers are brought up to date when a policy first reads them, for not every policy does at every decision; and
    request ids are looked up only where they are asked for."""

    __slots__ = ("_all_rids", "_follow", "_slots")

    def __init__(
        self,
        all_rids: npt.NDArray[np.object_],
        slots: npt.NDArray[np.intp],
        columns: Array,
        follow: Callable[[], Array],
    ) -> None:
        self._all_rids, self._slots, self.columns = all_rids, slots, columns
        self._follow: Callable[[], Array] | None = follow

    @property
    def rids(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._all_rids[self._slots].tolist())

    def names(self, rows: Iterable[Any]) -> tuple[str, ...]:
        return tuple(self._all_rids[self._slots[row]] for row in rows)

    @property
    def readers(self) -> Readers:
        if self._follow is not None:
            followed = self._follow()
            self.columns[:READER_WIDTH, : followed.shape[1]] = followed
            self._follow = None
        return super().readers


class Population:
    """Columns by slot; a slot belongs to one request from :meth:`add` to :meth:`remove`. Times in clock seconds.
    written_through: what runs has a copy in host memory. lengths: foresees those of answers. The methods are named after what
    happens to a request."""

    def __init__(
        self, capacity: int = 256, *, written_through: bool = False, lengths: AnswerLengths | None = None
    ) -> None:
        self._written_through = written_through
        self._columns: Array = np.zeros((ROW_WIDTH, capacity))
        self._joined_step: npt.NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self._seen_step: npt.NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self._rids = np.full(capacity, "", dtype=object)
        self._thought: Array = np.zeros((2, capacity))
        self._thinks = False
        self._lengths = EngineLengths() if lengths is None else lengths
        self._free = list(range(capacity - 1, -1, -1))
        self._received: dict[int, int] = {}  # tokens, by slot, of the readers who are behind

    def add(self, rid: str, spec: RequestSpec, max_tokens: int) -> int:
        """The slot of a request that begins to wait."""
        if not self._free:
            size = len(self._rids)
            self._rids = np.concatenate([self._rids, np.full(size, "", dtype=object)])
            self._columns = np.hstack([self._columns, np.zeros_like(self._columns)])
            self._thought = np.hstack([self._thought, np.zeros_like(self._thought)])
            self._joined_step = np.concatenate([self._joined_step, np.zeros_like(self._joined_step)])
            self._seen_step = np.concatenate([self._seen_step, np.zeros_like(self._seen_step)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        slot = self._free.pop()
        self._rids[slot] = rid
        self._thought[:, slot] = spec.reason_tokens, 1.0 / spec.target.think_tds
        self._thinks = self._thinks or spec.reason_tokens > 0
        self._columns[:, slot] = (
            spec.target.start_s(spec.arrival_s, spec.reason_tokens), spec.target.tds, 0, 0, 0, Phase.WAITING,
            spec.arrival_s, spec.prompt_tokens, 0, 0, 0, 0, max_tokens, 0, spec.arrival_s, 0, True, spec.weight, spec.yields,
            self._lengths.expected_tokens(_asked(spec)), 0,
        )  # fmt: skip
        return slot

    def learn(self, spec: RequestSpec) -> None:
        """The answer to ``spec`` has ended; one that fills what its client allows may have been cut there."""
        finished = spec.max_tokens is None or spec.output_tokens < spec.max_tokens
        self._lengths.learn(_asked(spec), spec.output_tokens, finished=finished)

    def remove(self, slot: int) -> None:
        self._free.append(slot)
        self._received.pop(slot, None)

    @property
    def behind(self) -> int:
        """How many readers are known to lag behind what was generated for them."""
        return len(self._received)

    def hear(self, slot: int, clock: StepClock, tokens: int | None) -> float:
        """The reader has received ``tokens`` so far, None: all. The seconds for which its clock has stood still meanwhile
        (:meth:`andes_sglang.qoe.ReaderStream.stand_still`)."""
        if tokens is None:
            self._received.pop(slot, None)
            return 0.0
        self._received[slot] = tokens
        c, generated = self._columns, self._columns[OUTPUT, slot]
        if c[PHASE, slot] == Phase.RUNNING:
            generated += clock.sent_steps - self._joined_step[slot]
            self.follow([slot], clock, clock.sent_steps)
        unreceived = min(generated - tokens, generated - self._thought[0, slot])
        until_s = has_until_s(clock.now_s, unreceived, c[TDS, slot])
        stood_s = max(0.0, float(until_s - c[START, slot] - c[END, slot]))
        c[START, slot] += stood_s
        return stood_s

    def can_receive(self, slot: int) -> bool:
        """Of one that is off the engine."""
        if (received := self._received.get(slot)) is None:
            return True
        return not cannot_receive(self._columns[OUTPUT, slot] - received, self._columns[TDS, slot], runs=False)

    def start(self, slot: int, now_s: float) -> None:
        """It has been chosen to run: a new slice begins."""
        c = self._columns
        c[SLICE, slot], c[SINCE, slot] = 0, now_s

    def join(self, slot: int, step: int) -> None:
        """It is in the batch and gets a token at every step after ``step``."""
        c = self._columns
        c[PHASE, slot], c[CACHED, slot], c[HOST, slot] = Phase.RUNNING, 0, 0
        c[KV, slot] = c[PROMPT, slot] + c[OUTPUT, slot]
        self._joined_step[slot] = self._seen_step[slot] = step

    def stop(self, slot: int, clock: StepClock, phase: Phase, cached_tokens: int) -> None:
        """It has just left the batch, or its half computed prompt waits again: parked with its KV, or waiting without,
        ``cached_tokens`` of it in the cache."""
        c = self._columns
        if c[PHASE, slot] == Phase.RUNNING:  # what was parked has been counted
            _count(c[:, slot], clock.steps - self._joined_step[slot])
        c[PHASE, slot], c[SINCE, slot], c[CACHED, slot] = phase, clock.now_s, cached_tokens
        c[PREEMPTIONS, slot] += 1
        if phase is Phase.WAITING:
            c[KV, slot] = 0

    def set_cached(self, slot: int, tokens: int, host_tokens: int) -> None:
        self._columns[CACHED, slot], self._columns[HOST, slot] = tokens, host_tokens

    def dry_at_s(self, slot: int) -> float:
        """When its reader has read all that was delivered."""
        readers = self._columns[:READER_WIDTH, slot : slot + 1].copy()
        self._show(readers, np.array([slot]))
        return float(readers[START, 0] + readers[END, 0])

    def deliver(self, slot: int, at_s: float) -> None:
        """One token reaches the reader outside the batch's steps: the first after a prefill."""
        c = self._columns
        read = c[DELIVERED, slot] - self._thought[0, slot]
        if read >= 0:
            digest = max(at_s - c[START, slot], c[END, slot])
            c[LATENESS, slot] += digest - read / c[TDS, slot]
            c[END, slot] = digest + 1.0 / c[TDS, slot]
        _count(c[:, slot], 1)

    def add_tokens(self, slots: Sequence[int], tokens: Sequence[int], clock: StepClock, at_s: float) -> None:
        """So many tokens more than that of the last step reach the readers of these, in the batch, at ``at_s``."""
        rows, more = np.asarray(slots, dtype=np.intp), np.asarray(tokens, dtype=np.float64)
        self.follow(rows, clock, clock.steps)
        columns = self._columns[:, rows]
        _count(columns, self._news(rows, clock.steps))
        self._joined_step[rows] = self._seen_step[rows] = clock.steps
        start, tds, delivered, end = columns[: END + 1]
        thought = self._thought[0].take(rows)
        read = np.maximum(delivered - thought, 0.0)
        shown = np.clip(delivered + more - thought, 0.0, more)
        digest = np.maximum(at_s - start, end)
        columns[LATENESS] += shown * (digest - read / tds)
        columns[END] = np.where(shown > 0, digest + shown / tds, end)
        _count(columns, more)
        self._columns[:, rows] = columns

    def follow(self, slots: Sequence[int] | npt.NDArray[np.intp], clock: StepClock, step: int) -> Array:
        """The readers' columns of those in the batch, brought up to ``step`` of ``clock``; shape (READER_WIDTH, n).

        Token k of the news, at u[k] = end - start - k / tds, is digested at k / tds + max(E, u[0..k]) with E the reader's
        end before: the recurrence of :class:`andes_sglang.qoe.ReaderStream` for all requests and steps at once.
        """
        rows = np.asarray(slots, dtype=np.intp)
        seen = self._seen_step.take(rows)
        if not len(rows) or (oldest := int(seen.min())) >= step:
            return self._readers(rows, step)
        times = clock.ends_s(oldest, step)
        start, tds, delivered, end, lateness = self._columns[: LATENESS + 1].take(rows, axis=1)
        delivered += seen - self._joined_step.take(rows)
        shown = seen
        if self._thinks:
            thought = self._thought[0].take(rows)
            shown = seen + np.maximum(thought - delivered, 0.0).astype(np.int64)
            delivered = np.maximum(delivered - thought, 0.0)
        news = np.maximum(step - shown, 0)
        pace = 1.0 / tds
        if len(times) == 1:
            late = np.where(news > 0, times[0] - start, -np.inf)
            digest = late_sum = np.maximum(late, end)
        else:
            k = np.arange(oldest, step)[:, None] - shown
            late = times[:, None] - start - k * pace
            late[k < 0] = -np.inf
            np.maximum(late[0], end, out=late[0])
            np.maximum.accumulate(late, axis=0, out=late)
            digest, late_sum = late[-1], late.sum(axis=0)
        silent = len(times) - news
        self._columns[LATENESS][rows] = lateness + late_sum - silent * end - pace * news * delivered
        self._columns[END][rows] = digest + news * pace
        self._seen_step[rows] = np.maximum(seen, step)
        return self._readers(rows, step)

    def _readers(self, rows: npt.NDArray[np.intp], step: int) -> Array:
        columns = self._columns[:READER_WIDTH].take(rows, axis=1)
        columns[DELIVERED] += self._news(rows, step)
        self._show(columns, rows)
        return columns

    def _show(self, columns: Array, rows: npt.NDArray[np.intp]) -> None:
        """Of the readers' ``columns`` of ``rows``, which count all tokens and know the whole thought, what is known now."""
        if self._thinks:
            thought, pace = self._thought.take(rows, axis=1)
            columns[START] -= np.maximum(thought - columns[DELIVERED], 0.0) * pace
            np.maximum(columns[DELIVERED] - thought, 0.0, out=columns[DELIVERED])

    def _news(self, rows: npt.NDArray[np.intp], step: int) -> Array:
        """Tokens since each joined."""
        return np.maximum(step - self._joined_step.take(rows), 0.0)

    def table(
        self, clock: StepClock, *, running: list[int], parked: list[int], waiting: list[int]
    ) -> tuple[RequestTable, int]:
        """The rows of these slots, in that order, and the KV tokens they hold; tokens and readers as of the last step that
        was sent. To be read before anything else happens."""
        step = clock.sent_steps
        slots = np.array(running + parked + waiting, dtype=np.intp)
        columns = self._columns.take(slots, axis=1)
        batch = len(running)
        _count(columns[:, :batch], self._news(slots[:batch], step))
        for column in np.flatnonzero(np.isin(slots, list(self._received))) if self._received else ():
            received = self._received[int(slots[column])]
            columns[UNRECEIVED, column] = max(0.0, columns[OUTPUT, column] - received)
        if self._written_through:
            holding = slice(batch + len(parked))
            columns[HOST, holding] = columns[KV, holding]
        self._show(columns, slots)
        follow = partial(self.follow, slots[:batch], clock, step)
        return _Table(self._rids, slots, columns, follow), int(columns[KV].sum())


class NoPopulation(Population):
    """In the place of a population where no policy is asked: nothing is written down."""

    def __init__(self) -> None:
        super().__init__(0)

    def add(self, rid: str, spec: RequestSpec, max_tokens: int) -> int:  # noqa: ARG002
        return -1

    def learn(self, spec: RequestSpec) -> None:
        pass

    def start(self, slot: int, now_s: float) -> None:
        pass

    def join(self, slot: int, step: int) -> None:
        pass

    def stop(self, slot: int, clock: StepClock, phase: Phase, cached_tokens: int) -> None:
        pass

    def hear(self, slot: int, clock: StepClock, tokens: int | None) -> float:  # noqa: ARG002
        return 0.0

    def deliver(self, slot: int, at_s: float) -> None:
        pass

    def add_tokens(self, slots: Sequence[int], tokens: Sequence[int], clock: StepClock, at_s: float) -> None:
        pass

    def follow(self, slots: Sequence[int] | npt.NDArray[np.intp], clock: StepClock, step: int) -> Array:  # noqa: ARG002
        return np.empty((READER_WIDTH, 0))


def _count(columns: Array, tokens: Any) -> None:
    """Each of the requests has ``tokens`` more."""
    for counter in (DELIVERED, OUTPUT, KV, SLICE):
        columns[counter] += tokens
    columns[REMAINING] -= tokens


def _asked(spec: RequestSpec) -> Asked:
    """What is known of it when it comes: class and tenant too, as a gateway knows them."""
    head = spec.blocks[0] if spec.blocks else spec.session_id
    return Asked(
        spec.prompt_tokens, spec.expected_tokens, None if head is None else str(head).encode(), spec.reader_class or "",
        spec.tenant,
    )  # fmt: skip
