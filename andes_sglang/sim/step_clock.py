"""A replica's clock: virtual time, and when each decode step ended.

Every request in the batch gets a token at every step, so the delivery times of a request are a slice of this clock. An
engine that sends late (:attr:`~andes_sglang.sim.engine.Overlap.SYNC`) sends the result of an iteration when the next one
has ended: until then that result is unsent here, and its time is not final.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from andes_sglang.sim.job import Job

__all__ = ["MAX_STEPS", "StepClock"]

Array = npt.NDArray[np.float64]
MAX_STEPS = 4096
"""Decode steps taken at once; a bound on the size of the arrays only."""
_STEPS = np.arange(1.0, MAX_STEPS + 1)
_PAIRS = _STEPS * (_STEPS - 1) / 2


class StepClock:
    """now_s: virtual seconds. steps: decode steps taken so far. iterations: forward passes; busy_s: time spent in them.

    first_needed: the first step whose end may still be read; asked when the record is full, and what came before is dropped.
    on_late_first: told of the first token of a prefill that is sent late, and when.
    """

    def __init__(
        self,
        *,
        sends_late: bool,
        first_needed: Callable[[], int],
        on_late_first: Callable[[Job, float], None] = lambda _job, _at_s: None,
    ) -> None:
        self.now_s = 0.0
        self.steps = 0
        self.iterations = 0
        self.busy_s = 0.0
        self._sends_late = sends_late
        self._first_needed = first_needed
        self._on_late_first = on_late_first
        self._ends_s = np.empty(MAX_STEPS)
        self._first_step = 0
        self._unsent_step = False
        self._unsent_firsts: dict[Job, Array] = {}

    @property
    def sent_steps(self) -> int:
        """Steps whose tokens have been sent."""
        return self.steps - self._unsent_step

    def ends_s(self, start: int, end: int) -> Array:
        """When the steps ``start`` to ``end`` (counted from 0) ended, shape (end - start,); a view."""
        return self._ends_s[start - self._first_step : end - self._first_step]

    def run(self, seconds: float) -> float:
        """One forward pass, at whose end everything unsent is sent; when that is."""
        self.iterations += 1
        self.busy_s += seconds
        self.now_s += seconds
        if self._sends_late:
            self.send(self.now_s)
        return self.now_s

    def plan(self, first_s: float, growth_s: float, steps: int, until_s: float) -> Array:
        """When up to ``steps`` decode steps from now on end, shape (n,), 1 <= n <= ``steps`` <= :data:`MAX_STEPS`: the last
        is the first that ends at or after ``until_s``. first_s: duration of the first step; growth_s: each takes so much
        longer than the one before it."""
        if steps == 1:
            return np.array([self.now_s + first_s])
        ends_s: Array = first_s * _STEPS[:steps] + growth_s * _PAIRS[:steps]
        ends_s += self.now_s
        if ends_s[-2] >= until_s:
            ends_s = ends_s[: int(np.searchsorted(ends_s, until_s)) + 1]
        return ends_s

    def run_steps(self, ends_s: Array) -> None:
        """The planned steps are taken; everything unsent is sent at the end of the first."""
        if self._sends_late:
            self.send(float(ends_s[0]))
        end_s = float(ends_s[-1])
        self.iterations += len(ends_s)
        self.busy_s += end_s - self.now_s
        self.now_s = end_s
        self.record(ends_s)

    def record(self, ends_s: Array) -> None:
        """Steps ended at ``ends_s``; sent late, each is sent when the next one has ended, and the last not yet."""
        count, at = len(ends_s), self.steps - self._first_step
        if at + count > len(self._ends_s):
            at = self._drop(count)
        self._ends_s[at : at + count] = ends_s
        if self._sends_late:
            self._ends_s[at : at + count - 1] = ends_s[1:]
            self._unsent_step = True
        self.steps += count

    def _drop(self, count: int) -> int:
        """Forget the steps that are not needed and make room for ``count`` more; where these go."""
        first_step = min(self._first_needed(), self.sent_steps)
        kept = self.ends_s(first_step, self.steps).copy()
        if len(kept) + count > len(self._ends_s) // 2:
            self._ends_s = np.empty(2 * (len(kept) + count))
        self._ends_s[: len(kept)] = kept
        self._first_step = first_step
        return len(kept)

    def record_first(self, job: Job, end_s: float) -> bool:
        """The first token after a prefill came at ``end_s``; whether it has been sent."""
        times_s = np.array([end_s])
        job.times_s.append(times_s)
        if self._sends_late:
            self._unsent_firsts[job] = times_s
        return not self._sends_late

    def is_unsent(self, job: Job) -> bool:
        """Whether its first token after a prefill has come and not been sent."""
        return job in self._unsent_firsts

    def send(self, at_s: float) -> None:
        """Everything unsent is sent at ``at_s``."""
        if self._unsent_step:
            self._ends_s[self.steps - 1 - self._first_step] = at_s
            self._unsent_step = False
        for job, times_s in self._unsent_firsts.items():
            times_s[0] = at_s
            self._on_late_first(job, at_s)
        self._unsent_firsts.clear()

    def forget(self, job: Job) -> None:
        """Its client has gone: what is unsent of it is dropped."""
        self._unsent_firsts.pop(job, None)
