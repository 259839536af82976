"""The demand to come, as arrivals to play: what came lately, closer together or further apart. Pure; chance is seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from andes_operator.observe import Observation, Request
from andes_operator.spec import TargetSpec
from andes_operator.whatif import Arrival
from andes_sglang.qoe import QoETarget

__all__ = ["Reader", "arrivals"]

SPAN_S = 300.0
LEAST_SPAN_S, ANSWERS, MOST_REPEATED = 60.0, 3.0, 20_000
LEAST_SAMPLE = 20
TYPICAL_OUTPUT_TOKENS = 300
TYPICAL_PROMPT_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Reader:
    """What readers of a class expect, and the weight of their QoE."""

    target: QoETarget
    weight: float = 1.0


DEFAULT_READER = Reader(QoETarget())


def arrivals(
    spec: TargetSpec, seen: Observation, rate_rps: float, readers: Mapping[str, Reader], seed: int = 0
) -> tuple[tuple[Arrival, ...], float]:
    """Arrivals at ``rate_rps``, and the seconds that they cover: the recent ones with their gaps scaled, so that bursts stay
    bursts; Poisson where too few came to show any. What came in a short time comes again, until a fleet that begins empty has
    filled up: for as long as three answers are read."""
    if rate_rps <= 0.0:
        return (), SPAN_S
    chance = random.Random(seed)  # noqa: S311
    usual = int(spec.demand.output_tokens) or TYPICAL_OUTPUT_TOKENS

    def arrival(at_s: float, request: Request, tokens: int) -> Arrival:
        reader = readers.get(request.class_name, DEFAULT_READER)
        target = request.target or reader.target
        return Arrival(at_s, request.class_name, max(1, request.prompt_tokens), tokens, target, reader.weight)

    if len(seen.recent) >= LEAST_SAMPLE:
        first_s = seen.recent[0].arrival_s
        seen_s = max(1e-3, seen.now_s - first_s)
        scale = len(seen.recent) / seen_s / rate_rps
        tokens = _output_tokens(seen.recent, usual, chance)
        once = [arrival((r.arrival_s - first_s) * scale, r, n) for r, n in zip(seen.recent, tokens)]
        span_s = seen_s * scale
        read_s = sum(a.output_tokens / a.reader.tds for a in once) / len(once)
        rounds = math.ceil(max(LEAST_SPAN_S, min(ANSWERS * read_s, MOST_REPEATED / rate_rps)) / span_s)
        return tuple(replace(a, at_s=a.at_s + k * span_s) for k in range(rounds) for a in once), rounds * span_s
    pattern = seen.recent or (
        Request(seen.now_s, "", int(spec.demand.prompt_tokens) or TYPICAL_PROMPT_TOKENS, 0, False),
    )
    lengths = list(zip(pattern, _output_tokens(pattern, usual, chance)))
    made, at_s = [], chance.expovariate(rate_rps)
    while at_s < SPAN_S:
        made.append(arrival(at_s, *chance.choice(lengths)))
        at_s += chance.expovariate(rate_rps)
    return tuple(made), SPAN_S


def _output_tokens(requests: Sequence[Request], usual: int, chance: random.Random) -> list[int]:
    """Of each request. One that is not finished gets as long as one of its class, drawn from those that have got further
    (Efron 1967: that makes the lengths Kaplan and Meier's estimate), or twice as far as it is where none has."""
    tokens = [0] * len(requests)
    further: dict[str, list[int]] = {}
    for i in sorted(range(len(requests)), key=lambda i: -requests[i].output_tokens):
        request = requests[i]
        known = further.setdefault(request.class_name, [])
        if request.done and request.output_tokens:
            tokens[i] = request.output_tokens
        else:
            tokens[i] = chance.choice(known) if known else max(usual, 2 * request.output_tokens)
        known.append(tokens[i])
    return tokens
