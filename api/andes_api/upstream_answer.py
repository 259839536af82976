"""What a replica answers: read to its end, and what in it is the engine's failure."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

__all__ = [
    "UpstreamError",
    "blames_engine",
    "count_of",
    "output_tokens_of",
    "prompt_tokens_of",
    "read_all",
    "read_to_end",
]

MAX_ANSWER_BYTES = 64 << 20
"""Bytes of an answer in one piece; 1 M tokens with logprobs are about as many."""
EOF_TIMEOUT_S = 0.5
"""Seconds for the end of an answer to follow its last event, so that the connection can be used again."""


class UpstreamError(Exception):
    """A replica failed. ``event``, ``answer``: what it said, where it said something an OpenAI client reads. ``blame``:
    whether its circuit breaker counts the failure."""

    def __init__(
        self, kind: str, *, blame: bool = True, event: bytes = b"", answer: tuple[int, dict[str, str], bytes] | None = None
    ) -> None:  # fmt: skip
        super().__init__(kind)
        self.kind, self.blame, self.event, self.answer = kind, blame, event, answer


async def read_all(answer: aiohttp.ClientResponse) -> bytes:
    """An answer in one piece. Raises :class:`UpstreamError` where it is too long."""
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamError("too long")
        parts.append(part)
    return b"".join(parts)


async def read_to_end(answer: aiohttp.ClientResponse) -> None:
    """After the last event comes the end of the answer: read it, so that the connection can be used again."""
    try:
        async with asyncio.timeout(EOF_TIMEOUT_S):
            while await answer.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, OSError):
        answer.close()


def count_of(usage: Any, name: str) -> int:
    """A count of an engine's ``usage``; 0 where it is missing or no count."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return max(0, count) if isinstance(count, int) else 0


def prompt_tokens_of(usage: Any) -> int:
    """Of OpenAI's or Anthropic's ``usage``; the latter counts what was cached apart."""
    return count_of(usage, "prompt_tokens") or (
        count_of(usage, "input_tokens") + count_of(usage, "cache_read_input_tokens")
    )


def output_tokens_of(usage: Any) -> int:
    return count_of(usage, "completion_tokens") or count_of(usage, "output_tokens")


def blames_engine(error: Any) -> bool:
    """Whether an error in a stream is the engine's fault rather than the request's."""
    code = error.get("code") if isinstance(error, dict) else None
    return not isinstance(code, int) or code >= 500
