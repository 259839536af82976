"""Whose KV is given up first."""

from __future__ import annotations

from dataclasses import dataclass

from andes_sglang.policy.eviction import EvictionOrder


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
