"""Whose KV is given up first."""

from __future__ import annotations

from dataclasses import dataclass

from andes_sglang.policy.eviction import MAX_EXPECTED, EvictionOrder, Returns


@dataclass(eq=False)
class Node:
    """As much of SGLang's node as the order looks at."""

    parent: Node | None
    last_access_time: float


def test_finished_conversations_go_first_then_whose_reader_runs_dry_last() -> None:
    root = Node(None, 0.0)
    prompt = Node(root, 1.0)
    soon, later = Node(prompt, 2.0), Node(prompt, 3.0)
    finished, long_finished = Node(prompt, 9.0), Node(root, 4.0)
    paused = [(later, 500.0), (soon, 100.0)]
    order = EvictionOrder(lambda: paused)
    nodes = [soon, later, prompt, finished, long_finished]
    assert sorted(nodes, key=order.get_priority)[:3] == [long_finished, finished, later]
    assert order.get_priority(prompt) == order.get_priority(soon)

    paused.remove((soon, 100.0))
    order.look_again()
    assert sorted(nodes, key=order.get_priority)[0] is soon
    assert order.get_priority(prompt) == order.get_priority(later)


def test_a_prefix_of_several_paused_streams_goes_with_the_one_that_needs_it_first() -> None:
    root = Node(None, 0.0)
    prompt = Node(root, 1.0)
    soon, later = Node(prompt, 2.0), Node(prompt, 3.0)
    for paused in ([(soon, 100.0), (later, 500.0)], [(later, 500.0), (soon, 100.0)]):
        order = EvictionOrder(lambda paused=paused: paused)  # type: ignore[misc]
        assert order.get_priority(later) == (1, -500.0)
        assert order.get_priority(soon) == order.get_priority(prompt) == order.get_priority(root) == (1, -100.0)


def test_without_paused_streams_it_is_the_least_recently_used() -> None:
    assert EvictionOrder().get_priority(Node(None, 7.0)) == (0, 7.0)


def test_who_is_paused_is_asked_once_until_told_to_look_again() -> None:
    asked: list[int] = []
    node = Node(None, 1.0)

    def paused() -> list[tuple[Node, float]]:
        asked.append(1)
        return [(node, 1.0 * len(asked))]

    order = EvictionOrder(paused)
    assert order.get_priority(node) == order.get_priority(node) == (1, -1.0)
    order.look_again()
    assert order.get_priority(node) == (1, -2.0)
    assert len(asked) == 2


def test_a_conversation_that_returns_is_kept_as_long_as_it_is_expected() -> None:
    root = Node(None, 0.0)
    finished, soon, later = Node(root, 9.0), Node(root, 2.0), Node(root, 1.0)
    returns = Returns()
    order = EvictionOrder(returns.expected)
    returns.ended(soon, 100.0, 5.0)
    returns.ended(later, 100.0, 20.0)
    assert sorted([soon, finished, later], key=order.get_priority) == [finished, later, soon]
    assert order.get_priority(root) == order.get_priority(soon)
    assert returns.drop(109.9) == []
    assert returns.drop(110.0) == [soon], "twice as long as it was to stay away"
    order.look_again()
    assert sorted([soon, finished, later], key=order.get_priority) == [soon, finished, later]
    returns.ended(soon, 110.0, 0.0)
    assert returns.drop(110.9) == []
    assert returns.drop(111.0) == [soon], "a second at least"
    assert len(returns) == 1


def test_no_more_are_expected_than_an_engine_has_room_for() -> None:
    """Every caller may say that his conversation returns."""
    returns = Returns()
    nodes = [Node(None, float(k)) for k in range(MAX_EXPECTED + 3)]
    for node in nodes:
        returns.ended(node, 0.0, 600.0)
    assert returns.drop(1.0) == nodes[:3], "the last that have ended are"
    assert [node for node, _ in returns.expected()] == nodes[3:]
    assert returns.drop(1200.0) == nodes[3:]
