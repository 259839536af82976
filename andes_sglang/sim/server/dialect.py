"""Answers in the words of SGLang 0.5.23: OpenAI's completions and chat, and its own ``/generate``."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from andes_sglang.sim.server.bodies import AnswerRequest
from andes_sglang.sim.server.choice import Choice
from andes_sglang.sim.server.generation import Answer

__all__ = ["WEIGHT_VERSION", "Chat", "Completion", "Dialect", "Generate", "dumps"]

WEIGHT_VERSION = "default"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_USAGE = (
    b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null,"reasoning_tokens":%d,'
    b'"completion_tokens_details":%b}'
)
Finish = tuple[str | None, str | int | None]


def dumps(content: Any) -> bytes:
    """Compact JSON."""
    return b"null" if content is None else _encode(content).encode()


def _event(content: Any) -> bytes:
    return b"data: %b\n\n" % dumps(content)


def _thought_apart(tokens: int) -> dict[str, int] | None:
    return {"reasoning_tokens": tokens} if tokens else None


def _weights(answer: Answer) -> dict[str, Any]:
    """Of which weights each token is."""
    one = {"version": WEIGHT_VERSION, "start": 0, "end": answer.tokens}
    return {"weight_version": WEIGHT_VERSION, "weight_versions": [one]}


class Dialect(ABC):
    """The answers to one request as they go out; ``choices`` and answers side by side, by index."""

    kind: str
    end = b"data: [DONE]\n\n"

    def __init__(self, rid: str, asked: AnswerRequest, choices: Sequence[Choice], cache_report: bool) -> None:
        self.rid = rid
        self.asked = asked
        self.choices = choices
        self._cache_report = cache_report
        self._about = {"id": rid, "object": self.kind, "created": int(time.time()), "model": asked.model}
        self._head = dumps(self._about)[:-1]

    def head(self) -> bytes:
        """The events before the first token."""
        return b""

    @abstractmethod
    def piece(self, index: int, answer: Answer, start: int) -> bytes:
        """The events for the tokens after number ``start``, and for the end if it has come."""

    @abstractmethod
    def tail(self, answers: Sequence[Answer]) -> bytes:
        """The events after all answers have ended."""

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> Any:
        """Everything at once."""

    def shed(self, message: str) -> bytes:
        """The events of a stream that is turned away."""
        error = {"object": "error", "message": message, "type": "SERVICE_UNAVAILABLE", "param": None, "code": 503}
        return _event({"error": error})

    def cut(self, message: str) -> bytes:
        """The events that end a stream in mid-answer."""
        return self.shed(message)

    def finish(self, index: int, answer: Answer) -> Finish:
        """Finish reason and what matched; nothing while it goes on."""
        if answer.aborted:
            return "abort", None
        choice = self.choices[index]
        return (choice.finish, choice.matched) if answer.done else (None, None)

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The sum over all answers; a prompt with several counts once."""
        n = self.asked.n
        prompt = sum(choice.prompt.tokens for choice in self.choices[::n])
        completion = sum(answer.tokens for answer in answers)
        cached, thought = sum(answer.cached_tokens for answer in answers[::n]), self.thought_tokens(answers)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached} if self._cache_report else None,
            "reasoning_tokens": thought,
            "completion_tokens_details": _thought_apart(thought),
        }

    def thought_tokens(self, answers: Sequence[Answer]) -> int:
        """Of all answers so far, whether they are kept out of the text or not."""
        return sum(min(answer.tokens, choice.thought) for answer, choice in zip(answers, self.choices, strict=True))

    def _usage_so_far(self, index: int, answer: Answer) -> bytes:
        choice = self.choices[index]
        prompt, thought = choice.prompt.tokens, min(answer.tokens, choice.thought)
        return _USAGE % (prompt, prompt + answer.tokens, answer.tokens, thought, dumps(_thought_apart(thought)))

    def _whole(self, choices: list[dict[str, Any]], answers: Sequence[Answer]) -> dict[str, Any]:
        return {**self._about, "choices": choices, "usage": self.usage(answers), "metadata": _weights(answers[0])}


