"""An event loop whose time jumps to what is due next: waits of minutes take no time, and no machine is too slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any
from unittest.mock import patch


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while there is work, and jumps to the next timer when there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        due_s = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if due_s and not self._ready:  # type: ignore[attr-defined]
            self.now_s = max(self.now_s, min(due_s))
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What ``work`` gives, in simulated time, which ``time.time`` and ``time.monotonic`` tell too."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        loop = runner.get_loop()
        with patch.object(time, "time", loop.time), patch.object(time, "monotonic", loop.time):
            return runner.run(work)
