"""How much a prefill may compute, told by an engine's pool, its batch and its pages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter.prefill_room import PrefillRoom


def engine(free: int, chunk: int | None, *, mixed: bool = True, page: int = 1) -> Any:
    """A scheduler with ``free`` tokens, half of them to be evicted."""
    return SimpleNamespace(
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: free - free // 2),
        tree_cache=SimpleNamespace(evictable_size=lambda: free // 2),
        chunked_prefill_size=chunk, is_mixed_chunk=mixed, page_size=page,
    )  # fmt: skip


def batch(size: int, growth: int | None = None) -> Any:
    """``size`` running requests whose next step takes ``growth`` tokens."""
    growth = size if growth is None else growth
    return SimpleNamespace(
        reqs=[None] * size, is_empty=lambda: not size, new_tokens_required_next_decode=lambda: growth
    )


@pytest.mark.parametrize(
    ("scheduler", "running", "room", "chunk"),
    [
        (engine(500, 32), batch(14), 18, 32),
        (engine(20, 32), batch(14), 6, 20),
        (engine(20, 32, mixed=False), batch(14), 20, 20),
        (engine(500, 32), batch(0), 32, 32),
        (engine(500, None, mixed=False), batch(14), 500, None),
        (engine(70, 64, page=16), batch(3, growth=32), 23, 26),
    ],
    ids=["a chunk", "what is left of KV", "nothing beside it", "no stream runs", "no chunks", "pages"],
)
def test_a_chunk_is_no_larger_than_the_room(scheduler: Any, running: Any, room: int, chunk: int | None) -> None:
    whole = scheduler.chunked_prefill_size
    measured = PrefillRoom(scheduler)
    assert measured.tokens(running) == room
    with measured.chunk(running):
        assert scheduler.chunked_prefill_size == chunk, "SGLang takes those beside it off"
    assert scheduler.chunked_prefill_size == whole


def test_newcomers_wait_where_pages_begin_and_kv_is_short() -> None:
    waiting = {rid: SimpleNamespace(origin_input_ids=[0] * 50, output_ids=[0] * 4) for rid in "ab"}
    needed = 2 * (50 + 4 + 16)

    def taken(free: int, growth: int) -> list[str]:
        return list(PrefillRoom(engine(free, 64, page=16)).newcomers(["b", "a"], waiting, batch(3, growth)))

    assert taken(needed + 32, growth=32) == ["b", "a"]
    assert taken(needed + 31, growth=32) == []
    assert taken(0, growth=0) == ["b", "a"], "SGLang's own admission suffices"
