"""A fleet against its replicas one by one, and its coming and going."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import ROUTING_POLICIES, make_routing_policy
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.fleet import Fleet, simulate_fleet
from andes_sglang.sim.replica import simulate

COSTS = Costs(
    decode_fixed_s=0.01, decode_request_s=0.002, decode_context_s=1e-5, prefill_fixed_s=0.02, prefill_token_s=1e-3
)
ENGINE = EngineModel(COSTS, kv_capacity_tokens=2000, chunk_tokens=500, overlap=Overlap.ASYNC)


def arrivals(count: int, rate: float, seed: int = 1) -> list[RequestSpec]:
    rng = np.random.default_rng(seed)
    return [
        RequestSpec(float(t), int(rng.integers(20, 200)), int(rng.integers(5, 80)), QoETarget(1.0, 4.5), max_tokens=100)
        for t in np.cumsum(rng.exponential(1 / rate, count))
    ]


def run(fleet: Fleet, specs: Sequence[RequestSpec]) -> list[RequestRecord]:
    return sorted(simulate_fleet(fleet, specs), key=lambda r: r.index)


@pytest.mark.parametrize("router", ROUTING_POLICIES)
@pytest.mark.parametrize("policy", [None, "andes"])
def test_each_replica_does_what_it_would_do_alone(router: str, policy: str | None) -> None:
    """Also: that leaving quiet replicas alone changes nothing."""

    def decide() -> Any:
        return make(policy) if policy else None

    specs = arrivals(200, 12.0)
    records = run(Fleet(ENGINE, decide, replicas=3, routing_policy=make_routing_policy(router)), specs)
    assert len(records) == len(specs)
    for index in range(3):
        mine = [r for r in records if r.replica == index]
        assert mine
        alone = sorted(simulate(ENGINE, decide(), [specs[r.index] for r in mine]), key=lambda r: r.index)
        for a, b in zip(mine, alone, strict=True):
            assert a.token_times_s == pytest.approx(b.token_times_s)


def test_routers_choose_as_they_say() -> None:
    long, short = RequestSpec(0.0, 900, 60), RequestSpec(0.0, 50, 60)

    def chosen(router: str, specs: Sequence[RequestSpec]) -> list[int | None]:
        return [r.replica for r in run(Fleet(ENGINE, replicas=2, routing_policy=make_routing_policy(router)), specs)]

    assert chosen("round_robin", [long, short, short, short]) == [0, 1, 0, 1]
    assert chosen("least_load", [long, short, short, short]) == [0, 1, 1, 0], "of equal loads, fewer tokens to prefill"
    assert chosen("least_tokens", [long, short, short, short]) == [0, 1, 1, 1]
    assert chosen("qoe", [long, short, short, short]) == [0, 1, 1, 1]


@pytest.mark.parametrize("router", ROUTING_POLICIES)
def test_in_a_mixed_fleet_a_long_prompt_goes_where_it_fits(router: str) -> None:
    small = EngineModel(COSTS, kv_capacity_tokens=300, chunk_tokens=500)
    fleet = Fleet(ENGINE, engines=[small, ENGINE, small], routing_policy=make_routing_policy(router))
    records = run(fleet, [RequestSpec(float(t), 900 if t % 2 else 50, 20) for t in range(12)])
    assert {r.replica for r in records if r.prompt_tokens == 900} == {1}


class Steps:
    """Asks for what it is told to, tick by tick."""

    interval_s = 10.0

    def __init__(self, *wanted: int) -> None:
        self.left = list(wanted)

    def desired_replicas(self, fleet: Fleet) -> int:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def test_a_new_replica_serves_after_its_start_up_and_is_paid_from_the_wish() -> None:
    fleet = Fleet(ENGINE, routing_policy=make_routing_policy("round_robin"), autoscaler=Steps(2), start_s=7.5)
    records = run(fleet, [RequestSpec(t / 2, 10, 2) for t in range(80)])
    assert {r.replica for r in records if r.arrival_s < 17.5} == {0}
    assert {r.replica for r in records if r.arrival_s > 17.5} == {0, 1}
    assert fleet.most == 2
    assert fleet.replica_s == pytest.approx(2 * fleet.now_s - 10.0)


def test_draining_cuts_nobody_off_and_takes_nobody_new() -> None:
    fleet = Fleet(ENGINE, replicas=2, autoscaler=Steps(1))
    specs = [RequestSpec(9.0, 100, 300), RequestSpec(9.1, 100, 300), *(RequestSpec(10 + t, 10, 2) for t in range(20))]
    records = run(fleet, specs)
    assert [len(r.deliveries) for r in records] == [s.output_tokens for s in specs]
    assert len({r.replica for r in records[:2]}) == 2
    assert len({r.replica for r in records[2:]}) == 1
    gone = next(r for r in records[:2] if r.replica != records[2].replica)
    assert gone.end_s > 10.0
    assert fleet.replica_s == pytest.approx(fleet.now_s + gone.end_s, abs=1.0), "to the next arrival"


def test_a_replica_still_starting_is_called_off_first() -> None:
    fleet = Fleet(ENGINE, autoscaler=Steps(3, 1), start_s=30.0)
    records = run(fleet, [RequestSpec(float(t), 10, 2) for t in range(60)])
    assert {r.replica for r in records} == {0}
    assert fleet.started == 3
    assert fleet.replica_s == pytest.approx(fleet.now_s + 2 * 10.0)


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: Fleet(ENGINE, replicas=0), "replicas must be >= 1, got 0"),
        (lambda: Fleet(ENGINE, start_s=-1.0), "start_s must be >= 0 seconds, got -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(make_it: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_it()
