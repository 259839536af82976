"""How late this process' event loop is: while it did not look at its sockets, that nothing came from an engine says nothing
of the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Lateness"]

TICK_S = 0.25
"""Seconds between looks at the clock."""
MIN_LISTENED = 0.5
"""Share of the time since a question in which this process must have listened before silence is an answer."""


class Lateness:
    """Between ``start`` and ``stop``, in one event loop. total_s: seconds in which the loop did not turn, as far as looks at
    the clock came late. late: called with the seconds of every such stretch."""

    def __init__(self, late: Callable[[float], None] = lambda _late_s: None) -> None:
        self.total_s = 0.0
        self._late = late
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due_s = time.monotonic() + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        late_s = time.monotonic() - self._due_s
        if late_s > TICK_S:
            self.total_s += late_s
            self._late(late_s)
        self.start()

    def asked(self) -> Callable[[], bool]:
        """A question is sent now. Whether, when what is returned is called, this process has listened for most of the time
        since: then silence is the other side's."""
        asked_s, total_s = time.monotonic(), self.total_s

        def listened() -> bool:
            return self.total_s - total_s <= (1.0 - MIN_LISTENED) * (time.monotonic() - asked_s)

        return listened
