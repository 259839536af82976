"""One request's way through the gateway: sent to a replica, its events passed on as they come, continued elsewhere when the
replica fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from opentelemetry.trace import Span

from andes_api import names, telemetry
from andes_api.errors import ApiError
from andes_api.outlet import Outlet, PacedOutlet, Send
from andes_api.pacing import Pacer
from andes_api.replicas import Replica
from andes_api.sse import Event, EventStream, GarbageError, object_of, payload_of
from andes_api.stream import Stream, answers
from andes_sglang.resume import Continuation, continued

if TYPE_CHECKING:
    from andes_api.gateway import Gateway

__all__ = ["Relay"]

MAX_ANSWER_BYTES = 64 << 20
_PASSED_HEADERS = ("content-type", "retry-after")


class UpstreamError(Exception):
    """A replica did not do its part. ``event``, ``answer``: what it said, where it said something an OpenAI client reads.
    ``blame``: whether the replica is to be avoided for it."""

    def __init__(
        self, kind: str, *, blame: bool = True, event: bytes = b"", answer: tuple[int, dict[str, str], bytes] | None = None
    ) -> None:  # fmt: skip
        super().__init__(kind)
        self.kind, self.blame, self.event, self.answer = kind, blame, event, answer


class Attempt:
    """One try on one replica. alone: nothing was queued there ahead of it. waited_s: from sending to the first token."""

    __slots__ = ("alone", "continuation", "replica", "sent_s", "waited_s")

    def __init__(self, replica: Replica, stream: Stream, continuation: Continuation | None) -> None:
        self.replica, self.continuation = replica, continuation
        self.sent_s = time.monotonic()
        self.waited_s: float | None = None
        self.alone = replica.finds_no_queue(stream)


class Relay:
    """Answers one request on one connection. ``order``: the replicas to try, best first, each once at most; none: wait for
    one."""

    def __init__(self, gateway: Gateway, stream: Stream, order: list[Replica], send: Send) -> None:
        self.stream = stream
        self._gateway, self._settings = gateway, gateway.settings
        self._order = order
        self._answer: aiohttp.ClientResponse | None = None
        self._heard_s = stream.arrival_s  # when the replica last said something
        self._silent = False
        self._counted = False  # whether the engine has said how long the prompt is
        if stream.streams and stream.expectation.pace:
            pacer = Pacer(stream.expectation.target.tds, self._settings.pace_interval_s)
            self.outlet: Outlet = PacedOutlet(send, stream.delivered, pacer)
        else:
            self.outlet = Outlet(send, stream.delivered)

    async def run(self) -> None:
        """Until the last byte is out; then ``stream.record.outcome`` says how it ended."""
        try:
            try:
                outcome = await self._try_replicas()
                await self.outlet.end()
                self.stream.record.outcome = outcome
            except ApiError as error:  # no engine has come
                await self._refuse(error)
                await self.outlet.end()
                self._gateway.shed(self.stream, error)
        finally:
            await self.outlet.close()

    def client_is_gone(self, now_s: float) -> bool:
        """Whether the client's socket has taken nothing for too long."""
        idle_s = now_s - max(self._heard_s, self.stream.delivered_s)
        return self.outlet.sending and idle_s > self._settings.client_idle_s

    def end_silent_upstream(self, now_s: float) -> None:
        """Close a stream of the engine that has said nothing for too long while we were listening."""
        if self._answer is None or not self.stream.streams or self.outlet.writing:
            return
        if now_s - self._heard_s > self._settings.stream_idle_s:
            self._silent = True
            self._answer.close()

    async def _try_replicas(self) -> str:
        """Until one has answered or all is lost: "done", "error" (the request's) or "failed" (ours)."""
        stream, metrics = self.stream, self._gateway.metrics
        body = stream.body
        continuation: Continuation | None = None
        order = self._order
        while True:
            replica, *order = order or await self._gateway.wait_for_place(stream)
            try:
                return await self._attempt(replica, body, continuation)
            except UpstreamError as error:
                now_s = time.monotonic()
                metrics.failures.labels(replica.name).inc()
                if error.blame:
                    replica.breaker.failed(now_s)
                order = [r for r in order if r.takes(now_s)]
                started = self.outlet.started
                rest = self._rest() if started else body
                ends = started or bool(self._gateway.fleet.taking(now_s))  # else there may be an engine in a while
                if (ends and not order) or rest is None or stream.attempts > self._settings.retries:
                    await self._give_up(error)
                    return "failed"
                body, continuation = rest, self._continuation() if started else None
                (metrics.resumes if started else metrics.retries).inc()
                event = names.EVENT_RESUME if started else names.EVENT_RETRY
                stream.span.add_event(event, {names.REASON: error.kind})

    def _rest(self) -> dict[str, Any] | None:
        """What to ask another replica for, so that the reader does not notice; None where that cannot be."""
        stream = self.stream
        stream.compact()
        return None if stream.log is None else continued(stream.body, stream.chat, stream.text, stream.tokens)

    def _continuation(self) -> Continuation:
        stream = self.stream
        return Continuation(stream.first_event, stream.tokens, stream.record.prompt_tokens if self._counted else None)

    async def _give_up(self, error: UpstreamError) -> None:
        stream, outlet = self.stream, self.outlet
        telemetry.failed(stream.span, error.kind)
        fault = ApiError(
            502, f"the engine failed ({error.kind})", "upstream_error", code="upstream_error", reason="upstream",
            retry_after_s=1.0,
        )  # fmt: skip
        if outlet.started:  # the 200 has gone out: say it in the stream, and end without a finish reason
            await outlet.write([(error.event or fault.event, 0)])
        elif error.answer is not None:
            await self._reply(*error.answer)
        else:
            await self._refuse(fault)

    async def _refuse(self, error: ApiError) -> None:
        headers = {"content-type": "application/json", **error.headers}
        await self._reply(error.status, headers, orjson.dumps(error.body))

    async def _reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.stream.status = status
        await self.outlet.start(status, {**headers, **self._echo(), "content-length": str(len(content))})
        await self.outlet.write([(content, 0)])

    def _echo(self) -> dict[str, str]:
        return {"x-request-id": self.stream.request_id, **self.stream.expectation.headers()}

    async def _attempt(self, replica: Replica, body: dict[str, Any], continuation: Continuation | None) -> str:
        """One try on one replica; how it ended. Raises :class:`UpstreamError`."""
        stream, fleet = self.stream, self._gateway.fleet
        attempt = Attempt(replica, stream, continuation)
        self._heard_s, self._silent = attempt.sent_s, False
        stream.attempts += 1
        stream.replica = replica.name
        headers = {"content-type": "application/json", "x-request-id": stream.request_id}
        span = self._gateway.telemetry.client_span(stream, replica.url, headers)
        replica.breaker.trying(attempt.sent_s)
        replica.opened(stream)
        try:
            async with asyncio.timeout(self._patience_s) as patience:
                async with fleet.session.post(
                    replica.url + stream.path, data=self._payload(body), headers=headers, allow_redirects=False
                ) as answer:
                    patience.reschedule(None)
                    self._answer = answer
                    outcome = await self._pass_on(answer, attempt)
            replica.breaker.succeeded()
            replica.prefixes.add(stream.prompt.blocks)
            return outcome
        except UpstreamError as error:
            telemetry.failed(span, error.kind)
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            replica.healthy = False  # nobody is there, until a probe finds somebody
            telemetry.failed(span, "unreachable")
            raise UpstreamError("unreachable") from error
        except (aiohttp.ClientError, TimeoutError, OSError, GarbageError) as error:
            kind = "silent" if self._silent or isinstance(error, TimeoutError) else "connection"
            if isinstance(error, GarbageError):
                kind = "garbage"
            telemetry.failed(span, kind)
            raise UpstreamError(kind) from error
        finally:
            self._answer = None
            replica.closed(stream, attempt.sent_s, attempt.waited_s is not None, time.monotonic())
            fleet.forget(replica)
            self._describe(span, attempt)
            span.end()

    def _describe(self, span: Span, attempt: Attempt) -> None:
        stream = self.stream
        span.set_attributes({names.INPUT_TOKENS: stream.record.prompt_tokens, names.OUTPUT_TOKENS: stream.tokens})
        span.set_attributes(stream.said)
        if attempt.waited_s is not None:
            span.set_attribute(names.TIME_TO_FIRST_CHUNK, attempt.waited_s)

    def _payload(self, body: dict[str, Any]) -> bytes:
        """The request for the engine: the client's own, with what its reader expects and what we want to know."""
        stream = self.stream
        more: dict[str, Any] = {}
        if self._settings.forward_expectations:
            target = stream.expectation.target
            left_s = round(max(0.0, target.ttft_s - (time.monotonic() - stream.arrival_s)), 2)
            given = body.get("custom_params")
            qoe = {"ttft": left_s, "tds": target.tds}
            more["custom_params"] = {**(given if isinstance(given, dict) else {}), "qoe": qoe}
        if stream.streams and self._counts_by_usage:
            more["stream_options"] = {**stream.asked, "include_usage": True, "continuous_usage_stats": True}
        return orjson.dumps({**body, **more})

    @property
    def _patience_s(self) -> float:
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
            return await self._events(answer, attempt)
        content = await _all(answer)
        headers = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
        if answer.status == 429 or answer.status >= 500:
            said = (answer.status, headers, content) if kind.startswith("application/json") else None
            blame = said is None or answer.status in (502, 503, 504)
            raise UpstreamError(f"http_{answer.status}", blame=blame, answer=said)
        if self.outlet.started:
            raise UpstreamError(f"http_{answer.status}", blame=False)
        if answer.status == 200:
            whole = object_of(content)
            stream.tokens = _count(whole.get("usage"), "completion_tokens")
            self._count_prompt(whole.get("usage"))
            choices = whole.get("choices")
            ends = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
            self._identify(whole, ends)
        await self._reply(answer.status, headers, content)
        return "done" if answer.status < 400 else "error"

    async def _events(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> str:
        stream = self.stream
        events = EventStream(
            chat=stream.chat, asked=stream.asked, usage=self._counts_by_usage, several=answers(stream.body) > 1
        )
        read, write = answer.content.readany, self.outlet.write
        try:
            while not events.done:
                data = await read()
                if not data:
                    raise UpstreamError("ended early")
                self._heard_s = time.monotonic()
                batch = events.feed(data)
                if batch:
                    batch = self._take(batch, attempt)
                    if self.outlet.started or await self._begin(batch, answer):
                        await write(batch)
                if events.garbage is not None:
                    raise UpstreamError("garbage")
                if events.error_event:
                    if _is_the_engines(events.error):
                        raise UpstreamError("engine", blame=False, event=events.error_event)
                    batch = [(events.error_event, 0)]
                    if self.outlet.started or await self._begin(batch, answer):
                        await write(batch)
                    break
        finally:
            self._count_prompt(events.usage_so_far)
        if stream.span.is_recording():
            with suppress(GarbageError):
                self._identify(payload_of(stream.first_event), [events.finish_reason])
        await _until_eof(answer)
        return "error" if events.error_event else "done"

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
            except ValueError:
                raise UpstreamError("garbage") from None
        if stream.log is not None:
            stream.keep([event for event, _ in batch if event])
        return batch

    async def _begin(self, batch: list[Event], answer: aiohttp.ClientResponse) -> bool:
        """Send the head of the answer, once there is something to follow it; whether there is."""
        first = next((event for event, _ in batch if event), None)
        if first is None:
            return False
        self.stream.status, self.stream.first_event = 200, first
        headers = {"content-type": answer.headers["content-type"], "cache-control": "no-cache"}
        await self.outlet.start(200, {**headers, "x-accel-buffering": "no", **self._echo()})
        return True

    def _first_token(self, attempt: Attempt) -> None:
        now_s = self._heard_s
        attempt.waited_s = now_s - attempt.sent_s
        expected = self.stream.expected if self.stream.attempts == 1 else None
        attempt.replica.first_token(self.stream, attempt.waited_s, expected, attempt.alone, now_s)

    def _count_prompt(self, usage: Any) -> None:
        tokens = _count(usage, "prompt_tokens")
        if tokens and self.stream.attempts == 1:
            self._gateway.fleet.learn_length(self.stream.prompt, tokens)
            self.stream.record.prompt_tokens = tokens
            self._counted = True
            details = usage.get("prompt_tokens_details")
            if details is not None:
                self.stream.said[names.CACHED_TOKENS] = _count(details, "cached_tokens")

    def _identify(self, chunk: Mapping[str, Any], finish_reasons: Sequence[object]) -> None:
        said = {names.RESPONSE_ID: chunk.get("id"), names.RESPONSE_MODEL: chunk.get("model")}
        self.stream.said |= {name: value for name, value in said.items() if isinstance(value, str)}
        self.stream.said[names.FINISH_REASONS] = [reason for reason in finish_reasons if isinstance(reason, str)]


async def _all(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamError("too long")
        parts.append(part)
    return b"".join(parts)


async def _until_eof(answer: aiohttp.ClientResponse) -> None:
    """After the last event comes the end of the answer: read it, so that the connection can be used again."""
    try:
        async with asyncio.timeout(0.5):
            while await answer.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError):
        answer.close()


def _count(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return max(0, count) if isinstance(count, int) else 0


def _is_the_engines(error: Any) -> bool:
    """Whether an error in a stream is the engine's fault rather than the request's."""
    code = error.get("code") if isinstance(error, dict) else None
    return not isinstance(code, int) or code >= 500
