"""Speculative decoding by n-grams under forced preemption, and on the oldest release of SGLang, with its overlap and without:
the tokens that the model says to transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.adapter.seams import RELEASES
from andes_sglang.bench.engine import Engine, read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

POLICIES = Path(__file__).parents[2] / "fixtures" / "policies"
DRAFT_TOKENS = 4
SPECULATING = (
    "--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(DRAFT_TOKENS),
    "--speculative-ngram-max-bfs-breadth", "1",
)  # fmt: skip
POOL_TOKENS = 700
"""For about half of the streams at once, drafts among what they hold."""
BASE = ("--max-total-tokens", str(POOL_TOKENS), "--max-running-requests", "8", "--chunked-prefill-size", "32")
FORCED = ("--policy-option", "mode=alternate", "--policy-option", "every_tokens=3", "--enable-metrics")
PROMPTS = [[7 + (31 * k + 13 * j) % 900 for j in range(20 + 17 * k)] for k in range(6)]
TOKENS = 60
STOPS = list(range(0, 1000, 40))


def generate(engine: Engine, prompt: list[int], more: dict[str, Any], **asked: Any) -> Any:
    sampling = {"max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 0, **more}
    return engine.post("/generate", {"input_ids": prompt, "sampling_params": sampling, **asked})


def answers(engine: Engine) -> tuple[dict[str, Any], list[float]]:
    """What the engine says, and how many tokens a step has given each of the plain streams."""
    with ThreadPoolExecutor(8) as pool:
        plain = [pool.submit(generate, engine, prompt, {}) for prompt in PROMPTS]
        logprobs = pool.submit(generate, engine, PROMPTS[1], {}, return_logprob=True)
        stopped = pool.submit(generate, engine, PROMPTS[0], {"stop_token_ids": STOPS, "ignore_eos": False})
        said = {f"plain {k}": told.result()["output_ids"] for k, told in enumerate(plain)}
        said["logprobs"] = [token for _, token, _ in logprobs.result()["meta_info"]["output_token_logprobs"]]
        said["stopped"] = stopped.result()["output_ids"]
        each = [told.result()["meta_info"].get("spec_accept_length", 1.0) for told in plain]
    return said, each


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(tiny_model)
    endless = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        whole = [model.generate(torch.tensor([prompt]), do_sample=False, **endless)[0].tolist() for prompt in PROMPTS]
    said = {f"plain {k}": tokens[len(PROMPTS[k]) :] for k, tokens in enumerate(whole)}
    last = next(k for k, token in enumerate(said["plain 0"]) if token in STOPS)
    return said | {"logprobs": said["plain 1"], "stopped": said["plain 0"][: last + 1]}


@pytest.fixture(
    scope="module", params=["Speculating", f"Speculating on {RELEASES[0]}", f"Overlapping on {RELEASES[0]}"]
)
def engine(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    path_with: Callable[..., str],
) -> Iterator[Engine]:
    policy, _, release = request.param.partition(" on ")
    log = tmp_path_factory.mktemp("speculation") / "log"
    path = path_with(release, POLICIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
        flags = (*BASE, *SPECULATING, *FORCED)
        with Engine(tiny_model, f"speculation:{policy}", flags, log=log) as started:
            yield started
            assert ("overlap: on" in log.read_text(errors="replace")) == (policy == "Overlapping")


def preemptions(engine: Engine, mode: str) -> float:
    return read_metrics(engine.url).get(f'andes_preemptions_total{{mode="{mode}",reason="forced"}}', 0.0)


def test_outputs_are_token_identical(engine: Engine, expected: dict[str, Any]) -> None:
    """The second time the drafts are right: a step gives several tokens, and every slice ends after one or two."""
    said, _ = answers(engine)
    assert said == expected
    said, each = answers(engine)
    assert said == expected
    assert min(each) > 2
    assert min(preemptions(engine, mode) for mode in ("park", "release")) > 40
    assert "flushed" in str(engine.post("/flush_cache?timeout=60", {}))
    assert "leak" not in engine.log.read_text(errors="replace").lower()


def test_what_is_counted_by_steps_is_not_preempted(engine: Engine) -> None:
    before = preemptions(engine, "park") + preemptions(engine, "release")
    answer = generate(engine, PROMPTS[2], {"frequency_penalty": 0.5})
    assert len(answer["output_ids"]) == TOKENS
    assert preemptions(engine, "park") + preemptions(engine, "release") == before
