"""Answers in events with types, in the words of SGLang 0.5.23: OpenAI's Responses and Anthropic's Messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from andes_sglang.sim.server.bodies import AnswerRequest
from andes_sglang.sim.server.choice import Choice
from andes_sglang.sim.server.dialect import Dialect, dumps
from andes_sglang.sim.server.generation import Answer

__all__ = ["Messages", "Responses"]


def _typed(content: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(content["type"]).encode(), dumps(content))


class Responses(Dialect):
    """``/v1/responses``."""

    kind = "response"
    end = b""

    def __init__(self, rid: str, asked: AnswerRequest, choices: Sequence[Choice], cache_report: bool) -> None:
        super().__init__(rid if rid.startswith("resp_") else f"resp_{rid}", asked, choices, cache_report)
        self._sequence = 0
        self._item_id, self._thought_id = f"msg_{rid}", f"rs_{rid}"

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = _typed({"type": kind, **fields, "sequence_number": self._sequence})
        self._sequence += 1
        return event

    def _response(self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self.rid,
            "object": "response",
            "created_at": self._about["created"],
            "model": self.asked.model,
            "output": output,
            "status": status,
            "usage": usage,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        }

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}

    def _item(self, text: str, status: str) -> dict[str, Any]:
        content = [self._part(text)] if status == "completed" else []
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def head(self) -> bytes:
        """Sent before the engine has begun."""
        begun = self._response("in_progress", [], None)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def piece(self, index: int, answer: Answer, start: int) -> bytes:
        choice = self.choices[index]
        events = b""
        if not start and choice.hidden:
            events += self._event(
                "response.output_item.added", output_index=0, item=self._reasoning_item("", "in_progress")
            )
        if thought := choice.reasoning(start, answer.tokens):
            events += self._event(
                "response.reasoning_text.delta",
                item_id=self._thought_id,
                output_index=0,
                content_index=0,
                delta=thought,
            )
        if start < choice.hidden <= answer.tokens:
            thought = choice.reasoning(0, answer.tokens)
            events += self._event(
                "response.output_item.done", output_index=0, item=self._reasoning_item(thought, "completed")
            )
        where = {"item_id": self._item_id, "output_index": self._message_index}
        if start <= choice.hidden < answer.tokens or not (start or choice.hidden):
            item = self._item("", "in_progress")
            events += self._event("response.output_item.added", output_index=self._message_index, item=item)
            events += self._event("response.content_part.added", **where, content_index=0, part=self._part(""))
        if text := choice.text(start, answer.tokens):
            events += self._event("response.output_text.delta", **where, content_index=0, delta=text, logprobs=[])
        return events

    @property
    def _message_index(self) -> int:
        return int(self.choices[0].hidden > 0)

    def _reasoning_item(self, text: str, status: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}] if status == "completed" else []
        return {"id": self._thought_id, "type": "reasoning", "summary": [], "content": content, "status": status}

    def _output(self, answer: Answer) -> list[dict[str, Any]]:
        """All that the answer has in the end: of one that was cut in its thought, that alone."""
        choice, output = self.choices[0], []
        if choice.hidden:
            output.append(self._reasoning_item(choice.reasoning(0, answer.tokens), "completed"))
        if answer.tokens > choice.hidden:
            output.append(self._item(choice.text(0, answer.tokens), "completed"))
        return output

    def tail(self, answers: Sequence[Answer]) -> bytes:
        text = self.choices[0].text(0, answers[0].tokens)
        index = self._message_index
        where = {"item_id": self._item_id, "output_index": index, "content_index": 0}
        output, counts = self._output(answers[0]), self.usage(answers)
        usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": (counts["prompt_tokens_details"] or {}).get("cached_tokens", 0)},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": counts["reasoning_tokens"]},
            "total_tokens": counts["total_tokens"],
        }
        events = b""
        if answers[0].tokens > self.choices[0].hidden:
            events += self._event("response.output_text.done", **where, text=text, logprobs=[])
            events += self._event("response.content_part.done", **where, part=self._part(text))
            events += self._event("response.output_item.done", output_index=index, item=output[-1])
        status = self._status(answers[0])
        return events + self._event(f"response.{status}", response=self._response(status, output, usage))

    def whole(self, answers: Sequence[Answer]) -> Any:
        return self._response(self._status(answers[0]), self._output(answers[0]), self.usage(answers))

    def _status(self, answer: Answer) -> str:
        return "incomplete" if self.finish(0, answer)[0] == "length" else "completed"

    def shed(self, message: str) -> bytes:
        return self.head() + self.cut(message)

    def cut(self, message: str) -> bytes:  # noqa: ARG002
        """SGLang keeps the reason to itself."""
        return self._event("response.failed", response=self._response("failed", [], None))


class Messages(Dialect):
    """``/v1/messages``."""

    kind = "message"
    end = b""

    def __init__(self, rid: str, asked: AnswerRequest, choices: Sequence[Choice], cache_report: bool) -> None:
        super().__init__(f"msg_{rid}", asked, choices, cache_report)

    def _message(self, content: list[dict[str, Any]], usage: dict[str, int], **ended: Any) -> dict[str, Any]:
        return {
            "id": self.rid,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.asked.model,
            **ended,
            "usage": usage,
        }

    def _counts(self, answers: Sequence[Answer]) -> tuple[dict[str, int], dict[str, int]]:
        said = self.usage(answers)
        cached = (said["prompt_tokens_details"] or {}).get("cached_tokens", 0)
        more = {"cache_read_input_tokens": cached} if cached else {}
        return {"input_tokens": said["prompt_tokens"] - cached, **more}, {"output_tokens": said["completion_tokens"]}

    def _stop_reason(self, answer: Answer) -> str:
        return "max_tokens" if self.finish(0, answer)[0] == "length" else "end_turn"

    def piece(self, index: int, answer: Answer, start: int) -> bytes:
        events = b""
        if not start:
            usage = {**self._counts([answer])[0], "output_tokens": 0}
            events += _typed({"type": "message_start", "message": self._message([], usage)})
        choice = self.choices[index]
        if not start and choice.hidden:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            events += _typed({"type": "content_block_start", "index": 0, "content_block": block})
        if thought := choice.reasoning(start, answer.tokens):
            delta = {"type": "thinking_delta", "thinking": thought}
            events += _typed({"type": "content_block_delta", "index": 0, "delta": delta})
        if start <= choice.hidden < answer.tokens or not (start or choice.hidden):
            if choice.hidden:
                events += _typed({"type": "content_block_stop", "index": 0})
            block = {"type": "text", "text": ""}
            events += _typed({"type": "content_block_start", "index": self._text_index, "content_block": block})
        if text := choice.text(start, answer.tokens):
            delta = {"type": "text_delta", "text": text}
            events += _typed({"type": "content_block_delta", "index": self._text_index, "delta": delta})
        return events

    @property
    def _text_index(self) -> int:
        return int(self.choices[0].hidden > 0)

    def tail(self, answers: Sequence[Answer]) -> bytes:
        delta = {"stop_reason": self._stop_reason(answers[0])}
        return (
            _typed({"type": "content_block_stop", "index": int(0 < self.choices[0].hidden < answers[0].tokens)})
            + _typed({"type": "message_delta", "delta": delta, "usage": self._counts(answers)[1]})
            + _typed({"type": "message_stop"})
        )

    def whole(self, answers: Sequence[Answer]) -> Any:
        given, made = self._counts(answers)
        choice, tokens = self.choices[0], answers[0].tokens
        content: list[dict[str, Any]] = [{"type": "text", "text": choice.text(0, tokens)}]
        if choice.hidden:
            content.insert(0, {"type": "thinking", "thinking": choice.reasoning(0, tokens), "signature": ""})
        return self._message(content, {**given, **made}, stop_reason=self._stop_reason(answers[0]))

    def shed(self, message: str) -> bytes:
        start = {"type": "message_start", "message": self._message([], {"input_tokens": 0, "output_tokens": 0})}
        return _typed(start) + self.cut(message)

    def cut(self, message: str) -> bytes:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": message}}
        return _typed(error) + _typed({"type": "message_stop"})
