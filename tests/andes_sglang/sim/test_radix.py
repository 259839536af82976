"""The radix cache, rule by rule."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.policy.eviction import EvictionOrder
from andes_sglang.sim.radix import Match, Node, RadixCache, Run, sequence


def nodes(cache: RadixCache) -> list[Node]:
    """All but the root."""
    found, todo = [], list(cache.root.children.values())
    while todo:
        node = todo.pop()
        found.append(node)
        todo += node.children.values()
    return found


def path(node: Node) -> list[tuple[Sequence[int], int]]:
    """Ids and tokens of the nodes from the root down to ``node``."""
    found = []
    while node.parent is not node:
        found.append((list(node.ids), node.tokens))
        node = node.parent
    return found[::-1]


def found(match: Match) -> tuple[int, int]:
    return match.tokens, match.host_tokens


def consistent(cache: RadixCache) -> bool:
    """The sums are those of the nodes."""
    every = nodes(cache)
    return (
        cache.tokens == sum(n.tokens for n in every if n.on_device)
        and cache.evictable == sum(n.tokens for n in every if n.on_device and not n.locks)
        and cache.host_tokens == sum(n.tokens for n in every if n.host_s is not None)
        and all(n.device_children == sum(c.on_device for c in n.children.values()) for n in [*every, cache.root])
        and all(n.tokens == len(n.ids) * n.unit > 0 for n in every)
        and all(n.parent.children[n.stream, n.ids[0]] is n for n in every)
        and all(n.on_device or n.host_s is not None for n in every)
    )


# Sequences


def test_a_sequence_is_its_whole_shared_blocks_and_then_positions_of_its_own() -> None:
    assert sequence("a", 100) == [Run("a", range(100), 1)]
    assert sequence("a", 1100, (7, 8, 9)) == [Run(None, (7, 8), 512), Run("a", range(1024, 1100), 1)]
    assert sequence("a", 511, (7,)) == [Run("a", range(511), 1)]
    assert sequence("a", 512, (7,)) == [Run(None, (7,), 512), Run("a", range(512, 512), 1)]
    assert sequence("a", 40, (7, 8), block_tokens=16)[0] == Run(None, (7, 8), 16)


# Match


def test_nothing_is_found_in_an_empty_cache_and_in_another_stream() -> None:
    cache = RadixCache()
    assert cache.match(sequence("a", 10), 9) == Match(cache.root, 0, [], 0)
    cache.insert(sequence("a", 10))
    assert cache.match(sequence("b", 10), 9) == Match(cache.root, 0, [], 0)


def test_a_match_ends_at_the_limit_at_the_cached_end_and_at_the_end_of_the_request() -> None:
    cache = RadixCache()
    node, _ = cache.insert(sequence("a", 10))
    assert cache.match(sequence("a", 20), 19) == Match(node, 10, [], 0)
    limited = cache.match(sequence("a", 20), 7)
    assert (limited.tokens, limited.node) == (7, node.parent), "the node was split where the match ends"
    assert cache.match(sequence("a", 3), 9).tokens == 3
    assert consistent(cache)


def test_blocks_are_found_whole_or_not_at_all() -> None:
    cache = RadixCache()
    cache.insert(sequence("a", 1100, (7, 8)))
    assert cache.match(sequence("b", 1200, (7, 8)), 1199).tokens == 1024
    assert cache.match(sequence("b", 1200, (7, 9)), 1199).tokens == 512
    assert cache.match(sequence("b", 1200, (9, 8)), 1199).tokens == 0
    assert cache.match(sequence("b", 1024, (7, 8)), 1023).tokens == 512, (
        "one token of the second block is to be computed"
    )
    assert consistent(cache)


# Insert


def test_insert_returns_the_last_node_and_what_was_there() -> None:
    cache = RadixCache()
    first, there = cache.insert(sequence("a", 10))
    assert (there, path(first)) == (0, [(list(range(10)), 10)])
    longer, there = cache.insert(sequence("a", 15))
    assert (there, longer.parent, list(longer.ids)) == (10, first, list(range(10, 15)))
    same, there = cache.insert(sequence("a", 15))
    assert (same, there, cache.tokens) == (longer, 15, 15)
    shorter, there = cache.insert(sequence("a", 4))
    assert (there, cache.tokens, path(shorter)) == (4, 15, [([0, 1, 2, 3], 4)])
    assert consistent(cache)


def test_sequences_that_part_share_what_they_have_in_common() -> None:
    cache = RadixCache()
    one, _ = cache.insert(sequence("a", 1100, (7, 8)))
    two, there = cache.insert(sequence("b", 1200, (7, 9)))
    assert there == 512
    assert path(one)[0] == path(two)[0] == ([7], 512)
    assert cache.tokens == 1100 + 1200 - 512
    assert consistent(cache)


# Split


def test_a_split_keeps_locks_copies_and_accesses_on_both_parts() -> None:
    cache = RadixCache(host_capacity_tokens=100)
    node, _ = cache.insert(sequence("a", 10))
    cache.back_up(node, 3.0)
    cache.lock(node)
    used = node.last_access_time
    cache.insert(sequence("z", 1))
    upper = cache.match(sequence("a", 10), 4, 5.0).node
    assert (upper.tokens, node.tokens, node.parent) == (4, 6, upper)
    assert (upper.locks, node.locks, upper.host_s, node.host_s) == (1, 1, 3.0, 3.0)
    assert upper.last_access_time > used == node.last_access_time
    assert (cache.tokens, cache.evictable, cache.host_tokens) == (11, 1, 10)
    cache.unlock(node)
    assert cache.evictable == 11
    assert consistent(cache)


# Locks


def test_a_lock_holds_the_whole_way_and_is_counted() -> None:
    cache = RadixCache()
    cache.insert(sequence("a", 10))
    leaf, _ = cache.insert(sequence("a", 15))
    cache.insert(sequence("b", 3))
    cache.lock(leaf.parent)
    cache.lock(leaf)
    assert cache.evictable == 3
    assert cache.evict(100) == 3
    cache.unlock(leaf)
    assert cache.evictable == 5
    assert cache.evict(100) == 5
    cache.unlock(leaf.parent)
    assert cache.evict(100) == 10
    assert (cache.tokens, cache.evictable, cache.evicted_tokens) == (0, 0, 18)
    assert consistent(cache)


# Eviction


def test_leaves_go_whole_the_least_recently_used_first_and_no_more_than_needed() -> None:
    cache = RadixCache()
    for name in "abc":
        cache.insert(sequence(name, 10))
    cache.match(sequence("a", 10), 10)
    assert cache.evict(11) == 20
    assert [cache.match(sequence(name, 10), 10).tokens for name in "abc"] == [10, 0, 0]
    assert cache.evict(0) == 0
    assert consistent(cache)


def test_a_node_goes_after_what_hangs_below_it() -> None:
    cache = RadixCache()
    parent, _ = cache.insert(sequence("a", 10))
    leaf, _ = cache.insert(sequence("a", 15))
    assert cache.evict(1) == 5
    assert (parent.on_device, leaf.on_device) == (True, False)
    assert cache.evict(1) == 10
    assert nodes(cache) == []


def test_evicted_without_a_copy_it_is_forgotten_and_can_come_again() -> None:
    cache = RadixCache()
    cache.insert(sequence("a", 10))
    cache.evict(10)
    node, there = cache.insert(sequence("a", 10))
    assert (there, cache.tokens, node.on_device) == (0, 10, True)
    assert consistent(cache)


def test_the_sooner_a_paused_reader_runs_dry_the_longer_its_kv_stays() -> None:
    paused: list[tuple[Node, float]] = []
    cache = RadixCache(order=EvictionOrder(lambda: paused))
    named = {name: cache.insert(sequence(name, 10))[0] for name in ("later", "soon", "finished")}
    paused += [(named["soon"], 1.0), (named["later"], 9.0)]
    cache.order.look_again()
    gone: list[str] = []
    while len(gone) < len(named):
        assert cache.evict(1) == 10
        gone += [name for name, node in named.items() if not node.on_device and name not in gone]
    assert gone == ["finished", "later", "soon"]


def test_a_priority_that_has_changed_since_the_offer_counts_as_it_is_now() -> None:
    cache = RadixCache()
    old, _ = cache.insert(sequence("old", 10))
    cache.insert(sequence("new", 10))
    cache.match(sequence("old", 10), 10)
    cache.evict(1)
    assert old.on_device


# Host memory


def test_a_copy_is_found_below_the_device_once_it_is_complete() -> None:
    cache = RadixCache(host_capacity_tokens=100)
    upper, _ = cache.insert(sequence("a", 10))
    lower, _ = cache.insert(sequence("a", 15))
    assert cache.back_up(upper, 1.0)
    assert cache.back_up(lower, 2.0)
    cache.evict(5)
    assert found(cache.match(sequence("a", 20), 19, 1.9)) == (10, 0)
    match = cache.match(sequence("a", 20), 19, 2.0)
    assert (match.node, found(match), match.host) == (upper, (10, 5), [lower])
    cache.evict(10)
    assert found(cache.match(sequence("a", 20), 19, 2.0)) == (0, 15)
    assert cache.insert(sequence("a", 15)) == (lower, 0)
    assert (cache.tokens, cache.host_tokens) == (15, 15), "the copies stay where they are"
    assert consistent(cache)


def test_nothing_is_copied_below_what_has_no_copy() -> None:
    cache = RadixCache(host_capacity_tokens=100)
    upper, _ = cache.insert(sequence("a", 10))
    lower, _ = cache.insert(sequence("a", 15))
    assert not cache.back_up(lower, 0.0)
    assert cache.back_up(upper, 0.0)
    assert cache.back_up(lower, 0.0)
    assert cache.host_tokens == 15


def test_host_memory_gives_up_only_what_the_device_has_evicted() -> None:
    cache = RadixCache(host_capacity_tokens=100)
    old, new = (cache.insert(sequence(name, 60))[0] for name in ("old", "new"))
    assert cache.back_up(old, 0.0)
    assert not cache.back_up(new, 0.0), "there is no room beside a copy of what the device holds"
    assert cache.evict(60) == 60
    assert cache.match(sequence("old", 60), 60).host_tokens == 60
    assert cache.back_up(new, 0.0)
    assert cache.match(sequence("old", 60), 60).host_tokens == 0
    assert (cache.tokens, cache.host_tokens) == (60, 60)


@pytest.mark.parametrize(("tokens", "copied"), [(100, True), (101, False)])
def test_what_is_larger_than_host_memory_is_not_copied(tokens: int, copied: bool) -> None:
    cache = RadixCache(host_capacity_tokens=100)
    other, _ = cache.insert(sequence("other", 50))
    cache.back_up(other, 0.0)
    cache.evict(50)
    node, _ = cache.insert(sequence("a", tokens))
    assert cache.back_up(node, 0.0) == copied
    assert cache.host_tokens == (100 if copied else 50), "nothing is given up for what cannot be copied"


def test_copies_go_from_the_leaves_up_the_least_recently_used_first() -> None:
    cache = RadixCache(host_capacity_tokens=40)
    copies: dict[str, list[Node]] = {}
    for name in ("a", "b"):
        copies[name] = [cache.insert(sequence(name, tokens))[0] for tokens in (10, 20)]
        assert all(cache.back_up(node, 0.0) for node in copies[name])
    cache.evict(40)
    cache.match(sequence("a", 20), 20)
    held = []
    for k in range(4):
        assert cache.back_up(cache.insert(sequence(f"new {k}", 10))[0], 0.0)
        held.append([sum(node.host_s is not None for node in copies[name]) for name in "ab"])
        assert consistent(cache)
    assert held == [[2, 1], [2, 0], [1, 0], [0, 0]]


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


def test_what_lies_on_the_device_below_a_copy_is_not_counted() -> None:
    cache, _ = backed_up()
    cache.match(sequence("a", 10), 6)
    lower = cache.match(sequence("a", 10), 10, 5.0).node
    assert (lower.tokens, lower.host_s, lower.parent.host_s) == (4, 2.0, 2.0)
    lower.parent.on_device = False
    found = cache.match(sequence("a", 10), 10, 5.0)
    assert (found.tokens, found.host_tokens) == (0, 10)


steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "match", "lock", "unlock", "evict", "back_up"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 40),
        st.sampled_from([(), (1,), (1, 2), (2, 1)]),
    ),
    max_size=40,
)


@given(steps)
def test_the_sums_are_right_and_what_is_locked_stays_whatever_happens(
    steps: list[tuple[str, str, int, tuple[int, ...]]],
) -> None:
    cache = RadixCache(host_capacity_tokens=60)
    locked: list[Node] = []
    for what, name, tokens, blocks in steps:
        runs = sequence(name, tokens, blocks, block_tokens=8)
        if what == "insert":
            cache.insert(runs)
        elif what == "match":
            assert cache.match(runs, tokens - 1).tokens <= tokens - 1
        elif what == "lock":
            locked.append(cache.insert(runs)[0])
            cache.lock(locked[-1])
        elif what == "unlock" and locked:
            cache.unlock(locked.pop())
        elif what == "evict":
            before = cache.tokens
            assert cache.evict(tokens) == before - cache.tokens >= min(tokens, before - cache.tokens)
        elif what == "back_up":
            node, _ = cache.insert(runs)
            chain = [node]
            while chain[-1].parent is not cache.root and chain[-1] is not cache.root:
                chain.append(chain[-1].parent)
            all(cache.back_up(n, 0.0) for n in reversed(chain) if n is not cache.root and n.host_s is None)
        assert consistent(cache)
        assert all(node.on_device for node in locked)
        assert 0 <= cache.host_tokens <= 60
    for node in locked:
        cache.unlock(node)
    everything = cache.tokens
    assert cache.evictable == everything == cache.evict(10**6)
    assert cache.tokens == 0
