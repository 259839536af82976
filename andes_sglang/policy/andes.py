"""Andes: serve the requests that gain most QoE per KV token, preempt only where the gain pays for the pause.

Version 2 of the paper (arXiv 2404.16283, section 4): gain of being served over waiting within a horizon, greedy packing
by gain per KV token, a few batch sizes tried, an overhead-aware refiner. Beyond it: a bound on how long any reader is
left dry, a minimum slice, only readers about to run dry may displace, a guard for long prompts, and two limits on
recomputation: a victim has had as much of the engine as its return will cost, and the displacement saves a wait that is
worth it.

Trade-off: no request starves beyond ``stall_bound_s`` as long as ``overdue_share`` of the KV pool holds all that are
overdue. In a lasting overload late requests wait past that bound, so that the others read smoothly: with the whole engine
spent on the latest, all would be late. Requests with long prompts cost more KV, hence wait first; ``length_guard`` limits by
how much.

With ``fairness`` the cost is not KV but the engine's time for the rest of the answer; while prefill alone is short,
``prefill_fairness`` holds in its place. What has been lost already is no reason to run then, so that begun answers are
finished by the share for the overdue alone: the latest for what the rest takes first, which ends answers that have little
left, and only those that had to wait count to it (``late_share``).

Five requests on an engine with three places, two of them taken by ``a``, whose reader has 40 s of text unread, and ``b``,
whose reader has 0.5 s. ``c`` and ``d`` have no token 1 s after it was expected, and ``d`` has a long prompt. ``e`` has
waited for 200 s, beyond ``first_bound_s``.

>>> from andes_sglang.latency import LatencyModel
>>> from andes_sglang.qoe import QoETarget, ReaderStream
>>> from andes_sglang.state import RequestTable, RequestView
>>> def request(rid, prompt, age_s, unread_s=None):
...     reader = ReaderStream(100.0 - age_s, QoETarget(ttft_s=1.0, tds=4.0))
...     if unread_s is None:
...         return RequestView(rid, Phase.WAITING, 100.0 - age_s, reader, prompt)
...     n = int(4 * (age_s - 1 + unread_s))  # read since its first second, and what is unread
...     reader.deliver(101.0 - age_s, n)
...     return RequestView(rid, Phase.RUNNING, 100.0 - age_s, reader, prompt, n, prompt + n, slice_tokens=n)
>>> table = RequestTable.of([
...     request("a", 450, 41.0, unread_s=40.0), request("b", 450, 21.0, unread_s=0.5),
...     request("c", 100, 2.0), request("d", 600, 2.0), request("e", 300, 201.0),
... ])
>>> state = SchedulerState(100.0, table, kv_capacity_tokens=4000, max_running=3, latency=LatencyModel())
>>> options = AndesOptions()

One, rank: gain per KV token, running requests with a bonus.

>>> ranking = rank(state, options)
>>> table.names(np.argsort(-ranking.value))
('c', 'b', 'd', 'e', 'a')

Two, prioritise the overdue: ``e`` goes first, whatever it gains.

>>> ranking = prioritize_overdue(state, ranking, options)
>>> table.names(np.lexsort((-ranking.value, -ranking.tier)))
('e', 'c', 'b', 'd', 'a')

Three, choose victims: readers about to run dry may displace, requests that have had their slice may be displaced.

>>> displacement = choose_victims(state, ranking, options)
>>> table.names(np.flatnonzero(displacement.displacers)), table.names(np.flatnonzero(displacement.victims))
(('c', 'd', 'e'), ('a', 'b'))

Four, pack: ``e`` takes the free place, ``c`` that of ``a``, which is parked: there is KV for all. ``d`` waits: ``b`` ranks
above it.

>>> decision = Andes(options).decide(state)
>>> decision.admit, [(p.rid, p.mode.value, p.reason) for p in decision.preempt]
(('e', 'c'), [('a', 'park', 'displaced')])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.policy.batching import batch_sizes, largest_batch, packed_rows
from andes_sglang.policy.options import PolicyOptions, growth_tokens, option
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.policy.refiner import Refiner
from andes_sglang.policy.valuation import FinalValue, HorizonValue, Valuation, kv_binds, remaining_tokens
from andes_sglang.state import Decision, Phase, SchedulerState

__all__ = ["Andes", "AndesOptions", "Ranking", "choose_victims", "prioritize_overdue", "rank"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MAX_SLICE_SHARE = 0.25
"""Share of the horizon: a slice as long as this has earned its return once its cost is paid for once
(docs/decisions/2026-11-21-what-a-preemption-costs.md)."""
ORDER_ONLY_GROWTH = 4
"""Times ``growth_tokens`` where preemption is off, and running out of KV cannot be corrected: as much as ``fcfs`` keeps."""

SLICE_TOKENS, FAIR_SLICE_TOKENS = 90, 75
"""``resumed_slice_tokens`` without ``fairness`` and with it."""

_SENSITIVITY = "docs/benchmarks/simulated.md, sensitivity"
_FAIRNESS = "docs/decisions/2026-11-27-final-value.md"
_STALL_BOUND = "docs/decisions/2026-11-21-finite-stall-bound.md"
_PREEMPTION_COST = "docs/decisions/2026-11-21-what-a-preemption-costs.md"
_CPU_ENGINE = "SGLang 0.5.17 on CPU, 8-layer model, burst of 2x at 96 % load"


@dataclass(frozen=True, kw_only=True)
class AndesOptions(PolicyOptions):
    """Options of ``andes``."""

    policy: ClassVar[str] = "andes"
    renamed: ClassVar[Mapping[str, str]] = {"slice_worth": "min_runtime_ratio", "wait_worth": "min_wait_ratio"}

    fairness: float | None = option(
        None, "", low=-10, high=1, doc="rank by final QoE through an alpha-fair utility: 1 sums QoE, 0 is proportional, the "
        "lower the more those with little count; null: by QoE at a horizon", source=_FAIRNESS,
    )  # fmt: skip
    prefill_fairness: float = option(
        1.0, "", low=-10, high=1, doc="with fairness, in its place: while KV and batch have room for all that wait",
        source=_FAIRNESS,
    )  # fmt: skip
    delay_s: float = option(
        15.0, "seconds", above=0, doc="with fairness: a request runs now or this much later", source=_FAIRNESS
    )
    work_exponent: float = option(
        1.0, "", low=0, high=2, doc="with fairness: value per second of engine to this power; below 1 spares long prompts",
        source=_FAIRNESS,
    )  # fmt: skip
    horizon_s: float = option(
        60.0, "seconds", above=0, doc="how far gains look ahead (paper: delta t)", source=_SENSITIVITY
    )
    stall_bound_s: float = option(
        90.0, "seconds", above=0, doc="a reader dry for longer is overdue and goes first", source=_STALL_BOUND
    )
    first_bound_s: float = option(
        120.0, "seconds", above=0, doc="overdue is also a first token that is later than this", source=_STALL_BOUND
    )
    overdue_share: float = option(
        0.25, "of the KV pool", low=0, doc="most KV for requests that run because they are overdue", source=_STALL_BOUND
    )
    late_share: float = option(
        0.1, "of the KV pool", low=0, doc="with fairness, instead of overdue_share: and for those that run after such a wait",
        source=_FAIRNESS,
    )  # fmt: skip
    min_slice_tokens: int = option(
        45, "tokens", low=0, doc="generated by a new request before it may be displaced", source=_CPU_ENGINE
    )
    resumed_slice_tokens: int | None = option(
        None, "tokens", low=0, doc="the same of a request that was preempted before; null: 90, with fairness 75",
        source=f"{_CPU_ENGINE}; {_FAIRNESS}",
    )  # fmt: skip
    min_runtime_ratio: float = option(
        4.0, "", low=0, doc="a victim has run for this many times what its return costs; for once that, after a "
        "quarter of the horizon", source=_PREEMPTION_COST,
    )  # fmt: skip
    min_wait_ratio: float = option(
        0.05, "", low=0, doc="the wait that a displacement saves, relative to the horizon, is at least this many times the "
        "work that it adds, relative to that of an answer", source=_PREEMPTION_COST,
    )  # fmt: skip
    trigger_buffer_s: float = option(
        1.0, "seconds", doc="only a reader with less text unread than this may displace", source=_CPU_ENGINE
    )
    running_bonus: float = option(
        1.0, "", low=0, doc="relative bonus of running requests against flapping", source=_SENSITIVITY
    )
    length_guard: float = option(
        1.4, "", above=0, doc="contexts count as at most this many times their mean", source=_SENSITIVITY
    )
    batch_candidates: int = option(3, "", low=1, doc="batch sizes tried", source=f"{_CPU_ENGINE}: 1 to 4 alike")
    preemption: bool = option(True, "", doc="false: admission order only", source=_SENSITIVITY)
    refine: bool = option(True, "", doc="false: displace without the refiner's brake", source=_SENSITIVITY)
    max_preemptions: float | None = option(
        None, "preemptions", low=0, doc="no displacing once a request was preempted this often on average (version 1)",
        source=_STALL_BOUND,
    )  # fmt: skip
    growth_tokens: float = growth_tokens()

    @property
    def slice_tokens_of_resumed(self) -> int:
        """``resumed_slice_tokens``, or its default."""
        if self.resumed_slice_tokens is not None:
            return self.resumed_slice_tokens
        return SLICE_TOKENS if self.fairness is None else FAIR_SLICE_TOKENS


class Ranking(NamedTuple):
    """Who goes first. value: gain for its cost, shape (N,), overdue rows have their lateness for it; tier: 1 for overdue
    rows, shape (N,), None where there are none; gain: QoE gained by running, weighted, shape (N,); cost: the valuation's,
    shape (N,); batch: the batch size ranked for; valuation: what ``gain`` comes from."""

    value: Array
    gain: Array
    cost: Array
    batch: int
    valuation: Valuation
    tier: Array | None = None

    @property
    def overdue(self) -> Mask:
        return np.zeros(len(self.value), dtype=bool) if self.tier is None else self.tier > 0


class Andes:
    """See the module."""

    name = "andes"
    options_type = AndesOptions
    uses_weight = True
    may_hold_back = True

    def __init__(self, options: AndesOptions | None = None) -> None:
        self.options = options or AndesOptions()

    def decide(self, state: SchedulerState) -> Decision:
        options = self.options
        if not len(state.requests):
            return Decision()
        ranking = prioritize_overdue(state, rank(state, options), options)
        displacement = choose_victims(state, ranking, options)
        return pack(
            state,
            ranking.value,
            tier=ranking.tier,
            batch=ranking.batch,
            growth_tokens=options.growth_tokens * (1 if options.preemption else ORDER_ONLY_GROWTH),
            displacement=displacement,
        )


def rank(state: SchedulerState, options: AndesOptions) -> Ranking:
    """By what running is worth for what it costs, at the batch size where that is most in all."""
    t = state.requests
    context = np.maximum(t.context_tokens, 1.0)
    guarded_tokens = np.minimum(context, options.length_guard * float(context.mean()))
    valuation = value_running(state, options, guarded_tokens)
    sizes = [largest_batch(state, context)]
    step_s = valuation.step_s(sizes)
    if step_s[0, 0] > 1.0 / float(t.readers.tds.max()):
        sizes = batch_sizes(state, sizes[0], float(context.mean()), options.batch_candidates)
        step_s = valuation.step_s(sizes)
    gains = valuation.gain(step_s) * t.weight
    costs = np.broadcast_to(valuation.cost(step_s), gains.shape)
    densities = gains / costs * np.where(t.is_in(Phase.RUNNING), 1.0 + options.running_bonus, 1.0)
    if len(sizes) == 1:
        return Ranking(densities[0], gains[0], costs[0], state.max_running, valuation)
    packed = [packed_rows(density, context, state.pool_tokens, b) for density, b in zip(densities, sizes, strict=True)]
    best = int(np.argmax([float(gain[rows].sum()) for gain, rows in zip(gains, packed, strict=True)]))
    return Ranking(densities[best], gains[best], costs[best], sizes[best], valuation)


def value_running(state: SchedulerState, options: AndesOptions, guarded_tokens: Array) -> Valuation:
    """The valuation that the options ask for. Where prefill alone is short, few have to be late, and the sum of QoE names
    them; where KV is, begun answers wait too, and the sum would give them up."""
    if options.fairness is None:
        return HorizonValue(state, options.horizon_s, guarded_tokens)
    fairness = options.fairness if kv_binds(state) else options.prefill_fairness
    return FinalValue(state, options.delay_s, fairness, remaining_tokens(state.requests), options.work_exponent)


def prioritize_overdue(state: SchedulerState, ranking: Ranking, options: AndesOptions) -> Ranking:
    """Overdue requests in the tier above all others, by lateness relative to their bound for what they cost, until they fill
    their share of the pool. To that share count those that run although others, who fit the pool without them, gain more;
    with fairness, by which most that run have little to gain at times, only those of them that were kept waiting."""
    t = state.requests
    running = t.is_in(Phase.RUNNING)
    bound_s = np.where(t.readers.delivered > 0, options.stall_bound_s, options.first_bound_s)
    lateness = -t.readers.buffered_s(state.now_s) / bound_s
    late = np.flatnonzero(~running & (lateness > 1.0))
    if not len(late):
        return ranking
    order = np.argsort(-ranking.value, kind="stable")
    beyond = order[np.cumsum(t.context_tokens[order]) > state.pool_tokens]
    outranked, share = beyond[running[beyond]], options.overdue_share
    if options.fairness is not None:
        outranked, share = outranked[(waited_s(state) > bound_s)[outranked]], options.late_share
    owed_tokens = float(t.kv_tokens[outranked].sum())
    lateness_density = t.weight * lateness / ranking.cost
    late = late[np.argsort(-lateness_density[late], kind="stable")]
    before_tokens = owed_tokens + np.cumsum(t.context_tokens[late]) - t.context_tokens[late]
    tier = np.zeros(len(t))
    tier[late[before_tokens < share * state.pool_tokens]] = 1.0
    return ranking._replace(value=np.where(tier > 0, lateness_density, ranking.value), tier=tier)


def waited_s(state: SchedulerState) -> Array:
    """Seconds for which each reader has had to wait so far, the first token and all stalls together, shape (N,)."""
    r = state.requests.readers
    waited: Array = np.maximum(r.end_s, state.now_s - r.start_s) - r.delivered / r.tds
    return waited


def choose_victims(state: SchedulerState, ranking: Ranking, options: AndesOptions) -> Displacement | None:
    """Who may displace: readers about to run dry. Who may be displaced: requests that have had their slice. None where
    preemption is off."""
    if not options.preemption:
        return None
    t, running = state.requests, state.requests.is_in(Phase.RUNNING)
    count = int(np.count_nonzero(running))
    step_s = state.latency.decode_s(count, float(t.kv_tokens[running].sum()))
    copied = t.host_tokens * state.latency.kept_share
    return_s = state.latency.resume_s(t.kv_tokens - copied, copied, copied)
    cost_tokens = return_s / (step_s / max(1, count))
    earned = t.slice_tokens >= slice_tokens_owed(state, options, step_s, cost_tokens)
    below_cap = options.max_preemptions is None or float(t.preemptions.mean()) < options.max_preemptions
    displacers = ~running & (t.readers.buffered_s(state.now_s) < options.trigger_buffer_s) & below_cap
    victims = (t.preemptible > 0) & (earned | ~running) & (t.kv_tokens > 0)
    if not options.refine:
        return Displacement(displacers, victims)
    refiner = Refiner(
        state, ranking.valuation, options.horizon_s, options.min_wait_ratio,
        step_s=step_s, gain=ranking.gain, return_s=return_s, overdue=ranking.overdue, displacers=displacers,
    )  # fmt: skip
    return Displacement(displacers, victims, refiner)


def slice_tokens_owed(state: SchedulerState, options: AndesOptions, step_s: float, cost_tokens: Array) -> Array:
    """Tokens that each request generates before it may be displaced, shape (N,). step_s: seconds of a decode step.
    cost_tokens: what its return costs, in tokens that the engine generates in that time, shape (N,)."""
    patience_tokens = MAX_SLICE_SHARE * options.horizon_s / step_s
    runtime_tokens = np.clip(patience_tokens, cost_tokens, options.min_runtime_ratio * cost_tokens)
    preempted = state.requests.preemptions > 0
    slice_tokens = np.where(preempted, options.slice_tokens_of_resumed, options.min_slice_tokens)
    owed: Array = np.maximum(slice_tokens, runtime_tokens)
    return owed
