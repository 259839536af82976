"""``andes train-router``: a router between the models of a ladder, learned by double DQN in simulated fleets.

As Learned best-effort serving (arXiv 2401.07886) has it: the state and the network of
:mod:`andes_sglang.routing.learned`, the action a model, the reward quality x QoE of the answer, here less what the weakest
model's answer in time is worth. Needs PyTorch; what it writes is run without.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from andes_sglang import results
from andes_sglang.arms import Arm
from andes_sglang.flags import UsageError
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.routing.learned import Array, RungRouter
from andes_sglang.sim import cli as simulate
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet, simulate_fleet
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.workload import SyntheticWorkload, mean_length, readers_of

__all__ = ["USER_ERRORS", "Training", "add_arguments", "train"]

USER_ERRORS = simulate.USER_ERRORS
EPISODE_S, MIN_LOAD, MAX_LOAD = 90.0, 0.5, 5.0
"""Seconds of an episode, and its load relative to what one replica of the best model sustains: drawn, log-uniform."""
WIDTH, GAMMA, BATCH, RATE, TARGET_STEP = 64, 0.98, 256, 1e-3, 0.01
"""Of the network; discount per arrival (an answer lasts about fifty at load 1); of a step of gradient descent."""
STEPS, MEMORY, LAST_EPSILON = 200, 100_000, 0.02
"""Steps after each episode; transitions that are remembered; share of choices by chance at the end."""


@dataclass(frozen=True)
class Training:
    """rungs: one replica of each, the best first, with ``quality`` set. rate_rps: at load 1. steps: of descent, per
    episode."""

    rungs: Sequence[EngineModel]
    policy: Callable[[], SchedulingPolicy | None]
    rate_rps: float
    prompt: str
    output: str
    episodes: int
    seed: int
    steps: int = STEPS

    def episode(self, number: int, choose: Callable[[Array], Array]) -> list[tuple[Array, int, float]]:
        """States, what was chosen, and quality x QoE that came of it, in order of arrival."""
        seed = 1000 * self.seed + number
        load = float(np.exp(np.random.default_rng(seed).uniform(np.log(MIN_LOAD), np.log(MAX_LOAD))))
        chosen: list[tuple[Array, int]] = []

        def noted(state: Array) -> Array:
            worth = choose(state)
            chosen.append((state, int(worth.argmax())))
            return worth

        fleet = Fleet(
            self.rungs[0], self.policy, engines=self.rungs, decision_interval_s=0.1,
            routing_policy=_Training([rung.quality for rung in self.rungs], noted),
        )  # fmt: skip
        rates = ((EPISODE_S, load * self.rate_rps),)
        workload = SyntheticWorkload("training", rates, self.prompt, self.output, readers_of("reading"), seed)
        records = sorted(simulate_fleet(fleet, workload), key=lambda record: record.index)
        return [(s, a, self.rungs[a].quality * r.qoe) for (s, a), r in zip(chosen, records, strict=True)]


class _Training(RungRouter):
    name: ClassVar[str] = "training"


def train(training: Training, progress: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """The weights, as :class:`andes_sglang.routing.learned.Learned` takes them. The same for the same arguments."""
    import torch

    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    chance, actions = np.random.default_rng(training.seed), len(training.rungs)

    def network() -> Any:
        shape = (torch.nn.Linear(actions + 3, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, actions))
        return torch.nn.Sequential(*shape).double()

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=RATE)
    memory: deque[tuple[Array, int, float, Array]] = deque(maxlen=MEMORY)
    for number in range(training.episodes):
        epsilon = max(LAST_EPSILON, 1.0 - number / (0.7 * training.episodes))

        def choose(state: Array, epsilon: float = epsilon) -> Array:
            if chance.random() < epsilon:
                return chance.random(actions)
            with torch.no_grad():
                worth: Array = online(torch.from_numpy(state)).numpy()
            return worth

        seen = training.episode(number, choose)
        memory.extend((s, a, r - training.rungs[-1].quality, after) for (s, a, r), (after, _, _) in pairwise(seen))
        for _ in range(training.steps if len(memory) >= BATCH else 0):
            _descend(torch, online, target, optimizer, [memory[k] for k in chance.integers(len(memory), size=BATCH)])
        mean = np.mean([r for _, _, r in seen]) if seen else 0.0
        progress(f"episode {number + 1} of {training.episodes}, chance {epsilon:.2f}, quality x QoE {mean:.3f}")
    layers = [
        {"matrix": layer.weight.tolist(), "bias": layer.bias.tolist()} for layer in online if hasattr(layer, "weight")
    ]
    return {"qualities": [rung.quality for rung in training.rungs], "layers": layers}


def _descend(
    torch: Any, online: Any, target: Any, optimizer: Any, batch: Sequence[tuple[Array, int, float, Array]]
) -> None:
    """One step of double DQN: the online network chooses the next action, the target network values it."""
    states, actions, rewards, after = (torch.from_numpy(np.array(column)) for column in zip(*batch))
    with torch.no_grad():
        best = online(after).argmax(1, keepdim=True)
        wanted = rewards + GAMMA * target(after).gather(1, best).squeeze(1)
    loss = torch.nn.functional.smooth_l1_loss(online(states).gather(1, actions[:, None]).squeeze(1), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters()):
            slow += TARGET_STEP * (fast - slow)


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = "Train a router between the models of a ladder in simulated fleets (one replica of each)."
    parser.add_argument(
        "--rung", action="append", required=True, metavar="PROFILE=QUALITY",
        help=f"a model of the ladder, twice or more: a .toml file or one of {', '.join(profiles.names())}",
    )  # fmt: skip
    parser.add_argument("--prompt", default="p50=250,p90=600,p99=1500", help="tokens of prompts; default: %(default)s")
    parser.add_argument("--output", default="p50=200,p90=399,p99=610", help="tokens of answers; default: %(default)s")
    parser.add_argument("--episodes", type=int, default=80, help="fleets to learn in; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("router.json"), help="default: %(default)s")
    parser.set_defaults(run=_run)


def _rung(text: str) -> tuple[EngineModel, Callable[[], SchedulingPolicy | None]]:
    name, given, quality = text.rpartition("=")
    if not given:
        raise UsageError(f"--rung {text}: expected PROFILE=QUALITY")
    engine, policy = configure(profiles.load(name).engine, Arm("andes", ("--enable-mixed-chunk",)))
    try:
        return replace(engine, quality=float(quality)), policy
    except ValueError as error:
        raise UsageError(f"--rung {text}: expected PROFILE=QUALITY ({error})") from None


def _run(args: argparse.Namespace, passed: Sequence[str]) -> int:
    if passed:
        raise UsageError(f"unknown argument {passed[0]!r}")
    if args.episodes < 1:
        raise UsageError(f"--episodes must be >= 1, got {args.episodes}")
    results.directory(args.out.parent)
    if args.out.is_dir():
        raise UsageError(f"--out {args.out}: is a directory, and weights are a file")
    pairs = sorted((_rung(text) for text in args.rung), key=lambda pair: -pair[0].quality)
    rungs = [engine for engine, _ in pairs]
    if len({rung.quality for rung in rungs}) < max(2, len(rungs)):
        raise UsageError("--rung: two models or more, of different quality")
    stock = configure(replace(rungs[0], mixed=False), Arm("stock"))[0]
    rate_rps = sustained_tokens_per_s(stock, args.prompt, args.output, args.seed) / mean_length(args.output)
    training = Training(rungs, pairs[0][1], rate_rps, args.prompt, args.output, args.episodes, args.seed)
    try:
        weights = train(training, results.Progress("train-router"))
    except ModuleNotFoundError as error:
        raise UsageError(f"train-router needs {error.name}: install andes-sglang[router]") from None
    results.save(args.out.parent, {args.out.name: json.dumps({"weights": weights})})
    print(f"written: {args.out}")
    return 0
