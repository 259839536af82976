"""The decode batch: which requests run, when each of them leaves, and how much they may still generate."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from andes_sglang.sim.job import Job
from andes_sglang.sim.step_clock import StepClock
from andes_sglang.state import Phase

__all__ = ["Batch"]

_INITIAL_SEATS = 64
"""Requests that the arrays hold before they grow."""


class Batch:
    """running, parked: the requests with their population rows; the parked have left the batch and keep slot and KV.

    context_tokens: KV tokens that a decode step of the batch attends to. changed: whether a request has joined or left since
    that was last set to False. leaves_late: a request stays one step longer than it generates.
    """

    def __init__(self, clock: StepClock, max_running: int, *, leaves_late: bool) -> None:
        self.running: dict[Job, int] = {}
        self.parked: dict[Job, int] = {}
        self.context_tokens = 0
        self.changed = True
        self._clock = clock
        self._leaves_late = leaves_late
        self._limits = np.zeros(min(max_running, _INITIAL_SEATS), dtype=np.int64)
        self._seats = list(range(len(self._limits)))
        self._leaving: list[tuple[int, int, int, Job]] = []

    def join(self, job: Job) -> None:
        """It gets a token at every step from now on."""
        step = self._clock.steps
        job.phase = Phase.RUNNING
        job.joined_step = step
        job.epoch += 1
        self.running[job] = job.slot
        self.changed = True
        self.context_tokens += job.context_tokens
        if not self._seats:
            self._seats = list(range(len(self._limits), 2 * len(self._limits)))
            self._limits = np.concatenate([self._limits, np.zeros_like(self._limits)])
        job.seat = self._seats.pop()
        self._limits[job.seat] = step + job.max_tokens - job.generated
        last = step + job.spec.output_tokens - job.generated
        heapq.heappush(self._leaving, (last + self._leaves_late, job.index, job.epoch, job))

    def leave(self, job: Job) -> None:
        """It leaves the batch, or the parked; what it generated is written down, and its KV stays its own."""
        job.epoch += 1
        if job.phase is Phase.PARKED:
            del self.parked[job]
            return
        del self.running[job]
        self.changed = True
        self._limits[job.seat] = 0
        self._seats.append(job.seat)
        steps = self._clock.steps - job.joined_step
        self.context_tokens -= job.context_tokens + steps
        job.uncached_tokens += steps
        if tokens := min(steps, job.spec.output_tokens - job.generated):
            job.times_s.append(self._clock.ends_s(job.joined_step, job.joined_step + tokens).copy())
            job.generated += tokens

    def add(self, job: Job, tokens: int, at_s: float) -> None:
        """``tokens`` more than the one of the last step reach it at ``at_s``."""
        self.leave(job)
        job.times_s.append(np.full(tokens, at_s))
        job.generated += tokens
        job.uncached_tokens += tokens
        self.join(job)

    def generated(self, job: Job) -> int:
        """Tokens that a running ``job`` has generated, one beyond its answer where it leaves late."""
        return job.generated + self._clock.steps - job.joined_step

    def reserved_tokens(self, clip_tokens: int) -> int:
        """Most tokens that those running may still generate, each counted up to ``clip_tokens``."""
        return int(np.minimum(np.maximum(self._limits - self._clock.steps, 0), clip_tokens).sum())

    @property
    def oldest_step(self) -> int:
        """The first step that the delivery times of a running request are read from."""
        return min((job.joined_step for job in self.running), default=self._clock.steps)

    def next_leave(self) -> int:
        """The step after which the next request leaves; a request must be running."""
        leaving = self._leaving
        while leaving[0][2] != leaving[0][3].epoch:
            heapq.heappop(leaving)
        return leaving[0][0]

    def continuing_slots(self) -> list[int]:
        """Population rows of the running requests but for those that have generated everything and leave after this step."""
        slots = list(self.running.values())
        if slots and self._leaves_late and self.next_leave() == self._clock.steps + 1:
            for job in self._leaving_next():
                slots.remove(job.slot)
        return slots

    def _leaving_next(self) -> list[Job]:
        """The requests that leave after :meth:`next_leave`."""
        heap, indices, jobs = self._leaving, [0], []
        while indices:
            at = indices.pop()
            if at < len(heap) and heap[at][0] == heap[0][0]:
                _, _, epoch, job = heap[at]
                jobs += [job] * (job.epoch == epoch)
                indices += (2 * at + 1, 2 * at + 2)
        return jobs

    def pop_completed(self) -> Sequence[Job]:
        """The requests that leave by now, having generated everything; they are still in the batch."""
        leaving, steps = self._leaving, self._clock.steps
        if not leaving or leaving[0][0] > steps:
            return ()
        jobs = []
        while leaving and leaving[0][0] <= steps:
            _, _, epoch, job = heapq.heappop(leaving)
            if job.epoch == epoch:
                jobs.append(job)
        return jobs
