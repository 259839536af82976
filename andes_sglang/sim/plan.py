"""How many replicas hold an objective: the planner's search, and the operator's what-if.

Pure functions of their arguments: no clock, no file, one seed. :func:`what_if` answers for a fleet of any size from one
replica that gets its share of the requests, so its cost does not grow with the fleet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet, Router, qoe
from andes_sglang.sim.replica import Replica
from andes_sglang.workload import Stream, lengths, mean_length

__all__ = ["Answer", "Objective", "Prediction", "capacity_rps", "cheapest_mix", "least", "serve", "what_if"]

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
    router: Router = qoe,
    decision_interval_s: float = 0.0,
) -> tuple[Array, int]:
    """QoE of each request in order of its end, all served to the end, and how many were open when the last one arrived."""
    scores: list[float] = []
    fleet = Fleet(
        engines[0], policy, engines=engines, router=router, decision_interval_s=decision_interval_s,
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


def least(holds: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The least n in 1..most that holds, None if none does; ``holds`` is monotone, and asked seldom after a good guess."""
    low, high, step = 0, most + 1, 1
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


class Prediction(NamedTuple):
    """The objective's statistic over all readers and for each kind of them; exact: False where it was given up as missed, and
    the values are bounds from above. backlog_share: of the requests, open when the last one arrived."""

    value: float
    by_reader: tuple[float, ...]
    backlog_share: float
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """replicas: the least that hold the objective, None when not even ``most`` do; predicted: by number of replicas."""

    replicas: int | None
    predicted: dict[int, Prediction] = field(default_factory=dict)


def what_if(
    demand: Stream,
    engine: EngineModel,
    policy: Callable[[], SchedulingPolicy | None],
    objective: Objective | Sequence[Objective],
    *,
    most: int = 50,
    guess: int | None = None,
    also: Sequence[int] = (),
    most_requests: int = 600,
    decision_interval_s: float = 0.1,
) -> Answer:
    """The fewest replicas of ``engine`` under ``policy`` that hold ``objective`` for ``demand``.

    demand: the forecast; its ``readers`` are the classes. objective: one for all readers together, or one for each kind of
    them, in the order of ``demand.readers``. most: largest fleet considered. guess: where to begin, for instance the present
    number. also: sizes to predict beside those the search needs (the present one, one less). most_requests: of one replica;
    where there would be more, every window of the forecast is shortened alike. Raises ``ValueError`` when the forecast and
    the objectives do not match, :class:`~andes_sglang.sim.replica.RefusedError` for what can never fit.
    """
    kinds = len(demand.readers)
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    if len(objectives) not in (1, kinds):
        raise ValueError(f"objective: expected 1 or {kinds}, one for each kind of reader, got {len(objectives)}")
    answer: dict[int, Prediction] = {}

    def met(n: int) -> bool:
        if n not in answer:
            one = _OneOf(n, demand, objectives, most_requests)
            answer[n] = one.predict(engine, policy, decision_interval_s)
        values = (answer[n].value,) if len(objectives) == 1 else answer[n].by_reader
        return all(value >= wanted.value for value, wanted in zip(values, objectives, strict=True))

    if guess is None:
        peak = max((rate for _, rate in demand.rates), default=0.0)
        guess = round(peak / capacity_rps(engine, mean_length(demand.prompt), mean_length(demand.output)) + 0.5)
    replicas = least(met, guess, most)
    for n in also:
        met(n)
    return Answer(replicas, dict(sorted(answer.items())))


class _OneOf:
    """One replica of ``n`` behind a balancing router: a share of the forecast, with arrivals as regular as every n-th one's.

    Lengths, readers and the noise of arrivals are the same for each ``n``, so that answers differ by the load alone.
    """

    def __init__(self, n: int, demand: Stream, objectives: tuple[Objective, ...], most_requests: int) -> None:
        rng, noise = np.random.default_rng(demand.seed), np.random.default_rng(demand.seed + 1)
        durations, rates = np.array(demand.rates).T
        durations = durations * min(1.0, most_requests * n / max(float(durations @ rates), 1e-9))
        expected = np.cumsum(np.concatenate([[0.0], durations * rates])) / n
        count = int(expected[-1] + 4 * np.sqrt(expected[-1] / n) + 4)
        due = np.cumsum(noise.gamma(n, 1.0 / n, count))
        times_s = np.interp(due, expected, np.cumsum(np.concatenate([[0.0], durations])))[due < expected[-1]]
        draw_prompt, draw_output = lengths(demand.prompt), lengths(demand.output)
        share = np.array([share for share, _ in demand.readers])
        self.targets = [target for _, target in demand.readers]
        kinds = rng.choice(len(share), count, p=share / share.sum())[: len(times_s)]
        self.requests = [
            RequestSpec(at, draw_prompt(rng), draw_output(rng), self.targets[kind])
            for at, kind in zip(times_s.tolist(), kinds.tolist(), strict=True)
        ]
        self.objectives = objectives
        self.totals = np.bincount(kinds, minlength=len(share)).tolist()
        self.scores: list[list[float]] = [[] for _ in share]

    def predict(
        self, engine: EngineModel, policy: Callable[[], SchedulingPolicy | None], decision_interval_s: float
    ) -> Prediction:
        """Serve; given up as soon as the objective is out of reach."""
        index = {target: k for k, target in enumerate(self.targets)}
        replica = Replica(
            engine, policy(), decision_interval_s=decision_interval_s,
            sink=lambda record: self.scores[index[record.target]].append(record.qoe),
        )  # fmt: skip
        check_every = max(10, len(self.requests) // 30)
        for number, spec in enumerate(self.requests):
            replica.advance(spec.arrival_s)
            replica.submit(spec)
            if number % check_every == 0 and self._out_of_reach():
                return self._prediction(replica.open_requests, exact=False)
        backlog = replica.open_requests
        while replica.open_requests:
            replica.advance(replica.now_s + 5.0)
            if self._out_of_reach():
                return self._prediction(backlog, exact=False)
        return self._prediction(backlog, exact=True)

    def _best_case(self) -> list[Array]:
        """Scores by kind of reader, those not finished counted as perfect."""
        return [np.array(s + [1.0] * (n - len(s))) for s, n in zip(self.scores, self.totals, strict=True)]

    def _out_of_reach(self) -> bool:
        best = self._best_case()
        groups = [np.concatenate(best)] if len(self.objectives) == 1 else best
        return any(o.of(scores) < o.value for o, scores in zip(self.objectives, groups, strict=True))

    def _prediction(self, backlog: int, exact: bool) -> Prediction:
        best = self._best_case()
        wanted = self.objectives if len(self.objectives) > 1 else self.objectives * len(best)
        by_reader = tuple(o.of(scores) for o, scores in zip(wanted, best, strict=True))
        value = self.objectives[0].of(np.concatenate(best))
        return Prediction(value, by_reader, backlog / max(1, len(self.requests)), exact)
