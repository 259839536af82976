"""The tokens of a model that is none: four bytes of text each, deterministic, the same for prompts and answers."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BLOCK_TOKENS",
    "EOS_ID",
    "MIN_ANSWER_TOKENS",
    "TOKEN_BYTES",
    "SimulatedPrompt",
    "answer_tokens",
    "answered",
    "of_ids",
    "of_text",
    "passage",
    "token_ids",
]

TOKEN_BYTES = 4
BLOCK_TOKENS = 512
"""Tokens; prompts share KV in whole blocks of this length (:func:`andes_sglang.sim.radix.sequence`)."""
EOS_ID = 2
MIN_ANSWER_TOKENS = 2
_FIRST_WORD_ID = 3
_TEXT = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see two way who "
    "boy did its let put say she too use run sun sea sky red big far few own ask act add age ago air arm art bag bed bit box "
    "car cup cut dry ear eat egg end eye fit fly fun gas hat hit ice job key law lay led leg lie lot low map may mix net"
)
_WORDS = tuple(_TEXT.split())
_PAGE_TOKENS = 1 << 14
_PAGE = "".join(word + " " for word in random.Random(0).choices(_WORDS, k=_PAGE_TOKENS))  # noqa: S311
_PAGES = (_PAGE + _PAGE).encode()
_WORD_BYTES = {f"{word} ".encode() for word in _WORDS}
_WORD_IDS = {word: k for k, word in enumerate(_WORDS, _FIRST_WORD_ID)}
_ANCHOR_TOKENS = 8
"""Tokens that are found once in the page."""
_SPREAD = 0.7
"""Standard deviation of the logarithm of an answer's length: a mean of 256 has its 5 % at 60 and its 95 % at 630."""


@dataclass(frozen=True, slots=True)
class SimulatedPrompt:
    """tokens: its length; blocks: equal id, equal tokens; seed: what its answers are made from; text: for ``echo``; from_ids:
    given as token ids."""

    tokens: int
    blocks: tuple[int, ...]
    seed: int
    text: str
    from_ids: bool = False


def of_text(text: str) -> SimulatedPrompt:
    """A token is four bytes of UTF-8, the last one perhaps less."""
    data = text.encode()
    return SimulatedPrompt(max(1, -(-len(data) // TOKEN_BYTES)), _blocks(data, TOKEN_BYTES), _digest(data), text)


def of_ids(ids: Sequence[int]) -> SimulatedPrompt:
    """Raises ``OverflowError`` for an id beyond 64 bits."""
    data = array("q", ids)
    text = "".join(_WORDS[(k - _FIRST_WORD_ID) % len(_WORDS)] + " " for k in ids)
    return SimulatedPrompt(len(ids), _blocks(data.tobytes(), data.itemsize), _digest(data.tobytes()), text, True)


def passage(seed: int, start: int, end: int) -> str:
    """Tokens ``start`` to ``end`` of the answer that ``seed`` gives; ASCII that needs no escape in JSON."""
    at = (seed + start) % _PAGE_TOKENS
    text = _PAGE[at * TOKEN_BYTES : (at + end - start) * TOKEN_BYTES]
    while (missing := (end - start) * TOKEN_BYTES - len(text)) > 0:
        text += _PAGE[:missing]
    return text


def answered(prompt: SimulatedPrompt, shift: int) -> tuple[int, int]:
    """The answer that ``prompt`` goes on with: its seed, and how many of its tokens ``prompt`` ends with.

    ``shift`` is what the seed of an answer has over that of its prompt. A prompt that ends with no answer to its beginning
    has none of its own answer yet.
    """
    data = prompt.text.encode()
    said = 0 if prompt.from_ids else _page_tokens(data)
    prefix = hashlib.blake2b(data[: len(data) - said * TOKEN_BYTES], digest_size=8)
    for k in range(said, 0, -1):
        rest = data[len(data) - k * TOKEN_BYTES :]
        seed = int.from_bytes(prefix.digest()) + shift
        at = seed % _PAGE_TOKENS * TOKEN_BYTES
        if _PAGES.startswith(rest[:TOKEN_BYTES], at) and passage(seed, 0, k).encode() == rest:
            return seed, k
        prefix.update(rest[:TOKEN_BYTES])
    return prompt.seed + shift, 0


def _page_tokens(data: bytes) -> int:
    """The most tokens at the end of ``data`` that may be a passage."""
    count, end = 0, len(data)
    while count < _ANCHOR_TOKENS and data[max(0, end - TOKEN_BYTES) : end] in _WORD_BYTES:
        count, end = count + 1, end - TOKEN_BYTES
    at = _PAGES.find(data[end:]) if count == _ANCHOR_TOKENS else -1
    if at < 0:
        return count
    at = at or len(_PAGE)
    while end >= TOKEN_BYTES and data[end - TOKEN_BYTES : end] == _PAGES[at - TOKEN_BYTES : at]:
        count, end = count + 1, end - TOKEN_BYTES
        at = (at - TOKEN_BYTES) or len(_PAGE)
    return count


def token_ids(text: str) -> list[int]:
    """The ids of a :func:`passage`."""
    return [_WORD_IDS[word] for word in text.split()]


def answer_tokens(seed: int, mean_tokens: float) -> int:
    """Length of the answer to ``seed`` where no limit cuts it, its end-of-text token included; log-normal."""
    mu = math.log(mean_tokens) - _SPREAD**2 / 2
    return max(MIN_ANSWER_TOKENS, round(random.Random(seed).lognormvariate(mu, _SPREAD)))  # noqa: S311


def _blocks(data: bytes, token_bytes: int) -> tuple[int, ...]:
    size = BLOCK_TOKENS * token_bytes
    return tuple(_digest(data[at : at + size]) for at in range(0, len(data) - size + 1, size))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
