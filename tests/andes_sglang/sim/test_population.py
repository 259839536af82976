"""What a simulated engine knows of an answer's length before it has ended."""

from __future__ import annotations

import pytest

from andes_sglang.lengths import Asked, EngineLengths
from andes_sglang.policy import SchedulingPolicy, make_policy
from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.profile import load
from andes_sglang.sim.replica import Replica
from andes_sglang.state import Decision, SchedulerState


class Watching:
    """fcfs that remembers what it was shown of each request's length."""

    name = "watching"

    def __init__(self) -> None:
        self.inner: SchedulingPolicy = make_policy("fcfs")
        self.expected: dict[str, float] = {}

    def decide(self, state: SchedulerState) -> Decision:
        self.expected |= dict(zip(state.requests.rids, state.requests.expected_tokens.tolist(), strict=True))
        return self.inner.decide(state)


class Foreseen(EngineLengths):
    """Knows the length of every answer, and is empty as a container."""

    def __len__(self) -> int:
        return 0

    def expected_tokens(self, asked: Asked) -> float:
        return 77.0


def served(*specs: RequestSpec, policy: Watching | None = None) -> dict[str, float]:
    policy = policy or Watching()
    engine: EngineModel = load("h100-llama-3.1-8b").engine
    replica = Replica(engine, policy)
    for spec in specs:
        replica.advance(spec.arrival_s)
        replica.submit(spec)
    replica.advance()
    return policy.expected


def test_answers_teach_what_is_expected_of_those_to_come() -> None:
    expected = served(*(RequestSpec(10.0 * k, 100, 40) for k in range(40)))
    assert expected["r0"] == pytest.approx(256)
    assert expected["r39"] == pytest.approx(40, rel=0.15)


def test_answers_that_fill_their_limit_teach_that_answers_are_longer() -> None:
    cut = served(*(RequestSpec(10.0 * k, 100, 40, max_tokens=40) for k in range(40)))
    assert cut["r39"] > 80


def test_what_a_request_says_overrules_what_was_learned() -> None:
    assert served(RequestSpec(0.0, 100, 40, expected_tokens=900))["r0"] == 900


def test_a_policys_own_foresight_is_asked_whatever_it_holds() -> None:
    policy = Watching()
    policy.answer_lengths = Foreseen  # type: ignore[attr-defined]
    assert served(RequestSpec(0.0, 100, 40), policy=policy)["r0"] == 77
