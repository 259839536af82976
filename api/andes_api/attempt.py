"""One try of one request on one replica: sent, its answer passed on and counted as it comes, what went wrong in a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
from opentelemetry.trace import Span

from andes_api import names, telemetry
from andes_api.engine_request import engine_request
from andes_api.relay_context import RelayContext
from andes_api.reply import Reply
from andes_api.sse import Event, EventStream, GarbageError, first_of, object_of, payload_of
from andes_api.stream import Stream, count_answers
from andes_api.upstream import Upstream
from andes_api.upstream_answer import (
    UNFINISHED,
    Blame,
    UpstreamError,
    count_of,
    error_of_event,
    error_of_status,
    output_tokens_of,
    prompt_tokens_of,
    read_all,
    read_to_end,
    whole_of,
)
from andes_sglang.resume import Continuation, ending

__all__ = ["Attempt"]

END_TIMEOUT_S = 5.0
"""Seconds for usage and end to follow the finish reason; engines write them at once."""
_KNOWN_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
FIRST_TOKEN_MARGIN_S = 5.0
"""Seconds added to the forecast of a first token that is not seen; a death is found out in about as many."""
_BREAKS = frozenset({"connection", "ended early", "dead"})
"""Kinds of failure that may be the death of an engine."""


class Attempt:
    """first_event: as the engine has sent it. tokens_before: of earlier attempts. told: whether the engine takes its reader
    to be behind. alone: nothing was queued there ahead of it. sent_s, heard_s, token_s: when it was sent, when the replica
    last said something, and when a token (not a comment, space or role), clock seconds. waited_s: from sending to the first
    token; None before it. answered: called when the replica has begun to answer. accept_empty: whether an answer without a
    token passes.
    """

    def __init__(
        self,
        context: RelayContext,
        stream: Stream,
        reply: Reply,
        replica: Upstream,
        continuation: Continuation | None,
        *,
        answered: Callable[[], None],
        accept_empty: bool = True,
    ) -> None:
        self._context, self._settings = context, context.settings
        self._stream, self._reply = stream, reply
        self.replica, self._continuation = replica, continuation
        self._answered, self._accept_empty = answered, accept_empty
        self.sent_s = self.heard_s = self.token_s = time.monotonic()
        self.waited_s: float | None = None
        self._thought = 0
        self.alone = replica.finds_no_queue(stream)
        self._answer: aiohttp.ClientResponse | None = None
        self._timeout: asyncio.Timeout | None = None  # until it answers
        self._ended_by: str | None = None
        self._events: EventStream | None = None
        self.first_event = b""
        self.tokens_before = stream.tokens
        self._paused_s = self.sent_s  # when it last waited for its reader
        self.told = False

    async def run(self, body: dict[str, Any]) -> None:
        """Ask for ``body`` and pass the answer on to its end. Raises :class:`UpstreamError`."""
        stream, replica, upstreams = self._stream, self.replica, self._context.upstreams
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
            await self._exchange(engine_request(stream, body, self._settings, self.sent_s), headers)
            self._answered()
            replica.succeeded()
            replica.prefixes.add(stream.prompt.blocks)
            if stream.streams:
                upstreams.learn_answer(stream.route.model, stream.tokens, stream.hidden_thought)
        except UpstreamError as error:
            error.died = error.kind in _BREAKS and self._is_before_first_token(time.monotonic())
            telemetry.failed(span, error.kind.removeprefix("http_"))
            raise
        finally:
            self._answer = self._timeout = None
            stream.characters, self._events = self.characters, None
            replica.closed(stream, self.sent_s, time.monotonic(), started=self.waited_s is not None)
            upstreams.forget(replica)
            self._describe(span)
            span.end()

    @property
    def characters(self) -> int:
        """Of the answer so far."""
        return self._stream.characters + (self._events.characters if self._events is not None else 0)

    def _is_before_first_token(self, now_s: float) -> bool:
        """As far as can be seen: an answer in one piece shows none, and has probably had it after the time forecast."""
        if self._stream.streams:
            return self.waited_s is None
        expected_s = self._stream.expected.ttft_s if self._stream.expected is not None else 0.0
        return now_s - self.sent_s < expected_s + FIRST_TOKEN_MARGIN_S

    def end_if_silent(self, now_s: float, can_move: Callable[[float], bool]) -> None:
        """Stop listening to an engine that answers no probe and has brought no token since it was probed, where the answer
        ``can_move(now_s)``; and to any that has brought none for too long."""
        probed_s = self.replica.unanswered_since_s
        silent = probed_s is not None and self.token_s < probed_s
        if silent and self.replica.is_dead(now_s) and can_move(now_s):
            self.end("dead")
        elif self._answer is None or not self._stream.streams or self._stream.yields:
            return  # the time for an answer to begin is its own; one that yields may wait for readers without bound
        elif self._stream.receipt.told_tokens is not None:
            self._paused_s = now_s
        elif now_s - max(self.token_s, self._paused_s) > self._settings.stream_idle_s:
            self.end("silent")

    def end(self, reason: str) -> None:
        """Stop listening; the attempt fails by ``reason``, the first that is given."""
        if self._ended_by is not None:
            return
        self._ended_by = reason
        if self._answer is not None:
            self._answer.close()
        elif self._timeout is not None:
            self._timeout.reschedule(0.0)

    async def _exchange(self, payload: bytes | aiohttp.FormData, headers: dict[str, str]) -> None:
        """Send the request and pass the answer on. Raises :class:`UpstreamError`."""
        session, url = self._context.upstreams.session, self.replica.url + self._stream.path
        listened = self._context.upstreams.lateness.asked()
        try:
            async with (
                asyncio.timeout(self._answer_timeout_s) as self._timeout,
                session.post(url, data=payload, headers=headers, allow_redirects=False) as answer,
            ):
                self._answer = answer
                await self._pass_on(answer, self._timeout)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if isinstance(error, TimeoutError) and not listened():
                raise UpstreamError("unreachable", blame=Blame.NONE) from error
            self.replica.healthy = False  # until a probe finds it up again
            raise UpstreamError("unreachable") from error
        except GarbageError as error:
            raise UpstreamError("garbage") from error
        except TimeoutError as error:
            raise self._broken("silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken("connection") from error

    def _broken(self, kind: str) -> UpstreamError:
        blame = Blame.NONE if self._ended_by == "shutdown" else Blame.REPLICA
        return UpstreamError(self._ended_by or kind, blame=blame)

    def _describe(self, span: Span) -> None:
        stream = self._stream
        span.set_attributes({names.INPUT_TOKENS: stream.record.prompt_tokens, names.OUTPUT_TOKENS: stream.tokens})
        span.set_attributes(stream.said)
        if self.waited_s is not None:
            span.set_attribute(names.TIME_TO_FIRST_CHUNK, self.waited_s)

    @property
    def _answer_timeout_s(self) -> float | None:
        """Seconds for a stream to begin, or an answer in one piece to be here. None: what yields may wait without bound."""
        if self._stream.yields:
            return None
        return self._settings.stream_idle_s if self._stream.streams else self._settings.answer_timeout_s

    async def _pass_on(self, answer: aiohttp.ClientResponse, timeout: asyncio.Timeout) -> None:
        kind = answer.headers.get("content-type", "")
        if answer.status != 200:
            content = await read_all(answer)
            raise error_of_status(answer.status, answer.headers, content, known_path=self._stream.path in _KNOWN_PATHS)
        if self._stream.streams:
            if not kind.startswith("text/event-stream"):
                raise UpstreamError("garbage")
            timeout.reschedule(None)
            await self._pass_events(answer)
            return
        content = await read_all(answer)
        timeout.reschedule(None)  # the client may take its time
        if self._stream.endpoint.chunks:
            self._read_whole(object_of(content))
        elif (whole := whole_of(kind, content, form=self._stream.endpoint.form)) is not None:
            self._read_usage(whole)
        self._answered()
        await self._reply.whole(200, {"content-type": kind or "application/json"}, content)

    def _read_whole(self, whole: dict[str, Any]) -> None:
        """Count and identify an answer in one piece. Raises :class:`UpstreamError` where it is none."""
        listed = whole.get("choices")
        choices = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
        ends = [choice.get("finish_reason") for choice in choices]
        if "abort" in ends:
            raise UpstreamError("aborted", blame=Blame.IF_OTHERS_ANSWER)
        self._read_usage(whole)
        says = any(c.get("text") or any(v for k, v in (c.get("message") or {}).items() if k != "role") for c in choices)
        if not choices or not (says or self._stream.tokens or self._accept_empty):
            raise UpstreamError("empty", blame=Blame.IF_OTHERS_ANSWER, refused=bool(choices))
        self._identify(whole, ends)

    def _read_usage(self, whole: dict[str, Any]) -> None:
        self._stream.answer_id = whole.get("id")
        self._stream.unfinished = whole.get("status") in UNFINISHED
        self._stream.tokens = output_tokens_of(whole.get("usage"))
        self._count_prompt(whole.get("usage"))

    async def _pass_events(self, answer: aiohttp.ClientResponse) -> None:
        stream = self._stream
        asked = stream.asked
        if stream.expectation.report:  # which says the usage
            asked = {**asked, "include_usage": False}
        self._events = events = self._reader(asked)
        said = 0
        held: list[Event] = []  # the end of an answer that has no token so far
        try:
            while not self._is_over(events):
                data = await self._read(answer, events)
                if not data and self._is_complete(events):
                    break
                if not data:
                    raise UpstreamError("ended early")
                self.heard_s = time.monotonic()
                batch = events.feed(data)
                self._think(events.thought)
                if events.said != said:
                    said, self.token_s = events.said, self.heard_s
                if not events.ends:
                    await self._write(batch)
                    continue
                held += batch
                if self.waited_s is not None or any(tokens for _, tokens in batch):
                    await self._write(held)
                    held = []
                if not self._is_complete(events):
                    self._check(events)
        finally:
            self._count_prompt(events.usage_so_far)
        self._check_empty(events)
        await self._write(held)
        await self._write_end(events, wants_usage=bool(asked.get("include_usage")))
        stream.usage = self._usage_of_whole(events.usage)
        if stream.span.is_recording():
            with suppress(GarbageError):
                self._identify(events.identity or payload_of(stream.first_event), list(events.finish_reasons.values()))
        if events.done:
            await read_to_end(answer)
        else:
            answer.close()

    def _reader(self, asked: dict[str, Any]) -> EventStream:
        """Of this endpoint's events. asked: the stream_options that the client gets."""
        stream = self._stream
        by_usage = stream.endpoint.chunks and self._settings.count_tokens == "usage"
        reader, several = stream.endpoint.reader or EventStream, count_answers(stream.body) > 1
        return reader(chat=stream.chat, asked=asked, usage=by_usage, several=several, hides=stream.hides_thought)

    def _is_over(self, events: EventStream) -> bool:
        if events.ends and (events.done or events.error_event or events.garbage is not None):
            return True
        return self._continuation is not None and self._continuation.stopped

    def _is_complete(self, events: EventStream) -> bool:
        """Whether every answer has said why it finished: then nothing is missing, whatever becomes of the engine."""
        return bool(events.finish_reasons) and len(events.finish_reasons) >= count_answers(self._stream.body)

    def _read(self, answer: aiohttp.ClientResponse, events: EventStream) -> Awaitable[bytes]:
        """What comes next; empty when nothing does."""
        return self._read_rest(answer) if events.ends and self._is_complete(events) else answer.content.readany()

    async def _read_rest(self, answer: aiohttp.ClientResponse) -> bytes:
        """What follows a complete answer; empty when nothing does."""
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                return await answer.content.readany()
        except (aiohttp.ClientError, OSError):
            return b""

    def _check(self, events: EventStream) -> None:
        """Raise what is wrong with an answer that is not complete."""
        if events.garbage is not None:
            raise UpstreamError("garbage")
        if events.error_event:
            raise error_of_event(events.error, events.error_event)

    def _check_empty(self, events: EventStream) -> None:
        """An answer that has no token, and no end or an end that counts none, may be no answer."""
        if self.waited_s is not None or (self._continuation is not None and self._continuation.stopped):
            return
        if not events.finish_reasons:
            raise UpstreamError("empty", blame=Blame.IF_OTHERS_ANSWER)
        counted = output_tokens_of(events.usage)
        if not (counted or self._accept_empty or self._continuation is not None):
            raise UpstreamError("empty", blame=Blame.IF_OTHERS_ANSWER, refused=True)

    async def _write_end(self, events: EventStream, *, wants_usage: bool) -> None:
        """What is missing of the end of a complete answer."""
        if events.identity is not None:
            self._stream.answer_id = events.identity.get("id")
        if not events.done:
            stream = self._stream
            missing = wants_usage and events.usage is None and stream.counted
            usage = stream.own_usage() if missing else None
            closing = [events.END] if events.END else ending(stream.first_event, stream.chat, None, usage)
            await self._reply.events([(event, 0) for event in closing])

    def _usage_of_whole(self, usage: dict[str, Any] | None) -> dict[str, Any]:
        """``usage`` of this attempt with what was delivered before it; where the engine has not said, our own count."""
        if usage is None or self._continuation is not None:
            return {**(usage or {}), **self._stream.own_usage()}
        return usage

    def _write(self, batch: list[Event]) -> Awaitable[None]:
        return self._reply.events(self._take(batch))

    def _take(self, batch: list[Event]) -> list[Event]:
        """Count what has come; as the reader should see it."""
        stream = self._stream
        if not self.first_event:
            self.first_event = first_of(batch)
        if self._continuation is not None:
            batch = self._continue(batch, self._continuation)
        new = 0
        for _, tokens in batch:
            new += tokens
        if new:
            stream.tokens += new
            self.replica.tokens += 0 if stream.yields else new
            if self.waited_s is None:
                self._first_token()
        if not stream.first_event:
            stream.first_event = first_of(batch)
        if stream.log is not None and not stream.only_thinks:
            stream.keep([event for event, _ in batch if event])
        return batch

    def _think(self, thought: int) -> None:
        """So many tokens have come that the reader is not shown."""
        if new := thought - self._thought:
            self._thought = thought
            self._stream.think(new, self.heard_s)
            self.replica.tokens += new
            if self.waited_s is None:
                self._first_token()

    def _continue(self, batch: list[Event], continuation: Continuation) -> list[Event]:
        events: list[Event] = []
        try:
            for event, tokens in batch:
                events.append((continuation.rewrite(event), tokens))
                if continuation.stopped:
                    break
        except (ValueError, TypeError, AttributeError, LookupError):
            raise UpstreamError("garbage") from None
        return events

    def _first_token(self) -> None:
        stream = self._stream
        self.waited_s = self.heard_s - self.sent_s
        stream.first_s = stream.first_s or self.heard_s - stream.arrival_s
        self._answered()
        expected = stream.expected if stream.attempts == 1 else None
        self.replica.first_token(stream, self.waited_s, self.heard_s, expected=expected, alone=self.alone)

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
