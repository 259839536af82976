"""Admission: limits, a forecast and the time go in; nothing or an error to send comes out. Pure."""

from __future__ import annotations

from typing import Protocol

from andes_api.errors import ApiError
from andes_api.settings import ClassSettings
from andes_sglang.stream_forecast import IncomingStream, StreamForecast, project_qoe

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

MAX_RETRY_AFTER_S = 120.0
"""Seconds; the official clients obey no longer one."""
MIN_LONG_QUEUE_RETRY_S = 5.0
BISECTIONS = 20
"""Halvings of at most 120 s: to a tenth of a millisecond."""


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


def overload(
    new: IncomingStream, expected: StreamForecast, cls: ClassSettings, *, class_name: str, horizon_s: float
) -> ApiError | None:
    """The refusal of a stream that would be served badly, or would cost others more than it gains, with the time to come
    back; None for one to admit."""
    if cls.shed_below <= 0.0:
        return None
    if expected.qoe < cls.shed_below:
        reason = "predicted_qoe"
        what = f"the predicted QoE of this stream, {expected.qoe:.2f}, is below the {cls.shed_below:g} of class {class_name}"
    elif new.weight * expected.qoe < expected.loss:
        reason = "predicted_loss"
        what = "admitting this stream would cost the open streams more QoE than it would gain"
    else:
        return None
    wait_s = retry_after_s(new, expected, cls.shed_below, horizon_s)
    return ApiError(
        429, f"overloaded: {what}", "overloaded_error", code="overloaded", reason=reason, retry_after_s=wait_s
    )


def retry_after_s(new: IncomingStream, expected: StreamForecast, wanted_qoe: float, horizon_s: float) -> float:
    """Seconds until the queue ahead has drained so far that ``wanted_qoe`` is in reach, by bisection; 120 at most.

    While a new stream waits outside, the first token it would get comes nearer by as much.
    """
    low_s, high_s = 0.0, min(MAX_RETRY_AFTER_S, expected.ttft_s)
    target, answer_s = new.answer_target, expected.answer_s
    if project_qoe(target, answer_s - high_s, expected.interval_s, horizon_s) < wanted_qoe:
        return MAX_RETRY_AFTER_S if expected.ttft_s > MAX_RETRY_AFTER_S else max(MIN_LONG_QUEUE_RETRY_S, high_s)
    for _ in range(BISECTIONS):
        middle_s = 0.5 * (low_s + high_s)
        if project_qoe(target, answer_s - middle_s, expected.interval_s, horizon_s) < wanted_qoe:
            low_s = middle_s
        else:
            high_s = middle_s
    return max(1.0, high_s)


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
