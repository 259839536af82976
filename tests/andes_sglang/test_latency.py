"""The latency model learns an engine's costs and knows how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from andes_sglang.latency import MAX_PENDING_OBSERVATIONS, LatencyModel, LinearCost, non_negative


def test_it_recovers_the_costs_of_a_noisy_engine() -> None:
    rng = np.random.default_rng(0)
    model = LatencyModel()
    for _ in range(800):
        batch = int(rng.integers(1, 40))
        context = int(batch * rng.uniform(200, 600))
        model.observe_decode(batch, context, (0.006 + 0.002 * batch + 3e-7 * context) * rng.uniform(0.95, 1.05))
        new, prefix = int(rng.integers(1, 2000)), int(rng.integers(0, 2000))
        model.observe_prefill(new, prefix, (0.005 + 75e-6 * new + 1e-6 * prefix) * rng.uniform(0.95, 1.05))
    assert model.decode_s(16, 6400) == pytest.approx(0.006 + 0.032 + 0.00192, rel=0.05)
    assert model.prefill_s(1000, 500) == pytest.approx(0.005 + 0.075 + 0.0005, rel=0.05)


def test_it_grows_surer_and_says_when_it_guesses() -> None:
    model = LatencyModel()
    before = model.uncertainty()[0]
    rng = np.random.default_rng(1)
    for _ in range(300):
        batch = int(rng.integers(1, 40))
        model.observe_decode(batch, 400 * batch, (0.005 + 0.002 * batch) * rng.uniform(0.98, 1.02))
    assert model.uncertainty()[0] < 0.1 < before
    far = model.decode.estimate((1.0, 4000.0, 10.0))
    near = model.decode.estimate((1.0, 20.0, 8000.0))
    assert far.std_s > near.std_s


def known(cost_s: float, memory: float = 160.0) -> LinearCost:
    """A cost without features that has been ``cost_s`` for as long as it remembers; nothing is pending."""
    cost = LinearCost((cost_s,), (1.0,), memory)
    while cost.observations < 8 * memory or cost._pending:
        cost.observe((1.0,), cost_s)
        _ = cost.coefficients  # fits what is pending, if there is enough
    assert cost.coefficients == pytest.approx((cost_s,))
    return cost


def fill(cost: LinearCost, seconds: float, count: int = MAX_PENDING_OBSERVATIONS) -> None:
    for _ in range(count):
        cost.observe((1.0,), seconds)


def test_an_outlier_counts_as_five_times_what_was_expected() -> None:
    cost = known(0.02, memory=160)
    fill(cost, 0.02, MAX_PENDING_OBSERVATIONS - 1)
    cost.observe((1.0,), 60.0)  # the last of those that are fitted together, so of full weight
    weight = 1.0 - math.exp(-1.0 / 160)
    assert cost.coefficients[0] == pytest.approx(0.02 + weight * (5 * 0.02 - 0.02), rel=1e-3)


def test_the_first_observations_are_taken_as_they_are() -> None:
    cost = LinearCost((0.01,), (1.0,))
    fill(cost, 10.0, 12)
    assert cost.coefficients[0] == pytest.approx(10.0, rel=0.01)


def test_old_observations_lose_their_weight() -> None:
    """After as many observations as ``memory``, 63 % of a change has been followed."""
    cost = known(1.0, memory=160)
    fill(cost, 2.0, 160)
    assert cost.coefficients[0] == pytest.approx(2.0 - math.exp(-1.0), rel=1e-3)


def test_it_does_not_matter_that_observations_are_fitted_together() -> None:
    cost = known(1.0, memory=40)
    seen = [1.0 + 0.5 * math.sin(k) for k in range(3 * MAX_PENDING_OBSERVATIONS)]
    for seconds in seen:
        cost.observe((1.0,), seconds)
    expected, keep = 1.0, math.exp(-1.0 / 40)
    for seconds in seen:
        expected = keep * expected + (1.0 - keep) * seconds
    assert cost.coefficients[0] == pytest.approx(expected, rel=1e-3)


def test_the_first_ones_are_fitted_at_once_and_later_ones_in_sixteens() -> None:
    cost = LinearCost((0.01,), (1.0,))
    fill(cost, 2.0, 1)
    assert cost.coefficients[0] > 1.9
    cost = known(1.0)
    fill(cost, 2.0, MAX_PENDING_OBSERVATIONS - 1)
    assert cost.coefficients[0] == pytest.approx(1.0)
    fill(cost, 2.0, 1)
    assert cost.coefficients[0] > 1.005


def test_what_was_never_seen_keeps_its_prior() -> None:
    cost = LinearCost((0.01, 1e-3), (1.0, 16.0))
    for _ in range(64):
        cost.observe((0.0, 16.0), 0.064)
    assert cost.coefficients == pytest.approx((0.01, 4e-3), rel=1e-3)
    model = LatencyModel()
    assert model.decode_s(10, 1000) == pytest.approx(0.01 + 2e-3 + 2e-5)
    assert model.prefill_s(1000, 100) == pytest.approx(0.01 + 0.05 + 1e-5)
    assert model.load_s(1000) == pytest.approx(0.01)


def test_the_standard_error_is_the_scatter_and_grows_where_little_was_seen() -> None:
    guess = LinearCost((0.02,), (1.0,)).estimate((1.0,))
    assert guess.std_s >= 0.5 * guess.mean_s
    cost = known(1.0)
    for k in range(25 * MAX_PENDING_OBSERVATIONS):
        cost.observe((1.0,), 1.0 + 0.1 * (-1) ** k)
    assert cost.estimate((1.0,)).std_s == pytest.approx(0.1, rel=0.02)
    fill(cost, 1.0, 25 * MAX_PENDING_OBSERVATIONS)
    assert cost.estimate((1.0,)).std_s < 0.01
    two = LinearCost((0.01, 1e-3), (1.0, 16.0))
    for k in range(32 * MAX_PENDING_OBSERVATIONS):
        two.observe((1.0, 16.0), 1.0 + 0.1 * (-1) ** k)
    assert two.estimate((1.0, 16.0)).std_s == pytest.approx(0.1, rel=0.05)
    assert two.estimate((1.0, 160.0)).std_s > 1.0


def test_the_best_without_negative_coefficients() -> None:
    """Exact: no small step within the bounds is better."""
    rng = np.random.default_rng(5)
    bound = 0
    for _ in range(50):
        x, target = rng.normal(size=(8, 3)), rng.normal(size=8)
        a, b = x.T @ x, x.T @ target
        found = non_negative(a, b) if (np.linalg.solve(a, b) < 0).any() else np.linalg.solve(a, b)
        slope = a @ found - b
        assert (found >= 0).all()
        assert slope == pytest.approx(np.maximum(slope, 0.0), abs=1e-9)
        assert slope[found > 0] == pytest.approx(0.0, abs=1e-9)
        bound += int((found == 0).any())
    assert bound > 10


def test_no_coefficient_turns_negative() -> None:
    cost = LinearCost((0.01, 1e-3, 1e-6), (1.0, 16.0, 8192.0))
    for k in range(200):
        cost.observe((1.0, float(k % 20), float(400 * (k % 20))), 0.05 - 0.001 * (k % 20))
    assert min(cost.coefficients) >= 0
    assert cost.estimate((1.0, 10.0, 4000.0)).mean_s == pytest.approx(0.04, rel=0.2)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_what_is_no_duration_is_ignored(seconds: float) -> None:
    cost = known(1.0)
    before = cost.observations
    cost.observe((1.0,), seconds)
    fill(cost, 1.0)
    assert cost.observations == before + MAX_PENDING_OBSERVATIONS
    assert cost.coefficients[0] == pytest.approx(1.0)


def engine(*, mixed: bool = False) -> LatencyModel:
    """A step takes 30 ms and 1 ms a request, a prefill 20 ms and 0.1 ms a token, a load 5 ms and 10 us a token."""
    rng = np.random.default_rng(2)
    model = LatencyModel(mixed=mixed)
    for _ in range(600):
        batch, new = int(rng.integers(1, 40)), int(rng.integers(1, 2000))
        decode_s = 0.03 + 0.001 * batch
        model.observe_decode(batch, 400 * batch, decode_s)
        if mixed:
            model.observe_mixed(new, 0, batch, 400 * batch, decode_s + 1e-4 * new)
        else:
            model.observe_prefill(new, 0, 0.02 + 1e-4 * new)
        model.observe_load(new, 0.005 + 1e-5 * new)
    return model


def test_a_mixed_iteration_tells_what_a_prefill_adds() -> None:
    """The fixed cost is that of the decode step that runs anyway, and a resume is not charged for it."""
    assert float(engine(mixed=True).resume_s(1000.0, 0.0, 0.0)) == pytest.approx(0.1, rel=0.05)
    assert float(engine().resume_s(1000.0, 0.0, 0.0)) == pytest.approx(0.12, rel=0.02)


def test_a_mixed_iteration_faster_than_its_decode_step_adds_nothing() -> None:
    model = engine(mixed=True)
    for _ in range(MAX_PENDING_OBSERVATIONS):
        model.observe_mixed(1000, 0, 20, 8000, 0.001)
    assert model.prefill.coefficients[1] < 1e-4
    assert min(model.prefill.coefficients) >= 0


def test_a_resume_takes_the_longer_of_computing_and_loading() -> None:
    model = engine()
    assert model.resume_s(np.array([1.0, 2000.0]), 0.0, np.array([9000.0, 1000.0])) == pytest.approx(
        [0.005 + 0.09, 0.02 + 0.2], rel=0.02
    )
    assert model.load_s(9000) == pytest.approx(0.095, rel=0.02)
    assert model.load_s(0) == 0.0
    nothing_to_load = engine(mixed=True).resume_s(1.0, 0.0, 0.0)
    assert float(nothing_to_load) < 0.002  # no load, so not its fixed cost either


def test_no_prediction_is_zero() -> None:
    model = LatencyModel(mixed=True)
    for _ in range(400):
        model.observe_decode(1, 100, 0.0)
        model.observe_prefill(1, 0, 0.0)
        model.observe_prefill(4096, 0, 0.0)
    assert model.decode_s(1, 100) == model.prefill_s(1) == 1e-6
    assert float(model.resume_s(0.0, 0.0, 0.0)) == 1e-6


def test_uncertainty_is_relative() -> None:
    model = LatencyModel()
    for k in range(32 * MAX_PENDING_OBSERVATIONS):
        model.observe_decode(16, 8192, 0.5 + 0.05 * (-1) ** k)
        model.observe_prefill(1024, 0, 0.2 + 0.04 * (-1) ** k)
    assert model.uncertainty() == pytest.approx((0.1, 0.2), rel=0.05)


def test_copies_given_up_for_others_are_counted_on_no_more() -> None:
    model = LatencyModel()
    assert model.kept_share == 1.0
    for _ in range(300):
        model.observe_return(800, 600)
        model.observe_return(800, 0)
    assert model.kept_share == pytest.approx(0.625, rel=0.02)
    for _ in range(50):
        model.observe_return(800, 0)
    assert model.kept_share == pytest.approx(1.0 - 0.375 * 0.98**50, abs=0.01)


def test_more_computed_again_than_was_copied_is_no_more_than_all_of_it() -> None:
    model = LatencyModel()
    model.observe_return(100, 500)
    assert model.kept_share == 0.0
