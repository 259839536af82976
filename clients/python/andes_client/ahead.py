"""Calls of pure tools, run before they are asked for: agents repeat themselves (PASTE, arXiv 2603.18897).

    ahead = Ahead(NextCalls())
    for each answer of the conversation:
        runner = ToolRunner(tools, ahead=ahead)
        ...
    await ahead.close()

After the calls of an answer, the call that has most often followed them runs in a process of its own, while the model reads
the results and writes. Its result is used where the model asks for the same call, name and arguments; otherwise it is thrown
away, and nothing but its time was spent. Only tools that say they are ``pure`` run so: a guess must not have an effect.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from andes_client.process import Tool, ToolCall, ToolResult
from andes_client.toolstream import Call, Started

__all__ = ["Ahead", "NextCalls", "Predictor"]

KeyedCall = tuple[str, str]
"""A tool's name, and its arguments as JSON with sorted names."""


class Predictor(Protocol):
    """What comes next in a conversation."""

    def learn(self, before: KeyedCall | None, call: KeyedCall) -> None:
        """``call`` has followed ``before``; None: it was the first."""

    def guess(self, before: KeyedCall | None) -> KeyedCall | None:
        """The call that will follow; None where that is not worth a guess."""


class NextCalls:
    """The call that has followed most often, of equals the latest. One may serve many conversations.

    least: how often it must have followed. least_share: of all that has followed. most: calls that are remembered, the least
    recently used forgotten.
    """

    def __init__(self, *, least: int = 1, least_share: float = 0.5, most: int = 10_000) -> None:
        self._least, self._least_share, self._most = least, least_share, most
        self._after: OrderedDict[KeyedCall | None, Counter[KeyedCall]] = OrderedDict()

    def learn(self, before: KeyedCall | None, call: KeyedCall) -> None:
        followed = self._after.setdefault(before, Counter())
        self._after.move_to_end(before)
        followed[call] = followed.pop(call, 0) + 1  # the latest comes last
        if len(followed) > self._most:
            del followed[next(iter(followed))]
        if len(self._after) > self._most:
            self._after.popitem(last=False)

    def guess(self, before: KeyedCall | None) -> KeyedCall | None:
        followed = self._after.get(before)
        if not followed:
            return None
        times, _, call = max((times, order, call) for order, (call, times) in enumerate(followed.items()))
        return call if times >= self._least and times / followed.total() >= self._least_share else None


class Ahead:
    """Of one conversation. hits, misses: guesses that were asked for, and that were not; saved_s: seconds that the callers of
    hits did not wait.

    One guess runs at a time, and ends at the latest when the next answer's calls have ended.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._before: KeyedCall | None = None
        self._guess: ToolCall | None = None
        self.hits = self.misses = 0
        self.saved_s = 0.0

    def expected(self, name: str) -> ToolCall | None:
        """The call that runs ahead, if it is one of ``name``."""
        return self._guess if self._guess is not None and self._guess.started.name == name else None

    async def called(self, results: Sequence[ToolResult], tools: Mapping[str, Tool]) -> None:
        """An answer has made these calls: learn from them, and run what will follow."""
        if not results:
            return
        if self._guess is not None:
            hit = next((result for result in results if result.ahead), None)
            self.hits += hit is not None
            self.misses += hit is None
            if hit is not None:
                self.saved_s += max(0.0, (await self._guess.result).waited_s - hit.waited_s)
        await self.close()
        for result in results:
            if result.error is None:
                call = result.name, _canonical(result.arguments)
                self._predictor.learn(self._before, call)
                self._before = call
        self._run(self._predictor.guess(self._before), tools)

    async def close(self) -> None:
        """End what runs ahead."""
        guess, self._guess = self._guess, None
        if guess is not None:
            await guess.close()

    def _run(self, guess: KeyedCall | None, tools: Mapping[str, Tool]) -> None:
        name, arguments = guess or ("", "")
        if name in tools and tools[name].pure:
            self._guess = ToolCall(Started(Call(0, 0), "ahead", name), tools[name])
            self._guess.finish(json.loads(arguments))


def _canonical(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True)
