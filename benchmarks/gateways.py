"""Servers in threads of their own: any of uvicorn's, and the gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn

from andes_api.server import Server
from andes_api.settings import GatewaySettings

__all__ = ["running", "running_gateway"]

AnyServer = TypeVar("AnyServer", bound=uvicorn.Server)
START_S = 60.0
"""Seconds to start, and to end; it takes one."""


@contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """``server`` until the block ends."""
    ready, startup = threading.Event(), server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]

    def serve() -> None:
        with asyncio.Runner(
            loop_factory=server.config.get_loop_factory()
        ) as runner:  # uvloop, as from the command line
            runner.run(server.serve())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        if not ready.wait(START_S):
            raise TimeoutError(f"the server has not started in {START_S:g} s")
        yield server
    finally:
        server.should_exit = True
        thread.join(START_S)
        if thread.is_alive():
            raise TimeoutError(f"the server has not ended in {START_S:g} s")


@contextmanager
def running_gateway(*upstreams: str, **settings: Any) -> Iterator[str]:
    """Until the block ends; its address."""
    given = {"upstreams": upstreams, "port": 0, "drain_s": 1, "access_log": False, **settings}
    with running(Server(GatewaySettings(**given))) as server:
        yield f"http://127.0.0.1:{server.port}"
