"""Continuing a cut stream elsewhere from what its reader already has. Pure: requests and events in, requests and events out.

    if resumable(body, chat=True):
        rest = continued(body, True, text_of(events), tokens)       # the request for what is missing
        rewrite = Continuation(events[0], tokens).rewrite            # makes its events read as the same stream

:func:`ending` ends a stream that is complete though its engine has not said so.

Only where the continuation is determined by what was delivered: greedy or seeded, one choice, plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Continuation", "StopSeam", "continued", "ending", "resumable", "text_of", "tokens_left"]

COMPLETION_TOKENS = 16
"""Tokens of an answer of ``/v1/completions`` that asks for no other number (OpenAI's)."""

_STATEFUL = (
    "logprobs", "top_logprobs", "echo", "suffix", "tools", "functions", "response_format", "json_schema", "regex", "ebnf",
    "session_params", "session_id", "best_of", "return_token_ids", "return_hidden_states", "return_routed_experts",
    "min_tokens", "input_ids", "frequency_penalty", "presence_penalty", "repetition_penalty", "stop_regex",
)  # fmt: skip
_ID = re.compile(rb'"id"\s*:\s*"[^"]*"')


def resumable(body: dict[str, Any], chat: bool) -> bool:
    """Whether a stream of this request can go on elsewhere: greedy or seeded, no grammar, nothing that needs its history.

    Penalties count the answer's own tokens, which a continuation would count as prompt; a list of token ids cannot be
    extended by text.
    """
    greedy = body.get("temperature") == 0 or body.get("top_k") == 1
    if not (greedy or body.get("seed") is not None) or body.get("n", 1) not in (1, None):
        return False
    if any(body.get(field) not in (None, False, [], 0, 0.0) for field in _STATEFUL if field != "repetition_penalty"):
        return False
    if body.get("repetition_penalty") not in (None, 1, 1.0):
        return False
    return isinstance(body.get("messages"), list) if chat else isinstance(body.get("prompt"), str)


def text_of(events: Iterable[bytes]) -> str | None:
    """The text that ``events`` delivered; None where they hold something that text cannot continue (tools, reasoning, half
    a surrogate pair, a chunk of another shape). Raises ``ValueError`` where one is no JSON object."""
    parts = []
    for event in events:
        try:
            for choice in _payload(event).get("choices") or ():
                delta = choice.get("delta") or {}
                if delta.get("tool_calls") or delta.get("reasoning_content"):
                    return None
                parts.append(choice.get("text") or delta.get("content") or "")
        except (AttributeError, TypeError):
            return None
    try:
        text = "".join(parts)
        text.encode()
    except (TypeError, UnicodeEncodeError):
        return None
    return text


def tokens_left(body: dict[str, Any], chat: bool, tokens: int) -> int | None:
    """How many tokens an answer that has ``tokens`` may still get; None where the request sets no limit."""
    fields = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    limits = [body[field] for field in fields if isinstance(body.get(field), int)]
    if not chat and "max_tokens" not in body:
        limits = [COMPLETION_TOKENS]
    return max(0, limits[0] - tokens) if limits else None


def continued(body: dict[str, Any], chat: bool, text: str, tokens: int) -> dict[str, Any] | None:
    """The request for the rest of the answer after ``text`` of ``tokens`` tokens; None when nothing is left to ask for."""
    if tokens_left(body, chat, tokens) == 0:
        return None
    rest = dict(body)
    for field in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(field), int):
            rest[field] = max(1, body[field] - tokens)
    if not chat:
        rest.setdefault("max_tokens", COMPLETION_TOKENS - tokens)
        rest["prompt"] = body["prompt"] + text
        return rest
    messages = list(body["messages"])
    last = messages[-1] if messages else None
    if body.get("continue_final_message") and isinstance(last, dict) and isinstance(last.get("content"), str):
        messages[-1] = {**last, "content": last["content"] + text}
    else:
        messages.append({"role": "assistant", "content": text})
    rest["messages"] = messages
    rest["continue_final_message"] = True
    return rest


