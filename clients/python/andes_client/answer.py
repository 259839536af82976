"""One answer as it comes: its text piece by piece, and at the end what the reader got."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from andes_client.experience import Experience, Timeline, count_tokens
from andes_client.pacer import Pacer
from andes_client.reader import Reader
from andes_client.reports import AsyncReports, Reports

__all__ = ["Answer", "AsyncAnswer", "InterruptedAnswerError"]

OnChunk = Callable[[ChatCompletionChunk], object]
WORDS = re.compile(r"\s*\S+\s*|\s+")
"""All of a text, in pieces of a word each."""


class InterruptedAnswerError(Exception):
    """The answer ended before it was complete. text: what had come; request_id: for the people who run the service."""

    def __init__(self, why: str, text: str, request_id: str | None) -> None:
        super().__init__(f"the answer was interrupted after {len(text)} characters: {why}")
        self.text = text
        self.request_id = request_id


class _Reception:
    """What has come of one answer. Times are seconds on ``clock``."""

    def __init__(
        self,
        reader: Reader,
        headers: Mapping[str, str],
        *,
        asked_s: float,
        pace: bool,
        clock: Callable[[], float],
        on_chunk: OnChunk | None = None,
    ) -> None:
        self.reader = reader.told(headers)
        self.request_id = headers.get("x-request-id")
        self._stream_id = headers.get("x-andes-stream")
        self.model: str | None = headers.get("x-andes-model")
        self.usage: CompletionUsage | None = None
        self.finish_reason: str | None = None
        self._clock = clock
        self._on_chunk = on_chunk or (lambda _: None)
        self._pieces: list[str] = []
        self._characters = 0
        self._thoughts = 0
        self._reports: Reports | AsyncReports | None = None
        self._timeline = Timeline(asked_s)
        self._pacer = Pacer(self.reader.reading_speed) if pace and self.reader.reading_speed else None

    @property
    def text(self) -> str:
        """All that has been shown so far."""
        return "".join(self._pieces)

    @property
    def experience(self) -> Experience:
        """What the reader got; while the answer comes, so far."""
        first_s, speed = self.reader.first_token_s, self.reader.reading_speed
        assert first_s is not None and speed is not None  # noqa: PT018, S101
        return self._timeline.experience(
            first_token_s=first_s + self.thought_s,
            reading_speed=speed,
            tokens=self.counted_by_server() if self.finish_reason else None,
        )

    @property
    def gateway_report(self) -> dict[str, Any] | None:
        """What the gateway saw of this reader (``x-andes-report``); None: no Andes gateway, or not at its end yet."""
        report = (self.usage.model_extra or {}).get("andes") if self.usage else None
        return report if isinstance(report, dict) else None

    def take(self, chunk: ChatCompletionChunk) -> list[str]:
        """The pieces of text in ``chunk``; paced, word by word."""
        self.model = self.model or chunk.model
        self.usage = chunk.usage or self.usage
        text = ""
        for choice in chunk.choices or ():  # servers write null for none
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta is None:
                continue
            text += choice.delta.content or ""
            extra = choice.delta.model_extra or {}
            thought = extra.get("reasoning_content") or extra.get("reasoning")  # the latter: vLLM, Ollama
            if isinstance(thought, str) and thought:
                self._thoughts += count_tokens(thought)
        return WORDS.findall(text) if self._pacer else [text][: len(text)]

    def wait_s(self, piece: str) -> float:
        """Seconds until ``piece``, which has come now, is to be shown. Once a piece."""
        now_s = self._clock()
        return self._pacer.show_at(now_s, count_tokens(piece)) - now_s if self._pacer else 0.0

    def show(self, text: str) -> None:
        self._pieces.append(text)
        self._characters += len(text)
        self._timeline.show(self._clock(), count_tokens(text))
        if self._reports is not None:
            self._reports.begin()

    def report_by(self, reports: Callable[[str, Callable[[], dict[str, Any]]], Reports | AsyncReports]) -> None:
        """Have ``reports(stream_id, shown)`` tell the gateway what is shown; nothing where the server takes no reports."""
        if self._stream_id:
            self._reports = reports(self._stream_id, self._shown)

    def _shown(self) -> dict[str, Any]:
        return {"characters": self._characters, "at_s": self._clock()}

    def stop_reports(self) -> None:
        if self._reports is not None:
            self._reports.end()

    def interrupted(self, error: Exception) -> InterruptedAnswerError:
        return InterruptedAnswerError(str(error) or type(error).__name__, self.text, self.request_id)

    def end(self) -> None:
        """The stream is over. Raises :class:`InterruptedAnswerError` when the answer is not."""
        if self.finish_reason is None:
            raise InterruptedAnswerError("the stream ended without a finish reason", self.text, self.request_id)

    def counted_by_server(self) -> int | None:
        """Tokens of the text; those of a hidden thought are not read. None: no count, or none that tells them apart."""
        thought, report = self._thought_by_server(), self._report_of_tools()
        if report is not None:
            return max(1, int(report["tokens"]))
        if self.usage is None or (self._thoughts and not thought):
            return None
        return max(1, self.usage.completion_tokens - thought)

    def _thought_by_server(self) -> int:
        """Tokens of a hidden thought, where the server counts them: OpenAI's way or SGLang's."""
        if self.usage is None:
            return 0
        if (report := self._report_of_tools()) is not None:
            return int(report["thought_tokens"])
        details, extra = self.usage.completion_tokens_details, self.usage.model_extra or {}
        told = details.reasoning_tokens if details else extra.get("reasoning_tokens")
        return told if isinstance(told, int) else 0

    def _report_of_tools(self) -> dict[str, Any] | None:
        """Where tools ran at the gateway: usage counts their calls, which are not read; the gateway tells them apart."""
        report = self.gateway_report
        return report if report is not None and "tools" in report else None

    @property
    def thought_s(self) -> float:
        """Seconds for which the reader is patient with what was thought, unseen, before the answer."""
        thinking = self.reader.thinking_speed
        assert thinking is not None  # noqa: S101
        return (self._thought_by_server() or self._thoughts) / thinking


class Answer(_Reception):
    """Iterate over it for the text. ``experience``, ``usage``, ``finish_reason`` and ``gateway_report`` are whole at its end.
    Raises :class:`InterruptedAnswerError` for an answer that is cut."""

    def __init__(
        self, stream: openai.Stream[ChatCompletionChunk], reader: Reader, headers: Mapping[str, str], **options: Any
    ) -> None:
        super().__init__(reader, headers, **options)
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        try:
            for chunk, pieces in self._chunks():
                self._on_chunk(chunk)
                for piece in pieces:
                    time.sleep(max(0.0, self.wait_s(piece)))
                    self.show(piece)
                    yield piece
        finally:
            self.stop_reports()
        self.end()

    def _chunks(self) -> Iterator[tuple[ChatCompletionChunk, list[str]]]:
        try:
            for chunk in self._stream:
                yield chunk, self.take(chunk)
        except Exception as error:  # the SDK lets those of its transport through as they are
            raise self.interrupted(error) from error

    def close(self) -> None:
        """Hang up: the server stops generating."""
        self.stop_reports()
        self._stream.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncAnswer(_Reception):
    """As :class:`Answer`, for ``async for`` and ``async with``."""

    def __init__(
        self,
        stream: openai.AsyncStream[ChatCompletionChunk],
        reader: Reader,
        headers: Mapping[str, str],
        **options: Any,
    ) -> None:
        super().__init__(reader, headers, **options)
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for chunk, pieces in self._chunks():
                self._on_chunk(chunk)
                for piece in pieces:
                    await asyncio.sleep(max(0.0, self.wait_s(piece)))
                    self.show(piece)
                    yield piece
        finally:
            self.stop_reports()
        self.end()

    async def _chunks(self) -> AsyncIterator[tuple[ChatCompletionChunk, list[str]]]:
        try:
            async for chunk in self._stream:
                yield chunk, self.take(chunk)
        except Exception as error:  # the SDK lets those of its transport through as they are
            raise self.interrupted(error) from error

    async def close(self) -> None:
        """Hang up: the server stops generating."""
        self.stop_reports()
        await self._stream.close()

    async def __aenter__(self) -> AsyncAnswer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
