"""An engine that says what it is told, at a speed of its own: for what depends on when a model writes, not on what.

It speaks ``/v1/chat/completions`` as SGLang streams it. A script is a list of rounds, each a list of deltas; which round is
asked for follows from the calls that the conversation holds already.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import web

__all__ = ["Delta", "ScriptedEngine", "call", "say"]

Delta = dict[str, Any]


def say(text: str) -> list[Delta]:
    """A word a token."""
    return [{"content": word} for word in text.replace(" ", " \0").split("\0")]


def call(name: str, arguments: str, *, number: int = 0, characters: int = 4) -> list[Delta]:
    """A call whose arguments come ``characters`` a token."""
    pieces = [arguments[at : at + characters] for at in range(0, len(arguments), characters)]
    begin = {
        "index": number,
        "id": f"call_{name}_{number}",
        "type": "function",
        "function": {"name": name, "arguments": ""},
    }
    rest = [{"index": number, "function": {"arguments": piece}} for piece in pieces]
    return [{"tool_calls": [piece]} for piece in (begin, *rest)]


class ScriptedEngine:
    """token_s: seconds between tokens. bodies: what it was asked for. holds: before token k of round r it waits for the event
    of ``(r, k)``; deaths: there it breaks the connection, once each.
    says_role: first of all, in an event of its own. cancelled: a client has left."""

    def __init__(self, rounds: Sequence[Sequence[Delta]], token_s: float = 0.0) -> None:
        self.rounds, self.token_s = rounds, token_s
        self.bodies: list[dict[str, Any]] = []
        self.holds: dict[tuple[int, int], threading.Event] = {}
        self.deaths: set[tuple[int, int]] = set()
        self.says_role = True
        self.cancelled = threading.Event()
        self.url = ""
        self._ids = itertools.count()

    @contextmanager
    def running(self) -> Iterator[ScriptedEngine]:
        """Until the block ends, at ``url``."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=1.0, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        number = sum(bool(message.get("tool_calls")) for message in body["messages"])
        prompt_tokens = len(json.dumps(body["messages"])) // 4
        identity = {"id": f"chatcmpl-{id(self)}-{next(self._ids)}", "object": "chat.completion.chunk", "created": 1}
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)

        async def chunk(choices: list[Any], tokens: int) -> None:
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": prompt_tokens + tokens,
            }
            said = {**identity, "model": "scripted", "choices": choices, "usage": usage}
            await answer.write(b"data: " + json.dumps(said).encode() + b"\n\n")

        deltas, most = self.rounds[min(number, len(self.rounds) - 1)], body.get("max_tokens") or 1 << 30
        began_s = time.monotonic()
        try:
            if self.says_role:
                await chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], 0)
            for k, delta in enumerate(deltas[:most]):
                await asyncio.sleep(max(0.0, began_s + (k + 1) * self.token_s - time.monotonic()))
                if not await self._lives(number, k):
                    assert request.transport is not None
                    request.transport.abort()
                    return answer
                await chunk([{"index": 0, "delta": delta, "finish_reason": None}], k + 1)
            calls = any("tool_calls" in delta for delta in deltas)
            finish = "length" if len(deltas) > most else "tool_calls" if calls else "stop"
            await chunk([{"index": 0, "delta": {}, "finish_reason": finish}], min(len(deltas), most))
            await chunk([], min(len(deltas), most))
            await answer.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise
        return answer

    async def _lives(self, number: int, k: int) -> bool:
        """Whether this engine goes on to token ``k``, once nothing holds it."""
        hold = self.holds.get((number, k))
        while hold is not None and not hold.is_set():
            await asyncio.sleep(0.005)
        if (number, k) not in self.deaths:
            return True
        self.deaths.discard((number, k))
        return False
