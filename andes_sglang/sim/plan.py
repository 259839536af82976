"""What planning is made of: a fleet played to its end, what an engine carries by arithmetic, and the smallest that holds.

Pure functions of their arguments: no clock, no file, no random source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.replica import simulate
from andes_sglang.workload import mean_length, parse_lengths

__all__ = ["capacity_rps", "play_fleet", "score_fleet", "smallest_feasible", "sustained_tokens_per_s"]

Array = npt.NDArray[np.float64]


def score_fleet(
    engines: Sequence[EngineModel],
    policy: Callable[[], SchedulingPolicy | None],
    requests: Iterable[RequestSpec],
    *,
    routing_policy: RoutingPolicy | None = None,
    decision_interval_s: float = 0.0,
) -> tuple[Array, int]:
    """QoE of each request in order of its end, all served to the end, and how many were open when the last one arrived."""
    scores: list[float] = []
    backlog = play_fleet(
        engines, policy, requests, lambda record: scores.append(record.qoe),
        routing_policy=routing_policy, decision_interval_s=decision_interval_s,
    )  # fmt: skip
    return np.array(scores), backlog


def play_fleet(
    engines: Sequence[EngineModel],
    policy: Callable[[], SchedulingPolicy | None],
    requests: Iterable[RequestSpec],
    sink: Callable[[RequestRecord], None],
    *,
    routing_policy: RoutingPolicy | None = None,
    decision_interval_s: float = 0.0,
) -> int:
    """Serve ``requests`` to the end, one replica of each of ``engines``; how many were open when the last one arrived. A
    record of each goes to ``sink`` when it ends."""
    fleet = Fleet(
        engines[0], policy, engines=engines, routing_policy=routing_policy or QoE(), decision_interval_s=decision_interval_s,
        sink=sink,
    )  # fmt: skip
    for spec in requests:
        fleet.submit(spec)
    backlog = fleet.open_requests
    fleet.advance()
    return backlog


def capacity_rps(engine: EngineModel, prompt_tokens: float, output_tokens: float) -> float:
    """Requests per second that keep ``engine`` busy with batches as large as its KV holds, without prefix hits."""
    context = prompt_tokens + output_tokens / 2
    batch = max(1, min(engine.max_running, int(engine.kv_capacity_tokens / context)))
    step_s = engine.costs.decode_s(batch, round(batch * context))
    chunks = max(1.0, prompt_tokens / engine.chunk_tokens)
    pairs = prompt_tokens * prompt_tokens / 2
    prefill_s = engine.costs.prefill_s(round(prompt_tokens), 0, pairs) + (chunks - 1) * engine.costs.prefill_fixed_s
    return 1.0 / (prefill_s + output_tokens * step_s / batch)


def sustained_tokens_per_s(engine: EngineModel, prompt: str, output: str, seed: int) -> float:
    """Output tokens per second of a stock engine with a queue that is never empty. prompt, output: lengths, as on the command
    line. Counted from a fifth to three quarters of the tokens, when the batch is full."""
    rng = np.random.default_rng(seed)
    draw_prompt, draw_output = parse_lengths(prompt), parse_lengths(output)
    batch = engine.kv_capacity_tokens / (mean_length(prompt) + 0.5 * mean_length(output))
    count = max(1000, 6 * int(min(engine.max_running, batch)))
    flood = [RequestSpec(0.0, draw_prompt(rng), draw_output(rng), QoETarget()) for _ in range(count)]
    arrived = np.sort(np.concatenate([r.token_times_s for r in simulate(engine, None, flood)]))
    first, last = arrived[len(arrived) // 5], arrived[len(arrived) * 3 // 4]
    return float(0.55 * len(arrived) / (last - first))


def smallest_feasible(holds: Callable[[int], bool], guess: int, maximum: int, step: int = 1) -> int | None:
    """The smallest n in 1..``maximum`` for which ``holds(n)``; None if it holds for none.

    ``holds`` is monotone (once true, true for all larger n) and is asked at most once for each n: near ``guess`` first, then
    in steps that double from ``step`` on (how far off the guess may be) until the answer is bracketed, then by bisection.
    """
    low, high = 0, maximum + 1
    n = min(max(guess, 1), maximum)
    while high - low > 1:
        if holds(n):
            high = n
        else:
            low = n
        if high > maximum:
            n, step = min(maximum, low + step), 2 * step
        elif low == 0:
            n, step = max(1, high - step), 2 * step
        else:
            n = (low + high) // 2
    return high if high <= maximum else None
