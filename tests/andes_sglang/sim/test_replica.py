"""The replica against what can be worked out by hand, and against itself step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sglang.policy import make
from andes_sglang.policy.packer import pack
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.preemption import paused_kv
from andes_sglang.sim.replica import RefusedError, Replica, simulate
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, SchedulerState

TARGET = QoETarget(1.0, 4.5)
COSTS = Costs(
    decode_fixed_s=0.01, decode_request_s=0.002, decode_context_s=1e-5, prefill_fixed_s=0.02, prefill_token_s=1e-3
)
ENGINE = EngineModel(COSTS, kv_capacity_tokens=2000, chunk_tokens=500)


def spec(at: float, prompt: int, output: int, **more: Any) -> RequestSpec:
    return RequestSpec(at, prompt, output, TARGET, **more)


def run(specs: Sequence[RequestSpec], policy: Any = None, engine: EngineModel = ENGINE) -> list[RequestRecord]:
    return sorted(simulate(engine, policy, specs), key=lambda r: r.index)


def step_s(batch: int, context: int) -> float:
    return 0.01 + 0.002 * batch + 1e-5 * context


def drained(replica: Replica) -> bool:
    """Everything that was taken has been given back."""
    tree = replica.cache
    return (
        replica.open_requests == replica.kv_uncached_tokens == replica._batch.context_tokens == 0
        and tree.tokens == tree.evictable <= replica.engine.kv_capacity_tokens
    )


def test_one_request_alone() -> None:
    (record,) = run([spec(3.0, 100, 4)])
    first = 3.0 + 0.02 + 0.1
    steps = [step_s(1, 100 + k) for k in (2, 3, 4)]
    assert record.token_times_s == pytest.approx(first + np.cumsum([0.0, *steps]))
    assert (record.prefix_hit_tokens, record.recomputed_tokens, record.preemptions, record.retractions) == (0, 0, 0, 0)


def test_prefill_goes_before_decode_and_the_batch_shares_a_step() -> None:
    first, second = run([spec(0.0, 100, 3), spec(0.121, 50, 2)])
    one = 0.12 + step_s(1, 102)
    assert first.token_times_s[:2] == pytest.approx([0.12, one])
    prefilled = one + 0.02 + 0.05
    assert second.token_times_s[0] == pytest.approx(prefilled)
    both = prefilled + step_s(2, 103 + 52)
    assert (first.token_times_s[2], second.token_times_s[1]) == pytest.approx((both, both))


def test_a_long_prompt_goes_in_chunks_without_decode_between_unless_mixed() -> None:
    specs = [spec(0.0, 100, 30), spec(0.13, 1200, 2)]
    first, second = run(specs)
    begun = next(float(t) for t in first.token_times_s if t >= 0.13)
    done = begun + 3 * 0.02 + 1.2
    assert second.token_times_s[0] == pytest.approx(done)
    assert not ((first.token_times_s > begun + 1e-9) & (first.token_times_s < done)).any()

    first, second = run(specs, engine=EngineModel(COSTS, 2000, chunk_tokens=500, mixed=True))
    during = first.token_times_s[
        (first.token_times_s > begun + 1e-9) & (first.token_times_s <= second.token_times_s[0])
    ]
    assert len(during) == 3
    n = len(first.token_times_s[first.token_times_s <= begun])
    assert during[0] - begun == pytest.approx(0.02 + 0.499 + 0.002 + 1e-5 * (100 + n + 1))


def test_two_that_share_a_prefix() -> None:
    blocks = (7, 8)
    engine = EngineModel(COSTS, 5000, chunk_tokens=4000)
    first, second, third = run(
        [spec(0.0, 1100, 2, blocks=blocks), spec(10.0, 1200, 2, blocks=blocks), spec(20.0, 700, 2, blocks=(7, 9))],
        engine=engine,
    )
    assert first.ttft_s == pytest.approx(0.02 + 1.1)
    assert (second.prefix_hit_tokens, third.prefix_hit_tokens) == (1024, 512)
    assert second.ttft_s == pytest.approx(0.02 + 0.176)
    assert third.ttft_s == pytest.approx(0.02 + 0.188)


def test_a_conversation_finds_its_last_turn() -> None:
    first, second = run([spec(0.0, 100, 50, session_id="s"), spec(30.0, 250, 5, session_id="s")])
    assert first.prefix_hit_tokens == 0
    assert second.prefix_hit_tokens == 149, "the prompt and the answer, but for its last token"
    assert second.ttft_s == pytest.approx(0.02 + 0.101)


def test_stock_reserves_a_share_of_what_the_running_may_generate() -> None:
    """0.7 of the first one's 1000 tokens leave room for 300 prompt tokens beside it, not for 700."""
    short = run([spec(0.0, 100, 1000), spec(0.1, 300, 100)])[1]
    assert short.ttft_s < 0.5
    first, long = run([spec(0.0, 100, 1000), spec(0.1, 700, 700)])
    assert long.ttft_s > 5
    assert long.token_times_s[0] > first.token_times_s[300]


