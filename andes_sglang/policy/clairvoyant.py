"""The best policy found that knows output lengths: a yardstick of the possible, not for service.

Smith's rule on QoE. For every request, how much *final* QoE is lost if the rest of its answer starts ``delay_s`` later,
per second of the engine that the rest needs (its prefill, its share of decode steps and of KV): the largest loss per unit of
work goes first. A request that can lose nothing (its reader is supplied for longer than the delay) waits, one that is
lost anyway waits too. Running requests get a bonus against flapping. It is a heuristic: the bound of
:mod:`andes_sglang.sim.upper_bound` says how far from the optimum it may be.

Trade-off: it sacrifices requests that cost much and have little left to lose, without any bound on waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.options import PolicyOptions, growth_tokens, option
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.policy.srpt import known_remaining_tokens
from andes_sglang.policy.valuation import FinalValue, steady_step_s
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Clairvoyant", "ClairvoyantOptions"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClairvoyantOptions(PolicyOptions):
    """Options of ``clairvoyant``."""

    policy: ClassVar[str] = "clairvoyant"

    delay_s: float = option(
        20.0,
        "seconds",
        above=0,
        doc="the postponement that losses are computed for",
        source="simulated: 5 to 20 s alike",
    )
    running_bonus: float = option(
        0.5, "", low=0, doc="relative bonus of running requests against flapping", source="assumed"
    )
    trigger_buffer_s: float = option(
        1.0, "seconds", doc="only a reader with less text unread than this may displace", source="as andes"
    )
    growth_tokens: float = growth_tokens()


class Clairvoyant:
    """output_tokens: final output length of every request by its id."""

    name = "clairvoyant"
    options_type = ClairvoyantOptions
    uses_weight = True
    may_starve = True

    def __init__(self, options: ClairvoyantOptions | None = None, *, output_tokens: Mapping[str, int]) -> None:
        self.options = options or ClairvoyantOptions()
        self.output_tokens = output_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t, options = state.requests, self.options
        if not len(t):
            return Decision()
        running = t.is_in(Phase.RUNNING)
        dry = t.readers.buffered_s(state.now_s) < options.trigger_buffer_s
        return pack(
            state,
            self._loss_density(state) * np.where(running, 1.0 + options.running_bonus, 1.0),
            growth_tokens=options.growth_tokens,
            displacement=Displacement(displacers=~running & dry, victims=(t.preemptible > 0) & (t.kv_tokens > 0)),
        )

    def _loss_density(self, state: SchedulerState) -> Array:
        """Final QoE lost by a delay, weighted, per second of the engine that the rest takes, shape (N,)."""
        t = state.requests
        left = known_remaining_tokens(t, self.output_tokens)
        value = FinalValue(state, self.options.delay_s, fairness=1.0, remaining=left)
        step_s = steady_step_s(state, t.context_tokens + left / 2)
        density: Array = value.gain(step_s)[0] * t.weight / value.cost(step_s)[0]
        return density
