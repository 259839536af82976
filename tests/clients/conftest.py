"""A simulated engine and a gateway before it, over real HTTP."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from andes_api.server import Server
from andes_api.settings import GatewaySettings
from andes_sglang.bench.engine import Engine


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Starts simulated engines: ``simulated("--flag", ...)``."""
    with ExitStack() as stack:
        count = itertools.count()

        def start(*flags: str) -> Engine:
            log = tmp_path / f"engine{next(count)}.log"
            return stack.enter_context(Engine("simulated", "andes", ("--engine", "sim", *flags), log=log))

        yield start


@pytest.fixture
def gateway() -> Iterator[Callable[..., str]]:
    """Starts gateways: ``gateway(url, ..., setting=value)`` returns the address."""
    with ExitStack() as stack:

        def start(*upstreams: str, **settings: Any) -> str:
            server = Server(
                GatewaySettings(**{"upstreams": upstreams, "port": 0, "drain_s": 1, "access_log": False, **settings})
            )
            ready, startup = threading.Event(), server.startup

            async def started(sockets: Any = None) -> None:
                await startup(sockets)
                ready.set()

            server.startup = started  # type: ignore[method-assign]
            thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
            thread.start()
            stack.callback(thread.join, 60)
            stack.callback(setattr, server, "should_exit", True)
            assert ready.wait(60)
            return f"http://127.0.0.1:{server.port}"

        yield start
