"""The rules that every policy keeps, on random states and over whole surges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sglang.latency import LatencyModel
from andes_sglang.policy import CLAIRVOYANT, POLICIES, SchedulingPolicy, make
from andes_sglang.policy.oracle import best_total_gain
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.replica import Replica, simulate
from andes_sglang.state import Phase, PreemptionMode, RequestTable, RequestView, SchedulerState

ARMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in (*POLICIES, *CLAIRVOYANT)),
    ("andes", {"preemption": False}),
    ("andes", {"refine": False, "max_preemptions": 1.0}),
]
arms = pytest.mark.parametrize(("name", "options"), ARMS, ids=[f"{n}{'-'.join(['', *o])}" for n, o in ARMS])
STARVING = {"lifo", "andes-v1", "andes-v2", "clairvoyant", "srpt", "tokenflow"}
"""Those that say in their documentation that they may let somebody wait without bound."""
BY_BATCH = {"andes", "andes-v1", "andes-v2", "tokenflow"}
"""Those that may keep the batch smaller than the room."""
ANSWERS = {f"r{k}": 220 + 20 * (k % 3) for k in range(14)}
"""Final lengths of the requests of :func:`states`, none of which has generated more than 200 tokens."""
COSTS = Costs(0.006, 0.0022, 3e-7, 0.005, 75e-6)
SLOW = Costs(0.02, 0.012, 1e-6, 0.01, 2e-4)


def policy_of(name: str, options: dict[str, Any], lengths: Mapping[str, int]) -> SchedulingPolicy:
    return make(name, **options, **({"output_tokens": lengths} if name in CLAIRVOYANT else {}))


def foretold(specs: Sequence[RequestSpec]) -> dict[str, int]:
    return {f"r{k}": spec.output_tokens for k, spec in enumerate(specs)}


@st.composite
def states(draw: st.DrawFn) -> SchedulerState:
    now_s = 1000.0
    views, held = [], 0
    for k in range(draw(st.integers(0, 14))):
        phase = draw(st.sampled_from(list(Phase)))
        age_s = draw(st.floats(0, 90))
        reader = ReaderStream(now_s - age_s, QoETarget(1.0, draw(st.sampled_from([2.0, 4.5, 30.0]))))
        output = draw(st.integers(1, 200)) if phase is not Phase.WAITING else draw(st.sampled_from([0, 0, 50]))
        if output:
            reader.deliver(now_s - draw(st.floats(0, age_s)), output)
        prompt = draw(st.integers(1, 900))
        kv = 0 if phase is Phase.WAITING else prompt + output
        held += kv
        views.append(
            RequestView(
                f"r{k}", phase, now_s - age_s, reader, prompt, output, kv,
                cached_tokens=(cached := draw(st.integers(0, prompt)) if phase is Phase.WAITING else 0),
                host_tokens=draw(st.integers(0, cached if phase is Phase.WAITING else prompt)),
                slice_tokens=draw(st.integers(0, 200)), phase_since_s=now_s - draw(st.floats(0, age_s)),
                preemptions=draw(st.integers(0, 3)), preemptible=draw(st.booleans()),
            )
        )  # fmt: skip
    running = sum(v.phase is Phase.RUNNING for v in views)
    capacity = max(held + draw(st.integers(0, 3000)), 1500)
    return SchedulerState(
        now_s, RequestTable.of(views), capacity, max(1, running + draw(st.integers(0, 6))), LatencyModel()
    )


@arms
@given(states())
def test_bounds_and_consistency(name: str, options: dict[str, Any], state: SchedulerState) -> None:
    t = state.requests
    decision = policy_of(name, options, ANSWERS).decide(state)
    row = {rid: k for k, rid in enumerate(t.rids)}
    preempted = {p.rid for p in decision.preempt}
    named = [*decision.admit, *decision.resume, *preempted]
    assert len(named) == len(set(named)), "a request is named once"
    assert all(t.phase[row[rid]] == Phase.WAITING for rid in decision.admit)
    assert all(t.phase[row[rid]] == Phase.PARKED for rid in decision.resume)
    assert all(t.preemptible[row[rid]] for rid in preempted), "only the preemptible are preempted"
    assert all(t.kv_tokens[row[rid]] > 0 for rid in preempted)

    released = [p.rid for p in decision.preempt if p.mode is not PreemptionMode.PARK]
    kv = t.kv_tokens.sum() - sum(t.kv_tokens[row[rid]] for rid in released)
    kv += sum(t.context_tokens[row[rid]] for rid in decision.admit)
    running = int((t.phase == Phase.RUNNING).sum())
    last_resort = running == 0 and len(decision.admit) == 1 and not decision.resume
    assert kv <= state.kv_capacity_tokens or last_resort
    running += len(decision.admit) + len(decision.resume)
    running -= sum(t.phase[row[rid]] == Phase.RUNNING for rid in preempted)
    assert running <= state.max_running


@arms
@given(states())
def test_deterministic_and_pure(name: str, options: dict[str, Any], state: SchedulerState) -> None:
    policy = policy_of(name, options, ANSWERS)
    before = [column.copy() for column in (state.requests.phase, state.requests.kv_tokens)]
    first, second = policy.decide(state), policy.decide(state)
    assert first == second == policy_of(name, options, ANSWERS).decide(state)
    assert all(
        np.array_equal(a, b) for a, b in zip(before, (state.requests.phase, state.requests.kv_tokens), strict=True)
    )


@arms
@given(states())
def test_work_conserving(name: str, options: dict[str, Any], state: SchedulerState) -> None:
    """An engine with nothing running takes somebody, and plenty of room takes everybody."""
    t = state.requests
    policy = policy_of(name, options, ANSWERS)
    if len(t) and not (t.phase == Phase.RUNNING).any():
        decision = policy.decide(state)
        assert decision.admit or decision.resume
    roomy = SchedulerState(state.now_s, t, 10**6, 1000, state.latency, chunk_tokens=10**6)
    decision = policy.decide(roomy)
    if name not in BY_BATCH or options.get("preemption") is False:
        assert len(decision.admit) + len(decision.resume) == int((t.phase != Phase.RUNNING).sum())


def surge(seed: int, rate: float = 1.6, tds: float = 4.5, prompt: int = 300) -> list[RequestSpec]:
    rng = np.random.default_rng(seed)
    at, specs = 0.0, []
    while at < 60:
        at += rng.exponential(1 / (rate * (2.2 if 20 < at < 40 else 0.7)))
        lengths = int(rng.integers(prompt // 2, prompt)), int(rng.integers(60, 200))
        specs.append(RequestSpec(at, *lengths, QoETarget(1.0, tds)))
    return specs


@arms
@pytest.mark.parametrize("costs", [COSTS, SLOW], ids=["fast", "slow"])
def test_nobody_is_lost_over_a_surge(name: str, options: dict[str, Any], costs: Costs) -> None:
    specs = surge(1)
    records = sorted(
        simulate(EngineModel(costs, 4096), policy_of(name, options, foretold(specs)), specs), key=lambda r: r.index
    )
    assert [len(r.deliveries) for r in records] == [s.output_tokens for s in specs]


@arms
def test_nobody_starves_without_bound(name: str, options: dict[str, Any]) -> None:
    """Under sustained overload the first to arrive are served long before the load ends, except where documented."""
    finished: list[RequestRecord] = []
    specs = [RequestSpec(0.3 * k, 250, 150, QoETarget(1.0, 4.5)) for k in range(900)]
    replica = Replica(EngineModel(COSTS, 4096), policy_of(name, options, foretold(specs)), sink=finished.append)
    for spec in specs:
        replica.submit(spec)
    replica.advance(225.0)
    late = set(range(50)).difference(r.index for r in finished)
    if name in STARVING or options.get("preemption") is False:
        return
    assert not late


def test_andes_keeps_the_stall_bound_and_beats_the_queue() -> None:
    def run(policy: str, **options: Any) -> list[RequestRecord]:
        return list(simulate(EngineModel(COSTS, 8192), make(policy, **options), surge(2, rate=2.2)))

    def mean_qoe(records: list[RequestRecord]) -> float:
        return float(np.mean([record.qoe for record in records]))

    ours = run("andes", stall_bound_s=10.0)
    assert mean_qoe(ours) > mean_qoe(run("fcfs"))
    assert np.percentile([record.score().longest_stall_s for record in ours], 90) < 15.0


@given(st.integers(0, 200))
@settings(max_examples=30)
def test_the_oracle_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains, blocks = rng.uniform(0, 1, 9), rng.integers(1, 8, 9)
    capacity, batch = 15, 4
    best = 0.0
    for mask in range(1 << 9):
        rows = [k for k in range(9) if mask >> k & 1]
        if len(rows) <= batch and blocks[rows].sum() <= capacity:
            best = max(best, float(gains[rows].sum()))
    assert best_total_gain(gains, blocks, capacity, batch) == pytest.approx(best)


def test_an_unknown_policy_or_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown policy 'fifo'.*andes"):
        make("fifo")
    with pytest.raises(ValueError, match=r"horizn"):
        make("andes", horizn=3)
    with pytest.raises(ValueError, match=r"horizon_s must be > 0"):
        make("andes", horizon_s=0)
