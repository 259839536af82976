"""What one answer will be: how long, why it ends, and its text piece by piece."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Choice:
    """tokens: its length; room_tokens: the most it could be; finish, matched: SGLang's finish reason and what matched; said:
    tokens of the same answer that its prompt ends with."""

    prompt: SimulatedPrompt
    seed: int
    said: int
    tokens: int
    room_tokens: int
    visible_chars: int
    finish: str
    matched: str | int | None

    def text(self, start: int, end: int) -> str:
        """The text of tokens ``start`` to ``end``; end-of-text and a stop string have none."""
        chars = min(end * TOKEN_BYTES, self.visible_chars) - start * TOKEN_BYTES
        return passage(self.seed, self.said + start, self.said + end)[:chars] if chars > 0 else ""

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
    natural = max(answer_tokens(seed, limits.mean_answer_tokens) - said, asked.min_tokens, 1)
    if natural <= room and not asked.ignore_eos:
        ending = Choice(prompt, seed, said, natural, room, (natural - 1) * TOKEN_BYTES, "stop", EOS_ID)
    else:
        ending = Choice(prompt, seed, said, room, room, room * TOKEN_BYTES, "length", None)
    text = ending.text(0, ending.tokens) if asked.stop else ""
    found = [(at + len(stop), at, stop) for stop in asked.stop if (at := text.find(stop)) >= 0]
    if not found:
        return ending
    end, at, stop = min(found)
    return Choice(prompt, seed, said, -(-end // TOKEN_BYTES), room, end if asked.keep_stop else at, "stop", stop)
