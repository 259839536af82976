"""The demand to come as requests to simulate: recent ones, closer together or further apart. Pure; chance is seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from andes_operator.gateway_report import ObservedRequest
from andes_operator.names import ALL_CLASSES
from andes_operator.observe import Observation
from andes_operator.spec import ClassObjective, TargetSpec
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec

__all__ = ["ExpectedDemand", "Lengths", "expected_demand"]

SPAN_S = 300.0
"""Seconds of Poisson arrivals where too few requests came to repeat."""
MIN_SPAN_S, ANSWERS, MAX_REPEATED = 60.0, 3.0, 20_000
"""Recent requests are repeated for at least these seconds and this number of mean answers (an empty fleet takes about one
to fill up; see docs/decisions/2026-11-21-what-if-and-forecast.md), but to no more than this number of requests."""
MIN_SAMPLE = 20
"""Requests; fewer do not show how bursty demand is."""
TYPICAL_OUTPUT_TOKENS, TYPICAL_PROMPT_TOKENS = 300, 1000
"""Tokens; assumed until the first request has been seen."""

DEFAULT_READER = ReaderExpectation(QoETarget())


MOVED = 1.2
"""Ratio of a mean, from which on a table made for the other one is out of date: a fifth."""


class Lengths(NamedTuple):
    """Means: tokens of prompts and answers, reading speed (tokens/s), TTFT target (seconds), tokens of answers that are
    shown, weight. unseen: classes that an objective is about and no request is of."""

    prompt: float
    output: float
    tds: float
    ttft_s: float
    shown: float
    weight: float
    unseen: tuple[str, ...] = ()

    def moved(self, since: Lengths) -> bool:
        """Whether any mean is another by a fifth or more, or other classes are missing."""
        means = zip(self[:-1], since[:-1])
        apart = any(not 1.0 / MOVED < (now + 1e-9) / (then + 1e-9) < MOVED for now, then in means)
        return apart or set(self.unseen) != set(since.unseen)


class Answer(NamedTuple):
    """Lengths: of all that is generated, and of what of it is thought first and not shown."""

    tokens: int
    reason_tokens: int


@dataclass(frozen=True, slots=True)
class ExpectedDemand:
    """requests: in order of arrival, from second 0 on; class_names: of each; span_s: the seconds that they cover."""

    requests: tuple[RequestSpec, ...]
    class_names: tuple[str, ...]
    span_s: float

    @property
    def rate_rps(self) -> float:
        return len(self.requests) / self.span_s

    def lengths(self, objectives: Sequence[ClassObjective]) -> Lengths:
        """Raises ``ValueError`` without requests."""
        if not self.requests:
            raise ValueError("requests must not be empty")
        rows = [
            (
                r.prompt_tokens,
                r.output_tokens,
                r.target.tds,
                r.target.ttft_s,
                r.output_tokens - r.reason_tokens,
                r.weight,
            )
            for r in self.requests
        ]
        unseen = {o.class_name for o in objectives} - {ALL_CLASSES, *self.class_names}
        prompt, output, tds, ttft_s, shown, weight = (sum(column) / len(rows) for column in zip(*rows))
        return Lengths(prompt, output, tds, ttft_s, shown, weight, tuple(sorted(unseen)))

    def of_readers(self) -> ExpectedDemand:
        """Without what yields: it runs on what the readers leave over, and is to bring no replica."""
        kept = [(r, name) for r, name in zip(self.requests, self.class_names) if not r.yields]
        return ExpectedDemand(tuple(r for r, _ in kept), tuple(name for _, name in kept), self.span_s)


def expected_demand(
    spec: TargetSpec,
    seen: Observation,
    rate_rps: float,
    readers: Mapping[str, ReaderExpectation],
    *,
    seed: int = 0,
) -> ExpectedDemand:
    """Demand of readers at ``rate_rps``. readers: by class name, for what a request does not say itself.

    Recent requests with their gaps scaled, so that bursts stay bursts, repeated until a fleet that begins empty has filled
    up; Poisson arrivals where fewer than ``MIN_SAMPLE`` came.
    """
    if rate_rps <= 0.0:
        return ExpectedDemand((), (), SPAN_S)
    seen = replace(seen, recent=tuple(request for request in seen.recent if not request.yields))
    chance = random.Random(seed)  # noqa: S311
    if len(seen.recent) >= MIN_SAMPLE:
        return _repeated(spec, seen, rate_rps, readers, chance)
    return _poisson(spec, seen, rate_rps, readers, chance)


def _repeated(
    spec: TargetSpec,
    seen: Observation,
    rate_rps: float,
    readers: Mapping[str, ReaderExpectation],
    chance: random.Random,
) -> ExpectedDemand:
    first_s = seen.recent[0].arrival_s
    seen_s = max(1e-3, seen.now_s - first_s)
    scale = len(seen.recent) / seen_s / rate_rps
    answers = _answers(seen.recent, spec, chance)
    once = [_spec((r.arrival_s - first_s) * scale, r, answer, readers) for r, answer in zip(seen.recent, answers)]
    span_s = seen_s * scale
    read_s = sum((r.output_tokens - r.reason_tokens) / r.target.tds for r in once) / len(once)
    rounds = math.ceil(max(MIN_SPAN_S, min(ANSWERS * read_s, MAX_REPEATED / rate_rps)) / span_s)
    requests = tuple(replace(r, arrival_s=r.arrival_s + k * span_s) for k in range(rounds) for r in once)
    return ExpectedDemand(requests, tuple(r.class_name for r in seen.recent) * rounds, rounds * span_s)


def _poisson(
    spec: TargetSpec,
    seen: Observation,
    rate_rps: float,
    readers: Mapping[str, ReaderExpectation],
    chance: random.Random,
) -> ExpectedDemand:
    prompt_tokens = int(spec.demand.prompt_tokens) or TYPICAL_PROMPT_TOKENS
    samples = seen.recent or (ObservedRequest(seen.now_s, "", prompt_tokens, 0, False),)
    lengths = list(zip(samples, _answers(samples, spec, chance)))
    requests, class_names = [], []
    at_s = chance.expovariate(rate_rps)
    while at_s < SPAN_S:
        sample, answer = chance.choice(lengths)
        requests.append(_spec(at_s, sample, answer, readers))
        class_names.append(sample.class_name)
        at_s += chance.expovariate(rate_rps)
    return ExpectedDemand(tuple(requests), tuple(class_names), SPAN_S)


def _spec(
    at_s: float, request: ObservedRequest, answer: Answer, readers: Mapping[str, ReaderExpectation]
) -> RequestSpec:
    reader = readers.get(request.class_name, DEFAULT_READER)
    return RequestSpec(
        at_s,
        max(1, request.prompt_tokens),
        answer.tokens,
        request.target or reader.target,
        weight=reader.weight if request.weight is None else request.weight,
        yields=reader.yields if request.yields is None else request.yields,
        expected_tokens=request.expected_tokens,
        reason_tokens=answer.reason_tokens,
    )


def _answers(requests: Sequence[ObservedRequest], spec: TargetSpec, chance: random.Random) -> list[Answer]:
    """The answer to each request.

    One that is not finished gets the length of another of its class, drawn from those that have got further (Efron 1967: the
    lengths are then distributed as in Kaplan and Meier's estimate), or twice its own so far where none has.
    """
    usual = int(spec.demand.output_tokens) or TYPICAL_OUTPUT_TOKENS
    answers = [Answer(0, 0)] * len(requests)
    further: dict[str, list[Answer]] = {}
    for i in sorted(range(len(requests)), key=lambda i: -requests[i].output_tokens):
        request = requests[i]
        known = further.setdefault(request.class_name, [])
        if request.done and request.output_tokens:
            answers[i] = Answer(request.output_tokens, min(request.reason_tokens, request.output_tokens))
        elif known:
            answers[i] = chance.choice(known)
        else:
            answers[i] = Answer(max(usual, 2 * request.output_tokens), request.reason_tokens)
        known.append(answers[i])
    return answers
