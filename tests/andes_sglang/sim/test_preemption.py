"""How requests leave the batch and come back: on a replica, called as its loop calls it."""

from __future__ import annotations

from typing import Any

import pytest

from andes_sglang import protocol
from andes_sglang.metrics import EngineMetrics
from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.job import Job
from andes_sglang.sim.preemption import paused_kv
from andes_sglang.sim.replica import Replica
from andes_sglang.state import Phase

COSTS = Costs(0.01, 0.002, 1e-5, 0.02, 1e-3)


class Counted(EngineMetrics):
    """What the replica tells of."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def retraction(self) -> None:
        self.told.append(("retraction",))

    def resume(self, mode: str, recomputed_tokens: int) -> None:
        self.told.append(("resume", mode, recomputed_tokens))


def running(
    policy: str | None, *lengths: tuple[int, int], **engine: Any
) -> tuple[Replica, list[Job], list[RequestRecord]]:
    """A replica on which requests of these prompt and output lengths run, one joined after the other, and their records."""
    records: list[RequestRecord] = []
    model = EngineModel(COSTS, **{"kv_capacity_tokens": 10_000, "chunk_tokens": 1000, **engine})
    replica = Replica(model, make(policy) if policy else None, sink=records.append, metrics=Counted())
    jobs = []
    for k, (prompt, output) in enumerate(lengths):
        jobs.append(replica.submit(RequestSpec(0.01 * k, prompt, output, QoETarget(1.0, 5.0))))
        while jobs[-1].phase is not Phase.RUNNING or replica.generated(jobs[-1]) < 2:
            replica.advance(replica.now_s + 1e-9)
    return replica, jobs, records


def fill(replica: Replica, left: int) -> None:
    """Take the pool up to the last ``left`` tokens."""
    replica._pool.uncached_tokens += replica._pool.available_tokens() - left


# Without a policy


def test_stock_retracts_the_shortest_answer_and_of_equals_the_longest_prompt() -> None:
    replica, (old, young, long), _ = running(None, (100, 500), (100, 500), (300, 500))
    long.generated += replica._batch.generated(young) - replica._batch.generated(long)
    fill(replica, 0)
    replica._retract()
    assert list(replica.running) == [old, young], "their prompt of 300 makes room for 20 steps of two"
    assert [(j.phase, j.stopped, j.retractions, j.preemptions) for j in (long, young)] == [
        (Phase.WAITING, "retracted", 1, 0), (Phase.RUNNING, None, 0, 0),
    ]  # fmt: skip
    assert replica.waiting == [long]


def test_stock_drops_the_kv_and_keeps_what_was_cached() -> None:
    replica, (_, job), _ = running(None, (100, 500), (200, 500))
    held, cached = replica.kv_used_tokens, replica.cache.tokens
    before = replica._batch.generated(job)
    replica._pool.uncached_tokens += replica._pool.available_tokens()
    replica._retract()
    assert (job.generated, job.uncached_tokens) == (before, 0)
    assert replica.kv_used_tokens < held + replica._pool.capacity_tokens
    assert cached - replica.cache.tokens in (0, 200), "its prompt is evicted where the steps need its room"


@pytest.mark.parametrize(("steps_left", "retracted"), [(2, 1), (1, 2)])
def test_stock_goes_on_until_a_step_fits(steps_left: int, retracted: int) -> None:
    """Three run, each with one token beside the cache that a retraction frees; prompts are locked by a fourth holder."""
    replica, jobs, _ = running(None, (50, 500), (50, 500), (50, 500))
    for job in jobs:
        replica.cache.lock(job.cache_node)
    generated = min(jobs, key=replica._batch.generated)
    fill(replica, steps_left - replica._batch.generated(generated) + 1)
    replica._retract()
    assert len(replica.waiting) == retracted
    assert replica.metrics.told == [("retraction",)] * retracted  # type: ignore[attr-defined]


def test_stock_never_retracts_the_last_one_and_learns_the_ratio_from_those_that_stay() -> None:
    replica, (old, young), _ = running(None, (100, 500), (100, 500))
    replica.cache.lock(young.cache_node)
    fill(replica, -1000)
    replica._admission.batch_is_full = True
    replica._retract()
    assert list(replica.running) == [old]
    generated = replica._batch.generated(old)
    assert replica._admission.new_token_ratio == pytest.approx((generated + protocol.SGLANG_RETRACT_DECODE_STEPS) / 501)
    assert not replica._admission.batch_is_full
    replica._retract()
    assert list(replica.running) == [old]


# Under a policy


def test_under_a_policy_the_youngest_goes_and_its_kv_stays_in_the_cache() -> None:
    replica, (old, young), _ = running("fcfs", (100, 500), (100, 500))
    fill(replica, 1)
    replica._retract()
    assert list(replica.running) == [old]
    assert (young.stopped, young.retractions, young.preemptions) == ("retracted", 1, 0)
    found = replica.cache.match(young.runs(young.context_tokens), young.context_tokens - 1)
    assert found.tokens == young.context_tokens - 1
    slot = replica._population._columns[:, young.slot]
    assert slot[10] == young.context_tokens - 1, "the policy is shown as much in the cache"


def test_under_a_policy_the_parked_go_first_and_the_last_one_running_stays() -> None:
    replica, (old, young, youngest), _ = running("fcfs", (100, 500), (100, 500), (100, 500))
    replica._preemptor.park(old)
    fill(replica, 1)
    replica._retract()
    assert (list(replica.running), list(replica.parked), replica.waiting) == ([young, youngest], [], [old])
    fill(replica, 1)
    replica._retract()
    assert (list(replica.running), replica.waiting) == ([young], [old, youngest])
    replica.cache.lock(young.cache_node)
    fill(replica, 0)
    replica._retract()
    assert list(replica.running) == [young]


@pytest.mark.parametrize("yields", [True, False])
def test_a_prompt_without_a_reader_gives_up_its_chunks_before_a_reader_leaves(yields: bool) -> None:
    replica, (reader,), records = running("fcfs", (100, 50), chunk_tokens=100)
    prompt = replica.submit(RequestSpec(replica.now_s, 1000, 5, QoETarget(1.0, 5.0), yields=yields))
    while replica._admission.chunked is not prompt:
        replica.advance(replica.now_s + 1e-9)
    computed, taken = prompt.protected_tokens, replica._pool.available_tokens()
    fill(replica, 0)
    replica._retract()
    leaves, stays = (prompt, reader) if yields else (reader, prompt)
    assert (leaves.stopped, leaves.retractions, replica.waiting) == ("retracted", 1, [leaves])
    assert (stays.stopped, stays.retractions) == (None, 0)
    if yields:
        assert (replica._admission.chunked, prompt.protected_tokens) == (None, 0)
        assert replica._population._columns[10, prompt.slot] == computed, "the policy is shown what is in the cache"
    replica._pool.uncached_tokens -= taken
    replica.advance()
    assert sorted(record.output_tokens for record in records) == [5, 50]
    assert replica.kv_used_tokens == 0


def test_those_that_have_generated_everything_finish_before_anything_is_retracted() -> None:
    replica, (_, done), records = running("fcfs", (100, 500), (100, 3), overlap=Overlap.ASYNC)
    assert replica._batch.generated(done) == 2
    while replica._batch.generated(done) < 3:
        replica.advance(replica.now_s + 1e-9)
    fill(replica, 1)
    replica._retract()
    assert [len(record.deliveries) for record in records] == [3]
    assert done.retractions == 0


# Park, release, offload


def test_park_keeps_kv_and_slot_and_resume_goes_on_where_it_was() -> None:
    replica, (job, other), _ = running("fcfs", (100, 50), (100, 50))
    used, generated = replica.kv_used_tokens, replica._batch.generated(job)
    replica._preemptor.park(job)
    assert (list(replica.running), list(replica.parked), replica.kv_used_tokens) == ([other], [job], used)
    assert (job.phase, job.stopped, job.preemptions, job.generated) == (Phase.PARKED, "park", 1, generated)
    replica._preemptor.resume([job])
    assert (set(replica.running), list(replica.parked), job.phase) == ({job, other}, [], Phase.RUNNING)
    assert replica.metrics.told == [("resume", "park", 0)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("host", "offload", "mode"), [(0, True, "release"), (5000, True, "offload"), (5000, False, "release")]
)
def test_release_puts_the_kv_into_the_cache_and_an_offload_is_one_only_with_a_copy(
    host: int, offload: bool, mode: str
) -> None:
    replica, (job, _), _ = running("fcfs", (100, 50), (100, 50), host_capacity_tokens=host, host_tokens_per_s=1e6)
    used = replica.kv_used_tokens
    assert replica._preemptor.release(job, offload=offload) == mode
    assert (job.phase, job.stopped, job.preemptions, job.retractions) == (Phase.WAITING, mode, 1, 0)
    assert replica.waiting == [job]
    assert replica.kv_used_tokens <= used - 100
    assert replica.cache.match(job.runs(job.context_tokens), 10**6).tokens == job.context_tokens - 1


def test_a_parked_request_can_be_released() -> None:
    replica, (job, _), _ = running("fcfs", (100, 50), (100, 50))
    replica._preemptor.park(job)
    replica._preemptor.release(job)
    assert (list(replica.parked), replica.waiting, job.preemptions) == ([], [job], 2)
    shown = replica._seam.state().requests  # type: ignore[union-attr]
    row = shown.rids.index(job.rid)
    assert job.generated > 1
    assert (shown.output_tokens[row], shown.readers.delivered[row]) == (job.generated, job.generated)
    assert shown.context_tokens[row] == job.context_tokens


def test_settling_sends_what_is_in_flight_now() -> None:
    replica, (job, _), _ = running("fcfs", (100, 50), (100, 50), overlap=Overlap.SYNC)
    sent = replica.generated(job)
    replica._preemptor.settle()
    assert replica.generated(job) == sent + 1
    readers = replica._seam.state().requests.readers  # type: ignore[union-attr]
    assert readers.delivered[0] == sent + 1
    assert job.phase is Phase.RUNNING


def test_the_kv_of_those_that_are_to_come_back_is_named_with_the_time_their_readers_run_dry() -> None:
    replica, (job, _), _ = running("fcfs", (100, 50), (100, 50))
    assert list(paused_kv(replica.waiting, replica._population)) == []
    replica.submit(RequestSpec(replica.now_s, 10, 10))
    replica._preemptor.settle()
    replica._preemptor.release(job)
    ((node, dry_s),) = paused_kv(replica.waiting, replica._population)
    read_s = [1.0 + k / 5.0 for k in range(job.generated)]
    assert (node, dry_s) == (job.kept_node, pytest.approx(read_s[-1] + 1 / 5.0))


@pytest.mark.parametrize("yields", [True, False])
def test_what_has_no_reader_teaches_nothing_of_those_with_one(yields: bool) -> None:
    """Neither how long their answers are, nor that copies in host memory are lost: its own are the first to go."""
    replica, _, _ = running("andes", host_capacity_tokens=10_000, host_tokens_per_s=1e5)
    for k in range(40):
        job = replica.submit(RequestSpec(replica.now_s, 100, 30, QoETarget(1.0, 5.0), yields=yields))
        while job.phase is not Phase.RUNNING:
            replica.advance(replica.now_s + 1e-9)
        if k % 10 == 0:
            replica._preemptor.release(job)
            job.stopped, job.kept_node = "offload", replica.cache.root
            replica.cache.evict(replica.cache.evictable)
        replica.advance()
    new = replica.submit(RequestSpec(replica.now_s, 100, 30, QoETarget(1.0, 5.0)))
    replica.advance(replica.now_s + 1e-9)
    expected_tokens = replica._population._columns[19, new.slot]
    assert (expected_tokens < 100) is not yields
    assert (replica.latency.kept_share < 1.0) is not yields
