"""The response to one client: written at once, or at the reader's speed. Never a second response once one has started."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from andes_api.connection import Connection
from andes_api.pacing import Pacer
from andes_api.receipt import Receipt
from andes_api.sse import Event

__all__ = ["PacedResponseWriter", "ResponseWriter", "Send"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Delivered = Callable[[float, int], None]
COMMENT = b": keep-alive\n\n"
MAX_PENDING_EVENTS = 4096
"""Events that a paced response holds; about as many tokens, a long answer."""
MAX_SLEEP_S = 0.5
"""Seconds until a paced response looks whether it has to hurry: a tenth of what is left for that at the end of a drain."""


class ResponseWriter:
    """Passes on what it is given and calls ``delivered(now_s, tokens)`` (clock seconds) once the socket has taken it.

    writing: the relay waits for this writer; sending: this writer waits for the client's socket. written_s: when something
    was last handed to it, clock seconds. receipt: counts what is written. hurried: there is no time left to wait. connection:
    takes pieces that ``send`` (ASGI's) need not see.
    """

    def __init__(
        self, send: Send, delivered: Delivered, receipt: Receipt, *, connection: Connection | None = None
    ) -> None:
        self._send = send
        self._connection = Connection() if connection is None else connection
        self._delivered = delivered
        self._receipt = receipt
        self.hurried = False
        self.started = self.ended = False
        self.sending = False
        self.written_s = time.monotonic()

    @property
    def writing(self) -> bool:
        return self.sending

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": lines})

    async def write(self, batch: list[Event]) -> None:
        """Events with the tokens that each brings."""
        body, tokens = batch[0]
        if len(batch) > 1:
            body, tokens = b"".join([event for event, _ in batch]), sum([tokens for _, tokens in batch])
        if body and not self._connection.write(body):
            await self._put(body)
        elif body:
            self._receipt.wrote(len(body))
        now_s = time.monotonic()
        if body:
            self.written_s = now_s
        if tokens:
            self._delivered(now_s, tokens)

    async def comment(self) -> None:
        """Something that every reader of events passes over; nothing once the response has ended."""
        if not self.ended:
            await self._put(COMMENT)

    async def flush(self) -> None:
        """Until everything written is with the client's socket."""

    async def end(self) -> None:
        """After the last byte."""
        self.ended = True
        await self._put(b"", more=False)

    async def _put(self, body: bytes, *, more: bool = True) -> None:
        self.sending = True
        self._receipt.wrote(len(body))
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self.sending = False
        self.written_s = time.monotonic()

    def hurry(self) -> None:
        """Write what there is without waiting for its time."""
        self.hurried = True

    async def close(self) -> None:
        """Stop at once; what is not written yet is dropped."""


class PacedResponseWriter(ResponseWriter):
    """Passes on at the reader's speed; holds a bounded number of events, and when full holds the engine back."""

    def __init__(
        self, send: Send, delivered: Delivered, receipt: Receipt, pacer: Pacer, *, connection: Connection | None = None
    ) -> None:
        super().__init__(send, delivered, receipt, connection=connection)
        self._pacer = pacer
        self._pending: deque[tuple[float, Event]] = deque()
        self._room = asyncio.Semaphore(MAX_PENDING_EVENTS)
        self._more, self._idle = asyncio.Event(), asyncio.Event()
        self._ended = False
        self._full = False
        self._task: asyncio.Task[None] | None = None

    @property
    def writing(self) -> bool:
        return self._full or self._ended

    async def write(self, batch: list[Event]) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._release())
        self._full = True
        self._idle.clear()
        for event in batch:
            await self._room.acquire()
            self._pending.append((self._pacer.due(time.monotonic(), event[1]), event))
            self._more.set()
        self._full = False

    async def flush(self) -> None:
        if self._task is not None:
            self._full = True
            await self._idle.wait()
            self._full = False

    async def end(self) -> None:
        if self._task is not None:
            self._ended = True
            self._more.set()
            await self._task
        await super().end()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _release(self) -> None:
        pending = self._pending
        try:
            while pending or not self._ended:
                if not pending:
                    self._idle.set()
                    self._more.clear()
                    await self._more.wait()
                    continue
                wait_s = 0.0 if self.hurried else self._pacer.wait_s(pending[0][0], time.monotonic())
                await asyncio.sleep(min(wait_s, MAX_SLEEP_S))
                batch, now_s = [], time.monotonic()
                while pending and (self.hurried or self._pacer.releases(pending[0][0], now_s)):
                    batch.append(pending.popleft()[1])
                    self._room.release()
                if batch:
                    await super().write(batch)
        finally:
            self._idle.set()
