"""When a piece of text is shown, so that the reader can follow. Pure: time is an argument."""

from __future__ import annotations

__all__ = ["Pacer"]

LEAD_S = 0.25
"""Seconds: text is shown this long before its reader has read what came before it (our choice)."""


class Pacer:
    """Of one stream, on the clock of the device that shows it. reading_speed: tokens/s.

    The first piece is shown as it comes; every further one :data:`LEAD_S` before the reader has digested what came before it,
    or as it comes if that is later: what the server sends late is not held back further.
    """

    def __init__(self, reading_speed: float) -> None:
        self._pace_s = 1.0 / reading_speed
        self._read_until_s = float("-inf")

    def show_at(self, came_s: float, tokens: int) -> float:
        """When a piece of ``tokens`` tokens that came at ``came_s`` is to be shown."""
        show_s = max(came_s, self._read_until_s - LEAD_S)
        self._read_until_s = max(came_s, self._read_until_s) + tokens * self._pace_s
        return show_s
