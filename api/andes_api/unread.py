"""A request that no engine was asked about: refused before it was understood, or about the gateway itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["UnreadRequest"]

CLIENT_LEFT = 499
"""Status of a request whose client left before all of it had come (nginx' own)."""
_OWN = frozenset({"/", "/try", "/livez", "/readyz", "/metrics", "/openapi.json"})


@dataclass(slots=True)
class UnreadRequest:
    """began_s: clock seconds; arrival_s: Unix seconds. status: of the answer; 0 where there is none. reason: of a
    refusal. taken: it has become a stream, which has a record of its own."""

    request_id: str
    method: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    arrival_s: float = field(default_factory=time.time)
    status: int = 0
    reason: str | None = None
    taken: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is told of: not the questions that monitoring asks all day, nor what clients report of readers,
        unless they fail."""
        own = self.path in _OWN or self.path.startswith(("/fleet/", "/v1/streams/"))
        return not self.taken and not (own and 0 < self.status < 400)

    @property
    def outcome(self) -> str:
        """As of a stream: done, shed, error (the request's), failed (ours), abandoned."""
        if self.status in (0, CLIENT_LEFT):
            return "abandoned"
        if self.status in (429, 503):
            return "shed"
        return "failed" if self.status >= 500 else "error" if self.status >= 400 else "done"

    def line(self, duration_s: float) -> dict[str, Any]:
        """For the access log."""
        line = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path[:200],
            "status": self.status,
            "duration_s": round(duration_s, 4),
            "arrival_s": self.arrival_s,
            "outcome": self.outcome,
        }
        return line if self.reason is None else {**line, "reason": self.reason}
