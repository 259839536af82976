"""When a policy is asked, what it is shown, and what becomes of its decision."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from andes_sglang import protocol
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.replica import Replica
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

COSTS = Costs(0.01, 0.002, 1e-5, 0.02, 1e-3)
Decide = Callable[[SchedulerState], Decision]


class Told:
    """Admits and resumes all, or does what it is told to once."""

    name = "told"

    def __init__(self) -> None:
        self.seen: list[SchedulerState] = []
        self.next: Decide | None = None

    def decide(self, state: SchedulerState) -> Decision:
        self.seen.append(state)
        if self.next is not None:
            decide, self.next = self.next, None
            return decide(state)
        t = state.requests
        return Decision(t.names(t.rows(Phase.WAITING)), t.names(t.rows(Phase.PARKED)))


def replica(*specs: RequestSpec, interval_s: float = 0.0, **engine: int | Overlap) -> tuple[Replica, Told]:
    policy = Told()
    model = EngineModel(COSTS, **{"kv_capacity_tokens": 10_000, "chunk_tokens": 500, **engine})  # type: ignore[arg-type]
    made = Replica(model, policy, decision_interval_s=interval_s)
    for spec in specs:
        made.submit(spec)
    return made, policy


def spec(at_s: float, prompt: int = 100, output: int = 200) -> RequestSpec:
    return RequestSpec(at_s, prompt, output, QoETarget(1.0, 5.0))


def test_with_nothing_to_decide_the_policy_is_not_asked() -> None:
    one, policy = replica(spec(0.0))
    one.advance(1.0)
    assert [state.now_s for state in policy.seen] == [0.0]


def test_it_is_asked_when_kv_lasts_for_fewer_steps_than_the_pressure_says() -> None:
    one, policy = replica(spec(0.0, 100, 100), kv_capacity_tokens=300)
    one._pool.uncached_tokens += 98
    one.advance()
    asked = [s for s in policy.seen if s.requests.phase[0] == Phase.RUNNING]
    free = [s.kv_capacity_tokens - s.kv_reserved_tokens - int(s.requests.kv_tokens.sum()) for s in asked]
    assert free == list(range(protocol.KV_PRESSURE_STEPS - 1, free[-1] - 1, -1))
    assert len(free) > 3, "and at every step from then on"


def test_while_a_request_waits_it_is_asked_at_every_step_or_as_often_as_it_should_be() -> None:
    for interval_s, least, most in ((0.0, 60, 90), (0.25, 3, 6)):
        one, policy = replica(spec(0.0), spec(0.1), max_running=1, interval_s=interval_s)
        for k in range(1, 101):
            one.advance(0.01 * k)
        assert least <= len(policy.seen) <= most


@pytest.mark.parametrize("overlap", list(Overlap))
def test_one_that_has_generated_everything_is_not_shown(overlap: Overlap) -> None:
    one, policy = replica(spec(0.0, 100, 5), spec(0.0, 100, 90), spec(0.01, 400, 9), max_running=2, overlap=overlap)
    one.advance()
    ends = [s for s in policy.seen if "r0" in s.requests.rids]
    assert max(float(s.requests.output_tokens[s.requests.rids.index("r0")]) for s in ends) < 5


def test_the_rest_of_a_long_prompt_is_not_shown_as_room() -> None:
    one, policy = replica(spec(0.0), spec(0.1, 400), spec(0.1), kv_capacity_tokens=1000, chunk_tokens=101, mixed=True)
    while one._admission.chunked is None:
        one.advance(one.now_s + 1e-9)
    while one._admission.chunked is not None:
        seen = len(policy.seen)
        one.advance(one.now_s + 1e-9)
        for state in policy.seen[seen:]:
            assert state.running_reserved == 1
            assert state.kv_reserved_tokens >= 399, "what is computed, and what is not; a page may be cached already"
            assert state.max_running == 64
    assert len(policy.seen) > 3


def test_mixed_it_is_shown_no_more_places_than_leave_prompts_a_part_of_the_chunk() -> None:
    one, policy = replica(spec(0.0), max_running=32, chunk_tokens=20, mixed=True)
    one.advance(0.5)
    assert policy.seen[0].max_running == 19


def test_what_is_admitted_and_released_at_once_is_not_prefilled_in_the_same_iteration() -> None:
    one, _ = replica(spec(0.0), spec(0.1), spec(0.2), max_running=2)
    one.advance(0.5)
    release = Preemption("r0", PreemptionMode.RELEASE, "test")
    assert [job.rid for job in one._seam.apply(Decision(("r0", "r2"), (), (release,)))] == ["r2"]
    assert one.by_rid["r0"].phase == Phase.WAITING


def test_a_parked_request_is_resumed_when_the_engine_would_idle_and_a_broken_policy_is_named() -> None:
    one, policy = replica(spec(0.0), spec(0.1), max_running=1)
    one.advance(0.5)

    def park(_state: SchedulerState) -> Decision:
        policy.next = lambda _state: Decision()
        return Decision((), (), (Preemption("r0", PreemptionMode.PARK, "test"),))

    policy.next = park
    one.advance(one.now_s + 1e-9)
    assert [(job.rid, job.preemptions) for job in one.running] == [("r0", 1)]
    assert not one.parked
    lazy, policy = replica(spec(0.0))
    policy.decide = lambda state: Decision()  # type: ignore[method-assign] # noqa: ARG005
    with pytest.raises(RuntimeError, match="policy 'told' leaves the engine idle with 1 requests"):
        lazy.advance(1.0)
