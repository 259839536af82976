"""Requests and answers that are wrong in some way: JSON, headers, framing, bytes, events. Drawn from a seed, by number."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

__all__ = ["odd_events", "odd_request"]

Change = Callable[[random.Random, Any], Any]
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/m", "/fleet/demand", "/fleet/qoe", "/fleet/replicas",
    "/fleet/summary", "/fleet/replicas/x/drain", "/livez", "/readyz", "/metrics", "/", "/try", "/openapi.json", "/nothing",
    "/v1/embeddings", "/v1/responses", "/v1/messages", "//", "/%00", "/%ff%fe", "/../../etc/passwd",
    "/v1/models/%F0%9F%92%A9",
)  # fmt: skip
QUERIES = (
    "", "", "", "?since=NaN", "?since=-1e308", "?window_s=0", "?window_s=1e309", "?drained=perhaps", "?since=1&since=x", "?=",
    "?%ff=%00", "?model=%00", "?model=x&model=y", "?" + "a=1&" * 300,
)  # fmt: skip
METHODS = (
    "POST",
    "POST",
    "POST",
    "POST",
    "POST",
    "GET",
    "HEAD",
    "OPTIONS",
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "CONNECT",
    "BREW",
)
TEXT = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e",
    "null",
    "💩" * 9,
    "x" * 5000,
    "-1",
    "NaN",
    "\r\n\r\n",
    "{}",
    "' OR 1=1",
    "../..",
    "\x7f",
)
NUMBERS = (
    0, -1, 1, 0.5, -0.0, 2**31, 2**53, 2**63 - 1, 2**64 - 1, 2**64, -(2**63) - 1, 10**400, 1e308, 1e-320, float("nan"),
    float("inf"), -float("inf"), 1_000_000_000,
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "stream", "max_tokens", "max_completion_tokens",
    "n", "temperature", "top_p", "seed", "stop",
    "stream_options", "service_tier", "custom_params", "tools", "response_format",
    "logprobs", "user", "echo", "best_of", "role",
    "content", "qoe", "ttft", "tds", "weight", "yield", "tokens", "include_usage", "type", "text",
    "image_url", "url", "input",
    "__proto__", "", "custom_logit_processor", "min_tokens", "session_params",
)  # fmt: skip
HEADERS = (
    "x-andes-class", "x-andes-ttft-ms", "x-andes-tds", "x-andes-expected-tokens", "x-andes-pace",
    "x-andes-report", "x-andes-tsd",
    "x-llm-d-slo-ttft-ms", "x-slo-tpot-ms", "x-request-id", "traceparent", "tracestate",
    "b3", "x-b3-traceid", "authorization",
    "content-type", "content-encoding", "content-length", "transfer-encoding", "expect", "connection", "upgrade", "accept",
    "accept-encoding", "origin", "x-forwarded-for", "cookie", "range", "te", "host", "x-http-method-override",
)  # fmt: skip
HEADER_VALUES = (
    "", " ", "0", "-1", "1e999", "NaN", "off", "on", "usage", "chunked", "gzip", "br", "gzip, gzip", "100-continue", "close",
    "keep-alive", "websocket", "h2c", "text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=x",
    "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01", "00-0-0-0", "\xff\xfe", "x" * 3000, "\t,;=\"'",
    "Bearer ", "*/*",
    "Upgrade, HTTP2-Settings", "upgrade", "application/openmetrics-text;version=9",
    "99999999999999999999", "12", "http://evil.example", "203.0.113.9",
)  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, or nearly one."""
    kind = rng.randrange(9 if depth < 4 else 5)
    if kind < 2:
        return rng.choice(TEXT)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return f"@{rng.choice((3, 50, 130, 300, 600, 1100))}@"  # so many arrays in each other
    if kind < 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(FIELDS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def sound_body(rng: random.Random, path: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": rng.choice(("m",) * 19 + ("other",)), "max_tokens": rng.randrange(1, 6)}
    body |= {"stream": True} if rng.random() < 0.6 else {}
    body |= {"temperature": 0} if rng.random() < 0.3 else {}
    if "chat" in path:
        return {**body, "messages": [{"role": "user", "content": rng.choice(("hi", [{"type": "text", "text": "hi"}]))}]}
    return {**body, "prompt": rng.choice(("hi", [1, 2, 3], ["a", "b"])), "input": "hi"}


def changed(rng: random.Random, body: Any) -> Any:
    """``body`` with something in it that is not as it should be."""
    if isinstance(body, dict) and body and rng.random() < 0.8:
        name = rng.choice([*body, rng.choice(FIELDS)])
        inside = body.get(name)
        deeper = isinstance(inside, dict | list) and rng.random() < 0.5
        return {**body, name: changed(rng, inside) if deeper else value(rng)}
    if isinstance(body, list) and body and rng.random() < 0.8:
        k = rng.randrange(len(body))
        return [*body[:k], changed(rng, body[k]), *body[k + 1 :]]
    return value(rng)


def encoded(rng: random.Random, body: Any) -> bytes:
    if rng.random() < 0.02:
        return rng.choice(
            (b"", b"\xef\xbb\xbf{}", b"[" * 60_000, b'{"a":' * 5000, b"nul", b'"x"', b"{}{}", b'{"n":1,"n":2}')
        )
    try:
        content = json.dumps(body).encode("utf-8", "surrogatepass")
    except ValueError:  # a number of too many digits for Python
        return b'{"seed":' + b"9" * 5000 + b"}"
    return re.sub(rb'"@(\d+)@"', lambda found: b"[" * int(found[1]) + b"]" * int(found[1]), content)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """``content`` with some of its bytes lost, changed, doubled or added."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        k = rng.randrange(len(data) + 1)
        way = rng.randrange(4)
        if way == 0:
            del data[k : k + rng.randrange(1, 20)]
        elif way == 1:
            data[k:k] = rng.randbytes(rng.randrange(1, 6))
        elif way == 2:
            data[k:k] = data[k : k + 30]
        elif k < len(data):
            data[k] ^= 1 << rng.randrange(8)
    return bytes(data)


def odd_form(rng: random.Random, file: bytes) -> bytes:
    """A form with a file, its boundary "x"."""
    fields = {
        "model": "m",
        "stream": rng.choice(("true", "false", "maybe", "")),
        rng.choice(FIELDS): rng.choice(HEADER_VALUES),
    }
    parts = [f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
    head = "--x\r\ncontent-disposition: form-data; name=file; filename=a.wav\r\ncontent-type: audio/wav\r\n\r\n"
    form = "".join([*parts, head]).encode("latin-1", "replace") + file + b"\r\n--x--\r\n"
    return damaged(rng, form) if rng.random() < 0.4 else form


def odd_request(seed: int, number: int) -> bytes:
    """What a client sends on a connection of its own, head and body. Half are sound but for one body or header."""
    rng = random.Random(seed * 1_000_003 + number)
    path = rng.choice(PATHS[:2]) if rng.random() < 0.85 else rng.choice(PATHS)
    body: Any = sound_body(rng, path)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        body = changed(rng, body)
    content = encoded(rng, body)
    if rng.random() < 0.1 and content:
        content = damaged(rng, content)
    headers = {
        "host": "x",
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
    }
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        headers[rng.choice(HEADERS)] = rng.choice(HEADER_VALUES)
    method = "POST" if rng.random() < 0.9 else rng.choice(METHODS)
    version = rng.choice(("1.1",) * 9 + ("1.0", "0.9", "2.0"))
    query = rng.choice(QUERIES) if rng.random() < 0.2 else ""
    lines = [f"{method} {path}{query} HTTP/{version}", *(f"{name}: {text}" for name, text in headers.items()), "", ""]
    request = "\r\n".join(lines).encode("latin-1", "replace") + content
    return damaged(rng, request) if rng.random() < 0.08 else request


def odd_events(rng: random.Random, count: int) -> bytes:
    """The events of an engine's stream: most often sound, otherwise odd in one of them or in their bytes."""
    events = []
    odd = rng.randrange(count) if rng.random() < 0.3 else -1
    for k in range(count):
        usage = {"prompt_tokens": 5, "completion_tokens": k + 1, "total_tokens": 6 + k}
        finish = "length" if k == count - 1 else None
        chunk: Any = {
            "id": "one", "object": "chat.completion.chunk", "created": 1, "model": "m", "usage": usage,
            "choices": [{"index": 0, "text": "w ", "delta": {"content": "w "}, "finish_reason": finish}],
        }  # fmt: skip
        events.append(b"data: " + encoded(rng, changed(rng, chunk) if k == odd else chunk) + b"\n\n")
    if rng.random() < 0.95:
        events.append(b"data: [DONE]\n\n")
    if rng.random() < 0.05:
        events.insert(
            0, rng.choice((b": comment\n\n", b"event: x\ndata: {}\n\n", b"\n\n", b"id: 1\n\n", b"retry: x\r\n\r\n"))
        )
    content = b"".join(events)
    return damaged(rng, content) if rng.random() < 0.1 else content