def test_stock_admits_in_order_and_stops_at_the_first_that_does_not_fit() -> None:
    _, long, short = run([spec(0.0, 900, 900), spec(0.1, 900, 900), spec(0.2, 10, 10)])
    assert short.token_times_s[0] >= long.token_times_s[0]


def test_retraction_takes_the_longest_prompt_among_equals_and_keeps_its_prompt_until_evicted() -> None:
    engine = EngineModel(COSTS, 1000, chunk_tokens=500)
    specs = [spec(0.0, 100, 800), spec(0.01, 110, 500)]
    replica = Replica(engine, sink=(records := []).append)
    replica._admission.new_token_ratio = 0.1
    for s in specs:
        replica.submit(s)
    replica.advance(1e-9)
    replica.advance()
    first, second = sorted(records, key=lambda r: r.index)
    assert (first.retractions, second.retractions) == (0, 1)
    assert first.token_times_s == pytest.approx(np.sort(first.token_times_s))
    gap = np.diff(second.token_times_s).max()
    assert gap > 1.0, "it waited for the other one to finish"
    generated = int(np.argmax(np.diff(second.token_times_s))) + 1
    assert second.recomputed_tokens + second.prefix_hit_tokens == 110 + generated - 1
    assert len(second.deliveries) == 500
    assert drained(replica)


class Script:
    """Preempts whom it is told to, when, and how; keeps people out for a while; otherwise first come, first served."""

    name = "script"

    def __init__(self, rid: str, at_s: float, mode: PreemptionMode, **out_until_s: float) -> None:
        self.rid, self.at_s, self.mode = rid, at_s, mode
        self.out_until_s = out_until_s
        self.done = False

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        preempt: tuple[Preemption, ...] = ()
        if not self.done and state.now_s >= self.at_s:
            assert t.phase[t.rids.index(self.rid)] == Phase.RUNNING
            self.done, preempt = True, (Preemption(self.rid, self.mode, "script"),)

        def may(rid: str) -> bool:
            return state.now_s >= self.out_until_s.get(rid, 0.0) or (rid == self.rid and not self.done)

        base = pack(state, np.where([may(rid) for rid in t.rids], -t.arrival_s, -1e9))
        return Decision(tuple(filter(may, base.admit)), tuple(filter(may, base.resume)), preempt)


def test_park_costs_nothing_but_the_time() -> None:
    """A third request is kept waiting, so that the policy is asked at every step."""
    script = Script("r0", 0.5, PreemptionMode.PARK, r0=0.9, r2=0.95)
    replica = Replica(ENGINE, script, sink=(records := []).append)
    for s in [spec(0.0, 100, 40), spec(0.0, 100, 60), spec(0.3, 10, 1)]:
        replica.submit(s)
    replica.advance()
    parked = next(r for r in records if r.index == 0)
    assert np.diff(parked.token_times_s).max() == pytest.approx(0.4 + step_s(2, 250), abs=0.02)
    assert (parked.preemptions, parked.recomputed_tokens, parked.prefix_hit_tokens) == (1, 0, 0)
    assert len(parked.deliveries) == 40
    assert drained(replica)


def released(capacity: int, mode: PreemptionMode, **engine: Any) -> tuple[RequestRecord, Replica]:
    """r0 is released after a second and comes back at two; meanwhile r1 needs its room, or not."""
    script = Script("r0", 1.0, mode, r0=2.0, r1=1.0)
    model = EngineModel(COSTS, capacity, chunk_tokens=1000, **engine)
    replica = Replica(model, script, sink=(records := []).append)
    for s in [spec(0.0, 400, 60), spec(0.45, 500, 100)]:
        replica.submit(s)
    replica.advance()
    assert drained(replica)
    return next(r for r in records if r.index == 0), replica


