"""The radix cache rule by rule, and its counters against its nodes after any history."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.policy.eviction import EvictionOrder
from andes_sglang.sim.radix import Node, RadixCache, Run, sequence


def nodes(cache: RadixCache) -> Iterator[Node]:
    pending = list(cache.root.children.values())
    while pending:
        node = pending.pop()
        pending += node.children.values()
        yield node


def test_a_sequence_is_whole_shared_blocks_then_tokens_of_its_own() -> None:
    assert sequence("a", 10, (7, 8), 4) == [Run(None, (7, 8), 4), Run("a", range(8, 10), 1)]
    assert sequence("a", 7, (7, 8), 4) == [Run(None, (7,), 4), Run("a", range(4, 7), 1)]
    assert sequence("a", 3, (7, 8), 4) == [Run("a", range(3), 1)]
    assert sequence("a", 1025, (7, 8, 9)) == [Run(None, (7, 8), 512), Run("a", range(1024, 1025), 1)]


def test_what_was_inserted_is_found_up_to_the_limit() -> None:
    cache = RadixCache()
    assert cache.insert(sequence("a", 10))[1] == 0
    assert (cache.tokens, cache.evictable) == (10, 10)
    assert cache.match(sequence("a", 20), 100).tokens == 10
    assert cache.match(sequence("a", 10), 4).tokens == 4
    assert cache.match(sequence("a", 10), 0).tokens == 0
    assert cache.match(sequence("b", 10), 100).tokens == 0
    assert (cache.tokens, cache.evictable) == (10, 10), "looking moves nothing"
    assert cache.insert(sequence("a", 12))[1] == 10
    assert cache.tokens == 12


def test_shared_blocks_are_found_by_other_streams_and_only_whole() -> None:
    cache = RadixCache()
    cache.insert(sequence("a", 14, (1, 2, 3), 4))
    assert cache.match(sequence("b", 14, (1, 2, 9), 4), 100).tokens == 8
    assert cache.match(sequence("b", 14, (1, 2, 3), 4), 7).tokens == 4
    assert cache.match(sequence("a", 14, (1, 2, 3), 4), 100).tokens == 14
    assert cache.insert(sequence("b", 14, (1, 5), 4))[1] == 4
    assert cache.tokens == 14 + 10


def test_a_lock_holds_a_node_and_all_above_it_until_the_last_is_gone() -> None:
    cache = RadixCache()
    a, _ = cache.insert(sequence("a", 12, (1,), 4))
    b, _ = cache.insert(sequence("b", 7, (1,), 4))
    cache.lock(a)
    assert (cache.tokens, cache.evictable) == (15, 3)
    cache.lock(a)
    cache.lock(b)
    assert cache.evictable == 0
    cache.unlock(a)
    assert cache.evictable == 0
    cache.unlock(a)
    assert cache.evictable == 8
    assert cache.evict(100) == 8, "what b needs stays"
    assert (cache.tokens, cache.evictable, cache.evicted_tokens) == (7, 0, 8)
    cache.unlock(b)
    assert cache.evict(1) == 3
    assert cache.evict(100) == 4, "the shared block, once nothing hangs below it"
    assert (cache.tokens, cache.evictable, cache.evicted_tokens) == (0, 0, 15)
    assert not list(nodes(cache))


def test_the_least_recently_used_leaf_goes_first_and_whole() -> None:
    cache = RadixCache()
    for name in "abc":
        cache.insert(sequence(name, 10))
    cache.match(sequence("a", 10), 100)
    assert cache.evict(11) == 20
    assert [cache.match(sequence(name, 10), 100).tokens for name in "abc"] == [10, 0, 0]
    assert cache.evict(0) == 0


def test_a_leaf_before_its_prefix_even_if_it_was_used_later() -> None:
    cache = RadixCache()
    cache.insert(sequence("a", 12, (1,), 4))
    cache.insert(sequence("b", 5))
    cache.match(sequence("a", 12, (1,), 4), 100)
    assert cache.evict(1) == 5
    assert cache.evict(1) == 8
    assert cache.match(sequence("a", 12, (1,), 4), 100).tokens == 4


def test_a_split_node_keeps_locks_and_its_place() -> None:
    cache = RadixCache()
    a, _ = cache.insert(sequence("a", 10))
    cache.lock(a)
    upper = cache.match(sequence("a", 10), 6).node
    assert (upper.tokens, upper.locks, a.tokens, a.locks) == (6, 1, 4, 1)
    assert a.parent is upper
    assert upper.held_below == 1
    assert cache.evict(100) == 0
    cache.unlock(a)
    assert (upper.locks, a.locks, cache.evictable) == (0, 0, 10)
    assert cache.evict(1) == 4
    assert cache.evict(100) == 6


def test_the_order_of_a_policy_is_asked_again_when_it_changes() -> None:
    paused: list[tuple[Node, float]] = []
    cache = RadixCache(order=EvictionOrder(lambda: paused))
    made = {name: cache.insert(sequence(name, 10))[0] for name in "abc"}
    paused.append((made["a"], 5.0))
    cache.order.look_again()
    assert cache.evict(1) == 10
    assert made["a"].on_device
    assert not made["b"].on_device
    assert cache.evict(1) == 10
    assert made["a"].on_device, "after all that is not paused"
    assert cache.evict(1) == 10
    assert not made["a"].on_device


def backed_up(host_capacity_tokens: int = 100) -> tuple[RadixCache, Node]:
    """Ten tokens of ``a``, on the device and in host memory from second 2."""
    cache = RadixCache(host_capacity_tokens)
    node, _ = cache.insert(sequence("a", 10))
    assert cache.back_up(node, 2.0)
    return cache, node


def test_a_copy_is_found_once_it_is_complete_and_loaded_back() -> None:
    cache, node = backed_up()
    assert cache.host_tokens == 10
    on_device = cache.match(sequence("a", 10), 100, 5.0)
    assert (on_device.tokens, on_device.host, on_device.host_tokens) == (10, [], 0)
    assert cache.evict(10) == 10
    early, late = (cache.match(sequence("a", 12), 100, now_s) for now_s in (1.9, 2.0))
    assert (early.tokens, early.host, early.host_tokens) == (0, [], 0)
    assert (late.tokens, late.host, late.host_tokens) == (0, [node], 10)
    assert late.node is cache.root
    assert cache.insert(sequence("a", 10)) == (node, 0), "it was not on the device"
    assert (cache.tokens, cache.evictable, cache.host_tokens) == (10, 10, 10)


def test_what_lies_on_the_device_below_a_copy_is_not_counted() -> None:
    cache, _ = backed_up()
    cache.match(sequence("a", 10), 6)
    lower = cache.match(sequence("a", 10), 10, 5.0).node
    assert (lower.tokens, lower.host_s, lower.parent.host_s) == (4, 2.0, 2.0)
    lower.parent.on_device = False
    found = cache.match(sequence("a", 10), 10, 5.0)
    assert (found.tokens, found.host_tokens) == (0, 10)


def test_a_copy_needs_that_of_its_prefix_and_room() -> None:
    cache = RadixCache(host_capacity_tokens=10)
    node, _ = cache.insert(sequence("a", 9, (1,), 4))
    assert not cache.back_up(node, 1.0), "its prefix has none"
    assert cache.back_up(node.parent, 1.0)
    assert cache.back_up(node, 1.0)
    assert cache.host_tokens == 9
    big, _ = cache.insert(sequence("b", 11))
    assert not cache.back_up(big, 1.0), "larger than host memory"
    other, _ = cache.insert(sequence("c", 2))
    assert not cache.back_up(other, 1.0), "copies of what is on the device stay"
    exact, _ = cache.insert(sequence("d", 1))
    assert cache.back_up(exact, 1.0)
    assert cache.host_tokens == 10


def test_host_memory_gives_up_leaves_of_what_the_device_has_evicted() -> None:
    cache = RadixCache(host_capacity_tokens=12)
    node, _ = cache.insert(sequence("a", 9, (1,), 4))
    assert cache.back_up(node.parent, 1.0)
    assert cache.back_up(node, 1.0)
    assert cache.evict(100) == 9
    other, _ = cache.insert(sequence("b", 6))
    assert cache.back_up(other, 1.0)
    assert (cache.host_tokens, node.host_s, node.parent.host_s) == (10, None, 1.0)
    assert cache.match(sequence("a", 9, (1,), 4), 100, 2.0).host_tokens == 4
    third, _ = cache.insert(sequence("c", 6))
    assert cache.back_up(third, 1.0), "then the prefix, which is a leaf now"
    assert cache.host_tokens == 12
    assert cache.match(sequence("a", 9, (1,), 4), 100, 2.0).host_tokens == 0


def test_a_node_that_is_dropped_takes_the_copies_below_it_with_it() -> None:
    cache = RadixCache(host_capacity_tokens=100)
    node, _ = cache.insert(sequence("a", 9, (1,), 4))
    assert cache.back_up(node.parent, 1.0)
    assert cache.back_up(node, 1.0)
    assert cache.evict(5) == 5
    node.parent.host_s = None
    cache.host_tokens -= 4
    assert cache.evict(4) == 4
    assert cache.host_tokens == 0
    assert not list(nodes(cache))


@given(st.lists(st.tuples(st.sampled_from("imluebc"), st.integers(0, 3), st.integers(1, 24)), max_size=40))
def test_counters_are_what_the_nodes_say_after_any_history(history: list[tuple[str, int, int]]) -> None:
    paused: list[tuple[Node, float]] = []
    cache = RadixCache(host_capacity_tokens=30, order=EvictionOrder(lambda: paused))
    locked: list[Node] = []
    for now_s, (what, stream, tokens) in enumerate(history):
        runs = sequence(stream, tokens, (stream % 2, 5), 4)
        if what == "i":
            cache.insert(runs)
        elif what == "m":
            found = cache.match(runs, tokens, now_s)
            assert found.tokens + found.host_tokens <= tokens
        elif what == "l":
            locked.append(cache.insert(runs)[0])
            cache.lock(locked[-1])
        elif what == "u" and locked:
            cache.unlock(locked.pop(tokens % len(locked)))
        elif what == "e":
            before, could = cache.tokens, cache.evictable
            freed = cache.evict(tokens)
            assert freed >= min(tokens, could)
            assert before - cache.tokens == freed
        elif what == "b":
            node = cache.match(runs, tokens, now_s).node
            if node is not cache.root and node.on_device and node.host_s is None:
                cache.back_up(node, now_s + 1.0)
        else:
            paused[:] = [(node, float(tokens)) for node in locked]
            cache.order.look_again()
        there = list(nodes(cache))
        assert cache.tokens == sum(node.tokens for node in there if node.on_device)
        assert cache.evictable == sum(node.tokens for node in there if node.on_device and not node.locks)
        assert cache.host_tokens == sum(node.tokens for node in there if node.host_s is not None) <= 30
        assert all(node.on_device for node in locked)
        for node in [*there, cache.root]:
            assert node.held_below == sum(child.on_device for child in node.children.values())
            assert all(child.parent is node for child in node.children.values())
