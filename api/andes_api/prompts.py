"""What a prompt says about itself before any tokenizer has seen it: its length, how it begins, who has seen it before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

__all__ = ["Prompt", "Seen"]

BLOCK = 512
MAX_BLOCKS = 64
_KEY_LENGTH = 1024


class Prompt:
    """Length and chained block hashes of a prompt. ``text``: what the engine will see, roughly; ``ids``: token ids."""

    def __init__(self, body: Mapping[str, Any], chat: bool) -> None:
        prompt = body.get("messages") if chat else body.get("prompt")
        ids = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], int) else None
        self._tokens = len(ids) if ids else None
        text = ",".join(map(str, ids[: BLOCK * MAX_BLOCKS])) if ids else _text(prompt)
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

    @property
    def counted(self) -> bool:
        return self._tokens is not None


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return "\n".join(_text(part) for part in prompt)
    if isinstance(prompt, dict):  # a message or a part of one
        return f"{prompt.get('role', '')}{_text(prompt.get('content') or prompt.get('text'))}"
    return ""


class Seen:
    """The prompt blocks a replica has probably still in its cache: the last ``limit`` it was sent."""

    def __init__(self, limit: int = 20_000) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._limit = limit

    def add(self, prompt: Prompt) -> None:
        for block in prompt.blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)

    def share(self, prompt: Prompt) -> float:
        """Share of ``prompt``, from its beginning, that was seen: 0 to 1."""
        hit = 0
        for block in prompt.blocks:
            if block not in self._blocks:
                break
            hit += 1
        return hit * BLOCK / prompt.length if hit else 0.0
