"""What the OpenAPI document says about bodies that the gateway reads but does not own: the engine has the last word."""

from __future__ import annotations

from typing import Any

from andes_sglang.expectations import MAX_EXPECTED_TOKENS, MAX_WEIGHT, MIN_WEIGHT, REASONING

__all__ = ["ERROR", "MAX_CHOICES", "OPERATIONS", "READER_REPORT", "REQUEST_HEADERS", "required_body"]

MAX_CHOICES = 128
"""Answers that ``n`` may ask for: OpenAI's own bound."""
_COMMON: dict[str, Any] = {
    "model": {"type": "string"},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0},
    "top_p": {"type": "number"},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
    "seed": {"type": "integer"},
    "service_tier": {"type": "string", "enum": ["auto", "default", "flex", "scale", "priority", "fast"]},
    "custom_params": {
        "type": "object",
        "properties": {
            "qoe": {
                "type": "object",
                "description": "What the reader expects.",
                "properties": {
                    "ttft": {"type": "number", "minimum": 0, "description": "seconds to the first token"},
                    "tds": {"type": "number", "exclusiveMinimum": 0, "description": "tokens per second"},
                    "weight": {
                        "type": "number",
                        "minimum": MIN_WEIGHT,
                        "maximum": MAX_WEIGHT,
                        "description": "value of its QoE relative to others; the class's own at most",
                    },
                    "reasoning": {
                        "type": "string",
                        "enum": [*REASONING],
                        "description": "whether the reader is shown what a model thinks before it answers",
                    },
                    "think_tds": {
                        "type": ["number", "null"],
                        "exclusiveMinimum": 0,
                        "description": "tokens per second at which a hidden thought may go on; null: ttft holds",
                    },
                    "yield": {"type": "boolean", "description": "no reader waits; gives way to those that have one"},
                    "tokens": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": MAX_EXPECTED_TOKENS,
                        "description": "length of the whole answer, where the caller knows it",
                    },
                },
                "additionalProperties": False,
            }
        },
    },
}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "user", "assistant", "tool", "developer"]},
        "content": {},
    },
    "required": ["role"],
}
_HEADERS = [
    ("x-andes-class", "Class of reader, as configured.", {"type": "string"}),
    ("x-andes-ttft-ms", "Expected milliseconds to the first token.", {"type": "number", "minimum": 0}),
    ("x-andes-tds", "Expected tokens per second.", {"type": "number", "exclusiveMinimum": 0}),
    (
        "x-andes-expected-tokens",
        "Expected tokens of the answer.",
        {"type": "integer", "minimum": 1, "maximum": MAX_EXPECTED_TOKENS},
    ),
    (
        "x-andes-reasoning",
        "Whether the reader is shown what a model thinks before it answers.",
        {"type": "string", "enum": [*REASONING]},
    ),
    (
        "x-andes-think-tds",
        "Tokens per second at which a hidden thought may go on before the reader waits; `none`: the first token is expected "
        "in time whatever is thought.",
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "enum": ["none"]}]},
    ),
    ("x-andes-pace", "Release tokens at the reader's speed.", {"type": "string", "enum": ["on", "off"]}),
    (
        "x-andes-degrade",
        "Whether a weaker model of a ladder may answer.",
        {"type": "string", "enum": ["on", "off"]},
    ),
    (
        "x-andes-report",
        "Say at the end of the stream, as `usage.andes`, what its reader got.",
        {"type": "string", "enum": ["usage"]},
    ),
    (
        "x-andes-tools",
        "Run the model's calls of tools here; the answer goes on with their results.",
        {"type": "string", "enum": ["run"]},
    ),
]
REQUEST_HEADERS = tuple(name for name, _, _ in _HEADERS)


def required_body(properties: dict[str, Any], media: str = "application/json", **more: Any) -> dict[str, Any]:
    """A request body that has to be there, of these properties; more: of their schema."""
    schema = {"type": "object", "properties": properties, **more}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


def _operation(kind: str = "application/json", common: dict[str, Any] = _COMMON, **fields: Any) -> dict[str, Any]:
    """Of an endpoint that streams; ``fields``: those that a request has to have."""
    return {
        **required_body({**common, **fields}, kind, required=[*fields]),
        "parameters": [
            {"name": name, "in": "header", "required": False, "description": what, "schema": kind}
            for name, what, kind in _HEADERS
        ],
        "responses": {
            "200": {
                "description": "The answer, or its events as they come.",
                "content": {"application/json": {}, "text/event-stream": {}},
            }
        },
    }


def _whole(**fields: Any) -> dict[str, Any]:
    """Of an endpoint that answers in one piece."""
    return required_body({"model": _COMMON["model"], **fields}, required=[*fields])


_STRING = {"type": "string"}
_STRINGS = {"type": "array", "items": _STRING}
_IDS = {"type": "array", "items": {"type": "integer"}}
_TEXTS = {"anyOf": [_STRING, _STRINGS]}
_MESSAGES = {"type": "array", "items": _MESSAGE, "minItems": 1}
OPERATIONS = {
    "/v1/chat/completions": _operation(messages=_MESSAGES),
    "/v1/completions": _operation(prompt={"anyOf": [_STRING, _IDS]}),
    "/v1/responses": _operation(input={"anyOf": [_STRING, {"type": "array", "items": {"type": "object"}}]}),
    "/v1/messages": _operation(messages=_MESSAGES, max_tokens={"type": "integer", "minimum": 1}),
    "/v1/messages/count_tokens": _whole(messages=_MESSAGES),
    "/v1/embeddings": _whole(input={"anyOf": [_STRING, _STRINGS, _IDS]}),
    "/v1/classify": _whole(input=_TEXTS),
    "/v1/score": _whole(query=_STRING, items=_TEXTS, label_token_ids=_IDS),
    "/v1/rerank": _whole(query=_STRING, documents=_STRINGS),
    "/v1/tokenize": _whole(prompt=_TEXTS),
    "/v1/detokenize": _whole(tokens=_IDS),
    "/v1/audio/transcriptions": _operation(
        "multipart/form-data", {"model": _STRING, "stream": {"type": "boolean"}, "language": _STRING},
        file={"type": "string", "format": "binary"},
    ),
}  # fmt: skip
"""By path."""
_COUNT = {"type": "integer", "minimum": 0, "maximum": 1_000_000_000}
READER_REPORT: dict[str, Any] = required_body(
    {
        "tokens": {**_COUNT, "description": "of the answer, shown since it began"},
        "characters": {**_COUNT, "description": "the same, where tokens are not known"},
        "visible": {"type": "boolean", "description": "whether the page is in sight"},
        "at_s": {"type": "number", "description": "seconds on the client's clock"},
    },
    additionalProperties=False,
    minProperties=1,
)
ERROR: dict[str, Any] = {
    "description": "An error as OpenAI clients read it.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {},
                            "code": {},
                        },
                        "required": ["message", "type"],
                    }
                },
                "required": ["error"],
            }
        }
    },
}