class StopSeam:
    """Finds a stop string of ``body`` that begins in the ``text`` delivered before a move and ends after it: no engine sees
    it whole."""

    def __init__(self, body: dict[str, Any], text: str) -> None:
        given = body.get("stop")
        stops = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        self._stops = [stop for stop in stops if isinstance(stop, str) and stop]
        self._keep = bool(body.get("no_stop_trim") or body.get("include_stop_str_in_output"))
        reach = max(map(len, self._stops), default=1) - 1
        self._before, self._after, self._reach = text[-reach:] if reach else "", "", reach

    def find(self, text: str) -> tuple[int, str] | None:
        """Where the answer ends in ``text``, which follows (characters), and the stop string; None where it goes on."""
        if not self._before or len(self._after) >= self._reach:
            return None
        had, seam = len(self._after), len(self._before)
        self._after += text
        joined = self._before + self._after
        found = []
        for stop in self._stops:
            at = joined.find(stop, max(0, seam - len(stop) + 1))
            if 0 <= at < seam:
                found.append((at + len(stop), stop))
        if not found:
            return None
        end, stop = min(found)
        return max(0, end - seam - had) if self._keep else 0, stop


class Continuation:
    """Makes the events of a continuation read as the stream they continue: its id, no second role, usage of the whole.

    first_event: of the stream; empty where none has come. tokens: those delivered before. prompt_tokens: of the request,
    where an engine has said. seam: where a stop string may lie across the move. ``stopped``: it did, and the answer ends with
    the event that was rewritten last.
    """

    def __init__(
        self, first_event: bytes, tokens: int, prompt_tokens: int | None = None, seam: StopSeam | None = None
    ) -> None:
        found = _ID.search(first_event)
        self._id = found[0] if found else b""
        self._begun = bool(first_event)
        self._tokens = tokens
        self._prompt_tokens = prompt_tokens
        self._seam = seam
        self.stopped = False

    def rewrite(self, event: bytes) -> bytes:
        """``event`` as the client should see it; empty where it must not. Raises ``ValueError`` for no JSON
        object."""
        payload = _payload(event)
        if not payload:
            return event
        choices = payload.get("choices") or [{}]
        delta = choices[0].get("delta") or {}
        if self._begun and delta.get("role") and not delta.get("content"):
            return b""
        usage = payload.get("usage")
        if usage:
            usage["completion_tokens"] = (usage.get("completion_tokens") or 0) + self._tokens
            prompt = (
                (usage.get("prompt_tokens") or 0) - self._tokens if self._prompt_tokens is None else self._prompt_tokens
            )
            usage["prompt_tokens"] = max(0, prompt)
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        self._stop(choices[0])
        if usage or self.stopped:
            event = b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        return _ID.sub(lambda _: self._id, event, count=1) if self._id else event

    def _stop(self, choice: dict[str, Any]) -> None:
        """End ``choice`` where a stop string lies across the move."""
        delta = choice.get("delta")
        said, name = (delta, "content") if isinstance(delta, dict) else (choice, "text")
        text: Any = said.get(name)
        found = self._seam.find(text) if self._seam is not None and isinstance(text, str) else None
        if found is not None:
            self.stopped = True
            said[name] = text[: found[0]]
            choice["finish_reason"] = "stop"
            if "matched_stop" in choice:
                choice["matched_stop"] = found[1]


def ending(first_event: bytes, chat: bool, finish_reason: str | None, usage: dict[str, Any] | None) -> list[bytes]:
    """The events that end the stream that ``first_event`` begins: why it finished and its usage, where given, and ``[DONE]``.
    Raises ``ValueError`` where ``first_event`` is no JSON object."""
    payload = _payload(first_event)
    about: dict[str, Any] = {name: payload[name] for name in ("id", "object", "created", "model") if name in payload}
    chunks: list[dict[str, Any]] = []
    if finish_reason is not None:
        said: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        chunks.append({**about, "choices": [choice]})
    if usage is not None:
        chunks.append({**about, "choices": [], "usage": usage})
    encoded = [json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() for chunk in chunks]
    return [b"data: " + data + b"\n\n" for data in (*encoded, b"[DONE]")]


def _payload(event: bytes) -> dict[str, Any]:
    """What an event says; empty for a comment or the end."""
    field, _, text = event.partition(b":")
    if field != b"data" or text.lstrip().startswith(b"[DONE]"):
        return {}
    payload = json.loads(text.decode(errors="replace"))
    if not isinstance(payload, dict):
        raise ValueError(f"no object: {event[:80]!r}")
    return payload
