"""Requests in order of arrival: the noun that traces, shapes and the command line all produce."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.workload.readers import POPULATIONS

__all__ = ["BLOCK_TOKENS", "StatedTarget", "Workload", "WorkloadError"]

BLOCK_TOKENS = 512
"""Tokens of a prefix block, as in Mooncake's traces (Qin et al., FAST 2025): equal block ids, equal prefix."""
READER_SEED_OFFSET = 7919
"""Keeps the draw of readers apart from the draw of arrivals and lengths, which starts from the same seed."""
LONG_PROMPT_TOKENS_PER_S = 5000
"""Prompt tokens per second of patience, where the expected TTFT is to grow with the prompt; at least 1 s."""


class WorkloadError(ValueError):
    """A workload that cannot be read or is invalid; the text names the file, row and field, or the flag."""


class StatedTarget(NamedTuple):
    """What a trace row says of its reader: ``ttft_s`` in seconds, ``tds`` in tokens/s; None where it says nothing."""

    ttft_s: float | None = None
    tds: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """``requests`` in order of arrival; ``name`` says where they came from.

    stated: per request, what its trace says of its reader, which :meth:`with_readers` keeps; empty: nothing is stated.
    left_out: rows of the trace that hold no request.
    """

    name: str
    requests: tuple[RequestSpec, ...]
    stated: tuple[StatedTarget, ...] = ()
    left_out: int = 0

    def __iter__(self) -> Iterator[RequestSpec]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def duration_s(self) -> float:
        return self.requests[-1].arrival_s if self.requests else 0.0

    def describe(self) -> dict[str, Any]:
        """The ``workload`` object of ``summary.json``: lengths in tokens, rates in requests/s."""
        prompts = [r.prompt_tokens for r in self.requests]
        outputs = [r.output_tokens for r in self.requests]
        return {
            "name": self.name,
            "requests": len(self.requests),
            "duration_s": round(self.duration_s, 3),
            "rate_rps": round(len(self.requests) / self.duration_s, 4) if self.duration_s else None,
            "prompt_tokens": {"mean": float(np.mean(prompts)), "max": max(prompts)},
            "output_tokens": {"mean": float(np.mean(outputs)), "max": max(outputs)},
            **({"rows_left_out": self.left_out} if self.left_out else {}),
        }

    def scaled(
        self,
        *,
        rate_scale: float = 1.0,
        prompt_scale: float = 1.0,
        output_scale: float = 1.0,
        max_prompt: int | None = None,
        max_output: int | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        limit: int | None = None,
    ) -> Workload:
        """The window [start_s, start_s + duration_s) of the original clock, then rate and lengths scaled and clamped.

        limit: the first ``limit`` requests of the window. An answer's limit and expected length scale with it; scaled
        prompts lose their prefix blocks. Raises :class:`WorkloadError` for an empty window.
        """
        until_s = start_s + (duration_s if duration_s is not None else math.inf)
        chosen = [k for k, r in enumerate(self.requests) if start_s <= r.arrival_s < until_s][:limit]
        if not chosen:
            within = "" if duration_s is None else f" within {duration_s:g} s"
            raise WorkloadError(f"{self.name}: no request arrives{within} after second {start_s:g}")
        requests = tuple(
            replace(
                r,
                arrival_s=(r.arrival_s - start_s) / rate_scale,
                prompt_tokens=_clamp(r.prompt_tokens * prompt_scale, max_prompt),
                output_tokens=_clamp(r.output_tokens * output_scale, max_output),
                max_tokens=None if r.max_tokens is None else _clamp(r.max_tokens * output_scale, max_output),
                reason_tokens=min(
                    round(r.reason_tokens * output_scale), _clamp(r.output_tokens * output_scale, max_output)
                ),
                expected_tokens=(
                    None if r.expected_tokens is None else _clamp(r.expected_tokens * output_scale, max_output)
                ),
                blocks=r.blocks if prompt_scale == 1.0 else (),
            )
            for r in (self.requests[k] for k in chosen)
        )
        stated = tuple(self.stated[k] for k in chosen) if self.stated else ()
        return replace(self, requests=requests, stated=stated)

    def with_readers(self, seed: int, *, ttft_s: float | None, tds: float | None, population: str | None) -> Workload:
        """The same requests with expectations: a constant ``tds``, or speeds drawn from ``population``.

        ttft_s: None means ``max(1, prompt_tokens / 5000)``, the expectation for long prompts. What a trace row states of its
        own reader stays as it is.
        """
        rng = np.random.default_rng(seed + READER_SEED_OFFSET)
        table = POPULATIONS[population or "reading"]
        share = np.array([s for s, _ in table])
        drawn = rng.choice([1.0 / pace for _, pace in table], size=len(self.requests), p=share / share.sum())
        stated = self.stated or (StatedTarget(),) * len(self.requests)

        def target(r: RequestSpec, own: StatedTarget, speed: float) -> QoETarget:
            expected_s = max(1.0, r.prompt_tokens / LONG_PROMPT_TOKENS_PER_S) if ttft_s is None else ttft_s
            return QoETarget(
                expected_s if own.ttft_s is None else own.ttft_s,
                (speed if tds is None else tds) if own.tds is None else own.tds,
            )

        requests = tuple(
            replace(r, target=target(r, own, float(speed)))
            for r, own, speed in zip(self.requests, stated, drawn, strict=True)
        )
        return replace(self, requests=requests)

    def with_reasoning_shown(self) -> Workload:
        """The same requests of readers who are shown the thoughts and read them like the answers."""
        requests = tuple(replace(r, reason_tokens=0, reasoning="shown") for r in self.requests)
        return replace(self, requests=requests)


def _clamp(tokens: float, most: int | None) -> int:
    return max(1, min(round(tokens), most if most is not None else 1 << 30))
