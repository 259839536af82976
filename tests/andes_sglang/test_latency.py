"""The latency model learns an engine's costs and knows how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.latency import LatencyModel, LinearCost


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


def test_it_follows_a_change_and_shrugs_off_an_outlier() -> None:
    cost = LinearCost((0.01, 1e-3, 0.0), (1.0, 16.0, 8192.0), memory=200)
    for k in range(400):
        cost.observe((1.0, float(1 + k % 30), 0.0), 0.01 + 0.001 * (1 + k % 30))
    cost.observe((1.0, 10.0, 0.0), 60.0)
    assert cost.estimate((1.0, 10.0, 0.0)).mean_s == pytest.approx(0.02, rel=0.3)
    for k in range(1500):
        cost.observe((1.0, float(1 + k % 30), 0.0), 2 * (0.01 + 0.001 * (1 + k % 30)))
    assert cost.estimate((1.0, 10.0, 0.0)).mean_s == pytest.approx(0.04, rel=0.05)


def test_no_coefficient_turns_negative() -> None:
    cost = LinearCost((0.01, 1e-3, 1e-6), (1.0, 16.0, 8192.0))
    for k in range(200):
        cost.observe((1.0, float(k % 20), float(400 * (k % 20))), 0.05 - 0.001 * (k % 20))
    assert min(cost.coefficients) >= 0
    assert cost.estimate((1.0, 10.0, 4000.0)).mean_s == pytest.approx(0.04, rel=0.2)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_nonsense_is_ignored(seconds: float) -> None:
    model = LatencyModel()
    before = model.decode_s(8, 1000)
    model.observe_decode(8, 1000, seconds)
    assert model.decode_s(8, 1000) == before


def test_a_mixed_iteration_tells_what_a_prefill_adds() -> None:
    """The fixed cost is that of the decode step that runs anyway, and a resume is not charged for it."""
    rng = np.random.default_rng(2)
    model = LatencyModel(mixed=True)
    for _ in range(600):
        batch, new = int(rng.integers(1, 40)), int(rng.integers(1, 2000))
        decode_s = 0.03 + 0.001 * batch
        model.observe_decode(batch, 400 * batch, decode_s)
        model.observe_mixed(new, 0, batch, 400 * batch, decode_s + 1e-4 * new)
    assert float(model.resume_s(1000.0, 0.0, 0.0)) == pytest.approx(0.1, rel=0.05)


def test_copies_given_up_for_others_are_counted_on_no_more() -> None:
    model = LatencyModel()
    assert model.kept_share == 1.0
    for _ in range(300):
        model.observe_return(800, 600)
        model.observe_return(800, 0)
    assert model.kept_share == pytest.approx(0.625, rel=0.02)
    for _ in range(300):
        model.observe_return(800, 0)
    assert model.kept_share > 0.99
