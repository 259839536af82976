"""A request's way through the gateway: admitted, sent to a replica, its events passed on as they come, measured."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from opentelemetry.trace import Span

from andes_api import admission, names, telemetry
from andes_api.admission import TokenBucket
from andes_api.demand import Demand, DemandRecord, QoEWindow
from andes_api.errors import ApiError
from andes_api.expectations import ANONYMOUS, Expectation
from andes_api.forecast import Forecast, Newcomer, forecast
from andes_api.metrics import Metrics
from andes_api.outlet import Outlet, PacedOutlet, Send
from andes_api.pacing import Pacer
from andes_api.prompts import Prompt
from andes_api.replicas import Fleet, Replica
from andes_api.resume import Continuation, continued, resumable, text_of
from andes_api.routing import make
from andes_api.settings import Settings, TenantSettings
from andes_api.sse import EventStream, GarbageError, stream_options
from andes_sglang.qoe import QoETarget, ReaderStream

__all__ = ["Gateway", "Stream"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
MAX_ANSWER_BYTES = 64 << 20
COMPACT_EVENTS = 64
_PASSED_HEADERS = ("content-type", "retry-after")
_access = logging.getLogger("andes.access")


class UpstreamError(Exception):
    """A replica did not do its part. ``event``, ``answer``: what it said, where it said something an OpenAI client reads.
    ``blame``: whether the replica is to be avoided for it."""

    def __init__(
        self,
        kind: str,
        *,
        blame: bool = True,
        event: bytes | None = None,
        answer: tuple[int, dict[str, str], bytes] | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind, self.blame, self.event, self.answer = kind, blame, event, answer


@dataclass(eq=False, slots=True)
class Stream:
    """One request on its way. Times are of the monotonic clock, in seconds."""

    chat: bool
    body: dict[str, Any]
    expectation: Expectation
    tenant: TenantSettings | None
    headers: Mapping[str, str]
    request_id: str
    arrival_s: float
    reader: ReaderStream
    prompt: Prompt
    prompt_tokens: float
    record: DemandRecord
    span: Span
    asked: dict[str, Any] = field(default_factory=dict)
    expected: Forecast | None = None
    sent_s: float = 0.0
    last_s: float = 0.0
    delivered_s: float = 0.0
    tokens: int = 0
    attempts: int = 0
    status: int = 0
    replica: str = ""
    answer: aiohttp.ClientResponse | None = None
    outlet: Outlet | None = None
    stalled: bool = False
    first_event: bytes = b""
    log: list[bytes] | None = None  # events not yet turned into text; None: cannot be continued
    text: str = ""

    @property
    def streams(self) -> bool:
        return self.record.stream

    @property
    def tenant_name(self) -> str:
        return self.tenant.name if self.tenant else ANONYMOUS

    def delivered(self, tokens: int) -> None:
        """``tokens`` tokens have been handed to the reader's socket."""
        now_s = self.delivered_s = time.monotonic()
        reader = self.reader
        if not reader.delivered:
            self.record.ttft_s = now_s - self.arrival_s
        stalls, stall_s = reader.stalls, reader.stall_s
        reader.deliver(now_s, tokens)
        if reader.stalls != stalls and reader.stalls <= 32:
            self.span.add_event(names.EVENT_STALL, {names.STALL_SECONDS: reader.stall_s - stall_s})

    def keep(self, event: bytes) -> None:
        """Remember what was said, to continue from."""
        if self.log is None:
            return
        self.log.append(event)
        if len(self.log) >= COMPACT_EVENTS:
            self.compact()

    def compact(self) -> None:
        if self.log is None:
            return
        text = text_of(self.log)
        if text is None:
            self.log = None
            return
        self.text += text
        self.log = []