def test_release_costs_one_token_while_nobody_needs_the_room() -> None:
    record, _ = released(2000, PreemptionMode.RELEASE)
    before = int(np.argmax(np.diff(record.token_times_s))) + 1
    assert record.preemptions == 1
    assert record.recomputed_tokens == 0
    assert record.prefix_hit_tokens == 400 + before - 1


def test_released_kv_that_was_evicted_is_computed_again() -> None:
    record, replica = released(960, PreemptionMode.RELEASE)
    before = int(np.argmax(np.diff(record.token_times_s))) + 1
    assert replica.cache.evicted_tokens > 0
    assert record.recomputed_tokens + record.prefix_hit_tokens == 400 + before - 1
    assert record.recomputed_tokens >= before - 1, "the leaf, which is the answer, goes first and whole"


def test_offloaded_kv_is_copied_back_instead() -> None:
    """At 1,000 tokens/s the copy of about 400 tokens is complete long before, and coming back takes as long as the copy."""
    host = {"host_capacity_tokens": 5000, "host_tokens_per_s": 1000.0}
    record, _ = released(960, PreemptionMode.OFFLOAD, **host)
    recomputed, _ = released(960, PreemptionMode.RELEASE, **host)
    assert recomputed.recomputed_tokens
    assert record.recomputed_tokens == 0
    slow, _ = released(960, PreemptionMode.OFFLOAD, host_capacity_tokens=5000, host_tokens_per_s=100.0)
    assert slow.recomputed_tokens, "the copy was not complete yet when its source was evicted"
    tiny, _ = released(960, PreemptionMode.OFFLOAD, host_capacity_tokens=10, host_tokens_per_s=1000.0)
    assert tiny.recomputed_tokens, "host memory holds less than the request"


def test_the_replica_tells_whose_kv_waits_for_its_return() -> None:
    host = {"host_capacity_tokens": 5000, "host_tokens_per_s": 1000.0, "write_through": True}
    replica = Replica(
        EngineModel(COSTS, 2000, chunk_tokens=1000, **host), Script("r0", 0.6, PreemptionMode.RELEASE, r0=2.0)
    )
    for s in [spec(0.0, 400, 60), spec(0.0, 10, 200), spec(0.3, 10, 1)]:
        replica.submit(s)
    replica.advance(0.5)
    assert not list(paused_kv(replica.waiting, replica._population))
    replica.submit(spec(0.7, 10, 3))
    replica.advance(1.5)
    ((node, dry_s),) = paused_kv(replica.waiting, replica._population)
    reader = ReaderStream(0.0, TARGET)
    for at_s in replica.by_rid["r0"].token_times_s:
        reader.deliver(float(at_s))
    assert dry_s == pytest.approx(reader.start_s + reader.end_s)
    assert node.on_device
    assert node.host_s is not None
    replica.advance()
    assert drained(replica)


def test_a_padded_prefix_costs_its_attention_again() -> None:
    def again_s(**engine: Any) -> float:
        model = EngineModel(replace(COSTS, prefill_pair_s=1e-6), 2000, chunk_tokens=1000, **engine)
        turns = [spec(0.0, 400, 1, session_id="s"), spec(5.0, 401, 1, session_id="s")]
        return run(turns, engine=model)[1].ttft_s

    assert again_s() == pytest.approx(0.02 + 1e-3 + 400.5e-6)
    assert again_s(pads_prefix=True) == pytest.approx(0.02 + 1e-3 + 0.5 * 401**2 * 1e-6)


