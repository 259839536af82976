"""What a client says of its reader: how much has been shown, whether the page is in sight, when. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from andes_api.errors import ApiError

__all__ = ["ClientClock", "ReaderReport"]

MAX_COUNT = 1_000_000_000
MAX_DELAY_S = 10.0
"""Seconds that a report may take longer than the fastest one; where it seems more, the client's clock has jumped."""
_FIELDS = ("tokens", "characters", "visible", "at_s")


@dataclass(frozen=True, slots=True)
class ReaderReport:
    """tokens or characters: of the answer, shown since it began; visible: whether the page is in sight; at_s: when, seconds
    on the client's clock. None: not said."""

    tokens: int | None = None
    characters: int | None = None
    visible: bool | None = None
    at_s: float | None = None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> ReaderReport:
        """From the body of a request. Raises a 400 that names field and value."""
        for name in body:
            if name not in _FIELDS:
                raise _wrong(name[:100], body[name], f"no such field; there are {', '.join(_FIELDS)}")
        for name in ("tokens", "characters"):
            if not (body.get(name) is None or _counts(body[name])):
                raise _wrong(name, body[name], "a whole number from 0 to 1e9")
        if not isinstance(body.get("visible"), bool | None):
            raise _wrong("visible", body["visible"], "true or false")
        if not (body.get("at_s") is None or _is_time(body["at_s"])):
            raise _wrong("at_s", body["at_s"], "a number of seconds on the client's clock")
        report = cls(**body)
        if report.tokens is not None and report.characters is not None:
            raise _wrong("characters", report.characters, "tokens or characters, not both")
        if report.tokens is None and report.characters is None and report.visible is None:
            raise _wrong("tokens", None, "at least one of tokens, characters and visible")
        return report


class ClientClock:
    """The clock of one client, which has its own zero and may jump: it is compared with ours by the fastest report so far."""

    def __init__(self) -> None:
        self._ahead_s: float | None = None

    def seconds_here(self, at_s: float | None, now_s: float) -> float:
        """When that was on our clock, no later than ``now_s``. at_s: as a report that comes now says it; None: now."""
        if at_s is None:
            return now_s
        ahead_s = now_s - at_s
        if self._ahead_s is None or not 0.0 <= ahead_s - self._ahead_s <= MAX_DELAY_S:
            self._ahead_s = ahead_s
        return at_s + self._ahead_s


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(name: str, value: object, expected: str) -> ApiError:
    return ApiError(
        400, f"{name}: expected {expected}; got {str(value)[:100]!r}", param=name, reason="reader_report", retry=False
    )
