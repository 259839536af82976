"""An answer whose tools run here: calls are withheld and run, their results appended, and it goes on as one stream.

The only room that imports andes-client, and only where the settings name tools.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from andes_api.metrics import GatewayMetrics
from andes_api.sse import Event, GarbageError, payload_of
from andes_api.stream import Stream
from andes_api.tool_times import ToolTimes
from andes_api.tools import ToolSettings
from andes_api.upstream_answer import count_of

if TYPE_CHECKING:
    from andes_client.process import ToolResult
    from andes_client.tools import ToolRunner

__all__ = ["ToolRounds", "added"]

MAX_CALLS = 16
"""Of one round; further ones fail, and the model is told (our choice)."""
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
"""What every tool sees: nothing of this process's own environment, which holds keys."""
_LIMITS = ("max_tokens", "max_completion_tokens")
_ENDS = ("tool_calls", "stop", "function_call")
"""Finish reasons of an answer that made its calls whole; what is cut by its length did not."""


class ToolRounds:
    """Of one stream. A round is one request to an engine: ``take`` its events, then ask for the ``next_body``.

    slots: of processes at a time, in the whole gateway. times: that tools have taken here. most: rounds; in the last one the
    model may call no more.
    """

    def __init__(
        self, stream: Stream, metrics: GatewayMetrics, slots: asyncio.Semaphore, *, times: ToolTimes, most: int
    ) -> None:
        self.body = stream.body
        self.restartable = True
        """Nothing of this round has been shown: another replica may write it once more."""
        self._stream, self._metrics, self._slots, self._times, self._most = stream, metrics, slots, times, most
        self._round = 1
        self._usage: dict[str, Any] = {}  # of the rounds before
        self._calls = self._calling = False  # the model has begun a call; the round has ended with them
        self._role = False
        self._text = ""
        self._id: str | None = None
        self._cut = asyncio.Event()
        self._expect_return()
        self._runner = self._new_runner()

    def _new_runner(self) -> ToolRunner:
        from andes_client.tools import ToolRunner

        tools = {name: _tool_of(settings) for name, settings in self._stream.tools.items()}
        return ToolRunner(tools, most_calls=MAX_CALLS, slots=self._slots)

    def _expect_return(self) -> None:
        """The engine of this round is told when the conversation goes on, should the model call a tool."""
        calls = self._round < self._most and self.body.get("tool_choice") != "none"
        self._stream.returns_s = self._times.expected_s(self._stream.tools) if calls else None

    def take(self, batch: list[Event]) -> list[Event]:
        """``batch`` as the caller should see it: one answer, without calls. Feeds the tools. Raises :class:`GarbageError`."""
        return [self._one(event, tokens) for event, tokens in batch]

    def _one(self, event: bytes, tokens: int) -> Event:
        if not event.startswith(b"data:"):
            return event, tokens
        if self._calling:  # what follows the finish reason of a round is not the end of the answer
            return b"", 0
        if event[5:].lstrip().startswith(b"[DONE]"):
            return event, tokens
        payload = payload_of(event)
        try:
            self._runner.feed(payload)
        except ValueError as error:
            raise GarbageError(str(error)) from error
        choice, delta = _first(payload)
        changed = self._withhold_calls(choice, delta)
        if self._calling or (choice and not self._shows(choice, delta)):
            self._stream.receipt.think(tokens)  # its clock waits for what comes before the first word
            return b"", 0
        changed |= self._as_one(payload)
        return (b"data: " + orjson.dumps(payload) + b"\n\n" if changed else event), tokens

    def _withhold_calls(self, choice: dict[str, Any], delta: dict[str, Any]) -> bool:
        """Whether something was left out."""
        calls = delta.pop("tool_calls", None)
        self._calls = self._calls or bool(calls)
        if self._calls and choice.get("finish_reason") in _ENDS:
            self._calling = self._round < self._most
            choice["finish_reason"] = "stop"  # where it may call no more
            return True
        return calls is not None

    def _shows(self, choice: dict[str, Any], delta: dict[str, Any]) -> bool:
        """Whether there is something to see that has not been seen."""
        seen = {name for name, value in delta.items() if value}
        if self._role:
            seen.discard("role")
        self._role = self._role or "role" in seen
        if isinstance(delta.get("content"), str):
            self._text += delta["content"]
        self.restartable = self.restartable and not seen - {"role"}
        return bool(seen or choice.get("finish_reason"))

    def _as_one(self, payload: dict[str, Any]) -> bool:
        """Make ``payload`` read as a part of one answer; whether that changed it."""
        changed = False
        if self._id is None:
            self._id = payload.get("id")
        elif payload.get("id") != self._id:
            payload["id"], changed = self._id, True
        if self._usage and isinstance(payload.get("usage"), dict):
            payload["usage"], changed = added(self._usage, payload["usage"]), True
        return changed

    def again(self) -> None:
        """This round is written once more: another replica begins it from its start."""
        self._runner.again()
        self._text, self._calls = "", False
        self._stream.tokens = self._stream.earlier_tokens

    async def next_body(self) -> dict[str, Any] | None:
        """After a round: the request for the next one, once its tools have ended; None when the answer is complete."""
        stream = self._stream
        if self._round > 1:
            stream.later_prompt_tokens += count_of(stream.usage, "prompt_tokens")
        stream.usage = self._usage = added(self._usage, stream.usage or {})
        stream.earlier_tokens = stream.tokens
        if not self._calling:
            return None
        ended_s = time.monotonic()
        results = await self._results()
        for result in results:
            self._note(result)
        now_s = time.monotonic()
        self._times.learn(stream.tools.keys() & {result.name for result in results}, now_s - ended_s)
        stream.receipt.tool_ran(ended_s, now_s)
        self._round += 1
        self.body = self._with_results(results)
        self._calls = self._calling = False
        self.restartable, self._text = True, ""
        self._expect_return()
        self._runner = self._new_runner()
        return self.body

    async def _results(self) -> list[ToolResult]:
        """None once :meth:`cut`."""
        results, cut = asyncio.ensure_future(self._runner.results()), asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({results, cut}, return_when=asyncio.FIRST_COMPLETED)
            return results.result() if results.done() else []
        finally:
            results.cancel()
            cut.cancel()

    def _note(self, result: ToolResult) -> None:
        name = result.name if result.name in self._stream.tools else "other"
        self._metrics.tool_calls.labels(name, "done" if result.error is None else "failed").inc()
        said = {"name": result.name, "round": self._round, "waited_s": round(result.waited_s, 4)}
        self._stream.ran.append(said if result.error is None else {**said, "error": result.error})

    def _with_results(self, results: list[ToolResult]) -> dict[str, Any]:
        calls = [
            {
                "id": result.id,
                "type": "function",
                "function": {"name": result.name, "arguments": json.dumps(result.arguments)},
            }
            for result in results
        ]
        said = {"role": "assistant", "content": self._text or None, "tool_calls": calls}
        turn = json.dumps([said, *(result.message() for result in results)], ensure_ascii=False)
        messages = [*self.body["messages"], *json.loads(turn.encode(errors="replace"))]  # half characters are none
        body = {**self.body, "messages": messages}
        if self._round >= self._most:
            body["tool_choice"] = "none"
        elif body.get("tool_choice") not in (None, "auto", "none"):
            body["tool_choice"] = "auto"  # it has called what it had to
        first = self._stream.body
        for limit in _LIMITS:
            if isinstance(first.get(limit), int):
                body[limit] = max(1, first[limit] - self._stream.tokens)
        return body

    def cut(self) -> None:
        """What waits for tools waits no longer."""
        self._cut.set()

    async def close(self) -> None:
        """End the tools at once."""
        await self._runner.close()


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Usage of both: every number the sum, whatever else as the last says it."""
    sums: dict[str, Any] = {**one, **{name: value for name, value in other.items() if value is not None}}
    for name in one.keys() & other.keys():
        first, then = one[name], other[name]
        if isinstance(first, dict) and isinstance(then, dict):
            sums[name] = added(first, then)
        elif isinstance(first, int | float) and isinstance(then, int | float):
            sums[name] = first + then
    return sums


def _first(payload: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first choice of a chunk and what it brings; empty where there is none."""
    choices = payload.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    return choice if isinstance(choice, dict) else {}, delta if isinstance(delta, dict) else {}


def _tool_of(settings: ToolSettings) -> Any:
    from andes_client.process import Tool

    return Tool(
        settings.command, settings.argument, settings.statements, settings.timeout_s, settings.memory_bytes,
        settings.output_bytes, settings.user, ENVIRONMENT | settings.environment, lazy=settings.lazy,
    )  # fmt: skip
