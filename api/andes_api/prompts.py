"""What a prompt says about itself before any tokenizer has seen it: its length and how it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from andes_sglang.routing import PrefixTracker

__all__ = ["BLOCK", "Prompt", "prompt_text"]

BLOCK = 512
MAX_BLOCKS = 64
_KEY_LENGTH = 1024


class Prompt:
    """Length and chained block hashes of the prompt that ``fields`` of a request hold. ``text``: what the engine will see,
    roughly; ``ids``: token ids."""

    def __init__(self, body: Mapping[str, Any], fields: Sequence[str]) -> None:
        text, self._tokens = prompt_text(body, fields)
        self.length = len(text)
        self.key = int.from_bytes(hashlib.blake2b(text[:_KEY_LENGTH].encode(errors="replace"), digest_size=8).digest())
        blocks, chained = [], 0
        for k in range(min(len(text) // BLOCK, MAX_BLOCKS)):
            chained = hash((chained, text[k * BLOCK : (k + 1) * BLOCK]))
            blocks.append(chained)
        self.blocks = blocks

    def tokens(self, chars_per_token: float) -> float:
        """Prompt tokens: exact for ids, otherwise by length."""
        return float(self._tokens) if self._tokens is not None else self.length / chars_per_token

    def share(self, prefixes: PrefixTracker) -> float:
        """Share of this prompt, from its beginning, that a replica has seen: 0 to 1."""
        matched = prefixes.matched(self.blocks)
        return matched * BLOCK / self.length if matched else 0.0

    @property
    def counted(self) -> bool:
        return self._tokens is not None


def prompt_text(body: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, int | None]:
    """What the engine will see, roughly, and the number of tokens where they are given as ids."""
    given = [body[name] for name in fields if body.get(name) is not None]
    prompt = given[0] if len(given) == 1 else given
    ids = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], int) else None
    if ids:
        return ",".join(map(str, ids[: BLOCK * MAX_BLOCKS])), len(ids)
    return _text(prompt), None


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return "\n".join(_text(part) for part in prompt)
    if isinstance(prompt, dict):  # a message or a part of one
        return f"{prompt.get('role', '')}{_text(prompt.get('content') or prompt.get('text'))}"
    return ""