def test_overlap_sends_late_on_a_cpu_and_joins_late_on_a_gpu() -> None:
    def times(overlap: Overlap, *specs: RequestSpec) -> list[Any]:
        return [r.token_times_s for r in run(specs, engine=EngineModel(COSTS, 2000, chunk_tokens=500, overlap=overlap))]

    alone = spec(0.0, 100, 3)
    (plain,), (gpu,), (cpu,) = (times(o, alone) for o in Overlap)
    assert gpu == pytest.approx(plain)
    steps = [step_s(1, 100 + k) for k in (2, 3, 4)]
    assert cpu == pytest.approx(0.12 + np.cumsum(steps)), "each result goes out when the next iteration has ended"
    late = spec(0.121, 50, 2)
    plain_two, gpu_two, cpu_two = (times(o, spec(0.0, 100, 9), late)[1] for o in Overlap)
    assert gpu_two[0] - plain_two[0] == pytest.approx(step_s(1, 103)), "one more step was planned already"
    assert cpu_two[0] - plain_two[0] == pytest.approx(step_s(2, 103 + 52))


def random_specs(seed: int, count: int, rate: float) -> list[RequestSpec]:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, count))
    sessions = rng.integers(0, count // 3 + 1, count)
    return [
        RequestSpec(
            float(t), int(rng.integers(10, 300)), int(rng.integers(1, 120)), QoETarget(1.0, float(rng.choice([4.0, 5.0]))),
            session_id=str(s) if s % 2 else None, max_tokens=200,
        )
        for t, s in zip(at, sessions, strict=True)
    ]  # fmt: skip


engines = pytest.mark.parametrize(
    ("policy", "options"),
    [
        (None, {}),
        (None, {"mixed": True}),
        ("andes", {}),
        ("andes", {"mixed": True, "host_capacity_tokens": 1500, "host_tokens_per_s": 3000.0, "write_through": True}),
        ("round_robin", {}),
        ("lqsf", {}),
    ],
    ids=str,
)


@engines
@pytest.mark.parametrize("overlap", list(Overlap))
def test_everybody_gets_everything_and_nothing_leaks(
    policy: str | None, options: dict[str, Any], overlap: Overlap
) -> None:
    engine = EngineModel(COSTS, 1200, max_running=12, chunk_tokens=200, overlap=overlap, **options)
    specs = random_specs(3, 60, 6.0)
    replica = Replica(engine, make(policy) if policy else None, sink=(records := []).append)
    for s in specs:
        replica.advance(s.arrival_s)
        replica.submit(s)
    replica.advance()
    records.sort(key=lambda r: r.index)
    assert [len(r.deliveries) for r in records] == [s.output_tokens for s in specs]
    assert all((np.diff(r.token_times_s) >= 0).all() and r.ttft_s > 0 for r in records)
    assert drained(replica)
    again = run(specs, make(policy) if policy else None, engine)
    assert all((a.token_times_s == b.token_times_s).all() for a, b in zip(records, again, strict=True))


class Watched:
    """fcfs that checks, at every decision, each reader it is shown against the deliveries."""

    name = "watched"

    def __init__(self) -> None:
        self.inner = make("andes")
        self.seen: list[tuple[float, str, float, float, float, float]] = []

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        for k, rid in enumerate(t.rids):
            r = t.readers
            self.seen.append((state.now_s, rid, r.delivered[k], r.end_s[k], r.lateness_s[k], t.output_tokens[k]))
        return self.inner.decide(state)


@given(st.integers(0, 100), st.sampled_from(list(Overlap)))
@settings(max_examples=5)
def test_the_policy_sees_the_readers_as_they_are(seed: int, overlap: Overlap) -> None:
    engine = EngineModel(COSTS, 1200, max_running=10, chunk_tokens=300, overlap=overlap)
    watched = Watched()
    specs = random_specs(seed, 24, 6.0)
    records = {f"r{r.index}": r for r in run(specs, watched, engine)}
    assert watched.seen
    for now_s, rid, delivered, end_s, lateness_s, output in watched.seen[:: max(1, len(watched.seen) // 200)]:
        record = records[rid]
        reader = ReaderStream(record.arrival_s, record.target)
        for at in record.token_times_s[: int(delivered)]:
            reader.deliver(float(at))
        assert delivered == output
        assert (record.token_times_s[: int(delivered)] <= now_s + 1e-9).all()
        assert (record.token_times_s[int(delivered) :] > now_s - 1e-9).all()
        assert (end_s, lateness_s) == pytest.approx((reader.end_s, reader.lateness_s), abs=1e-6)


@pytest.mark.parametrize("policy", [None, "fcfs"])
@pytest.mark.parametrize("overlap", list(Overlap))
def test_many_steps_at_once_are_the_same_as_one_by_one(policy: str | None, overlap: Overlap) -> None:
    engine = EngineModel(COSTS, 3000, max_running=12, chunk_tokens=200, overlap=overlap)
    specs = random_specs(5, 60, 2.0)
    at_once = run(specs, make(policy) if policy else None, engine)
    replica = Replica(engine, make(policy) if policy else None, sink=(records := []).append)
    for s in specs:
        replica.submit(s)
    while replica.open_requests:
        replica.advance(float(np.nextafter(replica.now_s, np.inf)))
        if not replica.running:
            replica.advance(replica.now_s + 0.001)
    for a, b in zip(at_once, sorted(records, key=lambda r: r.index), strict=True):
        assert a.token_times_s == pytest.approx(b.token_times_s)


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(
        RefusedError, match=r"prompt_tokens 1990 with output_tokens 100: more than the KV pool holds \(2000"
    ):
        run([spec(0.0, 1990, 100)])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kv_capacity_tokens": 0}, "kv_capacity_tokens must be > 0, got 0"),
        ({"host_capacity_tokens": 5}, "host_tokens_per_s must be > 0 with a host tier"),
        ({"decision_s": -1.0}, "decision_s must be >= 0"),
    ],
)
def test_an_engine_that_makes_no_sense_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EngineModel(**{"costs": COSTS, "kv_capacity_tokens": 1000, **change})


def test_costs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decode_context_s must be a number of seconds >= 0, got -1"):
        Costs(0.01, 0.0, -1.0, 0.01, 0.01)
    with pytest.raises(ValueError, match="must take some time"):
        Costs(0.0, 0.0, 0.0, 0.01, 0.01)


@pytest.mark.parametrize("policy", ["andes", "lqsf"])
def test_a_heavier_stream_is_served_before_those_that_are_otherwise_alike(policy: str) -> None:
    """One runs, four wait for its place; each of them in turn is the heavier one."""
    engine = EngineModel(COSTS, 2000, max_running=1, chunk_tokens=500)
    for heavy in range(4):
        waiting = [spec(0.1, 100, 30, weight=4.0 if k == heavy else 1.0) for k in range(4)]
        _, *records = run([spec(0.0, 100, 300), *waiting], make(policy), engine)
        assert min(records, key=lambda r: r.ttft_s).index == 1 + heavy


def test_the_policy_is_shown_what_a_request_says_of_its_reader() -> None:
    seen: list[SchedulerState] = []

    class Seeing:
        name = "seeing"

        def decide(self, state: SchedulerState) -> Decision:
            seen.append(state)
            return make("fcfs").decide(state)

    run([spec(0.0, 10, 2, weight=3.0, expected_tokens=7), spec(0.0, 10, 2), spec(0.0, 10, 2, yields=True)], Seeing())
    table = seen[0].requests
    assert table.rids == ("r0", "r1"), "readers only"
    assert table.weight.tolist() == [3.0, 1.0]
    assert table.expected_tokens[0] == 7.0
    assert table.expected_tokens[1] == pytest.approx(256)  # what is expected before any answer has ended


@pytest.mark.parametrize(("returns_s", "hit"), [(5.0, 607), (None, 0), (2.0, 0), (0.0, 0)])
def test_the_conversation_of_a_tool_that_runs_is_found_when_it_returns(returns_s: float | None, hit: int) -> None:
    """Others that end meanwhile have used their KV later; and one that does not return in time is like them."""
    others = [spec(1.0 + 0.9 * k, 400, 4) for k in range(7)]
    first, second = spec(0.0, 600, 8, session_id="a", returns_s=returns_s), spec(8.0, 650, 4, session_id="a")
    *_, last = run([first, *others, second], make("andes"))
    assert last.prefix_hit_tokens == hit


def test_a_conversation_without_a_reader_is_kept_for_no_longer_than_others() -> None:
    """What yields would else be kept before a paused stream whose reader waits."""
    others = [spec(1.0 + 0.9 * k, 400, 4) for k in range(7)]
    first = spec(0.0, 600, 8, session_id="a", returns_s=5.0, yields=True)
    *_, last = run([first, *others, spec(8.0, 650, 4, session_id="a")], make("andes"))
    assert last.prefix_hit_tokens == 0
