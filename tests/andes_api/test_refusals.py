"""What a refused client reads, word for word, and where exactly admission refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from andes_api.admission import TokenBucket, full, no_replica, overload, retry_after_s, tenant_streams, too_fast
from andes_api.errors import ApiError
from andes_api.settings import ClassSettings
from andes_sglang.qoe import QoETarget
from andes_sglang.stream_forecast import IncomingStream, StreamForecast, project_qoe

NEW = IncomingStream(100.0, QoETarget(1.0, 4.8), weight=2.0)
HORIZON_S = 60.0


def refusal(expected: StreamForecast, shed_below: float) -> ApiError | None:
    cls = ClassSettings(shed_below=shed_below)
    return overload(NEW, expected, cls, class_name="reading", horizon_s=HORIZON_S)


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


def test_a_class_that_sheds_nothing_is_never_refused() -> None:
    assert refusal(StreamForecast(100.0, 1.0, 0.0, 10.0), 0.0) is None
    assert refusal(StreamForecast(100.0, 1.0, 0.5, 10.0), 0.25) is not None


def test_below_the_class_it_is_refused_and_at_it_not() -> None:
    assert refusal(StreamForecast(0.0, 0.1, 0.25, 0.0), 0.25) is None
    error = refusal(StreamForecast(40.0, 0.1, 0.249, 0.0), 0.25)
    assert error is not None
    assert (error.status, error.type, error.code, error.reason) == (
        429,
        "overloaded_error",
        "overloaded",
        "predicted_qoe",
    )
    assert error.message == "overloaded: the predicted QoE of this stream, 0.25, is below the 0.25 of class reading"
    assert error.retry_after_s == retry_after_s(NEW, StreamForecast(40.0, 0.1, 0.249, 0.0), 0.25, HORIZON_S)


def test_what_costs_others_as_much_as_it_gains_is_admitted_and_more_is_not() -> None:
    assert refusal(StreamForecast(0.0, 0.1, 0.5, 1.0), 0.25) is None, "weight 2: it gains 1"
    error = refusal(StreamForecast(0.0, 0.1, 0.5, 1.001), 0.25)
    assert error is not None
    assert (error.status, error.type, error.code, error.reason) == (
        429,
        "overloaded_error",
        "overloaded",
        "predicted_loss",
    )
    assert error.message == "overloaded: admitting this stream would cost the open streams more QoE than it would gain"
    assert error.retry_after_s == 1.0, "at once would do, but a second is the least"


def test_the_wait_is_what_brings_the_wanted_qoe_into_reach() -> None:
    expected = StreamForecast(50.0, 0.1, 0.1, 0.0)
    wait_s = retry_after_s(NEW, expected, 0.9, HORIZON_S)
    assert 1.0 < wait_s < 50.0
    assert project_qoe(NEW.target, 50.0 - wait_s, 0.1, HORIZON_S) == pytest.approx(0.9, abs=1e-4)
    assert project_qoe(NEW.target, 50.0 - wait_s, 0.1, HORIZON_S) >= 0.9


def test_a_wait_that_cannot_help_is_the_queue_or_two_minutes() -> None:
    slow = 10.0  # seconds a token: no wait makes that good
    waits_s = [
        retry_after_s(NEW, StreamForecast(ttft_s, slow, 0.0, 0.0), 0.9, HORIZON_S)
        for ttft_s in (2.0, 30.0, 120.0, 121.0)
    ]
    assert waits_s == [5.0, 30.0, 120.0, 120.0]
    far = StreamForecast(150.0, 0.01, 0.0, 0.0)
    assert retry_after_s(NEW, far, 0.9, HORIZON_S) == 120.0
    assert 119.0 < retry_after_s(NEW, far, project_qoe(NEW.target, 30.5, 0.01, HORIZON_S), HORIZON_S) < 120.0


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
