"""Where requests are before they run."""

from __future__ import annotations

import pytest

from andes_sglang.request import RequestSpec
from andes_sglang.sim.job import Job
from andes_sglang.sim.job_queue import JobQueue
from andes_sglang.sim.radix import RadixCache


def jobs(*enters_s: float) -> list[Job]:
    root = RadixCache().root
    return [
        Job(RequestSpec(at, 5, 5), f"r{k}", index=k, max_tokens=5, enters_s=at, root=root)
        for k, at in enumerate(enters_s)
    ]


def test_requests_wait_once_they_have_reached_the_scheduler() -> None:
    queue, (a, b, c) = JobQueue(), jobs(1.0, 2.0, 3.0)
    queue.incoming += [a, b, c]
    assert queue.next_entry_s == 1.0
    assert list(queue.receive(2.0, plans_ahead=False)) == [a, b]
    assert (queue.waiting, queue.received, list(queue.incoming), queue.next_entry_s) == ([a, b], [], [c], 3.0)
    assert list(queue.receive(2.5, plans_ahead=False)) == []


def test_planned_ahead_they_are_considered_one_iteration_later() -> None:
    queue, (a, b) = JobQueue(), jobs(1.0, 2.0)
    queue.incoming += [a, b]
    assert list(queue.receive(1.0, plans_ahead=True)) == [a]
    assert (queue.waiting, queue.received) == ([], [a])
    assert list(queue.receive(2.0, plans_ahead=True)) == [b]
    assert (queue.waiting, queue.received) == ([a], [b])
    assert list(queue.receive(2.0, plans_ahead=False)) == []
    assert (queue.waiting, queue.received, queue.next_entry_s) == ([a, b], [], float("inf"))


def test_those_taken_wait_no_more_and_the_other_candidates_go_first() -> None:
    queue, (a, b, c, d) = JobQueue(), jobs(0.0, 0.0, 0.0, 0.0)
    queue.waiting = [a, b, c, d]
    queue.reorder(queue.waiting, {b})
    assert queue.waiting == [a, c, d]
    queue.reorder([d, c], {d})
    assert queue.waiting == [c, a]
    queue.reorder([], {c})
    assert queue.waiting == [a], "the chunked request was no candidate"


@pytest.mark.parametrize("place", ["waiting", "received", "incoming"])
def test_a_request_is_removed_wherever_it_is(place: str) -> None:
    queue, (a, b) = JobQueue(), jobs(0.0, 0.0)
    getattr(queue, place).extend([a, b])
    assert queue
    queue.remove(a)
    assert list(getattr(queue, place)) == [b]
    queue.remove(b)
    assert not queue
