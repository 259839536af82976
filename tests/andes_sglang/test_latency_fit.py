"""The fit against weighted least squares written out, its outliers, its error bars, and the formulas of the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import nnls

from andes_sglang import latency
from andes_sglang.latency import LatencyModel, LinearCost, non_negative

PRIOR, SCALE = (0.01, 1e-3, 1e-6), (1.0, 16.0, 8192.0)


def reference(rows: list[tuple[tuple[float, ...], float]], memory: float) -> list[float]:
    """Least squares over ``rows`` with weights exp(-age / memory), and a prior that is forgotten likewise."""
    scale = np.array(SCALE)
    information = latency.PRIOR_WEIGHT * np.eye(3) * math.exp(-len(rows) / memory)
    moment = information @ (np.array(PRIOR) * scale)
    for age, (features, seconds) in enumerate(reversed(rows)):
        x = np.array(features) / scale
        weight = math.exp(-age / memory)
        information += weight * np.outer(x, x)
        moment += weight * seconds * x
    return list(np.linalg.solve(information + latency.RIDGE * np.eye(3), moment) / scale)


@pytest.mark.parametrize("count", [1, 7, 128, 144])
@pytest.mark.parametrize("memory", [30.0, 2000.0])
def test_it_is_least_squares_with_exponential_forgetting(count: int, memory: float) -> None:
    rng = np.random.default_rng(count)
    rows = []
    for _ in range(count):
        features = 1.0, float(rng.integers(1, 40)), float(rng.integers(100, 9000))
        rows.append((features, float(np.dot(features, (0.012, 1.1e-3, 1.2e-6)) * rng.uniform(0.9, 1.1))))
    cost = LinearCost(PRIOR, SCALE, memory)
    for features, seconds in rows:
        cost.observe(features, seconds)
    assert cost.observations == count
    found = cost.coefficients
    fitted = rows[: count - len(cost._pending)]
    assert len(fitted) >= 7 / 8 * count
    assert found == pytest.approx(reference(fitted, memory), rel=1e-6)


def settled(memory: float = 200.0) -> LinearCost:
    """After 400 iterations of 10 ms and 1 ms a request."""
    cost = LinearCost(PRIOR, SCALE, memory)
    for k in range(400):
        cost.observe((1.0, float(1 + k % 30), 0.0), 0.01 + 0.001 * (1 + k % 30))
    return cost


@pytest.mark.parametrize("place", [0, 1, 7, 15])
def test_an_outlier_counts_as_five_times_its_prediction_once_it_is_fitted(place: int) -> None:
    """Whichever of the observations that are fitted at once it is."""
    paused, fivefold = settled(), settled()
    for cost in (paused, fivefold):
        for _ in range(place):
            cost.observe((1.0, 10.0, 0.0), 0.02)
    paused.observe((1.0, 10.0, 0.0), 60.0)
    fivefold.observe((1.0, 10.0, 0.0), 5 * 0.02)
    for cost in (paused, fivefold):
        for _ in range(latency.MAX_PENDING_OBSERVATIONS):
            cost.observe((1.0, 10.0, 0.0), 0.02)
    assert paused.coefficients == pytest.approx(fivefold.coefficients, rel=1e-6)
    assert paused.estimate((1.0, 10.0, 0.0)).mean_s > 0.0202, "it counts"


def test_the_first_observations_are_taken_as_they_are() -> None:
    warm, late = LinearCost(PRIOR, SCALE), LinearCost(PRIOR, SCALE)
    for _ in range(latency.WARM_UP_OBSERVATIONS):
        warm.observe((1.0, 0.0, 0.0), 10.0)
    assert warm.estimate((1.0, 0.0, 0.0)).mean_s == pytest.approx(10.0, rel=1e-3)
    for _ in range(latency.WARM_UP_OBSERVATIONS):
        late.observe((1.0, 0.0, 0.0), 0.01)
    for _ in range(4):  # an eighth, and so fitted
        late.observe((1.0, 0.0, 0.0), 10.0)
    assert 0.01 < late.estimate((1.0, 0.0, 0.0)).mean_s < 0.05


def test_few_observations_wait_and_never_more_than_an_eighth() -> None:
    cost = LinearCost(PRIOR, SCALE)
    for k in range(1, 200):
        cost.observe((1.0, 1.0, 1.0), 0.01)
        cost._fit_pending()
        waiting = len(cost._pending)
        assert waiting < min(latency.MAX_PENDING_OBSERVATIONS, max(1.0, k / 8))
    before = cost.coefficients
    waiting = len(cost._pending)
    cost.observe((1.0, 30.0, 1.0), 1.0)
    assert (cost.coefficients == before) == (waiting + 1 < latency.MAX_PENDING_OBSERVATIONS)


def test_the_error_is_that_of_the_noise() -> None:
    cost = LinearCost((1.0, 0.0, 0.0), SCALE)
    for k in range(1000):
        cost.observe((1.0, 0.0, 0.0), 1.0 + 0.1 * (-1) ** k)
    seen, unseen = cost.estimate((1.0, 0.0, 0.0)), cost.estimate((1.0, 16.0, 0.0))
    assert seen.mean_s == pytest.approx(1.0, rel=1e-2)
    assert seen.std_s == pytest.approx(0.1, rel=0.02)
    assert unseen.std_s == pytest.approx(0.1 * math.sqrt(1 + 1 / (latency.PRIOR_WEIGHT * math.exp(-0.5))), rel=0.05)


def test_before_anything_was_seen_half_the_prediction_is_doubted() -> None:
    cost = LinearCost(PRIOR, SCALE)
    mean_s = 0.01 + 0.016 + 0.008192
    guess = cost.estimate(SCALE)
    assert guess.mean_s == pytest.approx(mean_s)
    assert guess.std_s == pytest.approx(0.5 * mean_s * math.sqrt(1 + 3 / latency.PRIOR_WEIGHT), rel=1e-3)
    cost.observe(SCALE, mean_s)
    assert cost.estimate(SCALE).std_s < 1e-6, "what was seen once, and as predicted, has no noise"


@pytest.mark.parametrize("seconds", [-1e-9, math.inf, -math.inf, math.nan])
def test_what_is_no_duration_is_not_counted(seconds: float) -> None:
    cost = LinearCost(PRIOR, SCALE)
    cost.observe(SCALE, seconds)
    assert (cost.observations, cost.coefficients) == (0, PRIOR)
    cost.observe(SCALE, 0.0)
    assert cost.observations == 1


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 4), min_size=5, max_size=9))
def test_the_constrained_minimum_is_that_of_scipy(rows: list[tuple[float, ...]]) -> None:
    table = np.array(rows)
    x, y = table[:, :3], table[:, 3]
    a, b = x.T @ x + 0.01 * np.eye(3), x.T @ y
    assume((np.linalg.solve(a, b) < 0).any())
    factor = np.linalg.cholesky(a).T
    expected, _ = nnls(factor, np.linalg.solve(factor.T, b))
    assert non_negative(a, b) == pytest.approx(expected, abs=1e-6)


def model(*, mixed: bool = False) -> LatencyModel:
    """Decode 5 ms + 2 ms a request + 1 us a context token; prefill 8 ms + 0.1 ms + 1 us; loads 1 ms + 10 us a token."""
    made = LatencyModel(mixed=mixed)
    made.decode = LinearCost((5e-3, 2e-3, 1e-6), latency.TYPICAL_DECODE)
    made.prefill = LinearCost((8e-3, 1e-4, 1e-6), latency.TYPICAL_PREFILL)
    made.load = LinearCost((1e-3, 1e-5), latency.TYPICAL_LOAD)
    return made


def test_the_formulas() -> None:
    made = model()
    assert made.decode_s(10, 4000) == pytest.approx(5e-3 + 2e-2 + 4e-3)
    assert made.prefill_s(100, 2000) == pytest.approx(8e-3 + 1e-2 + 2e-3)
    assert made.prefill_s(100) == pytest.approx(8e-3 + 1e-2)
    assert made.load_s(500) == pytest.approx(6e-3)
    assert made.load_s(1) == pytest.approx(1.01e-3)
    assert made.load_s(0) == 0.0


def test_a_resume_takes_the_slower_of_computing_and_loading() -> None:
    new, cached, host = np.array([100.0, 0.0, 0.0]), np.array([0.0, 3000.0, 3000.0]), np.array([0.0, 0.0, 3000.0])
    assert model().resume_s(new, cached, host).tolist() == pytest.approx([8e-3 + 1e-2, 8e-3 + 3e-3, 1e-3 + 3e-2])
    assert model(mixed=True).resume_s(new, cached, host).tolist() == pytest.approx([1e-2, 3e-3, 3.1e-2])
    assert float(model(mixed=True).resume_s(0.0, 1.0, 1.0)) == pytest.approx(1.01e-3)
    assert float(model(mixed=True).resume_s(0.0, 0.0, 0.0)) == latency.MIN_ITERATION_S


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("prefix_s", [5e-5, 9e-5, 5e-3])
def test_a_return_with_copies_is_taken_to_cost_no_more_than_computing_again(prefix_s: float, *, mixed: bool) -> None:
    """The fit puts what the first returns take down to their prefix, having seen none before."""
    made = model(mixed=mixed)
    made.prefill = LinearCost((8e-3, 5e-5, prefix_s), latency.TYPICAL_PREFILL)
    again, copied = made.resume_s(np.array([400.0, 1.0]), np.array([0.0, 399.0]), np.array([0.0, 399.0])).tolist()
    assert copied == pytest.approx(again)
    assert made.prefill_s(1, 399) == pytest.approx(8e-3 + 5e-5 + 399 * prefix_s), "as it was observed"


def test_no_iteration_takes_no_time() -> None:
    made = model()
    made.decode = LinearCost((0.0, 0.0, 0.0), latency.TYPICAL_DECODE)
    made.prefill = LinearCost((0.0, 0.0, 0.0), latency.TYPICAL_PREFILL)
    assert made.decode_s(1, 1) == made.prefill_s(1, 1) == latency.MIN_ITERATION_S


def test_each_observation_reaches_its_own_cost() -> None:
    made = LatencyModel()
    for k in range(1, 200):
        made.observe_decode(k, 100 * (k % 7), 1e-3 * k + 1e-6 * 100 * (k % 7))
        made.observe_prefill(10 * k, 1000 * (k % 5), 1e-4 * 10 * k + 1e-6 * 1000 * (k % 5))
        made.observe_load(k, 1e-3 + 1e-5 * k)
    assert (made.decode.observations, made.prefill.observations, made.load.observations) == (199, 199, 199)
    assert made.decode.coefficients[1:] == pytest.approx([1e-3, 1e-6], rel=0.02)
    assert made.prefill.coefficients[1:] == pytest.approx([1e-4, 1e-6], rel=0.02)
    assert made.load.coefficients == pytest.approx([1e-3, 1e-5], rel=0.02)
    assert not made.mixed


def test_a_mixed_iteration_is_charged_with_what_it_takes_beyond_a_decode_step() -> None:
    made = model(mixed=True)
    for _ in range(200):
        made.observe_mixed(1000, 500, 10, 4000, 29e-3 + 0.05)
    assert made.prefill_s(1000, 500) - made.prefill_s(0, 0) == pytest.approx(0.05, rel=0.01)
    assert made.prefill_s(0, 0) == pytest.approx(8e-3, rel=1e-3), (
        "the fixed cost is that of the decode step, and stays as it was"
    )
    for _ in range(4000):
        made.observe_mixed(1000, 500, 10, 4000, 20e-3)  # shorter than the step alone
    assert made.prefill_s(1000, 500) - made.prefill_s(0, 0) == pytest.approx(0.0, abs=0.01)


def test_what_is_lost_of_copies_is_a_share_that_is_forgotten() -> None:
    made = LatencyModel()
    assert made.kept_share == 1.0
    made.observe_return(800, 600)
    assert made.kept_share == pytest.approx(1 - 600 / 800)
    made.observe_return(200, 1000)  # more than there was to lose
    assert made.kept_share == pytest.approx(1 - (0.98 * 600 + 200) / (0.98 * 800 + 200))
    few = LatencyModel()
    few.observe_return(0, 5)
    assert few.kept_share == 1.0


def test_uncertainty_is_relative_and_of_either_cost() -> None:
    made = model()
    decode, prefill = made.decode.estimate((1.0, 16.0, 8192.0)), made.prefill.estimate((1.0, 1024.0, 0.0))
    assert made.uncertainty() == (decode.std_s / decode.mean_s, prefill.std_s / prefill.mean_s)
