"""LoRA adapters, custom logit processors and branches of a session under forced preemption: the same tokens as on an engine left
alone, with fewer places for adapters in a batch than there are."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.bench.engine import Engine, read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ADAPTERS = ("one", "two", "three")
RANK = 4
PROMPTS = [[7 + (31 * k + 13 * j) % 900 for j in range(30 + 17 * k)] for k in range(4)]
TOKENS = 40
EVERY_TOKENS = 3
BANNED = list(range(0, 1000, 2))


def write_adapter(out: Path, seed: int, layers: int = 2, hidden: int = 64) -> Path:
    """Of a model of :mod:`andes_sglang.adapter.tiny_model`: large enough to change every token."""
    import torch
    from safetensors.torch import save_file

    out.mkdir()
    targets = ("q_proj", "v_proj")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": targets, "use_dora": False}
    (out / "adapter_config.json").write_text(json.dumps(told))
    torch.manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for target in targets:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden) / 2
            weights[f"{name}.lora_B.weight"] = torch.randn(hidden, RANK) / 2
    save_file(weights, out / "adapter_model.safetensors")
    return out


PAGEABLE = """
import torch

def pageable(make):
    return lambda *given, pin_memory=False, **named: make(*given, **named)

for name in ("arange", "empty", "tensor", "zeros"):
    setattr(torch, name, pageable(getattr(torch, name)))
torch.Tensor.pin_memory = lambda self, *_: self
"""
"""For processes without an accelerator: SGLang's LoRA takes memory from torch that only those have."""


BANS = """
class Bans:
    def __call__(self, logits, custom_param_list):
        for row, params in enumerate(custom_param_list):
            logits[row, params["banned"]] = float("-inf")
        return logits

class Stateless(Bans):
    andes_stateless = True
"""


def processor(*, stateless: bool) -> str:
    """The code of a processor that bans every other token, pickled by its name; what it declares is on its class."""
    return json.dumps({"callable": f"cbans\n{'Stateless' if stateless else 'Bans'}\n.".encode().hex()})


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "sitecustomize.py").write_text(PAGEABLE)
    (folder / "bans.py").write_text(BANS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [f"{name}={write_adapter(folder / name, seed)}" for seed, name in enumerate(ADAPTERS)]


def flags(adapters: list[str]) -> tuple[str, ...]:
    """Places in a batch for two of four: three adapters and the model itself."""
    lora = ("--enable-lora", "--lora-paths", *adapters, "--lora-backend", "torch_native", "--max-loras-per-batch", "2")
    return (*lora, "--enable-custom-logit-processor", "--max-total-tokens", "4096", "--max-running-requests", "6")


def generate(engine: Engine, prompt: list[int], params: Any = None, tokens: int = TOKENS, **more: Any) -> list[int]:
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0, "custom_params": params}
    body = {"input_ids": prompt, "sampling_params": sampling, **more}
    answer: Any = engine.post("/generate", body)
    return list(answer["output_ids"])


def branches(engine: Engine) -> list[list[int]]:
    """A session of SGLang: a first turn, and two that go on from it at the same time."""
    session = json.loads(str(engine.post("/open_session", {"capacity_of_str_len": 1000})["text"]))
    generate(engine, PROMPTS[0], rid=f"{session}-1", session_params={"id": session, "rid": None})
    with ThreadPoolExecutor(2) as pool:
        turn = {"id": session, "rid": f"{session}-1"}
        said = list(pool.map(lambda prompt: generate(engine, prompt, session_params=turn), PROMPTS[1:3]))
    engine.post("/close_session", {"session_id": session})
    return said


