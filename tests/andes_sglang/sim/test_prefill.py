"""Admission: chunk, KV, slots, in the order of the queue."""

from __future__ import annotations

from typing import Any

import pytest

from andes_sglang import protocol
from andes_sglang.policy.eviction import EvictionOrder
from andes_sglang.request import RequestSpec
from andes_sglang.sim.batch import Batch
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.job_queue import JobQueue
from andes_sglang.sim.kv_pool import KvPool
from andes_sglang.sim.prefill import Admission, PrefillChunk, PrefillWork
from andes_sglang.sim.radix import sequence
from andes_sglang.sim.step_clock import StepClock
from andes_sglang.state import Phase

CLIP = 4096
COSTS = Costs(0.01, 0.0, 0.0, 0.01, 0.001)


class Engine:
    """Everything that admission needs, with nothing on it."""

    def __init__(self, kv_capacity_tokens: int = 1000, **engine: Any) -> None:
        model = EngineModel(COSTS, kv_capacity_tokens, **{"chunk_tokens": 100, **engine})
        self.clock = StepClock(sends_late=False, first_needed=int)
        self.batch = Batch(self.clock, model.max_running, leaves_late=False)
        self.queue = JobQueue()
        self.pool = KvPool(model, self.clock, EvictionOrder())
        self.admission = Admission(model, queue=self.queue, batch=self.batch, pool=self.pool, clock=self.clock)
        self.count = 0

    def job(self, prompt: int, max_tokens: int = 10, **spec: Any) -> Job:
        self.count += 1
        return Job(
            RequestSpec(0.0, prompt, max_tokens, **spec), f"r{self.count}", index=self.count, max_tokens=max_tokens,
            enters_s=0.0, root=self.pool.cache.root,
        )  # fmt: skip

    def wait(self, *jobs: Job) -> list[Job]:
        self.queue.waiting += jobs
        return list(jobs)

    def run(self, prompt: int, max_tokens: int) -> Job:
        """A request of whose KV all but one token is in the cache."""
        job = self.job(prompt, max_tokens)
        self.pool.allocate(prompt)
        self.pool.cache_prefix(job, prompt)
        self.batch.join(job)
        return job

    def form(self, clip: int = CLIP) -> list[tuple[Job, int, bool]]:
        return [(chunk.job, chunk.new, chunk.last) for chunk in self.admission.form(self.queue.waiting, clip)]


# Chunk


def test_prompts_share_a_chunk_and_the_one_that_does_not_fit_is_cut() -> None:
    engine = Engine()
    a, b, c = engine.wait(engine.job(60), engine.job(70), engine.job(5))
    assert engine.form() == [(a, 60, True), (b, 40, False)]
    assert engine.admission.chunked is b
    assert engine.queue.waiting == [c], "the chunked prompt has left the queue too"
    engine.pool.allocate(100)
    engine.pool.cache_prefix(b, 40)
    assert engine.form() == [(b, 30, True), (c, 5, True)], "what is cut goes on first"
    assert engine.admission.chunked is None


def test_a_chunk_that_is_used_up_leaves_the_others_for_the_next_one() -> None:
    engine = Engine()
    a, b = engine.wait(engine.job(100), engine.job(1))
    assert engine.form() == [(a, 100, True)]
    assert not engine.admission.batch_is_full
    assert engine.queue.waiting == [b]


def test_a_chunked_prompt_takes_the_room_there_is_and_waits_where_there_is_none() -> None:
    engine = Engine(kv_capacity_tokens=300)
    long = engine.job(250)
    engine.admission.chunked = long
    engine.pool.allocate(280)
    assert engine.form() == [(long, 20, False)]
    engine.pool.allocate(20)
    assert engine.form() == []
    assert engine.admission.chunked is long
    assert engine.admission.owed_tokens == 250


def test_what_the_running_may_still_need_does_not_stop_a_chunked_prompt() -> None:
    engine = Engine(kv_capacity_tokens=300)
    engine.run(100, 500)
    long = engine.job(250)
    engine.admission.chunked = long
    engine.admission.new_token_ratio = 1.0
    assert engine.form() == [(long, 100, False)]


