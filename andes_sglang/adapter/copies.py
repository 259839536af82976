"""Which streams' new KV goes to host memory behind the next step."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["copies_behind"]


def copies_behind(dry_s: Sequence[float], copy_s: Sequence[float], step_s: float) -> list[int]:
    """Rows of the streams to copy, whose reader has most in store first, as many as ``step_s`` of compute hide: the last
    may reach beyond it, so that each step copies one.

    dry_s: when each stream's reader runs dry, clock seconds. copy_s: what its copy takes, seconds.
    """
    chosen: list[int] = []
    for row in sorted(range(len(dry_s)), key=lambda row: -dry_s[row]):
        if step_s <= 0 and chosen:
            break
        chosen.append(row)
        step_s -= copy_s[row]
    return chosen
