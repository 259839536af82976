"""Which flags and options to serve with: successive halving over set-ups of one engine, each simulated.

After GUIDE (arXiv 2412.04788), which searches an engine's configurations in a simulator, and successive halving (Jamieson
and Talwalkar, AISTATS 2016), which spends little on most and much on few. The figure is the **held rate**: the requests per
second and device under which one replica holds the objective. Pure: what a set-up does under a rate comes from an argument.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.sim.configure import servable
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import smallest_feasible
from andes_sglang.sim.profile import Profile

__all__ = ["Found", "Setup", "Space", "held_rate", "search"]

Margin = Callable[["Setup", float, float], float]
"""Of a set-up, requests per second and device, and the share of the workload that is played (0 to 1]: how far the objective
is held, negative where it is missed."""
OPTIONS: Mapping[str, tuple[float, ...]] = {
    "fairness": (-1.0,),
    "horizon_s": (30.0, 120.0),
    "length_guard": (1.0, 2.0),
    "min_slice_tokens": (20, 90),
    "min_runtime_ratio": (2.0, 8.0),
    "running_bonus": (0.5, 2.0),
    "stall_bound_s": (45.0, 180.0),
}
"""Options of andes that are tried beside their defaults."""
CHUNK_FACTORS = (0.25, 0.5, 2.0, 4.0)
BATCH_FACTORS = (0.6, 0.8, 1.0)
"""Times the profile's chunk; times the batch that KV holds."""
FIXED_BY: Mapping[str, str] = {
    "--chunked-prefill-size": "chunk_tokens",
    "--max-running-requests": "max_running",
    "--enable-mixed-chunk": "mixed",
    "--preemption-mode": "offload",
    "--drafts": "devices",
}
"""Choices that flags of every set-up make. What drafts cost is known on the profile's own devices only."""
MIN_CHUNK_TOKENS = 256
MAX_DEVICES = 8
RUNGS = ((0.5, 8), (1.0, 3))
"""Share of the workload and how many are kept, rung by rung."""
FASTER = 1.12
"""The rate grows by this from rung to rung while those kept hold."""
LADDER = 1.04
"""Ratio of neighbouring rates of :func:`held_rate`: what it cannot tell apart."""
MAX_STEPS = 60
"""Of that ladder, either way."""
CHANGED = 0.5
"""Of the choices, those that a draw takes from the space rather than from where it starts."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How one engine is started; None: as the profile says. options: of the policy andes."""

    devices: int
    chunk_tokens: int | None = None
    max_running: int | None = None
    mixed: bool = False
    offload: bool = False
    options: tuple[tuple[str, float], ...] = ()

    @property
    def arm(self) -> Arm:
        """Without the devices, which are the profile's."""
        flags: list[str] = []
        if self.mixed:
            flags.append("--enable-mixed-chunk")
        if self.offload:
            flags += ["--preemption-mode", "offload"]
        if self.chunk_tokens is not None:
            flags += ["--chunked-prefill-size", str(self.chunk_tokens)]
        if self.max_running is not None:
            flags += ["--max-running-requests", str(self.max_running)]
        for name, value in self.options:
            flags += ["--policy-option", f"{name}={value:g}"]
        return Arm("andes", tuple(flags))

    def serve_flags(self, passed: Sequence[str] = ()) -> str:
        """As ``andes serve`` takes them. passed: flags of every set-up, before its own."""
        devices = ["--tp-size", str(self.devices)] if self.devices > 1 else []
        return " ".join(["--policy", "andes", *devices, *servable(passed), *self.arm.flags])

    def chart_values(self, profile: str, passed: Sequence[str] = ()) -> str:
        """As the chart takes them, YAML. passed: as of :meth:`serve_flags`."""
        args = [f"--tp-size={self.devices}"] if self.devices > 1 else []
        flags, options = [*servable(passed), *self.arm.flags], dict[str, str]()
        while flags:
            flag, equals, value = flags.pop(0).partition("=")
            if not equals and flags and not flags[0].startswith("--"):
                equals, value = "=", flags.pop(0)
            if flag == "--policy-option":
                name, _, option = value.partition("=")
                options[name] = option
            else:
                args.append(flag + equals + value)
        lines = ["engine:", f"  profile: {profile}", "  policy: andes"]
        if options:
            lines.append(f"  policyOptions: {{{', '.join(f'{name}: {value}' for name, value in options.items())}}}")
        lines.append(f"  args: {json.dumps(args)}")
        if self.devices > 1:
            lines.append(f"  gpu: {{count: {self.devices}}}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Space:
    """choices: by field of :class:`Setup`, options aside; the first is the default."""

    choices: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, profile: Profile, context_tokens: float) -> Space:
        """What can be chosen for ``profile`` where a request holds ``context_tokens`` of KV on average."""
        engine = profile.engine
        chunks = [max(MIN_CHUNK_TOKENS, int(engine.chunk_tokens * factor)) for factor in CHUNK_FACTORS]
        held = engine.kv_capacity_tokens / max(1.0, context_tokens)
        batches = [max(1, int(held * factor)) for factor in BATCH_FACTORS]
        ranks = [2**k for k in range(int(math.log2(MAX_DEVICES)) + 1)]
        return cls({
            "devices": (engine.devices, *(n for n in ranks if n != engine.devices and profile.on(n) is not None)),
            "chunk_tokens": (None, *(n for n in dict.fromkeys(chunks) if n <= engine.kv_capacity_tokens // 2)),
            "max_running": (None, *(n for n in dict.fromkeys(batches) if n < engine.max_running)),
            "mixed": (False, True),
            "offload": (False, True) if engine.host_capacity_tokens else (False,),
        })  # fmt: skip

    def under(self, passed: Sequence[str]) -> Space:
        """Without the choices that ``passed``, flags of every set-up, have made."""
        made = {FIXED_BY.get(flag.partition("=")[0]) for flag in passed}
        return Space({name: values[:1] if name in made else values for name, values in self.choices.items()})

    @property
    def defaults(self) -> Setup:
        return Setup(**{name: values[0] for name, values in self.choices.items()})

    @property
    def deployed(self) -> Setup:
        """Defaults with mixed chunks and, where there is host memory, offload."""
        return replace(self.defaults, mixed=self.choices["mixed"][-1], offload=self.choices["offload"][-1])

    def draws(self, count: int, seed: int) -> list[Setup]:
        """``count`` different ones, or as many as there are: defaults, deployed, and draws around the latter."""
        rng = np.random.default_rng(seed)
        found = dict.fromkeys([self.defaults, self.deployed])
        for _ in range(20 * count):
            if len(found) >= count:
                break
            found[self._draw(rng)] = None
        return list(found)

    def _draw(self, rng: np.random.Generator) -> Setup:
        chosen: dict[str, Any] = {
            name: values[int(rng.integers(len(values)))]
            for name, values in self.choices.items() if rng.random() < CHANGED
        }  # fmt: skip
        options = tuple(
            (name, values[int(rng.integers(len(values)))])
            for name, values in sorted(OPTIONS.items()) if rng.random() < CHANGED / 2
        )  # fmt: skip
        return replace(self.deployed, options=options, **chosen)


@dataclass(frozen=True, slots=True)
class Found:
    """One set-up with the requests per second and device under which it holds."""

    setup: Setup
    held_rps: float


def held_rate(margin: Margin, setup: Setup, guess_rps: float) -> float:
    """The largest of a ladder of rates under which ``setup`` holds on the whole workload; 0 where none does. guess_rps: where
    the search begins."""

    def rate(step: int) -> float:
        return float(guess_rps * LADDER ** (step - MAX_STEPS))

    short = smallest_feasible(lambda step: margin(setup, rate(step), 1.0) < 0.0, MAX_STEPS + 1, 2 * MAX_STEPS, 4)
    held = 2 * MAX_STEPS if short is None else short - 1
    return rate(held) if held else 0.0


def search(
    margin: Margin, space: Space, *, count: int, seed: int, guess_rps: float, told: Callable[[str], None] = lambda _text: None
) -> list[Found]:  # fmt: skip
    """Defaults first, then those that are left after successive halving, with the rate that each holds. guess_rps: of the
    defaults, roughly. told: what is being done."""
    told("defaults: the rate that they hold")
    first = Found(space.defaults, held_rate(margin, space.defaults, guess_rps))
    found = [first]
    alive, rate_rps = space.draws(count, seed), (first.held_rps or guess_rps) * FASTER
    for share, keep in RUNGS:
        margins: dict[Setup, float] = {}
        for setup in alive:
            told(f"{len(alive)} set-ups at {rate_rps:.3g} requests/s on {share:.0%} of the workload")
            margins[setup] = margin(setup, rate_rps, share)
        alive = sorted(alive, key=lambda setup: margins[setup], reverse=True)[:keep]
        if margins[alive[-1]] >= 0.0:
            rate_rps *= FASTER
    for setup in alive:
        if setup != space.defaults:
            told("the rate that each of the last holds")
            found.append(Found(setup, held_rate(margin, setup, rate_rps)))
    return found


def changed(setup: Setup, defaults: Setup) -> Sequence[str]:
    """Names of what ``setup`` has otherwise."""
    return [f.name for f in fields(Setup) if getattr(setup, f.name) != getattr(defaults, f.name)]


def engine_of(profile: Profile, setup: Setup) -> EngineModel:
    """The profile's engine over the set-up's devices. Raises ``ValueError`` where that cannot be said."""
    engine = profile.on(setup.devices)
    if engine is None:
        raise ValueError(f"devices {setup.devices}: the profile {profile.name} cannot tell")
    return engine
