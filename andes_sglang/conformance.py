"""The rules that every scheduling policy keeps, as a test class to run on your own policy.

In a test module of yours, with pytest and hypothesis installed::

    from andes_sglang.conformance import PolicyConformance

    class TestMine(PolicyConformance):
        policy = "my_package.mine:Mine"
        options = {"patience_s": 10}

Rules about weight, starvation and idle room hold unless the policy's class says otherwise:
:class:`~andes_sglang.policy.base.SchedulingPolicy` lists the attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andes_sglang.latency import LatencyModel
from andes_sglang.policy import CLAIRVOYANT, SchedulingPolicy, make_policy
from andes_sglang.policy.yielding import decide_readers_first
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.replica import Replica, simulate
from andes_sglang.state import Decision, Phase, PreemptionMode, RequestTable, RequestView, SchedulerState

__all__ = ["ANSWER_TOKENS", "FAST", "SLOW", "PolicyConformance", "random_state", "schedulable_states", "surge"]

FAST = Costs(0.006, 0.0022, 3e-7, 0.005, 75e-6)
"""An engine that outpaces its readers five times at a batch of 16, as SGLang does on two CPU cores with 8 layers."""
SLOW = Costs(0.02, 0.012, 1e-6, 0.01, 2e-4)
"""An engine about as fast as one reader at a batch of 16."""
MAX_REQUESTS = 14
ANSWER_TOKENS = {f"r{k}": 220 + 20 * (k % 3) for k in range(MAX_REQUESTS)}
"""Final lengths of the requests of :func:`schedulable_states`, none of which has generated more than 200 tokens."""

_inherited = settings(suppress_health_check=[HealthCheck.differing_executors])


def random_state(requests: int, seed: int) -> SchedulerState:
    """A state that keeps the bounds: up to 14 requests in any phase, KV and batch full or roomy. With fewer ``requests`` the
    first stay as they are."""
    rng, now_s, n = np.random.default_rng(seed), 1000.0, MAX_REQUESTS
    phases = rng.integers(0, 3, n)
    ages_s = rng.choice([0.0, 1.0, *rng.uniform(0, 90, 6)], n)
    tds = rng.choice([2.0, 4.5, 30.0], n)
    outputs = np.where(phases == Phase.WAITING, rng.choice([0, 0, 50], n), rng.integers(1, 201, n))
    prompts = rng.integers(1, 901, n)
    shares = rng.choice([0.0, 1.0, *rng.uniform(0, 1, 4)], (5, n))  # of an age or of a prompt
    slices, preemptions, preemptible = (
        rng.integers(0, 201, n),
        rng.integers(0, 4, n),
        rng.random(n) < rng.choice([0.5, 1]),
    )
    views = []
    for k in range(requests):
        waiting, output, prompt = phases[k] == Phase.WAITING, int(outputs[k]), int(prompts[k])
        reader = ReaderStream(now_s - ages_s[k], QoETarget(1.0, tds[k]))
        reader.deliver(now_s - ages_s[k] * shares[0, k], output)
        cached = int(prompt * shares[1, k]) if waiting else 0
        views.append(
            RequestView(
                f"r{k}", Phase(int(phases[k])), now_s - ages_s[k], reader, prompt, output, 0 if waiting else prompt + output,
                cached_tokens=cached, host_tokens=int((cached if waiting else prompt) * shares[2, k]),
                slice_tokens=int(slices[k]), phase_since_s=now_s - ages_s[k] * shares[3, k],
                preemptions=int(preemptions[k]), preemptible=bool(preemptible[k]),
            )
        )  # fmt: skip
    held, running = sum(view.kv_tokens for view in views), sum(view.phase is Phase.RUNNING for view in views)
    spare = int(rng.choice([0, 5, 50, 500, *rng.integers(0, 3000, 4)]))
    max_running = max(1, running + int(rng.integers(0, 7)))
    return SchedulerState(now_s, RequestTable.of(views), max(held + spare, 1500), max_running, LatencyModel())


def schedulable_states() -> st.SearchStrategy[SchedulerState]:
    """Of :func:`random_state`."""
    return st.builds(random_state, st.integers(0, MAX_REQUESTS), st.integers(0, 2**32))


def surge(
    seed: int, *, rate_rps: float = 1.6, tds: float = 4.5, prompt_tokens: int = 300, weight: float = 1.0
) -> list[RequestSpec]:
    """Poisson arrivals over 60 s, more than three times as dense in the second third."""
    rng = np.random.default_rng(seed)
    at_s, specs = 0.0, []
    while at_s < 60:
        at_s += rng.exponential(1 / (rate_rps * (2.2 if 20 < at_s < 40 else 0.7)))
        lengths = int(rng.integers(prompt_tokens // 2, prompt_tokens)), int(rng.integers(60, 200))
        specs.append(RequestSpec(at_s, *lengths, QoETarget(1.0, tds), weight=weight))
    return specs


class PolicyConformance:
    """Derive ``Test...`` from it. policy, options: as for ``make_policy``. may_starve, may_hold_back, uses_weight: None for
    what the policy's class says."""

    policy: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    may_starve: ClassVar[bool | None] = None
    may_hold_back: ClassVar[bool | None] = None
    uses_weight: ClassVar[bool | None] = None

    def make(self, output_tokens: Mapping[str, int] = ANSWER_TOKENS) -> SchedulingPolicy:
        """The policy under test. output_tokens: final lengths, for a policy that is told them."""
        told = output_tokens if self.policy in CLAIRVOYANT else None
        return make_policy(self.policy, self.options, output_tokens=told)

    def decide(self, state: SchedulerState) -> Decision:
        return self.make().decide(state)

    def says(self, attribute: str) -> bool:
        """What this class, else the policy's, says of the policy."""
        here = getattr(self, attribute)
        return bool(getattr(self.make(), attribute, False) if here is None else here)

    @_inherited
    @given(schedulable_states())
    def test_a_decision_is_consistent(self, state: SchedulerState) -> None:
        """Each request is named once, in a phase that allows it; only preemptible requests that hold KV are preempted."""
        t, decision = state.requests, self.decide(state)
        row = {rid: k for k, rid in enumerate(t.rids)}
        preempted = [p.rid for p in decision.preempt]
        named = [*decision.admit, *decision.resume, *preempted]
        assert len(named) == len(set(named)), "a request is named once"
        assert all(t.phase[row[rid]] == Phase.WAITING for rid in decision.admit)
        assert all(t.phase[row[rid]] == Phase.PARKED for rid in decision.resume)
        assert all(t.preemptible[row[rid]] for rid in preempted), "only the preemptible are preempted"
        assert all(t.kv_tokens[row[rid]] > 0 for rid in preempted)
        assert all(p.reason for p in decision.preempt), "a preemption has a reason, for metrics"

    @_inherited
    @given(schedulable_states())
    def test_only_what_runs_is_parked(self, state: SchedulerState) -> None:
        """A parked request may be released."""
        running = set(state.requests.names(state.requests.rows(Phase.RUNNING)))
        parked = {p.rid for p in self.decide(state).preempt if p.mode is PreemptionMode.PARK}
        assert parked <= running

    @_inherited
    @given(schedulable_states())
    def test_kv_and_batch_bounds_hold(self, state: SchedulerState) -> None:
        """What is admitted fits in the KV pool and the batch once what is preempted has gone; a single request on an empty
        engine may need more."""
        t, decision = state.requests, self.decide(state)
        row = {rid: k for k, rid in enumerate(t.rids)}
        released = [p.rid for p in decision.preempt if p.mode is not PreemptionMode.PARK]
        kv = t.kv_tokens.sum() - sum(t.kv_tokens[row[rid]] for rid in released)
        kv += sum(t.context_tokens[row[rid]] for rid in decision.admit)
        running = int((t.phase == Phase.RUNNING).sum())
        last_resort = running == 0 and len(decision.admit) == 1 and not decision.resume
        assert kv <= state.kv_capacity_tokens or last_resort
        running += len(decision.admit) + len(decision.resume)
        running -= sum(t.phase[row[p.rid]] == Phase.RUNNING for p in decision.preempt)
        assert running <= state.max_running

    @_inherited
    @given(schedulable_states())
    def test_deterministic_and_pure(self, state: SchedulerState) -> None:
        """The same state gives the same decision, and is left as it was."""
        policy, before = self.make(), state.requests.columns.copy()
        first, second = policy.decide(state), policy.decide(state)
        assert first == second == self.make().decide(state)
        assert np.array_equal(before, state.requests.columns, equal_nan=True)

    @_inherited
    @given(schedulable_states())
    def test_work_conserving(self, state: SchedulerState) -> None:
        """An engine with nothing running takes a request, and plenty of room takes all."""
        t = state.requests
        if len(t) and not (t.phase == Phase.RUNNING).any():
            decision = self.decide(state)
            assert decision.admit or decision.resume
        roomy = replace(state, kv_capacity_tokens=10**6, max_running=1000, chunk_tokens=10**6)
        decision = self.decide(roomy)
        if not self.says("may_hold_back"):
            assert len(decision.admit) + len(decision.resume) == int((t.phase != Phase.RUNNING).sum())

    @_inherited
    @given(schedulable_states(), st.integers(0, 2**MAX_REQUESTS))
    def test_a_yielding_stream_costs_readers_nothing(self, state: SchedulerState, which: int) -> None:
        """Beside requests that yield, those with readers get the decision that they would get alone; and while one of them
        waits none that yields goes on, as far as it can be stopped."""
        state = with_yielding(state, which)
        t, policy = state.requests, self.make()
        readers = t.only(t.yields == 0)
        alone, both = policy.decide(replace(state, requests=readers)), decide_readers_first(policy, state)
        offline = set(t.rids).difference(readers.rids)
        assert _without(offline, both) == alone
        on_engine = _on_engine(t, both)
        if set(readers.rids) - on_engine:
            assert not offline.intersection(both.admit + both.resume)
            assert on_engine.isdisjoint(offline.intersection(itertools.compress(t.rids, t.preemptible.tolist())))

    @_inherited
    @given(schedulable_states(), st.integers(0, 2**MAX_REQUESTS))
    def test_yielding_streams_keep_the_bounds_of_kv_and_batch(self, state: SchedulerState, which: int) -> None:
        """With those of the readers; a single request on an empty engine may need more."""
        state = with_yielding(state, which)
        t, decision = state.requests, decide_readers_first(self.make(), state)
        row = {rid: k for k, rid in enumerate(t.rids)}
        on_engine = _on_engine(t, decision)
        if not any(t.yields[row[rid]] for rid in decision.admit + decision.resume):
            return
        released = [p.rid for p in decision.preempt if p.mode is not PreemptionMode.PARK]
        kv = t.kv_tokens.sum() - sum(t.kv_tokens[row[rid]] for rid in released)
        assert (
            kv + sum(t.context_tokens[row[rid]] for rid in decision.admit) <= state.kv_capacity_tokens or not on_engine
        )
        assert len(on_engine) + len(decision.admit) <= state.max_running

    def test_the_heavier_of_two_is_served_first(self) -> None:
        """Of two requests that differ in nothing but weight the heavier gets the only place, whichever comes first in the
        table."""
        if not self.says("uses_weight"):
            return
        for weights in ((1.0, 4.0), (4.0, 1.0)):
            for late_s, unread_tokens in ((0.5, 0), (300.0, 0), (0.0, 2)):
                state = one_place_for_two(weights, late_s, unread_tokens)
                assert self.decide(state).admit == (f"r{int(np.argmax(weights))}",), (weights, late_s, unread_tokens)

    def test_the_heavier_half_of_a_surge_is_served_better(self) -> None:
        """In mean QoE, where both halves are alike."""
        if not self.says("uses_weight"):
            return
        specs = [replace(spec, weight=1.0 + 7.0 * (k % 2)) for k, spec in enumerate(surge(3, rate_rps=3.0))]
        records = self._simulate(FAST, specs)
        light, heavy = (float(np.mean([r.qoe for r in records if r.index % 2 == half])) for half in (0, 1))
        assert heavy > light

    def test_no_request_is_lost_over_a_surge(self) -> None:
        """Every request gets its whole answer, on a fast engine and on a slow one."""
        specs = surge(1)
        for costs in (FAST, SLOW):
            records = self._simulate(costs, specs)
            assert [len(r.deliveries) for r in records] == [s.output_tokens for s in specs]

    def test_no_request_starves(self) -> None:
        """Under sustained overload the first to arrive are served long before the load ends."""
        if self.says("may_starve"):
            return
        finished: list[RequestRecord] = []
        specs = [RequestSpec(0.3 * k, 250, 150, QoETarget(1.0, 4.5)) for k in range(900)]
        policy = self.make(_lengths(specs))
        replica = Replica(EngineModel(FAST, 4096), policy, sink=finished.append, decision_interval_s=0.2)
        for spec in specs:
            replica.submit(spec)
        replica.advance(225.0)
        late = set(range(50)).difference(r.index for r in finished)
        assert not late

    def _simulate(self, costs: Costs, specs: Sequence[RequestSpec]) -> list[RequestRecord]:
        records = simulate(EngineModel(costs, 4096), self.make(_lengths(specs)), specs)
        return sorted(records, key=lambda record: record.index)


