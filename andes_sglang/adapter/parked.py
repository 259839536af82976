"""The requests that have left the running batch with their KV and their slot of the request pool: a batch of their own.

SGLang does not know this batch. Its code that counts requests or memory is shown the running batch with the parked requests
beside it (:meth:`ParkedRequests.beside`).
"""

from __future__ import annotations

import copy
from collections.abc import Container
from types import SimpleNamespace
from typing import Any

from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

__all__ = ["ParkedRequests"]


class ParkedRequests:
    """``batch``: a ``ScheduleBatch``; None while nothing is parked."""

    def __init__(self) -> None:
        self.batch: Any = None

    @property
    def reqs(self) -> list[Any]:
        return self.batch.reqs if self.batch is not None else []

    def __len__(self) -> int:
        return len(self.reqs)

    def take_from(self, running_batch: Any, rids: Container[str]) -> list[Any]:
        """Move the requests ``rids`` out of ``running_batch``; those that moved. What has finished stays."""
        rows = [i for i, req in enumerate(running_batch.reqs) if req.rid in rids and not req.finished()]
        if not rows:
            return []
        leaving = _split(running_batch, rows)
        moved = list(leaving.reqs)
        if self.batch is None:
            self.batch = leaving
        else:
            self.batch.merge_batch(leaving)
        running_batch.batch_is_full = False
        return moved

    def give_back(self, rids: Container[str]) -> Any:
        """A batch of the requests ``rids``, parked no longer; None: none of them is parked."""
        rows = [i for i, req in enumerate(self.reqs) if req.rid in rids]
        if not rows:
            return None
        back = _split(self.batch, rows)
        if self.batch.is_empty():
            self.batch = None
        return back

    def drop_finished(self) -> None:
        """The token in flight when a request was parked may have been its last."""
        if self.batch is not None:
            self.batch.filter_batch()
            if self.batch.is_empty():
                self.batch = None

    def beside(self, running_batch: Any, counted: Any = None) -> Any:
        """``running_batch`` with the parked requests, for what only counts requests. counted: a batch that is counted anyway;
        where it is the running batch, its requests are left out."""
        if self.batch is None:
            return running_batch
        reqs = self.batch.reqs + ([] if running_batch is counted else running_batch.reqs)
        return SimpleNamespace(reqs=reqs, is_empty=lambda: not reqs)


def _split(batch: Any, rows: list[int]) -> Any:
    """Take ``rows`` out of ``batch`` into a batch of their own.

    SGLang filters a batch in place, and what it holds of samples and drafts, so each half has a shallow copy of its own. The
    new batch gets penalizers of its own, since a merge asks them for the requests of their batch; their counters are restored
    at the return.
    """
    gone = set(rows)
    other = copy.copy(batch)
    other.reqs = list(batch.reqs)
    other.spec_info = copy.copy(batch.spec_info)
    other.sampling_info = copy.copy(batch.sampling_info)
    other.sampling_info.penalizer_orchestrator = penalizers = copy.copy(batch.sampling_info.penalizer_orchestrator)
    penalizers.is_required = False
    other.filter_batch(keep_indices=rows)
    other.sampling_info.penalizer_orchestrator = BatchedPenalizerOrchestrator(
        penalizers.vocab_size, other, set(penalizers.penalizers)
    )
    batch.filter_batch(keep_indices=[i for i in range(len(batch.reqs)) if i not in gone])
    return other
