"""Tools that start while the model still writes their arguments: each call is a process that is fed as they grow.

A tool is a program that reads lines of JSON and writes one::

    {"start": ID}          the call has begun
    {"grow": TEXT}         a unit of the arguments is complete: a statement, or {"name": value} for a closed value
    {"finish": ARGUMENTS}  they are all there; the program writes {"result": TEXT} and ends
    {"abort": WHY}         they never will be; the program ends

:func:`andes_client.tool.serve` makes such a program of a Python class. Tools are code execution: every call is a process
of its own, in a session of its own, with limits on time, memory and output; what a tool may do beyond is the business of the
user and the container that it runs under.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from openai.types.chat import ChatCompletionChunk

from andes_client.toolstream import (
    Call,
    Failed,
    Finished,
    Grew,
    Started,
    ToolEvent,
    ToolStream,
    python_statements,
    sql_statements,
)

__all__ = ["Tool", "ToolResult", "ToolRunner"]

STATEMENTS: dict[str, Callable[[str, int], int]] = {"python": python_statements, "sql": sql_statements}


@dataclass(frozen=True)
class Tool:
    """command: the program and its arguments. statements: ``python`` or ``sql``, units of the argument ``argument``; without,
    every closed value is a unit. timeout_s: from the end of the arguments to the result; memory_bytes, output_bytes: limits.

    Raises ``ValueError`` naming field and value.
    """

    command: Sequence[str]
    argument: str | None = None
    statements: Literal["python", "sql"] | None = None
    timeout_s: float = 60.0
    memory_bytes: int | None = None
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if isinstance(self.command, str) or not self.command:
            raise ValueError(f"command must be a list, the program first, got {self.command!r}")
        if (self.argument is None) != (self.statements is None):
            raise ValueError(f"argument and statements go together, got {self.argument!r} and {self.statements!r}")
        if self.statements is not None and self.statements not in STATEMENTS:
            raise ValueError(f"statements must be one of {', '.join(STATEMENTS)}, got {self.statements!r}")
        for name in ("timeout_s", "output_bytes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")


@dataclass(frozen=True)
class ToolResult:
    """Of one call: ``text``, or the ``error`` that kept the tool from giving one. id: for the message with role ``tool``."""

    id: str
    name: str
    text: str = ""
    error: str | None = None

    def message(self) -> dict[str, str]:
        """For the conversation's next request."""
        content = self.text if self.error is None else f"error: {self.error}"
        return {"role": "tool", "tool_call_id": self.id, "content": content}


class ToolRunner:
    """Of one answer. ``feed`` every chunk, then ``await results()``::

        runner = ToolRunner({"python": Tool([sys.executable, "tool.py"], argument="code", statements="python")})
        async for chunk in stream:
            runner.feed(chunk)
        for result in await runner.results():
            messages.append(result.message())

    lazy: start a tool when its arguments are complete, as is usual elsewhere.
    """

    def __init__(self, tools: Mapping[str, Tool], *, lazy: bool = False) -> None:
        self._tools = dict(tools)
        self._lazy = lazy
        self._stream = ToolStream()
        self._running: dict[Call, _Running] = {}

    def feed(self, chunk: ChatCompletionChunk) -> None:
        """Start and feed tools by what ``chunk`` brings. In a running event loop."""
        for event in self._stream.feed(chunk):
            self._on(event)

    async def results(self) -> list[ToolResult]:
        """Of all calls of the answer, in their order; calls that are not complete are aborted."""
        for event in self._stream.end():
            self._on(event)
        return [await running.result for _, running in sorted(self._running.items())]

    async def abort(self, why: str) -> None:
        """End all tools: their results are not wanted any more."""
        for running in self._running.values():
            running.put({"abort": why})
        await self.results()

    def _on(self, event: ToolEvent) -> None:
        if isinstance(event, Started):
            self._running[event.call] = _Running(event, self._tools.get(event.name), lazy=self._lazy)
            return
        running = self._running.get(event.call)
        if running is None:
            return
        if isinstance(event, Grew):
            if not self._lazy:
                running.grow(event.arguments)
        elif isinstance(event, Finished):
            running.finish(event.arguments)
        elif isinstance(event, Failed):
            running.put({"abort": event.why})


