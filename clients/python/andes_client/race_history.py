"""How long two writers took to their first words, and what a race plans by it. Pure: times are arguments.

After DiSCo (arXiv 2502.11417, section 4): the time of a server to its first token says little about the prompt and much
about its load, so it is learned as a distribution F; that of a device grows with the prompt, so it is learned as seconds a
token. With a share ``b`` of all prompt tokens that the device may process, and ``a = min(b, 5 %)`` of it kept for the tail,
the device

- begins at once where the prompt has at most ``l`` tokens, with ``l`` the largest length for which prompts of at most ``l``
  tokens hold at most ``(b - a) / (1 - a)`` of all prompt tokens;
- else begins after ``min(F^-1(1 - a), first_token_s - d)``, with ``d`` the device's own time to a first word. The second
  term is ours: a reader should not wait longer than they expect to where a device could prevent it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["LOCAL", "REMOTE", "History", "Plan", "estimate_tokens", "quantile"]

LOCAL, REMOTE = "local", "remote"
REMEMBERED = 200
"""Requests of each writer that count: as many as show the tail and are soon forgotten (our choice)."""
MIN_SAMPLES = 8
"""Fewer say nothing of a tail."""
TAIL = 0.05
"""Share of the server's answers, the slowest, that the device guards against."""
OVERHEAD_TOKENS = 16
"""A device takes as long over an empty prompt as over so many tokens (our choice)."""


def estimate_tokens(characters: int) -> int:
    """Of a text of this length."""
    return max(1, round(characters / 4))


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed. They are not empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Plan:
    """first: who begins at once. wait_s: seconds after which the other begins too."""

    first: str
    wait_s: float


@dataclass
class History:
    """Of one pair of writers, over many requests. share: of all prompt tokens, that the device may process."""

    share: float = 0.3
    _server_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _device_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # a token of prompt
    _prompts: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def asked(self, prompt_tokens: int) -> None:
        """A request of this length was made."""
        self._prompts.append(prompt_tokens)

    def first_words(self, writer: str, prompt_tokens: int, seconds: float) -> None:
        """``writer`` took ``seconds`` to its first words; or had none after as many and was not waited for any longer."""
        if writer == REMOTE:
            self._server_s.append(seconds)
        else:
            self._device_s.append(seconds / (prompt_tokens + OVERHEAD_TOKENS))

    def takes_s(self, writer: str, prompt_tokens: int) -> float | None:
        """Seconds to its first words that ``writer`` does not exceed nine times in ten; None: not known."""
        if writer == REMOTE:
            return quantile(self._server_s, 0.9) if self._server_s else None
        return quantile(self._device_s, 0.9) * (prompt_tokens + OVERHEAD_TOKENS) if self._device_s else None

    def plan(self, prompt_tokens: int, first_token_s: float) -> Plan:
        """first_token_s: when the reader expects the first word."""
        tail = min(self.share, TAIL)
        if prompt_tokens <= self._short_tokens((self.share - tail) / (1 - tail) if tail < 1 else 1.0):
            server_s = self.takes_s(REMOTE, prompt_tokens) or 0.0
            return Plan(LOCAL, max(self.takes_s(LOCAL, prompt_tokens) or 0.0, first_token_s - server_s))
        wait_s = max(0.0, first_token_s - (self.takes_s(LOCAL, prompt_tokens) or 0.0))
        if len(self._server_s) >= MIN_SAMPLES:
            wait_s = min(wait_s, quantile(self._server_s, 1 - tail))
        return Plan(REMOTE, wait_s)

    def _short_tokens(self, share: float) -> float:
        """The largest length of those seen for which prompts up to it hold at most ``share`` of all their tokens."""
        if len(self._prompts) < MIN_SAMPLES:
            return math.inf if share >= 1 else 0.0
        left, longest, ordered = share * sum(self._prompts) + 1e-9, 0, sorted(self._prompts)
        for k, tokens in enumerate(ordered):
            left -= tokens
            if left < 0:
                break
            if k + 1 == len(ordered) or ordered[k + 1] > tokens:  # all of this length fit
                longest = tokens
        return longest
