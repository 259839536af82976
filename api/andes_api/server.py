"""The HTTP server: uvicorn, with bounds on headers and on what is buffered for a slow reader, and a drain at the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from andes_api.app import create_app
from andes_api.settings import GatewaySettings

__all__ = ["Server", "serve"]

_log = logging.getLogger("andes")
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def _protocol(settings: GatewaySettings) -> type[HttpToolsProtocol]:
    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # What the kernel does not take makes the relay wait, so that a slow reader holds back its own engine stream.
            transport.set_write_buffer_limits(high=0)
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._header_bytes = 0

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._count(len(url))

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._count(len(name) + len(value) + 4)

        def _count(self, size: int) -> None:
            self._header_bytes += size
            if self._header_bytes > settings.max_header_bytes and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    return Protocol


class Server(uvicorn.Server):
    """Serves one gateway. On SIGTERM nothing new is taken and open streams have ``drain_s`` seconds to end."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.app = create_app(settings)
        super().__init__(
            uvicorn.Config(
                self.app, host=settings.host, port=settings.port, http=_protocol(settings), loop="uvloop", ws="none",
                lifespan="on", access_log=False, log_config=None, log_level="warning", server_header=False,
                date_header=False, backlog=4096, timeout_keep_alive=75, timeout_graceful_shutdown=int(settings.drain_s),
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            _log.info("gateway listens on http://%s:%d", host, self.port)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.app.state.gateway.draining = True
        super().handle_exit(sig, frame)

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])


def serve(settings: GatewaySettings) -> int:
    """Run until told to stop; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    access = logging.getLogger("andes.access")
    access.propagate = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    server = Server(settings)
    server.run()
    return 0 if server.started else 3
