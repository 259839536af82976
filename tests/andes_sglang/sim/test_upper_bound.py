"""The bound holds against every schedule of small instances, found by exhaustion, and against every policy on larger ones."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from andes_sglang.policy import CLAIRVOYANT, POLICIES, make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.replica import simulate
from andes_sglang.sim.upper_bound import Prices, upper_bound

TINY = EngineModel(Costs(0.125, 0.125, 0.0, 0.0, 0.25, 0.125), 16, max_running=2, chunk_tokens=2)
QUICK: dict[str, Any] = {"slot_s": 0.25, "chunks": 2, "growth": 1.4, "iterations": 12, "tolerance": 0.005}


def best_mean_qoe(requests: list[RequestSpec], engine: EngineModel, latest_s: float = np.inf) -> float:
    """The largest mean QoE of any schedule whose last tokens are at most ``latest_s`` late, by trying them all: who is
    computed, who decodes, who is dropped for it, and whether to wait for the next arrival. For a handful of requests.

    Of every request: tokens generated, KV in the pool, lateness of its last token, sum of latenesses.
    """
    costs = engine.costs
    begin = tuple((0, False, 0.0, 0.0) for _ in requests)

    def deliver(who: tuple[int, ...], states: list[tuple[int, bool, float, float]], at_s: float) -> None:
        for i in who:
            tokens, _, late_s, total_s = states[i]
            r = requests[i]
            late_s = max(late_s, at_s - r.arrival_s - r.target.ttft_s - tokens / r.target.tds)
            states[i] = (tokens + 1, tokens + 1 < r.output_tokens, late_s, total_s + late_s)

    @cache
    def best(now_s: float, states: tuple[tuple[int, bool, float, float], ...]) -> float:
        open_ = [i for i, r in enumerate(requests) if states[i][0] < r.output_tokens]
        if any(late > latest_s for _, _, late, _ in states):
            return -np.inf
        if not open_:
            return sum(
                1 - total / (r.output_tokens * (late + r.output_tokens / 2 / r.target.tds))
                for r, (_, _, late, total) in zip(requests, states, strict=True)
            )
        context = [r.prompt_tokens + s[0] for r, s in zip(requests, states, strict=True)]
        held = [i for i in open_ if states[i][1]]
        out = [i for i in open_ if not states[i][1] and requests[i].arrival_s <= now_s]
        values = [best(r.arrival_s, states) for r in requests if r.arrival_s > now_s][:1]
        for group, computes in ((held, False), (out, True)):
            for size in range(1, min(len(group), engine.max_running) + 1):
                for who in combinations(group, size):
                    rest = [i for i in held if i not in who]
                    for kept in (k for n in range(len(rest) + 1) for k in combinations(rest, n)):
                        if sum(context[i] for i in kept) + sum(context[i] for i in who) > engine.kv_capacity_tokens:
                            continue
                        tokens = sum(context[i] for i in who)
                        seconds = (
                            costs.prefill_s(tokens, requests=size) if computes else costs.decode_s(len(who), tokens)
                        )
                        after = [(s[0], i in kept, s[2], s[3]) for i, s in enumerate(states)]
                        deliver(who, after, now_s + seconds)
                        values.append(best(now_s + seconds, tuple(after)))
        return max(values)

    return best(requests[0].arrival_s, begin) / len(requests)


def tiny(seed: int) -> list[RequestSpec]:
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.integers(0, 3, 3)) * 0.25
    return [
        RequestSpec(float(at), int(rng.integers(3, 9)), int(rng.integers(2, 4)), QoETarget(0.5, 1.0)) for at in arrivals
    ]


@cache
def best_of_tiny(seed: int, latest_s: float = np.inf) -> float:
    return best_mean_qoe(tiny(seed), TINY, latest_s)


@pytest.mark.parametrize("seed", range(4))
def test_no_schedule_of_a_small_instance_beats_it_and_it_says_something(seed: int) -> None:
    requests = tiny(seed)
    best = best_of_tiny(seed)
    bound = upper_bound(requests, TINY, 14.0, **QUICK)
    assert best <= bound.mean_qoe + 1e-9
    assert 1.0 - bound.mean_qoe > 0.25 * (1.0 - best)


@pytest.mark.parametrize("coarse", [{"slot_s": 1.0}, {"chunks": 1}, {"growth": 2.0}, {"iterations": 1}])
def test_every_setting_is_valid(coarse: dict[str, Any]) -> None:
    requests = tiny(1)
    settings: dict[str, Any] = {**QUICK, **coarse}
    assert best_of_tiny(1) <= upper_bound(requests, TINY, 14.0, **settings).mean_qoe + 1e-9


def test_it_is_lower_where_nobody_may_end_late() -> None:
    requests = tiny(1)
    limits = [3.0, 14.0]
    bounds = [upper_bound(requests, TINY, 14.0, latest_s=[limit] * 3, **QUICK).mean_qoe for limit in limits]
    assert all(best_of_tiny(1, limit) <= b + 1e-9 for limit, b in zip(limits, bounds, strict=True))
    assert bounds[0] < bounds[-1] - 0.01


def test_any_prices_are_valid() -> None:
    requests = tiny(1)
    settings = {**QUICK, "iterations": 0}
    slots = len(upper_bound(requests, TINY, 14.0, **settings).prices.engine)
    rng = np.random.default_rng(0)
    prices = Prices(rng.uniform(0, 0.2, slots), rng.uniform(0, 0.1, slots))
    assert best_of_tiny(1) <= upper_bound(requests, TINY, 14.0, **settings, prices=prices).mean_qoe


def test_no_policy_beats_it() -> None:
    engine = EngineModel(Costs(0.02, 0.002, 0.0, 0.008, 4e-4), 1500)
    rng = np.random.default_rng(3)
    requests = [
        RequestSpec(float(at), int(rng.integers(100, 300)), int(rng.integers(20, 60)), QoETarget(1.0, 4.5))
        for at in np.sort(rng.uniform(0, 2, 40))
    ]
    lengths = {f"r{k}": r.output_tokens for k, r in enumerate(requests)}
    best, end_s, latest_s = 0.0, 0.0, 0.0
    settings: dict[str, Any] = {"slot_s": 1.0, "chunks": 6, "growth": 1.4, "iterations": 10}
    for name in (*POLICIES, *CLAIRVOYANT):
        policy = make(name, **({"output_tokens": lengths} if name in CLAIRVOYANT else {}))
        records = list(simulate(engine, policy, requests))
        best = max(best, float(np.mean([r.qoe for r in records])))
        end_s = max(end_s, *(r.end_s for r in records))
        late_s = {r.index: max(0.0, r.end_s - r.arrival_s - 1.0 - (r.output_tokens - 1) / 4.5) for r in records}
        latest_s = max(latest_s, *late_s.values())
        if name == "andes":
            no_later = upper_bound(
                requests, engine, end_s, latest_s=[late_s[k] for k in range(len(requests))], **settings
            )
            assert float(np.mean([r.qoe for r in records])) <= no_later.mean_qoe
    bound = upper_bound(requests, engine, end_s, latest_s=latest_s, **settings)
    assert best <= bound.mean_qoe < 1.0 - 0.05 * (1.0 - best)
    assert no_later.mean_qoe < bound.mean_qoe + 0.001


def test_what_cannot_be_is_refused() -> None:
    long = [RequestSpec(0.0, 20, 2, QoETarget(0.5, 1.0))]
    with pytest.raises(ValueError, match=r"request 0: 20 \+ 2 tokens exceed the KV pool"):
        upper_bound(long, TINY, 10.0)
    with pytest.raises(ValueError, match=r"request 0: arrives at 0.0 s, not before horizon_s 0.0"):
        upper_bound([RequestSpec(0.0, 2, 2)], TINY, 0.0)
    with pytest.raises(ValueError, match=r"latest_s must be >= 0 seconds, got -1.0"):
        upper_bound([RequestSpec(0.0, 2, 2)], TINY, 10.0, latest_s=[-1.0])
    with pytest.raises(ValueError, match=r"request 1: no schedule delivers it by horizon_s and within its latest_s"):
        upper_bound([RequestSpec(0.0, 2, 2, QoETarget(9.0, 1.0)), RequestSpec(0.0, 8, 2, QoETarget(0.1, 1.0))], TINY, 10.0,
                    latest_s=[0.0, 0.0], slot_s=0.25)  # fmt: skip
    with pytest.raises(ValueError, match=r"slot_s and chunks must be > 0"):
        upper_bound([RequestSpec(0.0, 2, 2)], TINY, 10.0, slot_s=0.0)
