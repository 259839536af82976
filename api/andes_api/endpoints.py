"""The inference endpoints of SGLang that go through: where the prompt is, how they stream, how their clients read errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from andes_api.sse import EventStream, GarbageError, object_of
from andes_api.typed_events import MessageEvents, ResponseEvents

__all__ = ["CHAT", "COMPLETION", "ENDPOINTS", "MESSAGES", "RESPONSES", "TRANSCRIPTION", "Endpoint", "at_path"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
"""Of Anthropic's errors, by status; ``api_error`` for all others."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """operation: as in ``gen_ai.operation.name``. prompt: the fields of a request that hold its prompt. reader: of its
    events; None: it gives its answer in one piece, and no reader follows it. adapters: whether SGLang reads the name of a
    LoRA adapter there. anthropic: errors as Anthropic's clients read them. form: a request is a form with a file."""

    path: str
    operation: str
    prompt: tuple[str, ...]
    summary: str
    reader: type[EventStream] | None = None
    adapters: bool = False
    anthropic: bool = False
    form: bool = False

    @property
    def chunks(self) -> bool:
        """Whether it speaks OpenAI's older dialect: chunks with ``choices``, ``stream_options``, a final ``[DONE]``."""
        return self.reader is EventStream and not self.form

    @property
    def reports(self) -> bool:
        """Whether its answers can tell the caller what the reader got."""
        return self.reader is not None and not self.form

    def error_body(self, status: int, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """An error of ours or of an engine, as this endpoint's clients read it."""
        if not self.anthropic or body.get("type") == "error":
            return body
        error = body.get("error")
        said = error if isinstance(error, dict) else body
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(said.get("message", f"status {status}"))}}

    def error_content(self, status: int, content: bytes) -> bytes:
        """The same for the JSON of an answer in one piece; what is none stays."""
        if not self.anthropic:
            return content
        try:
            return orjson.dumps(self.error_body(status, object_of(content)))
        except GarbageError:
            return content

    def error_event(self, status: int, body: Mapping[str, Any]) -> bytes:
        """An error as an event of a stream that has begun."""
        if self.anthropic:
            return b"event: error\ndata: " + orjson.dumps(self.error_body(status, body)) + b"\n\n"
        if self.reader is ResponseEvents:
            return ResponseEvents.event_of(body["error"])
        return b"data: " + orjson.dumps(body) + b"\n\n"


CHAT = Endpoint(
    "/v1/chat/completions", "chat", ("messages",), "Answer a conversation", reader=EventStream, adapters=True
)
COMPLETION = Endpoint(
    "/v1/completions", "text_completion", ("prompt",), "Continue a prompt", reader=EventStream, adapters=True
)
RESPONSES = Endpoint(
    "/v1/responses", "chat", ("instructions", "input"), "Answer, in OpenAI's Responses API", reader=ResponseEvents
)
MESSAGES = Endpoint(
    "/v1/messages", "chat", ("system", "messages"), "Answer, in Anthropic's Messages API", reader=MessageEvents,
    adapters=True, anthropic=True,
)  # fmt: skip
TRANSCRIPTION = Endpoint(
    "/v1/audio/transcriptions", "transcription", (), "Write down what is said", reader=EventStream, form=True
)
ENDPOINTS = (
    CHAT,
    COMPLETION,
    RESPONSES,
    MESSAGES,
    Endpoint(
        "/v1/messages/count_tokens", "count_tokens", ("system", "messages"), "Count the tokens of a message",
        anthropic=True,
    ),
    Endpoint("/v1/embeddings", "embeddings", ("input",), "Embed", adapters=True),
    Endpoint("/v1/classify", "classify", ("input",), "Classify"),
    Endpoint("/v1/score", "score", ("query", "items"), "Score items against a query"),
    Endpoint("/v1/rerank", "rerank", ("query", "documents"), "Order documents by a query"),
    Endpoint("/v1/tokenize", "tokenize", ("prompt", "messages"), "Text to token ids"),
    Endpoint("/v1/detokenize", "detokenize", ("tokens",), "Token ids to text"),
    TRANSCRIPTION,
)  # fmt: skip
_BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}


def at_path(path: str) -> Endpoint:
    """The endpoint there; where there is none, one with OpenAI's errors."""
    return _BY_PATH.get(path, MESSAGES if path.startswith(MESSAGES.path) else CHAT)
