"""``alise`` and ``ltr``: who goes first by a length that is foreseen, who displaces whom, and who is not forgotten."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from andes_sglang.answer_order import AnswerOrder
from andes_sglang.latency import LatencyModel, LinearCost
from andes_sglang.lengths import EngineLengths, SimilarPrompts
from andes_sglang.policy import answer_lengths, make_policy
from andes_sglang.policy.alise import remaining_s
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.replica import simulate
from andes_sglang.state import Decision, Phase, RequestTable, RequestView, SchedulerState

W, R, P = Phase.WAITING, Phase.RUNNING, Phase.PARKED
NOW_S = 1000.0


def request(rid: str, phase: Phase, expected: float = 200.0, output: int = 0, **more: Any) -> RequestView:
    reader = ReaderStream(NOW_S - 10.0, QoETarget(1.0, 5.0))
    kv = 0 if phase is W else 100 + output
    return RequestView(
        rid, phase, more.pop("arrival_s", NOW_S - 10.0), reader, 100, output, kv, expected_tokens=expected,
        phase_since_s=more.pop("phase_since_s", NOW_S - 10.0), **more,
    )  # fmt: skip


def state_of(*views: RequestView, slots: int = 100, pool: int = 100_000) -> SchedulerState:
    """Of an engine that takes 0.02 s a step and 0.1 ms a prompt token."""
    model = LatencyModel()
    model.decode = LinearCost(prior=(0.02, 0.0, 0.0), scale=(1.0, 16.0, 8192.0))
    model.prefill = LinearCost(prior=(0.0, 1e-4, 0.0), scale=(1.0, 1024.0, 8192.0))
    return SchedulerState(NOW_S, RequestTable.of(views), pool, slots, model)


def decided(policy: str, state: SchedulerState, **options: Any) -> Decision:
    return make_policy(policy, options).decide(state)


@pytest.mark.parametrize("policy", ["alise", "ltr"])
def test_the_shortest_answer_goes_first_and_displaces_the_longest(policy: str) -> None:
    short, middle, unknown = request("short", W, 20), request("middle", W, 150), request("unknown", W, math.nan)
    assert decided(policy, state_of(unknown, middle, short)).admit == ("short", "middle", "unknown")
    long, longer = (request(rid, R, tokens, 200, slice_tokens=200) for rid, tokens in (("l", 900), ("m", 2000)))
    decision = decided(policy, state_of(long, longer, short, slots=2))
    assert (decision.admit, [p.rid for p in decision.preempt]) == (("short",), ["m"])
    fixed = [replace(view, preemptible=False) for view in (long, longer)]
    assert decided(policy, state_of(*fixed, short, slots=2)) == Decision()


def test_alise_counts_what_is_left_and_ltr_the_whole_answer() -> None:
    nearly = request("nearly", R, 400, 390, slice_tokens=390)
    fresh = request("fresh", W, 300)
    assert decided("alise", state_of(nearly, fresh, slots=1)) == Decision()
    assert decided("ltr", state_of(nearly, fresh, slots=1)).admit == ("fresh",)


def test_the_rest_of_a_request_is_its_prefill_and_its_steps() -> None:
    views = [request("new", W, 300), request("half", R, 300, 150), request("outlived", R, 100, 150)]
    assert remaining_s(state_of(*views)) == pytest.approx([0.01 + 300 * 0.02, 150 * 0.02, 45 * 0.02])


def test_an_age_outweighs_a_longer_answer() -> None:
    old, young = request("old", W, 400, arrival_s=NOW_S - 130), request("young", W, 110, arrival_s=NOW_S)
    assert decided("alise", state_of(old, young), ageing_s=60.0).admit == ("old", "young")
    assert decided("alise", state_of(old, young), ageing_s=90.0).admit == ("young", "old")


def test_who_starves_goes_first_and_keeps_its_place_for_a_quantum() -> None:
    starved, longer = (request(f"s{s}", W, 5000, phase_since_s=NOW_S - s) for s in (60, 70))
    short = request("short", W, 10)
    assert decided("ltr", state_of(short, starved, longer)).admit == ("s70", "s60", "short")
    assert decided("ltr", state_of(short, starved, longer), starve_s=80.0).admit[0] == "short"
    running = request("r", R, 5000, 127, slice_tokens=127)
    assert decided("ltr", state_of(running, short, slots=1)) == Decision()
    assert decided("ltr", state_of(replace(running, slice_tokens=128), short, slots=1)).admit == ("short",)
    assert decided("ltr", state_of(running, short, slots=1), quantum_tokens=127).admit == ("short",)


def test_each_policy_has_its_own_foresight() -> None:
    kinds = {name: type(answer_lengths(make_policy(name))) for name in ("andes", "alise", "ltr")}
    assert kinds == {"andes": EngineLengths, "alise": SimilarPrompts, "ltr": AnswerOrder}


@pytest.mark.parametrize("policy", ["alise", "ltr"])
def test_an_engine_learns_who_has_short_answers(policy: str) -> None:
    """Two callers that differ in nothing but the length of their answers: half of the load later the short ones go first."""
    rng = np.random.default_rng(3)
    specs = [
        RequestSpec(0.25 * k, 200, tokens, tenant=tenant)
        for k in range(400)
        for tenant, tokens in [("brief", int(rng.integers(20, 40))) if rng.random() < 0.5 else ("talks", 300)]
    ]
    engine = EngineModel(Costs(0.006, 0.0022, 3e-7, 0.005, 75e-6), 3000)

    def first_s(policy: str, tenant: str) -> float:
        late = [r for r in simulate(engine, make_policy(policy), specs) if r.index > 200 and r.tenant == tenant]
        return float(np.mean([r.ttft_s for r in late]))

    assert first_s(policy, "brief") < 0.5 * first_s("fcfs", "brief")
