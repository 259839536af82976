"""What one answer will be: how long, why it ends, and its text piece by piece."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from andes_sglang.sim.server.bodies import AnswerRequest, Limits
from andes_sglang.sim.server.text import (
    EOS_ID,
    TOKEN_BYTES,
    SimulatedPrompt,
    answer_tokens,
    answered,
    passage,
    token_ids,
)

__all__ = ["Choice", "plan"]

THOUGHT_SHIFT = 5003
"""Tokens from the text of an answer to that of the thought before it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """tokens: its length; room_tokens: the most it could be; finish, matched: SGLang's finish reason and what matched; said:
    tokens of the same answer that its prompt ends with; thought: tokens before the answer, of which ``separate`` says whether
    they are kept out of its text."""

    prompt: SimulatedPrompt
    seed: int
    said: int
    tokens: int
    room_tokens: int
    visible_chars: int
    finish: str
    matched: str | int | None
    thought: int = 0
    separate: bool = True

    @property
    def hidden(self) -> int:
        """Tokens at the beginning that are not in the text."""
        return self.thought if self.separate else 0

    def text(self, start: int, end: int) -> str:
        """The text of tokens ``start`` to ``end``; end-of-text and a stop string have none."""
        before = "" if self.separate else self._thought(start, end)
        start, end = max(0, start - self.thought), max(0, end - self.thought)
        chars = min(end * TOKEN_BYTES, self.visible_chars) - start * TOKEN_BYTES
        return before + (passage(self.seed, self.said + start, self.said + end)[:chars] if chars > 0 else "")

    def reasoning(self, start: int, end: int) -> str:
        """What of tokens ``start`` to ``end`` is a thought kept out of the text."""
        return self._thought(start, end) if self.separate else ""

    def _thought(self, start: int, end: int) -> str:
        start, end = min(start, self.thought), min(end, self.thought)
        return passage(self.seed + THOUGHT_SHIFT, start, end) if end > start else ""

    def ids(self, end: int) -> list[int]:
        """The ids of the first ``end`` tokens."""
        words = min(end, self.tokens - 1) if self.matched == EOS_ID else end
        return token_ids(passage(self.seed, self.said, self.said + words)) + [EOS_ID] * (end - words)


def plan(asked: AnswerRequest, prompt: SimulatedPrompt, index: int, limits: Limits) -> Choice:
    """Answer number ``index`` to ``prompt``: equal requests to equal adapters get equal answers, and a prompt that ends with
    a part of its own answer gets the rest."""
    seed, said = answered(prompt, 7919 * asked.seed + 104729 * index + zlib.crc32(asked.adapter.encode()))
    room = min(limits.context_tokens, limits.kv_tokens) - prompt.tokens
    if asked.max_tokens is not None:
        room = min(room, asked.max_tokens)
    thought = 0 if said else asked.thought.tokens(seed)
    natural = thought + max(answer_tokens(seed, limits.mean_answer_tokens) - said, asked.min_tokens, 1)
    if natural <= room and not asked.ignore_eos:
        shown = natural - 1 - thought
        ending = Choice(prompt, seed, said, natural, room, shown * TOKEN_BYTES, "stop", EOS_ID, thought)
    else:
        thought = min(thought, room)
        ending = Choice(prompt, seed, said, room, room, (room - thought) * TOKEN_BYTES, "length", None, thought)
    ending = replace(ending, separate=asked.thought.separate)
    text = ending.text(thought, ending.tokens) if asked.stop else ""
    found = [(at + len(stop), at, stop) for stop in asked.stop if (at := text.find(stop)) >= 0]
    if not found:
        return ending
    end, at, stop = min(found)
    visible = end if asked.keep_stop else at
    return replace(ending, tokens=thought - (-end // TOKEN_BYTES), visible_chars=visible, finish="stop", matched=stop)
