"""The way out to one client: at once, or at the reader's speed. Never a second response once one has started."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from andes_api.pacing import Pacer

__all__ = ["Outlet", "PacedOutlet", "Send"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HELD_EVENTS = 4096


class Outlet:
    """Passes on what it is given. ``writing``: the relay waits for us; ``sending``: we wait for the client's socket."""

    def __init__(self, send: Send, delivered: Callable[[int], None]) -> None:
        self._send = send
        self._delivered = delivered
        self.started = False
        self.writing = False
        self.sending = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": lines})

    async def write(self, event: bytes, tokens: int) -> None:
        """Bytes that bring ``tokens`` tokens. They count as delivered once the socket has taken them."""
        self.writing = self.sending = True
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
        self.writing = self.sending = False
        if tokens:
            self._delivered(tokens)

    async def end(self, last: bytes = b"") -> None:
        self.writing = self.sending = True
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
        self.writing = self.sending = False

    async def close(self) -> None:
        """Stop, wherever it stands."""


class PacedOutlet(Outlet):
    """Passes on at the reader's speed; holds a bounded number of events, and when full holds the engine back."""

    def __init__(self, send: Send, delivered: Callable[[int], None], pacer: Pacer) -> None:
        super().__init__(send, delivered)
        self._pacer = pacer
        self._held: deque[tuple[float, bytes, int]] = deque()
        self._room = asyncio.Semaphore(HELD_EVENTS)
        self._more = asyncio.Event()
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    async def write(self, event: bytes, tokens: int) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._release())
        self.writing = True
        await self._room.acquire()
        self._held.append((self._pacer.due(time.monotonic(), tokens), event, tokens))
        self._more.set()
        self.writing = False

    async def end(self, last: bytes = b"") -> None:
        if self._task is not None:
            self._ended = self.writing = True
            self._more.set()
            await self._task
        await super().end(last)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _release(self) -> None:
        held = self._held
        while held or not self._ended:
            if not held:
                self._more.clear()
                await self._more.wait()
                continue
            await asyncio.sleep(max(0.0, held[0][0] - time.monotonic()))
            events, tokens, now_s = [], 0, time.monotonic()
            while held and self._pacer.releases(held[0][0], now_s):
                _, event, new = held.popleft()
                events.append(event)
                tokens += new
                self._room.release()
            self.sending = True
            await self._send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
            self.sending = False
            if tokens:
                self._delivered(tokens)
