"""The clients: ``openai``'s own, with a reader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import openai

from andes_client.answer import Answer, AsyncAnswer, OnChunk
from andes_client.reader import Reader
from andes_client.reports import AsyncReports, Reports
from andes_client.retries import Retries

__all__ = ["AndesClient", "AsyncAndesClient", "list_of"]

Messages = str | Iterable[Mapping[str, Any]]
OnWait = Callable[[float, str], None]
"""``on_wait(seconds, reason)``: the question is asked again in so many seconds."""
MAX_REPORT_EVERY_S = 10.0
"""A gateway forgets a report after 15 s."""
RESERVED = ("stream", "n")


def list_of(messages: Messages) -> list[Mapping[str, Any]]:
    """As OpenAI has them. Raises ``ValueError`` for what is neither text nor messages."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Iterable) and not isinstance(messages, Mapping):
        listed = list(messages)
        if all(isinstance(message, Mapping) for message in listed):
            return listed
    raise ValueError(f"messages must be text or a list of messages, got {str(messages)[:100]!r}")


class _Asking:
    """What both clients do alike."""

    def __init__(self, *, max_wait_s: float, max_retries: int) -> None:
        if not max_wait_s >= 0:
            raise ValueError(f"max_wait_s must be seconds from 0, got {max_wait_s!r}")
        self._max_wait_s = max_wait_s
        self._max_retries = max_retries

    def _request(self, messages: Messages, model: str, reader: Reader, options: Mapping[str, Any]) -> dict[str, Any]:
        for name in RESERVED:
            if name in options:
                raise ValueError(f"{name} cannot be given: stream() streams one answer")
        return {
            "stream_options": {"include_usage": True},
            **options,
            "messages": list_of(messages),
            "model": model,
            "stream": True,
            "extra_headers": {**reader.headers(), **(options.get("extra_headers") or {})},
        }

    def _retries(self) -> Retries:
        return Retries(self._max_wait_s, self._max_retries)

    @staticmethod
    def _wait_s(retries: Retries, error: openai.APIError, on_wait: OnWait | None) -> float:
        """Seconds until the next try, which ``on_wait`` is told of. Raises ``error`` where there is to be none."""
        if (wait := retries.after(error)) is None:
            raise error
        if on_wait is not None:
            on_wait(wait.seconds, wait.reason)
        return wait.seconds


def _checked(report_every_s: float | None) -> float | None:
    if report_every_s is not None and not 0.1 <= report_every_s <= MAX_REPORT_EVERY_S:
        raise ValueError(
            f"report_every_s must be seconds from 0.1 to {MAX_REPORT_EVERY_S:g}, or None, got {report_every_s!r}"
        )
    return report_every_s


class AndesClient(_Asking):
    """``openai.OpenAI`` with a reader. client: one that exists; else ``options`` make one (``base_url``, ``api_key`` ...).

    max_wait_s: seconds that :meth:`stream` waits in all while it is refused with a time to come back; max_retries: how many
    connections may fail. ``openai``: the client underneath, for all else.
    """

    def __init__(
        self, client: openai.OpenAI | None = None, *, max_wait_s: float = 60.0, max_retries: int = 2, **options: Any
    ) -> None:
        super().__init__(max_wait_s=max_wait_s, max_retries=max_retries)
        self.openai = client or openai.OpenAI(**options)
        self._once = self.openai.with_options(max_retries=0)

    def stream(
        self,
        messages: Messages,
        *,
        model: str,
        reading_speed: float | None = None,
        first_token_s: float | None = None,
        klass: str | None = None,
        expected_tokens: int | None = None,
        pace: bool = False,
        on_wait: OnWait | None = None,
        on_chunk: OnChunk | None = None,
        report_every_s: float | None = None,
        thinking_speed: float | None = None,
        **options: Any,
    ) -> Answer:
        """Ask, and get the answer as it comes.

        messages: as OpenAI has them, or the question. reading_speed, first_token_s, klass, expected_tokens, thinking_speed:
        of the :class:`~andes_client.reader.Reader`. pace: show the text at ``reading_speed``, whatever the server does.
        on_wait: is told when the server is full and the question is asked again. on_chunk: is given each chunk of the
        answer as it is read, before its text is shown: calls of tools (``ToolRunner.feed``) and what else is no text.
        report_every_s: tell the gateway so often what has been shown, so that it does not take what a proxy or this program
        has read ahead for read; None: never.
        options: all else that chat completions take.
        Raises ``ValueError`` for what makes no sense, and ``openai``'s errors once it gives up.
        """
        reader = Reader(reading_speed, first_token_s, klass, expected_tokens, thinking_speed)
        every_s = _checked(report_every_s)
        request, retries, asked_s = self._request(messages, model, reader, options), self._retries(), time.monotonic()
        while True:
            try:
                raw = self._once.chat.completions.with_raw_response.create(**request)
                answer = Answer(
                    raw.parse(), reader, raw.headers,
                    asked_s=asked_s, pace=pace, clock=time.monotonic, on_chunk=on_chunk,
                )  # fmt: skip
                if every_s is not None:
                    answer.report_by(lambda stream_id, shown: Reports(self._once, stream_id, every_s, shown))
                return answer
            except openai.APIError as error:
                wait_s = self._wait_s(retries, error, on_wait)
            time.sleep(wait_s)


class AsyncAndesClient(_Asking):
    """As :class:`AndesClient`, over ``openai.AsyncOpenAI``."""

    def __init__(
        self,
        client: openai.AsyncOpenAI | None = None,
        *,
        max_wait_s: float = 60.0,
        max_retries: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(max_wait_s=max_wait_s, max_retries=max_retries)
        self.openai = client or openai.AsyncOpenAI(**options)
        self._once = self.openai.with_options(max_retries=0)

    async def stream(
        self,
        messages: Messages,
        *,
        model: str,
        reading_speed: float | None = None,
        first_token_s: float | None = None,
        klass: str | None = None,
        expected_tokens: int | None = None,
        pace: bool = False,
        on_wait: OnWait | None = None,
        on_chunk: OnChunk | None = None,
        report_every_s: float | None = None,
        thinking_speed: float | None = None,
        **options: Any,
    ) -> AsyncAnswer:
        """As :meth:`AndesClient.stream`: ``answer = await client.stream(...)``, then ``async for text in answer``."""
        reader = Reader(reading_speed, first_token_s, klass, expected_tokens, thinking_speed)
        every_s = _checked(report_every_s)
        request, retries, asked_s = self._request(messages, model, reader, options), self._retries(), time.monotonic()
        while True:
            try:
                raw = await self._once.chat.completions.with_raw_response.create(**request)
                answer = AsyncAnswer(
                    raw.parse(), reader, raw.headers,
                    asked_s=asked_s, pace=pace, clock=time.monotonic, on_chunk=on_chunk,
                )  # fmt: skip
                if every_s is not None:
                    answer.report_by(lambda stream_id, shown: AsyncReports(self._once, stream_id, every_s, shown))
                return answer
            except openai.APIError as error:
                wait_s = self._wait_s(retries, error, on_wait)
            await asyncio.sleep(wait_s)
