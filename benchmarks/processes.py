"""CPU time and memory of a process and its children, from Linux's /proc (proc(5)); children that hear Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

__all__ = ["cpu_s", "hear_ctrl_c", "rss_mb"]

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
"""A second of CPU time in the unit of /proc/PID/stat."""
UTIME, STIME = 11, 12
"""Fields of /proc/PID/stat, counted from the first after the command's name."""


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return sum(_own_cpu_s(each) for each in (pid, *children))


def _own_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[UTIME]) + int(fields[STIME])) / CLOCK_TICKS


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise ValueError(f"process {pid}: /proc says nothing of its memory (has it ended?)")
    return int(found[1]) / 1024


def hear_ctrl_c() -> None:
    """``preexec_fn`` of a child that is to be interrupted: background jobs of a shell inherit deafness to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
