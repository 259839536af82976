"""The learned router: its weights as JSON, its state, and that training is repeatable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from andes_sglang.cli import main
from andes_sglang.qoe import QoETarget
from andes_sglang.routing import IncomingStream, ReplicaView, make_routing_policy
from andes_sglang.routing.learned import Learned, RungRouter
from andes_sglang.sim.engine import Costs, EngineModel

COSTS = Costs(0.02, 0.004, 1e-6, 0.01, 2e-4)
NEW = IncomingStream(100.0, QoETarget(1.0, 4.8))


def view(name: str, quality: float, load: int = 0) -> ReplicaView:
    return ReplicaView(name, COSTS, streams=load, quality=quality)


WEIGHTS: dict[str, Any] = {
    "qualities": [1, 0.9],
    "layers": [{"matrix": [[1, 0, 0, 0, 0]], "bias": [0]}, {"matrix": [[-1], [0]], "bias": [1, 0.5]}],
}
"""Of a network that is worth 1 less the load of the best rung there, and 0.5 at the other."""


def test_the_rung_that_is_worth_most_then_the_least_load() -> None:
    policy = make_routing_policy("andes_sglang.routing.learned:Learned", weights=WEIGHTS)

    def order(*views: ReplicaView) -> str:
        return "".join(v.name for v in policy.order(NEW, views, 100.0))

    assert order(view("s", 0.9), view("b", 1.0, 40), view("c", 1.0, 20)) == "cbs", "0.3 of 100 streams a replica"
    assert order(view("s", 0.9), view("b", 1.0, 60), view("c", 1.0, 50)) == "scb"
    assert order(view("s", 0.86), view("t", 0.9, 3)) == "st", "a rung that is not there is full"
    assert policy.order(NEW, [], 100.0) == []


def test_the_state_is_load_arrivals_and_reader() -> None:
    seen: list[list[float]] = []

    def choose(state: Any) -> Any:
        seen.append(state.tolist())
        return np.zeros(2)

    router = RungRouter([1.0, 0.9], choose)
    for at_s in (10.0, 10.0, 15.0):
        router.order(NEW, [view("b", 1.0, 30), view("c", 1.0, 10)], at_s)
    rates = [0.02, 0.04, 0.02 + 0.04 * float(np.exp(-1))]
    assert seen == [pytest.approx([0.2, 1.0, rate, 1.0, 0.48]) for rate in rates]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": []}, "do not fit 2 rungs"),
        ({"qualities": [1, 0.9, 0.5]}, "do not fit 3 rungs"),
        ({"layers": [{"matrix": [[1, 0, 0, 0, 0]]}]}, "weights: expected qualities, and layers"),
        ({"qualities": ["good"]}, "weights: expected qualities, and layers"),
    ],
)
def test_what_is_no_router_is_said(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Learned({**WEIGHTS, **changed})
    with pytest.raises(ValueError, match=r"weights: expected qualities, and layers"):
        Learned("router.json")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--rung h100-llama-3.1-8b", "--rung h100-llama-3.1-8b: expected PROFILE=QUALITY"),
        ("--rung h100-llama-3.1-8b=2", "quality must be in (0, 1], got 2.0"),
        ("--rung h100-llama-3.1-8b=1", "--rung: two models or more, of different quality"),
        ("--rung h100-llama-3.1-8b=1 --out .", "--out .: is a directory, and weights are a file"),
        ("--rung h100-llama-3.1-8b=1 --out /dev/null/x/y.json", "--out /dev/null/x: cannot be made"),
    ],
)
def test_what_cannot_be_trained_or_written_is_said_before(
    flags: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-router", *flags.split()]) == 2
    assert says in capsys.readouterr().err


def test_training_is_repeatable_and_learns_what_is_always_better() -> None:
    """Two engines with room for everything, of which one is worth twice the other: a few episodes suffice."""
    pytest.importorskip("torch")
    from andes_sglang.train_router import Training, train

    rungs = [EngineModel(COSTS, 100_000, quality=quality) for quality in (1.0, 0.5)]
    training = Training(rungs, lambda: None, 1.0, "50", "20", episodes=4, seed=1, steps=40)
    first, second = train(training), train(training)
    assert first == second
    (matrix, bias), (last, last_bias) = ((np.array(x["matrix"]), np.array(x["bias"])) for x in first["layers"])
    worth = last @ np.maximum(0, matrix @ np.array([0.01, 0.01, 0.05, 1.0, 0.48]) + bias) + last_bias
    assert worth[0] > worth[1]
