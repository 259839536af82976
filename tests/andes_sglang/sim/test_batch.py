"""The decode batch and the KV pool: what joining, leaving and giving up do to the sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from andes_sglang.kv_codecs.prices import CodecPrice
from andes_sglang.policy.eviction import EvictionOrder
from andes_sglang.request import RequestSpec
from andes_sglang.sim.batch import Batch
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.kv_pool import KvPool
from andes_sglang.sim.radix import RadixCache, sequence
from andes_sglang.sim.step_clock import StepClock
from andes_sglang.state import Phase

COSTS = Costs(0.01, 0.0, 0.0, 0.01, 0.001)


def clock() -> StepClock:
    return StepClock(sends_late=False, first_needed=int)


def job(index: int, prompt: int, output: int, max_tokens: int | None = None, *, cache: RadixCache | None = None) -> Job:
    """As after its prefill: its first token is there."""
    made = Job(
        RequestSpec(0.0, prompt, output),
        f"r{index}",
        index=index,
        max_tokens=max_tokens or output,
        enters_s=0.0,
        root=(cache or RadixCache()).root,
    )
    made.generated, made.slot, made.times_s = 1, index, [np.array([0.5])]
    return made


def steps(clock: StepClock, batch: Batch, count: int) -> None:
    batch.context_tokens += count * len(batch.running)
    clock.run_steps(clock.now_s + np.arange(1.0, count + 1))


def test_a_request_has_a_token_a_step_from_its_joining_to_its_leaving() -> None:
    time = clock()
    batch = Batch(time, 10, leaves_late=False)
    steps(time, batch, 2)
    one = job(1, 100, 8)
    batch.join(one)
    assert (one.phase, batch.context_tokens) == (Phase.RUNNING, 101)
    steps(time, batch, 3)
    assert (batch.generated(one), one.generated, batch.context_tokens) == (4, 1, 104)
    batch.leave(one)
    assert (one.generated, one.uncached_tokens, batch.context_tokens, len(batch.running)) == (4, 3, 0, 0)
    assert one.token_times_s.tolist() == [0.5, 3.0, 4.0, 5.0]


def test_leaving_late_it_has_no_token_beyond_its_answer_but_its_kv() -> None:
    time = clock()
    batch = Batch(time, 10, leaves_late=True)
    one = job(1, 100, 3)
    batch.join(one)
    steps(time, batch, 2)
    assert list(batch.pop_completed()) == []
    steps(time, batch, 1)
    assert list(batch.pop_completed()) == [one]
    assert batch.generated(one) == 4
    batch.leave(one)
    assert (one.generated, one.uncached_tokens, one.token_times_s.tolist()) == (3, 3, [0.5, 1.0, 2.0])


def test_those_that_have_generated_everything_are_told_in_order_and_once() -> None:
    time = clock()
    batch = Batch(time, 10, leaves_late=False)
    requests = {k: job(k, 10, output) for k, output in ((1, 4), (2, 3), (3, 4), (4, 9))}
    for one in requests.values():
        batch.join(one)
    assert batch.next_leave() == 2
    batch.leave(requests[2])
    assert batch.next_leave() == 3, "one that has left is not waited for"
    steps(time, batch, 2)
    assert list(batch.pop_completed()) == []
    steps(time, batch, 1)
    assert list(batch.pop_completed()) == [requests[1], requests[3]]
    assert list(batch.pop_completed()) == []


@pytest.mark.parametrize("leaves_late", [False, True])
def test_a_policy_is_not_shown_those_that_leave_after_this_step(leaves_late: bool) -> None:
    time = clock()
    batch = Batch(time, 10, leaves_late=leaves_late)
    for index, output in ((1, 2), (2, 9), (3, 2)):
        batch.join(job(index, 10, output))
    assert batch.continuing_slots() == [1, 2, 3]
    steps(time, batch, 1)
    assert batch.continuing_slots() == ([2] if leaves_late else [1, 2, 3])


def test_what_may_still_be_generated_falls_by_a_token_a_step_and_is_clipped() -> None:
    time = clock()
    batch = Batch(time, 2, leaves_late=False)
    one, two, three = job(1, 10, 5, max_tokens=101), job(2, 10, 5, max_tokens=11), job(3, 10, 5, max_tokens=2)
    for each in (one, two, three):
        batch.join(each)
    assert (batch.reserved_tokens(4096), batch.reserved_tokens(50), batch.reserved_tokens(5)) == (111, 61, 11)
    steps(time, batch, 2)
    assert batch.reserved_tokens(4096) == 98 + 8
    batch.leave(one)
    assert batch.reserved_tokens(4096) == 8
    batch.join(one)
    assert batch.reserved_tokens(4096) == 98 + 8


def test_the_first_step_that_is_still_read_is_that_of_the_one_that_joined_first() -> None:
    time = clock()
    batch = Batch(time, 10, leaves_late=False)
    assert batch.oldest_step == 0
    steps(time, batch, 3)
    assert batch.oldest_step == 3
    one, two = job(1, 10, 50), job(2, 10, 50)
    batch.join(one)
    steps(time, batch, 4)
    batch.join(two)
    assert batch.oldest_step == 3
    batch.leave(one)
    assert batch.oldest_step == 7


def test_a_parked_request_leaves_the_parked_and_generates_nothing() -> None:
    time = clock()
    batch = Batch(time, 10, leaves_late=False)
    one = job(1, 10, 50)
    batch.join(one)
    batch.leave(one)
    one.phase = Phase.PARKED
    batch.parked[one] = 1
    steps(time, batch, 3)
    epoch = one.epoch
    batch.leave(one)
    assert (one.generated, one.uncached_tokens, batch.parked, one.epoch > epoch) == (1, 0, {}, True)


def test_that_the_batch_has_changed_is_noted() -> None:
    batch = Batch(clock(), 10, leaves_late=False)
    one = job(1, 10, 50)
    for change in (batch.join, batch.leave):
        batch.changed = False
        change(one)
        assert batch.changed


# The KV pool


def pool(capacity: int = 1000, **engine: Any) -> KvPool:
    return KvPool(EngineModel(COSTS, capacity, **engine), clock(), EvictionOrder())


def sums(kv: KvPool) -> tuple[int, int, int]:
    """Free, available, used."""
    return kv.free_tokens(), kv.available_tokens(), kv.used_tokens


def test_kv_goes_from_the_request_into_the_cache_and_stays_locked_until_it_is_given_up() -> None:
    kv = pool()
    one = job(1, 100, 20, cache=kv.cache)
    kv.allocate(100)
    assert sums(kv) == (900, 900, 100)
    kv.cache_prefix(one, 60)
    kv.cache_prefix(one, 40)
    assert (sums(kv), one.protected_tokens, one.cache_node.tokens) == ((900, 900, 100), 100, 40)
    kv.allocate(5)
    one.uncached_tokens, one.generated = 5, 6
    kv.give_up(one, keep=True)
    assert sums(kv) == (895, 1000, 0)
    assert (one.cache_node, one.protected_tokens, one.uncached_tokens) == (kv.cache.root, 0, 0)
    assert kv.cache.match(one.runs(106), 105).tokens == 105, "the last token has not been computed yet"


def test_given_up_for_good_only_the_prompt_stays() -> None:
    kv = pool()
    one = job(1, 100, 20, cache=kv.cache)
    kv.allocate(100)
    kv.cache_prefix(one, 100)
    kv.allocate(5)
    one.uncached_tokens, one.generated = 5, 6
    kv.give_up(one, keep=False)
    assert sums(kv) == (900, 1000, 0)


def test_allocating_evicts_what_is_in_the_way_and_no_more() -> None:
    kv = pool(100)
    for name in "abc":
        kv.cache.insert(sequence(name, 30))
    kv.allocate(10)
    assert kv.cache.tokens == 90
    kv.allocate(1)
    assert (kv.cache.tokens, kv.uncached_tokens) == (60, 11)
    kv.make_free(30)
    assert kv.cache.tokens == 30
    kv.make_free(59)
    assert kv.cache.tokens == 30


def test_copies_go_one_after_the_other_over_the_link_and_only_once() -> None:
    kv = pool(host_capacity_tokens=1000, host_tokens_per_s=10.0)
    kv._clock.now_s = 5.0
    one, two = job(1, 20, 20, cache=kv.cache), job(2, 30, 20, cache=kv.cache)
    for each in (one, two):
        kv.allocate(each.spec.prompt_tokens)
        kv.cache_prefix(each, each.spec.prompt_tokens)
    kv.give_up(one, keep=True, offload=True)
    assert one.kept_node.host_s == 5.0 + 2.0
    kv.give_up(two, keep=True, offload=True)
    assert two.kept_node.host_s == 7.0 + 3.0
    kv._clock.now_s = 20.0
    one.generated = 6
    kv.give_up(one, keep=True, offload=True)
    assert (one.kept_node.tokens, one.kept_node.host_s) == (5, 20.5)


@pytest.mark.parametrize("write_through", [False, True])
def test_what_enters_the_cache_is_copied_where_all_is_written_through(write_through: bool) -> None:
    kv = pool(host_capacity_tokens=1000, host_tokens_per_s=10.0, write_through=write_through)
    one = job(1, 20, 20, cache=kv.cache)
    kv.allocate(20)
    kv.cache_prefix(one, 20)
    assert (one.cache_node.host_s is not None) == write_through
    one.generated = 4
    kv.give_up(one, keep=True)
    assert (one.kept_node.host_s is not None) == write_through


def test_without_a_host_tier_nothing_is_copied() -> None:
    kv = pool()
    one = job(1, 20, 20, cache=kv.cache)
    kv.give_up(one, keep=True, offload=True)
    assert (one.kept_node.tokens, one.kept_node.host_s) == (20, None)


def test_where_host_memory_is_full_the_rest_of_the_way_is_not_copied() -> None:
    kv = pool(host_capacity_tokens=25, host_tokens_per_s=10.0)
    one = job(1, 20, 20, cache=kv.cache)
    kv.allocate(20)
    kv.cache_prefix(one, 20)
    one.generated = 11
    kv.give_up(one, keep=True, offload=True)
    assert (one.kept_node.tokens, one.kept_node.host_s, one.kept_node.parent.host_s) == (10, None, 2.0)
    two = job(2, 3, 20, cache=kv.cache)
    kv.give_up(two, keep=True, offload=True)
    assert two.kept_node.host_s == pytest.approx(2.3), "what was not copied took no time of the link"


def test_a_coded_copy_takes_the_time_of_its_codec_and_less_room() -> None:
    kv = pool(host_capacity_tokens=25, host_tokens_per_s=10.0, codec=CodecPrice("half", 0.5, encode_token_s=0.2))
    kv._clock.now_s = 5.0
    for number, tokens in ((1, 20), (2, 30)):
        one = job(number, tokens, 20, cache=kv.cache)
        kv.allocate(tokens)
        kv.cache_prefix(one, tokens)
        kv.give_up(one, keep=True, offload=True)
    assert one.kept_node.host_s == 5.0 + 0.2 * (20 + 30), "both, in bytes for 25 of them"
    assert kv.cache.host_tokens == 50
