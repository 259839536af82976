"""Streams without a reader run on what those with one leave over, whatever the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from andes_sglang.conformance import FAST, surge
from andes_sglang.latency import LatencyModel
from andes_sglang.policy import POLICIES, make
from andes_sglang.policy.yielding import GROWTH_TOKENS, PACE_SHARE, decide_readers_first
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.replica import Replica, simulate
from andes_sglang.state import Decision, Phase, Preemption, PreemptionMode, RequestTable, RequestView, SchedulerState

NOW_S = 100.0


def view(
    rid: str, phase: Phase, *, prompt: int = 400, unread_s: float = 30.0, tds: float = 4.0, **more: Any
) -> RequestView:
    """unread_s: what its reader has left to read; of one that waits, nothing was delivered."""
    arrival_s = more.pop("arrival_s", NOW_S - 20.0)
    reader, output = ReaderStream(arrival_s, QoETarget(1.0, tds)), 0
    if phase is not Phase.WAITING:
        output = int(tds * (NOW_S - arrival_s - 1.0 + unread_s))
        reader.deliver(arrival_s + 1.0, output)
    held = 0 if phase is Phase.WAITING else prompt + output
    return RequestView(rid, phase, arrival_s, reader, prompt, output, held, **more)


def decide(*views: RequestView, policy: str = "andes", kv: int = 100_000, batch: int = 64, **state: Any) -> Decision:
    table = RequestTable.of(views)
    return decide_readers_first(make(policy), SchedulerState(NOW_S, table, kv, batch, LatencyModel(), **state))


def preempted(decision: Decision) -> list[tuple[str, PreemptionMode]]:
    assert all(p.reason == "yield" for p in decision.preempt)
    return [(p.rid, p.mode) for p in decision.preempt]


OFFLINE = [view(f"off{k}", Phase.RUNNING, arrival_s=NOW_S - 50.0 + k, yields=True) for k in range(3)]


def test_all_are_parked_while_a_reader_waits_for_a_first_token() -> None:
    decision = decide(view("new", Phase.WAITING), *OFFLINE)
    assert decision.admit == ("new",)
    assert sorted(preempted(decision)) == [(f"off{k}", PreemptionMode.PARK) for k in range(3)]


def test_none_is_admitted_or_resumed_while_a_reader_is_parked_or_in_a_prefill() -> None:
    waiting, parked = view("w", Phase.WAITING, yields=True), view("p", Phase.PARKED, yields=True)
    reader = view("reader", Phase.RUNNING)
    assert decide(reader, waiting, parked) == Decision(admit=("w",), resume=("p",))
    assert decide(reader, waiting, parked, running_reserved=1) == Decision()
    assert decide(reader, waiting, parked, running_reserved=1, yielding_reserved=1).resume == ("p",)
    full = decide(view("a", Phase.RUNNING), view("b", Phase.PARKED), waiting, parked, batch=1)
    assert (full.admit, full.resume) == ((), ())


def test_the_last_to_arrive_gives_up_its_kv_first_and_no_more_than_readers_need() -> None:
    held = int(sum(v.kv_tokens for v in OFFLINE))
    decision = decide(view("new", Phase.WAITING, prompt=500), *OFFLINE, kv=held + 100)
    assert preempted(decision)[0] == ("off2", PreemptionMode.RELEASE)
    assert [mode for _, mode in preempted(decision)].count(PreemptionMode.RELEASE) == 1
    decision = decide(view("new", Phase.WAITING, prompt=held), *OFFLINE, kv=held + 100)
    assert {mode for _, mode in preempted(decision)} == {PreemptionMode.RELEASE}


def test_one_that_does_not_survive_a_preemption_is_left_alone() -> None:
    fixed = replace(OFFLINE[0], preemptible=False)
    assert preempted(decide(view("new", Phase.WAITING), fixed, OFFLINE[1])) == [("off1", PreemptionMode.PARK)]


def test_a_reader_finds_the_page_that_sglang_wants_free_for_it() -> None:
    """Short of it by less than a page, it would wait until those that run have grown so far."""
    held = int(sum(v.kv_tokens for v in OFFLINE))
    reader, free = view("new", Phase.WAITING, prompt=500), 500 + 16 + 32
    assert {mode for _, mode in preempted(decide(reader, *OFFLINE, kv=held + free))} == {PreemptionMode.PARK}
    paged = preempted(decide(reader, *OFFLINE, kv=held + free, page_tokens=64))
    assert paged[0] == ("off2", PreemptionMode.RELEASE)


def test_a_policy_may_name_what_is_no_longer_there() -> None:
    """Engines pass over such names, and so does what is decided beside them."""

    class Forgetful:
        name = "forgetful"

        def decide(self, _state: SchedulerState) -> Decision:
            return Decision(("gone", "new"), ("gone",), (Preemption("gone", PreemptionMode.RELEASE, "old"),))

    table = RequestTable.of([view("new", Phase.WAITING), *OFFLINE])
    decision = decide_readers_first(Forgetful(), SchedulerState(NOW_S, table, 100_000, 64, LatencyModel()))
    assert decision.admit == ("gone", "new")
    assert {p.rid for p in decision.preempt} == {"gone", "off0", "off1", "off2"}


def test_a_slice_is_not_owed_to_it() -> None:
    """The same stream with a reader would run on: it has had none of its slice."""
    new, just_started = view("new", Phase.WAITING), replace(OFFLINE[0], slice_tokens=0)
    assert preempted(decide(new, just_started, batch=1)) == [("off0", PreemptionMode.PARK)]
    assert decide(new, replace(just_started, yields=False), batch=1) == Decision()


def test_the_batch_stays_fast_enough_for_the_fastest_reader() -> None:
    latency = LatencyModel()
    for batch in (1, 20, 40):
        latency.observe_decode(batch, 400 * batch, 0.005 + 0.001 * batch)
    queue = [view(f"w{k:02}", Phase.WAITING, arrival_s=NOW_S - 50 + k, yields=True, prompt=10) for k in range(40)]
    for tds, least, most in ((4.0, 40, 40), (30.0, 8, 14), (200.0, 0, 0)):
        table = RequestTable.of([view("reader", Phase.RUNNING, tds=tds), *queue])
        decision = decide_readers_first(make("fcfs"), SchedulerState(NOW_S, table, 100_000, 64, latency))
        assert least <= len(decision.admit) <= most, tds
        assert decision.admit == tuple(f"w{k:02}" for k in range(len(decision.admit))), "in order of arrival"
        slowest_s = latency.decode_s(1 + len(decision.admit), 4000)
        assert not decision.admit or slowest_s <= PACE_SHARE / tds * 1.2


def test_a_pool_of_which_nothing_is_left_is_full() -> None:
    """A half computed prompt may still take what others, or their pages, have taken meanwhile."""
    held = {"kv": 1000, "kv_reserved_tokens": 1000, "running_reserved": 1, "yielding_reserved": 1}
    decision = decide(view("reader", Phase.RUNNING), view("w", Phase.WAITING, yields=True), **held)
    assert decision.admit == ()


def test_a_prefill_is_no_longer_than_what_readers_have_unread() -> None:
    latency = LatencyModel()
    for tokens in (100, 1000, 4000):
        latency.observe_prefill(tokens, 0, 0.001 * tokens)
    queue = [
        view("short", Phase.WAITING, prompt=1000, yields=True),
        view("long", Phase.WAITING, prompt=4000, yields=True),
    ]
    for unread_s, admitted in ((0.5, ()), (2.0, ("short",)), (20.0, ("short", "long"))):
        table = RequestTable.of([view("reader", Phase.RUNNING, unread_s=unread_s), *queue])
        decision = decide_readers_first(make("andes"), SchedulerState(NOW_S, table, 100_000, 64, latency))
        assert decision.admit == admitted
    alone = SchedulerState(NOW_S, RequestTable.of(queue), 100_000, 64, latency)
    assert decide_readers_first(make("andes"), alone).admit == ("short", "long")


def test_readers_of_a_surge_hardly_notice_offline_work_that_takes_the_rest() -> None:
    """Simulated. As a stream with a patient reader the same work costs them a good part of their QoE."""
    engine, readers = EngineModel(FAST, 4096, mixed=True), surge(3)
    patient = QoETarget(3600.0, 1.0)

    def run(*, yields: bool) -> tuple[float, int]:
        work = [RequestSpec(0.01 * k, 200, 120, patient, yields=yields) for k in range(150)]
        specs = sorted([*readers, *work], key=lambda spec: spec.arrival_s)
        records = sorted(simulate(engine, make("fcfs"), specs), key=lambda record: record.index)
        is_reader = [spec.target != patient for spec in specs]
        qoe = [r.qoe for r, reader in zip(records, is_reader, strict=True) if reader]
        done = sum(
            int((r.token_times_s <= 60.0).sum()) for r, reader in zip(records, is_reader, strict=True) if not reader
        )
        return float(np.mean(qoe)), done

    alone = float(np.mean([r.qoe for r in simulate(engine, make("fcfs"), readers)]))
    (beside, done), (against, _) = run(yields=True), run(yields=False)
    assert beside >= alone - 0.03
    assert against < alone - 0.1
    assert done > 3000, "offline tokens within the surge"


# Readers who cannot receive


def slow(rid: str, phase: Phase, *, unreceived_s: float, **more: Any) -> RequestView:
    return view(rid, phase, unreceived_tokens=int(unreceived_s * 4.0), **more)


def stops(decision: Decision) -> list[tuple[str, PreemptionMode, str]]:
    return [(p.rid, p.mode, p.reason) for p in decision.preempt]


@pytest.mark.parametrize("policy", [*POLICIES])
def test_who_cannot_receive_is_parked_and_goes_on_when_most_has_come(policy: str) -> None:
    reader, full = view("reader", Phase.RUNNING), slow("full", Phase.RUNNING, unreceived_s=4.5)
    assert stops(decide(reader, full, policy=policy)) == [("full", PreemptionMode.PARK, "reader")]
    assert stops(decide(reader, slow("full", Phase.RUNNING, unreceived_s=3.5), policy=policy)) == []
    assert decide(slow("full", Phase.PARKED, unreceived_s=2.5), policy=policy) == Decision()
    assert decide(slow("full", Phase.WAITING, unreceived_s=2.5), policy=policy) == Decision()
    assert decide(slow("full", Phase.PARKED, unreceived_s=1.5), policy=policy).resume == ("full",)
    assert decide(slow("full", Phase.WAITING, unreceived_s=1.5), policy=policy).admit == ("full",)


def test_one_that_cannot_be_stopped_runs_on() -> None:
    assert decide(slow("full", Phase.RUNNING, unreceived_s=9.0, preemptible=False)) == Decision()


def test_who_cannot_receive_keeps_its_kv_where_what_has_no_reader_gives_up_enough() -> None:
    parked, offline = slow("slow", Phase.PARKED, unreceived_s=5.0), view("off", Phase.PARKED, yields=True)
    decision = decide(view("new", Phase.WAITING), parked, offline, kv=parked.kv_tokens + offline.kv_tokens + 200)
    assert decision.admit == ("new",)
    assert stops(decision) == [("off", PreemptionMode.RELEASE, "yield")]


def test_where_kv_is_short_who_cannot_receive_is_the_policys() -> None:
    """A pause would keep KV that others wait for."""
    views = [view("reader", Phase.RUNNING), slow("full", Phase.RUNNING, unreceived_s=9.0), view("new", Phase.WAITING)]
    wanted_tokens = int(RequestTable.of(views).context_tokens.sum() + (GROWTH_TOKENS + 1) * len(views))
    assert ("full", PreemptionMode.PARK, "reader") in stops(decide(*views, kv=wanted_tokens))
    assert "reader" not in [reason for _, _, reason in stops(decide(*views, kv=wanted_tokens - 1))]
    offline = view("off", Phase.WAITING, yields=True)
    assert ("full", PreemptionMode.PARK, "reader") in stops(decide(*views, offline, kv=wanted_tokens))


@pytest.mark.parametrize("lags", ["a", "b"])
def test_the_reader_who_lags_is_the_one_to_be_displaced(lags: str) -> None:
    """Of two who have as much to read the one whose link takes it slowly has enough for longer."""
    running = [
        view(rid, Phase.RUNNING, unread_s=4.0, slice_tokens=500, unreceived_tokens=14 * (rid == lags)) for rid in "ab"
    ]
    decision = decide(*running, view("new", Phase.WAITING), batch=2)
    assert stops(decision) == [(lags, PreemptionMode.PARK, "displaced")]


def test_others_are_served_as_if_who_cannot_receive_were_not_there() -> None:
    others = [view("a", Phase.RUNNING, unread_s=0.5), view("b", Phase.WAITING), view("c", Phase.PARKED, unread_s=0.2)]
    beside = decide(*others, slow("full", Phase.RUNNING, unreceived_s=9.0))
    alone = decide(*others)
    assert (beside.admit, beside.resume) == (alone.admit, alone.resume)
    assert stops(beside) == [*stops(alone), ("full", PreemptionMode.PARK, "reader")]


def test_offline_work_fills_what_a_slow_reader_leaves() -> None:
    offline = view("off", Phase.WAITING, yields=True)
    assert decide(view("reader", Phase.RUNNING), slow("full", Phase.PARKED, unreceived_s=9.0), offline).admit == (
        "off",
    )


def replica(policy: str = "andes", **engine: Any) -> tuple[Replica, list[RequestRecord]]:
    records: list[RequestRecord] = []
    return Replica(
        EngineModel(FAST, **{"kv_capacity_tokens": 4000, **engine}), make(policy), sink=records.append
    ), records


def test_a_replica_waits_for_a_reader_without_standing_still_for_others() -> None:
    """The reader takes one token a second of the five that it wants; the engine is not to blame, and is there for others."""
    engine, records = replica()
    slow_job = engine.submit(RequestSpec(0.0, 100, 300, QoETarget(1.0, 5.0)))
    for second in range(1, 310):
        engine.advance(float(second))
        engine.hear(slow_job, second)
        if second > 150:
            assert engine.generated(slow_job) <= second + 4.0 * 5.0 + 10, "it is not far ahead of its reader"
        if second == 10:
            assert engine.waits_for_readers
            engine.submit(RequestSpec(10.0, 100, 30, QoETarget(1.0, 5.0)))
    assert [record.output_tokens for record in records] == [30, 300]
    assert records[0].qoe == pytest.approx(1.0)
    assert records[0].ttft_s < 1.0
    assert records[1].qoe > 0.95
    assert records[1].preemptions is not None
    assert records[1].preemptions >= 2
    assert replace(records[1], holds=None).qoe < 0.8, "but for the time in which it could not receive"


def test_who_waits_for_its_reader_is_in_no_ones_way_and_an_abort_ends_its_wait() -> None:
    engine, records = replica(kv_capacity_tokens=2200)
    job = engine.submit(RequestSpec(0.0, 900, 200, QoETarget(1.0, 5.0)))
    engine.advance(1.0)
    engine.hear(job, 0)
    engine.advance(3.0)
    assert list(engine.parked) == [job]
    engine.submit(RequestSpec(3.0, 900, 100, QoETarget(1.0, 5.0)))
    engine.advance(30.0)
    assert [record.output_tokens for record in records] == [100]
    assert list(engine.parked) == [job]
    engine.abort(job)
    engine.advance()
    assert engine.open_requests == 0
    engine, records = replica()
    job = engine.submit(RequestSpec(0.0, 100, 50))
    engine.advance(1.0)
    engine.hear(job, 0)
    engine.advance(3.0)
    engine.hear(job, None)
    engine.advance()
    assert [record.output_tokens for record in records] == [50]


@pytest.mark.parametrize("policy", [*POLICIES])
def test_whose_kv_a_newcomer_needs_is_not_in_its_way(policy: str) -> None:
    """Under no policy does what is parked for its reader keep one out that fits the engine only without it."""
    engine, records = replica(policy, kv_capacity_tokens=1200)
    job = engine.submit(RequestSpec(0.0, 700, 200, QoETarget(1.0, 5.0)))
    engine.advance(1.0)
    engine.hear(job, 0)
    engine.advance(3.0)
    assert list(engine.parked) == [job]
    engine.submit(RequestSpec(3.0, 900, 100, QoETarget(1.0, 5.0)))
    engine.advance(60.0)
    assert 100 in [record.output_tokens for record in records]
    if engine.open_requests:
        engine.hear(job, None)
        engine.advance()
    assert sorted(record.output_tokens for record in records) == [100, 200]
