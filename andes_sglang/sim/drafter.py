"""Speculative decoding of a replica: who gets a draft of what length, and what of it is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from andes_sglang.sim.batch import Batch
from andes_sglang.sim.job import Job
from andes_sglang.speculation import Speculation
from andes_sglang.state import Decision, Drafting

__all__ = ["Drafter"]

PRIOR_TOKENS = 200.0
"""Drafted tokens that the profile's acceptance counts for beside what a request has shown. With 20, which is what requests'
differences would ask for, one that was unlucky at first gets no drafts and never shows better."""
_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly: requests' own acceptances, without chance."""
MAX_ACCEPTANCE = 0.99


class Drafter:
    """fixed: as many tokens for every request; 0: as the decision says. seed: of what is accepted."""

    def __init__(self, speculation: Speculation, fixed: int, batch: Batch, seed: int) -> None:
        self.speculation = speculation
        self.fixed = fixed
        self.drafted = self.accepted = 0
        self._batch = batch
        self._rng = np.random.default_rng(seed)
        self._draft: Mapping[str, int] = {}

    def decided(self, decision: Decision) -> None:
        """From now on drafts are those of ``decision``."""
        self._draft = dict(decision.draft)

    def drafting(self, jobs: Iterable[Job], step_s: float) -> Drafting:
        """What a policy is told of requests in this order. step_s: of the batch without drafts."""
        known = self.speculation.acceptance
        learned = [(job.accepted + PRIOR_TOKENS * known) / (job.drafted + PRIOR_TOKENS) for job in jobs]
        return Drafting(self.speculation, np.array(learned, dtype=np.float64), step_s)

    def lengths(self, available_tokens: int) -> dict[Job, int]:
        """Of requests that run; none where KV has no room for all of them beside the batch."""
        if self.fixed:
            drafts = dict.fromkeys(self._batch.running, self.fixed)
        else:
            drafts = {job: self._draft.get(job.rid, 0) for job in self._batch.running}
        drafts = {
            job: min(length, job.max_tokens - self._batch.generated(job) - 1)
            for job, length in drafts.items() if length
        }  # fmt: skip
        drafts = {job: length for job, length in drafts.items() if length > 0}
        fits = available_tokens >= len(self._batch.running) + sum(drafts.values())
        return drafts if fits else {}

    def accept(self, drafts: Mapping[Job, int]) -> tuple[Sequence[Job], Sequence[int]]:
        """The requests of which drafted tokens are accepted, and how many of each that its answer still has room for."""
        jobs = list(drafts)
        lengths = np.array(list(drafts.values()))
        spread = self.speculation.spread
        places = (np.array([job.index for job in jobs]) * _GOLDEN) % 1.0
        chances = np.minimum(self.speculation.acceptance * (1.0 + spread * (2.0 * places - 1.0)), MAX_ACCEPTANCE)
        passes = self._rng.random((len(jobs), int(lengths.max()))) < chances[:, None]
        accepted = np.minimum(np.logical_and.accumulate(passes, axis=1).sum(axis=1), lengths)
        self.drafted += int(lengths.sum())
        kept, counts = [], []
        for job, length, count in zip(jobs, lengths.tolist(), accepted.tolist()):
            job.drafted += min(length, count + 1)
            job.accepted += count
            room = job.spec.output_tokens - self._batch.generated(job)
            if (tokens := min(count, room)) > 0:
                kept.append(job)
                counts.append(tokens)
                self.accepted += tokens
        return kept, counts
