"""One answer as a benchmark measured it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from andes_sglang.qoe import QoETarget
from andes_sglang.request import MAX_ANSWER_TOKENS, RequestRecord

__all__ = ["Answer", "answer_tokens"]

MAX_WAIT_S = 1e6
"""Eleven days: more is a unit that was mistaken."""


def answer_tokens(said: Any) -> int:
    """What a benchmark says of an answer's tokens, None being none. Raises ``ValueError`` for what no answer can have, before
    anything is made of so many."""
    tokens = int(said or 0)
    if not 0 <= tokens <= MAX_ANSWER_TOKENS:
        raise ValueError(f"an answer of {tokens} tokens; expected 0 to {MAX_ANSWER_TOKENS}")
    return tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """start_s: when it was asked for, on any clock. ttft_s: from then; None: there was no token. gaps_s: between its chunks
    after the first, in order; exact: as measured, otherwise the mean of all that there were. error: None where it ended well.
    Raises ``ValueError`` for what no answer can be.
    """

    start_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    gaps_s: Sequence[float] = ()
    exact: bool = True
    error: str | None = None
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.start_s) or not math.isfinite(self.duration_s):
            raise ValueError(f"a request that began at {self.start_s} s and took {self.duration_s} s")
        if self.prompt_tokens < 0:
            raise ValueError(f"a prompt of {self.prompt_tokens} tokens")
        answer_tokens(self.output_tokens)
        waits_s = (*(() if self.ttft_s is None else (self.ttft_s,)), *self.gaps_s)
        if wrong := [wait_s for wait_s in waits_s if not 0.0 <= wait_s <= MAX_WAIT_S]:
            raise ValueError(f"a wait of {wrong[0]} s for a token; expected 0 to {MAX_WAIT_S:g}")

    def record(self, index: int, origin_s: float, target: QoETarget) -> RequestRecord:
        """On the clock whose second 0 is ``origin_s``."""
        arrival_s = self.start_s - origin_s
        deliveries: list[tuple[float, int]] = []
        if self.ttft_s is not None and self.output_tokens > 0:
            at_s = (
                arrival_s + self.ttft_s + np.concatenate([[0.0], np.cumsum(np.asarray(self.gaps_s, dtype=np.float64))])
            )
            deliveries = [(float(at), tokens) for at, tokens in zip(at_s, self._tokens(len(at_s))) if tokens]
        end_s = deliveries[-1][0] if deliveries else arrival_s + self.duration_s
        return RequestRecord(
            index, arrival_s, arrival_s, self.prompt_tokens, self.output_tokens, target.ttft_s, target.tds,
            deliveries, end_s, self.error,
        )  # fmt: skip

    def _tokens(self, chunks: int) -> list[int]:
        """Tokens of each of ``chunks``, as even as can be: benchmarks count chunks, and tokens only in all."""
        share, more = divmod(self.output_tokens, chunks)
        return [share + (k < more) for k in range(chunks)]
