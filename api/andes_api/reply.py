"""The answer to one client, whichever replicas it comes from: in one piece, or event by event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from andes_api.connection import Connection
from andes_api.errors import ApiError
from andes_api.pacing import Pacer
from andes_api.receipt import SAMPLE_INTERVAL_S
from andes_api.response import PacedResponseWriter, ResponseWriter, Send
from andes_api.settings import GatewaySettings
from andes_api.sse import Event, GarbageError, object_of, payload_of
from andes_api.stream import Stream
from andes_api.typed_events import TypedEvents

__all__ = ["Reply"]

DONE_EVENT = b"data: [DONE]\n\n"
MIN_KEEPALIVE_S = 0.05
"""Seconds between looks at a client whose socket is full."""
EVENT_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


class Reply:
    """Every answer echoes the request's id and what holds of its reader. started: its head is out; begun: an event of the
    answer has come, so that no other answer can take its place. seen: events as the client should see them."""

    def __init__(
        self,
        stream: Stream,
        send: Send,
        connection: Connection,
        settings: GatewaySettings,
        *,
        seen: Callable[[list[Event]], list[Event]] | None = None,
    ) -> None:
        self._stream, self._seen = stream, seen
        self._connection = connection
        self._keepalive_s = settings.keepalive_s
        self._timer: asyncio.TimerHandle | None = None  # not a task: nearly no stream comes to need one
        self._comment: asyncio.Task[None] | None = None
        self._last: list[Event] = []  # what is to come after the report, or with it
        if stream.streams and stream.expectation.pace:
            pacer = Pacer(stream.expectation.target.tds, settings.pace_interval_s)
            self.writer: ResponseWriter = PacedResponseWriter(
                send, stream.delivered, stream.receipt, pacer, connection=connection
            )
        else:
            self.writer = ResponseWriter(send, stream.delivered, stream.receipt, connection=connection)

    @property
    def started(self) -> bool:
        return self.writer.started

    @property
    def begun(self) -> bool:
        return bool(self._stream.first_event)

    def keep_alive(self) -> None:
        """From now on until :meth:`stop`: a comment whenever a stream has said nothing for ``keepalive_s``, so that no proxy
        or client takes it for dead. Its head goes out with the first one; an error after that is an event."""
        if self._stream.streams and self._keepalive_s:
            self._look_in_s(self._keepalive_s)

    async def stop(self) -> None:
        """No comment any more; what is not written yet is dropped."""
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()
            await asyncio.gather(self._comment, return_exceptions=True)
        await self.writer.close()

    def _look_in_s(self, wait_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        left_s = self.writer.written_s + self._keepalive_s - time.monotonic()
        if left_s > 0 or self.writer.sending:
            self._look_in_s(max(left_s, MIN_KEEPALIVE_S))
        else:
            self._comment = asyncio.create_task(self._say_comment())

    async def _say_comment(self) -> None:
        if not self.started:
            await self._start_events()
        await self.writer.comment()
        self._look_in_s(self._keepalive_s)

    async def whole(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """An answer in one piece; where the head of a stream is out already, an error in it."""
        endpoint = self._stream.endpoint
        if self.started:
            await self.writer.write([(endpoint.error_event(status, object_of(content)), 0)])
            return
        if status >= 400:
            content = endpoint.error_content(status, content)
        elif self._stream.expectation.report:
            content = self._with_report(content)
        await self._start(status, {**headers, "content-length": str(len(content))})
        await self.writer.write([(content, 0)])

    async def refuse(self, error: ApiError) -> None:
        headers = {"content-type": "application/json", **error.headers}
        await self.whole(error.status, headers, orjson.dumps(error.body))

    async def events(self, batch: list[Event]) -> None:
        """Pass ``batch`` on; the head goes out once there is something to follow it."""
        if self._seen is not None:
            batch = self._seen(batch)
        if self._stream.expectation.report:
            batch = [event for event in batch if not self._hold_back(event)]
        if not batch:
            return
        if not self.started:
            if not any(event for event, _ in batch):
                return
            await self._start_events()
        await self.writer.write(batch)

    async def end(self) -> None:
        """After the last event; before it, where the caller wants that, what the reader got. Until a reader who is behind has
        got the rest the stream is open."""
        stream = self._stream
        if stream.streams:
            await self._settle()
        if stream.expectation.report and stream.usage is not None:
            if not self.started:  # all of it was held back
                await self._start_events()
            await self.writer.write(self._report())
        await self.writer.end()

    async def _settle(self) -> None:
        """Until the reader has what is on its way, but for a moment's."""
        await self.writer.flush()
        while not self.writer.hurried and self._stream.receipt.owes(self._connection.unacknowledged_bytes()):
            await asyncio.sleep(SAMPLE_INTERVAL_S / 2)

    def _hold_back(self, event: Event) -> bool:
        """Whether ``event`` has to wait until the reader has had all before it; :meth:`end` writes it."""
        reader = self._stream.endpoint.reader
        if reader is None or not issubclass(reader, TypedEvents):
            return event[0][5:].lstrip().startswith(b"[DONE]")
        if self._last or reader.is_last(event[0]):
            self._last.append(event)
        return bool(self._last)

    def _report(self) -> list[Event]:
        """The end of a stream with what its reader got."""
        stream, reader = self._stream, self._stream.endpoint.reader
        report = stream.report(time.monotonic())
        if reader is not None and issubclass(reader, TypedEvents):
            return [(reader.with_report(event, report), tokens) for event, tokens in self._last] or [(b"", 0)]
        chunk = {**identity_of(stream.first_event), "choices": [], "usage": {**(stream.usage or {}), "andes": report}}
        return [(b"data: " + orjson.dumps(chunk) + b"\n\n", 0), (DONE_EVENT, 0)]

    def _with_report(self, content: bytes) -> bytes:
        """An answer in one piece with what its caller wants to know; as it is where it is no object."""
        try:
            whole = object_of(content)
        except GarbageError:
            return content
        usage = whole.get("usage")
        said = usage if isinstance(usage, dict) else {}
        return orjson.dumps({**whole, "usage": {**said, "andes": self._stream.report(time.monotonic())}})

    async def _start_events(self) -> None:
        await self._start(200, {**EVENT_HEADERS, "x-andes-stream": self._stream.report_id})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._stream.status = status
        stream = self._stream
        echo = {
            "x-request-id": stream.request_id,
            **stream.limits,
            **stream.expectation.headers(),
            **stream.forecast_headers(),
            **(stream.model_headers() if stream.attempts else {}),  # held: another model may come first
        }
        await self.writer.start(status, {**headers, **echo})


def identity_of(first_event: bytes) -> dict[str, Any]:
    """Of a stream, as its first event has it; empty where that is of another shape."""
    try:
        return payload_of(first_event)
    except GarbageError:
        return {}
