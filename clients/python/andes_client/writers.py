"""Who can write an answer, or go on with one: an asynchronous OpenAI client, or a function that yields text.

A beginning is continued as the wire has it: its text is the last message, of the assistant, and ``continue_final_message``
says that it is not over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import openai

from andes_client.answer import AsyncAnswer
from andes_client.client import AsyncAndesClient, OnWait
from andes_client.experience import count_tokens
from andes_client.reader import Reader

__all__ = ["Generate", "Piece", "Source", "Writer", "writer_of"]

Generate = Callable[[Sequence[Mapping[str, Any]]], AsyncIterator[str] | Iterable[str]]
"""Takes messages, and goes on with the last one where the assistant says it; ends when the answer is complete."""
Source = openai.AsyncOpenAI | AsyncAndesClient | Generate
LIMITS = ("max_tokens", "max_completion_tokens")


class Piece(NamedTuple):
    """text of ``tokens`` tokens; the last has none, and a finish_reason."""

    text: str
    tokens: int
    finish_reason: str | None = None


class Request(NamedTuple):
    """messages: of the caller. prefix: what is written already, of ``tokens`` tokens. options: of chat completions."""

    messages: Sequence[Mapping[str, Any]]
    prefix: str
    tokens: int
    reader: Reader
    options: Mapping[str, Any]
    on_wait: OnWait
    on_open: Callable[[AsyncAnswer], None]

    @property
    def conversation(self) -> list[Mapping[str, Any]]:
        beginning = [{"role": "assistant", "content": self.prefix}] if self.prefix else []
        return [*self.messages, *beginning]

    @property
    def tokens_left(self) -> int | None:
        """None: no limit."""
        limits = [self.options[name] for name in LIMITS if isinstance(self.options.get(name), int)]
        return min(limits) - self.tokens if limits else None


class Writer(Protocol):
    """One side of a race. model: whose words these are."""

    model: str

    def write(self, request: Request) -> AsyncIterator[Piece]:
        """The answer, or what follows the prefix; raises what goes wrong. Closing it ends the work."""
        ...


def writer_of(source: Source, model: str | None, side: str, max_wait_s: float) -> Writer:
    """Raises ``ValueError`` for what cannot write."""
    if isinstance(source, openai.OpenAI):
        raise ValueError(f"{side} must be asynchronous: openai.AsyncOpenAI, got openai.OpenAI")
    if isinstance(source, openai.AsyncOpenAI):
        source = AsyncAndesClient(source, max_wait_s=max_wait_s, max_retries=2 if max_wait_s else 0)
    if isinstance(source, AsyncAndesClient):
        if not model:
            raise ValueError(f"{side}_model must name the model that the {side} server is to be asked for")
        return _Server(source, model)
    if not callable(source):
        raise ValueError(f"{side} must be an openai.AsyncOpenAI, an AsyncAndesClient or a function, got {source!r}")
    return _Function(source, model or str(getattr(source, "__name__", type(source).__name__)))


class _Server:
    def __init__(self, client: AsyncAndesClient, model: str) -> None:
        self.model = model
        self._client = client

    async def write(self, request: Request) -> AsyncIterator[Piece]:
        options, reader = dict(request.options), request.reader
        if request.prefix:
            options["extra_body"] = {"continue_final_message": True, **(options.get("extra_body") or {})}
            for name in LIMITS:
                if isinstance(options.get(name), int):
                    options[name] -= request.tokens
        answer = await self._client.stream(
            request.conversation, model=self.model, reading_speed=reader.reading_speed,
            first_token_s=reader.first_token_s, klass=reader.klass, expected_tokens=reader.expected_tokens,
            on_wait=request.on_wait, **options,
        )  # fmt: skip
        request.on_open(answer)
        counted = 0
        async with answer:
            async for text in answer:
                said = (answer.counted_by_server() or 0) - counted  # of continuous_usage_stats
                tokens = said if said > 0 else count_tokens(text)
                counted += tokens
                yield Piece(text, tokens)
        yield Piece("", 0, answer.finish_reason)


class _Function:
    def __init__(self, generate: Generate, model: str) -> None:
        self.model = model
        self._generate = generate

    async def write(self, request: Request) -> AsyncIterator[Piece]:
        made = self._generate(request.conversation)
        pieces = made if isinstance(made, AsyncIterator) else _in_threads(iter(made))
        left = request.tokens_left
        try:
            async for text in pieces:
                if text:
                    yield Piece(text, count_tokens(text))
                left = None if left is None else left - count_tokens(text)
                if left is not None and left <= 0:
                    yield Piece("", 0, "length")
                    return
        finally:
            if isinstance(pieces, AsyncIterator) and hasattr(pieces, "aclose"):
                await pieces.aclose()
        yield Piece("", 0, "stop")


async def _in_threads(pieces: Iterator[str]) -> AsyncIterator[str]:
    """What blocks while it computes, without blocking others. Who is cancelled waits for the piece under way."""
    step = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
            if (text := await asyncio.shield(step)) is None:
                return
            yield text
    finally:
        if step is not None and not step.done():
            with contextlib.suppress(Exception):
                await step
        if hasattr(pieces, "close"):
            pieces.close()
