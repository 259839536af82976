"""Data sets that say how long requests are, not when they arrive: ShareGPT's conversations, and prompts one a row.

Arrivals come from a shape. Where a data set holds texts and no counts of tokens, these are estimated from characters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.workload.base import Workload, WorkloadError
from andes_sglang.workload.traces.rows import Row, read_document, rows_of

__all__ = ["CHARACTERS_PER_TOKEN", "Dataset", "load_dataset"]

CHARACTERS_PER_TOKEN = 4.0
"""Of English in the usual vocabularies, roughly."""
DATASET_SEED_OFFSET = 104729
"""Keeps the order in which requests are taken apart from the draw of arrivals."""
PROMPTS = ("prompt", "text", "question")
ANSWERS = ("completion", "response", "answer", "expected_answer")
COUNTS = ("output_tokens", "output_length")
HUMANS, MODELS = ("human", "user"), ("gpt", "assistant", "chatgpt", "bing", "bard")


@dataclass(frozen=True, slots=True)
class Dataset:
    """lengths: tokens of prompt and answer of each request; None: the data set does not say how long the answer is.
    left_out: entries that hold no request."""

    name: str
    lengths: tuple[tuple[int, int | None], ...]
    left_out: int = 0

    @property
    def has_answers(self) -> bool:
        """Whether it says of every answer how long it is."""
        return all(output is not None for _, output in self.lengths)

    def applied_to(self, workload: Workload, seed: int) -> Workload:
        """``workload`` with lengths of the data set in random order, again from the start where it has fewer requests."""
        order = np.random.default_rng(seed + DATASET_SEED_OFFSET).permutation(len(self.lengths))
        chosen = [self.lengths[order[k % len(order)]] for k in range(len(workload))]
        requests = tuple(
            replace(
                r, prompt_tokens=prompt, output_tokens=r.output_tokens if output is None else r.reason_tokens + output
            )
            for r, (prompt, output) in zip(workload, chosen, strict=True)
        )
        return replace(workload, name=f"{self.name}, {workload.name}", requests=requests, left_out=self.left_out)


def load_dataset(path: Path, characters_per_token: float = CHARACTERS_PER_TOKEN) -> Dataset | None:
    """The lengths in ``path``; None for a file of another kind. Raises :class:`WorkloadError` naming what cannot be read."""
    document = read_document(path)
    if isinstance(document, list):
        lengths: list[tuple[int, int | None] | None] = [
            _conversation(entry, characters_per_token) for entry in document
        ]
        what = "no entry is a conversation (ShareGPT: conversations of {from, value})"
    else:
        rows = rows_of(path, document)
        first = next(rows, None)
        if first is None or not any(name in first.fields for name in PROMPTS):
            return None
        lengths = [_prompt(row, characters_per_token) for row in (first, *rows)]
        what = f"no row holds a {PROMPTS[0]}"
    kept = tuple(pair for pair in lengths if pair is not None)
    if not kept:
        raise WorkloadError(f"{path}: {what}")
    return Dataset(path.name, kept, len(lengths) - len(kept))


def _tokens(text: str, characters_per_token: float) -> int:
    return max(1, round(len(text) / characters_per_token))


def _conversation(entry: Any, characters_per_token: float) -> tuple[int, int] | None:
    """The first thing that a person asks and the answer to it, as vLLM's benchmark takes them; None without either."""
    if not isinstance(entry, Mapping):
        return None
    turns = entry.get("conversations") or entry.get("conversation") or entry.get("messages") or ()
    texts = list(_turns(turns if isinstance(turns, Sequence) else ()))
    for (asks, question), (answers, answer) in itertools.pairwise(texts):
        if asks in HUMANS and answers in MODELS and question and answer:
            return _tokens(question, characters_per_token), _tokens(answer, characters_per_token)
    return None


def _turns(turns: Iterable[Any]) -> Iterable[tuple[str, str]]:
    for turn in turns:
        if isinstance(turn, Mapping):
            text = turn.get("value", turn.get("content"))
            yield str(turn.get("from", turn.get("role"))), text if isinstance(text, str) else ""


def _prompt(row: Row, characters_per_token: float) -> tuple[int, int | None] | None:
    prompt = next((row.fields[name] for name in PROMPTS if row.states(name)), None)
    if prompt is None:
        return None
    counted = next((name for name in COUNTS if row.states(name)), None)
    written = next((row.fields[name] for name in ANSWERS if row.states(name)), None)
    output = (
        row.tokens(counted) if counted else None if written is None else _tokens(str(written), characters_per_token)
    )
    return _tokens(str(prompt), characters_per_token), output
