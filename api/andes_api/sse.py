"""Server-sent events on their way through: whole events only, tokens counted, bytes untouched.

The gateway asks the engine for ``continuous_usage_stats``, because events are not tokens (speculative decoding, grouping,
a token that is half a character), and takes those figures out again for a client that did not ask for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["DONE", "Event", "EventStream", "GarbageError", "object_of", "payload_of"]

Event = tuple[bytes, int]
DONE = b"data: [DONE]"
MAX_EVENT_BYTES = 4 << 20
_USAGE = re.compile(rb'(,\s*)?"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_INDEX = re.compile(rb'"index"\s*:\s*(\d+)')
_TEXT = re.compile(rb'"(?:text|content|reasoning_content|arguments)"\s*:\s*"[^"]')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,40})"')
_BREAK = re.compile(rb"\r?\n\r?\n")


class GarbageError(ValueError):
    """What came from upstream is no event stream of an OpenAI-compatible engine."""


class EventStream:
    """One stream's events: feed it bytes, get whole events to pass on and the number of new tokens in them.

    chat: chunks of /v1/chat/completions rather than /v1/completions. asked: the client's own stream_options. usage:
    whether the upstream was asked for continuous usage; otherwise an event with text counts as a token. several: n > 1 or
    several prompts: tokens are counted per choice and summed.

    ``done``: the end has come. ``error``: what the engine said instead, ``error_event`` as it said it. ``garbage``: why what
    came is no such stream. After either of the two nothing more comes out.
    """

    __slots__ = (
        "_asked_continuous", "_asked_final", "_chat", "_counts", "_last", "_rest", "_several", "_usage", "done", "error",
        "error_event", "garbage", "usage",
    )  # fmt: skip

    def __init__(self, *, chat: bool, asked: Mapping[str, Any], usage: bool, several: bool = False) -> None:
        self._chat = chat
        self._usage = usage
        self._asked_final = bool(asked.get("include_usage"))
        self._asked_continuous = bool(asked.get("continuous_usage_stats"))
        self._several = several
        self._counts: dict[int, int] = {}
        self._rest = b""
        self._last = b""
        self.usage: dict[str, Any] | None = None
        self.done = False
        self.error: Any = None
        self.error_event = b""
        self.garbage: str | None = None

    @property
    def usage_so_far(self) -> dict[str, Any] | None:
        """The last usage that came: the whole stream's, or a chunk's."""
        found = None if self.usage else _USAGE.search(self._last, max(0, self._last.rfind(b'"usage"')))
        return self.usage or (object_of(found[2]) if found else None)

    @property
    def finish_reason(self) -> str | None:
        """Of the last choice that came."""
        found = _FINISH.search(self._last)
        return found[1].decode() if found else None

    def feed(self, data: bytes) -> list[Event]:
        """Whole events (each with its blank line; empty where it is not for the client) with the tokens each brings."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        events: list[Event] = []
        try:
            if data.endswith(b"\n\n") and data.find(b"\n\n", 0, -2) < 0:  # one whole event, as nearly always
                events.append(self._one(data))
                return events
            start = 0
            for found in _BREAK.finditer(data):
                events.append(self._one(data[start : found.end()]))
                start = found.end()
                if self.error_event:
                    return events
            self._rest = data[start:]
            if len(self._rest) > MAX_EVENT_BYTES:
                raise GarbageError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        except GarbageError as error:
            self.garbage = str(error)
        return events

    def _one(self, event: bytes) -> Event:
        if not event.startswith(b"data: {"):
            return self._rare(event)
        if event.startswith(b'data: {"error"'):
            return self._failed(event)
        if not self._usage:
            return self._by_event(event)
        at = event.rfind(b',"usage":{')
        end = event.find(b"}", at)
        count = event.find(b'"completion_tokens":', at, end)
        plain = at > 0 and count > 0 and event.find(b"{", at + 10, end) < 0 and event.find(b'"choices":[{', 0, at) > 0
        comma = event.find(b",", count, end)
        figure = event[count + 20 : comma if comma > 0 else end]  # "completion_tokens": has 20 characters
        if not plain or self._several or not figure.isdigit():
            return self._in_full(event)
        self._last = event
        total = int(figure)
        new = total - self._counts.get(0, 0)
        if new > 0:
            self._counts[0] = total
        if not self._asked_continuous:
            event = event[:at] + (b"" if self._chat else b',"usage":null') + event[end + 1 :]
        return event, max(new, 0)

    def _in_full(self, event: bytes) -> Event:
        """A chunk with usage, however it is written."""
        at = event.rfind(b'"usage"')
        found = _USAGE.match(event, _comma_before(event, at)) if at > 0 else None
        if found is None:
            return self._by_event(event)
        if _NO_CHOICES.search(event):
            self.usage = object_of(found[2])
            return (event if self._asked_final else b""), 0
        self._last = event
        count = _COMPLETION.search(event, found.start())
        index = 0
        if self._several and (choice := _INDEX.search(event)):
            index = int(choice[1])
        total = int(count[1]) if count else 0
        new = total - self._counts.get(index, 0)
        if new > 0:
            self._counts[index] = total
        if not self._asked_continuous:
            put = b"" if self._chat else (found[1] or b"") + b'"usage":null'
            event = event[: found.start()] + put + event[found.end() :]
        return event, max(new, 0)

    def _by_event(self, event: bytes) -> Event:
        if b'"choices"' not in event or not event.rstrip().endswith(b"}"):
            raise GarbageError(f"an event that is no chunk: {event[:80]!r}")
        if _NO_CHOICES.search(event):
            self.usage = payload_of(event).get("usage")
            return event, 0
        self._last = event
        new = 1 if _TEXT.search(event) else 0
        self._counts[0] = self._counts.get(0, 0) + new
        return event, new

    def _rare(self, event: bytes) -> Event:
        """Whatever is not written as engines usually write a chunk."""
        if event.startswith((DONE, b"data:[DONE]")):
            self.done = True
        elif event.startswith(b"data:"):
            payload = payload_of(event)
            if "error" in payload:
                return self._failed(event)
            if "choices" not in payload:
                raise GarbageError(f"an event that is no chunk: {event[:80]!r}")
            return self._one(b"data: " + orjson.dumps(payload) + b"\n\n")
        elif not event.startswith((b":", b"event:", b"id:", b"retry:")):
            raise GarbageError(f"no event: {event[:80]!r}")
        return event, 0

    def _failed(self, event: bytes) -> Event:
        self.error, self.error_event = payload_of(event)["error"], event
        return b"", 0


def _comma_before(event: bytes, at: int) -> int:
    comma = at - 1
    while event[comma : comma + 1].isspace():
        comma -= 1
    return comma if event[comma : comma + 1] == b"," else at


def payload_of(event: bytes) -> dict[str, Any]:
    """What an event says. Raises :class:`GarbageError`."""
    return object_of(event.partition(b":")[2])


def object_of(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises :class:`GarbageError`."""
    try:
        payload = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise GarbageError(f"no JSON: {text[:80]!r}") from None
    if not isinstance(payload, dict):
        raise GarbageError(f"no object: {text[:80]!r}")
    return payload
