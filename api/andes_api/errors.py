"""Errors as an OpenAI client reads them, before and inside a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["ApiError", "own_fault"]


@dataclass
class ApiError(Exception):
    """An answer that is an error.

    reason: one word for the ``x-andes-reason`` header and for metrics. retry_after_s: seconds until trying again makes
    sense. retry: False tells the official client not to try again. limits: headers that say what is left of them.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    reason: str = "invalid"
    retry_after_s: float | None = None
    retry: bool | None = None
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {"x-andes-reason": self.reason, **self.limits}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, min(120, math.ceil(self.retry_after_s))))
        if self.retry is not None:
            headers["x-should-retry"] = str(self.retry).lower()
        return headers

    @property
    def event(self) -> bytes:
        """As a chunk of a stream that has begun."""
        return b"data: " + orjson.dumps(self.body) + b"\n\n"


def own_fault(request_id: str) -> ApiError:
    """A fault of the gateway's own."""
    return ApiError(500, f"a fault of the gateway; its log tells of {request_id}", "server_error", reason="fault")
