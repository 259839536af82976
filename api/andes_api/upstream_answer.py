"""What a replica answers: read to its end, and whose fault it is where it is no answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import aiohttp

from andes_api.sse import object_of

__all__ = [
    "UNFINISHED",
    "Blame",
    "UpstreamError",
    "as_openai_error",
    "blames_engine",
    "count_of",
    "error_of_event",
    "error_of_status",
    "output_tokens_of",
    "prompt_tokens_of",
    "read_all",
    "read_to_end",
    "whole_of",
]

MAX_ANSWER_BYTES = 64 << 20
"""Bytes of an answer in one piece; 1 M tokens with logprobs are about as many."""
EOF_TIMEOUT_S = 0.5
"""Seconds for the end of an answer to follow its last event, so that the connection can be used again."""
FULL_RETRY_S = 1.0
"""Seconds after which an engine that is full may have room again, where it does not say: a short answer ends."""
MAX_FULL_S = 120.0
"""Seconds for which an engine that is full is asked last at most, whatever it says."""
MAX_QUOTED_CHARS = 1000
_FULL = re.compile(r"queue is full|higher priority request|waiting timeout")
"""SGLang's words for a request that it has no room for (``scheduler.py``); it says them with status 503."""
UNFINISHED = ("queued", "in_progress")
"""``status`` of a response that its engine goes on with in the background."""
_DOOR = frozenset({300, 301, 302, 303, 307, 308, 401, 403, 404, 405, 407})
"""Statuses that speak of what stands at an address, not of one request."""


class Blame(Enum):
    """Whether a replica's circuit breaker counts what went wrong."""

    REPLICA = "at once"
    IF_OTHERS_ANSWER = "once another replica answers the same request"
    REPLICA_IF_OTHERS_ANSWER = "so, and then once is enough"
    NONE = "never"


