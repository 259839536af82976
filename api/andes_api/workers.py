"""A gateway of several processes on one port: a supervisor that serves nothing, and workers that each are a whole gateway.

The kernel spreads connections over the workers (``SO_REUSEPORT``). What must be one is shared: limits and what engines hold
on a board (:mod:`andes_api.board`), counts in files, the rest by asking (:mod:`andes_api.siblings`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from andes_api.board import COUNTS_FOLDER, READY, Board, Worker
from andes_api.logs import log_to_streams
from andes_api.settings import GatewaySettings
from andes_api.shared_port import bind

__all__ = ["supervise"]

STABLE_S = 30.0
"""Seconds after which the death of a worker is no sign that the next one dies as well."""
MAX_RESTART_WAIT_S = 30.0
_log = logging.getLogger("andes")


def supervise(settings: GatewaySettings) -> int:
    """Run ``settings.workers`` workers until told to stop, and replace those that die. The exit status: 0 where every
    stream has ended, 1 where some were cut or a worker died while it drained, 3 without a start."""
    log_to_streams()
    with bind(settings.host, settings.port) as port, tempfile.TemporaryDirectory(prefix="andes-gateway-") as folder:
        settings = settings.model_copy(update={"port": port.getsockname()[1]})
        return asyncio.run(_Supervisor(settings, Path(folder)).run())


class _Supervisor:
    """Between start and stop of all workers."""

    def __init__(self, settings: GatewaySettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.stopping = False
        self._stopped = asyncio.Event()
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._up = 0
        self._board = Board(
            Worker(folder, settings.workers), tenants=len(settings.tenants), models=len(settings.models)
        )

    async def run(self) -> int:
        """Until all have ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        return max(await asyncio.gather(*(self._keep(number) for number in range(self.settings.workers))))

    def _stop(self, number: signal.Signals) -> None:
        self.stopping = True
        self._stopped.set()
        for process in self._running.values():
            process.send_signal(number)

    async def _keep(self, number: int) -> int:
        """One worker, and others in its place; the exit status of the last one."""
        deaths, status, replaces = 0, 0, False
        while not self.stopping:
            began_s = time.monotonic()
            status = await self._one(Worker(self.folder, self.settings.workers, number, replaces))
            self._board.clear(number)
            if self.stopping:
                break
            if status == 3 and not replaces:  # it has said why
                self._stop(signal.SIGTERM)
                break
            deaths = 1 if time.monotonic() - began_s > STABLE_S else deaths + 1
            wait_s = 0.0 if deaths == 1 else min(MAX_RESTART_WAIT_S, 2.0 ** (deaths - 2))
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            _log.error("worker %d has ended %s; another takes its place in %g s", number, how, wait_s)
            replaces = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait_s)
        return 1 if status < 0 else status

    async def _one(self, worker: Worker) -> int:
        """From its start to its end; its exit status, below 0 that of a signal."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, COUNTS_FOLDER: str(self.folder)}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "andes_api.worker", stdin=theirs.fileno(), env=environment,
                start_new_session=True,  # Ctrl-C is for us: we pass it on
            )  # fmt: skip
        except OSError as error:  # no memory, or too many processes
            ours.close()
            _log.error("worker %d cannot be started: %s", worker.number, error)
            return 1
        finally:
            theirs.close()
        self._running[worker.number] = process
        if self.stopping:
            process.send_signal(signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            writer.write(pickle.dumps((self.settings, worker)) + b"\n")
            with suppress(ConnectionError):  # it has died before it has read what to do
                if await reader.read(1) == READY:
                    self._count_up(worker)
            return await process.wait()
        finally:
            del self._running[worker.number]
            writer.close()

    def _count_up(self, worker: Worker) -> None:
        self._up += 1
        if worker.replaces:
            _log.info("worker %d is there again", worker.number)
        if self._up == self.settings.workers:
            host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
            _log.info("gateway listens on http://%s:%d with %d workers", host, self.settings.port, self._up)
