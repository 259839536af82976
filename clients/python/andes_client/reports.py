"""Tells a gateway, while an answer comes, how much of it has been shown: the network has taken more where a proxy or a
program reads ahead. A report that does not arrive is missed; one that is not wanted ends them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import openai

__all__ = ["AsyncReports", "Reports"]

TIMEOUT_S = 5.0
_Shown = Callable[[], dict[str, Any]]
"""The body of a report as of now."""


class Reports:
    """In a thread of their own: the reader's may be in a pause. The first goes out with the first text, further ones every
    ``every_s`` seconds."""

    def __init__(self, client: openai.OpenAI, stream_id: str, every_s: float, shown: _Shown) -> None:
        self._client, self._path = client, f"/streams/{stream_id}/reader"
        self._every_s, self._shown = every_s, shown
        self._begun, self._over = False, threading.Event()

    def begin(self) -> None:
        """Text is shown."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._run, daemon=True, name="andes reader reports").start()

    def end(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._client.post(self._path, cast_to=type(None), body=self._shown(), options={"timeout": TIMEOUT_S})
            except openai.APIStatusError:
                return
            except (openai.APIError, RuntimeError):  # the latter: the client has been closed
                pass
            self._over.wait(self._every_s)


class AsyncReports:
    """As :class:`Reports`, in a task."""

    def __init__(self, client: openai.AsyncOpenAI, stream_id: str, every_s: float, shown: _Shown) -> None:
        self._client, self._path = client, f"/streams/{stream_id}/reader"
        self._every_s, self._shown = every_s, shown
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._client.post(
                    self._path, cast_to=type(None), body=self._shown(), options={"timeout": TIMEOUT_S}
                )
            except openai.APIStatusError:
                return
            except (openai.APIError, RuntimeError):
                pass
            await asyncio.sleep(self._every_s)
