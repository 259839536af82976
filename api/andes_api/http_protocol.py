"""HTTP/1 on one connection: uvicorn's protocol, with bounds on time and bytes of a head and on what is buffered for a slow
reader, answers to HTTP/1.0 clients, and errors as OpenAI clients read them."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from andes_api.connection import CONNECTION
from andes_api.cors import cors_headers
from andes_api.errors import ApiError
from andes_api.gateway import Gateway
from andes_api.unread import UnreadRequest
from andes_api.uvicorn_internals import check_uvicorn

__all__ = ["make_protocol"]


class Protocol(HttpToolsProtocol):
    """One connection to ``gateway``, which :func:`make_protocol` gives."""

    gateway: ClassVar[Gateway]
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = _deaf = _has_begun = False
    _fault: ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # What the kernel does not take makes the relay wait, so that a slow reader holds back its own engine stream.
        transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.gateway.settings.send_buffer_bytes)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            self._decline(data[offered.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP/1 request")
        if self._head_timer is None and not self._answers:  # half a head, or the rest of a body that is not read
            self._expect_head()

    def _decline(self, rest: bytes) -> None:
        """An offer to change the protocol, as curl and Java send for HTTP/2, is not taken up: the request is read once more
        as if it were not there. ``rest``: what came after its head."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("this is no proxy")
            return
        start = b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())
        lines = [start, *(b"%b: %b" % h for h in self.headers if h[0] != b"upgrade")]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    @property
    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # The head

    def _expect_head(self) -> None:
        if not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.gateway.settings.head_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head and not self._deaf:
            self._in_head = False
            self._refuse(ApiError(408, "the head of the request did not arrive in time", reason="head"))
        else:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope[CONNECTION] = self
        self._header_bytes, self._in_head = 0, True
        self._has_begun = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.gateway.settings.max_header_bytes:
            message = f"the head of the request is longer than {self.gateway.settings.max_header_bytes} bytes"
            self._fault = ApiError(431, message, reason="head", retry=False)
            raise self._fault  # ends the parser, which has uvicorn call send_400_response

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self._in_head = False
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        if self.gateway.draining:
            self.cycle.keep_alive = False
        if not self.cycle.keep_alive or self.cycle.waiting_for_100_continue:  # HTTP/1.0 among them
            self._adapt(self.cycle)

    def _adapt(self, cycle: RequestResponseCycle) -> None:
        """HTTP/1.0 knows no chunks: there the end of the connection ends the answer. A client that was not told to send its
        body may send it or not, so that nothing else can follow. One whose body has not all come is not cut off."""
        send, plain = cycle.send, cycle.scope["http_version"] == "1.0"
        if plain:
            cycle.chunked_encoding = False

        async def adapted(message: Any) -> None:
            if cycle.waiting_for_100_continue:
                cycle.keep_alive = False
            if plain:
                cycle.expected_content_length = len(message.get("body", b""))
            last = message["type"] == "http.response.body" and not message.get("more_body")
            asked_for_all = cycle.waiting_for_100_continue or not cycle.more_body
            self._deaf = last and not asked_for_all and not cycle.keep_alive
            if self._deaf:
                cycle.keep_alive = True  # uvicorn would close
            await send(message)
            if self._deaf:
                self._hang_up()

        cycle.send = adapted  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # Errors

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._fault or ApiError(400, msg, reason="http", retry=False))

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; an answer that is on its way to this client is finished instead."""
        if self._answers:
            self.cycle.keep_alive = False
        elif not self.transport.is_closing():
            request = UnreadRequest(uuid.uuid4().hex, status=error.status, reason=error.reason)
            self.gateway.note_unread(request)
            origin = dict(self.headers).get(b"origin", b"").decode("latin-1") if self._has_begun else None
            cors = cors_headers(origin, self.gateway.settings.cors_origins)
            self.transport.write(_answer(error, {"x-request-id": request.request_id, **cors}))
            self._hang_up()

    def _hang_up(self) -> None:
        """Say no more, and hear the client out for as long as a head may take: one that still sends when the connection is
        closed would lose its answer."""
        self._deaf = True
        if not self.transport.is_closing():
            with suppress(OSError):  # it has gone
                self.transport.write_eof()
            self._expect_head()


def make_protocol(gateway: Gateway) -> type[Protocol]:
    """The class that uvicorn makes one of per connection. Raises ``UsageError`` for an uvicorn that is not as expected."""
    check_uvicorn()
    return type("GatewayProtocol", (Protocol,), {"gateway": gateway})


def _answer(error: ApiError, more: Mapping[str, str]) -> bytes:
    """An error for a request that no application sees."""
    content = orjson.dumps(error.body)
    headers = {
        **error.headers, **more, "content-type": "application/json",
        "content-length": str(len(content)), "connection": "close",
    }  # fmt: skip
    head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + content
