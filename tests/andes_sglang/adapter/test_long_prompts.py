"""Long prompts in small chunks beside streams that grow, in a small KV pool: the engine serves all of it, as it serves each alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.bench.engine import Engine
from benchmarks.soak import wait_until_idle

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

FLAGS = (
    "--max-total-tokens", "1500", "--max-running-requests", "16", "--enable-mixed-chunk", "--chunked-prefill-size", "32",
    "--enable-return-hidden-states",
)  # fmt: skip
ENGINES = {
    "andes": ("andes",),
    "parked and paged": (
        "forced",
        "--page-size",
        "16",
        "--policy-option",
        "mode=park",
        "--policy-option",
        "every_tokens=5",
    ),
}


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES)
def engine(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    policy, *more = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
        with Engine(tiny_model, policy, (*FLAGS, *more), log=tmp_path_factory.mktemp("engine") / "log") as started:
            yield started


def generate(engine: Engine, k: int, prompt: int, tokens: int, **more: Any) -> list[int]:
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    ids = [7 + (31 * k + 13 * j) % 900 for j in range(prompt)]
    answer: Any = engine.post("/generate", {"input_ids": ids, "sampling_params": sampling, **more})
    return list(answer["output_ids"])


@pytest.mark.parametrize(
    "lengths",
    [
        [(20, 150)] * 14 + [(700, 20)] * 4,
        [(260, 120)] * 9,
        [(5, 280), (5, 280), *[(30, 60)] * 12, (900, 40), (880, 40)],
    ],
    ids=["several long prompts", "long contexts return", "some stay for long"],
)
def test_every_request_is_served(engine: Engine, lengths: list[tuple[int, int]]) -> None:
    with ThreadPoolExecutor(len(lengths)) as pool:
        answers = list(pool.map(lambda k: generate(engine, k, *lengths[k]), range(len(lengths))))
    wait_until_idle(engine)
    alone = [generate(engine, k, *lengths[k]) for k in (0, len(lengths) - 1)]
    assert [answers[0], answers[-1]] == alone
    assert [len(answer) for answer in answers] == [tokens for _, tokens in lengths]
    assert "leak" not in engine.log.read_text(errors="replace").lower()


def test_a_prompt_waits_for_those_that_cannot_be_stopped(engine: Engine) -> None:
    """Streams that return hidden states keep their KV: what has been computed of the prompt makes room for them."""
    lengths = [(20, 120)] * 14 + [(900, 20)]
    with ThreadPoolExecutor(15) as pool:
        pending = [
            pool.submit(generate, engine, k, *size, return_hidden_states=k < 14) for k, size in enumerate(lengths)
        ]
        answers = [future.result() for future in pending]
    wait_until_idle(engine)
    assert [len(answer) for answer in answers] == [tokens for _, tokens in lengths]
    assert answers[-1] == generate(engine, 14, 900, 20)
