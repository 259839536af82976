"""Server-sent events with a type in each: OpenAI's Responses and Anthropic's Messages, counted on their way through.

They carry no running count of tokens: an event with a piece of the answer counts as one, and the last event brings what the
engine has counted beyond that.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from andes_api.sse import Event, EventStream, object_of

__all__ = ["MessageEvents", "ResponseEvents", "TypedEvents"]

_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "permission_error": 403, "not_found_error": 404,
    "request_too_large": 413, "rate_limit_error": 429, "overloaded_error": 503,
}  # fmt: skip
"""Of Anthropic's error types; 500 for all others."""


class TypedEvents(EventStream):
    """``event: TYPE`` and ``data: {"type": TYPE, ...}``; :meth:`_typed` reads one. What comes before the first piece of the
    answer goes out with it, so that another engine can still answer."""

    LAST: tuple[str, ...] = ()
    """Types of the events that bring the usage of the whole answer."""

    __slots__ = ("_held",)

    @classmethod
    def is_last(cls, event: bytes) -> bool:
        """Whether it brings the usage of the whole answer; nothing but the end follows it."""
        return cls._last_in(event) is not None

    @classmethod
    def with_report(cls, event: bytes, report: Mapping[str, Any]) -> bytes:
        """``event`` with ``report`` beside the usage of the whole answer; as it is where it brings none."""
        found = cls._last_in(event)
        if found is None:
            return event
        before, kind, payload = found
        whole = payload.get("response", payload)
        whole["usage"] = {**(whole.get("usage") or {}), "andes": report}
        return before + b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"

    @classmethod
    def _last_in(cls, event: bytes) -> tuple[bytes, str, dict[str, Any]] | None:
        """Of one event or several: what comes before the one that brings the usage of the whole, its type and payload."""
        before, _, last = event.rstrip().rpartition(b"\n\n")
        data = b"\n".join(line[5:] for line in last.splitlines() if line.startswith(b"data:"))
        if not any(kind.encode() in data for kind in cls.LAST):
            return None
        payload = object_of(data)
        kind = str(payload.get("type"))
        return (before + b"\n\n" if before else b"", kind, payload) if kind in cls.LAST else None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held: bytes | None = b""

    def _one(self, event: bytes) -> Event:
        data = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
        if not data:  # a comment
            return event, 0
        payload = object_of(b"\n".join(data))
        whole = payload.get("response") or payload.get("message")
        if isinstance(whole, dict):
            self.identity = whole
        thought = self.thought
        new = self._typed(str(payload.get("type")), payload, event)
        if self.error_event:
            return b"", 0
        if self._held is None:
            return event, new
        self._held += event
        if not new and self.thought == thought and not self.finish_reasons:
            return b"", 0
        event, self._held = self._held, None
        return event, new

    @abstractmethod
    def _typed(self, kind: str, payload: dict[str, Any], event: bytes) -> int:
        """Take note of ``event``; the tokens that it brings."""

    def _piece(self, piece: object, *, thought: bool = False) -> int:
        """Tokens of a piece of the answer, or of what comes before it."""
        if not isinstance(piece, str) or not piece:
            return 0
        self._counts[0] = self._counts.get(0, 0) + 1
        self.said += not piece.isspace()
        self.characters += 0 if thought else len(piece)
        return self._tokens.of(1, thought=thought, text=not thought)

    def _final(self, usage: Any) -> int:
        """Tokens that the engine has counted beyond the pieces, by ``usage`` of the whole answer."""
        if not isinstance(usage, dict):
            return 0
        self.usage = self.usage_so_far = {**(self.usage_so_far or {}), **usage}
        pieces = self._counts.get(0, 0)
        new = self._count({"completion_tokens": usage.get("output_tokens")}, 0)
        details = usage.get("output_tokens_details")
        said = details.get("reasoning_tokens") if isinstance(details, dict) else None
        hidden = said - self.thought if isinstance(said, int) else new * self.thought // max(1, pieces)
        return self._tokens.at_end(new, hidden)


class ResponseEvents(TypedEvents):
    """``response.*``."""

    __slots__ = ()

    END = b""
    LAST = ("response.completed", "response.incomplete")

    def _typed(self, kind: str, payload: dict[str, Any], event: bytes) -> int:
        response = payload.get("response")
        said: Mapping[str, Any] = response if isinstance(response, dict) else {}
        if kind == "error":
            self._failed(payload.get("error") or payload, event)
        elif kind == "response.failed":
            self._failed(said.get("error") or {"message": "the response failed"}, event)
        elif kind.endswith(".delta"):
            return self._piece(payload.get("delta"), thought=kind.startswith("response.reasoning"))
        elif kind in ("response.completed", "response.incomplete"):
            self.done, self.finish_reasons[0] = True, str(said.get("status") or "completed")
            return self._final(said.get("usage"))
        return 0

    @staticmethod
    def event_of(error: Mapping[str, Any]) -> bytes:
        """The event of an error: OpenAI's fields, and ``error``, at which its client raises."""
        said = {name: error.get(name) for name in ("code", "message", "param")}
        payload = {"type": "error", **said, "sequence_number": 0, "error": error}
        return b"event: error\ndata: " + orjson.dumps(payload) + b"\n\n"


class MessageEvents(TypedEvents):
    """``message_start`` to ``message_stop``."""

    __slots__ = ()

    LAST = ("message_delta",)
    END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def _typed(self, kind: str, payload: dict[str, Any], event: bytes) -> int:
        delta = payload.get("delta")
        said: Mapping[str, Any] = delta if isinstance(delta, dict) else {}
        if kind == "error":
            error = payload.get("error")
            known = error if isinstance(error, dict) else {"message": str(error)}
            self._failed({"code": _STATUS.get(str(known.get("type")), 500), **known}, event)
        elif kind == "message_start" and isinstance(payload.get("message"), dict):
            usage = payload["message"].get("usage")
            self.usage_so_far = usage if isinstance(usage, dict) else None
        elif kind == "content_block_delta":
            if thinking := said.get("thinking"):
                return self._piece(thinking, thought=True)
            return self._piece(said.get("text") or said.get("partial_json"))
        elif kind == "message_delta":
            if said.get("stop_reason"):
                self.finish_reasons[0] = str(said["stop_reason"])
            return self._final(payload.get("usage"))
        elif kind == "message_stop":
            self.done = True
        return 0
