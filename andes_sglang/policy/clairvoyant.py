"""The best policy found that knows output lengths: a yardstick of the possible, not for service.

Smith's rule on QoE. For every request, how much *final* QoE is lost if the rest of its answer starts ``delay_s`` later,
per second of the engine that the rest needs (its prefill, its share of decode steps and of KV): whoever loses most per unit
of work goes first. A request that can lose nothing (its reader is supplied for longer than the delay) waits, one that is
lost anyway waits too. Running requests get a bonus against flapping. It is a heuristic: the bound of
:mod:`andes_sglang.sim.upper_bound` says how far from the optimum it may be.

Trade-off: it sacrifices whoever costs much and has little left to lose, without any bound on waiting.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.select import select
from andes_sglang.policy.srpt import remaining_tokens
from andes_sglang.qoe import Readers
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Clairvoyant", "final_qoe"]

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


class Clairvoyant:
    """output_tokens: final output length of every request by its id. delay_s: the postponement that losses are counted
    for. running_bonus: relative bonus of running requests. trigger_buffer_s: only a reader with less may displace."""

    name = "clairvoyant"

    def __init__(
        self,
        *,
        output_tokens: Mapping[str, int],
        delay_s: float = 20.0,
        running_bonus: float = 0.5,
        trigger_buffer_s: float = 1.0,
        growth_tokens: float = 16.0,
    ) -> None:
        if not delay_s > 0:
            raise ValueError(f"delay_s must be > 0 seconds, got {delay_s!r}")
        self.output_tokens = output_tokens
        self.delay_s = delay_s
        self.running_bonus = running_bonus
        self.trigger_buffer_s = trigger_buffer_s
        self.growth_tokens = growth_tokens

    def decide(self, state: SchedulerState) -> Decision:
        t, prefill = state.requests, state.latency.prefill.coefficients
        if not len(t):
            return Decision()
        running = t.phase == Phase.RUNNING
        left = remaining_tokens(t, self.output_tokens)
        context = t.context_tokens + left / 2
        pool = float(state.kv_capacity_tokens - state.kv_reserved_tokens)
        batch = max(1.0, min(float(state.max_running), float(len(t)), pool / float(context.mean())))
        interval_s = state.latency.decode_s(batch, batch * float(context.mean()))

        prefill_s = np.where(t.phase == Phase.WAITING, prefill[1] * (t.context_tokens - t.cached_tokens), 0.0)
        share = np.maximum(1.0 / batch, context / pool)
        work_s = prefill_s + left * interval_s * share
        now = final_qoe(t.readers, state.now_s, prefill_s + interval_s, interval_s, left)
        later = final_qoe(t.readers, state.now_s, self.delay_s + prefill_s + interval_s, interval_s, left)
        loss = np.maximum(now - later, 0.0) * t.weight * np.where(running, 1.0 + self.running_bonus, 1.0)
        return select(
            state,
            loss / work_s,
            growth_tokens=self.growth_tokens,
            displacing=~running & (t.readers.buffered_s(state.now_s) < self.trigger_buffer_s),
            victims=(t.preemptible > 0) & (t.kv_tokens > 0),
        )
