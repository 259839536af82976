"""What an engine left alone says to the prompts of a soak (:mod:`benchmarks.soak`), kept in a file for all that follow."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from andes_sglang.bench.engine import Engine

__all__ = ["Answers", "generate", "length_told_apart"]

PROMPT_TOKENS = (5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610)
PROMPTS = 8 * len(PROMPT_TOKENS)
ANSWER_TOKENS = 400
LEAST_ANSWER_TOKENS = 40
MARGIN = 1e-4
"""Log-probability by which a token has to be ahead of the next: float32 is a hundred times as exact, whatever the batch."""
MOST_ALIKE = 3
"""In a row: a token too many or too few would not be seen among more."""
PATIENCE_S = 300.0


def generate(engine: Engine, prompt: list[int], tokens: int, timeout_s: float, **more: Any) -> Any:
    """The answer of ``/generate``. Raises ``OSError``."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return engine.post("/generate", {"input_ids": prompt, "sampling_params": sampling, **more}, timeout_s)


def prompt_of(k: int) -> list[int]:
    return [7 + (31 * k + 13 * j + j * j // 7) % 900 for j in range(PROMPT_TOKENS[k % len(PROMPT_TOKENS)] + k % 5)]


def length_told_apart(tokens: Sequence[int], margins: Sequence[float]) -> int:
    """Tokens of an answer up to the first whose rival is too near for arithmetic in another order, or that only repeats what
    comes before it."""
    alike = 0
    for k, (token, margin) in enumerate(zip(tokens, margins, strict=True)):
        alike = alike + 1 if k and token == tokens[k - 1] else 1
        if margin < MARGIN or alike > MOST_ALIKE:
            return k
    return len(tokens)


@dataclass(frozen=True, slots=True)
class Answers:
    """Prompts and what is to be said to them, the shortest prompts first."""

    known: list[tuple[list[int], list[int]]]

    @classmethod
    def of(cls, model: Path, out: Path) -> Answers:
        """Of ``model``: asked of a stock engine once, then read from ``out``."""
        kept = out / "expected.json"
        if not kept.exists():
            stock = Engine(model, "stock", ("--max-total-tokens", "65536"), log=out / "stock.log")
            with stock as engine, ThreadPoolExecutor(8) as pool:
                told = list(pool.map(lambda k: _asked(engine, prompt_of(k)), range(PROMPTS)))
            kept.write_text(json.dumps([pair for pair in told if len(pair[1]) >= LEAST_ANSWER_TOKENS]))
        return cls(sorted(json.loads(kept.read_text()), key=lambda pair: len(pair[0])))

    def draw(self, rng: random.Random, room_tokens: float) -> tuple[list[int], list[int]]:
        """A prompt that fits with its answer; long ones are rarer, by their length."""
        fitting = [pair for pair in self.known if len(pair[0]) + len(pair[1]) <= room_tokens]
        return rng.choices(fitting, [1 / len(prompt) for prompt, _ in fitting])[0]


def _asked(engine: Engine, prompt: list[int]) -> tuple[list[int], list[int]]:
    answer = generate(engine, prompt, ANSWER_TOKENS, PATIENCE_S, return_logprob=True, top_logprobs_num=2)
    best = answer["meta_info"]["output_top_logprobs"]
    told = length_told_apart(answer["output_ids"], [one[0] - two[0] for one, two in best])
    return prompt, answer["output_ids"][:told]
