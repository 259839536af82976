"""Who of two writers writes what of one answer. Pure: what happened and the time go in, what is to be done comes back.

    rules = RaceRules(plan, reader, ...)
    actions = rules.begin(now_s)
    actions = rules.came(run, text, tokens, now_s)      # likewise ended, failed, refused
    actions = rules.tick(rules.next_s)                  # when nothing happens until then

A *run* is one request to one writer: for the answer from its beginning, or for what follows a prefix. Three rules:

- *Race.* Who has the first word writes; the other is cancelled.
- *Hand-over* (DiSCo, arXiv 2502.11417, section 4.3). Where another writer is to finish the answer, it is asked for what
  follows once the unread text lasts for the time that it needs: ``unread tokens >= reading speed * seconds to its first
  word``. Ours: the first writer writes on, aside, until the other's first word has come. If that is late, what lies aside is
  shown and the hand-over is off, so no hand-over lets a reader wait.
- *Rescue.* A writer that fails, or is silent while its reader runs dry, is replaced by the other, which goes on where it
  ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from andes_client.pacer import LEAD_S
from andes_client.race_history import LOCAL, REMOTE, Plan

__all__ = ["Action", "Cancel", "End", "Fail", "RaceRules", "Show", "Start"]

RACE, HAND_OVER, RESCUE = "race", "hand-over", "rescue"
"""Why a writer is asked."""
MIN_SILENCE_S = 0.5
"""Seconds without text before a writer counts as silent: engines send some tokens late, and together."""
NOTHING = "it said nothing"
MAX_HANDOVERS = 3
"""Of one answer that may be tried; each waits for twice the unread text of the one before."""


@dataclass(frozen=True)
class Start:
    """Ask ``writer`` for what follows ``prefix``, of ``tokens`` tokens. why: ``race``, ``hand-over`` or ``rescue``."""

    run: int
    writer: str
    prefix: str
    tokens: int
    why: str = RACE


@dataclass(frozen=True)
class Cancel:
    """What this run writes is not wanted any more."""

    run: int


@dataclass(frozen=True)
class Show:
    """To the reader; one piece of a stream. why: the writer was asked."""

    writer: str
    text: str
    tokens: int
    why: str = RACE


@dataclass(frozen=True)
class End:
    """The answer is complete."""

    finish_reason: str


@dataclass(frozen=True)
class Fail:
    """Neither writer can go on."""

    why: str


Action = Start | Cancel | Show | End | Fail


@dataclass
class _Run:
    writer: str
    heard_s: float
    why: str
    aside: list[Show] = field(default_factory=list)


@dataclass
class RaceRules:
    """Of one answer. reading_speed: tokens/s. takes_s(writer): seconds that it probably needs to the first word of a
    continuation. finish_by: who is to write the rest, None: who has the first word. both: False where an answer must be of
    one writer, the first of ``plan``. expected_tokens: of the whole answer, where known."""

    plan: Plan
    reading_speed: float
    takes_s: Callable[[str], float]
    finish_by: str | None = None
    both: bool = True
    expected_tokens: float = math.inf
    text: str = ""
    tokens: int = 0
    _runs: dict[int, _Run] = field(default_factory=dict)
    _count: int = 0
    _now_s: float = -math.inf
    _current: int | None = None
    _next: int | None = None  # the run that prepares to go on after ``text``
    _handing_over: bool = False
    _handovers: int = 0
    _asked: set[str] = field(default_factory=set)
    _failed: dict[str, str] = field(default_factory=dict)
    _other_s: float = math.inf
    _read_until_s: float = -math.inf
    _began_s: float = math.inf
    over: bool = False

    @property
    def next_s(self) -> float:
        """When :meth:`tick` may have something to do, infinity: not before something happens."""
        if self.over:
            return math.inf
        if self._current is None:
            return self._other_s
        if self._next is not None:
            return self._dry_s if self._runs[self._current].aside else math.inf
        return self._rescue_s()

    def begin(self, now_s: float) -> list[Action]:
        """The reader asks."""
        self._now_s = now_s
        self._other_s = now_s + self.plan.wait_s if self.both else math.inf
        return [self._start(self.plan.first), *self.tick(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        now_s = self._pass(now_s)
        if self.over or now_s < self.next_s:
            return []
        if self._current is None:
            return self._start_other()
        if self._next is not None:
            return self._stay()
        return self._prepare(handing_over=False)

    def came(self, run: int, text: str, tokens: int, now_s: float) -> list[Action]:
        """``text`` of ``tokens`` > 0 tokens from ``run``."""
        now_s = self._pass(now_s)
        if self.over or run not in self._runs:
            return []
        self._runs[run].heard_s = now_s
        actions: list[Action] = []
        if run != self._current and (self._current is None or run == self._next):
            actions += self._switch(run)
        elif self._next is not None and self._handing_over:
            self._runs[run].aside.append(self._piece(run, text, tokens))
            return self.tick(now_s)
        elif self._next is not None:  # it was silent only
            actions += self._stay()
        actions.append(self._show(self._piece(run, text, tokens)))
        return actions + self._consider(now_s)

    def ended(self, run: int, finish_reason: str, now_s: float) -> list[Action]:
        """``run`` is complete."""
        self._pass(now_s)
        if self.over or run not in self._runs:
            return []
        if run == self._next:  # it has nothing to add, the other writes on or is silent only
            self._handovers = MAX_HANDOVERS
            if not self._handing_over:
                self._failed[self._runs[run].writer] = NOTHING
            return self._stay()
        if self._current is None and not self.text and self._other_may_answer(run):
            self._failed[self._runs.pop(run).writer] = NOTHING
            return [] if self._runs else self._replace()
        actions = self._stay() if run == self._current else self._switch(run)
        self.over = True
        return [*actions, End(finish_reason)]

    def _other_may_answer(self, run: int) -> bool:
        """It is asked already, or may be."""
        other = _other(self._runs[run].writer)
        return len(self._runs) > 1 or (self.both and other not in self._failed)

    def failed(self, run: int, why: str, now_s: float) -> list[Action]:
        """``run`` will write no more."""
        self._pass(now_s)
        if self.over or run not in self._runs:
            return []
        self._failed[self._runs.pop(run).writer] = why
        if run == self._next:
            return self._stay()
        if run == self._current:  # what lies aside is lost: another goes on before it
            self._current = self._next = None
            self._handing_over = False
        return [] if self._runs else self._replace()

    def refused(self, run: int, now_s: float) -> list[Action]:
        """The writer of ``run`` is full, and will be asked again: the other need not wait any longer."""
        self._pass(now_s)
        if self.over or run not in self._runs or self._current is not None or not self.both:
            return []
        return self._start_other()

    @property
    def _dry_s(self) -> float:
        """When the reader needs further text."""
        return self._read_until_s - LEAD_S

    def _pass(self, now_s: float) -> float:
        self._now_s = max(now_s, self._now_s)
        return self._now_s

    def _start(self, writer: str, why: str = RACE) -> Start:
        self._count += 1
        self._asked.add(writer)
        self._runs[self._count] = _Run(writer, self._now_s, why)
        return Start(self._count, writer, self.text, self.tokens, why)

    def _piece(self, run: int, text: str, tokens: int) -> Show:
        return Show(self._runs[run].writer, text, tokens, self._runs[run].why)

    def _start_other(self) -> list[Action]:
        self._other_s = math.inf
        left = {LOCAL, REMOTE} - self._asked
        return [self._start(writer) for writer in left]

    def _show(self, show: Show) -> Show:
        if not self.text:
            self._began_s = self._now_s
        self.text += show.text
        self.tokens += show.tokens
        self._read_until_s = max(self._now_s, self._read_until_s) + show.tokens / self.reading_speed
        return show

    def _switch(self, run: int) -> list[Action]:
        """``run`` is the one whose text is shown, and the only one."""
        others = [other for other in self._runs if other != run]
        self._runs = {run: self._runs[run]}
        self._current, self._next, self._handing_over = run, None, False
        return [Cancel(other) for other in others]

    def _stay(self) -> list[Action]:
        """With the writer there is, whose text aside is shown."""
        assert self._current is not None  # noqa: S101
        shown: list[Action] = [self._show(show) for show in self._runs[self._current].aside]
        self._runs[self._current].aside = []
        return [*self._switch(self._current), *shown]

    def _consider(self, now_s: float) -> list[Action]:
        """A hand-over, where the unread text covers it."""
        assert self._current is not None  # noqa: S101
        wanted, writer = self.finish_by, self._runs[self._current].writer
        if not self.both or wanted in (None, writer) or wanted in self._failed or self._handovers >= MAX_HANDOVERS:
            return []
        takes_s = self.takes_s(str(wanted)) * 2**self._handovers
        twice_tokens = takes_s * self.tokens / max(now_s - self._began_s, 1e-3)
        if self._dry_s - now_s < takes_s or self.expected_tokens - self.tokens <= twice_tokens:
            return []
        self._handovers += 1
        return self._prepare(handing_over=True)

    def _prepare(self, *, handing_over: bool) -> list[Action]:
        assert self._current is not None  # noqa: S101
        start = self._start(_other(self._runs[self._current].writer), HAND_OVER if handing_over else RESCUE)
        self._next, self._handing_over = start.run, handing_over
        return [start]

    def _rescue_s(self) -> float:
        """When the other writer is asked, should nothing come before."""
        assert self._current is not None  # noqa: S101
        run = self._runs[self._current]
        other = _other(run.writer)
        if not self.both or other in self._failed:
            return math.inf
        return max(run.heard_s + MIN_SILENCE_S, self._dry_s - self.takes_s(other))

    def _replace(self) -> list[Action]:
        """After a failure that leaves no run."""
        left = [writer for writer in (REMOTE, LOCAL) if writer not in self._failed] if self.both else []
        self._other_s = math.inf
        return [self._start(left[0], RESCUE if self.text else RACE)] if left else [self._fail()]

    def _fail(self) -> Fail:
        self.over = True
        return Fail("; ".join(f"{writer}: {why}" for writer, why in self._failed.items()))


def _other(writer: str) -> str:
    return LOCAL if writer == REMOTE else REMOTE
