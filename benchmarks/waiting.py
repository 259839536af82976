"""Waiting for what happens elsewhere: in another thread, another process, an engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

LIMIT_S = 120.0
"""Seconds; what is waited for takes a moment on most machines."""
LOOK_EVERY_S = 0.02
Found = TypeVar("Found")


def until(found: Callable[[], Found], what: str = "", limit_s: float = LIMIT_S) -> Found:
    """The first true value of ``found``, asked for again and again. Raises ``AssertionError`` that names ``what``."""
    until_s = time.monotonic() + limit_s
    while not (value := found()):
        if time.monotonic() >= until_s:
            raise AssertionError(f"no {what or getattr(found, '__name__', 'sign of it')} in {limit_s:g} s")
        time.sleep(LOOK_EVERY_S)
    return value