class UpstreamError(Exception):
    """A replica failed. kind: in a word. ``answer``, ``event``: what it said, where it said something, as an OpenAI client
    reads it. refused: it took the request for wrong. full_s: it has no room for another, and in how many seconds it may.
    died: before the first token its connection broke."""

    def __init__(
        self,
        kind: str,
        *,
        blame: Blame = Blame.REPLICA,
        event: bytes = b"",
        answer: tuple[int, dict[str, str], bytes] | None = None,
        refused: bool = False,
        full_s: float | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind, self.blame, self.event, self.answer = kind, blame, event, answer
        self.refused, self.full_s = refused, full_s
        self.died = False


def error_of_status(status: int, headers: Mapping[str, str], content: bytes, *, known_path: bool) -> UpstreamError:
    """An answer whose status is not 200. known_path: every engine has this endpoint."""
    said = as_openai_error(status, content)
    message, kind = str(said["error"].get("message")), f"http_{status}"
    passed = {"content-type": "application/json"}
    if "retry-after" in headers:
        passed["retry-after"] = headers["retry-after"]
    answer = (status, passed, json.dumps(said).encode())
    is_json = headers.get("content-type", "").startswith("application/json")
    if status == 429 or (status == 503 and _FULL.search(message)):
        return _full(said["error"], passed)
    if status >= 500:
        blame = Blame.IF_OTHERS_ANSWER if is_json and status not in (502, 503, 504) else Blame.REPLICA
        return UpstreamError(kind, blame=blame, answer=answer if is_json else None)
    blame = Blame.IF_OTHERS_ANSWER
    if not known_path or said["error"].get("code") == "model_not_found":
        blame = Blame.NONE
    elif status in _DOOR:
        blame = Blame.REPLICA_IF_OTHERS_ANSWER
    return UpstreamError(kind, blame=blame, answer=answer if status >= 400 else None, refused=True)


def error_of_event(error: Any, event: bytes) -> UpstreamError:
    """An error inside a stream."""
    said = error if isinstance(error, dict) else {"message": str(error)}
    if _FULL.search(str(said.get("message"))):
        return _full(said, {"content-type": "application/json"}, event)
    code = said.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 502
    whole = {"error": _with_message(said, status)}
    answer = (status, {"content-type": "application/json"}, json.dumps(whole).encode())
    if blames_engine(error):
        return UpstreamError("engine", blame=Blame.IF_OTHERS_ANSWER, event=event, answer=answer)
    return UpstreamError(f"http_{status}", blame=Blame.IF_OTHERS_ANSWER, event=event, answer=answer, refused=True)


def _full(error: dict[str, Any], headers: dict[str, str], event: bytes = b"") -> UpstreamError:
    try:
        wait_s = min(MAX_FULL_S, max(0.0, float(headers["retry-after"])))
    except (KeyError, ValueError):  # none, or a date
        wait_s = FULL_RETRY_S
    headers = {"retry-after": str(round(max(1.0, wait_s))), **headers, "x-andes-reason": "engine_full"}
    said = {**error, "type": "overloaded_error", "code": "overloaded"}
    answer = (429, headers, json.dumps({"error": said}).encode())
    return UpstreamError("full", blame=Blame.NONE, event=event, answer=answer, full_s=wait_s)


def as_openai_error(status: int, content: bytes) -> dict[str, Any]:
    """What an engine says about a failure as every OpenAI client reads it: SGLang's own object inside ``error``."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = content.decode(errors="replace").strip()[:MAX_QUOTED_CHARS]
    if isinstance(said, dict) and isinstance(said.get("error"), dict):
        return {**said, "error": _with_message(said["error"], status)}
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        return {"error": said}
    if isinstance(said, dict):
        said = said.get("error") or said.get("detail") or said  # FastAPI's, or another server's
    message = said if isinstance(said, str) else json.dumps(said)
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    return {"error": _with_message({"message": message, "type": kind, "param": None, "code": status}, status)}


def _with_message(error: dict[str, Any], status: int) -> dict[str, Any]:
    if isinstance(error.get("message"), str) and error["message"]:
        return error
    return {**error, "message": f"the engine has answered {status} without a word"}


async def read_all(answer: aiohttp.ClientResponse) -> bytes:
    """An answer in one piece. Raises :class:`UpstreamError` where it is too long."""
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamError("too long")
        parts.append(part)
    return b"".join(parts)


async def read_to_end(answer: aiohttp.ClientResponse) -> None:
    """After the last event comes the end of the answer: read it, so that the connection can be used again."""
    try:
        async with asyncio.timeout(EOF_TIMEOUT_S):
            while await answer.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, OSError):
        answer.close()


def count_of(usage: Any, name: str) -> int:
    """A count of an engine's ``usage``; 0 where it is missing or no count."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return max(0, count) if isinstance(count, int) else 0


def prompt_tokens_of(usage: Any) -> int:
    """Of OpenAI's or Anthropic's ``usage``; the latter counts what was cached apart."""
    return count_of(usage, "prompt_tokens") or (
        count_of(usage, "input_tokens") + count_of(usage, "cache_read_input_tokens")
    )


def output_tokens_of(usage: Any) -> int:
    return count_of(usage, "completion_tokens") or count_of(usage, "output_tokens")


def blames_engine(error: Any) -> bool:
    """Whether an error in a stream is the engine's fault rather than the request's."""
    code = error.get("code") if isinstance(error, dict) else None
    return not isinstance(code, int) or code >= 500


def whole_of(kind: str, content: bytes, *, form: bool) -> dict[str, Any] | None:
    """The object that an engine said in one piece; None: a list, or the text of a recording. Raises :class:`UpstreamError`
    and :class:`~andes_api.sse.GarbageError` for a page of another server, and what is no JSON."""
    if kind.startswith("text/html") or not (form or content.lstrip().startswith((b"{", b"["))):
        raise UpstreamError("garbage")
    return object_of(content) if content.startswith(b"{") else None
