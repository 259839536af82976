"""One request's way through the gateway: sent to a replica, its events passed on as they come, continued elsewhere when the
replica fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from opentelemetry.trace import Span

from andes_api import names, telemetry
from andes_api.engine_request import engine_request
from andes_api.errors import ApiError
from andes_api.metrics import GatewayMetrics
from andes_api.pacing import Pacer
from andes_api.response import PacedResponseWriter, ResponseWriter, Send
from andes_api.settings import GatewaySettings
from andes_api.sse import Event, EventStream, GarbageError, object_of, payload_of
from andes_api.stream import Stream, count_answers
from andes_api.telemetry import Telemetry
from andes_api.upstream import Upstream
from andes_api.upstream_answer import UpstreamError, blames_engine, count_of, read_all, read_to_end
from andes_api.upstreams import Upstreams
from andes_sglang.resume import Continuation, continued

__all__ = ["Relay", "RelayContext"]

RETRY_AFTER_FAILURE_S = 1.0
DONE_EVENT = b"data: [DONE]\n\n"
_PASSED_HEADERS = ("content-type", "retry-after")


class Attempt:
    """One try on one replica. alone: nothing was queued there ahead of it. waited_s: from sending to the first token."""

    __slots__ = ("alone", "continuation", "replica", "sent_s", "waited_s")

    def __init__(self, replica: Upstream, stream: Stream, continuation: Continuation | None) -> None:
        self.replica, self.continuation = replica, continuation
        self.sent_s = time.monotonic()
        self.waited_s: float | None = None
        self.alone = replica.finds_no_queue(stream)


@dataclass(frozen=True)
class RelayContext:
    """What every relay needs of its gateway. wait_for_place: replicas for a stream once one accepts it, or the error that
    refuses it."""

    settings: GatewaySettings
    upstreams: Upstreams
    metrics: GatewayMetrics
    telemetry: Telemetry
    wait_for_place: Callable[[Stream], Awaitable[list[Upstream]]]


class Relay:
    """Answers one request on one connection. ``order``: the replicas to try, best first, each once at most; none: wait for
    one."""

    def __init__(self, context: RelayContext, stream: Stream, order: list[Upstream], send: Send) -> None:
        self.stream = stream
        self._context, self._settings = context, context.settings
        self._order = order
        self._answer: aiohttp.ClientResponse | None = None
        self._heard_s = stream.arrival_s  # when the replica last said something
        self._silent = False
        self._counted = False  # whether the engine has said how long the prompt is
        if stream.streams and stream.expectation.pace:
            pacer = Pacer(stream.expectation.target.tds, self._settings.pace_interval_s)
            self.writer: ResponseWriter = PacedResponseWriter(send, stream.delivered, pacer)
        else:
            self.writer = ResponseWriter(send, stream.delivered)

    async def run(self) -> None:
        """Until the last byte is out; then ``stream.record.outcome`` says how it ended."""
        try:
            try:
                outcome = await self._try_replicas()
                await self.writer.end()
                self.stream.record.outcome = outcome
            except ApiError as error:  # no engine has come
                await self._refuse(error)
                await self.writer.end()
                self.stream.shed(error)
        finally:
            await self.writer.close()

    def client_is_gone(self, now_s: float) -> bool:
        """Whether the client's socket has taken nothing for too long."""
        idle_s = now_s - max(self._heard_s, self.stream.delivered_s)
        return self.writer.sending and idle_s > self._settings.client_idle_s

    def end_silent_upstream(self, now_s: float) -> None:
        """Close a stream of the engine that has said nothing for too long while it was listened to."""
        if self._answer is None or not self.stream.streams or self.writer.writing:
            return
        if now_s - self._heard_s > self._settings.stream_idle_s:
            self._silent = True
            self._answer.close()

    # Which replica

    async def _try_replicas(self) -> str:
        """Until one has answered or all have failed: "done", "error" (the request's) or "failed" (the engines')."""
        stream = self.stream
        body = stream.body
        continuation: Continuation | None = None
        order = self._order
        while True:
            replica, *order = order or await self._context.wait_for_place(stream)
            try:
                return await self._attempt(replica, body, continuation)
            except UpstreamError as error:
                now_s = time.monotonic()
                self._context.metrics.failures.labels(replica.name).inc()
                if error.blame:
                    replica.breaker.failed(now_s)
                order = [r for r in order if r.accepts(now_s)]
                rest = self._rest() if self.writer.started else body
                if rest is None or not self._goes_on(order, now_s):
                    await self._give_up(error)
                    return "failed"
                body, continuation = rest, self._continuation() if self.writer.started else None
                self._note_next_try(error)

    def _goes_on(self, order: Sequence[Upstream], now_s: float) -> bool:
        """Whether another replica is tried. A stream that has not begun waits for an engine while none accepts streams."""
        if self.stream.attempts > self._settings.retries:
            return False
        return bool(order) or not (self.writer.started or self._context.upstreams.accepting(now_s, self.stream.route))

    def _note_next_try(self, error: UpstreamError) -> None:
        metrics, started = self._context.metrics, self.writer.started
        (metrics.resumes if started else metrics.retries).inc()
        event = names.EVENT_RESUME if started else names.EVENT_RETRY
        self.stream.span.add_event(event, {names.REASON: error.kind})

    def _rest(self) -> dict[str, Any] | None:
        """What to ask another replica for, so that the reader does not notice; None where that cannot be."""
        stream = self.stream
        stream.compact()
        return None if stream.log is None else continued(stream.body, stream.chat, stream.text, stream.tokens)

    def _continuation(self) -> Continuation:
        stream = self.stream
        return Continuation(stream.first_event, stream.tokens, stream.record.prompt_tokens if self._counted else None)

    async def _give_up(self, error: UpstreamError) -> None:
        telemetry.failed(self.stream.span, error.kind)
        fault = ApiError(
            502, f"the engine failed ({error.kind})", "upstream_error", code="upstream_error", reason="upstream",
            retry_after_s=RETRY_AFTER_FAILURE_S,
        )  # fmt: skip
        if self.writer.started:  # the 200 has gone out: say it in the stream, and end without a finish reason
            await self.writer.write([(error.event or fault.event, 0)])
        elif error.answer is not None:
            await self._reply(*error.answer)
        else:
            await self._refuse(fault)

    # One answer in one piece

    async def _refuse(self, error: ApiError) -> None:
        headers = {"content-type": "application/json", **error.headers}
        await self._reply(error.status, headers, orjson.dumps(error.body))

    async def _reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.stream.status = status
        await self.writer.start(status, {**headers, **self._echo(), "content-length": str(len(content))})
        await self.writer.write([(content, 0)])

    def _echo(self) -> dict[str, str]:
        stream = self.stream
        return {"x-request-id": stream.request_id, **stream.expectation.headers(), **stream.model_headers()}

    # One replica

    async def _attempt(self, replica: Upstream, body: dict[str, Any], continuation: Continuation | None) -> str:
        """One try on one replica; how it ended. Raises :class:`UpstreamError`."""
        stream, upstreams = self.stream, self._context.upstreams
        attempt = Attempt(replica, stream, continuation)
        self._heard_s, self._silent = attempt.sent_s, False
        stream.attempts += 1
        stream.replica = replica.name
        headers = {"content-type": "application/json", "x-request-id": stream.request_id}
        span = self._context.telemetry.client_span(stream, replica.url, headers)
        replica.breaker.trying(attempt.sent_s)
        replica.opened(stream)
        try:
            outcome = await self._exchange(replica, self._payload(replica, body, attempt.sent_s), headers, attempt)
            replica.breaker.succeeded()
            replica.prefixes.add(stream.prompt.blocks)
            return outcome
        except UpstreamError as error:
            telemetry.failed(span, error.kind)
            raise
        finally:
            self._answer = None
            now_s = time.monotonic()
            replica.closed(stream, attempt.sent_s, now_s, started=attempt.waited_s is not None)
            upstreams.forget(replica)
            self._describe(span, attempt)
            span.end()

    def _payload(self, replica: Upstream, body: dict[str, Any], now_s: float) -> bytes:
        return engine_request(self.stream, replica.asked_for(self.stream.route, body), self._settings, now_s)

    async def _exchange(self, replica: Upstream, payload: bytes, headers: dict[str, str], attempt: Attempt) -> str:
        """Send the request and pass the answer on; how it ended. Raises :class:`UpstreamError`."""
        session, url = self._context.upstreams.session, replica.url + self.stream.path
        try:
            async with (
                asyncio.timeout(self._answer_timeout_s) as timeout,
                session.post(url, data=payload, headers=headers, allow_redirects=False) as answer,
            ):
                timeout.reschedule(None)
                self._answer = answer
                return await self._pass_on(answer, attempt)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            replica.healthy = False  # until a probe finds it up again
            raise UpstreamError("unreachable") from error
        except GarbageError as error:
            raise UpstreamError("garbage") from error
        except TimeoutError as error:
            raise UpstreamError("silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError("silent" if self._silent else "connection") from error

    def _describe(self, span: Span, attempt: Attempt) -> None:
        stream = self.stream
        span.set_attributes({names.INPUT_TOKENS: stream.record.prompt_tokens, names.OUTPUT_TOKENS: stream.tokens})
        span.set_attributes(stream.said)
        if attempt.waited_s is not None:
            span.set_attribute(names.TIME_TO_FIRST_CHUNK, attempt.waited_s)

    @property
    def _answer_timeout_s(self) -> float:
        """Seconds for an answer to begin; one in one piece begins when it is complete."""
        return self._settings.stream_idle_s if self.stream.streams else self._settings.answer_timeout_s

    @property
    def _counts_by_usage(self) -> bool:
        return self._settings.count_tokens == "usage"

    async def _pass_on(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> str:
        stream = self.stream
        kind = answer.headers.get("content-type", "")
        if answer.status == 200 and stream.streams:
            if not kind.startswith("text/event-stream"):
                raise UpstreamError("garbage")
            return await self._pass_events(answer, attempt)
        content = await read_all(answer)
        headers = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
        if answer.status == 429 or answer.status >= 500:
            said = (answer.status, headers, content) if kind.startswith("application/json") else None
            blame = said is None or answer.status in (502, 503, 504)
            raise UpstreamError(f"http_{answer.status}", blame=blame, answer=said)
        if self.writer.started:
            raise UpstreamError(f"http_{answer.status}", blame=False)
        if answer.status == 200:
            self._read_whole(object_of(content))
        await self._reply(answer.status, headers, content)
        return "done" if answer.status < 400 else "error"

    def _read_whole(self, whole: dict[str, Any]) -> None:
        """Count and identify an answer in one piece."""
        self.stream.tokens = count_of(whole.get("usage"), "completion_tokens")
        self._count_prompt(whole.get("usage"))
        choices = whole.get("choices")
        ends = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        self._identify(whole, ends)

    # A stream of events

    async def _pass_events(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> str:
        stream = self.stream
        events = EventStream(
            chat=stream.chat, asked=stream.asked, usage=self._counts_by_usage, several=count_answers(stream.body) > 1
        )
        try:
            while not events.done and not events.error_event:
                data = await self._read(answer, events)
                self._heard_s = time.monotonic()
                await self._write(events.feed(data), answer, attempt)
                if events.garbage is not None:
                    raise UpstreamError("garbage")
                if events.error_event:
                    if blames_engine(events.error):
                        raise UpstreamError("engine", blame=False, event=events.error_event)
                    await self._write([(events.error_event, 0)], answer, attempt)
        finally:
            self._count_prompt(events.usage_so_far)
        if stream.span.is_recording():
            with suppress(GarbageError):
                self._identify(payload_of(stream.first_event), [events.finish_reason])
        await read_to_end(answer)
        return "error" if events.error_event else "done"

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
            return DONE_EVENT
        raise UpstreamError("ended early")

    def _is_complete(self, events: EventStream) -> bool:
        return events.finish_reason is not None and count_answers(self.stream.body) == 1 and self.writer.started

    async def _write(self, batch: list[Event], answer: aiohttp.ClientResponse, attempt: Attempt) -> None:
        if not batch:
            return
        batch = self._take(batch, attempt)
        if self.writer.started or await self._begin(batch, answer):
            await self.writer.write(batch)

    def _take(self, batch: list[Event], attempt: Attempt) -> list[Event]:
        """Count what has come; as the reader should see it."""
        stream, continuation = self.stream, attempt.continuation
        new = 0
        for _, tokens in batch:
            new += tokens
        if new:
            stream.tokens += new
            attempt.replica.tokens += new
            if attempt.waited_s is None:
                self._first_token(attempt)
        if continuation is not None:
            try:
                batch = [(continuation.rewrite(event), tokens) for event, tokens in batch]
            except (ValueError, TypeError, AttributeError):
                raise UpstreamError("garbage") from None
        if not stream.first_event:  # of data; a comment may come before it
            stream.first_event = next((event for event, _ in batch if event.startswith(b"data:")), b"")
        if stream.log is not None:
            stream.keep([event for event, _ in batch if event])
        return batch

    async def _begin(self, batch: list[Event], answer: aiohttp.ClientResponse) -> bool:
        """Send the head of the response, once there is something to follow it; whether there is."""
        if not any(event for event, _ in batch):
            return False
        self.stream.status = 200
        headers = {"content-type": answer.headers["content-type"], "cache-control": "no-cache"}
        await self.writer.start(200, {**headers, "x-accel-buffering": "no", **self._echo()})
        return True

    def _first_token(self, attempt: Attempt) -> None:
        now_s = self._heard_s
        attempt.waited_s = now_s - attempt.sent_s
        expected = self.stream.expected if self.stream.attempts == 1 else None
        attempt.replica.first_token(self.stream, attempt.waited_s, now_s, expected=expected, alone=attempt.alone)

    def _count_prompt(self, usage: Any) -> None:
        tokens = count_of(usage, "prompt_tokens")
        if tokens and self.stream.attempts == 1:
            self._context.upstreams.learn_length(self.stream.route.model, self.stream.prompt, tokens)
            self.stream.record.prompt_tokens = tokens
            self._counted = True
            details = usage.get("prompt_tokens_details")
            if details is not None:
                self.stream.said[names.CACHED_TOKENS] = count_of(details, "cached_tokens")

    def _identify(self, chunk: Mapping[str, Any], finish_reasons: Sequence[object]) -> None:
        said = {names.RESPONSE_ID: chunk.get("id"), names.RESPONSE_MODEL: chunk.get("model")}
        self.stream.said |= {name: value for name, value in said.items() if isinstance(value, str)}
        self.stream.said[names.FINISH_REASONS] = [reason for reason in finish_reasons if isinstance(reason, str)]
