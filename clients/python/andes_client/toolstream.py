"""Tool calls as they are written: what starts, grows and ends with each chunk of a stream. Pure.

A model writes the arguments of a call as JSON text, token by token. Most tools could begin before the last token: a
statement of code can run when the next one begins, a value can be looked up when it is closed (Conveyor, arXiv 2406.00059).
:class:`ToolStream` says after each chunk what each call has by now; :mod:`andes_client.tools` feeds processes with it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jiter
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

__all__ = [
    "Call",
    "Failed",
    "Finished",
    "Grew",
    "Started",
    "ToolEvent",
    "ToolStream",
    "python_statements",
    "sql_statements",
]

MAX_ARGUMENT_BYTES = 1 << 20
"""Of one call: longer ones fail (our choice)."""


class Call(NamedTuple):
    """Which call of an answer: of which choice, and its number in there."""

    choice: int
    number: int


@dataclass(frozen=True)
class Started:
    """The call has a name: nothing is known of its arguments yet. id: as the model's server gives it."""

    call: Call
    id: str
    name: str


@dataclass(frozen=True)
class Grew:
    """arguments: all that can be read by now; the last string may go on, everything else in it is closed."""

    call: Call
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """The call is complete."""

    call: Call
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """The call will never be complete: its arguments are no JSON object, or the answer was cut."""

    call: Call
    why: str


ToolEvent = Started | Grew | Finished | Failed


@dataclass
class _Writing:
    id: str = ""
    name: str = ""
    text: bytearray = field(default_factory=bytearray)
    started: bool = False
    over: bool = False
    seen: Any = None


class ToolStream:
    """Of one answer: parallel calls, several choices, arguments in pieces of any size."""

    def __init__(self) -> None:
        self._calls: dict[Call, _Writing] = {}

    def feed(self, chunk: ChatCompletionChunk) -> list[ToolEvent]:
        """What ``chunk`` brings. A call is finished when another one of its choice follows, or its choice ends."""
        events: list[ToolEvent] = []
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or ():
                call = Call(choice.index, delta.index)
                if call not in self._calls:
                    events += self._finish(lambda other, of=choice.index: other.choice == of)  # type: ignore[misc]
                events += self._take(call, delta)
            if choice.finish_reason is not None:
                events += self._finish(lambda other, of=choice.index: other.choice == of)  # type: ignore[misc]
        return events

    def end(self, why: str = "the answer ended before the call was complete") -> list[ToolEvent]:
        """The stream is over: what is not complete fails."""
        return [self._fail(call, why) for call, writing in self._calls.items() if not writing.over]

    def _take(self, call: Call, delta: ChoiceDeltaToolCall) -> list[ToolEvent]:
        writing = self._calls.setdefault(call, _Writing())
        if writing.over:
            return []
        function = delta.function
        writing.id = writing.id or delta.id or ""
        events: list[ToolEvent] = []
        if function is not None and function.name and not writing.started:
            writing.name += function.name
        if function is None or not function.arguments:
            return self._start(call, writing) if writing.id and writing.name else events
        events += self._start(call, writing)
        writing.text += function.arguments.encode()
        if len(writing.text) > MAX_ARGUMENT_BYTES:
            return [*events, self._fail(call, f"its arguments are longer than {MAX_ARGUMENT_BYTES} bytes")]
        try:
            arguments = jiter.from_json(bytes(writing.text), partial_mode="trailing-strings")
        except ValueError as error:
            return [*events, self._fail(call, f"its arguments are no JSON: {error}")]
        if not isinstance(arguments, dict):
            return [*events, self._fail(call, f"its arguments are {type(arguments).__name__}, not an object")]
        if arguments != writing.seen:
            writing.seen = arguments
            events.append(Grew(call, arguments))
        return events

    def _start(self, call: Call, writing: _Writing) -> list[ToolEvent]:
        if writing.started:
            return []
        writing.started = True
        return [Started(call, writing.id, writing.name)]

    def _finish(self, chosen: Callable[[Call], bool]) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        for call, writing in self._calls.items():
            if writing.over or not chosen(call):
                continue
            events += self._start(call, writing)
            try:
                arguments = jiter.from_json(bytes(writing.text) or b"{}")
            except ValueError as error:
                events.append(self._fail(call, f"its arguments are no JSON: {error}"))
                continue
            if not isinstance(arguments, dict):
                events.append(self._fail(call, f"its arguments are {type(arguments).__name__}, not an object"))
                continue
            writing.over = True
            events.append(Finished(call, arguments))
        return events

    def _fail(self, call: Call, why: str) -> Failed:
        self._calls[call].over = True
        return Failed(call, why)


def python_statements(source: str, done: int) -> int:
    """Length of the prefix of ``source`` that is whole statements of Python; the first ``done`` characters are known to be.

    The last statement may go on (an ``else`` may follow), so it is not counted before the next one has begun on a line of its
    own. What does not parse yet is waited for.
    """
    ends_at = source.rfind("\n") + 1
    if ends_at <= done:
        return done
    try:
        body = ast.parse(source[done:ends_at]).body
    except SyntaxError:
        return done
    if len(body) < 2:
        return done
    lines = source[done:ends_at].splitlines(keepends=True)
    last = body[-1]
    first_line = min([last.lineno, *(d.lineno for d in getattr(last, "decorator_list", ()))])
    return done + sum(map(len, lines[: first_line - 1]))


def sql_statements(source: str, done: int) -> int:
    """The same for SQL, one statement at a time: it ends with a semicolon outside quotes and comments."""
    at = done
    closers = {"'": "'", '"': '"', "`": "`", "--": "\n", "/*": "*/"}
    while at < len(source):
        opener = next((o for o in (source[at : at + 2], source[at]) if o in closers), None)
        if opener is not None:
            closed = source.find(closers[opener], at + len(opener))
            if closed < 0:
                break
            at = closed + len(closers[opener])
            continue
        at += 1
        if source[at - 1] == ";":
            return at
    return done
