"""One call of a tool: its process, what it is fed and what comes of it. Every failure becomes the call's result."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from andes_client.toolstream import Started
from andes_client.units import SPLITTERS

__all__ = ["Tool", "ToolCall", "ToolResult"]

_log = logging.getLogger(__name__)

ABORT_S = 0.2
"""Seconds that a tool has to end by itself when its call is aborted."""
DRAIN_S = 2.0
"""Seconds to wait for the end of a killed process and its pipes: a child that has left its group may hold them open."""


@dataclass(frozen=True)
class Tool:
    """command: the program and its arguments. statements: ``python`` or ``sql``, units of the argument ``argument``; without,
    every closed value is a unit. timeout_s: from the end of the arguments to the result; memory_bytes, output_bytes: limits.
    user: whom it runs as (only root may name another). environment: all that it sees; None: this process's own. lazy: it
    starts when its arguments are complete. pure: a call changes nothing and gives equal results for equal arguments, so that
    it may run before it is asked for (:mod:`andes_client.ahead`).

    Raises ``ValueError`` naming field and value.
    """

    command: Sequence[str]
    argument: str | None = None
    statements: Literal["python", "sql"] | None = None
    timeout_s: float = 60.0
    memory_bytes: int | None = None
    output_bytes: int = 1 << 20
    user: str | None = None
    environment: Mapping[str, str] | None = None
    pure: bool = False
    lazy: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.command, str) or not self.command:
            raise ValueError(f"command must be a list, the program first, got {self.command!r}")
        if (self.argument is None) != (self.statements is None):
            raise ValueError(f"argument and statements go together, got {self.argument!r} and {self.statements!r}")
        if self.statements is not None and self.statements not in SPLITTERS:
            raise ValueError(f"statements must be one of {', '.join(SPLITTERS)}, got {self.statements!r}")
        if self.user == "":
            raise ValueError("user must be a name, or None: whom this process runs as; got ''")
        for name in ("timeout_s", "output_bytes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")


@dataclass(frozen=True)
class ToolResult:
    """Of one call: ``text``, or the ``error`` that kept the tool from giving one. id: for the message with role ``tool``.
    arguments: what it was called with; empty where they were never complete. waited_s: from the end of the arguments to the
    result, seconds. ahead: it ran before it was asked for."""

    id: str
    name: str
    text: str = ""
    error: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False)
    waited_s: float = field(default=0.0, compare=False)
    ahead: bool = field(default=False, compare=False)

    def message(self) -> dict[str, str]:
        """For the conversation's next request."""
        content = self.text if self.error is None else f"error: {self.error}"
        return {"role": "tool", "tool_call_id": self.id, "content": content}


class _Units(Protocol):
    """What a tool has been given of its arguments."""

    def grown(self, arguments: Mapping[str, Any], *, whole: bool) -> list[str]:
        """The units that are whole by now; the last value may go on, unless it is ``whole``."""

    def rest(self, arguments: Mapping[str, Any]) -> list[str]:
        """The units that remain at the end."""

    def again(self) -> None:
        """The arguments are written once more, from their start."""

    def agree(self, arguments: Mapping[str, Any], *, complete: bool) -> bool:
        """Whether what was given is a part of ``arguments``, or may become one."""


class _Values:
    def __init__(self) -> None:
        self._given: dict[str, Any] = {}

    def grown(self, arguments: Mapping[str, Any], *, whole: bool) -> list[str]:
        closed = list(arguments) if whole else list(arguments)[:-1]
        new = {name: arguments[name] for name in closed if name not in self._given}
        self._given |= new
        return [json.dumps({name: value}) for name, value in new.items()]

    def rest(self, arguments: Mapping[str, Any]) -> list[str]:  # noqa: ARG002 - they come whole with the end
        return []

    def again(self) -> None:
        pass

    def agree(self, arguments: Mapping[str, Any], *, complete: bool) -> bool:
        if complete:
            return all(name in arguments and arguments[name] == value for name, value in self._given.items())
        closed = list(arguments)[:-1]
        return all(self._given.get(name, arguments[name]) == arguments[name] for name in closed)


