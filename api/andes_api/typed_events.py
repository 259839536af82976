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

__all__ = ["MessageEvents", "ResponseEvents"]

_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "permission_error": 403, "not_found_error": 404,
    "request_too_large": 413, "rate_limit_error": 429, "overloaded_error": 503,
}  # fmt: skip
"""Of Anthropic's error types; 500 for all others."""


class TypedEvents(EventStream):
    """``event: TYPE`` and ``data: {"type": TYPE, ...}``; :meth:`_typed` reads one. ``END``: what a complete answer ends
    with, to be supplied where its engine has gone."""

    __slots__ = ()

    def _one(self, event: bytes) -> Event:
        data = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
        if not data:  # a comment
            return event, 0
        payload = object_of(b"\n".join(data))
        whole = payload.get("response") or payload.get("message")
        if isinstance(whole, dict):
            self.identity = whole
        return self._typed(str(payload.get("type")), payload, event)

    @abstractmethod
    def _typed(self, kind: str, payload: dict[str, Any], event: bytes) -> Event:
        """As in :meth:`~andes_api.sse.EventStream.feed`."""

    def _piece(self, piece: object) -> int:
        """Tokens of a piece of the answer."""
        new = 1 if isinstance(piece, str) and piece else 0
        self._counts[0] = self._counts.get(0, 0) + new
        return new

    def _final(self, usage: Any) -> int:
        """Tokens that the engine has counted beyond the pieces, by ``usage`` of the whole answer."""
        if not isinstance(usage, dict):
            return 0
        self.usage_so_far = usage = {**(self.usage_so_far or {}), **usage}
        self.usage = usage
        total = usage.get("output_tokens")
        return self._count({"completion_tokens": total}, 0)

    def _failed(self, error: Any, event: bytes) -> Event:
        self.error, self.error_event = error, event
        return b"", 0


class ResponseEvents(TypedEvents):
    """``response.*``. What comes before the first piece of the answer goes out with it, so that another engine can still
    answer."""

    __slots__ = ("_held",)

    END = b""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held: bytes | None = b""

    def _typed(self, kind: str, payload: dict[str, Any], event: bytes) -> Event:
        if kind == "error":
            return self._failed(payload.get("error") or payload, event)
        response = payload.get("response")
        said: Mapping[str, Any] = response if isinstance(response, dict) else {}
        if kind == "response.failed":
            return self._failed(said.get("error") or {"message": "the response failed"}, event)
        if kind in ("response.created", "response.queued", "response.in_progress"):
            if self._held is not None:
                self._held += event
                return b"", 0
            return event, 0
        new = self._piece(payload.get("delta")) if kind.endswith(".delta") else 0
        if kind in ("response.completed", "response.incomplete"):
            self.done, self.finish_reason = True, str(said.get("status") or "completed")
            new += self._final(said.get("usage"))
        event, self._held = (self._held or b"") + event, None
        return event, new

    @staticmethod
    def event_of(error: Mapping[str, Any]) -> bytes:
        """The event of an error: OpenAI's fields, and ``error``, at which its client raises."""
        said = {name: error.get(name) for name in ("code", "message", "param")}
        payload = {"type": "error", **said, "sequence_number": 0, "error": error}
        return b"event: error\ndata: " + orjson.dumps(payload) + b"\n\n"


class MessageEvents(TypedEvents):
    """``message_start`` to ``message_stop``."""

    __slots__ = ()

    END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def _typed(self, kind: str, payload: dict[str, Any], event: bytes) -> Event:
        delta = payload.get("delta")
        said: Mapping[str, Any] = delta if isinstance(delta, dict) else {}
        if kind == "error":
            error = payload.get("error")
            known = error if isinstance(error, dict) else {"message": str(error)}
            return self._failed({"code": _STATUS.get(str(known.get("type")), 500), **known}, event)
        new = 0
        if kind == "message_start" and isinstance(payload.get("message"), dict):
            usage = payload["message"].get("usage")
            self.usage_so_far = usage if isinstance(usage, dict) else None
        elif kind == "content_block_delta":
            new = self._piece(said.get("text") or said.get("thinking") or said.get("partial_json"))
        elif kind == "message_delta":
            self.finish_reason = str(said.get("stop_reason") or "") or None
            new = self._final(payload.get("usage"))
        elif kind == "message_stop":
            self.done = True
        return event, new
