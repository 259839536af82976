"""What a refused client reads, word for word, and how limits of a rate count."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from andes_api.admission import TokenBucket, full, no_replica, overload, tenant_streams, too_fast
from andes_api.errors import ApiError
from andes_sglang.admission import Refusal


@pytest.mark.parametrize(
    ("refuse", "expected"),
    [
        (lambda: full(7.0), ApiError(429, "overloaded: no more streams can be opened", "overloaded_error", None, "overloaded",
                             "streams", 7.0)),
        (lambda: no_replica(7.0), ApiError(503, "no engine is available", "service_unavailable_error", None,
                                   "service_unavailable", "no_replica", 7.0)),
        (lambda: no_replica(7.0, held=2), ApiError(503, "no engine is available, and 2 requests already wait for one",
                                           "service_unavailable_error", None, "service_unavailable", "no_replica", 7.0)),
        (lambda: no_replica(7.0, draining=True), ApiError(503, "this gateway is shutting down", "service_unavailable_error", None,
                                                  "service_unavailable", "draining", 7.0)),
        (lambda: tenant_streams("team", 3, 7.0), ApiError(429, "team has 3 streams open, its limit", "rate_limit_error", None,
                                                  "rate_limit_exceeded", "tenant_streams", 7.0)),
        (lambda: too_fast("team", 90.0, 7.0), ApiError(429, "team may send 90 requests a minute", "rate_limit_error", None,
                                               "rate_limit_exceeded", "tenant_rate", 7.0)),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_taken_and_when_to_come_back(refuse: Callable[[], ApiError], expected: ApiError) -> None:
    assert refuse() == expected


def test_a_refusal_by_forecast_says_why_and_when_there_is_a_place() -> None:
    assert overload(Refusal("predicted_loss", "it would cost too much", 12.2)) == ApiError(
        429, "overloaded: it would cost too much", "overloaded_error", None, "overloaded", "predicted_loss", 12.2
    )


def test_headers_and_body_of_a_refusal() -> None:
    error = ApiError(429, "wait", "overloaded_error", "tds", "overloaded", "streams", 0.2, retry=False)
    assert error.headers == {"x-andes-reason": "streams", "retry-after": "1", "x-should-retry": "false"}
    assert error.body == {
        "error": {"message": "wait", "type": "overloaded_error", "param": "tds", "code": "overloaded"}
    }
    assert ApiError(400, "no").headers == {"x-andes-reason": "invalid"}
    assert [ApiError(429, "", retry_after_s=s).headers["retry-after"] for s in (1.0, 1.1, 119.5, 500.0)] == [
        "1",
        "2",
        "120",
        "120",
    ]


def test_a_bucket_holds_a_tenth_of_a_minute_and_fills_at_its_rate() -> None:
    bucket = TokenBucket(60.0)
    assert [bucket.take(100.0) for _ in range(6)] == [0.0] * 6
    assert bucket.take(100.0) == pytest.approx(1.0)
    assert bucket.take(100.25) == pytest.approx(0.75), "a refused request takes nothing"
    assert bucket.take(101.0) == 0.0
    assert [bucket.take(1000.0) for _ in range(7)] == [0.0] * 6 + [pytest.approx(1.0)], "it never holds more"
    slow = TokenBucket(3.0)
    assert slow.take(0.0) == 0.0, "one at least"
    assert slow.take(0.0) == pytest.approx(20.0)
    assert math.isclose(slow.take(10.0), 10.0)
