"""How much host memory copies of KV may take."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CGROUP", "MAX_DEVICE_POOLS", "free_bytes", "pool_bytes"]

GIB = float(1 << 30)
MAX_DEVICE_POOLS = 16
"""Times the KV pool on the device: more paused streams than that wait too long to be of use (our choice)."""
FREE_SHARE = 0.25
"""Share of free memory that is taken without being asked: the rest is left to the page cache and to other engines (our
choice)."""
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Bytes that are free, of the machine or of what a container may use of it.

    cgroup: where version 2 of control groups says what this container may use and does use; of that the cache of files
    that is not being read can be given up.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(0, min(free, limit - used + int(stat["inactive_file"])))
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        return free


def pool_bytes(asked_gib: float | None, device_pool_bytes: float, *, ranks: int = 1) -> float:
    """Bytes of the host pool of one of ``ranks`` on this machine: its part of what was asked for, or of a quarter of what is
    free, but no more than ``MAX_DEVICE_POOLS`` times its device pool."""
    if asked_gib is not None:
        return asked_gib * GIB / ranks
    return float(min(FREE_SHARE * free_bytes() / ranks, MAX_DEVICE_POOLS * device_pool_bytes))