class _Statements:
    def __init__(self, language: str, argument: str) -> None:
        self._language, self._argument = language, argument
        self._splitter = SPLITTERS[language]()
        self._given = ""

    def _source(self, arguments: Mapping[str, Any]) -> str:
        source = arguments.get(self._argument)
        return source if isinstance(source, str) else ""

    def grown(self, arguments: Mapping[str, Any], *, whole: bool) -> list[str]:  # noqa: ARG002 - the rest comes at the end
        source = self._source(arguments)
        if len(source) <= len(self._given):  # written once more
            return []
        units = self._splitter.units(source)
        self._given = source[: self._splitter.done]
        return units

    def rest(self, arguments: Mapping[str, Any]) -> list[str]:
        units, source = self.grown(arguments, whole=True), self._source(arguments)
        last = source[len(self._given) :]
        self._given = source
        return [*units, last] if last.strip() else units

    def again(self) -> None:
        self._splitter = SPLITTERS[self._language](len(self._given))

    def agree(self, arguments: Mapping[str, Any], *, complete: bool) -> bool:
        source = self._source(arguments)
        return source.startswith(self._given) or (not complete and self._given.startswith(source))


class ToolCall:
    """A call and its process, from its start on. ``result``: a task.

    lazy: the process starts when the arguments are complete. expected: the same call, run ahead, if it is: the process
    starts when it is certain that it is not, and the result is that one's if it is. slots: of processes at a time.
    """

    def __init__(
        self,
        started: Started,
        tool: Tool | None,
        *,
        lazy: bool = False,
        expected: ToolCall | None = None,
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        self.started = started
        self.arguments: Mapping[str, Any] | None = None
        self._tool = tool
        self._lazy, self._expected = lazy or (tool is not None and tool.lazy), expected
        self._slots = slots or contextlib.nullcontext()
        self._lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[str | None] = loop.create_future()  # None: complete; else why it never will be
        self._is_another = asyncio.Event()
        self._ended_s = 0.0
        self._units: _Units = _Values()
        if tool is not None and tool.statements is not None:
            self._units = _Statements(tool.statements, tool.argument or "")
        self._lines.put_nowait({"start": started.id})
        self.result: asyncio.Task[ToolResult] = loop.create_task(self._serve())

    def grow(self, arguments: Mapping[str, Any], *, whole: bool) -> None:
        """These arguments are there by now; the last value may go on, unless it is ``whole``."""
        if self._over.done():
            return
        if self._expected is not None and not _may_become(arguments, self._expected.arguments or {}):
            self._is_another.set()
        if not self._lazy:
            self._put_units(self._units.grown(arguments, whole=whole))

    def finish(self, arguments: Mapping[str, Any]) -> None:
        """With the units that are only now known to be some."""
        if self._over.done():
            return
        self._put_units(self._units.rest(arguments))
        self._lines.put_nowait({"finish": arguments})
        self.arguments, self._ended_s = arguments, time.monotonic()
        self._over.set_result(None)
        self._is_another.set()

    def abort(self, why: str) -> None:
        if not self._over.done():
            self._lines.put_nowait({"abort": why})
            self._ended_s = time.monotonic()
            self._over.set_result(why)
            self._is_another.set()

    def again(self) -> None:
        """Its arguments are written once more: what the process has had is not given to it again."""
        self._units.again()

    def agrees(self, arguments: Mapping[str, Any], *, complete: bool) -> bool:
        """Whether this is still the call with these arguments."""
        if self.arguments is not None:
            return self.arguments == arguments if complete else _may_become(arguments, self.arguments)
        return self._units.agree(arguments, complete=complete)

    async def close(self) -> None:
        """End it now: its result is not wanted any more."""
        self.result.cancel()
        await asyncio.gather(self.result, return_exceptions=True)

    def _put_units(self, units: list[str]) -> None:
        for unit in units:
            self._lines.put_nowait({"grow": unit})

    async def _serve(self) -> ToolResult:
        try:
            return await self._give()
        except Exception as error:
            _log.exception("tool %r", self.started.name)
            return self._failed(f"it cannot be run: {error!r}")

    async def _give(self) -> ToolResult:
        if self._tool is None:
            return self._failed(f"there is no tool {self.started.name!r}")
        if self._expected is not None:
            await self._is_another.wait()
            if self.arguments is not None and self.arguments == self._expected.arguments:
                given = await asyncio.shield(self._expected.result)
                if given.error is None:
                    return self._result(text=given.text, ahead=True)
        if (self._lazy or self._over.done()) and (why := await self._over) is not None:
            return self._failed(why)
        async with self._slots:
            return await self._run(self._tool)

    async def _run(self, tool: Tool) -> ToolResult:
        try:
            process = await asyncio.create_subprocess_exec(
                *_limited(tool.command, user=tool.user, memory_bytes=tool.memory_bytes), start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                env=tool.environment,
            )  # fmt: skip
        except OSError as error:
            return self._failed(f"it cannot be started: {error.strerror}")
        try:
            return await self._talk(process, tool)
        finally:
            why = await _ended(process, tool)
            if why is not None:
                _log.warning("process %d of tool %r may still run: %r", process.pid, self.started.name, why)

    async def _talk(self, process: asyncio.subprocess.Process, tool: Tool) -> ToolResult:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101
        answer = asyncio.ensure_future(_read_line(process.stdout, tool.output_bytes))
        feeding = asyncio.ensure_future(self._feed(process.stdin))
        try:
            if (why := await self._over) is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(process.wait(), ABORT_S)
                return self._failed(why)
            return self._read(await asyncio.wait_for(answer, tool.timeout_s))
        except asyncio.TimeoutError:  # noqa: UP041 - another class in Python 3.10
            return self._failed(f"it gave no result within timeout_s, {tool.timeout_s:g} s")
        except ValueError:
            return self._failed(f"its result is longer than output_bytes, {tool.output_bytes}")
        finally:
            answer.cancel()
            feeding.cancel()
            await asyncio.gather(answer, feeding, return_exceptions=True)

    async def _feed(self, stdin: asyncio.StreamWriter) -> None:
        """For ever, or until the process has ended: what it wrote, or its silence, says why."""
        with contextlib.suppress(OSError):
            while True:
                stdin.write(json.dumps(await self._lines.get()).encode() + b"\n")
                await stdin.drain()

    def _read(self, line: bytes) -> ToolResult:
        if not line:
            return self._failed("it ended without a result")
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return self._failed(f"it wrote {line[:80]!r}, which is no line of JSON")
        if isinstance(said, dict) and isinstance(said.get("error"), str):
            return self._failed(said["error"])
        text = said.get("result") if isinstance(said, dict) else None
        if not isinstance(text, str):
            return self._failed(f"it wrote {line[:80]!r}, which holds no result")
        return self._result(text=text.encode(errors="replace").decode())  # half a character is none

    def _failed(self, why: str) -> ToolResult:
        return self._result(error=why)

    def _result(self, **said: Any) -> ToolResult:
        waited_s = time.monotonic() - self._ended_s if self._ended_s else 0.0
        return ToolResult(self.started.id, self.started.name, arguments=self.arguments or {}, waited_s=waited_s, **said)


def _may_become(arguments: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether ``arguments``, the last of which may go on, can still become ``whole``."""
    if not arguments:
        return True
    *closed, last = arguments
    if any(name not in whole or whole[name] != arguments[name] for name in closed):
        return False
    value, then = arguments[last], whole.get(last)
    return str(then).startswith(value) if isinstance(value, str) and isinstance(then, str) else last in whole


async def _read_line(stdout: asyncio.StreamReader, most_bytes: int) -> bytes:
    """The first line, or what there is of one. Raises ``ValueError`` for more than ``most_bytes``."""
    text = b""
    while b"\n" not in text and (more := await stdout.read(1 << 16)):
        text += more
        if len(text) > most_bytes:
            raise ValueError
    return text.split(b"\n")[0]


async def _ended(process: asyncio.subprocess.Process, tool: Tool) -> BaseException | None:
    """None once it has ended; else what keeps it from that, which must not cost what the tool has said."""
    ending = asyncio.ensure_future(_end(process, tool))
    ended, _ = await asyncio.wait({ending}, timeout=DRAIN_S)
    if not ended:
        ending.cancel()
        return TimeoutError()
    return asyncio.CancelledError() if ending.cancelled() else ending.exception()


async def _end(process: asyncio.subprocess.Process, tool: Tool) -> None:
    """Kill the process and its group, and wait for their end. Where this process may become the tool's user but not kill
    what that user runs (no CAP_KILL), one of that user does it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        kill = ("sh", "-c", f"kill -s KILL -- -{process.pid}")
        killer = await asyncio.create_subprocess_exec(
            *_limited(kill, user=tool.user),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await killer.wait()
    await _drain(process)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process that was killed, and of its pipes."""
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101
    process.stdin.close()
    while await process.stdout.read(1 << 16):
        pass
    await process.wait()


def _limited(command: Sequence[str], *, user: str | None, memory_bytes: int | None = None) -> list[str]:
    """``command`` by ``user``, under its limit of memory."""
    if user is None and memory_bytes is None:
        return list(command)
    return [sys.executable, "-m", "andes_client.limited", str(memory_bytes or ""), user or "", *command]