@dataclass
class _Running:
    """A call and its process. result: a task."""

    started: Started
    tool: Tool | None
    lazy: bool
    result: asyncio.Task[ToolResult] = field(init=False)
    _lines: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    _done: int = 0
    _closed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.put({"start": self.started.id})
        self.result = asyncio.ensure_future(self._serve())

    def put(self, line: dict[str, Any]) -> None:
        self._lines.put_nowait(line)

    def grow(self, arguments: Mapping[str, Any]) -> None:
        if self.tool is None:
            return
        if self.tool.statements is None:
            for name in list(arguments)[:-1]:  # the last may go on
                if name not in self._closed:
                    self._closed.add(name)
                    self.put({"grow": json.dumps({name: arguments[name]})})
            return
        source = arguments.get(self.tool.argument or "")
        while isinstance(source, str) and (end := STATEMENTS[self.tool.statements](source, self._done)) > self._done:
            self.put({"grow": source[self._done : end]})
            self._done = end

    def finish(self, arguments: Mapping[str, Any]) -> None:
        """With the units that are only now known to be some."""
        if self.tool is not None and self.tool.statements is not None:
            self.grow(arguments)
            source = arguments.get(self.tool.argument or "")
            if isinstance(source, str) and source[self._done :].strip():
                self.put({"grow": source[self._done :]})
        self.put({"finish": arguments})

    async def _serve(self) -> ToolResult:
        if self.tool is None:
            return self._failed(f"there is no tool {self.started.name!r}")
        held = [await self._lines.get()]
        while self.lazy and not ("finish" in held[-1] or "abort" in held[-1]):
            held.append(await self._lines.get())
        try:
            process = await asyncio.create_subprocess_exec(
                *_limited(self.tool), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return self._failed(f"it cannot be started: {error.strerror}")
        try:
            return await self._talk(process, held)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await _drain(process)

    async def _talk(self, process: asyncio.subprocess.Process, lines: list[dict[str, Any]]) -> ToolResult:
        assert process.stdin is not None and process.stdout is not None and self.tool is not None  # noqa: PT018, S101
        answer = asyncio.ensure_future(_read_line(process.stdout, self.tool.output_bytes))
        try:
            while True:
                for line in lines:
                    with contextlib.suppress(ConnectionError):  # it has ended: what it wrote, or its silence, says why
                        process.stdin.write(json.dumps(line).encode() + b"\n")
                        await process.stdin.drain()
                    if "abort" in line:
                        return self._failed(str(line["abort"]))
                    if "finish" in line:
                        return self._read(await asyncio.wait_for(answer, self.tool.timeout_s))
                lines = [await self._lines.get()]
        except asyncio.TimeoutError:  # noqa: UP041 - another class in Python 3.10
            return self._failed(f"it gave no result within timeout_s, {self.tool.timeout_s:g} s")
        except ValueError:
            return self._failed(f"its result is longer than output_bytes, {self.tool.output_bytes}")
        finally:
            answer.cancel()

    def _read(self, line: bytes) -> ToolResult:
        if not line:
            return self._failed("it ended without a result")
        try:
            said = json.loads(line)
        except ValueError:
            return self._failed(f"it wrote {line[:80]!r}, which is no line of JSON")
        text = said.get("result") if isinstance(said, dict) else None
        if not isinstance(text, str):
            return self._failed(f"it wrote {line[:80]!r}, which holds no result")
        return ToolResult(self.started.id, self.started.name, text)

    def _failed(self, why: str) -> ToolResult:
        return ToolResult(self.started.id, self.started.name, error=why)


async def _read_line(stdout: asyncio.StreamReader, most_bytes: int) -> bytes:
    """The first line, or what there is of one. Raises ``ValueError`` for more than ``most_bytes``."""
    text = b""
    while b"\n" not in text and (more := await stdout.read(1 << 16)):
        text += more
        if len(text) > most_bytes:
            raise ValueError
    return text.split(b"\n")[0]


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process that was killed, and of its pipes."""
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101
    process.stdin.close()
    while await process.stdout.read(1 << 16):
        pass
    await process.wait()


def _limited(tool: Tool) -> list[str]:
    """The command, under its limit of memory."""
    if tool.memory_bytes is None:
        return list(tool.command)
    return [sys.executable, "-m", "andes_client.limited", str(tool.memory_bytes), *tool.command]
