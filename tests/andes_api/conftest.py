"""A gateway under uvicorn, and upstreams that misbehave on request.

``Faulty`` is a fault-injection fixture and nothing else: a real ASGI server that streams numbered words and stalls, dies or
talks nonsense when a test says so. What engines really do is tested on real engines.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
import shutil
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import grpc
import pytest
import uvicorn
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from andes_api.server import Server
from andes_api.settings import GatewaySettings
from andes_sglang.bench.engine import Engine
from benchmarks.gateways import running


def wait_until_probed(server: Server) -> None:
    """Until the gateway knows of each engine whether it is there: turns begin with the first one then. An engine that answers no
    probe is waited for no longer than 10 s."""
    until_s = time.monotonic() + 10
    while (
        any(r.healthy is None for r in list(server.gateway.upstreams.replicas.values())) and time.monotonic() < until_s
    ):
        time.sleep(0.01)


def hang_up(send: Any) -> None:
    """Close uvicorn's connection as a dying process does."""
    send.__self__.transport.abort()


class Faulty:
    """An upstream. ``fault`` and ``after`` (events) say how it misbehaves, once ``strike`` is set where there is one; stalled
    streams wait for ``release``."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.fault: str | None = None
        self.after = 0
        self.words = 1.0
        self.gap_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.forms: list[tuple[bytes, str]] = []
        self.healthy = True
        self.hold_kept: threading.Event | None = None  # nothing is said of a response before it is set
        self.background = "completed"  # what has become of a response in the background
        self.asked_models = 0
        self.models: tuple[int, bytes] = (200, b'{"object":"list","data":[{"id":"m","object":"model"}]}')
        self.strike: threading.Event | None = None
        self.answer_after: threading.Event | None = None
        self.held_word = ""  # what a prompt has that waits for it; empty: all do
        self.release = threading.Event()
        self.stalled = threading.Event()
        self.cancelled = threading.Event()
        self.sent_bytes = 0
        self.server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                host=host,
                port=port,
                log_config=None,
                lifespan="off",
                interface="asgi3",
                ws="none",
                backlog=4096,
                timeout_graceful_shutdown=1,
                proxy_headers=False,
            )
        )

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.server.servers[0].sockets[0].getsockname())

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/health":
            await self._reply(send, 200 if self.healthy else 503, b"")
        elif path == "/v1/models":
            self.asked_models += 1
            await self._reply(send, *self.models)
        elif path in ("/v1/completions", "/v1/chat/completions"):
            body = b""
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            self.bodies.append(json.loads(body))
            self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
            await self._infer(self.bodies[-1], "chat" in path, receive, send)
        elif path in ("/v1/responses", "/v1/messages"):
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            self.bodies.append(json.loads(body))
            if self.bodies[-1].get("background"):
                queued = {"id": f"resp_{id(self)}", "object": "response", "status": "queued", "usage": None}
                await self._reply(send, 200, json.dumps(queued).encode())
                return
            await self._typed(path == "/v1/messages", send, streams=self.bodies[-1].get("stream") is True)
        elif path.startswith("/v1/responses/"):
            while self.hold_kept is not None and not self.hold_kept.is_set():
                await asyncio.sleep(0.005)
            known = path.split("/")[3] == f"resp_{id(self)}"
            found = {"id": f"resp_{id(self)}", "status": self.background, "usage": {"output_tokens": 40}}
            await self._reply(send, 200 if known else 404, json.dumps(found).encode())
        elif path == "/v1/audio/transcriptions":
            await self._transcribe({k.decode(): v.decode() for k, v in scope["headers"]}, receive, send)
        else:
            await self._reply(send, 404, b"{}")

    async def _reply(self, send: Any, status: int, content: bytes, kind: bytes = b"application/json") -> None:
        headers = [(b"content-length", str(len(content)).encode()), (b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _typed(self, messages: bool, send: Any, *, streams: bool) -> None:
        """Twelve pieces of an answer in Anthropic's or OpenAI's newer events."""
        if self.fault and self.fault.isdigit():
            await self._reply(send, int(self.fault), b'{"error":{"message":"said so","type":"X"}}')
            return
        if self.fault == "hang up":
            hang_up(send)
            return
        if self.fault == "no stream":
            await self._reply(send, 200, b"<html>hello</html>", b"text/html")
            return
        if not streams:
            await self._reply(send, 200, json.dumps(self._typed_whole(messages)).encode())
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

        async def put(kind: str, **fields: Any) -> None:
            event = f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})

        usage = {"input_tokens": 5, "output_tokens": 0}
        whole = {"id": f"resp_{id(self)}", "model": "m", "output": [], "object": "response", "created_at": 1, "tools": [],
                 "tool_choice": "auto", "parallel_tool_calls": True, "status": "in_progress"}  # fmt: skip
        part = {"type": "output_text", "text": "", "annotations": []}
        item = {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        if messages:
            message = {
                "id": "id-1",
                "type": "message",
                "role": "assistant",
                "content": [],
                "model": "m",
                "usage": usage,
            }
            await put("message_start", message=message)
            await put("content_block_start", index=0, content_block={"type": "text", "text": ""})
        else:
            await put("response.created", response=whole)
            await put("response.output_item.added", output_index=0, item=item)
            await put("response.content_part.added", item_id="i", output_index=0, content_index=0, part=part)
        for k in range(12):
            if self.fault == "die" and k == self.after:
                hang_up(send)
                return
            if messages:
                await put("content_block_delta", index=0, delta={"type": "text_delta", "text": f"w{k} "})
            else:
                where = {"item_id": "i", "output_index": 0, "content_index": 0}
                await put("response.output_text.delta", **where, delta=f"w{k} ", logprobs=[])
        usage["output_tokens"] = 12
        if not messages:
            counts = {**usage, "total_tokens": 17, "input_tokens_details": {"cached_tokens": 0}}
            counts["output_tokens_details"] = {"reasoning_tokens": 0}
            await put("response.completed", response={**whole, "status": "completed", "usage": counts})
        else:
            await put("content_block_stop", index=0)
            await put("message_delta", delta={"stop_reason": "max_tokens"}, usage=usage)
            if self.fault == "die at the end":
                hang_up(send)
                return
            await put("message_stop")
        await send({"type": "http.response.body", "body": b""})

    def _typed_whole(self, messages: bool) -> dict[str, Any]:
        if messages:
            text = [{"type": "text", "text": "w0 "}]
            usage = {"input_tokens": 5, "output_tokens": 1}
            return {"id": "id-1", "type": "message", "role": "assistant", "model": "m", "content": text, "usage": usage}
        counts = {
            "input_tokens": 5,
            "output_tokens": 1,
            "total_tokens": 6,
            "input_tokens_details": {"cached_tokens": 0},
        }
        text = [{"type": "output_text", "text": "w0 ", "annotations": []}]
        item = {"id": "i", "type": "message", "role": "assistant", "status": "completed", "content": text}
        return {
            "id": f"resp_{id(self)}", "object": "response", "created_at": 1, "model": "m", "output": [item], "tools": [],
            "tool_choice": "auto", "parallel_tool_calls": True, "status": "completed", "usage": counts,
        }  # fmt: skip

    async def _transcribe(self, headers: dict[str, str], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.forms.append((body, headers["content-type"]))
        if self.fault == "no stream":
            await self._reply(send, 200, b"<html>hello</html>", b"text/html")
            return
        if b'name="stream"\r\n\r\ntrue' not in body:
            await self._reply(send, 200, b'{"text":"w0 x"}')
            return
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._events({"messages": [{}]}, True, send, gone)

    async def _infer(self, body: dict[str, Any], chat: bool, receive: Any, send: Any) -> None:
        held = self.answer_after is not None and self.held_word in json.dumps(body)
        while held and self.answer_after is not None and not self.answer_after.is_set():
            await asyncio.sleep(0.005)
        if self.fault and self.fault.isdigit():
            error = {"object": "error", "message": "said so", "type": "X", "code": int(self.fault)}
            await self._reply(send, int(self.fault), json.dumps({"error": error}).encode())
            return
        if self.fault == "hang up":
            hang_up(send)
            return
        if self.fault in ("empty", "end"):
            text = json.dumps({"id": "e", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
            events = f"data: {text}\n\n" if self.fault == "empty" else ""
            await self._reply(send, 200, f"{events}data: [DONE]\n\n".encode(), b"text/event-stream")
            return
        if self.fault == "no stream":
            await self._reply(send, 200, b"<html>hello</html>", b"text/html")
            return
        tokens, messages = body.get("max_tokens"), body.get("messages")
        sound = isinstance(messages, list) and messages and isinstance(messages[-1], dict) if chat else "prompt" in body
        if not sound or not (tokens is None or (type(tokens) is int and 0 < tokens <= 4096)):
            await self._reply(send, 400, b'{"error":{"message":"no sound request","type":"BadRequest","code":400}}')
            return
        if body.get("stream") is not True:
            said = {"message": {"role": "assistant", "content": "w0 x"}} if chat else {"text": "w0 x"}
            usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
            choices = [{"index": 0, **said, "finish_reason": "length"}]
            await self._reply(
                send, 200, json.dumps({"id": "id-1", "model": "m", "choices": choices, "usage": usage}).encode()
            )
            return
        gone = asyncio.ensure_future(self._gone(receive))
        try:
            await self._events(body, chat, send, gone)
        finally:
            gone.cancel()

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancelled.set()

    async def _events(self, body: dict[str, Any], chat: bool, send: Any, gone: asyncio.Future[None]) -> None:
        prompt = body["messages"][-1].get("content") if chat else body["prompt"]
        said = re.findall(r"w(\d+) ", prompt) if isinstance(prompt, str) else []
        first = int(said[-1]) + 1 if said else 0
        count = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        identity = {
            "id": f"id-{id(self)}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1,
        }

        async def put(data: bytes) -> None:
            self.sent_bytes += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def chunk(choices: list[Any], usage: Any = None) -> None:
            data = {**identity, "model": "m", "choices": choices, "usage": usage}
            await put(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")

        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        if chat:
            await chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        for k in range(count):
            if self.fault and k == self.after:
                await self._misbehave(send, put, gone)
            if gone.done():
                return
            text = f"w{first + k} " + "x" * int(self.words)
            choice = {"index": 0, "delta": {"content": text}} if chat else {"index": 0, "text": text}
            finish = "length" if k == count - 1 else None
            usage = {"prompt_tokens": 5, "completion_tokens": k + 1, "total_tokens": 6 + k}
            asked = body.get("stream_options", {}).get("continuous_usage_stats")
            await chunk([{**choice, "finish_reason": finish}], usage if asked else None)
            if self.gap_s:
                await asyncio.sleep(self.gap_s)
        if body.get("stream_options", {}).get("include_usage"):
            await chunk([], {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count})
        await put(b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    async def _misbehave(self, send: Any, put: Any, gone: asyncio.Future[None]) -> None:
        while self.strike is not None and not self.strike.is_set():
            await asyncio.wait({gone}, timeout=0.005)
        if self.fault == "die":
            hang_up(send)
        if self.fault == "half":
            await put(b'data: {"id":"x","choices":[{"te')
            hang_up(send)
        if self.fault == "garbage":
            await put(b"\x00\xff<html>not an event\n\n")
        if self.fault == "error":
            await put(b'data: {"error":{"message":"gone","type":"InternalServerError","code":500}}\n\n')
        while self.fault in ("comment", "space", "role") and not gone.done():
            said = {"space": {"text": " "}, "role": {"text": "", "delta": {"role": "assistant"}}}.get(self.fault)
            event = {"id": f"id-{id(self)}", "choices": [{"index": 0, "finish_reason": None, **(said or {})}]}
            await put(b": up\n\n" if said is None else b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.wait({gone}, timeout=0.05)
        if self.fault == "stall":
            self.stalled.set()
            while not self.release.is_set() and not gone.done():
                await asyncio.wait({gone}, timeout=0.02)


Start = Callable[..., Server]


@pytest.fixture
def faulty() -> Iterator[Callable[..., Faulty]]:
    """Makes upstreams that misbehave."""
    with ExitStack() as stack:

        def make(host: str = "127.0.0.1", port: int = 0) -> Faulty:
            upstream = Faulty(host, port)
            stack.enter_context(running(upstream.server))
            return upstream

        yield make


@pytest.fixture(scope="module")
def lasting_faulty() -> Iterator[Callable[..., Faulty]]:
    """Makes upstreams that misbehave, for all tests of a module."""
    with ExitStack() as stack:

        def make() -> Faulty:
            upstream = Faulty()
            stack.enter_context(running(upstream.server))
            return upstream

        yield make


@pytest.fixture
def gateway() -> Iterator[Start]:
    """Starts gateways: ``gateway(url, ..., setting=value)``; the running server, whose ``url`` is its address."""
    with ExitStack() as stack:

        def start(*upstreams: str, **settings: Any) -> Server:
            server = Server(
                GatewaySettings(**{"upstreams": upstreams, "port": 0, "drain_s": 1, "access_log": False, **settings})
            )
            stack.enter_context(running(server))
            wait_until_probed(server)
            server.url = f"http://127.0.0.1:{server.port}"  # type: ignore[attr-defined]
            return server

        yield start


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Starts simulated engines over real HTTP: ``simulated("--flag", ..., policy="andes")``."""
    with ExitStack() as stack:
        count = itertools.count()

        def start(*flags: str, policy: str = "andes") -> Engine:
            log = tmp_path / f"engine{next(count)}.log"
            return stack.enter_context(Engine("simulated", policy, ("--engine", "sim", *flags), log=log))

        yield start


