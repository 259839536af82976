"""Malformed requests over real sockets, against an engine whose answers are odd too: no 500, nothing leaked.

    python benchmarks/malformed.py [--requests 100000] [--seed 1] [--connections 32]

Ends with status 1, naming each request by its number, where an answer is a 500 or no error that an OpenAI client reads, where
one does not come, or where a stream, a task or a connection is left in the end. The same seed gives the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from andes_api.server import Server
from andes_api.settings import load
from benchmarks.odd_requests import odd_events, odd_request

__all__ = ["Outcome", "main", "run"]

ANSWER_TIMEOUT_S = 60.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HURRY_S = 1.0
"""Seconds that the gateway waits for the rest of a head or a body here: many requests announce more than they send."""
LEAVES_EARLY = 0.05
"""Share of clients that read nothing of their answer."""


@dataclass
class Outcome:
    """statuses: how many answers had each; 0: the connection was closed without one, as after nonsense in place of a request.
    faults: what should not be."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Logged(logging.Handler):
    """Errors that the server logged, tracebacks among them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection to an engine that is healthy and whose answers are odd."""
    rng = random.Random()
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            body = json.loads(await reader.readexactly(size)) if size else {}
            rng.seed(head.split(b" ", 2)[1] + repr(body).encode())
            writer.write(_answer(rng, head, body))
            await writer.drain()
            if rng.random() < 0.02:
                break
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


def _answer(rng: random.Random, head: bytes, body: dict[str, object]) -> bytes:
    if head.startswith(b"GET /v1/models"):
        return _whole(200, b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x"}]}')
    if head.startswith(b"GET /health"):
        return _whole(200, b"{}")
    if head.startswith(b"GET "):
        return _whole(404, b"{}")
    if rng.random() < 0.03:
        return rng.choice((b"nonsense\r\n\r\n", _whole(302, b""), _whole(503, b"oops"), _whole(429, b'{"error":{}}')))
    if body.get("stream") is True:
        content = odd_events(rng, 3)
        return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (
            len(content),
            content,
        )
    if rng.random() < 0.1:
        return _whole(
            rng.choice((200, 400, 422)), rng.choice((b"", b"null", b"[]", b'{"choices":{}}', b"\xff", b'{"usage":1}'))
        )
    return _whole(
        200, b'{"id":"x","choices":[{"index":0,"text":"w"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    )


def _whole(status: int, content: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


@asynccontextmanager
async def gateway() -> AsyncIterator[Server]:
    """A gateway before two such engines, in this loop."""
    engines = [await asyncio.start_server(engine, "127.0.0.1", 0, limit=32 << 20) for _ in range(2)]
    urls = [f"http://127.0.0.1:{e.sockets[0].getsockname()[1]}" for e in engines]
    settings = load(
        upstreams=tuple(urls), port=0, access_log=False, head_timeout_s=HURRY_S, body_timeout_s=HURRY_S, hold_s=HURRY_S,
        breaker_cooldown_s=HURRY_S, max_body_bytes=1 << 20, drain_s=5.0, keepalive_s=0.1,
    )  # fmt: skip
    server = Server(settings)
    running = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        await running
        for e in engines:
            e.close()


async def ask(port: int, request: bytes, *, reads: bool) -> bytes:
    """All that comes back for ``request`` until the connection or the answer ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        if not reads:
            await writer.drain()
            return b""
        answer = b""
        while part := await reader.read(1 << 16):
            answer = (answer + part).removeprefix(CONTINUE)
            if _complete(answer, request):
                break
        return answer
    except ConnectionError:
        return b""
    finally:
        writer.close()


def _complete(answer: bytes, request: bytes) -> bool:
    """Whether an answer on a connection that stays open has ended."""
    head, end, content = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    if not end or b"connection: close" in lines:
        return False
    if request.startswith(b"HEAD") or answer[9:12] in (b"204", b"304"):
        return True
    lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    return len(content) >= lengths[0] if lengths else content.endswith(b"0\r\n\r\n")


def fault_of(answer: bytes, request: bytes) -> str:
    """What is wrong with an answer; empty for nothing."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head[9:12] or 0)
    if status == 500 or status not in {0, *range(200, 300), *range(400, 500), 502, 503}:
        return f"status {status}: {content[:200]!r}"
    if status < 400 or b"x-andes-reason" not in head or request.startswith(b"HEAD"):
        return ""
    try:
        said = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = None
    return "" if isinstance(said, str) and said else f"status {status} without an error: {content[:200]!r}"


async def run(requests: int, *, seed: int = 1, connections: int = 32) -> Outcome:
    """Send that many, ``connections`` at a time; what came of it."""
    outcome, logged, numbers = Outcome(), Logged(), iter(range(requests))
    for name in ("uvicorn.error", "andes", "asyncio"):
        logging.getLogger(name).addHandler(logged)
    async with gateway() as server:
        port = server.port

        async def client() -> None:
            for number in numbers:
                request = odd_request(seed, number)
                reads = random.Random(number).random() >= LEAVES_EARLY
                try:
                    answer = await asyncio.wait_for(ask(port, request, reads=reads), ANSWER_TIMEOUT_S)
                except TimeoutError:
                    outcome.faults.append(f"request {number}: no answer")
                    continue
                outcome.statuses[int(answer[9:12] or 0) if reads else -1] += 1
                if fault := fault_of(answer, request):
                    outcome.faults.append(f"request {number}: {fault}")

        await asyncio.gather(*(client() for _ in range(connections)))
        outcome.faults += await _left(server)
    outcome.faults += logged.lines
    for name in ("uvicorn.error", "andes", "asyncio"):
        logging.getLogger(name).removeHandler(logged)
    return outcome


async def _left(server: Server) -> list[str]:
    """What is still held once every client has gone."""
    until_s = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < until_s:
        left = {
            "streams": len(server.gateway.open), "connections": len(server.server_state.connections),
            "requests": len(server.server_state.tasks), "held": server.gateway.held,
            "placed": sum(len(r.streams) for r in server.gateway.upstreams.replicas.values()),
        }  # fmt: skip
        if not any(left.values()):
            return []
        await asyncio.sleep(0.05)
    return [f"{count} {what} left" for what, count in left.items() if count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=32, metavar="N", help="at a time")
    args = parser.parse_args()
    began_s = time.monotonic()
    outcome = asyncio.run(run(args.requests, seed=args.seed, connections=args.connections))
    print(f"{args.requests} requests of seed {args.seed} in {time.monotonic() - began_s:.0f} s; answers by status:")
    print(", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items())))
    for fault in outcome.faults[:50]:
        print(fault)
    raise SystemExit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
