"""What the reader of one answer expects, and the headers that tell a gateway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["DEFAULT_FIRST_TOKEN_S", "DEFAULT_READING_SPEED", "DEFAULT_THINKING_SPEED", "Reader"]

DEFAULT_FIRST_TOKEN_S = 1.0
"""Seconds, where neither caller nor gateway says otherwise: the gateway's class ``reading``."""
DEFAULT_READING_SPEED = 4.8
"""Tokens/s, likewise: 222 words a minute at 1.3 tokens a word (Andes, arXiv 2404.16283, section 3)."""
DEFAULT_THINKING_SPEED = 25.0
"""Tokens/s, likewise: how fast a thought that is not shown has to go on; the gateway's ``think_tds``."""

NO_TIME = "none"
"""For a thought, in ``x-andes-think-tds``."""


@dataclass(frozen=True)
class Reader:
    """reading_speed: tokens/s; first_token_s: seconds to the first token; klass: one of the gateway's classes, which says
    both; expected_tokens: length of the whole answer, where the caller knows it. thinking_speed: tokens/s at which a model
    may think, unseen, before the reader waits for its answer; infinite: no time is granted to a thought. None: as the class
    says.

    Raises ``ValueError`` naming field and value.
    """

    reading_speed: float | None = None
    first_token_s: float | None = None
    klass: str | None = None
    expected_tokens: int | None = None
    thinking_speed: float | None = None

    def __post_init__(self) -> None:
        if self.reading_speed is not None and not _is_in(self.reading_speed, 1e-3, 1e9):
            raise ValueError(f"reading_speed must be tokens/s from 0.001 to 1e9, got {self.reading_speed!r}")
        if self.first_token_s is not None and not _is_in(self.first_token_s, 0.0, 1e6):
            raise ValueError(f"first_token_s must be seconds from 0 to 1e6, got {self.first_token_s!r}")
        thinking = self.thinking_speed
        if thinking not in (None, math.inf) and not _is_in(thinking, 1e-3, 1e9):
            raise ValueError(
                f"thinking_speed must be tokens/s from 0.001 to 1e9, or infinite, got {self.thinking_speed!r}"
            )
        tokens = self.expected_tokens
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise ValueError(f"expected_tokens must be a whole number from 1, got {tokens!r}")
        if self.klass is not None and not _is_name(self.klass):
            raise ValueError(f"klass must be the name of a class, got {self.klass!r}")

    def headers(self) -> dict[str, str]:
        """For the request. ``x-andes-report`` asks for what the gateway saw of the reader."""
        said = {
            "x-andes-class": self.klass,
            "x-andes-tds": None if self.reading_speed is None else f"{self.reading_speed:.6g}",
            "x-andes-ttft-ms": None if self.first_token_s is None else f"{1000 * self.first_token_s:.6g}",
            "x-andes-expected-tokens": None if self.expected_tokens is None else str(self.expected_tokens),
            "x-andes-think-tds": self._think_tds,
            "x-andes-report": "usage",
        }
        return {name: value for name, value in said.items() if value is not None}

    @property
    def _think_tds(self) -> str | None:
        if self.thinking_speed is None:
            return None
        return NO_TIME if self.thinking_speed == math.inf else f"{self.thinking_speed:.6g}"

    def told(self, headers: Mapping[str, str]) -> Reader:
        """With what the answer's headers say that holds, else the defaults, in the place of what is None."""
        speed = self.reading_speed or _number(headers.get("x-andes-tds")) or DEFAULT_READING_SPEED
        first_s = self.first_token_s
        if first_s is None:
            first_ms = _number(headers.get("x-andes-ttft-ms"))
            first_s = DEFAULT_FIRST_TOKEN_S if first_ms is None else first_ms / 1000
        said = headers.get("x-andes-think-tds")
        thinking = math.inf if said == NO_TIME else _number(said)
        thinking = self.thinking_speed or thinking or DEFAULT_THINKING_SPEED
        return replace(self, reading_speed=speed, first_token_s=first_s, thinking_speed=thinking)


def _is_in(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and bool(value.strip())


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
