"""What the gateway does in the background, supervised: a task that fails is logged, counted and started again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from prometheus_client import Counter

__all__ = ["Background"]

RESTART_S = 1.0
"""Seconds between a failure and the next start; the tasks look at things about once a second."""
MEMORY_S = 10.0
"""Seconds after its last failure for which a task counts as failing."""
_log = logging.getLogger("andes")


class Background:
    """Tasks between ``start`` and ``stop``; each is a function that returns only when it fails. failures: counts by task."""

    def __init__(self, failures: Counter) -> None:
        self._counter = failures
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: dict[str, tuple[float, str]] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Keep ``run`` running until the task that is returned is cancelled. name: of its kind, for log and metrics."""
        task = asyncio.create_task(self._supervise(name, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def step(self, name: str, work: Callable[[], None]) -> None:
        """Do ``work``; its failure is that of ``name`` and stops nothing else."""
        try:
            work()
        except (OSError, ValueError) as error:  # files and settings: the message says it
            self._note(name, error, trace=False)
        except Exception as error:
            self._note(name, error)

    def failing(self) -> dict[str, str]:
        """What went wrong lately, by task."""
        now_s = time.monotonic()
        return {name: error for name, (at_s, error) in self._failed.items() if now_s - at_s < MEMORY_S}

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await run()
            except Exception as error:
                self._note(name, error)
            await asyncio.sleep(RESTART_S)

    def _note(self, name: str, error: Exception, *, trace: bool = True) -> None:
        self._counter.labels(name).inc()
        text = f"{type(error).__name__}: {error}"[:200]
        if self.failing().get(name) != text:  # once, not every second
            _log.error("%s failed and is tried again: %s", name, text, exc_info=error if trace else None)
        self._failed[name] = (time.monotonic(), text)