class Completion(Dialect):
    """``/v1/completions``."""

    kind = "text_completion"

    def _chunk(self, index: int, text: str, finish: Finish, usage: bytes = b"null") -> bytes:
        return (
            b'data: %b,"choices":[{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b,'
            b'"matched_stop":%b}],"usage":%b}\n\n'
            % (self._head, index, dumps(text), dumps(finish[0]), dumps(finish[1]), usage)
        )

    def _text(self, index: int, start: int, end: int) -> str:
        choice = self.choices[index]
        text = choice.text(start, end)
        return choice.prompt.text + text if self.asked.echo and not start else text

    def piece(self, index: int, answer: Answer, start: int) -> bytes:
        usage = self._usage_so_far(index, answer) if self.asked.continuous_usage else b"null"
        return self._chunk(index, self._text(index, start, answer.tokens), self.finish(index, answer), usage)

    def tail(self, answers: Sequence[Answer]) -> bytes:
        if not self.asked.include_usage:
            return b""
        usage = {name: value for name, value in self.usage(answers).items() if value is not None}
        return _event({**self._about, "choices": [], "usage": usage})

    def whole(self, answers: Sequence[Answer]) -> Any:
        choices = []
        for k, answer in enumerate(answers):
            finish, matched = self.finish(k, answer)
            text = self._text(k, 0, answer.tokens)
            choices.append(
                {"index": k, "text": text, "logprobs": None, "finish_reason": finish, "matched_stop": matched}
            )
        return self._whole(choices, answers)


class Chat(Dialect):
    """``/v1/chat/completions``."""

    kind = "chat.completion.chunk"

    def _chunk(
        self, index: int, delta: bytes, finish: Finish = (None, None), usage: bytes = b"", thought: str | None = None
    ) -> bytes:
        return (
            b'data: %b,"choices":[{"index":%d,"delta":{"reasoning_content":%b%b},"logprobs":null,"finish_reason":%b,'
            b'"matched_stop":%b}]%b}\n\n'
            % (self._head, index, dumps(thought), delta, dumps(finish[0]), dumps(finish[1]), usage)
        )

    def piece(self, index: int, answer: Answer, start: int) -> bytes:
        events = b"" if start else self._chunk(index, b',"role":"assistant","content":""')
        usage = b',"usage":' + self._usage_so_far(index, answer) if self.asked.continuous_usage else b""
        if thought := self.choices[index].reasoning(start, answer.tokens):
            events += self._chunk(index, b"", usage=usage, thought=thought)
        if text := self.choices[index].text(start, answer.tokens):
            events += self._chunk(index, b',"content":' + dumps(text), usage=usage)
        return events

    def tail(self, answers: Sequence[Answer]) -> bytes:
        events = b"".join(self._chunk(k, b"", self.finish(k, answer)) for k, answer in enumerate(answers))
        if self.asked.include_usage:
            events += _event({**self._about, "choices": [], "usage": self.usage(answers)})
        return events

    def whole(self, answers: Sequence[Answer]) -> Any:
        choices = []
        for k, answer in enumerate(answers):
            finish, matched = self.finish(k, answer)
            text = self.choices[k].text(0, answer.tokens)
            thought = self.choices[k].reasoning(0, answer.tokens) or None
            message = {"role": "assistant", "content": text, "reasoning_content": thought}
            choices.append(
                {"index": k, "message": message, "logprobs": None, "finish_reason": finish, "matched_stop": matched}
            )
        return {**self._whole(choices, answers), "object": "chat.completion"}


class Generate(Dialect):
    """SGLang's own ``/generate``: every event holds the whole text so far."""

    kind = "generate"

    def _output(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = self.choices[index]
        reason: dict[str, Any] | None = None
        if answer.aborted:
            reason = {"type": "abort", "message": "Aborted"}
        elif answer.done and choice.finish == "length":
            reason = {"type": "length", "length": answer.tokens}
        elif answer.done:
            reason = {"type": "stop", "matched": choice.matched}
        meta: dict[str, Any] = {
            "id": self.rid if len(self.choices) == 1 else f"{self.rid}_{index}",
            "finish_reason": reason,
            "prompt_tokens": choice.prompt.tokens,
            **_weights(answer),
            "completion_tokens": answer.tokens,
            "cached_tokens": answer.cached_tokens,
        }
        if reason:
            meta["e2e_latency"] = answer.last_s - answer.job.spec.arrival_s
        return {"text": choice.text(0, answer.tokens), "output_ids": choice.ids(answer.tokens), "meta_info": meta}

    def piece(self, index: int, answer: Answer, start: int) -> bytes:  # noqa: ARG002
        output = self._output(index, answer)
        return _event({**output, "index": index} if len(self.choices) > 1 else output)

    def tail(self, answers: Sequence[Answer]) -> bytes:  # noqa: ARG002
        return b""

    def whole(self, answers: Sequence[Answer]) -> Any:
        outputs = [self._output(k, answer) for k, answer in enumerate(answers)]
        return outputs if len(outputs) > 1 else outputs[0]

    def shed(self, message: str) -> bytes:
        meta: dict[str, Any] = {
            "id": self.rid,
            "finish_reason": {"type": "abort", "status_code": 503, "message": message},
            "weight_version": WEIGHT_VERSION,
            "e2e_latency": 0.0,
            "completion_tokens": 0,
        }
        return _event({"text": "", "output_ids": [], "meta_info": meta})
