"""Tools that start while the model still writes their arguments: each call is a process that is fed as they grow.

A tool is a program that reads lines of JSON and writes one::

    {"start": ID}          the call has begun
    {"grow": TEXT}         a unit of the arguments is complete: a statement, or {"name": value} for a closed value
    {"finish": ARGUMENTS}  they are all there; the program writes {"result": TEXT}, or {"error": WHY}, and ends
    {"abort": WHY}         they never will be; the program ends

:func:`andes_client.tool.serve` makes such a program of a Python class. Tools are code execution: every call is a process
of its own, in a session of its own, with limits on time, memory and output; what a tool may do beyond is the business of the
user and the container that it runs under.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from andes_client.ahead import Ahead
from andes_client.process import Tool, ToolCall, ToolResult
from andes_client.toolstream import Call, Failed, Finished, Grew, Started, ToolEvent, ToolStream

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

__all__ = ["Tool", "ToolResult", "ToolRunner"]


class ToolRunner:
    """Of one answer. ``feed`` every chunk, then ``await results()``::

        runner = ToolRunner({"python": Tool([sys.executable, "tool.py"], argument="code", statements="python")})
        async for chunk in stream:
            runner.feed(chunk)
        for result in await runner.results():
            messages.append(result.message())

    lazy: start a tool when its arguments are complete, as is usual elsewhere. ahead: of the whole conversation: runs calls of
    pure tools before they are asked for. most_calls: further ones fail. slots: processes at a time, shared with others.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        lazy: bool = False,
        ahead: Ahead | None = None,
        most_calls: int = 128,
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        self._tools = dict(tools)
        self._lazy, self._ahead = lazy, ahead
        self._most_calls, self._slots = most_calls, slots
        self._stream = ToolStream()
        self._calls: dict[Call, ToolCall] = {}
        self._written: set[Call] = set()  # by the answer as it is written now
        self._dropped: list[ToolCall] = []
        self._is_again = False

    def feed(self, chunk: ChatCompletionChunk | Mapping[str, Any]) -> None:
        """Start and feed tools by what ``chunk`` brings: of the openai package, or its JSON. In a running event loop."""
        for event in self._stream.feed(chunk):
            self._on(event)

    def again(self) -> None:
        """The answer is written once more from its start, as after a failure: calls that come out the same go on where they
        are; no process starts twice for one."""
        self._stream = ToolStream()
        self._written, self._is_again = set(), True
        for call in self._calls.values():
            call.again()

    async def results(self) -> list[ToolResult]:
        """Of all calls of the answer, in their order; calls that are not complete are aborted."""
        for event in self._stream.end():
            self._on(event)
        for call in [call for call in self._calls if call not in self._written]:
            self._drop(call)
        results = [await call.result for _, call in sorted(self._calls.items())]
        await asyncio.gather(*(call.result for call in self._dropped), return_exceptions=True)
        if self._ahead is not None:
            await self._ahead.called(results, self._tools)
        return results

    async def close(self) -> None:
        """End all tools at once: their results are not wanted any more."""
        await asyncio.gather(*(call.close() for call in (*self._calls.values(), *self._dropped)))

    def _on(self, event: ToolEvent) -> None:
        call = event.call
        if isinstance(event, Started):
            self._written.add(call)
            if call in self._calls and self._calls[call].started.name != event.name:
                self._drop(call)
            if call not in self._calls:
                self._start(event)
        elif call not in self._calls:
            return
        elif isinstance(event, Failed):
            self._calls[call].abort(event.why)
        else:
            complete = isinstance(event, Finished)
            if self._is_again and not self._calls[call].agrees(event.arguments, complete=complete):
                self._start(self._drop(call))
            if isinstance(event, Grew):
                self._calls[call].grow(event.arguments, whole=event.whole)
            else:
                self._calls[call].finish(event.arguments)

    def _start(self, event: Started) -> None:
        expected = self._ahead.expected(event.name) if self._ahead is not None else None
        running = ToolCall(event, self._tools.get(event.name), lazy=self._lazy, expected=expected, slots=self._slots)
        self._calls[event.call] = running
        if len(self._calls) > self._most_calls:
            running.abort(f"one answer may make {self._most_calls} calls")

    def _drop(self, call: Call) -> Started:
        """A call that the answer, written once more, does not make."""
        dropped = self._calls.pop(call)
        dropped.result.cancel()
        self._dropped.append(dropped)
        return dropped.started
