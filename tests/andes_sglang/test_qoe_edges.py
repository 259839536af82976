"""Edges of the QoE formulas that random streams do not meet: single tokens, equal paces, full buffers, limits."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.qoe import QoETarget, Readers, ReaderStream

TARGET = QoETarget(1.0, 4.0)


def stream(*deliveries_s: float, target: QoETarget = TARGET, tokens: int = 1) -> ReaderStream:
    made = ReaderStream(0.0, target)
    for at_s in deliveries_s:
        made.deliver(at_s, tokens)
    return made


@pytest.mark.parametrize(("ttft_s", "tds"), [(0.0, 1e-3), (1e6, 1e9)])
def test_the_limits_of_a_target_belong_to_it(ttft_s: float, tds: float) -> None:
    assert QoETarget(ttft_s, tds).tds == tds


@pytest.mark.parametrize(("ttft_s", "tds"), [(1e6 + 0.5, 1.0), (1.0, 1e9 + 0.5), (1.0, 9e-4), (-1e-9, 1.0)])
def test_beyond_the_limits_is_refused(ttft_s: float, tds: float) -> None:
    with pytest.raises(ValueError, match="got"):
        QoETarget(ttft_s, tds)


def test_no_tokens_are_no_delivery() -> None:
    reader = stream(2.0)
    before = reader.end_s, reader.delivered, reader.lateness_s
    reader.deliver(9.0, 0)
    assert (reader.end_s, reader.delivered, reader.lateness_s, reader.stalls) == (*before, 0)


def test_a_stall_shorter_than_a_second_is_one_and_none_is_none() -> None:
    short = stream(1.0, 1.75)  # the second token is due at 1.25
    assert (short.stalls, short.stall_s, short.longest_stall_s) == (1, pytest.approx(0.5), pytest.approx(0.5))
    none = stream(1.0, 1.25)
    assert (none.stalls, none.stall_s, none.longest_stall_s) == (0, 0.0, 0.0)


def test_the_longest_stall_is_not_the_last_one() -> None:
    reader = stream(1.0, 4.25, 5.5)  # stalls of 3 s and 1 s
    assert (reader.stalls, reader.stall_s, reader.longest_stall_s) == (2, pytest.approx(4.0), pytest.approx(3.0))


def test_buffered_tokens_are_read_at_the_pace_of_the_reader() -> None:
    reader = stream(0.0, tokens=20)
    assert [reader.buffered_tokens(at_s) for at_s in (0.0, 1.0, 3.0, 6.0, 7.0)] == pytest.approx([20, 20, 12, 0, 0])


def test_buffered_seconds_of_a_population() -> None:
    readers = Readers.of([stream(0.0, tokens=20), stream(), stream(3.0)])
    assert readers.buffered_s(2.0).tolist() == pytest.approx([4.0, -1.0, 1.25])


def test_rounding_never_leaves_the_unit_interval() -> None:
    reader = stream(1.0, 1.25)
    for lateness_s, score in ((-1e-9, 1.0), (1e9, 0.0)):
        reader.lateness_s = lateness_s
        assert (
            reader.final_qoe() == reader.qoe_at(5.0) == Readers.of([reader]).qoe_at(5.0)[0] == score or lateness_s < 0
        )
        assert reader.final_qoe() == score
    ahead = Readers.of([stream(1.0, tokens=50)])._replace(lateness_s=np.array([-100.0]))
    assert ahead.qoe_at(2.0).tolist() == [1.0]
    behind = ahead._replace(lateness_s=np.array([1e9]))
    assert behind.qoe_at(2.0).tolist() == [0.0]


def test_no_reader_is_no_row() -> None:
    assert Readers.of([]).qoe_at(1.0).shape == (0,)


@pytest.mark.parametrize(
    ("before", "first_s", "interval_s", "dt_s"),
    [
        ((), 0.0, 0.25, 3.0),  # exactly the reader's pace
        ((1.0,), 0.1, 0.25, 3.0),
        ((1.0,), 0.1, 5.0, 3.0),  # one token
        ((), 0.1, 5.0, 3.0),
        ((), 0.5, 0.5, 0.5),  # one token, at the very end
        ((), 4.0, 0.5, 3.0),  # none
        ((1.0,) * 40, 0.1, 1.0, 6.0),  # slower than the reader, who has more than all of it
        ((1.0,) * 40, 0.1, 0.01, 6.0),
        ((1.0,) * 4, 0.1, 1.0, 12.0),  # slower, and it runs dry on the way
        ((1.0,) * 2, 0.0, 0.3, 1.2),
    ],
)
def test_a_projection_is_what_deliveries_would_give(
    before: tuple[float, ...], first_s: float, interval_s: float, dt_s: float
) -> None:
    now_s = 2.0
    served = Readers.of([stream(*before)]).served(now_s, dt_s, first_s, interval_s)
    reader = stream(*before)
    at_s = now_s + first_s
    while at_s <= now_s + dt_s + 1e-12:
        reader.deliver(at_s)
        at_s += interval_s
    assert served.tolist() == pytest.approx([reader.qoe_at(now_s + dt_s)], abs=1e-9)


def test_deliveries_to_a_population_are_deliveries_to_each() -> None:
    readers = Readers.of([stream(), stream(1.0, tokens=8), stream(3.0)])
    after = readers.deliver(np.array([4.0, 4.0, 4.0]), np.array([2.0, 1.0, 0.0]))
    streams = [stream(), stream(1.0, tokens=8), stream(3.0)]
    streams[0].deliver(4.0, 2)
    streams[1].deliver(4.0, 1)
    for column, expected in zip(after, Readers.of(streams), strict=True):
        assert column.tolist() == pytest.approx(expected.tolist())
