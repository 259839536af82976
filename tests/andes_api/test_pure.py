"""The gateway's small pure parts: limits, demand, prompts, media, the circuit breaker."""

from __future__ import annotations

import math

import pytest

from andes_api.admission import TokenBucket
from andes_api.breaker import CircuitBreaker
from andes_api.demand import DemandLog, DemandRecord, QoEWindow, Served
from andes_api.errors import ApiError
from andes_api.media import check_media
from andes_api.prompts import BLOCK, Prompt
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget
from andes_sglang.routing import PrefixTracker


def test_a_bucket_says_when_to_come_back() -> None:
    bucket = TokenBucket(60)
    assert [bucket.take(0.0) for _ in range(6)] == [0.0] * 6
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(0.5) == pytest.approx(0.5)
    assert bucket.take(1.0) == 0.0
    assert sum(bucket.take(t / 10) == 0.0 for t in range(10, 6010)) == pytest.approx(600, abs=6)


def test_a_bucket_saves_a_tenth_of_a_minute_and_no_more() -> None:
    assert sum(TokenBucket(600).take(7.0) == 0.0 for _ in range(100)) == 100, "one of each"
    for per_minute, burst in ((600, 60), (30, 3), (6, 1), (0.6, 1)):
        bucket = TokenBucket(per_minute)
        assert sum(bucket.take(5.0) == 0.0 for _ in range(100)) == burst
        assert sum(bucket.take(1e6) == 0.0 for _ in range(100)) == burst, "however long it was left alone"
    slow = TokenBucket(6)
    assert slow.take(0.0) == 0.0
    assert slow.take(2.0) == pytest.approx(8.0)
    assert slow.take(4.0) == pytest.approx(6.0), "asking costs nothing"


def test_demand_is_bounded_and_says_so() -> None:
    demand = DemandLog(3)
    assert demand.complete_since_s is None
    for k in range(5):
        demand.add(DemandRecord(float(k), "reading", True, 10, ReaderExpectation()))
    assert [r.arrival_s for r in demand.since(0.0)] == [2.0, 3.0, 4.0]
    assert [r.arrival_s for r in demand.since(3.0)] == [4.0]
    assert demand.complete_since_s == 2.0


def test_a_window_forgets() -> None:
    window = QoEWindow()
    for at in range(0, 7200, 5):
        window.add(float(at), "m", "reading" if at % 10 else "code", Served(0.5, 1.0, 0.0))
    of = window.of(7200.0, 60.0)
    assert {kind: s.qoe.count for kind, s in of.items()} == {("m", "code"): 6, ("m", "reading"): 6}
    assert window.of(7200.0, 1e9)["m", "code"].ttft_s.count == 360  # an hour
    assert window.of(99999.0, 60.0) == {}


def test_a_record_says_what_happened() -> None:
    reader = ReaderExpectation(QoETarget(0.5, 8.0), 0.25, True, 300)
    record = DemandRecord(12.5, "code", True, 40, reader)
    assert record.to_dict() == {
        "arrival_s": 12.5, "class": "code", "stream": True, "prompt_tokens": 40, "output_tokens": 0, "ttft_target_s": 0.5,
        "tds": 8.0, "weight": 0.25, "yield": True, "expected_tokens": 300, "ttft_s": None, "qoe": None, "outcome": "open",
        "model": None, "adapter": None, "fallback": None, "reason_tokens": 0, "think_tds": 25.0, "thinking_s": None,
        "ladder": None, "quality": None,
    }  # fmt: skip
    record.ttft_s, record.qoe, record.output_tokens, record.outcome = 0.123456, 0.98765, 9, "done"
    said = record.to_dict()
    assert (said["ttft_s"], said["qoe"], said["output_tokens"], said["outcome"]) == (0.1235, 0.9877, 9, "done")


def test_a_window_is_exact_to_the_slice() -> None:
    window = QoEWindow()
    for at in (109.9, 110.0, 119.9, 120.0):
        window.add(at, "m", "reading", Served(0.5, None, 0.0))
    counts = [window.of(125.0, window_s).get(("m", "reading")) for window_s in (1.0, 5.0, 6.0, 15.0, 16.0)]
    assert [got.qoe.count if got else 0 for got in counts] == [1, 1, 3, 3, 4]
    assert all(got is None or not got.ttft_s.count for got in counts), "what is not known is not counted"


