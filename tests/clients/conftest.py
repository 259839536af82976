"""A simulated engine and a gateway before it, over real HTTP."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.bench.engine import Engine
from benchmarks.gateways import running_gateway


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
            return stack.enter_context(running_gateway(*upstreams, **settings))

        yield start