def _without(rids: set[str], decision: Decision) -> Decision:
    return Decision(
        tuple(rid for rid in decision.admit if rid not in rids),
        tuple(rid for rid in decision.resume if rid not in rids),
        tuple(p for p in decision.preempt if p.rid not in rids),
    )


def _on_engine(t: RequestTable, decision: Decision) -> set[str]:
    """Who is in the batch once ``decision`` is carried out, before those admitted have been prefilled."""
    running = set(itertools.compress(t.rids, t.is_in(Phase.RUNNING).tolist()))
    return running - {p.rid for p in decision.preempt} | set(decision.resume)


def with_yielding(state: SchedulerState, which: int) -> SchedulerState:
    """``state`` in which those requests yield whose bit of ``which`` is set."""
    columns = state.requests.columns.copy()
    table = RequestTable(state.requests.rids, columns)
    table.yields[:] = [which >> k & 1 for k in range(len(table))]
    return replace(state, requests=table)


def one_place_for_two(weights: tuple[float, float], late_s: float, unread_tokens: int) -> SchedulerState:
    """Two waiting requests alike but for their weights, and room for one: their first token is ``late_s`` late, or they have
    ``unread_tokens`` left of 20 tokens."""
    now_s, views = 1000.0, []
    for k, weight in enumerate(weights):
        arrival_s = now_s - 1.0 - late_s if not unread_tokens else now_s - 5.0
        reader = ReaderStream(arrival_s, QoETarget(1.0, 4.5))
        output = 0
        if unread_tokens:
            output = 18 + unread_tokens
            reader.deliver(now_s - 4.0, output)
        views.append(RequestView(f"r{k}", Phase.WAITING, arrival_s, reader, 400, output, weight=weight))
    return SchedulerState(now_s, RequestTable.of(views), 600, 8, LatencyModel())


def _lengths(specs: Sequence[RequestSpec]) -> dict[str, int]:
    return {f"r{k}": spec.output_tokens for k, spec in enumerate(specs)}
