"""Refusals as a caller reads them, and the limits of a rate. Pure."""

from __future__ import annotations

from typing import Protocol

from andes_api.errors import ApiError
from andes_sglang.admission import Refusal

__all__ = [
    "TokenBucket",
    "fatal",
    "full",
    "model_full",
    "no_replica",
    "overload",
    "tenant_streams",
    "too_fast",
    "too_many_tokens",
]


class Cell(Protocol):
    """Two numbers: a list, or a place in memory."""

    def __getitem__(self, k: int, /) -> float: ...
    def __setitem__(self, k: int, value: float, /) -> None: ...


class TokenBucket:
    """At most ``per_minute`` in a minute on average; in a burst ``burst``, by default a tenth of that and at least one.
    now_s: clock seconds. cell: where what is missing is kept, and since when; zeros: nothing is missing."""

    def __init__(self, per_minute: float, burst: float | None = None, cell: Cell | None = None) -> None:
        self._rate = per_minute / 60.0
        self._burst = max(1.0, per_minute / 10.0) if burst is None else burst
        self._cell: Cell = [0.0, 0.0] if cell is None else cell

    def left(self, now_s: float) -> float:
        """What is there; below 0 where more was charged."""
        missing, at_s = self._cell[0], self._cell[1]
        missing = max(0.0, missing - max(0.0, now_s - at_s) * self._rate)
        self._cell[0], self._cell[1] = missing, max(at_s, now_s)
        return self._burst - missing

    def take(self, now_s: float) -> float:
        """Take one: 0, or the seconds until one is there."""
        if wait_s := self.wait_s(now_s, 1.0):
            return wait_s
        self._cell[0] += 1.0
        return 0.0

    def charge(self, now_s: float, amount: float) -> None:
        """Take ``amount``, there or not; give it back where it is negative."""
        self.left(now_s)
        self._cell[0] = max(0.0, self._cell[0] + amount)

    def wait_s(self, now_s: float, amount: float) -> float:
        """Seconds until ``amount`` is there."""
        return max(0.0, amount - self.left(now_s)) / self._rate

    def full_in_s(self, now_s: float) -> float:
        """Seconds until it is full."""
        return (self._burst - self.left(now_s)) / self._rate


def overload(refusal: Refusal) -> ApiError:
    """A stream that its forecast refuses."""
    return ApiError(
        429, f"overloaded: {refusal.message}", "overloaded_error", code="overloaded", reason=refusal.reason,
        retry_after_s=refusal.retry_after_s,
    )  # fmt: skip


def model_full(model: str, limit: int, wait_s: float) -> ApiError:
    return ApiError(
        429, f"overloaded: {model} has {limit} streams open, its limit", "overloaded_error", code="overloaded",
        reason="model_streams", retry_after_s=wait_s,
    )  # fmt: skip


def full(wait_s: float) -> ApiError:
    """Every stream the gateway or its replicas may hold is taken; ``wait_s``: how long until one usually ends."""
    return ApiError(
        429, "overloaded: no more streams can be opened", "overloaded_error", code="overloaded", reason="streams",
        retry_after_s=wait_s,
    )  # fmt: skip


def no_replica(wait_s: float, *, held: int = 0, draining: bool = False) -> ApiError:
    """No engine can take anything. ``held``: requests that wait for one already, where they are why."""
    what = "this gateway is shutting down" if draining else "no engine is available"
    if held:
        what += f", and {held} requests already wait for one"
    return ApiError(
        503, what, "service_unavailable_error", code="service_unavailable",
        reason="draining" if draining else "no_replica", retry_after_s=wait_s,
    )  # fmt: skip


def tenant_streams(name: str, limit: int, wait_s: float) -> ApiError:
    return ApiError(
        429, f"{name} has {limit} streams open, its limit", "rate_limit_error", code="rate_limit_exceeded",
        reason="tenant_streams", retry_after_s=wait_s,
    )  # fmt: skip


def too_fast(name: str, per_minute: float, wait_s: float) -> ApiError:
    return ApiError(
        429, f"{name} may send {per_minute:g} requests a minute", "rate_limit_error", code="rate_limit_exceeded",
        reason="tenant_rate", retry_after_s=wait_s,
    )  # fmt: skip


def fatal(engines: int, left_s: float) -> ApiError:
    """``engines`` have died of a request before its first token; the same content is refused for ``left_s`` more."""
    message = f"{engines} engines died of this request before its first token; it is refused for {left_s:.0f} s"
    return ApiError(502, message, "upstream_error", code="engine_died", reason="engine_died", retry=False)


def too_many_tokens(name: str, kind: str, per_minute: int, wait_s: float | None) -> ApiError:
    """``wait_s``: seconds until they are there; None: never."""
    what = f"{name} may use {per_minute} {kind.replace('-', ' ')} a minute"
    return ApiError(
        429, what if wait_s is not None else f"{what}; this prompt is longer", "rate_limit_error",
        code="rate_limit_exceeded", reason="tenant_tokens", retry_after_s=wait_s, retry=None if wait_s is not None else False,
    )  # fmt: skip
