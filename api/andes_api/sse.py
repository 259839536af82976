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

from andes_sglang.shown import ShownTokens

__all__ = ["Event", "EventStream", "GarbageError", "first_of", "object_of", "payload_of"]

Event = tuple[bytes, int]
MAX_EVENT_BYTES = 4 << 20
"""Bytes; the longest events seen are logprobs of a whole prompt, well below 1 MiB."""
_ABORTED = {"message": "the engine has aborted this request", "type": "upstream_error", "param": None, "code": 503}
_BREAK = re.compile(rb"\r?\n\r?\n")


class GarbageError(ValueError):
    """What came from upstream is no event stream of an OpenAI-compatible engine."""


class EventStream:
    """One stream's events: feed it bytes, get whole events to pass on and the number of new tokens in them.

    chat: chunks of /v1/chat/completions rather than /v1/completions. asked: the client's own stream_options. usage:
    whether the upstream was asked for continuous usage; otherwise an event with text counts as a token. several: n > 1 or
    several prompts: tokens are counted per choice and summed. hides: the reader is not shown what a model thinks before it
    answers; those tokens count in ``thought``, and an event of them brings none.

    ``done``: the end has come. ``usage``: the whole stream's. ``usage_so_far``: the last that came, that or a chunk's.
    ``identity``: what it says of the whole answer, where an event does. ``finish_reasons``: by choice. ``said``: counts the
    tokens that came with more than space, ``characters`` those of the text. ``error``: what the engine said instead,
    ``error_event`` as it said it. ``garbage``: why what came is no such stream. After either of the two nothing more comes
    out.
    """

    END: bytes | None = None
    """What ends a complete stream; None: what :func:`~andes_sglang.resume.ending` says."""

    __slots__ = (
        "_asked_continuous", "_asked_final", "_chat", "_counts", "_rest", "_several", "_tokens", "_usage", "characters",
        "done", "error",
        "error_event", "finish_reasons", "garbage", "identity", "said", "usage", "usage_so_far",
    )  # fmt: skip

    def __init__(
        self, *, chat: bool, asked: Mapping[str, Any], usage: bool, several: bool = False, hides: bool = False
    ) -> None:
        self._chat = chat
        self._tokens = ShownTokens(hides=hides)
        self._usage = usage
        self._asked_final = bool(asked.get("include_usage"))
        self._asked_continuous = bool(asked.get("continuous_usage_stats"))
        self._several = several
        self._counts: dict[int, int] = {}
        self._rest = b""
        self.usage: dict[str, Any] | None = None
        self.usage_so_far: dict[str, Any] | None = None
        self.finish_reasons: dict[int, str] = {}
        self.said = self.characters = 0
        self.done = False
        self.identity: dict[str, Any] | None = None
        self.error: Any = None
        self.error_event = b""
        self.garbage: str | None = None

    @property
    def thought(self) -> int:
        """Tokens so far that the reader was not shown."""
        return self._tokens.thought

    @property
    def ends(self) -> bool:
        """Whether something has come after which little or nothing more does."""
        return bool(self.done or self.finish_reasons or self.error_event or self.garbage)

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
        index = choice.get("index") if self._several else 0
        if not isinstance(index, int):
            index = 0
        if finish_reason := choice.get("finish_reason"):  # some engines write "" for none
            if finish_reason == "abort":  # the engine gives up: its client did not ask for that
                return self._failed(_ABORTED, _event(_ABORTED))
            self.finish_reasons[index] = str(finish_reason)
        text, thought = _text_in(choices)
        if usage is None or not self._usage:
            new = 1 if text and not (self._usage and text.isspace()) else 0  # uncounted space keeps a connection open
            self._counts[0] = self._counts.get(0, 0) + new
        else:
            new = self._count(usage, index)
            if not self._asked_continuous:
                event = self._without_usage(event, payload)
        self.characters += 0 if thought else len(text)
        if new and not text.isspace():
            self.said += new
        return event, self._shown(new, bool(text), thought, usage)

    def _shown(self, new: int, text: bool, thought: bool, usage: dict[str, Any] | None) -> int:
        counted = usage.get("reasoning_tokens") if usage is not None and not self._several else None
        counted = counted if isinstance(counted, int) else None
        return self._tokens.of(new, thought=thought, text=text and not thought, counted_thought=counted)

    def _without_choice(self, event: bytes, payload: dict[str, Any], usage: dict[str, Any] | None) -> Event:
        """An error, or the usage of the whole stream. Where there is neither, some engines write null."""
        if payload.get("error") is not None:
            return self._failed(payload["error"], event)
        if payload.get("object") == "error":  # without the envelope that clients look for
            return self._failed(payload, _event(payload))
        if payload.get("choices", ...) not in ([], None):
            raise GarbageError(f"an event that is no chunk: {event[:80]!r}")
        if usage is not None:
            self.usage = usage
        return (event if self._asked_final or usage is None or not self._usage else b""), 0

    def _failed(self, error: Any, event: bytes) -> Event:
        self.error, self.error_event = error, event
        return b"", 0

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


def _text_in(choices: list[Any]) -> tuple[str, bool]:
    """The first text of ``choices``, if any: answer, thought or arguments of a tool; and whether it is a thought."""
    try:
        for choice in choices:
            delta = choice.get("delta") or {}
            if text := choice.get("text") or delta.get("content"):
                return str(text), False
            if text := delta.get("reasoning_content"):
                return str(text), True
            for call in delta.get("tool_calls") or ():
                if arguments := (call.get("function") or {}).get("arguments"):
                    return str(arguments), False
    except (AttributeError, TypeError):  # a chunk of another shape
        pass
    return "", False


def _event(error: Any) -> bytes:
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def first_of(events: list[Event]) -> bytes:
    """The first event with data, empty without one; a comment may come before it."""
    return next((event for event, _ in events if event and not event.startswith(b":")), b"")


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
