"""The lines of a batch's input: read, checked one by one, and what is wrong with one said with its number and field. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from andes_api.endpoints import CHAT, COMPLETION, RESPONSES, Endpoint, at_path
from andes_api.errors import ApiError
from andes_api.prompts import prompt_text
from andes_api.request_body import check_body, parse_json

__all__ = ["ENDPOINTS", "Fault", "Line", "deadline_s", "read_input", "tokens_wanted"]

ENDPOINTS = (CHAT.path, COMPLETION.path, at_path("/v1/embeddings").path, RESPONSES.path)
"""What a batch may ask for: OpenAI's list."""
KEY_CHARS = 4096
"""Of a prompt, by which lines are sorted: about a thousand tokens, which is where a shared beginning pays."""
CHARS_PER_TOKEN, USUAL_TOKENS = 4.0, 300
"""Characters per token of English text; tokens of an answer whose length is not bounded."""
MAX_WINDOW_S = 90 * 86_400.0
"""Seconds; the longest ``completion_window``."""
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Line:
    """A request of a batch. number: from 1 on. at, size: its bytes in the input. key: model and beginning of the prompt.
    tokens: of prompt and answer, estimated."""

    number: int
    custom_id: str
    at: int
    size: int
    model: Any
    key: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line."""

    number: int
    custom_id: str | None
    code: str
    message: str
    param: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in ``errors.data`` of a batch."""
        return {"code": self.code, "line": self.number, "message": self.message, "param": self.param}


def deadline_s(window: Any, now_s: float) -> float:
    """When a batch with this ``completion_window`` has to be done, Unix seconds: ``24h``, another number of s, m, h or d, or
    a moment as ISO 8601. Raises a 400."""
    text = str(window)
    length = re.fullmatch(r"(\d{1,9})([smhd])", text)
    try:
        at_s = now_s + int(length[1]) * _UNITS_S[length[2]] if length else _moment_s(text)
    except ValueError:
        raise _bad_window(
            text, "a time such as '24h', '90m' or '2d', or a moment such as '2026-12-01T06:00:00Z'"
        ) from None
    if at_s <= now_s:
        raise _bad_window(text, "a time in the future: this deadline is over")
    if at_s > now_s + MAX_WINDOW_S:
        raise _bad_window(text, f"at most {MAX_WINDOW_S / 86_400:g}d")
    return at_s


def _moment_s(text: str) -> float:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.timestamp()


def _bad_window(text: str, expected: str) -> ApiError:
    message = f"completion_window: expected {expected}; got {text[:100]!r}"
    return ApiError(400, message, param="completion_window", reason="batch", retry=False)


def read_input(
    lines: Iterable[tuple[int, bytes]],
    endpoint: Endpoint,
    check: Callable[[Mapping[str, Any]], None],
    max_requests: int,
) -> tuple[list[Line], list[Fault]]:
    """What can be run, and what cannot. lines: bytes with their offset. check: raises the ApiError of a body that is refused
    here. Raises a 400 for an input that is none as a whole."""
    good: list[Line] = []
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    number = 0
    for number, (at, content) in enumerate(lines, 1):
        if not content.strip():
            continue
        if len(good) + len(faults) >= max_requests:
            raise ApiError(400, f"the file has more than {max_requests} requests; split it", code="too_many_requests")
        read = _read_line(number, at, content, endpoint, check)
        if isinstance(read, Line) and read.custom_id in seen:
            message = (
                f"line {number}: custom_id: {read.custom_id[:100]!r} is that of line {seen[read.custom_id]} already"
            )
            read = Fault(number, read.custom_id, "duplicate_custom_id", message, "custom_id")
        if isinstance(read, Line):
            seen[read.custom_id] = number
            good.append(read)
        else:
            faults.append(read)
    if not (good or faults):
        raise ApiError(400, "the file has no request", code="empty_file")
    return good, faults


def _read_line(
    number: int, at: int, content: bytes, endpoint: Endpoint, check: Callable[[Mapping[str, Any]], None]
) -> Line | Fault:
    custom_id: str | None = None
    try:
        line = parse_json(content)
    except ApiError as error:
        return Fault(number, None, "invalid_json_line", f"line {number}: {error.message.replace('body', 'line')}")
    try:
        given = line.get("custom_id")
        custom_id = given if isinstance(given, str) else None
        if not custom_id:
            raise _wrong("custom_id", given, "a text that no other line has")
        if line.get("method") != "POST":
            raise _wrong("method", line.get("method"), "POST")
        if line.get("url") != endpoint.path:
            raise _wrong("url", line.get("url"), f"the batch's endpoint, {endpoint.path}")
        body = line.get("body")
        if not isinstance(body, dict):
            raise _wrong("body", body, "an object")
        check_body(body)
        if body.get("stream"):
            raise _wrong("body.stream", True, "none: answers of a batch come in one piece")
        check(body)
    except ApiError as error:
        return Fault(number, custom_id, error.code or "invalid_request", f"line {number}: {error.message}", error.param)
    text, counted = prompt_text(body, endpoint.prompt)
    prompt_tokens = len(text) / CHARS_PER_TOKEN if counted is None else counted
    answers = endpoint.operation != "embeddings"
    tokens = prompt_tokens + (tokens_wanted(body) if answers else 0)
    return Line(number, custom_id, at, len(content), body.get("model"), text[:KEY_CHARS], max(1, round(tokens)))


def tokens_wanted(body: Mapping[str, Any]) -> int:
    """Tokens that an answer may have, or usually has where nothing bounds it."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int) and body[name] > 0:
            return min(int(body[name]), 1_000_000)
    return USUAL_TOKENS


def _wrong(name: str, value: object, expected: str) -> ApiError:
    shown = "nothing" if value is None else repr(str(value)[:100])
    return ApiError(400, f"{name}: expected {expected}; got {shown}", param=name, retry=False)
