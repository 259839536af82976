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

from andes_sglang.policy.options import PolicyOptions, option
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.policy.srpt import remaining_tokens
from andes_sglang.qoe import Readers
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Clairvoyant", "ClairvoyantOptions", "final_qoe"]

Array = npt.NDArray[np.float64]


def final_qoe(readers: Readers, now_s: float, first_s: Array, interval_s: float, tokens: Array) -> Array:
    """Final QoE, shape (N,), if ``tokens`` >= 1 more, the last, come at ``now_s + first_s + k * interval_s``.

    The new tokens are digested at the later of two linear sequences, of the reader and of the deliveries, which cross at
    most once (version 2, section 3; as :meth:`~andes_sglang.qoe.Readers.served`, with an end).
    """
    pace = 1.0 / readers.tds
    delivery = now_s + first_s - readers.start_s
    start = np.maximum(readers.end_s, delivery)
    slower = interval_s - pace
    with np.errstate(divide="ignore", invalid="ignore"):
        paced = np.where(slower > 0, np.clip(np.ceil((start - delivery) / slower), 0.0, tokens), tokens)
    late = tokens - paced
    digest_sum = paced * start + pace * paced * (paced - 1) / 2
    digest_sum += late * delivery + interval_s * (tokens * (tokens - 1) - paced * (paced - 1)) / 2
    n = readers.delivered + tokens
    ideal_sum = pace * (n * (n - 1) - readers.delivered * (readers.delivered - 1)) / 2
    last = np.where(late > 0, delivery + (tokens - 1) * interval_s, start + (tokens - 1) * pace)
    lateness_s = readers.lateness_s + digest_sum - ideal_sum
    score: Array = np.clip(1.0 - lateness_s / (n * (last + pace) - n * n * pace / 2), 0.0, 1.0)
    return score


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
    growth_tokens: float = option(
        16.0, "tokens", low=0, doc="KV kept free for each running request", source="the engine's reserve at admission"
    )


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
        t, prefill = state.requests, state.latency.prefill.coefficients
        left = remaining_tokens(t, self.output_tokens)
        context = t.context_tokens + left / 2
        mean_context = float(context.mean())
        pool_tokens = float(state.pool_tokens)
        batch = max(1.0, min(float(state.max_running), float(len(t)), pool_tokens / mean_context))
        step_s = state.latency.decode_s(batch, batch * mean_context)

        prefill_s = np.where(t.is_in(Phase.WAITING), prefill[1] * (t.context_tokens - t.cached_tokens), 0.0)
        work_s = prefill_s + left * step_s * np.maximum(1.0 / batch, context / pool_tokens)
        now = final_qoe(t.readers, state.now_s, prefill_s + step_s, step_s, left)
        later = final_qoe(t.readers, state.now_s, self.options.delay_s + prefill_s + step_s, step_s, left)
        density: Array = np.maximum(now - later, 0.0) * t.weight / work_s
        return density
