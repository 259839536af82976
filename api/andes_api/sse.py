"""Server-sent events on their way through: whole events only, tokens counted, bytes untouched.

The gateway asks the engine for ``continuous_usage_stats``, because events are not tokens (speculative decoding, grouping,
a token that is half a character), and takes those figures out again for a client that did not ask for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from andes_api.errors import ApiError

__all__ = ["DONE", "EventStream", "GarbageError", "stream_options"]

DONE = b"data: [DONE]"
MAX_EVENT_BYTES = 4 << 20
_USAGE = re.compile(rb'(,\s*)?"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_INDEX = re.compile(rb'"index"\s*:\s*(\d+)')
_TEXT = re.compile(rb'"(?:text|content|reasoning_content|arguments)"\s*:\s*"[^"]')
_BREAK = re.compile(rb"\r?\n\r?\n")


class GarbageError(ValueError):
    """What came from upstream is no event stream of an OpenAI-compatible engine."""


def stream_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request's own stream_options. Raises a 400 where they are no object."""
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise ApiError(400, f"stream_options: expected an object; got {options!r}", param="stream_options")
    return options or {}


class EventStream:
    """One stream's events: feed it bytes, get whole events to pass on and the number of new tokens in them.

    chat: chunks of /v1/chat/completions rather than /v1/completions. asked: the client's own stream_options. usage:
    whether the upstream was asked for continuous usage; otherwise an event with text counts as a token. choices: n > 1 or
    several prompts: tokens are counted per choice and summed.
    """

    __slots__ = (
        "_asked_continuous", "_asked_final", "_chat", "_counts", "_rest", "_several", "_usage", "done", "error", "usage",
    )  # fmt: skip

    def __init__(self, *, chat: bool, asked: Mapping[str, Any], usage: bool, several: bool = False) -> None:
        self._chat = chat
        self._usage = usage
        self._asked_final = bool(asked.get("include_usage"))
        self._asked_continuous = bool(asked.get("continuous_usage_stats"))
        self._several = several
        self._counts: dict[int, int] = {}
        self._rest = b""
        self.usage: dict[str, Any] | None = None
        self.done = False
        self.error: dict[str, Any] | None = None

    @property
    def tokens(self) -> int:
        return sum(self._counts.values())

    def feed(self, data: bytes) -> list[tuple[bytes, int]]:
        """Whole events (each with its blank line; empty where it is not for the client) with the tokens each brings.
        Raises :class:`GarbageError`."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if data.endswith(b"\n\n") and data.find(b"\n\n", 0, -2) < 0:  # one whole event, as nearly always
            return [self._one(data)]
        events, start = [], 0
        for found in _BREAK.finditer(data):
            events.append(self._one(data[start : found.end()]))
            start = found.end()
        self._rest = data[start:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise GarbageError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def _one(self, event: bytes) -> tuple[bytes, int]:
        if not event.startswith(b"data: {"):
            return self._rare(event), 0
        if event.startswith(b'data: {"error"'):
            self.error = _payload(event)["error"]
            return event, 0
        if not self._usage:
            return self._by_event(event)
        at = event.rfind(b'"usage"')
        found = _USAGE.match(event, _comma_before(event, at)) if at > 0 else None
        if found is None:
            return self._by_event(event)
        if b'"choices":[]' in event or b'"choices": []' in event:
            self.usage = orjson.loads(found[2])
            return (event if self._asked_final else b""), 0
        count = _COMPLETION.search(event, found.start())
        index = int(_INDEX.search(event)[1]) if self._several else 0  # type: ignore[index]
        total = int(count[1]) if count else 0
        new = total - self._counts.get(index, 0)
        if new > 0:
            self._counts[index] = total
        if not self._asked_continuous:
            put = b"" if self._chat else (found[1] or b"") + b'"usage":null'
            event = event[: found.start()] + put + event[found.end() :]
        return event, max(new, 0)

    def _by_event(self, event: bytes) -> tuple[bytes, int]:
        if b'"choices"' not in event or not event.rstrip().endswith(b"}"):
            raise GarbageError(f"an event that is no chunk: {event[:80]!r}")
        if b'"choices":[]' in event or b'"choices": []' in event:
            self.usage = _payload(event).get("usage")
            return event, 0
        new = 1 if _TEXT.search(event) else 0
        self._counts[0] = self._counts.get(0, 0) + new
        return event, new

    def _rare(self, event: bytes) -> bytes:
        if event.startswith(DONE):
            self.done = True
        elif not event.startswith((b":", b"event:", b"id:", b"retry:")) and not (
            event.startswith(b"data:") and "choices" in _payload(event)
        ):
            raise GarbageError(f"no event of a stream of chunks: {event[:80]!r}")
        return event


def _comma_before(event: bytes, at: int) -> int:
    comma = at - 1
    while event[comma : comma + 1].isspace():
        comma -= 1
    return comma if event[comma : comma + 1] == b"," else at


def _payload(event: bytes) -> dict[str, Any]:
    try:
        payload = orjson.loads(event.partition(b":")[2])
    except orjson.JSONDecodeError:
        raise GarbageError(f"an event that is no JSON: {event[:80]!r}") from None
    if not isinstance(payload, dict):
        raise GarbageError(f"an event that is no object: {event[:80]!r}")
    return payload
