"""The directory of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import andes_sglang
from andes_sglang import results, summary
from andes_sglang.cli import main
from andes_sglang.flags import UsageError
from andes_sglang.request import RequestRecord, read_records


def record(index: int, arrival_s: float, end_s: float) -> RequestRecord:
    return RequestRecord(index, arrival_s, arrival_s, 10, 1, 1.0, 5.0, [(arrival_s + 0.5, 1)], end_s)


def result() -> dict[str, Any]:
    figures = summary.combine([summary.summarise([record(0, 0.0, 1.0)])])
    return {"workload": {"name": "w", "requests": 1}, "engine": {"what": "e"}, "policies": {"andes": figures}}


def test_samples_say_how_many_requests_were_open(tmp_path: Path) -> None:
    records = [record(0, 0.0, 2.0), record(1, 1.0, 3.0), record(2, 2.5, 0.0)]  # the last one never ended
    samples = [{"at_s": at_s, "queue": 1.0} for at_s in (0.0, 1.0, 2.0, 3.0, 99.0)] + [{"at_s": 1.0, "open": 7.0}]
    results.keep(tmp_path, "andes", 2, records, samples)
    kept = json.loads((tmp_path / "samples-andes-2.json").read_text())
    assert [point["open"] for point in kept] == [1, 2, 1, 1, 1, 7.0]
    assert read_records(tmp_path / "records-andes-2.jsonl.gz") == records


def test_a_result_is_a_summary_a_report_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.keep(tmp_path, "andes", 1, [record(0, 0.0, 1.0)], [{"at_s": 0.0, "queue": 3.0}])
    results.write(tmp_path, result())
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(made_by := written.pop("made_by")) == {"version", "command", "at", "machine"}
    assert made_by["version"] == andes_sglang.__version__
    assert made_by["command"][1:] == sys.argv[1:]
    assert written == result()
    page = (tmp_path / "report.html").read_text()
    # distributions; queue and open requests; one reader, delivered and read
    assert page.count("<polyline") == 4 + 2 + 2
    assert page.count("Request 0 under andes") == 1
    said = capsys.readouterr().out
    assert summary.table(result()["policies"]) in said
    assert str(tmp_path / "report.html") in said
    assert str(tmp_path / "summary.json") in said


def test_the_table_is_seen_although_the_results_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in ("summary.json", "report.html"):
        (tmp_path / at).mkdir()
        with pytest.raises(UsageError, match=r"the results above cannot be written there \(Is a directory\)"):
            results.write(tmp_path, result())
        assert summary.table(result()["policies"]) in capsys.readouterr().out
        (tmp_path / at).rmdir()


def test_a_report_can_be_made_from_the_summary_alone(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(result()))
    results.render(tmp_path)
    assert "<td>andes</td>" in (tmp_path / "report.html").read_text()


def test_a_directory_is_made_with_its_parents_or_named(tmp_path: Path) -> None:
    results.directory(tmp_path / "a" / "b")
    results.directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file/x: cannot be made \(Not a directory\)"):
        results.directory(tmp_path / "file" / "x")


def test_a_log_gets_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([5.0, 5.0, 14.9, 15.0, 15.0, 15.1])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = results.Progress("andes")
    for text in ("one", "two", "three", "four"):
        progress(text)
    assert capsys.readouterr().err == "andes: one\nandes: three\n"


def test_a_terminal_gets_one_line_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = results.Progress("andes")
    progress("one")
    progress("two")
    assert capsys.readouterr().err == "\r\x1b[Kandes: one\r\x1b[Kandes: two"


@pytest.mark.parametrize(
    "wrong",
    [
        [], {}, {"policies": {"a": {}}}, {"workload": {}, "engine": {}, "policies": {}}, {**result(), "workload": 3},
        {**result(), "engine": None}, {**result(), "policies": {"a": {}}}, {**result(), "policies": {"a": {"qoe": 5}}},
    ],
)  # fmt: skip
def test_a_summary_of_something_else_is_named(wrong: object, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(wrong))
    with pytest.raises(UsageError, match=r"summary.json: not a summary \(it needs workload, engine and policies\)"):
        results.render(tmp_path)


def test_records_that_cannot_be_kept_cost_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records-andes-1.jsonl.gz").mkdir()
    results.keep(tmp_path, "andes", 1, [record(0, 0.0, 1.0)], [])
    assert "no records of andes there (Is a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("earlier", ["summary.json", "plan.json"])
def test_a_directory_that_holds_a_run_is_used_only_by_force(earlier: str, tmp_path: Path) -> None:
    with results.prepared(tmp_path / "new", force=False):
        pass
    for name in (earlier, "records-stock-3.jsonl.gz", "notes.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError, match="holds the results of an earlier run; name another, or --force"):
        results.prepared(tmp_path, force=False).__enter__()
    with results.prepared(tmp_path, force=True):
        assert not list(tmp_path.glob("*.json*"))
        (tmp_path / "summary.json").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "notes.txt", "summary.json"]
    with pytest.raises(UsageError, match="is a file, and results are a directory"):
        results.prepared(tmp_path / "notes.txt", force=True).__enter__()


@pytest.mark.parametrize("killed", [False, True])
def test_an_earlier_run_stays_where_the_new_one_comes_to_nothing(killed: bool, tmp_path: Path) -> None:
    for name in ("sweep.json", "records-stock-1.jsonl.gz", "points"):
        (tmp_path / name).mkdir() if name == "points" else (tmp_path / name).write_text("earlier")
    (tmp_path / "points" / "a").touch()

    def come_to_nothing() -> None:
        with results.prepared(tmp_path, force=True):
            (tmp_path / "points").mkdir()
            for number in (1, 2):
                (tmp_path / f"records-stock-{number}.jsonl.gz").write_text("new")
            if killed:
                raise SystemExit from None
            raise UsageError("nothing answers there")

    if killed:  # by what no program hears
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results, "_settle", {}.get)
            with pytest.raises(SystemExit):
                come_to_nothing()
        assert not (tmp_path / "sweep.json").exists()
        with pytest.raises(UsageError, match="holds the results of an earlier run"):
            results.prepared(tmp_path, force=False).__enter__()
    else:
        with pytest.raises(UsageError, match="nothing answers there"):
            come_to_nothing()
    assert (tmp_path / "sweep.json").read_text() == (tmp_path / "records-stock-1.jsonl.gz").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a",
        "points",
        "records-stock-1.jsonl.gz",
        "sweep.json",
    ]


def test_no_secret_of_the_command_line_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are handed on, and say the command."""
    url = "http://user:pa55@host:80/v1"
    monkeypatch.setattr(
        sys, "argv", ["andes", "bench", "--api-key", "s3cret", "--api-key=s3cret", "--url", url, "--limit", "3"]
    )
    assert results.made_by()["command"] == [
        "andes", "bench", "--api-key", "...", "--api-key=...", "--url", "http://...@host:80/v1", "--limit", "3",
    ]  # fmt: skip


@pytest.mark.parametrize("policies", [{"x": 5}, [1], "x"])
def test_policies_that_are_none_are_named(policies: object, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"workload": {}, "engine": {}, "policies": policies}))
    with pytest.raises(UsageError, match="not a summary"):
        results.read(tmp_path)


def test_an_earlier_run_that_cannot_be_set_aside_is_named(tmp_path: Path) -> None:
    for name in ("sweep.json", results.EARLIER):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"sweep.json: cannot be moved to .*earlier \(File exists\)"):
        results.prepared(tmp_path, force=True).__enter__()
    assert (tmp_path / "sweep.json").exists()


def test_a_wrong_address_costs_no_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text("earlier")
    assert main(["bench", "--url", "http://127.0.0.1:9", "--rate", "1", "--out", str(tmp_path), "--force"]) == 2
    assert "nothing answers there" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "earlier"
