"""Endpoints that generate nothing: embeddings, scores, orders, token ids. Deterministic, at no cost, and without meaning."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from andes_sglang.sim.server.bodies import BadRequestError, Limits, chat_prompt, prompts_of
from andes_sglang.sim.server.text import EOS_ID, SimulatedPrompt, of_text

__all__ = ["count_tokens", "detokenize", "embeddings", "rerank", "score", "tokenize"]

DIMENSIONS = 64


def embeddings(body: Mapping[str, Any], limits: Limits) -> Any:  # noqa: ARG001
    """A body of ``/v1/embeddings``, answered."""
    if "input" not in body:
        raise BadRequestError("input: field required")
    given = prompts_of(body["input"], "input")
    data = [{"object": "embedding", "index": k, "embedding": _vector(prompt)} for k, prompt in enumerate(given)]
    tokens = sum(prompt.tokens for prompt in given)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return {"object": "list", "data": data, "model": body.get("model", "default"), "usage": usage}


def score(body: Mapping[str, Any], limits: Limits) -> Any:  # noqa: ARG001
    """A body of ``/v1/score``, answered: for each item, numbers that add up to 1 as probabilities of its labels."""
    labels = body.get("label_token_ids")
    if not isinstance(labels, list) or not labels:
        raise BadRequestError(f"label_token_ids must be a list of token ids, got {labels!r}")
    query = prompts_of(body.get("query"), "query")[0]
    made = []
    for item in prompts_of(body.get("items"), "items"):
        chances = [random.Random(query.seed ^ item.seed ^ hash(label)).random() for label in labels]  # noqa: S311
        made.append([chance / sum(chances) for chance in chances])
    return {"scores": made, "model": body.get("model", "default"), "usage": None, "object": "scoring"}


def rerank(body: Mapping[str, Any], limits: Limits) -> Any:  # noqa: ARG001
    """A body of ``/v1/rerank``, answered: the documents, most alike first."""
    query = _vector(prompts_of(body.get("query"), "query")[0])
    documents = body.get("documents")
    made = [
        {"score": _product(query, _vector(prompt)), "document": prompt.text, "index": k}
        for k, prompt in enumerate(prompts_of(documents, "documents"))
    ]
    return sorted(made, key=lambda found: -float(found["score"]))


def tokenize(body: Mapping[str, Any], limits: Limits) -> Any:
    """A body of ``/v1/tokenize``, answered."""
    tokens = _ids(prompts_of(body.get("prompt"), "prompt")[0])
    return {"tokens": tokens, "count": len(tokens), "max_model_len": limits.context_tokens}


def detokenize(body: Mapping[str, Any], limits: Limits) -> Any:  # noqa: ARG001
    """A body of ``/v1/detokenize``, answered."""
    return {"text": prompts_of(body.get("tokens"), "tokens")[0].text}


def count_tokens(body: Mapping[str, Any], limits: Limits) -> Any:  # noqa: ARG001
    """A body of ``/v1/messages/count_tokens``, answered."""
    return {"input_tokens": chat_prompt(body).tokens}


def _vector(prompt: SimulatedPrompt) -> list[float]:
    chance = random.Random(prompt.seed)  # noqa: S311
    made = [chance.gauss(0.0, 1.0) for _ in range(DIMENSIONS)]
    length = sum(x * x for x in made) ** 0.5
    return [x / length for x in made]


def _product(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(one, other))


def _ids(prompt: SimulatedPrompt) -> list[int]:
    return [EOS_ID + 1 + of_text(prompt.text[k : k + 4]).seed % 100 for k in range(0, len(prompt.text), 4)]
