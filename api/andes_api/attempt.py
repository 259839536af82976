"""One try of one request on one replica: sent, its answer passed on and counted as it comes, what went wrong in a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from opentelemetry.trace import Span

from andes_api import names, telemetry
from andes_api.endpoints import COMPLETION
from andes_api.engine_request import engine_request
from andes_api.metrics import GatewayMetrics
from andes_api.reply import Reply
from andes_api.settings import GatewaySettings
from andes_api.sse import Event, EventStream, GarbageError, object_of, payload_of
from andes_api.stream import Stream, count_answers
from andes_api.telemetry import Telemetry
from andes_api.upstream import Upstream
from andes_api.upstream_answer import (
    UpstreamError,
    blames_engine,
    count_of,
    output_tokens_of,
    prompt_tokens_of,
    read_all,
    read_to_end,
)  # fmt: skip
from andes_api.upstreams import Upstreams
from andes_sglang.resume import Continuation

__all__ = ["Attempt", "RelayContext"]

_PASSED_HEADERS = ("content-type", "retry-after")


@dataclass(frozen=True)
class RelayContext:
    """What every relay needs of its gateway. wait_for_place: replicas for a stream once one accepts it, or the error that
    refuses it."""

    settings: GatewaySettings
    upstreams: Upstreams
    metrics: GatewayMetrics
    telemetry: Telemetry
    wait_for_place: Callable[[Stream], Awaitable[list[Upstream]]]


class Attempt:
    """alone: nothing was queued there ahead of it. sent_s, heard_s: when it was sent, when the replica last said something,
    clock seconds. waited_s: from sending to the first token; None before it."""

    def __init__(
        self, context: RelayContext, stream: Stream, reply: Reply, replica: Upstream, continuation: Continuation | None
    ) -> None:
        self._context, self._settings = context, context.settings
        self._stream, self._reply = stream, reply
        self._replica, self._continuation = replica, continuation
        self.sent_s = self.heard_s = time.monotonic()
        self.waited_s: float | None = None
        self.alone = replica.finds_no_queue(stream)
        self._answer: aiohttp.ClientResponse | None = None
        self._timeout: asyncio.Timeout | None = None  # until it answers
        self._ended_by: str | None = None

    async def run(self, body: dict[str, Any]) -> str:
        """Ask for ``body`` and pass the answer on; how it ended: "done" or "error" (the request's). Raises
        :class:`UpstreamError`."""
        stream, replica, upstreams = self._stream, self._replica, self._context.upstreams
        stream.attempts += 1
        stream.replica = replica.name
        headers = {"x-request-id": stream.request_id}
        if not stream.endpoint.form:
            headers["content-type"] = "application/json"
        body = replica.asked_for(stream.route, body)
        span = self._context.telemetry.client_span(stream, replica.url, headers)
        replica.breaker.trying(self.sent_s)
        replica.opened(stream)
        try:
            outcome = await self._exchange(engine_request(stream, body, self._settings, self.sent_s), headers)
            replica.breaker.succeeded()
            replica.prefixes.add(stream.prompt.blocks)
            return outcome
        except UpstreamError as error:
            telemetry.failed(span, error.kind)
            raise
        finally:
            self._answer = None
            replica.closed(stream, self.sent_s, time.monotonic(), started=self.waited_s is not None)
            upstreams.forget(replica)
            self._describe(span)
            span.end()

    def end_if_silent(self, now_s: float) -> None:
        """Close a stream of the engine that has said nothing for too long."""
        if self._answer is None or not self._stream.streams:
            return
        if now_s - self.heard_s > self._settings.stream_idle_s:
            self.end("silent")

    def end(self, reason: str) -> None:
        """Stop listening; the attempt fails by ``reason``."""
        self._ended_by = reason
        if self._answer is not None:
            self._answer.close()
        elif self._timeout is not None:
            self._timeout.reschedule(0.0)

    async def _exchange(self, payload: bytes | aiohttp.FormData, headers: dict[str, str]) -> str:
        """Send the request and pass the answer on; how it ended. Raises :class:`UpstreamError`."""
        session, url = self._context.upstreams.session, self._replica.url + self._stream.path
        try:
            async with (
                asyncio.timeout(self._answer_timeout_s) as self._timeout,
                session.post(url, data=payload, headers=headers, allow_redirects=False) as answer,
            ):
                self._timeout.reschedule(None)
                self._answer = answer
                return await self._pass_on(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._replica.healthy = False  # until a probe finds it up again
            raise UpstreamError("unreachable") from error
        except GarbageError as error:
            raise UpstreamError("garbage") from error
        except TimeoutError as error:
            raise UpstreamError(self._ended_by or "silent", blame=self._ended_by != "shutdown") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(self._ended_by or "connection", blame=self._ended_by != "shutdown") from error

    def _describe(self, span: Span) -> None:
        stream = self._stream
        span.set_attributes({names.INPUT_TOKENS: stream.record.prompt_tokens, names.OUTPUT_TOKENS: stream.tokens})
        span.set_attributes(stream.said)
        if self.waited_s is not None:
            span.set_attribute(names.TIME_TO_FIRST_CHUNK, self.waited_s)

    @property
    def _answer_timeout_s(self) -> float:
        """Seconds for an answer to begin; one in one piece begins when it is complete."""
        return self._settings.stream_idle_s if self._stream.streams else self._settings.answer_timeout_s

    async def _pass_on(self, answer: aiohttp.ClientResponse) -> str:
        stream = self._stream
        kind = answer.headers.get("content-type", "")
        if answer.status == 200 and stream.streams:
            if not kind.startswith("text/event-stream"):
                raise UpstreamError("garbage")
            return await self._pass_events(answer)
        content = await read_all(answer)
        headers = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
        if answer.status == 429 or not (answer.status == 200 or 400 <= answer.status < 500):
            is_error = answer.status >= 400 and kind.startswith("application/json")  # no redirection: it leads nowhere
            said = (answer.status, headers, content) if is_error else None
            blame = said is None or answer.status in (502, 503, 504)
            raise UpstreamError(f"http_{answer.status}", blame=blame, answer=said)
        if self._reply.begun:
            raise UpstreamError(f"http_{answer.status}", blame=False)
        if answer.status == 200:
            self._read_whole(content)
        await self._reply.whole(answer.status, headers, content)
        return "done" if answer.status < 400 else "error"

    def _read_whole(self, content: bytes) -> None:
        """Count and identify an answer in one piece."""
        endpoint = self._stream.endpoint
        if (endpoint.reader is None or endpoint.form) and not content.startswith(b"{"):  # a list, or a text
            return
        whole = object_of(content)
        self._stream.tokens = output_tokens_of(whole.get("usage"))
        self._count_prompt(whole.get("usage"))
        choices = whole.get("choices")
        ends = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        self._identify(whole, ends)

    # A stream of events

    async def _pass_events(self, answer: aiohttp.ClientResponse) -> str:
        stream = self._stream
        asked = (
            {**stream.asked, "include_usage": False} if stream.expectation.report else stream.asked
        )  # said in the report
        reader, chunks = stream.endpoint.reader or EventStream, stream.endpoint.chunks
        events = reader(
            chat=stream.endpoint is not COMPLETION, asked=asked,
            usage=chunks and self._settings.count_tokens == "usage", several=count_answers(stream.body) > 1,
        )  # fmt: skip
        try:
            while not events.done and not events.error_event:
                data = await self._read(answer, events)
                self.heard_s = time.monotonic()
                await self._write(events.feed(data))
                if events.garbage is not None:
                    raise UpstreamError("garbage")
                if events.error_event:
                    if blames_engine(events.error):
                        raise UpstreamError("engine", blame=False, event=events.error_event)
                    await self._write([(events.error_event, 0)])
        finally:
            self._count_prompt(events.usage_so_far)
        if stream.span.is_recording():
            with suppress(GarbageError):
                self._identify(events.identity or payload_of(stream.first_event), [events.finish_reason])
        await read_to_end(answer)
        if events.error_event:
            return "error"
        stream.usage = self._usage_of_whole(events.usage)
        return "done"

    def _usage_of_whole(self, usage: dict[str, Any] | None) -> dict[str, Any]:
        """``usage`` of this attempt with what was delivered before it; where the engine has not said, our own count."""
        stream = self._stream
        if usage is None or self._continuation is not None:
            prompt = stream.record.prompt_tokens
            counts = {
                "prompt_tokens": prompt,
                "completion_tokens": stream.tokens,
                "total_tokens": prompt + stream.tokens,
            }
            return {**(usage or {}), **counts}
        return usage

    async def _read(self, answer: aiohttp.ClientResponse, events: EventStream) -> bytes:
        """What comes next. A single answer that has said why it finished is complete, even if the engine goes before the end
        of the stream: that end is supplied."""
        try:
            data = await answer.content.readany()
        except (aiohttp.ClientError, OSError):
            if not self._is_complete(events):
                raise
            data = b""
        if data:
            return data
        if self._is_complete(events):
            events.drop_partial()
            return events.END
        raise UpstreamError("ended early")

    def _is_complete(self, events: EventStream) -> bool:
        return events.finish_reason is not None and count_answers(self._stream.body) == 1 and self._reply.begun

    async def _write(self, batch: list[Event]) -> None:
        if batch:
            await self._reply.events(self._take(batch))

    def _take(self, batch: list[Event]) -> list[Event]:
        """Count what has come; as the reader should see it."""
        stream, continuation = self._stream, self._continuation
        new = 0
        for _, tokens in batch:
            new += tokens
        if new:
            stream.tokens += new
            self._replica.tokens += new
            if self.waited_s is None:
                self._first_token()
        if continuation is not None:
            try:
                batch = [(continuation.rewrite(event), tokens) for event, tokens in batch]
            except (ValueError, TypeError, AttributeError):
                raise UpstreamError("garbage") from None
        if not stream.first_event:  # of data; a comment may come before it
            stream.first_event = next((event for event, _ in batch if event and not event.startswith(b":")), b"")
        if stream.log is not None:
            stream.keep([event for event, _ in batch if event])
        return batch

    def _first_token(self) -> None:
        stream = self._stream
        self.waited_s = self.heard_s - self.sent_s
        expected = stream.expected if stream.attempts == 1 else None
        self._replica.first_token(stream, self.waited_s, self.heard_s, expected=expected, alone=self.alone)

    def _count_prompt(self, usage: Any) -> None:
        stream, tokens = self._stream, prompt_tokens_of(usage)
        if tokens and stream.attempts == 1:
            self._context.upstreams.learn_length(stream.route.model, stream.prompt, tokens)
            stream.record.prompt_tokens = tokens
            stream.counted = True
            details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
            if details is not None:
                stream.said[names.CACHED_TOKENS] = count_of(details, "cached_tokens")

    def _identify(self, chunk: Mapping[str, Any], finish_reasons: Sequence[object]) -> None:
        said = {names.RESPONSE_ID: chunk.get("id"), names.RESPONSE_MODEL: chunk.get("model")}
        self._stream.said |= {name: value for name, value in said.items() if isinstance(value, str)}
        self._stream.said[names.FINISH_REASONS] = [reason for reason in finish_reasons if isinstance(reason, str)]
