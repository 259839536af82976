"""Continuing a cut stream elsewhere from what its reader already has. Pure: requests and events in, requests and events out.

    if resumable(body, chat=True):
        rest = continued(body, True, text_of(events), tokens)       # the request for what is missing
        rewrite = Continuation(events[0], tokens).rewrite            # makes its events read as the same stream

Only where the continuation is determined by what was delivered: greedy or seeded, one choice, plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Continuation", "continued", "resumable"]

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


def continued(body: dict[str, Any], chat: bool, text: str, tokens: int) -> dict[str, Any] | None:
    """The request for the rest of the answer after ``text`` of ``tokens`` tokens; None when nothing is left to ask for."""
    rest = dict(body)
    for field in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(field), int):
            rest[field] = body[field] - tokens
            if rest[field] < 1:
                return None
    if not chat:
        if "max_tokens" not in body:
            rest["max_tokens"] = 16 - tokens
            if rest["max_tokens"] < 1:
                return None
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


class Continuation:
    """Makes the events of a continuation read as the stream they continue: its id, no second role, usage of the whole.

    first_event: of the stream; empty where none has come. tokens: those delivered before. prompt_tokens: of the request,
    where an engine has said.
    """

    def __init__(self, first_event: bytes, tokens: int, prompt_tokens: int | None = None) -> None:
        found = _ID.search(first_event)
        self._id = found[0] if found else b""
        self._begun = bool(first_event)
        self._tokens = tokens
        self._prompt_tokens = prompt_tokens

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
            event = b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        return _ID.sub(lambda _: self._id, event, count=1) if self._id else event


def _payload(event: bytes) -> dict[str, Any]:
    """What an event says; empty for a comment or the end."""
    field, _, text = event.partition(b":")
    if field != b"data" or text.lstrip().startswith(b"[DONE]"):
        return {}
    payload = json.loads(text.decode(errors="replace"))
    if not isinstance(payload, dict):
        raise ValueError(f"no object: {event[:80]!r}")
    return payload
