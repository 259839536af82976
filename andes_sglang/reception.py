"""What a reader has received of what was generated for it: how an engine is told, and who cannot receive.

A gateway knows what a client's network has acknowledged and what its page has shown. Of a reader who falls behind it tells
the engine, ``POST`` :data:`PATH`, whether real or simulated::

    {"readers": {"REQUEST_ID": 57, "ANOTHER_ID": null}}

the number of tokens of this engine's own answer that the reader has got so far; null: it keeps up again, and has got whatever
was sent. Pure; lengths in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_READERS", "MAX_UNRECEIVED_S", "PATH", "RESUME_UNRECEIVED_S", "cannot_receive", "has_until_s", "parse"]

PATH = "/andes/readers"
MAX_READERS = 10_000
"""Of one message; an engine holds fewer requests."""
MAX_TOKENS = 1_000_000_000
MAX_UNRECEIVED_S = 4.0
"""Seconds of reading that an engine works ahead of what a reader has received before it pauses (where there is KV for all):
some reports of it, and twice what follows (our choice)."""
RESUME_UNRECEIVED_S = 2.0
"""Seconds of reading on their way to the reader with which the engine goes on: they cover the return of one whose KV has to
be computed again, should its link be free all at once (our choice)."""


def cannot_receive(unreceived_tokens: Any, tds: Any, runs: Any) -> Any:
    """Whether more would only lie about: scalars, or arrays of one shape. tds: tokens/s. runs: whether it is in the batch;
    what is off the engine comes back later than what is there leaves it."""
    limit_s = RESUME_UNRECEIVED_S + (MAX_UNRECEIVED_S - RESUME_UNRECEIVED_S) * runs
    return unreceived_tokens > limit_s * tds


def has_until_s(now_s: float, unreceived_tokens: float, tds: float) -> float:
    """Until when a reader has something to read, clock seconds, while ``unreceived_tokens`` are on their way at ``now_s``:
    its clock stands still for what it cannot receive (:meth:`andes_sglang.qoe.ReaderStream.stand_still`). Minus infinity
    where nothing is on its way: then a reader who waits waits for the engine."""
    return now_s + unreceived_tokens / tds if unreceived_tokens > 0 else -math.inf


def parse(body: Any) -> dict[str, int | None]:
    """By request id the tokens that its reader has got, None where it keeps up. Raises ``ValueError`` naming field and
    value."""
    readers = body.get("readers") if isinstance(body, Mapping) else None
    if not isinstance(readers, Mapping) or len(body) != 1:
        raise ValueError(f'expected {{"readers": {{REQUEST_ID: TOKENS or null}}}}, got {str(body)[:100]}')
    if len(readers) > MAX_READERS:
        raise ValueError(f"readers: at most {MAX_READERS} at a time, got {len(readers)}")
    for rid, tokens in readers.items():
        counts = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= MAX_TOKENS
        if not rid or not (tokens is None or counts):
            raise ValueError(
                f"readers.{rid[:100]}: expected a whole number from 0 to 1e9 or null, got {str(tokens)[:100]}"
            )
    return dict(readers)
