"""Pacing: when tokens go out, and that no reader notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_api.pacing import Pacer
from andes_api.receipt import Receipt
from andes_api.response import MAX_PENDING_EVENTS, PacedResponseWriter, ResponseWriter
from andes_sglang.qoe import QoETarget, qoe_of_deliveries


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


NOW_S = 5000.0
"""A clock that has run for a while: nothing here may depend on when it began."""


def test_the_first_token_is_due_as_it_comes_and_the_next_when_the_one_before_is_read() -> None:
    pacer = Pacer(tds=5, interval_s=0.05)
    assert [pacer.due(NOW_S, 1) for _ in range(4)] == pytest.approx([NOW_S, NOW_S + 0.2, NOW_S + 0.4, NOW_S + 0.6])
    assert pacer.due(NOW_S + 0.7, 1) == pytest.approx(NOW_S + 0.8), "still unread"


def test_a_token_is_never_due_before_it_has_come() -> None:
    pacer = Pacer(tds=5, interval_s=0.05)
    assert pacer.due(NOW_S, 1) == NOW_S
    assert pacer.due(NOW_S + 3.0, 1) == NOW_S + 3.0
    assert pacer.due(NOW_S + 3.0, 1) == pytest.approx(NOW_S + 3.2), "from then on at the reader's speed"


def test_several_tokens_take_several_times_as_long_to_read() -> None:
    pacer = Pacer(tds=10, interval_s=0.05)
    assert [pacer.due(NOW_S, tokens) - NOW_S for tokens in (3, 0, 2, 1)] == pytest.approx([0.0, 0.3, 0.3, 0.5])


def test_what_is_due_goes_out_one_to_two_intervals_ahead() -> None:
    pacer = Pacer(tds=5, interval_s=0.05)
    assert pacer.wait_s(NOW_S + 0.2, NOW_S) == pytest.approx(0.15)
    assert pacer.wait_s(NOW_S + 0.05, NOW_S) == pytest.approx(0.0)
    assert pacer.wait_s(NOW_S - 9.0, NOW_S) == 0.0
    assert pacer.releases(NOW_S + 0.0999, NOW_S)
    assert pacer.releases(0.1, 0.0)
    assert not pacer.releases(NOW_S + 0.1001, NOW_S)


def test_a_paced_response_waits_when_it_holds_enough_and_writes_all_in_order() -> None:
    sent: list[bytes] = []
    delivered: list[int] = []

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def main() -> None:
        writer = PacedResponseWriter(
            send, lambda _now_s, tokens: delivered.append(tokens), Receipt(0.0, QoETarget()), Pacer(1e-3, 0.001)
        )
        await writer.write([(b"0", 1)])
        await asyncio.sleep(0)
        many = asyncio.ensure_future(writer.write([(b"x", 1)] * (MAX_PENDING_EVENTS + 5)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not many.done()
        assert writer.writing
        assert (sent, delivered) == ([b"0"], [1]), "the second is due in 1000 seconds"
        many.cancel()
        await writer.close()

    async def short() -> None:
        writer = PacedResponseWriter(
            send, lambda _now_s, tokens: delivered.append(tokens), Receipt(0.0, QoETarget()), Pacer(1e6, 0.001)
        )
        await writer.write([(b"a", 1), (b"b", 2)])
        assert not writer.writing
        await writer.write([(b"c", 0)])
        await writer.end()
        await writer.close()

    asyncio.run(main())
    sent.clear()
    delivered.clear()
    asyncio.run(short())
    assert (b"".join(sent), sum(delivered)) == (b"abc", 3)


def test_a_paced_response_that_has_to_hurry_holds_nothing_back() -> None:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def main() -> None:
        writer = PacedResponseWriter(send, lambda _now_s, _tokens: None, Receipt(0.0, QoETarget()), Pacer(1e-3, 0.001))
        await writer.write([(b"a", 1), (b"b", 1)])
        ending = asyncio.ensure_future(writer.end())
        await asyncio.sleep(0)
        writer.hurry()  # while it waits, 1000 seconds by its pace
        await asyncio.wait_for(ending, 60)

    asyncio.run(main())
    assert b"".join(sent) == b"ab"


def test_a_response_counts_what_the_socket_has_taken() -> None:
    order: list[Any] = []

    async def send(message: Any) -> None:
        order.append(message.get("body"))

    async def main() -> None:
        writer = ResponseWriter(send, lambda _now_s, tokens: order.append(tokens), Receipt(0.0, QoETarget()))
        assert not writer.started
        await writer.start(200, {"a": "b"})
        assert writer.started
        await writer.write([(b"x", 1), (b"", 2), (b"y", 0)])
        await writer.write([(b"", 4)])
        await writer.write([(b"z", 0)])
        await writer.end()
        assert not writer.sending

    asyncio.run(main())
    assert order == [None, b"xy", 3, 4, b"z", b""]
