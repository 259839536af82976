"""A replica's clock: plans in closed form, results sent late, steps dropped when nothing reads them any more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.request import RequestSpec
from andes_sglang.sim.job import Job
from andes_sglang.sim.radix import RadixCache
from andes_sglang.sim.step_clock import MAX_STEPS, StepClock


def clock_at(now_s: float, *, sends_late: bool = False) -> StepClock:
    clock = StepClock(sends_late=sends_late, first_needed=lambda: clock.steps)
    clock.now_s = now_s
    return clock


def job() -> Job:
    return Job(RequestSpec(0.0, 5, 5), "r0", index=0, max_tokens=5, enters_s=0.0, root=RadixCache().root)


@given(st.integers(1, 50), st.floats(0.001, 1.0), st.floats(0.0, 0.01), st.floats(0.0, 20.0))
def test_steps_planned_at_once_end_when_they_would_one_by_one(
    steps: int, first_s: float, growth_s: float, until_s: float
) -> None:
    """Each step takes ``growth_s`` longer than the one before it, and none begins at or after ``until_s``, but for the first."""
    ends, at = [], 3.0
    for k in range(steps):
        at += first_s + growth_s * k
        ends.append(at)
        if at >= until_s:
            break
    assert clock_at(3.0).plan(first_s, growth_s, steps, until_s) == pytest.approx(ends)


def test_the_first_step_that_ends_at_until_is_the_last() -> None:
    clock = clock_at(0.0)
    assert clock.plan(1.0, 0.0, 5, 2.0).tolist() == [1.0, 2.0]
    assert clock.plan(1.0, 0.0, 5, 2.5).tolist() == [1.0, 2.0, 3.0]
    assert clock.plan(1.0, 0.0, 2, 0.5).tolist() == [1.0]
    assert clock.plan(1.0, 0.0, 1, 0.5).tolist() == [1.0]
    assert clock.now_s == 0.0, "a plan takes no time"


def test_time_passes_with_a_pass_and_with_steps() -> None:
    clock = clock_at(1.0)
    assert clock.run(0.5) == clock.now_s == 1.5
    assert (clock.steps, clock.iterations, clock.busy_s) == (0, 1, 0.5)
    clock.run_steps(np.array([2.0, 3.0]))
    assert (clock.now_s, clock.steps, clock.sent_steps, clock.iterations, clock.busy_s) == (3.0, 2, 2, 3, 2.0)
    clock.record(np.array([3.0]))
    assert (clock.now_s, clock.steps, clock.iterations) == (3.0, 3, 3), "mixed: the pass has been counted"
    assert clock.ends_s(0, 3).tolist() == [2.0, 3.0, 3.0]
    assert clock.ends_s(1, 2).tolist() == [3.0]


def test_sent_late_a_step_goes_out_when_the_next_iteration_has_ended() -> None:
    clock = clock_at(0.0, sends_late=True)
    clock.run_steps(np.array([1.0, 2.0, 3.0]))
    assert (clock.steps, clock.sent_steps) == (3, 2)
    assert clock.ends_s(0, 2).tolist() == [2.0, 3.0]
    clock.run_steps(np.array([4.0]))
    assert (clock.steps, clock.sent_steps, clock.ends_s(0, 3).tolist()) == (4, 3, [2.0, 3.0, 4.0])
    clock.run(0.5)
    assert (clock.sent_steps, clock.ends_s(0, 4).tolist()) == (4, [2.0, 3.0, 4.0, 4.5])
    clock.run(0.5)
    assert clock.ends_s(0, 4).tolist() == [2.0, 3.0, 4.0, 4.5], "once sent, sent"


def test_sent_late_the_last_step_goes_out_when_the_engine_is_told_to() -> None:
    clock = clock_at(0.0, sends_late=True)
    clock.run_steps(np.array([1.0]))
    clock.send(1.0)
    assert (clock.sent_steps, clock.ends_s(0, 1).tolist()) == (1, [1.0])


def test_a_first_token_is_sent_at_once_or_when_the_next_iteration_has_ended() -> None:
    prompt, late = clock_at(2.0), clock_at(2.0, sends_late=True)
    told: list[tuple[Job, float]] = []
    late._on_late_first = lambda job, at_s: told.append((job, at_s))
    one, two = job(), job()
    assert prompt.record_first(one, 2.0)
    assert not prompt.is_unsent(one)
    assert not late.record_first(two, 2.0)
    assert late.is_unsent(two)
    late.run(0.25)
    assert not late.is_unsent(two)
    assert told == [(two, 2.25)]
    assert (one.token_times_s.tolist(), two.token_times_s.tolist()) == ([2.0], [2.25])
    late.run(1.0)
    assert two.token_times_s.tolist() == [2.25]


def test_what_is_unsent_of_a_client_that_has_gone_is_dropped() -> None:
    told: list[Job] = []
    clock = StepClock(sends_late=True, first_needed=int, on_late_first=lambda job, _at_s: told.append(job))
    gone, stays = job(), job()
    clock.record_first(gone, 0.0)
    clock.record_first(stays, 0.0)
    clock.forget(gone)
    clock.send(1.0)
    assert told == [stays]


@pytest.mark.parametrize("sends_late", [False, True])
@pytest.mark.parametrize("kept", [0, 5, MAX_STEPS // 2, MAX_STEPS + 7])
def test_a_full_record_drops_what_is_not_needed_and_nothing_else(kept: int, sends_late: bool) -> None:
    """Whole seconds as ends, so that every step says which one it is."""
    clock = StepClock(sends_late=sends_late, first_needed=lambda: max(0, clock.steps - kept))
    while clock.steps < 3 * MAX_STEPS:
        clock.run_steps(clock.now_s + np.arange(1.0, 501.0))
        sent, first = clock.sent_steps, max(0, clock.sent_steps - kept)
        late = float(sends_late)
        assert clock.ends_s(first, sent).tolist() == (np.arange(first, sent) + 1.0 + late).tolist()
    assert len(clock._ends_s) < 4 * (kept + MAX_STEPS), "memory does not grow with time"
