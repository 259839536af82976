"""Responses that engines keep: asked for by their id, and by the gateway itself for those that go on in the background, whose
tokens are not known when they are answered."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import quote

import aiohttp

from andes_api.sse import GarbageError, object_of
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_api.upstream_answer import UNFINISHED, output_tokens_of
from andes_api.upstreams import Upstreams

__all__ = ["BackgroundResponses", "ask_for"]

TIMEOUT = aiohttp.ClientTimeout(total=10.0)
"""Seconds for an engine to look a response up."""
POLL_INTERVAL_S, MAX_ASKED = 1.0, 64
"""Seconds between rounds, and responses that are asked for in one."""
MAX_AGE_S, MAX_PENDING = 3600.0, 10_000
"""Seconds after which, and number beyond which, a response is given up: its tokens are not charged."""


async def ask_for(
    upstreams: Upstreams, replicas: Iterable[Upstream], response_id: str, *, cancel: bool = False
) -> tuple[int, bytes] | None:
    """Status and content of the answer of the one of ``replicas`` that knows this response, all asked at once; None where
    none does."""
    path = f"/v1/responses/{quote(response_id, safe='')}" + ("/cancel" if cancel else "")
    method = "POST" if cancel else "GET"

    async def ask(replica: Upstream) -> tuple[int, bytes] | None:
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            url = replica.url + path
            async with upstreams.session.request(method, url, timeout=TIMEOUT, allow_redirects=False) as answer:
                if answer.status == 200 or (400 <= answer.status < 500 and answer.status != 404):
                    return answer.status, await answer.read()
        return None

    tasks = [asyncio.create_task(ask(replica)) for replica in replicas]
    found: tuple[int, bytes] | None = None
    try:
        for answered in asyncio.as_completed(tasks):
            said = await answered
            if said is not None and said[0] == 200:
                return said
            found = found or said
    finally:
        for task in tasks:
            task.cancel()
    return found


class BackgroundResponses:
    """Those that have been answered before they were done. charge: called with the stream and its output tokens, once."""

    def __init__(self, upstreams: Upstreams, charge: Callable[[Stream, int], None]) -> None:
        self._upstreams, self._charge = upstreams, charge
        self._pending: OrderedDict[str, Stream] = OrderedDict()

    def add(self, response_id: str, stream: Stream) -> None:
        self._pending[response_id] = stream
        if len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)

    async def run(self) -> None:
        """Ask for them until they have ended."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            ids = list(self._pending)[:MAX_ASKED]
            await asyncio.gather(*(self._look(response_id) for response_id in ids))

    async def _look(self, response_id: str) -> None:
        stream = self._pending[response_id]
        home = [r for r in self._upstreams.replicas.values() if r.name == stream.replica]
        said = await ask_for(self._upstreams, home, response_id)
        with suppress(GarbageError):
            response = object_of(said[1]) if said is not None and said[0] == 200 else {}
            if response and response.get("status") not in UNFINISHED:
                self._charge(stream, output_tokens_of(response.get("usage")))
                self._pending.pop(response_id, None)
        if response_id in self._pending:
            self._pending.move_to_end(response_id)
            if time.monotonic() - stream.arrival_s > MAX_AGE_S:
                del self._pending[response_id]
