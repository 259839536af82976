"""Forecast and what-if together, on the real simulator."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from andes_operator.gateway_report import ObservedRequest
from andes_operator.observe import Observation, PodCounts
from andes_operator.prediction import Inquiry, check_options, cold_start_s, predict, simulated_policy
from andes_operator.spec import ClassObjective, DemandSource, ScaleTargetRef, SpecError, TargetSpec
from andes_operator.whatif import Prediction
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.qoe import QoETarget

NOW_S = 1_000_000.0
SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(ClassObjective("*", QoEObjective(Statistic.SHARE_ABOVE, 0.95, 0.95)),),
    min_replicas=1,
    max_replicas=20,
    demand=DemandSource(service="gateway"),
    profile="h100-llama-3.1-8b",
    policy="stock",
)


def observed(rate_rps: float, seconds: float = 300.0) -> Observation:
    chance = random.Random(1)  # noqa: S311
    at_s, requests = NOW_S - seconds, []
    while (at_s := at_s + chance.expovariate(rate_rps)) < NOW_S:
        requests.append(ObservedRequest(at_s, "reading", chance.randint(200, 2000), chance.randint(50, 500), True))
    return Observation(NOW_S, PodCounts(2, 2, 2), rate_rps, recent=tuple(requests))


BUSY = observed(60.0, 120.0)


def ask(seen: Observation = BUSY, since_s: float = NOW_S - 120, spec: TargetSpec = SPEC, **more: Any) -> Prediction:
    return predict(Inquiry(spec, seen, since_s, 75.0, **more))[1]


@pytest.fixture(scope="module")
def first() -> Prediction:
    return ask(replace(BUSY, pods=PodCounts(6, 6, 6)))


def test_the_whole_prediction(first: Prediction) -> None:
    expected, predicted = predict(Inquiry(SPEC, BUSY, NOW_S - 120, 75.0, last=first))
    assert expected.rate_rps >= 60.0
    assert expected.horizon_s == 75.0
    assert predicted.fewest == first.fewest is not None
    assert predicted.meets(predicted.fewest)
    assert not predicted.meets(predicted.fewest - 1)
    assert (predicted.at_s, predicted.load_factor) == (NOW_S, 1.0)


def test_overload_is_predicted_to_miss_the_objective(first: Prediction) -> None:
    assert first.fewest is not None
    few = ask(spec=replace(SPEC, max_replicas=1))
    assert few.fewest is None
    assert few.values[1][0] < 0.95  # type: ignore[operator]


def test_a_class_is_told_apart() -> None:
    requests = tuple(
        ObservedRequest(NOW_S - 100 + i * 0.5, "fast" if i % 2 else "slow", 500, 100, True) for i in range(200)
    )
    readers = {"fast": ReaderExpectation(QoETarget(0.02, 500.0)), "slow": ReaderExpectation()}
    objectives = (
        ClassObjective("slow", QoEObjective(Statistic.MEAN, 0.5)),
        ClassObjective("fast", QoEObjective(Statistic.MEAN, 0.01)),
    )
    seen = replace(observed(2.0), recent=requests)
    slow, fast = ask(seen, NOW_S - 100, replace(SPEC, objectives=objectives, max_replicas=1), readers=readers).values[1]
    assert slow == 1.0
    assert fast < 0.9  # type: ignore[operator]


def test_engines_that_hold_more_than_the_requests_explain_take_more_replicas(first: Prediction) -> None:
    assert first.fewest is not None
    usual = round(60.0 * sum(first.residence_times_s[6]) / len(first.residence_times_s[6]))
    moved = tuple(replace(r, arrival_s=r.arrival_s + 120.0) for r in BUSY.recent)
    later = replace(BUSY, pods=PodCounts(6, 6, 6), now_s=NOW_S + 120.0, recent=moved)
    doubled = ask(replace(later, engine_requests=2 * usual), NOW_S, last=first)
    assert 1.6 < doubled.load_factor < 2.2
    assert doubled.fewest is not None
    assert doubled.fewest >= 1.4 * first.fewest
    assert doubled.rate_rps == pytest.approx(60.0 * doubled.load_factor, rel=0.1)
    as_told = later, SPEC.behavior.window_s
    assert first.update_load_factor(replace(as_told[0], engine_requests=usual), as_told[1]) == pytest.approx(
        1.0, abs=0.1
    )


def test_no_requests_need_the_minimum() -> None:
    expected, predicted = predict(Inquiry(SPEC, Observation(NOW_S, PodCounts(3, 3, 3)), NOW_S - 600, 75.0))
    assert (expected.rate_rps, predicted.fewest) == (0.0, 1)


# Which policy


@pytest.mark.parametrize(
    ("reported", "named", "options", "simulated"),
    [
        (None, "", (), ("andes", ())),
        (("fcfs", (("growth_tokens", 8.0),)), "", (), ("fcfs", (("growth_tokens", 8.0),))),
        (("fcfs", (("growth_tokens", 8.0),)), "fcfs", (), ("fcfs", (("growth_tokens", 8.0),))),
        (("fcfs", (("growth_tokens", 8.0),)), "lifo", (), ("lifo", ())),
        (("fcfs", (("growth_tokens", 8.0),)), "", (("growth_tokens", 9.0),), ("fcfs", (("growth_tokens", 9.0),))),
        (("fcfs", (("growth_tokens", 8.0),)), "stock", (), ("stock", ())),
    ],
)  # fmt: skip
def test_the_engines_policy_is_simulated_unless_the_target_names_one(
    reported: Any, named: str, options: Any, simulated: Any
) -> None:
    spec = replace(SPEC, policy=named, policy_options=options)
    assert simulated_policy(spec, replace(BUSY, policy=reported)) == simulated


def test_the_policy_that_was_chosen_is_what_is_simulated() -> None:
    seen = replace(observed(2.0), policy=("magic", ()))
    reported = replace(SPEC, policy="")
    with pytest.raises(ValueError, match="magic"):
        ask(seen, NOW_S - 300, reported)
    stock = ask(seen, NOW_S - 300)
    assert stock.values == ask(replace(seen, policy=("stock", ())), NOW_S - 300, reported).values
    with pytest.raises(ValueError, match="no_such_option"):
        ask(replace(seen, policy=("andes", (("no_such_option", 1),))), NOW_S - 300, reported)


@pytest.mark.parametrize(("field", "value"), [("profile", "abacus"), ("policy", "magic")])
def test_what_cannot_be_simulated_is_named(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        ask(observed(2.0), NOW_S - 300, replace(SPEC, **{field: value}))


@pytest.mark.parametrize(
    ("policy", "options", "named"),
    [
        ("andes", {"no_such_option": 1}, "no_such_option"), ("stock", {"growth_tokens": 1}, "stock"),
        ("", {"no_such_option": 1}, "no_such_option"),
    ],
)  # fmt: skip
def test_policy_options_that_do_not_fit_are_named(policy: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError, match=rf"spec\.whatIf\.policyOptions.*{named}"):
        check_options(replace(SPEC, policy=policy, policy_options=tuple(options.items())), BUSY)


def test_policy_options_that_fit_and_those_of_the_engines_pass() -> None:
    check_options(replace(SPEC, policy="fcfs", policy_options=(("growth_tokens", 8.0),)), BUSY)
    check_options(
        replace(SPEC, policy="magic", policy_options=(("x", 8.0),)), BUSY
    )  # an unknown policy is predict's to name
    check_options(SPEC, replace(BUSY, policy=("andes", (("no_such_option", 1),))))


def test_a_cold_start_is_as_set_or_learned_or_of_the_profile() -> None:
    assert cold_start_s(replace(SPEC, behavior=replace(SPEC.behavior, cold_start_s=5.0)), 80.0) == 5.0
    assert cold_start_s(SPEC, 80.0) == 80.0
    assert cold_start_s(SPEC, None) > 0


def test_the_gateways_routing_policy_is_simulated() -> None:
    with pytest.raises(ValueError, match="routing policy 'magic'"):
        ask(replace(observed(2.0), routing_policy=("magic", ())), NOW_S - 300)
    with pytest.raises(ValueError, match="no_such_option"):
        ask(replace(observed(2.0), routing_policy=("qoe", (("no_such_option", 1),))), NOW_S - 300)
    assert ask(replace(observed(2.0), routing_policy=("round_robin", ())), NOW_S - 300).fewest == 1
