"""A gateway in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from andes_api.server import Server
from andes_api.settings import GatewaySettings

__all__ = ["running_gateway"]


START_S = 60.0
"""Seconds to start, and to end; it takes one."""


@contextmanager
def running_gateway(*upstreams: str, **settings: Any) -> Iterator[str]:
    """Until the block ends; its address."""
    given = {"upstreams": upstreams, "port": 0, "drain_s": 1, "access_log": False, **settings}
    server = Server(GatewaySettings(**given))
    ready, startup = threading.Event(), server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        if not ready.wait(START_S):
            raise TimeoutError(f"the gateway has not started in {START_S:g} s")
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.should_exit = True
        thread.join(START_S)
