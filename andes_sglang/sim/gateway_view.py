"""A simulated replica as a gateway in front of it would see it.

    view = GatewayView(replica)
    view.sent(job)                      # a stream is routed there
    policy.order(new, [view.at(now_s, spec) for view in views], now_s)

Counts and costs are the replica's own; readers are those of the streams open there, from the tokens that have been sent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from andes_sglang.qoe import Readers
from andes_sglang.request import RequestSpec
from andes_sglang.routing import IncomingStream, PrefixTracker, ReplicaView
from andes_sglang.sim.replica import Job, Replica
from andes_sglang.stream_forecast import OpenStreams, forecast_wait, usable_slots
from andes_sglang.waits import FirstTokens

__all__ = ["GatewayView", "incoming_stream"]

Array = npt.NDArray[np.float64]
READERS_AGE_S = 0.5
"""Seconds after which readers are brought up to date; a gateway does so after 0.1 s."""
MAX_READERS = 64
"""Of more, a sample is forecast."""
SHARED_BLOCK_TOKENS = 512
"""Tokens of a shared prefix block, as the simulated cache counts them."""
BLOCK_TOKENS = 128
"""Tokens per block of a session's prompt: a gateway's block of 512 characters at 4 characters a token."""


def incoming_stream(spec: RequestSpec, number: int) -> IncomingStream:
    """The stream that ``spec`` asks for; number: tells prompts apart that share nothing."""
    key = f"block {spec.blocks[0]}" if spec.blocks else spec.session_id or number
    return IncomingStream(spec.prompt_tokens, spec.target, spec.weight, key)


def _prefix_blocks(spec: RequestSpec) -> list[tuple[object, int]]:
    """What tells how a prompt begins: its shared blocks, or its session's; nothing of a prompt that shares nothing."""
    if spec.blocks:
        return [("block", block) for block in spec.blocks]
    if spec.session_id is None:
        return []
    return [(spec.session_id, k) for k in range(spec.prompt_tokens // BLOCK_TOKENS)]


class GatewayView:
    """What a gateway knows of one replica; readers are at most half a second old, or have come since."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.name = str(replica.index)
        self._prefixes = PrefixTracker()
        self._jobs: list[Job] = []
        self._unstarted: list[Job] = []
        self._rows: Array = np.zeros((6, 64))
        self._counted_at_s = 0.0
        self._waits = FirstTokens()
        self._shown: tuple[RequestSpec, ReplicaView] | None = None
        self._open = OpenStreams.of(Readers.of([]))

    def sent(self, job: Job) -> None:
        """``job`` has been routed there."""
        spec, count = job.spec, len(self._jobs)
        if count == self._rows.shape[1]:
            self._recount(spec.arrival_s)
            count = len(self._jobs)
            self._rows = np.hstack([self._rows[:, :count], np.zeros((6, count + 64))])
        self._rows[:, count] = spec.target.start_s(spec.arrival_s), spec.target.tds, 0, 0, 0, spec.weight
        self._jobs.append(job)
        self._unstarted.append(job)
        self._prefixes.add(_prefix_blocks(spec))
        if self._shown is not None and self._shown[0] is spec:
            new, view = incoming_stream(spec, job.index), self._shown[1]
            self._waits.sent(job, spec.arrival_s, forecast_wait(new, view))
        known, count = self._open, count + 1
        self._open = OpenStreams(
            Readers(*self._rows[:5, :count]), self._rows[5, :count], known.dry_at_s, max(known.max_tds, spec.target.tds)
        )

    def offered(self, now_s: float) -> None:
        """A stream asks for a place there."""
        self._waits.offered(now_s)

    def at(self, now_s: float, spec: RequestSpec) -> ReplicaView:
        """The view for routing ``spec`` at ``now_s`` (clock seconds)."""
        replica, engine = self.replica, self.replica.engine
        if now_s - self._counted_at_s > READERS_AGE_S:
            self._recount(now_s)
        if self._unstarted:
            self._note_started()
        context = replica.kv_used_tokens
        hit = 0
        if spec.blocks or spec.session_id is not None:
            unit = SHARED_BLOCK_TOKENS if spec.blocks else BLOCK_TOKENS
            hit = min(spec.prompt_tokens, unit * self._prefixes.matched(_prefix_blocks(spec)))
        view = ReplicaView(
            self.name, engine.costs, replica.open_requests, self._open.sample(MAX_READERS), replica.open_prompt_tokens,
            sum([job.spec.prompt_tokens for job in self._unstarted]), 0,
            usable_slots(engine.max_running, engine.kv_capacity_tokens, context, len(replica.running)), context, hit,
            quality=engine.quality, waits=self._waits.view(now_s),
        )  # fmt: skip
        self._shown = spec, view
        return view

    def _note_started(self) -> None:
        for job in self._unstarted:
            if job.generated:
                self._waits.first(job, float(job.times_s[0][0]))
        self._unstarted = [job for job in self._unstarted if not job.generated]

    def _recount(self, now_s: float) -> None:
        """Bring readers up to ``now_s``. What came since the last time is taken to have come evenly: a reader who ran dry has
        it as it came, one who did not has it when the last token was due."""
        replica = self.replica
        if replica.now_s < now_s:
            replica.advance(now_s)
        self._note_started()
        kept = [at for at, job in enumerate(self._jobs) if job.rid in replica.by_rid]
        self._jobs = [self._jobs[at] for at in kept]
        count = len(kept)
        *columns, weights = self._rows[:, kept]
        readers = Readers(*columns)
        generated = [replica.generated(job) for job in self._jobs]
        thought = [min(n, job.spec.reason_tokens) for n, job in zip(generated, self._jobs)]
        start_s = [j.spec.target.start_s(j.spec.arrival_s, n) for n, j in zip(thought, self._jobs)]
        readers = readers._replace(start_s=np.array(start_s, dtype=np.float64))
        tokens = np.array(generated, dtype=np.float64) - np.array(thought, dtype=np.float64) - readers.delivered
        interval_s = (now_s - self._counted_at_s) / np.maximum(tokens, 1.0)
        readers = readers.deliver(now_s - (tokens - 1.0) * np.minimum(interval_s, 1.0 / readers.tds), tokens)
        self._counted_at_s = now_s
        if count:
            self._rows[:5, :count] = readers
            self._rows[5, :count] = weights
        self._open = OpenStreams(Readers(*self._rows[:5, :count]), self._rows[5, :count])
