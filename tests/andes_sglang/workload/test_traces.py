"""Recorded workloads: each format, and what is said of files that cannot be read. The examples are those of the page."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from andes_sglang.qoe import QoETarget
from andes_sglang.workload import FORMATS, RequestSpec, WorkloadError, load_rates, load_trace
from andes_sglang.workload.traces.andes import DESCRIPTIVE, REPLAYED

PAGE = (Path(__file__).parents[3] / "docs" / "traces.md").read_text()
EXAMPLES = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.M | re.S))
OURS = json.dumps({"arrival_s": 0.5, "prompt_tokens": 1100, "output_tokens": 7, "blocks": [[4, 2]]}) + "\n"


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "rates.csv"])
def test_the_examples_of_the_page_are_recognised(name: str, tmp_path: Path) -> None:
    form = name.partition(".")[0]
    workload = load_trace(write(tmp_path / name, EXAMPLES[name]), seed=3)
    assert workload == load_trace(tmp_path / name, form=form, seed=3)
    assert workload.requests[0].arrival_s == 0.0


def test_every_format_has_an_example_and_every_column_a_line() -> None:
    assert {name.partition(".")[0] for name in EXAMPLES} == {*FORMATS, "rates"}
    columns = set(re.findall(r"^\| `(.+?)` \|", PAGE, re.M))
    assert columns > {f.marker for f in FORMATS.values()} | REPLAYED
    assert all(f"`{name}`" in PAGE for name in DESCRIPTIVE)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("azure.csv", (RequestSpec(0.0, 374, 44), RequestSpec(4.314579, 396, 109))),
        ("burstgpt.csv", (RequestSpec(0.0, 472, 18), RequestSpec(113.0, 417, 276))),
        ("andes.csv", (RequestSpec(0.0, 200, 100), RequestSpec(0.7, 250, 120, QoETarget(2.0, 4.8), yields=True))),
        (
            "andes.jsonl",
            (
                RequestSpec(0.0, 1100, 220, session_id="a", blocks=(0, 1)),
                RequestSpec(1.5, 300, 150, QoETarget(0.5, 6.0), weight=3.0),
                RequestSpec(2.0, 4000, 600, yields=True, expected_tokens=600),
            ),
        ),
    ],
)  # fmt: skip
def test_every_column_is_replayed(name: str, rest: tuple[RequestSpec, ...], tmp_path: Path) -> None:
    for found, expected in zip(load_trace(write(tmp_path / name, EXAMPLES[name])), rest, strict=True):
        assert found.arrival_s == pytest.approx(expected.arrival_s, abs=1e-5)
        fields = ("prompt_tokens", "output_tokens", "target", "session_id", "blocks", "weight", "yields",
                  "expected_tokens", "max_tokens")  # fmt: skip
        assert [getattr(found, f) for f in fields] == [getattr(expected, f) for f in fields]


def test_mooncakes_arrivals_are_spread_inside_the_tick_by_seed(tmp_path: Path) -> None:
    rows = [{"timestamp": 3000 * (k // 50), "input_length": 9, "output_length": 0, "hash_ids": []} for k in range(100)]
    path = write(tmp_path / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    workload = load_trace(path, seed=1)
    at = [r.arrival_s for r in workload]
    assert at == sorted(at)
    assert len(set(at)) == 100
    assert 5.5 < at[-1] < 6.0
    assert at[:50] < [3.0] * 50
    assert {r.output_tokens for r in workload} == {1}
    assert workload == load_trace(path, seed=1)
    assert workload != load_trace(path, seed=2)
    example = load_trace(write(tmp_path / "e.jsonl", EXAMPLES["mooncake.jsonl"]))
    assert [r.blocks for r in example] == [(46, 47, 48), (46, 47, 49, 50)]


def test_azures_clock_is_utc_and_has_no_summer_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        rows = "2024-10-27 00:30:00,9,9\n2024-10-27 03:30:00,9,9\n2024-10-27 05:30:00+02:00,9,0\n"
        workload = load_trace(write(tmp_path / "\ufeffmarked.csv", "\ufeff" + head + rows))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [r.arrival_s for r in workload] == [0.0, 3 * 3600.0, 3 * 3600.0]
    assert workload.requests[-1].output_tokens == 1


def test_what_a_row_says_of_its_reader_wins_over_the_population(tmp_path: Path) -> None:
    rows = [{}, {"ttft_s": 0.5}, {"tds": 6.0}, {"ttft_s": 3.0, "tds": 2.0}]
    text = "".join(
        json.dumps({"arrival_s": float(k), "prompt_tokens": 9, "output_tokens": 9, **row}) + "\n"
        for k, row in enumerate(rows)
    )
    whole = load_trace(write(tmp_path / "o.jsonl", text))
    asked = whole.with_readers(1, ttft_s=2.0, tds=4.0, population=None)
    assert [(r.target.ttft_s, r.target.tds) for r in asked] == [(2.0, 4.0), (0.5, 4.0), (2.0, 6.0), (3.0, 2.0)]
    again = whole.scaled(start_s=1.0, limit=2).with_readers(1, ttft_s=2.0, tds=4.0, population=None)
    assert [(r.target.ttft_s, r.target.tds) for r in again] == [(0.5, 4.0), (2.0, 6.0)]


def test_a_byte_order_mark_and_compression_change_nothing(tmp_path: Path) -> None:
    plain = load_trace(write(tmp_path / "a.csv", EXAMPLES["azure.csv"]))
    assert load_trace(write(tmp_path / "b.csv", "\ufeff" + EXAMPLES["azure.csv"])).requests == plain.requests
    assert load_trace(write(tmp_path / "c.csv.gz", EXAMPLES["azure.csv"])).requests == plain.requests


def broken(**change: object) -> str:
    row = {"arrival_s": 1.0, "prompt_tokens": 5, "output_tokens": 5} | change
    return OURS + json.dumps(row) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (broken(prompt_tokens=-3), "row 2, field prompt_tokens: must be a number >= 1, got -3"),
        (broken(prompt_tokens=3.5), "row 2, field prompt_tokens: expected a whole number of tokens, got 3.5"),
        (broken(arrival_s="soon"), "row 2, field arrival_s: expected a number, got 'soon'"),
        (broken(arrival_s=True), "row 2, field arrival_s: must be a number >= 0, got True"),
        (broken(output_tokens=None), "row 2, field output_tokens: expected a number"),
        (broken(blocks=[3]), "row 2, field blocks: expected [[start, count], ...], got [3]"),
        (broken(ttft_s=-1), "row 2, field ttft_s: must be a number >= 0, got -1"),
        (broken(ttft_s=2e6), "row 2, field ttft_s: ttft must be a number of seconds from 0 to 1e6, got 2000000.0"),
        (broken(tds=0), "row 2, field tds: tds must be a number of tokens/s from 1e-3 to 1e9, got 0"),
        (broken(tds="fast"), "row 2, field tds: expected a number, got 'fast'"),
        (broken(weight=0), "row 2, field weight: weight must be a number from 0.001 to 1000, got 0"),
        (broken(**{"yield": "maybe"}), "row 2, field yield: expected true or false, got 'maybe'"),
        (broken(**{"yield": 1}), "row 2, field yield: expected true or false, got 1"),
        (broken(expected_tokens=0), "row 2, field expected_tokens: must be a number >= 1, got 0"),
        (broken(expected_tokens=10**8), "row 2, field expected_tokens: tokens must be a whole number"),
        (broken(reason_tokens=6), "row 2, field reason_tokens: must be at most output_tokens (5), got 6"),
        (broken(reason_tokens=1.5), "row 2, field reason_tokens: expected a whole number of tokens"),
        (broken(ttft=1.0), "row 2, field ttft: unknown; known are arrival_s, blocks,"),
        (OURS + "{oops\n", "row 2: not JSON"),
        (OURS + "[1]\n", "row 2: expected an object, got [1]"),
        ('{"hello": 1}\n', "row 1: no known format; looked for the fields of andes (arrival_s), mooncake"),
        ("Timestamp,Request tokens,Response tokens\n5,9,0\n", "no row holds a request with an answer"),
        ("", "no rows; docs/traces.md has the formats"),
        ("hello\n", "no rows"),
        (broken(prompt_tokens=0) + "oops\n" + OURS + "[1]\n", "3 rows are wrong:"),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "bad.jsonl", text)
    with pytest.raises(WorkloadError) as caught:
        load_trace(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_descriptive_columns_are_not_replayed(tmp_path: Path) -> None:
    path = write(tmp_path / "o.jsonl", broken(turn=2, client=7, src_row=1, x_anything=[1]))
    assert len(load_trace(path)) == 2


def test_thoughts_are_read_and_scale_with_their_answers(tmp_path: Path) -> None:
    workload = load_trace(write(tmp_path / "o.jsonl", broken(output_tokens=500, reason_tokens=300)))
    assert [r.reason_tokens for r in workload] == [0, 300]
    half = workload.scaled(output_scale=0.5).requests[1]
    assert (half.output_tokens, half.reason_tokens) == (250, 150)
    assert workload.scaled(max_output=200).requests[1].reason_tokens == 200
    shown = workload.with_reasoning_shown().requests[1]
    assert (shown.output_tokens, shown.reason_tokens, shown.expectation.reasoning) == (500, 0, "shown")


def test_the_clients_limit_is_read(tmp_path: Path) -> None:
    first, second = load_trace(write(tmp_path / "o.jsonl", broken(max_tokens=64)))
    assert (first.max_tokens, second.max_tokens) == (None, 64)


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"--format 'parquet': choose one of andes, mooncake, azure, burstgpt"):
        load_trace(write(tmp_path / "o.jsonl", OURS), form="parquet")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nowhere.csv: cannot be read"):
        load_trace(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-9], lambda raw: raw[:12] + b"x" * 40], ids=["cut", "garbled"])
def test_a_damaged_archive_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(spoil(gzip.compress((OURS * 50).encode())))
    with pytest.raises(WorkloadError, match=r"bad.jsonl.gz: a damaged gzip file"):
        load_trace(path)


def test_rates_are_cut_to_a_window_and_refused_when_they_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(EXAMPLES["rates.csv"])
    assert load_rates(path) == ((600.0, 2.5), (600.0, 4.0), (600.0, 1.0))
    assert load_rates(path, start_s=300.0, duration_s=600.0, scale=0.5) == ((300.0, 1.25), (300.0, 2.0))
    with pytest.raises(WorkloadError, match=r"rates.csv: no request arrives after second 5000"):
        load_rates(path, start_s=5000.0)
    path.write_text("window_start_s,rate_rps\n0,-10\n600,20\n")
    with pytest.raises(WorkloadError, match=r"row 2, field rate_rps: must be a number >= 0, got '-10'"):
        load_rates(path)
    path.write_text("window_start_s,rate_rps\n0,1e12\n600,20\n")
    with pytest.raises(WorkloadError, match=r"6e\+14 requests in a window of 600 s; .* expected at most 10,000,000"):
        load_rates(path)
    assert load_rates(path, scale=1e-9) == ((600.0, pytest.approx(1000.0)), (600.0, pytest.approx(20e-9)))
    for starts in ((600, 0), (0, 0), (0,)):
        path.write_text("window_start_s,rate_rps\n" + "".join(f"{start},10\n" for start in starts))
        with pytest.raises(WorkloadError, match=r"field window_start_s: expected two or more windows in order"):
            load_rates(path)
    path.write_text("ContextTokens\n1\n")
    assert load_rates(path) is None


def test_rows_without_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    head = "Timestamp,Model,Request tokens,Response tokens\n"
    workload = load_trace(write(tmp_path / "b.csv", head + "1,m,10,20\n2,m,10,0\n3,m,0,5\n4,m,7,8\n"))
    assert [(r.prompt_tokens, r.output_tokens) for r in workload] == [(10, 20), (7, 8)]
    assert workload.left_out == 2
    assert workload.scaled(limit=1).with_readers(1, ttft_s=1, tds=5, population=None).left_out == 2
    assert workload.describe()["rows_left_out"] == 2
    assert "rows_left_out" not in load_trace(write(tmp_path / "c.csv", head + "1,m,10,20\n")).describe()


def test_wrong_rows_are_named_up_to_ten(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows = ["2023-11-16 18:15:46,10,5"] + [f"2023-11-16 18:15:47,bad{k},5" for k in range(12)]
    with pytest.raises(WorkloadError) as caught:
        load_trace(write(tmp_path / "a.csv", head + "\n".join(rows)))
    lines = str(caught.value).splitlines()
    assert lines[0] == "12 rows are wrong:"
    assert "a.csv, row 3, field ContextTokens: expected a number, got 'bad0'" in lines[1]
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "and 2 rows more"


def test_an_array_of_conversations_is_no_empty_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "sharegpt.json", '[{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}]')
    with pytest.raises(WorkloadError, match=r"a JSON array .* docs/traces.md has the formats"):
        load_trace(path)