@pytest.mark.parametrize(("left", "taken"), [(2, 0), (3, 0), (4, 1), (99, 96), (500, 97)])
def test_mixed_a_chunked_prompt_takes_what_the_step_of_the_batch_leaves(left: int, taken: int) -> None:
    engine = Engine(mixed=True)
    engine.admission.new_token_ratio = 0.0
    for _ in range(3):
        engine.run(1, 10)
    long = engine.job(250)
    engine.admission.chunked = long
    engine.pool.allocate(engine.pool.available_tokens() - left)
    assert engine.form() == ([(long, taken, False)] if taken else [])


def test_mixed_the_batch_takes_its_part_of_the_chunk_and_of_the_kv() -> None:
    engine = Engine(mixed=True)
    engine.admission.new_token_ratio = 0.0
    for _ in range(3):
        engine.run(1, 10)
    (a,) = engine.wait(engine.job(200))
    assert engine.form() == [(a, 97, False)]

    def fits(capacity: int) -> bool:
        full = Engine(capacity, mixed=True)
        full.admission.new_token_ratio = 0.0
        for _ in range(3):
            full.run(1, 10)
        full.wait(full.job(50))
        return bool(full.form())

    needed = 3 + 3 + 50 + 10 + protocol.PAGE_TOKENS
    assert (fits(needed), fits(needed + 1)) == (False, True)


# KV


@pytest.mark.parametrize(("max_tokens", "clip", "reserve"), [(10, CLIP, 10), (100, 16, 16), (100, CLIP, 100)])
def test_a_request_needs_its_prompt_its_clipped_answer_and_a_page_and_one_to_spare(
    max_tokens: int, clip: int, reserve: int
) -> None:
    needed = 50 + reserve + protocol.PAGE_TOKENS
    for capacity, admitted in ((needed, 0), (needed + 1, 1)):
        engine = Engine(capacity)
        engine.wait(engine.job(50, max_tokens))
        assert len(engine.form(clip)) == admitted
        assert engine.admission.batch_is_full == (not admitted)


def test_what_is_admitted_counts_for_those_after_it() -> None:
    first = 20 + 30 + protocol.PAGE_TOKENS
    second = 20 + 10 + protocol.PAGE_TOKENS
    for spare, admitted in ((0, 1), (1, 2)):
        engine = Engine(first + second + spare)
        engine.wait(engine.job(20, 30), engine.job(20, 10))
        assert len(engine.form()) == admitted


def test_what_is_cut_reserves_no_answer_yet() -> None:
    engine = Engine(1000)
    job = engine.job(150, 500)
    engine.admission.chunked = job
    (other,) = engine.wait(engine.job(1, 800))
    assert engine.form() == [(job, 100, False)]
    engine.pool.allocate(100)
    engine.pool.cache_prefix(job, 100)
    assert engine.form() == [(job, 50, True)]
    assert engine.admission.batch_is_full, f"{other.rid} does not fit beside the answer of 500"


def test_a_share_of_what_the_running_may_still_generate_is_reserved() -> None:
    def admitted(capacity: int, clip: int, steps: int = 0) -> int:
        engine = Engine(capacity)
        engine.run(100, 200)
        engine.admission.new_token_ratio = 0.5
        engine.clock.steps += steps
        engine.wait(engine.job(50, 10))
        return len(engine.form(clip))

    needed = 100 + 50 + 10 + protocol.PAGE_TOKENS + 1
    assert [admitted(needed + more, CLIP) for more in (99, 100)] == [0, 1]
    assert [admitted(needed + more, 20) for more in (9, 10)] == [0, 1]
    assert [admitted(needed + more, CLIP, steps=150) for more in (24, 25)] == [0, 1]


def test_no_request_passes_one_that_does_not_fit() -> None:
    engine = Engine(200)
    engine.wait(engine.job(10, 300), engine.job(1, 1))
    assert engine.form() == []
    assert engine.admission.batch_is_full
    engine.queue.waiting.pop(0)
    assert engine.form() == [], "nothing has been freed since"
    engine.admission.batch_is_full = False
    assert len(engine.form()) == 1


def test_a_chunked_prompt_goes_on_although_the_batch_is_full_and_no_other_joins() -> None:
    engine = Engine()
    engine.admission.chunked = engine.job(30)
    engine.admission.batch_is_full = True
    engine.wait(engine.job(1))
    assert len(engine.form()) == 1
    assert engine.admission.batch_is_full


def test_without_any_kv_left_no_request_is_looked_at() -> None:
    engine = Engine(100)
    engine.pool.allocate(100)
    engine.wait(engine.job(1))
    assert engine.form() == []
    assert not engine.admission.batch_is_full