class Gateway:
    """Everything that lives as long as the server does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.fleet = Fleet(settings)
        self.policy = make(settings.policy, horizon_s=settings.horizon_s, bound=settings.bounded_load)
        self.demand = Demand(settings.demand_records)
        self.qoe = QoEWindow()
        self.telemetry = telemetry.Telemetry(settings.otlp_endpoint, settings.name)
        self.open: set[Stream] = set()
        self.draining = False
        self._relays: dict[Stream, asyncio.Task[None]] = {}
        self._by_tenant: dict[str, int] = {}
        self._buckets = {
            t.name: TokenBucket(t.requests_per_minute) for t in settings.tenants if t.requests_per_minute is not None
        }
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.fleet.start()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._relays.values()):
            task.cancel()
        await asyncio.gather(*self._relays.values(), return_exceptions=True)
        await self.fleet.stop()
        await asyncio.to_thread(self.telemetry.stop)

    def count_replicas(self) -> None:
        now_s = time.monotonic()
        self.metrics.replicas({r.name: (r.takes(now_s), len(r.streams)) for r in self.fleet.replicas.values()})

    # Admission

    def new_stream(
        self, chat: bool, body: dict[str, Any], expectation: Expectation, tenant: TenantSettings | None,
        headers: Mapping[str, str], route: str,
    ) -> Stream:  # fmt: skip
        """A stream for this request, on record but not admitted."""
        now_s = time.monotonic()
        prompt = Prompt(body, chat)
        prompt_tokens = max(1.0, prompt.tokens(self.fleet.chars_per_token))
        streams = body.get("stream") is True
        record = DemandRecord(time.time(), expectation.class_name, streams, round(prompt_tokens))
        self.demand.add(record)
        span = self.telemetry.server_span(headers, "POST", route)
        span.set_attributes(
            {
                names.CLASS: expectation.class_name,
                names.TTFT_TARGET: expectation.target.ttft_s,
                names.TDS_TARGET: expectation.target.tds,
            }
        )
        can_resume = self.settings.resume and streams and resumable(body, chat)
        return Stream(
            chat, body, expectation, tenant, headers, headers.get("x-request-id") or uuid.uuid4().hex, now_s,
            ReaderStream(now_s, _side_by_side(expectation, body)), prompt, prompt_tokens, record, span,
            asked=stream_options(body) if streams else {}, log=[] if can_resume else None,
        )  # fmt: skip

    def admit(self, stream: Stream) -> list[Replica]:
        """Replicas for this stream, best first. Raises the error that refuses it."""
        now_s = stream.arrival_s
        settings, tenant = self.settings, stream.tenant
        if self.draining:
            raise admission.no_replica(5.0, draining=True)
        if tenant is not None and tenant.name in self._buckets:
            wait_s = self._buckets[tenant.name].take(now_s)
            if wait_s:
                raise admission.too_fast(tenant.name, tenant.requests_per_minute or 0.0, wait_s)
        if tenant is not None and tenant.max_streams is not None:
            held = self._by_tenant.get(tenant.name, 0)
            if held >= tenant.max_streams:
                raise admission.tenant_streams(tenant.name, tenant.max_streams, self._until_one_ends(held))
        if len(self.open) >= settings.max_streams:
            raise admission.full(self._until_one_ends(len(self.open)))
        order = self._order(stream, now_s)
        if not order:
            alive = [r for r in self.fleet.replicas.values() if r.healthy and not r.draining]
            full = alive and all(len(r.streams) >= settings.max_streams_per_replica for r in alive)
            raise admission.full(self._until_one_ends(len(self.open))) if full else admission.no_replica(5.0)
        replica = order[0]
        view = replica.view(now_s, stream.prompt, stream.prompt_tokens)
        new = self._newcomer(stream)
        stream.expected = forecast(new, view, now_s, settings.horizon_s)
        if settings.admission and stream.streams and view.load:
            cls = stream.expectation.settings
            refusal = admission.overload(new, stream.expected, cls, settings.horizon_s, stream.expectation.class_name)
            if refusal is not None:
                raise refusal
        return order

    def _newcomer(self, stream: Stream) -> Newcomer:
        cls = stream.expectation.settings
        return Newcomer(stream.prompt_tokens, stream.expectation.target, cls.weight, stream.prompt.key)

    def _order(self, stream: Stream, now_s: float) -> list[Replica]:
        taking = {replica.name: replica for replica in self.fleet.taking(now_s)}
        if len(taking) < 2:
            return list(taking.values())
        views = [replica.view(now_s, stream.prompt, stream.prompt_tokens) for replica in taking.values()]
        return [taking[view.name] for view in self.policy.order(self._newcomer(stream), views, now_s)]

    def _until_one_ends(self, streams: int) -> float:
        lasts = [replica.stream_s for replica in self.fleet.replicas.values()] or [5.0]
        return max(1.0, sum(lasts) / len(lasts) / max(1, streams))

    # The way through

    async def serve(self, stream: Stream, order: list[Replica], receive: Receive, send: Send) -> None:
        """Answer on this connection until the last byte, or until the client has gone: then upstream is cancelled."""
        self.open.add(stream)
        self._by_tenant[stream.tenant_name] = self._by_tenant.get(stream.tenant_name, 0) + 1
        self.metrics.open.labels(stream.expectation.class_name).inc()
        relay = self._relays[stream] = asyncio.create_task(self._relay(stream, order, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
            if stream.record.outcome != "open":  # the last byte is out; what follows is tidying up
                await asyncio.wait({relay})
        finally:
            relay.cancel()
            gone.cancel()
            await asyncio.gather(relay, gone, return_exceptions=True)
            del self._relays[stream]
            self.open.discard(stream)
            self._by_tenant[stream.tenant_name] -= 1
            self.metrics.open.labels(stream.expectation.class_name).dec()
            fault = None if relay.cancelled() else relay.exception()
            if stream.record.outcome == "open":
                stream.record.outcome = "failed" if fault else "abandoned"
            self.finish(stream, stream.record.outcome)
        if fault is not None:
            raise fault

    async def _relay(self, stream: Stream, order: list[Replica], send: Send) -> None:
        outlet: Outlet
        if stream.streams and stream.expectation.pace:
            interval_s = self.settings.pace_interval_s
            outlet = PacedOutlet(send, stream.delivered, Pacer(stream.expectation.target.tds, interval_s))
        else:
            outlet = Outlet(send, stream.delivered)
        stream.outlet = outlet
        try:
            await self._attempts(stream, order, outlet)
        finally:
            await outlet.close()

    async def _attempts(self, stream: Stream, order: list[Replica], outlet: Outlet) -> None:
        tried: set[Replica] = set()
        body = stream.body
        continuation: Continuation | None = None
        while True:
            replica = next((r for r in order if r not in tried), None)
            assert replica is not None  # noqa: S101
            tried.add(replica)
            try:
                await self._attempt(stream, replica, body, outlet, continuation)
                return
            except UpstreamError as error:
                now_s = time.monotonic()
                self.metrics.failures.labels(replica.name).inc()
                if error.blame:
                    replica.breaker.failed(now_s)
                order = [r for r in order if r.takes(now_s)]
                again = stream.attempts <= self.settings.retries and any(r not in tried for r in order)
                if again and not outlet.started:
                    self.metrics.retries.inc()
                    stream.span.add_event(names.EVENT_RETRY, {names.REASON: error.kind})
                    continue
                if again and outlet.started:
                    rest = self._rest(stream)
                    if rest is not None:
                        body, continuation = rest
                        self.metrics.resumes.inc()
                        stream.span.add_event(names.EVENT_RESUME, {names.REASON: error.kind})
                        continue
                await self._give_up(stream, outlet, error)
                return

    def _rest(self, stream: Stream) -> tuple[dict[str, Any], Continuation] | None:
        """What to ask another replica for, so that the reader does not notice; None where that cannot be."""
        stream.compact()
        if stream.log is None:
            return None
        body = continued(stream.body, stream.chat, stream.text, stream.tokens)
        return None if body is None else (body, Continuation(stream.first_event, stream.tokens))

    async def _give_up(self, stream: Stream, outlet: Outlet, error: UpstreamError) -> None:
        stream.record.outcome = "failed"
        telemetry.failed(stream.span, error.kind)
        fault = ApiError(
            502, f"the engine failed ({error.kind})", "upstream_error", code="upstream_error", reason="upstream",
            retry_after_s=1.0,
        )  # fmt: skip
        if outlet.started:  # the 200 has gone out: say it in the stream, and end without a finish reason
            await outlet.end(error.event or fault.event)
            return
        if error.answer is not None:
            status, headers, content = error.answer
            await self._answer(stream, outlet, status, headers, content)
        else:
            headers = {"content-type": "application/json", **fault.headers}
            await self._answer(stream, outlet, fault.status, headers, orjson.dumps(fault.body))

    async def _answer(
        self, stream: Stream, outlet: Outlet, status: int, headers: Mapping[str, str], content: bytes
    ) -> None:
        stream.status = status
        lines = {**headers, **self._echo(stream), "content-length": str(len(content))}
        await outlet.start(status, lines)
        await outlet.end(content)

    def _echo(self, stream: Stream) -> dict[str, str]:
        return {"x-request-id": stream.request_id, **stream.expectation.headers()}

    async def _attempt(
        self, stream: Stream, replica: Replica, body: dict[str, Any], outlet: Outlet, continuation: Continuation | None
    ) -> None:
        """One try on one replica. Raises :class:`UpstreamError`."""
        now_s = stream.sent_s = stream.last_s = time.monotonic()
        stream.attempts += 1
        stream.replica, stream.stalled = replica.name, False
        headers = {"content-type": "application/json", "x-request-id": stream.request_id}
        path = "/v1/chat/completions" if stream.chat else "/v1/completions"
        span = self.telemetry.client_span(stream.span, replica.url, stream.chat, body, headers)
        alone = not any(not s.tokens for s in replica.streams) and len(replica.streams) + replica.others < replica.slots
        replica.breaker.trying(now_s)
        replica.opened(stream)
        first = _First(stream, replica, alone)
        try:
            async with asyncio.timeout(self.settings.stream_idle_s) as patience:
                async with self.fleet.session.post(
                    replica.url + path, data=self._payload(stream, body, now_s), headers=headers, allow_redirects=False
                ) as answer:
                    patience.reschedule(None)
                    stream.answer = answer
                    await self._pass_on(stream, answer, outlet, continuation, first)
            replica.breaker.succeeded()
            replica.seen.add(stream.prompt)
        except UpstreamError as error:
            telemetry.failed(span, error.kind)
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            kind = "silent" if stream.stalled or isinstance(error, TimeoutError) else "connection"
            telemetry.failed(span, kind)
            raise UpstreamError(kind) from error
        except GarbageError as error:
            telemetry.failed(span, "garbage")
            raise UpstreamError("garbage") from error
        finally:
            stream.answer = None
            replica.closed(stream, first.seen, time.monotonic())
            self.fleet.forget(replica)
            span.set_attributes({names.INPUT_TOKENS: stream.record.prompt_tokens, names.OUTPUT_TOKENS: stream.tokens})
            if first.seen:
                span.set_attribute(names.TIME_TO_FIRST_CHUNK, first.waited_s)
            span.end()

    def _payload(self, stream: Stream, body: dict[str, Any], now_s: float) -> bytes:
        """The request for the engine: the client's own, with what its reader expects and what we want to know."""
        more: dict[str, Any] = {}
        if self.settings.forward_expectations:
            target = stream.expectation.target
            left_s = round(max(0.0, target.ttft_s - (now_s - stream.arrival_s)), 2)
            given = body.get("custom_params")
            qoe = {"ttft": left_s, "tds": target.tds}
            more["custom_params"] = {**(given if isinstance(given, dict) else {}), "qoe": qoe}
        if stream.streams and self.settings.count_tokens == "usage":
            more["stream_options"] = {**stream.asked, "include_usage": True, "continuous_usage_stats": True}
        return orjson.dumps({**body, **more})

    async def _pass_on(
        self, stream: Stream, answer: aiohttp.ClientResponse, outlet: Outlet, continuation: Continuation | None, first: _First
    ) -> None:  # fmt: skip
        kind = answer.headers.get("content-type", "")
        if answer.status == 200 and stream.streams and kind.startswith("text/event-stream"):
            await self._events(stream, answer, outlet, continuation, first)
            return
        content = await _all(answer)
        headers = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
        if answer.status == 429 or answer.status >= 500:
            said = (answer.status, headers, content) if kind.startswith("application/json") else None
            blame = answer.status in (502, 503, 504)
            raise UpstreamError(f"http_{answer.status}", blame=blame, answer=said)
        if outlet.started:
            raise UpstreamError(f"http_{answer.status}", blame=False)
        if answer.status == 200:
            usage = _usage(content)
            stream.tokens = int(usage.get("completion_tokens") or 0)
            self._count_prompt(stream, usage)
            if stream.streams:
                raise UpstreamError("garbage")
        stream.record.outcome = "done" if answer.status < 400 else "error"
        await self._answer(stream, outlet, answer.status, headers, content)

    async def _events(
        self, stream: Stream, answer: aiohttp.ClientResponse, outlet: Outlet, continuation: Continuation | None, first: _First
    ) -> None:  # fmt: skip
        usage = self.settings.count_tokens == "usage"
        several = (stream.body.get("n") or 1) != 1 or _prompts(stream.body) > 1
        events = EventStream(chat=stream.chat, asked=stream.asked, usage=usage, several=several)
        read, write, keep = answer.content.readany, outlet.write, stream.log is not None
        received = first.replica.received
        while not events.done:
            data = await read()
            if not data:
                raise UpstreamError("ended early")
            stream.last_s = time.monotonic()
            batch = events.feed(data)
            if events.error is not None and self._is_failure(events.error):
                batch, rest = _before_error(batch)
                if batch:
                    await self._write_all(stream, outlet, batch, continuation, first, answer)
                raise UpstreamError("engine", blame=False, event=rest)
            if continuation is not None or not outlet.started or len(batch) != 1:
                await self._write_all(stream, outlet, batch, continuation, first, answer)
                continue
            event, new = batch[0]
            if new:
                if not first.seen:
                    first.token()
                stream.tokens += new
                received(new)
            if keep:
                stream.keep(event)
            if event:
                await write(event, new)
        if events.usage is not None:
            self._count_prompt(stream, events.usage)
        stream.record.outcome = "error" if events.error is not None else "done"
        await outlet.end()
        await _until_eof(answer)

    async def _write_all(
        self, stream: Stream, outlet: Outlet, batch: list[tuple[bytes, int]], continuation: Continuation | None,
        first: _First, answer: aiohttp.ClientResponse,
    ) -> None:  # fmt: skip
        for event, new in batch:
            if new:
                if not first.seen:
                    first.token()
                stream.tokens += new
                first.replica.received(new)
            out = continuation.rewrite(event) if continuation and event else event
            if not out:
                continue
            stream.keep(out)
            if not outlet.started:
                stream.status = 200
                headers = {"content-type": answer.headers["content-type"], "cache-control": "no-cache"}
                await outlet.start(200, {**headers, "x-accel-buffering": "no", **self._echo(stream)})
                stream.first_event = out
            await outlet.write(out, new)

    @staticmethod
    def _is_failure(error: Any) -> bool:
        code = error.get("code") if isinstance(error, dict) else None
        return not isinstance(code, int) or code >= 500

    def _count_prompt(self, stream: Stream, usage: Mapping[str, Any]) -> None:
        tokens = usage.get("prompt_tokens")
        if isinstance(tokens, int) and tokens > 0 and stream.attempts == 1:
            self.fleet.learn_length(stream.prompt, tokens)
            stream.record.prompt_tokens = tokens

    # Afterwards

    def refuse(self, stream: Stream, error: ApiError) -> None:
        """Put a refusal on record."""
        stream.status = error.status
        self.metrics.shed.labels(stream.expectation.class_name, error.reason).inc()
        stream.span.set_attribute(names.REASON, error.reason)
        self.finish(stream, "shed")

    def finish(self, stream: Stream, outcome: str) -> None:
        """Score, count and log a request that is over."""
        now_s = time.monotonic()
        record, reader, cls = stream.record, stream.reader, stream.expectation.class_name
        record.outcome = outcome
        record.output_tokens = stream.tokens
        if record.stream:
            record.qoe = _score(outcome, reader, now_s)
        duration_s = now_s - stream.arrival_s
        metrics = self.metrics
        metrics.requests.labels(cls, outcome).inc()
        metrics.tokens.labels(cls).inc(stream.tokens)
        metrics.duration.labels(cls).observe(duration_s)
        if record.qoe is not None:
            self.qoe.add(now_s, cls, record.qoe)
            metrics.qoe.labels(cls).observe(record.qoe)
            stream.span.set_attribute(names.QOE, record.qoe)
        if record.ttft_s is not None:
            metrics.ttft.labels(cls).observe(record.ttft_s)
            metrics.stall.labels(cls).observe(reader.stall_s)
            if reader.delivered > 1 and outcome == "done":
                metrics.tpot.labels(cls).observe((duration_s - record.ttft_s) / (reader.delivered - 1))
        span = stream.span
        span.set_attributes(
            {
                names.OUTCOME: outcome,
                names.ATTEMPTS: stream.attempts,
                names.STALLS: reader.stalls,
                names.STALL_SECONDS: reader.stall_s,
                names.HTTP_STATUS: stream.status,
            }
        )
        span.end()
        if self.settings.access_log:
            _access.info("%s", json.dumps(self._line(stream, duration_s)))

    def _line(self, stream: Stream, duration_s: float) -> dict[str, Any]:
        return {
            "request_id": stream.request_id[:100],
            "tenant": stream.tenant_name,
            "model": str(stream.body.get("model", ""))[:100],
            "replica": stream.replica,
            "attempts": stream.attempts,
            "status": stream.status,
            "duration_s": round(duration_s, 4),
            "stalls": stream.reader.stalls,
            "stall_s": round(stream.reader.stall_s, 3),
            **stream.record.to_dict(),
        }

    async def _sweep(self) -> None:
        """Once a second: end what has been silent for too long, upstream or in the client."""
        while True:
            await asyncio.sleep(1.0)
            now_s = time.monotonic()
            for stream in list(self.open):
                if stream.answer is None or stream.outlet is None:
                    continue
                idle_s = now_s - max(stream.last_s, stream.delivered_s)
                if stream.outlet.sending and idle_s > self.settings.client_idle_s:
                    self._relays[stream].cancel()
                elif not stream.outlet.writing and now_s - stream.last_s > self.settings.stream_idle_s:
                    stream.stalled = True
                    stream.answer.close()