def test_prompts_that_begin_alike_are_recognised() -> None:
    system = {"role": "system", "content": "x" * 5000}
    first = Prompt({"messages": [system, {"role": "user", "content": "a" * 500}]}, ("messages",))
    second = Prompt(
        {"messages": [system, {"role": "user", "content": [{"type": "text", "text": "b" * 500}]}]}, ("messages",)
    )
    other = Prompt({"messages": [{"role": "user", "content": "b" * 5000}]}, ("messages",))
    seen = PrefixTracker()
    seen.add(first.blocks)
    assert first.key == second.key != other.key
    assert 0.8 < second.share(seen) < 0.95
    assert other.share(seen) == 0.0
    assert Prompt({"prompt": [1, 2, 3]}, ("prompt",)).tokens(4.0) == 3.0
    assert Prompt({"prompt": "x" * 400}, ("prompt",)).tokens(4.0) == 100.0


@pytest.mark.parametrize("prompt", [None, 7, {"a": 1}, [[1], [2]], [None], ["a", 3], "\ud800", ""])
def test_no_prompt_is_too_odd(prompt: object) -> None:
    for fields in (("messages",), ("prompt",), ("prompt", "messages"), ()):
        assert Prompt({"messages": prompt, "prompt": prompt}, fields).tokens(4.0) >= 0.0


def test_what_was_seen_is_bounded() -> None:
    seen = PrefixTracker(max_blocks=4)
    old = Prompt({"prompt": "a" * BLOCK * 3}, ("prompt",))
    seen.add(old.blocks)
    seen.add(Prompt({"prompt": "b" * BLOCK * 3}, ("prompt",)).blocks)
    assert old.share(seen) == 0.0


def media(url: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "/etc/passwd", "http://127.0.0.1/x", "http://169.254.169.254/latest", "http://[::1]/",
        "http://localhost:30000/x", "http://metadata/x", "http://10.0.0.1/", "http://0x7f000001/", "http://2130706433/",
        "http://x.svc.cluster.local/", "gopher://a.example/", "http://[", "http://127.1/", "http://a.internal./",
    ],
)  # fmt: skip
def test_media_from_inside_is_refused(url: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_media(media(url), ())
    assert (caught.value.status, caught.value.reason) == (400, "media")
    with pytest.raises(ApiError):
        check_media({"messages": [{"content": [{"type": "image_url", "image_url": url}]}]}, ("a.example",))


@pytest.mark.parametrize("url", ["https://a.example/cat.png", "data:image/png;base64,AAAA", None, 7])
def test_other_media_pass(url: object) -> None:
    check_media(media(url), ())


def test_media_from_listed_hosts_only() -> None:
    check_media(media("https://a.example/x"), ("a.example",))
    with pytest.raises(ApiError, match="this host"):
        check_media(media("https://b.example/x"), ("a.example",))


def test_many_streams_that_fail_together_open_the_breaker_once() -> None:
    breaker = CircuitBreaker(2, 2.0)
    for _ in range(300):
        breaker.failed(10.0)
    assert not breaker.allows(11.9)
    assert breaker.allows(12.0)
    breaker.trying(12.0)
    assert not breaker.allows(12.0)
    breaker.failed(12.5)
    assert not breaker.allows(16.4), "the one that tried counts: twice as long"
    assert breaker.allows(16.5)
    breaker.succeeded()
    breaker.failed(17.0, enough=True)
    assert not breaker.allows(18.9)


def test_the_breaker_opens_and_lets_one_try() -> None:
    breaker = CircuitBreaker(max_failures=3, cooldown_s=2.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    assert not breaker.allows(1.9)
    assert breaker.allows(2.0)
    breaker.trying(2.0)
    assert not breaker.allows(2.1)  # one at a time
    breaker.failed(2.2)
    assert not breaker.allows(6.0)  # longer each time
    assert breaker.allows(6.3)
    breaker.succeeded()
    assert breaker.allows(0.0)
    now_s = 0.0
    for _ in range(50):
        now_s = max(now_s, breaker.open_until_s)
        breaker.failed(now_s)
    assert breaker.open_until_s == now_s + 60.0
    assert math.isfinite(breaker.open_until_s)
