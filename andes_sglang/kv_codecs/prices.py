"""What coding KV costs and saves, for planning with it. Imports no codec."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["NAMES", "CodecPrice", "packaged"]


@dataclass(frozen=True, slots=True)
class CodecPrice:
    """KV in host memory, coded. bytes_factor: bytes there for one of KV. encode_token_s, decode_token_s: of one token, while
    the link copies others: a copy takes as long as the slower of the two. on_device: coded by the accelerator, so that the
    link carries coded bytes. equal_tokens: share of greedy tokens that stay what they would be without it; 1: it is exact.
    Raises ``ValueError`` naming field and value."""

    name: str
    bytes_factor: float
    encode_token_s: float = 0.0
    decode_token_s: float = 0.0
    on_device: bool = False
    equal_tokens: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.bytes_factor <= 2:
            raise ValueError(f"bytes_factor must be in (0, 2], got {self.bytes_factor!r}")
        for name in ("encode_token_s", "decode_token_s"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds >= 0, got {value!r}")
        if not 0 <= self.equal_tokens <= 1:
            raise ValueError(f"equal_tokens must be in [0, 1], got {self.equal_tokens!r}")

    @property
    def link_factor(self) -> float:
        """Bytes that cross the link for one of KV."""
        return self.bytes_factor if self.on_device else 1.0


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of benchmarks/kv_codecs.py: bytes for one of KV; bytes/s of KV on one core; share of equal tokens."""

    bytes_factor: float
    encode_bytes_per_s: float
    decode_bytes_per_s: float
    equal_tokens: float = 1.0


_PACKAGED = {
    "lossless": _Measured(0.685, 580e6, 1150e6),
    "int8": _Measured(0.516, 1000e6, 1300e6, 0.990),
    "anchored-1": _Measured(0.286, 27e6, 65e6, 0.981),
    "anchored-2": _Measured(0.224, 27e6, 60e6, 0.964),
    "anchored-3": _Measured(0.166, 28e6, 60e6, 0.925),
}
"""SmolLM2-135M in bfloat16, blocks of 128 tokens, rounded (docs/benchmarks/kv-codecs.md)."""
NAMES = tuple(_PACKAGED)
CORES = 8
"""Of the host, that code KV side by side: an assumption."""


def packaged(name: str, kv_token_bytes: float, cores: int = CORES) -> CodecPrice:
    """What the codec of this name costs as it was measured on one core, on ``cores`` of them, where a token's KV has so many
    bytes. Raises ``ValueError`` naming what is not known."""
    if name not in _PACKAGED:
        raise ValueError(f"codec {name!r}: not one of {', '.join(NAMES)}")
    known = _PACKAGED[name]
    return CodecPrice(
        name,
        known.bytes_factor,
        kv_token_bytes / (cores * known.encode_bytes_per_s),
        kv_token_bytes / (cores * known.decode_bytes_per_s),
        equal_tokens=known.equal_tokens,
    )
