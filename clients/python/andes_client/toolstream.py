"""Tool calls as they are written: what starts, grows and ends with each chunk of a stream. Pure.

A model writes the arguments of a call as JSON text, token by token. Most tools could begin before the last token: a
statement of code can run when the next one begins, a value can be looked up when it is closed (Conveyor, arXiv 2406.00059).
:class:`ToolStream` says after each chunk what each call has by now; :mod:`andes_client.tools` feeds processes with it,
in the units of :mod:`andes_client.units`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jiter

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

__all__ = ["Call", "Failed", "Finished", "Grew", "Started", "ToolEvent", "ToolStream"]

MAX_ARGUMENT_BYTES = 1 << 18
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
    """arguments: all that can be read by now; what is last may go on, everything else in it is closed. whole: the last is
    a string that is closed too."""

    call: Call
    arguments: Mapping[str, Any]
    whole: bool = False


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


_QUOTES = re.compile(r'\\.|"|\\\Z', re.DOTALL)
ToolEvent = Started | Grew | Finished | Failed


@dataclass
class _Writing:
    id: str = ""
    name: str = ""
    text: bytearray = field(default_factory=bytearray)
    started: bool = False
    over: bool = False
    seen: Grew | None = None
    quoted: bool = False  # the text ends inside a string
    escape: str = ""  # a backslash at its end

    def add(self, piece: str) -> None:
        self.text += piece.encode(errors="replace")
        tokens = _QUOTES.findall(self.escape + piece)
        self.quoted ^= tokens.count('"') % 2 == 1
        self.escape = "\\" if tokens and tokens[-1] == "\\" else ""


class _Delta(NamedTuple):
    number: int
    id: str
    name: str
    arguments: str


class ToolStream:
    """Of one answer: parallel calls, several choices, arguments in pieces of any size."""

    def __init__(self) -> None:
        self._calls: dict[Call, _Writing] = {}
        self._numbered: dict[Call, Call] = {}  # by the number that the server gives

    def feed(self, chunk: ChatCompletionChunk | Mapping[str, Any]) -> list[ToolEvent]:
        """What ``chunk`` brings: of the openai package, or its JSON. A call is finished when another one of its choice
        follows, or its choice ends."""
        events: list[ToolEvent] = []
        for index, deltas, ends in _of_json(chunk) if isinstance(chunk, Mapping) else _of_object(chunk):
            for delta in deltas:
                call = self._call_of(index, delta)
                if call not in self._calls:
                    events += self._finish(index)
                events += self._take(call, delta)
            if ends:
                events += self._finish(index)
        return events

    def end(self, why: str = "the answer ended before the call was complete") -> list[ToolEvent]:
        """The stream is over: what is not complete fails."""
        return [self._fail(call, why) for call, writing in self._calls.items() if not writing.over]

    def _call_of(self, choice: int, delta: _Delta) -> Call:
        """Some servers number all calls alike: another id with a name is another call."""
        said = Call(choice, delta.number)
        call = self._numbered.get(said)
        if call is None or (delta.id and delta.name and self._calls[call].id not in ("", delta.id)):
            last = max((known.number for known in self._calls if known.choice == choice), default=-1)
            call = self._numbered[said] = said if said not in self._calls else Call(choice, last + 1)
        return call

    def _take(self, call: Call, delta: _Delta) -> list[ToolEvent]:
        writing = self._calls.setdefault(call, _Writing())
        if writing.over:
            return []
        writing.id = writing.id or delta.id
        if not writing.started:
            writing.name += delta.name
        if not delta.arguments:
            return self._start(call, writing) if writing.id and writing.name else []
        events: list[ToolEvent] = self._start(call, writing)
        writing.add(delta.arguments)
        if len(writing.text) > MAX_ARGUMENT_BYTES:
            return [*events, self._fail(call, f"its arguments are longer than {MAX_ARGUMENT_BYTES} bytes")]
        try:
            arguments = jiter.from_json(bytes(writing.text), partial_mode="trailing-strings")
        except ValueError as error:
            return [*events, self._fail(call, f"its arguments are no JSON: {error}")]
        if not isinstance(arguments, dict):
            return [*events, self._fail(call, f"its arguments are {type(arguments).__name__}, not an object")]
        last = next(reversed(arguments.values()), None)
        grew = Grew(call, arguments, isinstance(last, str) and not writing.quoted)
        if grew != writing.seen:
            writing.seen = grew
            events.append(grew)
        return events

    def _start(self, call: Call, writing: _Writing) -> list[ToolEvent]:
        if writing.started:
            return []
        writing.started = True
        return [Started(call, writing.id, writing.name)]

    def _finish(self, choice: int) -> list[ToolEvent]:
        """The calls of ``choice`` that are open are complete."""
        events: list[ToolEvent] = []
        for call, writing in self._calls.items():
            if writing.over or call.choice != choice:
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


def _of_object(chunk: ChatCompletionChunk) -> Iterator[tuple[int, list[_Delta], bool]]:
    for choice in chunk.choices or ():  # servers write null for none
        deltas = []
        for delta in (choice.delta.tool_calls or ()) if choice.delta is not None else ():
            function = delta.function
            name, arguments = (function.name, function.arguments) if function is not None else (None, None)
            deltas.append(_Delta(delta.index or 0, delta.id or "", name or "", arguments or ""))
        yield choice.index, deltas, choice.finish_reason is not None


def _of_json(chunk: Mapping[str, Any]) -> Iterator[tuple[int, list[_Delta], bool]]:
    """Raises ``ValueError`` for a chunk of another shape."""
    try:
        for choice in chunk.get("choices") or ():
            deltas = []
            for delta in (choice.get("delta") or {}).get("tool_calls") or ():
                function = delta.get("function") or {}
                said = (delta.get("id") or "", function.get("name") or "", function.get("arguments") or "")
                if not all(isinstance(text, str) for text in said):
                    raise TypeError
                deltas.append(_Delta(int(delta.get("index") or 0), *said))
            yield int(choice.get("index") or 0), deltas, bool(choice.get("finish_reason"))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"no chunk of a chat: {str(chunk)[:80]}") from error
