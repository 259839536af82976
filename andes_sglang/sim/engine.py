"""What a simulated engine costs and holds: the numbers behind a replica."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import Enum

from andes_sglang.kv_codecs.prices import CodecPrice
from andes_sglang.protocol import ADMISSION_RESERVE_TOKENS
from andes_sglang.speculation import Speculation

__all__ = ["Costs", "EngineModel", "Overlap"]


class Overlap(Enum):
    """How the engine's CPU work and its forward passes share the time (SGLang's event loops).

    NONE: one after the other. ASYNC, on a GPU: the CPU plans one iteration ahead, so a request that arrives joins one
    iteration later, and one that finishes leaves one later. SYNC, the overlap loop on a CPU: the pass blocks the loop, so the
    result of an iteration is sent when the next one has ended; a request that finishes leaves one iteration later.
    """

    NONE = "none"
    ASYNC = "async"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class Costs:
    """True durations of the engine's iterations, in seconds.

    A decode step: ``decode_fixed_s + decode_request_s * batch + decode_context_s * context tokens``. A prefill of one batch:
    ``prefill_fixed_s + prefill_request_s * requests + prefill_token_s * new + prefill_prefix_s * prefix + prefill_pair_s *
    (new * (prefix + new / 2))``, the last being attention. A mixed iteration does both and pays the larger fixed part once.
    Raises ``ValueError`` naming field and value.
    """

    decode_fixed_s: float
    decode_request_s: float
    decode_context_s: float
    prefill_fixed_s: float
    prefill_token_s: float
    prefill_request_s: float = 0.0
    prefill_prefix_s: float = 0.0
    prefill_pair_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number of seconds >= 0, got {value!r}")
        if not (self.decode_fixed_s + self.decode_request_s > 0 and self.prefill_fixed_s + self.prefill_token_s > 0):
            raise ValueError("decode_fixed_s and prefill_fixed_s: an iteration must take some time, got 0")

    def times(self, factor: float) -> Costs:
        """Of an engine ``factor`` times as slow."""
        return Costs(**{field.name: factor * getattr(self, field.name) for field in fields(self)})

    def shared(self, engines: int) -> Costs:
        """Of ``engines`` of these beside each other that share all requests evenly: iterations as long, with so many times
        what they hold."""
        kept = ("decode_fixed_s", "prefill_fixed_s")
        return replace(self, **{f.name: getattr(self, f.name) / engines for f in fields(self) if f.name not in kept})

    def decode_s(self, batch: float, context_tokens: float) -> float:
        return self.decode_fixed_s + self.decode_request_s * batch + self.decode_context_s * context_tokens

    def prefill_s(self, new_tokens: float, prefix_tokens: float = 0, pairs: float = 0.0, requests: int = 1) -> float:
        return (
            self.prefill_fixed_s
            + self.prefill_request_s * requests
            + self.prefill_token_s * new_tokens
            + self.prefill_prefix_s * prefix_tokens
            + self.prefill_pair_s * pairs
        )

    def mixed_s(
        self, new_tokens: int, prefix_tokens: int, pairs: float, requests: int, *, batch: int, context_tokens: int
    ) -> float:
        both = self.prefill_s(new_tokens, prefix_tokens, pairs, requests) + self.decode_s(batch, context_tokens)
        return both - min(self.prefill_fixed_s, self.decode_fixed_s)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """One engine. Lengths in tokens.

    chunk_tokens: prefill of one iteration (``--chunked-prefill-size``). mixed: decode beside it
    (``--enable-mixed-chunk``). host_tokens_per_s: copies between the pool and host memory, each way; host_capacity_tokens:
    room there, 0 for no host tier; both without a codec. kv_token_bytes: of one token in 16 bits a number, 0 where it has
    others or that is not known. codec: how KV is coded in host memory, None: it is not. write_through: copy everything that
    enters the cache, not only what a policy offloads.
    devices: tensor-parallel ranks (``--tp-size``), whose costs and sizes the others are.
    pads_prefix: attention is computed for a cached prefix too, as by SGLang's ``torch_native`` backend on a CPU.
    decision_s: CPU time of a decision, which hides behind the iteration unless there is no overlap. entry_s: from the client
    to the scheduler and back, beside the iterations. quality: what an answer of its model is worth relative to the best
    one's, in (0, 1]: the owner's figure, which only routing between unlike models reads. speculation: what drafts cost and
    yield; they are made where draft_tokens says how many for every request (0: none), or, drafts_by_reader, as the policy's
    decision says. Raises ``ValueError`` naming field and value.
    """

    costs: Costs
    kv_capacity_tokens: int
    max_running: int = 64
    chunk_tokens: int = 2048
    mixed: bool = False
    overlap: Overlap = Overlap.NONE
    host_capacity_tokens: int = 0
    host_tokens_per_s: float = 0.0
    kv_token_bytes: float = 0.0
    codec: CodecPrice | None = None
    write_through: bool = False
    devices: int = 1
    pads_prefix: bool = False
    decision_s: float = 0.0
    entry_s: float = 0.0
    quality: float = 1.0
    speculation: Speculation | None = None
    draft_tokens: int = 0
    drafts_by_reader: bool = False

    def __post_init__(self) -> None:
        for name in ("kv_capacity_tokens", "max_running", "chunk_tokens", "devices"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)!r}")
        for name in ("host_capacity_tokens", "host_tokens_per_s", "kv_token_bytes", "decision_s", "entry_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be >= 0, got {value!r}")
        if self.drafts:
            self._check_drafts()
        if not 0 < self.quality <= 1:
            raise ValueError(f"quality must be in (0, 1], got {self.quality!r}")
        if self.host_capacity_tokens and not self.host_tokens_per_s > 0:
            raise ValueError(f"host_tokens_per_s must be > 0 with a host tier, got {self.host_tokens_per_s!r}")

    def _check_drafts(self) -> None:
        if self.speculation is None:
            raise ValueError("draft_tokens, drafts_by_reader: the engine has no speculation")
        if self.overlap is Overlap.SYNC:
            raise ValueError("draft_tokens, drafts_by_reader: not modelled with overlap sync")
        if self.draft_tokens < 0 or (self.draft_tokens and self.drafts_by_reader):
            raise ValueError(f"draft_tokens must be >= 0, and 0 with drafts_by_reader, got {self.draft_tokens!r}")

    @property
    def host_room_tokens(self) -> int:
        """What host memory holds, coded."""
        return (
            self.host_capacity_tokens
            if self.codec is None
            else int(self.host_capacity_tokens / self.codec.bytes_factor)
        )

    def beside_itself(self, engines: int) -> EngineModel:
        """So many of it as one: data-parallel ranks, which share the requests evenly."""
        sizes = (
            "kv_capacity_tokens",
            "max_running",
            "chunk_tokens",
            "host_capacity_tokens",
            "host_tokens_per_s",
            "devices",
        )
        larger = {name: engines * getattr(self, name) for name in sizes}
        return replace(self, costs=self.costs.shared(engines), **larger)

    def host_write_s(self, tokens: int) -> float:
        """To copy them to host memory."""
        if self.codec is None:
            return tokens / self.host_tokens_per_s
        return tokens * max(self.codec.link_factor / self.host_tokens_per_s, self.codec.encode_token_s)

    def host_load_s(self, tokens: int) -> float:
        """To copy them back."""
        if self.codec is None:
            return tokens / self.host_tokens_per_s
        return tokens * max(self.codec.link_factor / self.host_tokens_per_s, self.codec.decode_token_s)

    @property
    def drafts(self) -> bool:
        """Whether it decodes speculatively."""
        return self.draft_tokens != 0 or self.drafts_by_reader

    @property
    def max_request_tokens(self) -> int:
        """Prompt and answer of the longest request that is served: the pool less what admission keeps free beside it, once
        for the request and once while it runs."""
        return self.kv_capacity_tokens - 2 * ADMISSION_RESERVE_TOKENS