# Slots


def test_running_parked_and_chunked_requests_take_slots() -> None:
    for chunked in (False, True):
        engine = Engine(10_000, max_running=5)
        engine.run(1, 10)
        parked = engine.run(1, 10)
        engine.batch.leave(parked)
        parked.phase = Phase.PARKED
        engine.batch.parked[parked] = -1
        if chunked:
            engine.admission.chunked = engine.job(10)
        engine.wait(*(engine.job(1) for _ in range(6)))
        assert engine.admission.free_slots() == 3 - chunked
        assert len(engine.form()) == 3, "the chunked one, and as many as there are slots"
        assert engine.admission.batch_is_full


def test_without_a_slot_nothing_begins_but_a_chunked_prompt_goes_on() -> None:
    engine = Engine(max_running=1)
    engine.run(1, 10)
    engine.wait(engine.job(1))
    assert engine.form() == []
    assert engine.admission.batch_is_full
    engine = Engine(max_running=1)
    engine.admission.chunked = job = engine.job(30)
    engine.wait(engine.job(1))
    assert engine.form() == [(job, 30, True)]


# Prefixes


def test_a_cached_prefix_is_locked_and_not_computed_again() -> None:
    engine = Engine()
    engine.pool.allocate(40)
    engine.pool.uncached_tokens -= 40
    node, _ = engine.pool.cache.insert(sequence("session s", 40))
    (job,) = engine.wait(engine.job(50, session_id="s"))
    job.resuming_tokens = 7
    (chunk,) = engine.admission.form(engine.queue.waiting, CLIP)
    assert chunk == PrefillChunk(job, 10, 40, 0, True)
    assert (job.cache_node, job.protected_tokens, job.prefix_hit_tokens, job.resuming_tokens) == (node, 40, 40, 0)
    assert engine.pool.cache.evictable == 0


def test_a_whole_prompt_in_the_cache_is_computed_but_for_all_but_one_token() -> None:
    engine = Engine()
    engine.pool.cache.insert(sequence("session s", 50))
    engine.wait(engine.job(50, session_id="s"))
    assert [chunk[1:] for chunk in engine.admission.form(engine.queue.waiting, CLIP)] == [(1, 49, 0, True)]


def test_a_prefix_that_is_no_longer_evictable_once_locked_can_leave_too_little_room() -> None:
    engine = Engine(100)
    engine.pool.cache.insert(sequence("session s", 80))
    (job,) = engine.wait(engine.job(85, 20, session_id="s"))
    assert engine.pool.available_tokens() == 100
    assert engine.form() == []
    assert engine.admission.batch_is_full
    assert engine.pool.cache.evictable == 80, "the lock was given back"
    assert job.prefix_hit_tokens == 0


def test_what_is_in_host_memory_is_loaded_and_not_computed() -> None:
    engine = Engine(host_capacity_tokens=1000, host_tokens_per_s=1e9)
    cache = engine.pool.cache
    upper, lower = (cache.insert(sequence("session s", tokens))[0] for tokens in (30, 40))
    cache.back_up(upper, 0.0)
    cache.back_up(lower, 0.0)
    cache.evict(10)
    (job,) = engine.wait(engine.job(50, session_id="s"))
    (chunk,) = engine.admission.form(engine.queue.waiting, CLIP)
    assert chunk == PrefillChunk(job, 10, 40, 10, True)
    assert (job.prefix_hit_tokens, job.protected_tokens) == (40, 30)


# What a prefill computes


def test_pairs_are_those_of_new_tokens_with_what_is_before_them_or_of_the_padded_prompt() -> None:
    job = Engine().job(10)
    chunks = [PrefillChunk(job, 10, 100, 30, True), PrefillChunk(job, 20, 0, 0, False)]
    assert PrefillWork.of(chunks, pads_prefix=False) == (30, 100, 30, 10 * 105.0 + 20 * 10.0, 2)
    assert PrefillWork.of(chunks, pads_prefix=True) == (30, 100, 30, 0.5 * 110**2 + 0.5 * 20**2, 2)


def test_candidates_of_a_policy_go_before_the_rest_and_stay_so() -> None:
    engine = Engine()
    a, b, c, d = engine.wait(*(engine.job(60) for _ in range(4)))
    chunks = engine.admission.form([c, d, b], 16)
    assert [chunk.job for chunk in chunks] == [c, d]
    assert engine.queue.waiting == [b, a]
