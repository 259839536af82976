"""A real engine short of KV: the conversation of a tool that runs is still there when it returns; without a word it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.adapter.host_transfers import tier_of_release
from andes_sglang.bench.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
KV_TOKENS, PROMPT, ANSWER = 2048, 500, 8
OTHERS = 8
"""Conversations that end meanwhile: twice what there is room for."""


@pytest.fixture(
    scope="module", params=[(), ("--preemption-mode", "offload", "--host-kv-gib", "0.001")], ids=["release", "offload"]
)
def engine(request: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = ("--max-total-tokens", str(KV_TOKENS), "--context-length", str(KV_TOKENS), *request.param)
    with Engine(tiny_model, "andes", flags, log=tmp_path_factory.mktemp("engine") / "log") as started:
        yield started


def ask(engine: Engine, prompt: list[int], **qoe: float) -> Any:
    sampling = {"max_new_tokens": ANSWER, "ignore_eos": True, "temperature": 0, "custom_params": {"qoe": qoe}}
    return engine.post("/generate", {"input_ids": prompt, "sampling_params": sampling})


def prompt(number: int) -> list[int]:
    return [7 + (37 * number + 13 * k + k * k * number) % 900 for k in range(PROMPT)]


def cached_at_return(engine: Engine, number: int, **qoe: float) -> int:
    """Tokens that the second round of a conversation finds, other conversations having ended since the first."""
    said = ask(engine, prompt(number), **qoe)
    for k in range(OTHERS):
        ask(engine, prompt(100 * number + k))
    second = [*prompt(number), *said["output_ids"], 5, 6, 7]
    return int(ask(engine, second)["meta_info"]["cached_tokens"])


def test_a_conversation_that_returns_is_found_and_another_is_not(engine: Engine) -> None:
    if "offload" in engine.flags and "HiRadixCache" not in tier_of_release()[0]:
        pytest.skip("the tree of this release of SGLang is native code and keeps its own order")
    assert cached_at_return(engine, 1, returns=600.0) >= PROMPT
    assert cached_at_return(engine, 2) < PROMPT // 2
    assert cached_at_return(engine, 3, returns=600.0) >= PROMPT
    assert cached_at_return(engine, 4, returns=600.0, **{"yield": True}) < PROMPT // 2, "no reader waits for it"


def test_more_that_return_than_there_is_room_for_is_no_fault(engine: Engine) -> None:
    for k in range(OTHERS):
        ask(engine, prompt(1000 + k), returns=600.0)
    assert len(ask(engine, prompt(2000))["output_ids"]) == ANSWER


def test_what_is_no_time_is_refused(engine: Engine) -> None:
    with pytest.raises(OSError, match="400"):
        ask(engine, prompt(1), returns=601.0)
