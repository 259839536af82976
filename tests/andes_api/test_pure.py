"""The gateway's small pure parts: pacing, limits, demand, prompts, media, the breaker."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_api.admission import TokenBucket
from andes_api.breaker import CircuitBreaker
from andes_api.demand import DemandLog, DemandRecord, QoEWindow
from andes_api.errors import ApiError
from andes_api.media import check_media
from andes_api.pacing import Pacer
from andes_api.prompts import BLOCK, Prompt
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget, qoe_of_deliveries
from andes_sglang.resume import Continuation, continued, resumable, text_of
from andes_sglang.routing import PrefixTracker


def paced(deliveries: list[float], tds: float, interval_s: float, jitter_s: float = 0.0) -> list[float]:
    """When tokens delivered at these times go out, as an outlet that wakes ``jitter_s`` late releases them."""
    pacer = Pacer(tds, interval_s)
    due = [pacer.due(at, 1) for at in deliveries]
    out: list[float] = []
    now_s = 0.0
    while len(out) < len(due):
        k = len(out)
        now_s = max(now_s, deliveries[k])
        now_s += pacer.wait_s(due[k], now_s) + jitter_s
        group = [d for d, came in zip(due[k:], deliveries[k:]) if came <= now_s and pacer.releases(d, now_s)]
        out += [now_s] * max(1, len(group))
    return out


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=60),
    st.floats(1, 200),
    st.floats(0.01, 0.2),
    st.floats(0, 0.009),
)
def test_the_reader_never_notices_the_pacer(gaps: list[float], tds: float, interval_s: float, jitter_s: float) -> None:
    deliveries = [sum(gaps[: k + 1]) for k in range(len(gaps))]
    out = paced(deliveries, tds, interval_s, jitter_s)
    target = QoETarget(0.0, tds)
    slack_s = jitter_s * len(gaps) + 1e-6  # what was late when it came goes out when the sleeper wakes
    assert (
        qoe_of_deliveries(out, 0.0, target) >= qoe_of_deliveries([d + slack_s for d in deliveries], 0.0, target) - 1e-9
    )
    assert all(o >= d - 1e-9 for o, d in zip(out, deliveries))


def test_the_pacer_spreads_a_burst_and_groups_when_fast() -> None:
    slow = paced([0.0] * 20, tds=5, interval_s=0.05)
    assert slow == pytest.approx([0.0] + [0.2 * k - 0.05 for k in range(1, 20)])
    fast = paced([0.0] * 200, tds=100, interval_s=0.05)
    assert 10 < len(set(fast)) < 50
    assert max(fast) > 1.8


def test_a_late_engine_is_not_delayed() -> None:
    assert paced([0.0, 5.0, 10.0], tds=5, interval_s=0.05) == [0.0, 5.0, 10.0]


def test_a_bucket_says_when_to_come_back() -> None:
    bucket = TokenBucket(60)
    assert [bucket.take(0.0) for _ in range(6)] == [0.0] * 6
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(0.5) == pytest.approx(0.5)
    assert bucket.take(1.0) == 0.0
    assert sum(bucket.take(t / 10) == 0.0 for t in range(10, 6010)) == pytest.approx(600, abs=6)


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
        window.add(float(at), "reading" if at % 10 else "code", 0.5)
    of = window.of(7200.0, 60.0)
    assert {name: s.count for name, s in of.items()} == {"code": 6, "reading": 6}
    assert window.of(7200.0, 1e9)["code"].count == 360  # an hour
    assert window.of(99999.0, 60.0) == {}


def test_prompts_that_begin_alike_are_recognised() -> None:
    system = {"role": "system", "content": "x" * 5000}
    first = Prompt({"messages": [system, {"role": "user", "content": "a" * 500}]}, chat=True)
    second = Prompt(
        {"messages": [system, {"role": "user", "content": [{"type": "text", "text": "b" * 500}]}]}, chat=True
    )
    other = Prompt({"messages": [{"role": "user", "content": "b" * 5000}]}, chat=True)
    seen = PrefixTracker()
    seen.add(first.blocks)
    assert first.key == second.key != other.key
    assert 0.8 < second.share(seen) < 0.95
    assert other.share(seen) == 0.0
    assert Prompt({"prompt": [1, 2, 3]}, chat=False).tokens(4.0) == 3.0
    assert Prompt({"prompt": "x" * 400}, chat=False).tokens(4.0) == 100.0


@pytest.mark.parametrize("prompt", [None, 7, {"a": 1}, [[1], [2]], [None], ["a", 3], "\ud800", ""])
def test_no_prompt_is_too_odd(prompt: object) -> None:
    for chat in (True, False):
        assert Prompt({"messages": prompt, "prompt": prompt}, chat).tokens(4.0) >= 0.0


def test_what_was_seen_is_bounded() -> None:
    seen = PrefixTracker(max_blocks=4)
    old = Prompt({"prompt": "a" * BLOCK * 3}, chat=False)
    seen.add(old.blocks)
    seen.add(Prompt({"prompt": "b" * BLOCK * 3}, chat=False).blocks)
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
    for _ in range(50):
        breaker.failed(0.0)
    assert breaker.open_until_s == 60.0
    assert math.isfinite(breaker.open_until_s)


CHAT = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 10}


@pytest.mark.parametrize(
    ("more", "chat", "whether"),
    [
        ({}, True, True),
        ({"temperature": 0.5}, True, False),
        ({"temperature": 0.5, "seed": 1}, True, True),
        ({"temperature": 1, "top_k": 1}, True, True),
        ({"n": 2}, True, False),
        ({"n": None, "repetition_penalty": 1.0, "logprobs": False, "tools": []}, True, True),
        ({"repetition_penalty": 1.1}, True, False),
        ({"presence_penalty": 0.5}, True, False),
        ({"response_format": {"type": "json_object"}}, True, False),
        ({"tools": [{}]}, True, False),
        ({"prompt": [1, 2]}, False, False),
        ({"prompt": "x"}, False, True),
        ({"prompt": "x", "logprobs": 1}, False, False),
    ],
)
def test_what_can_go_on_elsewhere(more: dict[str, object], chat: bool, whether: bool) -> None:
    assert resumable({**CHAT, **more}, chat) is whether


def test_the_rest_is_asked_for() -> None:
    body = continued(CHAT, True, "so far", 4)
    assert body is not None
    assert body["messages"] == [*CHAT["messages"], {"role": "assistant", "content": "so far"}]  # type: ignore[misc]
    assert (body["max_tokens"], body["continue_final_message"]) == (6, True)
    assert continued(CHAT, True, "all", 10) is None
    assert continued({"prompt": "a"}, False, "b", 16) is None  # the default of the API is 16
    rest = continued({"prompt": "a", "max_tokens": 5}, False, "b", 2)
    assert rest == {"prompt": "ab", "max_tokens": 3}
    begun = {**CHAT, "messages": [{"role": "assistant", "content": "I "}], "continue_final_message": True}
    again = continued(begun, True, "am", 1)
    assert again is not None
    assert again["messages"] == [{"role": "assistant", "content": "I am"}]


def test_only_text_is_continued() -> None:
    events = [
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
        b": note\n\n",
        b'data: {"choices":[{"text":"b"}]}\n\n',
    ]
    assert text_of(events) == "ab"
    assert text_of([b'data: {"choices":[{"delta":{"tool_calls":[{}]}}]}\n\n']) is None
    assert text_of([b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n']) is None


def test_a_continuation_reads_as_one_stream() -> None:
    rewrite = Continuation(b'data: {"id":"first","choices":[]}\n\n', 4).rewrite
    assert rewrite(b'data: {"id":"b","choices":[{"delta":{"role":"assistant","content":""}}]}\n\n') == b""
    text = b'data: {"id":"b","choices":[{"delta":{"content":"x"}}]}\n\n'
    assert rewrite(text) == text.replace(b'"b"', b'"first"')
    total = rewrite(
        b'data: {"id":"b","choices":[],"usage":{"prompt_tokens":14,"completion_tokens":6,"total_tokens":20}}\n\n'
    )
    assert b'"prompt_tokens":10,"completion_tokens":10,"total_tokens":20' in total
    known = Continuation(b"", 4, prompt_tokens=9).rewrite(b'data: {"choices":[],"usage":{"prompt_tokens":14}}\n\n')
    assert b'"prompt_tokens":9,"completion_tokens":4,"total_tokens":13' in known
    assert rewrite(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
