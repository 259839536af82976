"""How fast people take in text: populations of readers, as shares of users with their speeds."""

from __future__ import annotations

from andes_sglang.qoe import QoETarget

__all__ = ["LISTENING", "POPULATIONS", "READING", "readers_of"]

READING = ((0.2804, 0.196), (0.5187, 0.230), (0.1119, 0.240), (0.0556, 0.249), (0.0333, 0.264))
"""Share of users and seconds per token, by age group (Andes, arXiv 2404.16283 v2, section 2, and its trace generator)."""
LISTENING = ((0.7929, 0.31), (0.0703, 0.15), (0.0692, 0.19), (0.0358, 0.15), (0.0317, 0.13))
"""Share of users and seconds per token, by language (the same sources)."""
POPULATIONS = {"reading": READING, "listening": LISTENING}


def readers_of(
    population: str, *, ttft_s: float = 1.0, tds: float | None = None
) -> tuple[tuple[float, QoETarget], ...]:
    """``(share, target)`` of each kind of reader of ``reading`` or ``listening``; with ``tds`` (tokens/s) one kind."""
    if tds is not None:
        return ((1.0, QoETarget(ttft_s, tds)),)
    return tuple((share, QoETarget(ttft_s, 1.0 / pace)) for share, pace in POPULATIONS[population])
