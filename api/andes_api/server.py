"""The HTTP server of one process: uvicorn, and a drain at the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from types import FrameType

import uvicorn

from andes_api.app import create_app
from andes_api.board import Worker
from andes_api.gateway import Gateway
from andes_api.http_protocol import make_protocol
from andes_api.logs import log_to_streams
from andes_api.settings import GatewaySettings

__all__ = ["Server", "run", "serve"]

POLL_INTERVAL_S = 0.1
"""Seconds between looks at what is still open; uvicorn's own."""
MAX_CLOSE_S = 5
"""Seconds for streams that are cut to end, and then for what is no stream, such as a scrape."""
_log = logging.getLogger("andes")


class Server(uvicorn.Server):
    """Serves one gateway. On SIGTERM what is new gets a 503, and open streams have ``drain_s`` seconds to end; then the port
    closes. ``cut``: how many had not ended. worker: which process of the gateway this is."""

    def __init__(self, settings: GatewaySettings, worker: Worker | None = None) -> None:
        self.app = create_app(settings, worker)
        self.gateway: Gateway = self.app.state.gateway
        self.cut = 0
        self._drain_s = settings.drain_s
        super().__init__(
            uvicorn.Config(
                self.app, host=settings.host, port=settings.port, http=make_protocol(self.gateway), loop="uvloop", ws="none",
                lifespan="on", access_log=False, log_config=None, log_level="warning", server_header=False,
                date_header=False, backlog=4096, timeout_keep_alive=75, timeout_graceful_shutdown=MAX_CLOSE_S,
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not sockets:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            _log.info("gateway listens on http://%s:%d", host, self.port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Unlike uvicorn's, forgets the signal, so that the process does not end by it after it has drained."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.gateway.draining = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.gateway.draining = True
        await self._until_idle(self._drain_s)
        self.cut = len(self.gateway.open)
        if self.cut:
            _log.error("%d streams had not ended after drain_s, %g s, and are cut", self.cut, self._drain_s)
            self.gateway.cut_streams()
            await self._until_idle(MAX_CLOSE_S)
        await super().shutdown(sockets)

    async def _until_idle(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        while (
            (self.gateway.open or self.gateway.board.open.others) and not self.force_exit and time.monotonic() < until_s
        ):
            await asyncio.sleep(POLL_INTERVAL_S)

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])


def serve(settings: GatewaySettings) -> int:
    """Run in this process until told to stop; its exit status."""
    log_to_streams()
    return run(Server(settings))


def run(server: Server, sockets: list[socket.socket] | None = None) -> int:
    """Serve, as all that this process does, until told to stop; its exit status: 0 where every stream has ended, 1 where some
    were cut, 3 without a start."""
    gc.collect()
    gc.freeze()  # what is there stays: a collector that goes through it again and again stops all streams for 0.1 s each time
    server.run(sockets)
    return 3 if not server.started else 1 if server.cut else 0