class _First:
    """Tells the replica, once, when an attempt has brought its first token."""

    __slots__ = ("_alone", "_stream", "replica", "seen", "waited_s")

    def __init__(self, stream: Stream, replica: Replica, alone: bool) -> None:
        self._stream, self.replica, self._alone = stream, replica, alone
        self.seen = False
        self.waited_s = 0.0

    def token(self) -> None:
        now_s = time.monotonic()
        self.seen = True
        self.waited_s = now_s - self._stream.sent_s
        expected = self._stream.expected if self._stream.attempts == 1 else None
        self.replica.first_token(self._stream, self.waited_s, expected, self._alone, now_s)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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


def _usage(content: bytes) -> Mapping[str, Any]:
    try:
        usage = orjson.loads(content).get("usage")
    except (orjson.JSONDecodeError, AttributeError):
        raise UpstreamError("garbage") from None
    return usage if isinstance(usage, dict) else {}


def _before_error(batch: list[tuple[bytes, int]]) -> tuple[list[tuple[bytes, int]], bytes]:
    k = next(k for k, (event, _) in enumerate(batch) if event.startswith(b'data: {"error"'))
    return batch[:k], batch[k][0]


def _score(outcome: str, reader: ReaderStream, now_s: float) -> float | None:
    """A stream refused or broken off by us scores 0, one its reader left what it had until then."""
    if outcome in ("shed", "failed"):
        return 0.0
    if outcome == "abandoned":
        return reader.qoe_at(now_s)
    return reader.final_qoe() if reader.delivered else None


def _prompts(body: Mapping[str, Any]) -> int:
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _side_by_side(expectation: Expectation, body: Mapping[str, Any]) -> QoETarget:
    """Several answers in one stream are read side by side: their tokens together against as many times the speed."""
    n = body.get("n")
    answers = (n if isinstance(n, int) and n > 1 else 1) * _prompts(body)
    return QoETarget(expectation.target.ttft_s, expectation.target.tds * answers)
