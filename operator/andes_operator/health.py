"""Probes and metrics over HTTP: ``/livez``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from aiohttp import web

from andes_operator.controller import Controller
from andes_operator.telemetry import OperatorMetrics

__all__ = ["ListenError", "serve_health"]

EXPOSITION = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


class ListenError(RuntimeError):
    """The address of the probes cannot be listened on."""


@contextlib.asynccontextmanager
async def serve_health(
    host: str, port: int, controller: Controller, metrics: OperatorMetrics
) -> AsyncIterator[web.AppRunner]:
    """Serves as long as the context lasts. Raises :class:`ListenError`."""

    async def livez(_: web.Request) -> web.Response:
        """500 where only a restart helps."""
        stuck = controller.stuck()
        return web.Response(status=500 if stuck else 200, text=stuck or "ok")

    async def readyz(_: web.Request) -> web.Response:
        """200 once all resources were listed, and while waiting for the lease, which is all that a second operator can do."""
        if not controller.leading:
            return web.Response(text="waiting for the lease")
        return web.Response(status=200 if controller.synced else 503, text="ok" if controller.synced else "starting")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers=EXPOSITION)

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ListenError(f"--host {host}, --port {port}: {os.strerror(error.errno or 0)}") from None
        yield runner
    finally:
        await runner.cleanup()
