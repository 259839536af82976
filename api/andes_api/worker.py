"""One process of several that serve a port together; the supervisor (:mod:`andes_api.workers`) starts it."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys
from typing import BinaryIO

from andes_api.board import READY, Worker
from andes_api.logs import log_to_streams
from andes_api.server import Server, run
from andes_api.settings import GatewaySettings
from andes_api.shared_port import bind

__all__: list[str] = []

_log = logging.getLogger("andes")


class _WorkerServer(Server):
    """On the port of all workers; stops when the supervisor has gone."""

    def __init__(self, settings: GatewaySettings, worker: Worker, supervisor: socket.socket) -> None:
        super().__init__(settings, worker)
        self._supervisor = supervisor

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._supervisor.setblocking(False)
            self._supervisor.send(READY)
            asyncio.get_running_loop().add_reader(self._supervisor, self._supervisor_is_gone)

    def _supervisor_is_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._supervisor)
        _log.error("the supervisor has gone: this worker ends")
        self.handle_exit(signal.SIGTERM, None)


def _work(channel: BinaryIO) -> int:
    """Be the worker that the supervisor at the other end of ``channel`` asks for."""
    settings, worker = pickle.load(channel)  # noqa: S301 - from the process that started this one
    log_to_streams()
    server = _WorkerServer(settings, worker, socket.socket(fileno=os.dup(0)))
    return run(server, [bind(settings.host, settings.port)])


if __name__ == "__main__":
    sys.exit(_work(sys.stdin.buffer))
