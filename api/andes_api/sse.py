"""Server-sent events on their way through: whole events only, tokens counted, bytes untouched.

    events = EventStream(chat=True, asked={}, usage=True)
    for event, tokens in events.feed(data):
        ...

The gateway asks the engine for ``continuous_usage_stats``, because events are not tokens (speculative decoding, grouping,
a token that is half a character), and cuts those figures out again for a client that did not ask for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["Event", "EventStream", "GarbageError", "object_of", "payload_of"]

Event = tuple[bytes, int]
MAX_EVENT_BYTES = 4 << 20
"""Bytes; the longest events seen are logprobs of a whole prompt, well below 1 MiB."""
_BREAK = re.compile(rb"\r?\n\r?\n")


class GarbageError(ValueError):
    """What came from upstream is no event stream of an OpenAI-compatible engine."""


class EventStream:
    """One stream's events: feed it bytes, get whole events to pass on and the number of new tokens in them.

    chat: chunks of /v1/chat/completions rather than /v1/completions. asked: the client's own stream_options. usage:
    whether the upstream was asked for continuous usage; otherwise an event with text counts as a token. several: n > 1 or
    several prompts: tokens are counted per choice and summed.

    ``done``: the end has come. ``usage_so_far``: the last usage that came, the whole stream's or a chunk's. ``identity``:
    what it says of the whole answer, where an event does. ``finish_reason``: of the last choice that came. ``error``: what
    the engine said instead, ``error_event`` as it said it. ``garbage``: why what came is no such stream. After either of the
    two nothing more comes out.
    """

    END = b"data: [DONE]\n\n"
    """What a complete stream ends with."""

    __slots__ = (
        "_asked_continuous", "_asked_final", "_chat", "_counts", "_rest", "_several", "_usage", "done", "error",
        "error_event", "finish_reason", "garbage", "identity", "usage", "usage_so_far",
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
        self.usage_so_far: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.identity: dict[str, Any] | None = None
        self.error: Any = None
        self.error_event = b""
        self.garbage: str | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Whole events (each with its blank line; empty where it is not for the client) with the tokens each brings."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        events: list[Event] = []
        try:
            if data.endswith(b"\n\n") and data.find(b"\n\n", 0, -2) < 0 and b"\r" not in data:  # as nearly always
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

    def drop_partial(self) -> None:
        """Forget the part of an event that came last; its rest will not come."""
        self._rest = b""

    def _one(self, event: bytes) -> Event:
        """``event`` as the client should see it, empty where it should not, and the tokens that it brings."""
        if not event.startswith(b"data: {"):
            if not event.startswith(b"data:"):
                if not event.startswith((b":", b"event:", b"id:", b"retry:")):
                    raise GarbageError(f"no event: {event[:80]!r}")
                return event, 0
            if event[5:].lstrip().startswith(b"[DONE]"):
                self.done = True
                return event, 0
        payload = object_of(event[5:])
        usage = payload.get("usage")
        if isinstance(usage, dict):
            self.usage_so_far = usage
        else:
            usage = None
        choices = payload.get("choices")
        if choices and isinstance(choices, list):
            return self._with_choices(event, payload, choices, usage)
        return self._without_choice(event, payload, usage)

    def _with_choices(
        self, event: bytes, payload: dict[str, Any], choices: list[Any], usage: dict[str, Any] | None
    ) -> Event:
        choice = choices[0] if isinstance(choices[0], dict) else {}
        self.finish_reason = choice.get("finish_reason") or None  # some engines write "" for none
        if usage is None or not self._usage:
            new = 1 if any(_has_text(c) for c in choices) else 0
            self._counts[0] = self._counts.get(0, 0) + new
            return event, new
        index = choice.get("index") if self._several else 0
        new = self._count(usage, index if isinstance(index, int) else 0)
        return (event if self._asked_continuous else self._without_usage(event, payload)), new

    def _without_choice(self, event: bytes, payload: dict[str, Any], usage: dict[str, Any] | None) -> Event:
        """An error, or the usage of the whole stream. Where there is neither, some engines write null."""
        if payload.get("error") is not None:
            self.error, self.error_event = payload["error"], event
            return b"", 0
        if payload.get("choices", ...) not in ([], None):
            raise GarbageError(f"an event that is no chunk: {event[:80]!r}")
        if usage is not None:
            self.usage = usage
        return (event if self._asked_final or usage is None or not self._usage else b""), 0

    def _count(self, usage: dict[str, Any], index: int) -> int:
        total = usage.get("completion_tokens")
        new = total - self._counts.get(index, 0) if isinstance(total, int) else 0
        if new <= 0:
            return 0
        self._counts[index] = self._counts.get(index, 0) + new
        return new

    def _without_usage(self, event: bytes, payload: dict[str, Any]) -> bytes:
        """``event`` as the engine sends it when it is not asked for continuous usage: the other bytes as they are where
        usage comes last, as SGLang writes it."""
        if next(reversed(payload)) != "usage":
            kept = {name: value for name, value in payload.items() if name != "usage"}
            text = json.dumps(kept if self._chat else {**kept, "usage": None}, separators=(",", ":"))
            return b"data: " + text.encode() + b"\n\n"
        end = b"}" + event[event.rindex(b"}") + 1 :]
        before = event[: event.rindex(b'"usage"')]
        if self._chat:
            return before.rstrip().removesuffix(b",") + end
        return before + b'"usage":null' + end


def _has_text(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta") or {}
    try:
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            return True
        return any((call.get("function") or {}).get("arguments") for call in delta.get("tool_calls") or ())
    except (AttributeError, TypeError):  # a chunk of another shape
        return False


def payload_of(event: bytes) -> dict[str, Any]:
    """What an event says. Raises :class:`GarbageError`."""
    return object_of(event.partition(b":")[2])


def object_of(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises :class:`GarbageError`."""
    try:
        payload = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:  # NaN, half a surrogate pair or a byte that is no UTF-8: wrong, but clients read past them
            payload = json.loads(text.decode(errors="replace"))
        except (ValueError, RecursionError):
            raise GarbageError(f"no JSON: {text[:80]!r}") from None
    if not isinstance(payload, dict):
        raise GarbageError(f"no object: {text[:80]!r}")
    return payload
