"""A real engine short of KV: the conversation of a tool that runs is still there when it returns; without a word it is not. On the
release whose tree asks what to evict, and on the newest, whose tree does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.adapter.seams import RELEASES
from andes_sglang.bench.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
KV_TOKENS, PROMPT, ANSWER = 2048, 500, 8
OTHERS = 8
"""Conversations that end meanwhile: twice what there is room for."""


SIZES = ("--max-total-tokens", str(KV_TOKENS), "--context-length", str(KV_TOKENS))


MODES = {"release": (), "offload": ("--preemption-mode", "offload", "--host-kv-gib", "0.001")}


@pytest.fixture(
    scope="module", params=[f"{mode} {release}" for release in (RELEASES[0], RELEASES[-1]) for mode in MODES]
)
def engine(
    request: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, path_with: Callable[..., str]
) -> Iterator[Engine]:
    mode, release = request.param.split()
    path = path_with(release)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        log = tmp_path_factory.mktemp("engine") / "log"
        with Engine(tiny_model, "andes", (*SIZES, *MODES[mode]), log=log) as started:
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
