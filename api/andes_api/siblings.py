"""The other workers of this gateway, over Unix sockets in a folder of this user's alone: what each tells the others."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from andes_api.board import Worker

__all__ = ["Siblings"]

ANSWER_TIMEOUT_S = 5.0
"""Seconds for another worker to answer; one that has just died, or is being replaced, is left out."""


class Siblings:
    """Questions by name: every worker answers from what it has itself. What travels is pickled: both ends are of one version,
    and the folder of their sockets is this user's alone."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._answers: dict[str, Callable[..., Any]] = {}
        self._server: asyncio.Server | None = None
        self._told: set[asyncio.Task[list[Any]]] = set()

    def answers(self, name: str, answer: Callable[..., Any]) -> None:
        """This worker answers ``name`` by ``answer``."""
        self._answers[name] = answer

    async def start(self) -> None:
        if self._worker.folder is not None:
            path = self._socket(self._worker.number)
            path.unlink(missing_ok=True)  # of one that died
            self._server = await asyncio.start_unix_server(self._answer, path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def all(self, name: str, *args: Any) -> list[Any]:
        """The answers of all workers, this one's first."""
        return [self._answers[name](*args), *await self.others(name, *args)]

    async def others(self, name: str, *args: Any) -> list[Any]:
        """The answers of the other workers, of those that are there."""
        asked = (self._ask(number, name, args) for number in self._worker.others)
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in found if not isinstance(answer, BaseException)]

    def tell(self, name: str, *args: Any) -> None:
        """Let the others know, without waiting for it."""
        if self._worker.others:
            task = asyncio.create_task(self.others(name, *args))
            self._told.add(task)
            task.add_done_callback(self._told.discard)

    def _socket(self, number: int) -> Path:
        assert self._worker.folder is not None  # noqa: S101
        return self._worker.folder / f"worker-{number}.sock"

    async def _ask(self, number: int, name: str, args: tuple[Any, ...]) -> Any:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(self._socket(number))
            try:
                writer.write(pickle.dumps((name, args)))
                writer.write_eof()
                return pickle.loads(await reader.read())  # noqa: S301 - from a worker of this gateway
            finally:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # it has gone
            name, args = pickle.loads(await reader.read())  # noqa: S301 - from a worker of this gateway
            writer.write(pickle.dumps(self._answers[name](*args)))
            await writer.drain()
        writer.close()
