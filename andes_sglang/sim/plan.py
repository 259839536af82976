"""How many replicas hold an objective: what an objective is, and the searches of the planner.

Pure functions of their arguments: no clock, no file, one seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestSpec
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet

__all__ = ["Objective", "capacity_rps", "cheapest_mix", "least", "serve"]

Array = npt.NDArray[np.float64]


class Objective(NamedTuple):
    """``mean>=0.95``, ``p5>=0.8`` (a percentile), ``share(0.95)>=0.9`` (of requests with at least that QoE)."""

    statistic: str
    level: float
    value: float

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Raises ``ValueError`` naming the text."""
        found = re.fullmatch(r"\s*(?:(mean)|p(\d+(?:\.\d+)?)|share\(([\d.]+)\))\s*>=\s*(\d*\.?\d+)\s*", text)
        if found is None:
            raise ValueError(f"objective {text!r}: expected mean>=X, pN>=X or share(Q)>=X")
        mean, percent, share, value = found.groups()
        statistic, level = ("mean", 0.0) if mean else ("p", float(percent)) if percent else ("share", float(share))
        if not 0 < float(value) <= 1 or level > (100 if percent else 1):
            raise ValueError(f"objective {text!r}: QoE and shares lie between 0 and 1, percentiles between 0 and 100")
        return cls(statistic, level, float(value))

    def __str__(self) -> str:
        names = {"mean": "mean", "p": f"p{self.level:g}", "share": f"share({self.level:g})"}
        return f"{names[self.statistic]}>={self.value:g}"

    def of(self, scores: Array) -> float:
        """The statistic of QoE values, shape (n,); 1 for nobody."""
        if not len(scores):
            return 1.0
        if self.statistic == "mean":
            return float(scores.mean())
        return (
            float(np.percentile(scores, self.level)) if self.statistic == "p" else float((scores >= self.level).mean())
        )


def serve(
    engines: Sequence[EngineModel],
    policy: Callable[[], SchedulingPolicy | None],
    requests: Iterable[RequestSpec],
    *,
    routing_policy: RoutingPolicy | None = None,
    decision_interval_s: float = 0.0,
) -> tuple[Array, int]:
    """QoE of each request in order of its end, all served to the end, and how many were open when the last one arrived."""
    scores: list[float] = []
    fleet = Fleet(
        engines[0], policy, engines=engines, routing_policy=routing_policy or QoE(), decision_interval_s=decision_interval_s,
        sink=lambda record: scores.append(record.qoe),
    )  # fmt: skip
    for spec in requests:
        fleet.submit(spec)
    backlog = fleet.open_requests
    fleet.advance()
    return np.array(scores), backlog


def capacity_rps(engine: EngineModel, prompt_tokens: float, output_tokens: float) -> float:
    """Requests per second that keep ``engine`` busy with batches as large as its KV holds, without prefix hits."""
    context = prompt_tokens + output_tokens / 2
    batch = max(1, min(engine.max_running, int(engine.kv_capacity_tokens / context)))
    step_s = engine.costs.decode_s(batch, round(batch * context))
    chunks = max(1.0, prompt_tokens / engine.chunk_tokens)
    pairs = prompt_tokens * prompt_tokens / 2
    prefill_s = engine.costs.prefill_s(round(prompt_tokens), 0, pairs) + (chunks - 1) * engine.costs.prefill_fixed_s
    return 1.0 / (prefill_s + output_tokens * step_s / batch)


def least(holds: Callable[[int], bool], guess: int, most: int, step: int = 1) -> int | None:
    """The least n in 1..most that holds, None if none does; ``holds`` is monotone, and asked seldom after a good guess.
    step: how far off a guess may be."""
    low, high = 0, most + 1
    n = min(max(guess, 1), most)
    while high - low > 1:
        if holds(n):
            high = n
        else:
            low = n
        if high > most:
            n, step = min(most, low + step), 2 * step
        elif low == 0:
            n, step = max(1, high - step), 2 * step
        else:
            n = (low + high) // 2
    return high if high <= most else None


def cheapest_mix(
    holds: Callable[[int, int], bool], alone: tuple[int, int], prices: tuple[float, float]
) -> tuple[int, int]:
    """The cheapest (a, b) that holds, given the least of each ``alone``; ``holds`` is monotone in both."""
    best = min((alone[0], 0), (0, alone[1]), key=lambda mix: mix[0] * prices[0] + mix[1] * prices[1])
    b = alone[1]
    for a in range(1, alone[0]):
        budget = best[0] * prices[0] + best[1] * prices[1]
        while b > 0 and a * prices[0] + (b - 1) * prices[1] >= budget:
            b -= 1
        while b > 0 and holds(a, b - 1):
            b -= 1
            best = (a, b)
    return best