def answers(engine: Engine) -> dict[str, Any]:
    with ThreadPoolExecutor(16) as pool:
        session = pool.submit(branches, engine)
        lora = {
            f"{name or 'none'} {k}": pool.submit(generate, engine, prompt, lora_path=name)
            for k, prompt in enumerate(PROMPTS[:2])
            for name in (*ADAPTERS, None)
        }
        banned = {
            f"stateless {stateless}": pool.submit(
                generate, engine, PROMPTS[3], {"banned": BANNED}, custom_logit_processor=processor(stateless=stateless)
            )
            for stateless in (True, False)
        }
        return {"session": session.result()} | {name: told.result() for name, told in (lora | banned).items()}


@pytest.fixture(scope="module")
def expected(tiny_model: Path, adapters: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with Engine(tiny_model, "stock", flags(adapters), log=tmp_path_factory.mktemp("stock") / "log") as engine:
        told = answers(engine)
    alone = [told[f"{name} 0"] for name in (*ADAPTERS, "none")]
    assert len({tuple(said) for said in alone}) == len(alone), "every adapter changes the answer"
    assert told["stateless True"] == told["stateless False"]
    assert not set(told["stateless True"]) & set(BANNED)
    return told


CONFIGURATIONS = {
    "park-mixed": ("park", "--enable-mixed-chunk", "--chunked-prefill-size", "32"),
    "release-no_overlap": ("release", "--disable-overlap-schedule"),
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def engine(
    request: pytest.FixtureRequest, tiny_model: Path, adapters: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    mode, *more = CONFIGURATIONS[request.param]
    forced = ("--policy-option", f"mode={mode}", "--policy-option", f"every_tokens={EVERY_TOKENS}", "--enable-metrics")
    log = tmp_path_factory.mktemp("forced") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
        with Engine(tiny_model, "forced", (*flags(adapters), *forced, *more), log=log) as started:
            yield started


def preemptions(engine: Engine, mode: str) -> float:
    return read_metrics(engine.url).get(f'andes_preemptions_total{{mode="{mode}",reason="forced"}}', 0.0)


def test_outputs_are_token_identical(engine: Engine, expected: dict[str, Any]) -> None:
    """All are released, also under ``park``: a parked stream's adapter would have lost its place in the batch."""
    assert answers(engine) == expected
    assert preemptions(engine, "park") == 0
    turns = len(expected["session"]) + 1
    streams = turns + len(expected) - 2  # of the two with a processor one may be preempted
    assert preemptions(engine, "release") > streams * TOKENS / (2 * EVERY_TOKENS)


def test_only_a_processor_that_says_so_is_preempted(engine: Engine, expected: dict[str, Any]) -> None:
    for stateless in (True, False):
        before = preemptions(engine, "release")
        code = processor(stateless=stateless)
        said = generate(engine, PROMPTS[3], {"banned": BANNED}, custom_logit_processor=code)
        assert said == expected[f"stateless {stateless}"]
        assert (preemptions(engine, "release") > before + 5) == stateless


def test_a_starving_adapter_gets_a_place(
    tiny_model: Path, adapters: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    """The two that have a place are never without a stream: by SGLang's flag a third one is answered all the same."""
    drains = ("--lora-drain-wait-threshold", "0.5", "--max-running-requests", "12")
    lengths = (90, 100, 110, 120, 130)
    answered, busy = threading.Event(), threading.Semaphore(0)

    def load(name: str, tokens: int) -> None:
        while not answered.is_set():
            generate(engine, PROMPTS[0], tokens=tokens, lora_path=name)
            busy.release()

    with Engine(tiny_model, "fcfs", (*flags(adapters), *drains), log=tmp_path / "log") as engine:
        with ThreadPoolExecutor(2 * len(lengths)) as pool:
            streams = [pool.submit(load, name, tokens) for name in ADAPTERS[:2] for tokens in lengths]
            try:
                for _ in range(2 * len(streams)):
                    assert busy.acquire(timeout=120.0)
                said = generate(engine, PROMPTS[1], tokens=5, lora_path=ADAPTERS[2])
            finally:
                answered.set()
        for stream in streams:
            stream.result()
    assert said == expected["three 1"][:5]