class NameServer(socketserver.ThreadingUDPServer):
    """A DNS server whose every name has ``addresses`` (IPv4), or which answers ``rcode``. ``asked``: one permit a question."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Answer)
        self.address = "{}:{}".format(*self.server_address)
        self.addresses: list[str] = []
        self.rcode = dns.rcode.NOERROR
        self.asked = threading.Semaphore(0)

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            content, sock = self.request
            asked = dns.message.from_wire(content)
            answer, question = dns.message.make_response(asked), asked.question[0]
            answer.set_rcode(self.server.rcode)
            if question.rdtype == dns.rdatatype.A and self.server.addresses:
                answer.answer.append(dns.rrset.from_text(question.name, 0, "IN", "A", *self.server.addresses))
            sock.sendto(answer.to_wire(), self.client_address)
            self.server.asked.release()


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    with NameServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Backend:
    """Receives OTLP over HTTP and keeps it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: list[Any] = []
        self.services: set[str] = set()
        self.raw = b""
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    content = gzip.decompress(content)
                backend.take(self.path, content)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def over_grpc(self) -> Iterator[str]:
        """The address of a gRPC server for the same, until the generator is closed."""
        server = grpc.server(ThreadPoolExecutor(2))

        def export(path: str, reply: Any) -> grpc.RpcMethodHandler:
            def take(content: bytes, _: grpc.ServicerContext) -> bytes:
                self.take(path, content)
                return bytes(reply().SerializeToString())

            return grpc.unary_unary_rpc_method_handler(take)  # of bytes: nothing is parsed twice

        for signal, path, reply in (
            ("trace.v1.TraceService", "/v1/traces", ExportTraceServiceResponse),
            ("metrics.v1.MetricsService", "/v1/metrics", ExportMetricsServiceResponse),
        ):
            service = f"opentelemetry.proto.collector.{signal}"
            server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(service, {"Export": export(path, reply)})]
            )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"grpc://127.0.0.1:{port}"
        server.stop(None).wait()

    def take(self, path: str, content: bytes) -> None:
        self.raw += content
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for of in ExportMetricsServiceRequest.FromString(content).resource_metrics:
                self.metrics += [metric for scope in of.scope_metrics for metric in scope.metrics]

    @staticmethod
    def said(thing: Any) -> dict[str, Any]:
        """The attributes of a span, a data point or a resource."""
        values = {}
        for attribute in thing.attributes:
            kind = attribute.value.WhichOneof("value")
            value = getattr(attribute.value, kind)
            values[attribute.key] = [v.string_value for v in value.values] if kind == "array_value" else value
        return values


@pytest.fixture(scope="session")
def make_backend() -> type[Backend]:
    """Makes what receives OTLP over HTTP."""
    return Backend


JAVASCRIPT_CLIENTS = {"openai": "7.59.0", "ai": "6.0.326", "@ai-sdk/openai-compatible": "2.0.92"}


@pytest.fixture(scope="session")
def javascript_clients() -> Path:
    """A folder whose node_modules holds OpenAI's and Vercel's clients; tests are skipped where these cannot be had."""
    folder = Path(__file__).parents[2] / ".setup" / "node"
    wanted = [f"{name}@{version}" for name, version in JAVASCRIPT_CLIENTS.items()]
    made = folder / "made-from"
    if made.exists() and made.read_text().split() == wanted:
        return folder
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("NO NPM: install node and npm to test JavaScript clients")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        pytest.skip(f"NO JAVASCRIPT CLIENTS: npm could not install them: {done.stderr[-300:]}")
    made.write_text("\n".join(wanted))
    return folder
