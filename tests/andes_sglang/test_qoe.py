"""QoE against the definition, written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from andes_sglang.qoe import QoETarget, Readers, ReaderStream, qoe_of_deliveries

GAPS = st.lists(st.floats(0, 20), min_size=1, max_size=60)
TARGETS = st.builds(QoETarget, st.floats(0, 10), st.floats(0.2, 30))


def digest_times(deliveries: list[float], arrival: float, target: QoETarget) -> list[float]:
    digest: list[float] = []
    for k, at in enumerate(deliveries):
        digest.append(max(at, arrival + target.ttft_s if k == 0 else digest[-1] + 1 / target.tds))
    return digest


def reference_qoe(deliveries: list[float], arrival: float, target: QoETarget) -> float:
    n = len(deliveries)
    digest = digest_times(deliveries, arrival, target)
    ideal = [arrival + target.ttft_s + k / target.tds for k in range(n)]
    end = digest[-1] + 1 / target.tds
    return 1 - sum(d - i for d, i in zip(digest, ideal, strict=True)) / (
        n * end - n * ideal[0] - n * n / (2 * target.tds)
    )


def reference_qoe_at(deliveries: list[float], arrival: float, target: QoETarget, now: float) -> float:
    """Both curves integrated up to ``now``: each digested token is a ramp of 1/tds seconds, then a plateau."""
    u = now - arrival - target.ttft_s
    if u <= 0:
        return 1.0
    area = 0.0
    for digest in digest_times([d for d in deliveries if d <= now], arrival, target):
        since = now - digest
        if since > 0:
            ramp = min(since, 1 / target.tds)
            area += target.tds * ramp * ramp / 2 + (since - ramp)
    return area / (target.tds * u * u / 2)


@given(GAPS, TARGETS, st.integers(1, 3000))
def test_the_clock_waits_for_the_thought_and_then_stands(gaps: list[float], target: QoETarget, thought: int) -> None:
    reader = ReaderStream(7.0, target)
    for tokens in (thought - thought // 2, thought // 2):
        reader.think(tokens)
    assert reader.start_s == pytest.approx(7.0 + target.ttft_s + thought / target.think_tds)
    deliveries = times(gaps, reader.start_s)
    for at in deliveries:
        reader.deliver(at)
        reader.think(50)  # between the parts of the answer: it costs time like any other wait
    later = QoETarget(target.ttft_s + thought / target.think_tds, target.tds)
    assert reader.final_qoe() == pytest.approx(qoe_of_deliveries(deliveries, 7.0, later))
    assert (reader.delivered, reader.thought_tokens) == (len(deliveries), thought)


def test_a_thought_without_an_answer_is_nothing_to_read() -> None:
    reader = ReaderStream(0.0, QoETarget(1.0, 4.0))
    reader.think(250)
    assert reader.final_qoe() == 0.0
    assert reader.qoe_at(10.9) == 1.0
    assert reader.qoe_at(11.1) == 0.0


def times(gaps: list[float], arrival: float) -> list[float]:
    return [float(t) for t in arrival + np.cumsum(gaps)]


@pytest.mark.parametrize(
    ("deliveries", "expected"),
    [
        ([5.0 + 0.2 * k for k in range(25)], 0.7576),
        ([5.0 + 0.2 * k for k in range(75)], 0.9036),
        ([0.2 * k for k in range(5)] + [10 + 0.2 * k for k in range(5)], 0.7778),
        ([0.0, 2.0, 4.0, 6.0, 8.0], 0.7818),
    ],
)
@pytest.mark.parametrize("arrival", [0.0, 1.7e9])
def test_the_vectors_of_the_definition(deliveries: list[float], expected: float, arrival: float) -> None:
    score = qoe_of_deliveries([arrival + d for d in deliveries], arrival, QoETarget(1.0, 1.0))
    assert score == pytest.approx(expected, abs=6e-5)


@given(GAPS, TARGETS, st.floats(0, 100))
def test_streaming_equals_the_definition_and_stays_in_bounds(
    gaps: list[float], target: QoETarget, arrival: float
) -> None:
    deliveries = times(gaps, arrival)
    score = qoe_of_deliveries(deliveries, arrival, target)
    assert 0.0 <= score <= 1.0
    assert score == pytest.approx(reference_qoe(deliveries, arrival, target), abs=1e-9)


@given(GAPS, TARGETS, st.data())
def test_a_token_delivered_earlier_never_lowers_the_score(
    gaps: list[float], target: QoETarget, data: st.DataObject
) -> None:
    """On one common horizon. The final score alone may fall: an earlier last token also shortens the horizon."""
    deliveries = times(gaps, 0.0)
    k = data.draw(st.integers(0, len(deliveries) - 1))
    earliest = deliveries[k - 1] if k else 0.0
    sooner = [*deliveries[:k], data.draw(st.floats(earliest, deliveries[k])), *deliveries[k + 1 :]]
    late, early = ReaderStream(0.0, target), ReaderStream(0.0, target)
    for a, b in zip(deliveries, sooner, strict=True):
        late.deliver(a)
        early.deliver(b)
    now = deliveries[-1] + data.draw(st.floats(0, 50))
    assert early.lateness_s <= late.lateness_s + 1e-9
    assert early.qoe_at(now) >= late.qoe_at(now) - 1e-9 * max(1.0, now / max(1e-3, now - target.ttft_s)) ** 2


def test_the_final_score_ends_with_the_last_token() -> None:
    """The published formula scores [0, 0, 1, 1, 1] below [0, 0, 1, 1, 2] at 4 tokens/s: its horizon is shorter."""
    target = QoETarget(0.0, 4.0)
    assert qoe_of_deliveries([0, 0, 1, 1, 1], 0.0, target) == pytest.approx(0.7333, abs=1e-4)
    assert qoe_of_deliveries([0, 0, 1, 1, 2], 0.0, target) == pytest.approx(0.7538, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), TARGETS)
def test_faster_than_reading_changes_nothing(fractions: list[float], target: QoETarget) -> None:
    on_time = [target.ttft_s + k / target.tds for k in range(len(fractions))]
    early = sorted(f * at for f, at in zip(fractions, on_time, strict=True))
    early = [min(e, at) for e, at in zip(early, on_time, strict=True)]
    assert qoe_of_deliveries(early, 0.0, target) == pytest.approx(1.0, abs=1e-9)
    assert qoe_of_deliveries(on_time, 0.0, target) == pytest.approx(1.0, abs=1e-9)


@given(GAPS, TARGETS, st.floats(0, 50))
def test_qoe_of_a_running_stream(gaps: list[float], target: QoETarget, later: float) -> None:
    deliveries = times(gaps, 0.0)
    stream = ReaderStream(0.0, target)
    for at in deliveries:
        stream.deliver(at)
    now = deliveries[-1] + later
    u = now - target.ttft_s
    assume(abs(u) > 1e-6)
    expected = reference_qoe_at(deliveries, 0.0, target, now)
    tolerance = 1e-9 if u <= 0 else 1e-9 + 1e-12 * (len(gaps) * now) / (target.tds * u * u / 2)
    assert stream.qoe_at(now) == pytest.approx(min(1.0, expected), abs=tolerance)
    assert Readers.of([stream]).qoe_at(now)[0] == pytest.approx(stream.qoe_at(now), abs=1e-12)


def test_before_the_first_token() -> None:
    stream = ReaderStream(10.0, QoETarget(1.0, 4.0))
    assert stream.qoe_at(11.0) == 1.0
    assert stream.qoe_at(11.1) == 0.0
    assert stream.final_qoe() == 0.0


@given(GAPS, TARGETS, st.integers(1, 20))
def test_a_group_of_tokens_is_that_many_tokens_at_once(gaps: list[float], target: QoETarget, group: int) -> None:
    one, many = ReaderStream(0.0, target), ReaderStream(0.0, target)
    for at in times(gaps, 0.0):
        many.deliver(at, group)
        for _ in range(group):
            one.deliver(at)
    assert many.delivered == one.delivered
    assert many.final_qoe() == pytest.approx(one.final_qoe(), abs=1e-9)
    assert many.stall_s == pytest.approx(one.stall_s, abs=1e-9)


@given(
    GAPS,
    TARGETS,
    st.floats(0, 30),
    st.floats(0.3, 120),
    st.floats(0, 5),
    st.floats(0.01, 3),
)
def test_projections_equal_a_token_by_token_projection(
    gaps: list[float], target: QoETarget, later: float, dt: float, first: float, interval: float
) -> None:
    deliveries = times(gaps, 0.0)
    now = deliveries[-1] + later
    if abs((dt - first) / interval - round((dt - first) / interval)) < 1e-6 or abs(now + dt - target.ttft_s) < 1e-3:
        return
    stream = ReaderStream(0.0, target)
    for at in deliveries:
        stream.deliver(at)
    readers = Readers.of([stream, ReaderStream(0.0, target)])
    count = max(0, math.floor((dt - first) / interval) + 1)
    future = [now + first + j * interval for j in range(count)]
    u = now + dt - target.ttft_s
    scale = 1.0 if u <= 0 else max(1.0, (len(gaps) + count) * (now + dt) / (target.tds * u * u / 2) / 1000)
    for row, past in enumerate((deliveries, [])):
        served = readers.served(now, dt, first, interval)[row]
        assert served == pytest.approx(
            min(1.0, reference_qoe_at(past + future, 0.0, target, now + dt)), abs=1e-9 * scale
        )
        waiting = readers.waiting(now, dt)[row]
        assert waiting == pytest.approx(min(1.0, reference_qoe_at(past, 0.0, target, now + dt)), abs=1e-9 * scale)


def test_projection_broadcasts_over_candidate_intervals() -> None:
    streams = [ReaderStream(float(k), QoETarget(1.0, 4.0)) for k in range(5)]
    readers = Readers.of(streams)
    grid = readers.served(20.0, 10.0, 0.1, np.array([[0.05], [0.5]]))
    assert grid.shape == (2, 5)
    assert np.array_equal(grid[1], readers.served(20.0, 10.0, 0.1, 0.5))


@given(GAPS, st.sampled_from([0.0, 1e6]), st.sampled_from([1e-3, 1e9]), st.floats(0, 1e6))
def test_the_most_extreme_targets_overflow_nothing(gaps: list[float], ttft: float, tds: float, later: float) -> None:
    stream = ReaderStream(1e9, QoETarget(ttft, tds))
    for at in times(gaps, 1e9):
        stream.deliver(at)
    now = 1e9 + sum(gaps) + later
    assert 0 <= stream.final_qoe() <= 1
    with np.errstate(all="raise", under="ignore"):
        readers = Readers.of([stream, ReaderStream(1e9, QoETarget(ttft, tds))])
        for projected in (readers.qoe_at(now), readers.waiting(now, 100.0), readers.served(now, 100.0, 0.1, 0.03)):
            assert np.isfinite(projected).all()


@pytest.mark.parametrize(("ttft", "tds"), [(0, 1e-3), (1e6, 1e9), (0.5, 4)])
def test_a_target_at_the_ends_of_its_ranges_is_accepted(ttft: float, tds: float) -> None:
    assert QoETarget(ttft, tds) == QoETarget(ttft_s=ttft, tds=tds)


@pytest.mark.parametrize(
    ("ttft", "tds", "says"),
    [
        (1e6 + 1, 4, r"ttft must be a number of seconds from 0 to 1e6, got 1000001.0"),
        (1, 9.9e-4, r"tds must be a number of tokens/s from 1e-3 to 1e9, got 0.00099"),
        (1, 1.1e9, r"tds must be a number of tokens/s from 1e-3 to 1e9, got 1100000000.0"),
    ],
)
def test_a_target_beyond_the_ends_names_field_and_value(ttft: float, tds: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        QoETarget(ttft, tds)


@pytest.mark.parametrize(
    ("ttft", "tds"),
    [(-1, 4), (float("nan"), 4), (1, 0), (1, float("inf")), (True, 4), ("1", 4), (10**400, 4), (1, 5e-324), (1, 1e300)],
)
def test_a_target_that_makes_no_sense_is_refused(ttft: float, tds: float) -> None:
    with pytest.raises(ValueError, match="got"):
        QoETarget(ttft, tds)


def test_stalls_are_counted_inside_the_answer_only() -> None:
    stream = ReaderStream(0.0, QoETarget(1.0, 1.0))
    for at in (5.0, 6.0, 9.0, 9.0, 15.0):
        stream.deliver(at)
    assert (stream.stalls, stream.stall_s, stream.longest_stall_s) == (2, pytest.approx(6.0), pytest.approx(4.0))
    assert stream.buffered_tokens(15.5) == pytest.approx(0.5)


def test_the_longest_stall_need_not_be_the_last() -> None:
    stream = ReaderStream(0.0, QoETarget(1.0, 1.0))
    longest = []
    for at in (1.0, 2.5, 7.5, 10.0):  # waits of 0.5, 4 and 1.5 s
        stream.deliver(at)
        longest.append(stream.longest_stall_s)
    assert longest == [0.0, 0.5, 4.0, 4.0]
    assert (stream.stalls, stream.stall_s) == (3, 6.0)


def test_rounding_is_no_stall() -> None:
    stream = ReaderStream(1.7e9, QoETarget(1.0, 1.0))
    for at in (1.0, 2.0 + 5e-7, 3.0 + 2e-6):
        stream.deliver(1.7e9 + at)
    assert stream.stalls == 1


def test_delivering_nothing_changes_nothing() -> None:
    stream = ReaderStream(0.0, QoETarget(1.0, 1.0))
    stream.deliver(5.0, 0)
    stream.deliver(5.0, -2)
    assert (stream.delivered, stream.end_s, stream.lateness_s, stream.stalls) == (0, 0.0, 0.0, 0)


def test_the_buffer_is_what_was_delivered_until_reading_begins() -> None:
    stream = ReaderStream(10.0, QoETarget(2.0, 4.0))
    assert stream.buffered_tokens(10.0) == 0.0
    stream.deliver(10.5, 8)
    assert [stream.buffered_tokens(at) for at in (10.5, 12.0, 12.5, 14.0, 15.0)] == [8.0, 8.0, 6.0, 0.0, 0.0]


def test_seconds_until_readers_run_dry() -> None:
    fed, dry, fresh = (ReaderStream(10.0, QoETarget(2.0, 4.0)) for _ in range(3))
    fed.deliver(10.5, 8)
    dry.deliver(10.5, 2)
    readers = Readers.of([fed, dry, fresh])
    assert readers.buffered_s(13.0).tolist() == [1.0, -0.5, -1.0]
    assert readers.take(np.array([2, 0])).buffered_s(13.0).tolist() == [-1.0, 1.0]
    assert readers.take(np.array([False, True, False])).delivered.tolist() == [2.0]
    assert [len(column) for column in Readers.of([])] == [0] * 5


@given(st.lists(st.tuples(GAPS, TARGETS, st.integers(0, 5)), min_size=1, max_size=5), st.floats(0, 50))
def test_delivering_to_all_at_once_is_delivering_to_each(
    readers: list[tuple[list[float], QoETarget, int]], later: float
) -> None:
    streams = []
    for gaps, target, _ in readers:
        streams.append(ReaderStream(0.0, target))
        for at in times(gaps, 0.0):
            streams[-1].deliver(at)
    now = max(sum(gaps) for gaps, _, _ in readers) + later
    before = Readers.of(streams)
    after = before.deliver(now, np.array([float(tokens) for _, _, tokens in readers]))
    for stream, (_, _, tokens) in zip(streams, readers, strict=True):
        stream.deliver(now, tokens)
    for found, expected in zip(after, Readers.of(streams), strict=True):
        assert found == pytest.approx(expected, abs=1e-9)


def test_columns_are_copies() -> None:
    stream = ReaderStream(0.0, QoETarget(1.0, 1.0))
    readers = Readers.of([stream])
    stream.deliver(5.0, 3)
    assert readers.delivered.tolist() == [0.0]
    readers.delivered[0] = 7.0
    assert stream.delivered == 3
