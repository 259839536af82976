"""Figures of the requests of each class, or of each tenant, from their scores one by one in constant memory."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["MAX_GROUPS", "OTHERS", "GroupFigures"]

MAX_GROUPS = 50
"""Requests of further groups are told together, as :data:`OTHERS`."""
OTHERS = "(others)"
MAX_ROWS = 2000
"""Requests of a group kept for quantiles; beyond, they are those of every 2nd, 4th, ... request."""


class GroupFigures:
    """By name of the group."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, name: str | None, qoe: float, ttft_s: float, *, failed: bool) -> None:
        """Count one finished request; None: it belongs to no group."""
        if name is None:
            return
        if name not in self._groups and len(self._groups) >= MAX_GROUPS:
            name = OTHERS
        self._groups.setdefault(name, _Group()).add(qoe, ttft_s, failed)

    def summary(self) -> dict[str, Any]:
        return {name: group.summary() for name, group in sorted(self._groups.items())}


class _Group:
    def __init__(self) -> None:
        self.requests = self.failed = 0
        self._qoe_sum = 0.0
        self._rows: list[tuple[float, float]] = []
        self._stride = 1

    def add(self, qoe: float, ttft_s: float, failed: bool) -> None:
        if self.requests % self._stride == 0:
            self._rows.append((qoe, ttft_s))
            if len(self._rows) > MAX_ROWS:
                self._rows = self._rows[::2]
                self._stride *= 2
        self.requests += 1
        self.failed += failed
        self._qoe_sum += qoe

    def summary(self) -> dict[str, Any]:
        qoe, ttft_s = np.array(self._rows).T
        return {
            "requests": self.requests,
            "failed": self.failed,
            "qoe": {"mean": self._qoe_sum / self.requests, "p5": float(np.percentile(qoe, 5))},
            "ttft_s": {f"p{p}": float(np.percentile(ttft_s, p)) for p in (50, 90)},
        }
