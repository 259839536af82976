"""The answers to one HTTP request while they are being generated, for one task to wait on."""

from __future__ import annotations

import asyncio
from typing import Protocol

from andes_sglang.sim.job import Job

__all__ = ["Answer", "Generation", "Observer"]


class Answer:
    """One choice of one request. tokens: how many are out; last_s: when the last one came; done: no more will. stops: how
    often it was taken off; off: it still is."""

    __slots__ = ("aborted", "cached_tokens", "generation", "job", "last_s", "off", "stops", "tokens")

    def __init__(self, generation: Generation, job: Job) -> None:
        self.generation = generation
        self.job = job
        self.tokens = 0
        self.cached_tokens = 0
        self.last_s = 0.0
        self.stops = 0
        self.off = False
        self.aborted = False

    @property
    def done(self) -> bool:
        return self.aborted or self.tokens >= self.job.spec.output_tokens

    @property
    def has_begun(self) -> bool:
        return self.job.generated > 0 or self.job.stopped is not None


class Generation:
    """The answers to one HTTP request, for one task to wait on."""

    def __init__(self, rid: str, *, stream: bool) -> None:
        self.rid = rid
        self.stream = stream
        self.answers: list[Answer] = []
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        return all(answer.done for answer in self.answers)

    async def news(self) -> None:
        """Until tokens or the end have come since the last call."""
        await self._news.wait()
        self._news.clear()

    def wake(self) -> None:
        self._news.set()


class Observer(Protocol):
    """Told what happens, in simulated seconds."""

    def tokens(self, count: int, gap_s: float) -> None:
        """``count`` tokens came, each ``gap_s`` after the one before it in its stream."""

    def first(self, answer: Answer, ttft_s: float) -> None:
        """The first token of ``answer``."""

    def ended(self, answer: Answer, e2e_s: float) -> None:
        """The last one, or it was aborted."""
