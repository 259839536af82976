"""A workload drawn while it is read: Poisson arrivals at a rate that changes by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.workload.lengths import mean_length, parse_lengths

__all__ = ["Rates", "SyntheticWorkload"]

Rates = tuple[tuple[float, float], ...]
"""Duration in seconds and requests per second of windows that follow each other."""


@dataclass(frozen=True, slots=True)
class SyntheticWorkload:
    """Drawn while it is iterated over, the same each time; millions of requests take no more memory than one window's.

    rates: ``(duration_s, rate_rps)`` of each window. prompt, output: lengths as in
    :func:`andes_sglang.workload.parse_lengths`. readers: ``(share, target)`` of each kind of reader.
    """

    name: str
    rates: Rates
    prompt: str
    output: str
    readers: tuple[tuple[float, QoETarget], ...]
    seed: int = 1

    @property
    def duration_s(self) -> float:
        return sum(duration_s for duration_s, _ in self.rates)

    def __len__(self) -> int:
        """The expected number of requests."""
        return round(sum(duration_s * rate for duration_s, rate in self.rates))

    @property
    def requests(self) -> tuple[RequestSpec, ...]:
        return tuple(self)

    def __iter__(self) -> Iterator[RequestSpec]:
        rng = np.random.default_rng(self.seed)
        draw_prompt, draw_output = parse_lengths(self.prompt), parse_lengths(self.output)
        share = np.array([share for share, _ in self.readers])
        targets = [target for _, target in self.readers]
        since_s = 0.0
        for duration_s, rate in self.rates:
            count = int(rng.poisson(duration_s * rate))
            times_s = since_s + np.sort(rng.uniform(0, duration_s, count))
            kinds = rng.choice(len(targets), count, p=share / share.sum())
            for at_s, kind in zip(times_s.tolist(), kinds.tolist()):
                yield RequestSpec(at_s, draw_prompt(rng), draw_output(rng), targets[kind])
            since_s += duration_s

    def describe(self) -> dict[str, Any]:
        """The ``workload`` object of ``summary.json``; figures are expected values."""
        return {
            "name": self.name,
            "requests": len(self),
            "duration_s": round(self.duration_s, 3),
            "rate_rps": round(len(self) / self.duration_s, 4),
            "prompt_tokens": {"mean": mean_length(self.prompt)},
            "output_tokens": {"mean": mean_length(self.output)},
        }
