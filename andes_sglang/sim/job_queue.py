"""Requests that are not in the batch: on their way to the scheduler, just received, and waiting for a prefill."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from andes_sglang.sim.job import Job

__all__ = ["JobQueue"]


class JobQueue:
    """waiting: in the order in which they are admitted. received: known to the scheduler, considered one iteration later.
    incoming: sent by their clients, in order of arrival."""

    def __init__(self) -> None:
        self.waiting: list[Job] = []
        self.received: list[Job] = []
        self.incoming: deque[Job] = deque()

    def __bool__(self) -> bool:
        return bool(self.waiting or self.received or self.incoming)

    @property
    def next_entry_s(self) -> float:
        """When the next one reaches the scheduler; infinity when none is on its way."""
        return self.incoming[0].enters_s if self.incoming else float("inf")

    def receive(self, now_s: float, *, plans_ahead: bool) -> Sequence[Job]:
        """Those received before begin to wait; those that have reached the scheduler by ``now_s`` do at once, or are received
        first where the scheduler plans the next iteration ahead. Returns the new ones."""
        if self.received:
            self.waiting += self.received
            self.received = []
        new: list[Job] = []
        while self.incoming and self.incoming[0].enters_s <= now_s:
            new.append(self.incoming.popleft())
        if plans_ahead:
            self.received = new
        else:
            self.waiting += new
        return new

    def reorder(self, first: Sequence[Job], taken: Collection[Job]) -> None:
        """Those ``taken`` for a prefill wait no more; of the others those in ``first`` go before the rest."""
        left = [job for job in first if job not in taken]
        if first is not self.waiting:
            named = set(first).union(taken)
            left += [job for job in self.waiting if job not in named]
        self.waiting = left

    def remove(self, job: Job) -> None:
        """Drop ``job`` wherever it is."""
        for queue in (self.waiting, self.received, self.incoming):
            if job in queue:
                queue.remove(job)
