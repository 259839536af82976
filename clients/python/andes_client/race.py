"""A second device: one answer by two writers, the nearer of which begins where the other is late or gone.

    raced = race(on_device, client, local_model="smollm2", remote_model="llama-70b", allow_other_model=True)
    async with raced.stream("What is QoE?", reading_speed=8) as answer:
        async for text in answer:
            print(text, end="", flush=True)
    print(answer.experience, answer.parts, answer.cost)

When who begins is planned by :mod:`andes_client.race_history`; who goes on is decided by :mod:`andes_client.race_rules`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from andes_client.answer import WORDS, AsyncAnswer, InterruptedAnswerError
from andes_client.client import RESERVED, Messages, list_of
from andes_client.experience import Experience, Timeline, count_tokens
from andes_client.pacer import Pacer
from andes_client.race_history import LOCAL, REMOTE, History, Plan, estimate_tokens
from andes_client.race_rules import Action, Cancel, End, Fail, RaceRules, Show, Start
from andes_client.reader import Reader
from andes_client.writers import LIMITS, Request, Source, Writer, writer_of

__all__ = ["Cost", "Part", "Race", "RacedAnswer", "race"]


NOT_RACED = ("tools", "tool_choice", "functions", "response_format", "logprobs", "on_chunk", "on_wait")
"""Options of what is more than one text, and of the server alone."""


@dataclass(frozen=True)
class Part:
    """Characters ``start`` to ``end`` of the text shown are ``model``'s, which ran at ``writer``: ``local`` or ``remote``.
    why: it wrote them: ``race``, ``hand-over``, or ``rescue`` where the other failed or was silent too long."""

    writer: str
    model: str
    start: int
    end: int
    why: str


@dataclass(frozen=True)
class Cost:
    """Tokens. local, remote: that each made, also those that were not shown. spared: of the answer, less those that the
    fleet made for it; negative where the fleet made more."""

    local: int
    remote: int
    spared: int


def race(
    local: Source,
    remote: Source,
    *,
    local_model: str | None = None,
    remote_model: str | None = None,
    wait_s: float | None = None,
    finish_by: str | None = None,
    allow_other_model: bool | Collection[str] = False,
    share: float = 0.3,
    max_wait_s: float = 60.0,
) -> Race:
    """Two writers for every answer.

    local, remote: an ``openai.AsyncOpenAI``, an :class:`~andes_client.client.AsyncAndesClient`, or a function of the messages
    that yields text and goes on with a last message of the assistant. local_model, remote_model: names to ask for; a
    function's own name by default.
    wait_s: seconds after which the device begins, while the server has said nothing; None: learned, short prompts at once.
    share: of all prompt tokens, how many the device may process because they are short.
    finish_by: ``"local"`` spares the fleet the rest of an answer, ``"remote"`` has the better model write it; None: who has
    the first word.
    allow_other_model: whether an answer may hold the words of either model: for all, or for these classes. For others, the
    server alone answers. max_wait_s: seconds that a full server is waited for, where it says when to come back.
    Raises ``ValueError`` naming argument and value.
    """
    _check_seconds("wait_s", wait_s)
    _check_seconds("max_wait_s", max_wait_s)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"share must be a number from 0 to 1, got {share!r}")
    if finish_by not in (None, LOCAL, REMOTE):
        raise ValueError(f"finish_by must be 'local', 'remote' or None, got {finish_by!r}")
    if isinstance(allow_other_model, str):
        raise ValueError(f"allow_other_model must be True, False or a list of classes, got {allow_other_model!r}")
    writers = {
        LOCAL: writer_of(local, local_model, LOCAL, 0.0),
        REMOTE: writer_of(remote, remote_model, REMOTE, max_wait_s),
    }
    names = {side: writer.model for side, writer in writers.items()}
    if not allow_other_model and names[LOCAL] != names[REMOTE]:
        raise ValueError(
            f"allow_other_model must be True, or name classes: {names[LOCAL]!r} would write for {names[REMOTE]!r}"
        )
    allowed = names[LOCAL] == names[REMOTE] or allow_other_model
    return Race(writers, History(share), wait_s=wait_s, finish_by=finish_by, allowed=allowed)


class Race:
    """Made by :func:`race`. ``history``: of all its answers."""

    def __init__(
        self,
        writers: Mapping[str, Writer],
        history: History,
        *,
        wait_s: float | None,
        finish_by: str | None,
        allowed: bool | Collection[str],
    ) -> None:
        self.history = history
        self._writers = writers
        self._wait_s = wait_s
        self._finish_by = finish_by
        self._allowed = allowed

    def stream(
        self,
        messages: Messages,
        *,
        reading_speed: float | None = None,
        first_token_s: float | None = None,
        klass: str | None = None,
        expected_tokens: int | None = None,
        pace: bool = False,
        **options: Any,
    ) -> RacedAnswer:
        """As :meth:`AndesClient.stream <andes_client.client.AndesClient.stream>`, without a model, and to be used in an
        ``async with``. options: of chat completions, for both writers."""
        for name in (*RESERVED, "model"):
            if name in options:
                raise ValueError(f"{name} cannot be given: stream() streams one answer, race() has the models")
        for name in NOT_RACED:
            if options.get(name):
                raise ValueError(f"{name} cannot be raced: ask the server")
        reader = Reader(reading_speed, first_token_s, klass, expected_tokens)
        both = self._allowed if isinstance(self._allowed, bool) else klass in self._allowed
        return RacedAnswer(self, list_of(messages), reader, options, both=both, pace=pace)

    def plan(self, prompt_tokens: int, reader: Reader) -> Plan:
        if self._wait_s is not None:
            return Plan(REMOTE, self._wait_s)
        assert reader.first_token_s is not None  # noqa: S101
        return self.history.plan(prompt_tokens, reader.first_token_s)


class RacedAnswer:
    """Iterate over it for the text, within ``async with``. ``parts``, ``cost`` and ``experience`` are whole at its end.
    Raises :class:`~andes_client.answer.InterruptedAnswerError` where neither writer can go on."""

    def __init__(
        self,
        of: Race,
        messages: Sequence[Mapping[str, Any]],
        reader: Reader,
        options: Mapping[str, Any],
        *,
        both: bool,
        pace: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reader = reader.told({})
        self.parts: list[Part] = []
        self.finish_reason: str | None = None
        self._asked, self._race, self._messages, self._options = reader, of, messages, options
        self._pace, self._clock = pace, clock
        self._prompt_tokens = estimate_tokens(sum(len(str(message.get("content") or "")) for message in messages))
        limits = [options[name] for name in LIMITS if isinstance(options.get(name), int)]
        self._rules = RaceRules(
            of.plan(self._prompt_tokens, self.reader) if both else Plan(REMOTE, math.inf),
            self._speed, self._takes_s, of._finish_by, both=both,
            expected_tokens=min([*limits, reader.expected_tokens or math.inf]),
        )  # fmt: skip
        self._made = {LOCAL: 0, REMOTE: 0}
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those of runs that are cancelled too, until they are over
        self._open: dict[int, tuple[Start, float]] = {}
        self._out: asyncio.Queue[Show | End | Fail] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        self._pieces: list[str] = []
        self._begun: dict[str, AsyncAnswer] = {}  # from the beginning, by writer
        self._timeline: Timeline | None = None

    @property
    def text(self) -> str:
        """All that has been shown so far."""
        return "".join(self._pieces)

    @property
    def experience(self) -> Experience:
        """What the reader got; while the answer comes, so far."""
        if self._timeline is None:
            return Timeline(0.0).experience(first_token_s=0.0, reading_speed=self._speed)
        begun = self._begun.get(self.parts[0].writer) if self.parts else None
        thought_s = 0.0 if begun is None else begun.thought_s
        return self._timeline.experience(
            first_token_s=self._first_token_s + thought_s, reading_speed=self._speed,
            tokens=self._rules.tokens if self.finish_reason else None,
        )  # fmt: skip

    @property
    def cost(self) -> Cost:
        return Cost(self._made[LOCAL], self._made[REMOTE], self._rules.tokens - self._made[REMOTE])

    async def __aenter__(self) -> RacedAnswer:
        now_s = self._clock()
        self._timeline = Timeline(now_s)
        self._race.history.asked(self._prompt_tokens)
        self._do(self._rules.begin(now_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        if self._timeline is None:
            raise RuntimeError("a raced answer begins with its async with")
        pacer = Pacer(self._speed) if self._pace else None
        while isinstance(said := await self._out.get(), Show):
            for text in WORDS.findall(said.text) if pacer else [said.text]:
                tokens = count_tokens(text) if pacer else said.tokens
                if pacer:
                    now_s = self._clock()
                    await asyncio.sleep(max(0.0, pacer.show_at(now_s, tokens) - now_s))
                self._shown(replace(said, text=text, tokens=tokens))
                yield text
        if isinstance(said, Fail):
            raise InterruptedAnswerError(said.why, self.text, None)
        self.finish_reason = said.finish_reason

    async def close(self) -> None:
        """Hang up on both."""
        self._rules.over = True
        if self._timer is not None:
            self._timer.cancel()
        for run in list(self._runs):
            self._cancel(run)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _speed(self) -> float:
        assert self.reader.reading_speed is not None  # noqa: S101
        return self.reader.reading_speed

    @property
    def _first_token_s(self) -> float:
        assert self.reader.first_token_s is not None  # noqa: S101
        return self.reader.first_token_s

    def _takes_s(self, writer: str) -> float:
        """Of a continuation: its prompt is the text as well."""
        tokens = self._prompt_tokens + self._rules.tokens
        known_s = self._race.history.takes_s(writer, tokens)
        return self._first_token_s if known_s is None else known_s

    def _shown(self, show: Show) -> None:
        start = self.parts[-1].end if self.parts else 0
        model = self._race._writers[show.writer].model
        part = Part(show.writer, model, start, start + len(show.text), show.why)
        if self.parts and self.parts[-1].writer == show.writer:
            self.parts[-1] = replace(self.parts[-1], end=part.end)
        else:
            self.parts.append(part)
        self._pieces.append(show.text)
        assert self._timeline is not None  # noqa: S101
        self._timeline.show(self._clock(), show.tokens)

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._open[action.run] = action, self._clock()
                self._runs[action.run] = task = asyncio.ensure_future(self._write(action))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(action, Cancel):
                self._cancel(action.run)
            else:
                self._out.put_nowait(action)
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self._rules.next_s - self._clock()
        if wait_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._tick)

    def _tick(self) -> None:
        self._do(self._rules.tick(self._clock()))

    def _cancel(self, run: int) -> None:
        """A run that has said nothing takes longer than it has taken: that is known of it."""
        self._note(run)
        self._runs.pop(run).cancel()

    def _note(self, run: int) -> None:
        """Once a run: how long its first words took."""
        if (opened := self._open.pop(run, None)) is not None:
            start, began_s = opened
            self._race.history.first_words(start.writer, self._prompt_tokens + start.tokens, self._clock() - began_s)

    def _opened(self, answer: AsyncAnswer, start: Start) -> None:
        """The server's headers say what holds where the caller has said nothing."""
        if not start.prefix:
            self._begun[start.writer] = answer
        if start.writer == REMOTE and not self._pieces:
            self.reader = answer.reader
            self._rules.reading_speed = self._speed

    async def _write(self, start: Start) -> None:
        request = Request(
            self._messages, start.prefix, start.tokens, self._asked, self._options,
            on_wait=lambda *_: self._do(self._rules.refused(start.run, self._clock())),
            on_open=lambda answer: self._opened(answer, start),
        )  # fmt: skip
        if request.tokens_left is not None and request.tokens_left <= 0:
            self._do(self._rules.ended(start.run, "length", self._clock()))
            return
        pieces = self._race._writers[start.writer].write(request)
        try:
            async for piece in pieces:
                self._note(start.run)
                self._made[start.writer] += piece.tokens
                if piece.text:
                    self._do(self._rules.came(start.run, piece.text, piece.tokens, self._clock()))
                else:
                    self._do(self._rules.ended(start.run, piece.finish_reason or "stop", self._clock()))
        except Exception as error:  # of any kind: a function's own, a network's
            self._open.pop(start.run, None)
            why = str(error) or type(error).__name__
            self._do(self._rules.failed(start.run, why, self._clock()))
        finally:
            self._runs.pop(start.run, None)
            await pieces.aclose()  # type: ignore[attr-defined]


def _check_seconds(name: str, value: object) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf
    ):
        raise ValueError(f"{name} must be seconds from 0, got {value!r}")
