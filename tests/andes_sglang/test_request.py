"""The score of a finished stream, and records on disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import (
    RecordsError,
    RequestRecord,
    RequestSpec,
    Score,
    TokenTimes,
    read_records,
    score,
    write_records,
)

GAPS = st.lists(st.floats(0, 20), min_size=1, max_size=60)
TARGETS = st.builds(QoETarget, st.floats(0, 10), st.floats(0.2, 30))


@given(GAPS, TARGETS, st.floats(0, 100))
def test_one_running_maximum_is_the_reader_token_by_token(gaps: list[float], target: QoETarget, arrival: float) -> None:
    times = arrival + np.cumsum(gaps)
    reader = ReaderStream(arrival, target)
    stalls: list[float] = []
    for at in times.tolist():
        before = reader.stall_s
        reader.deliver(at)
        stalls.append(reader.stall_s - before)
    found = score(times, arrival, target)
    assert found.qoe == pytest.approx(reader.final_qoe(), abs=1e-9)
    assert found.stall_s == pytest.approx(reader.stall_s, abs=1e-9)
    assert found.longest_stall_s == pytest.approx(max(stalls), abs=1e-9)
    assert reader.longest_stall_s == pytest.approx(max(stalls), abs=1e-9)
    assert found.stalls == reader.stalls == sum(s > 0 for s in stalls)


@pytest.mark.parametrize(
    ("times", "stalls", "stall_s", "longest_s"),
    [
        ([0.5, 4.0, 5.0, 6.0], 1, 2.0, 2.0),  # the first is the longest
        ([0.5, 4.0, 9.0, 12.0], 3, 8.0, 4.0),  # one in the middle
        ([0.5, 4.0, 6.0, 13.0], 3, 9.0, 6.0),  # the last
        ([5.0, 6.0, 7.0, 8.0], 0, 0.0, 0.0),  # late from the start, and never again
        ([0.1, 0.2, 0.3, 0.4], 0, 0.0, 0.0),
        ([9.0], 0, 0.0, 0.0),
    ],
)
def test_stalls_are_inside_the_answer_and_the_longest_is_told(
    times: list[float], stalls: int, stall_s: float, longest_s: float
) -> None:
    target = QoETarget(1.0, 1.0)
    found = score(np.array(times), 0.0, target)
    assert (found.stalls, found.stall_s, found.longest_stall_s) == (stalls, stall_s, longest_s)
    reader = ReaderStream(0.0, target)
    for at in times:
        reader.deliver(at)
    assert (reader.stalls, reader.stall_s, reader.longest_stall_s) == (stalls, stall_s, longest_s)


def test_a_stream_of_nothing_scores_nothing() -> None:
    assert score(np.array([]), 0.0, QoETarget()) == Score(0.0, 0, 0.0, 0.0, 0.0)


def test_answers_longer_than_the_table_of_token_numbers() -> None:
    n = (1 << 16) + 5
    on_time = 1.0 + np.arange(n) / 4.8
    assert score(on_time, 0.0, QoETarget(1.0, 4.8)).qoe == pytest.approx(1.0)
    late = score(on_time + 1000.0, 0.0, QoETarget(1.0, 4.8))
    assert late.stalls == 0  # rounding is none
    assert late.qoe == pytest.approx(1 - 1000.0 / (1000.0 + n / 9.6), abs=1e-6)


def test_a_token_is_effective_while_the_reader_has_less_than_a_fifth_of_the_answer() -> None:
    """20 tokens at once: the reader holds 0 to 19 of them as each arrives; full below 2 (10 %), nothing from 4 (20 %)."""
    at_once = score(np.zeros(20), 0.0, QoETarget(1.0, 10.0))
    assert at_once.effective_tokens == pytest.approx(1 + 1 + 1 + 0.5)
    dry = score(np.arange(20) * 10.0, 0.0, QoETarget(0.0, 10.0))
    assert dry.effective_tokens == pytest.approx(20.0)
    unread = score(np.array([0.0, 0.0, 50.0, 50.0]), 0.0, QoETarget(0.0, 1.0))
    assert unread.effective_tokens == pytest.approx(2.0)  # a quarter of the answer ahead is worth nothing


def test_a_record_scores_what_it_delivered() -> None:
    record = RequestRecord(0, 2.0, 2.0, 10, 3, 1.0, 1.0, [(5.0, 2), (9.0, 1)], 9.0)
    assert record.target == QoETarget(1.0, 1.0)
    assert record.token_times_s.tolist() == [5.0, 5.0, 9.0]
    assert record.ttft_s == 3.0
    assert record.score() == score(np.array([5.0, 5.0, 9.0]), 2.0, QoETarget(1.0, 1.0))
    assert record.qoe == record.score().qoe == pytest.approx(record.reader().final_qoe())
    record.error = "HTTP 503"
    assert record.qoe == 0.0
    assert RequestRecord(0, 2.0, 2.0, 10, 3, 1.0, 1.0, [], 7.5).ttft_s == 5.5


def test_token_times_are_deliveries_of_one_token_each() -> None:
    times = TokenTimes(np.array([1.0, 2.0, 4.0]))
    assert list(times) == [(1.0, 1), (2.0, 1), (4.0, 1)]
    assert list(times[1:]) == [(2.0, 1), (4.0, 1)]
    record = RequestRecord(0, 0.5, 0.5, 10, 3, 1.0, 1.0, times)
    assert record.token_times_s is times.times_s
    assert record.ttft_s == 0.5


def test_what_a_request_says_of_its_reader() -> None:
    spec = RequestSpec(0.0, 1, 1, QoETarget(2.0, 3.0), weight=4.0, yields=True, expected_tokens=5)
    assert spec.expectation == ReaderExpectation(QoETarget(2.0, 3.0), 4.0, True, 5)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [
        RequestRecord(0, 0.25, 0.5, 10, 2, 1.0, 4.8, [(1.23456, 1), (2.0, 3)], 2.0, preemptions=1, replica=0),
        RequestRecord(1, 0.5, 0.5, 10, 2, 1.0, 4.8, [], 0.0, "HTTP 503"),
    ]
    write_records(tmp_path / "r.gz", records)
    again = read_records(tmp_path / "r.gz")
    records[0].deliveries = [(1.2346, 1), (2.0, 3)]
    assert again == records
    path = tmp_path / "null.gz"
    path.write_bytes(gzip.compress(damaged(error=None, holds=None).encode()))
    assert read_records(path) == [RequestRecord(1, 0.0, 0.0, 1, 1, 1.0, 1.0)]


def damaged(**change: object) -> str:
    record = {
        "index": 1, "arrival_s": 0.0, "sent_s": 0.0, "prompt_tokens": 1, "output_tokens": 1, "ttft_target_s": 1.0, "tds": 1.0,
        "deliveries": [],
    }  # fmt: skip
    return json.dumps(record | change)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "row 2: not JSON (Expecting property name"),
        ("[]", "row 2: expected an object, got []"),
        ('{"index": 1}', "is missing"),
        (damaged(hello=1), "row 2, field hello: unknown; known are arrival_s, deliveries,"),
        (damaged(arrival_s="soon"), "row 2, field arrival_s: expected a number, got 'soon'"),
        (damaged(end_s=float("nan")), "row 2, field end_s: expected a number, got nan"),
        (damaged(ttft_target_s=True), "row 2, field ttft_target_s: expected a number, got True"),
        (damaged(tds=-1), "row 2: tds must be a number of tokens/s from 1e-3 to 1e9, got -1"),
        (damaged(output_tokens=None), "row 2, field output_tokens: expected a whole number >= 0, got None"),
        (damaged(prompt_tokens=2.5), "row 2, field prompt_tokens: expected a whole number >= 0, got 2.5"),
        (damaged(reason_tokens=-3), "row 2, field reason_tokens: expected a whole number >= 0, got -3"),
        (damaged(error=7), "row 2, field error: expected a text, got 7"),
        (damaged(deliveries="x"), "row 2, field deliveries: expected [[seconds, tokens], ...], got 'x'"),
        (damaged(deliveries=[[1.0]]), "row 2, field deliveries: expected [[seconds, tokens], ...], got [[1.0]]"),
        (damaged(deliveries=[[1.0, -5], [2.0, 7]]), "field deliveries: expected [[seconds, tokens], ...]"),
        (damaged(deliveries=[[1.0, float("inf")]]), "field deliveries: expected [[seconds, tokens], ...]"),
        (damaged(deliveries=[[1.0, 1], [2.0, 500_000_000]]), "row 2: an answer of 500000001 tokens; expected at most"),
        (damaged(holds=[[1.0]]), "row 2, field holds: expected [[seconds, seconds], ...], got [[1.0]]"),
    ],
)
def test_a_damaged_record_is_named(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    write_records(path, [RequestRecord(0, 0.0, 0.0, 1, 1, 1.0, 1.0)])
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + line.encode()))
    with pytest.raises(RecordsError) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("raw", [b"plain text", gzip.compress(b"x" * 1000, mtime=0)[:-9], None])
def test_a_file_that_is_no_archive_is_named(raw: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(RecordsError, match=r"r.gz: cannot be read \("):
        read_records(path)
