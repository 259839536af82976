"""A request while it is on a replica: its place in the batch, its KV, and what has happened to it so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from andes_sglang.request import RequestSpec, Score, readers_times, score
from andes_sglang.sim.radix import Node, Run, sequence
from andes_sglang.state import Phase

__all__ = ["Job"]

Array = npt.NDArray[np.float64]


class Job:
    """One request on the engine. Lengths in tokens, times in clock seconds.

    rid: its id in decisions. index: its number in records. max_tokens: most it may generate. enters_s: when it reaches the
    scheduler. stream: names its own tokens in the radix cache. slot: its row of the population, -1 before it has one.
    seat: its place among the batch's limits. generated: tokens as of its last joining or leaving of the batch.
    joined_step: decode steps taken when it joined. epoch: grows whenever it joins or leaves. cache_node: the last node that
    it locks; kept_node: where its KV ended in the cache when it gave it up. protected_tokens: locked in the cache;
    uncached_tokens: generated beside it before its last leaving of the batch. times_s: delivery times in pieces.
    holds: when its reader's clock had stood still and for how long, both in seconds (:meth:`Replica.hear`).
    drafted, accepted: tokens drafted for it up to the first that was refused, and those before it.
    stopped: how it was last taken off (park, release, offload, retracted). resuming_tokens: prefilled since then.
    """

    __slots__ = (
        "accepted",
        "cache_node",
        "drafted",
        "enters_s",
        "epoch",
        "generated",
        "holds",
        "index",
        "joined_step",
        "kept_node",
        "max_tokens",
        "phase",
        "preemptions",
        "prefix_hit_tokens",
        "protected_tokens",
        "recomputed_tokens",
        "resuming_tokens",
        "retractions",
        "rid",
        "seat",
        "slot",
        "spec",
        "stopped",
        "stream",
        "times_s",
        "uncached_tokens",
    )

    def __init__(
        self, spec: RequestSpec, rid: str, *, index: int, max_tokens: int, enters_s: float, root: Node
    ) -> None:
        self.spec = spec
        self.max_tokens = max_tokens
        self.enters_s = enters_s
        self.index = index
        self.rid = rid
        self.stream = rid if spec.session_id is None or spec.blocks else f"session {spec.session_id}"
        self.slot = -1
        self.seat = -1
        self.phase = Phase.WAITING
        self.generated = 0
        self.joined_step = 0
        self.epoch = 0
        self.cache_node = self.kept_node = root
        self.protected_tokens = 0
        self.uncached_tokens = 0
        self.times_s: list[Array] = []
        self.holds: list[tuple[float, float]] = []
        self.stopped: str | None = None
        self.resuming_tokens = 0
        self.preemptions = 0
        self.retractions = 0
        self.recomputed_tokens = 0
        self.prefix_hit_tokens = 0
        self.drafted = 0
        self.accepted = 0

    @property
    def context_tokens(self) -> int:
        return self.spec.prompt_tokens + self.generated

    @property
    def uncacheable(self) -> bool:
        """Nothing of it can be in the cache: it has no session, no blocks, and has never run."""
        return self.stream is self.rid and self.stopped is None and not self.spec.blocks

    @property
    def token_times_s(self) -> Array:
        """Delivery times of its tokens up to its last joining or leaving of the batch, shape (tokens,)."""
        return np.concatenate([np.empty(0), *self.times_s])

    def score(self) -> Score:
        """What its reader has had up to then."""
        spec, times_s = self.spec, readers_times(self.token_times_s, self.holds)
        thought = min(len(times_s), spec.reason_tokens)
        return score(times_s[thought:], spec.arrival_s, spec.target, thought)

    def runs(self, tokens: int) -> list[Run]:
        """Its first ``tokens`` tokens as a sequence of the radix cache."""
        return sequence(self.stream, tokens, self.spec.blocks)
