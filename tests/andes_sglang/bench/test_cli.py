"""Mistakes on the command line are named before anything is sent or started."""

from __future__ import annotations

from pathlib import Path

import pytest

from andes_sglang.cli import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--ttft -1", "ttft must be a number of seconds from 0 to 1e6, got -1.0"),
        ("--tds inf", "tds must be a number of tokens/s from 1e-3 to 1e9, got inf"),
        ("--duration 0", "--duration must be > 0, got 0.0"),
        ("--rate-scale inf", "--rate-scale must be > 0, got inf"),
        ("--limit 0", "--limit must be >= 1, got 0"),
        ("--max-output -3", "--max-output must be >= 1, got -3"),
        ("--start nan", "--start must be >= 0 seconds, got nan"),
        ("--seed -1", "--seed must be >= 0, got -1"),
        ("--shape square", "--shape 'square': choose poisson, gamma or burst"),
        ("--trace nowhere.csv", "nowhere.csv: cannot be read"),
        ("--url http://127.0.0.1:9 --out /dev/null/x", "--out /dev/null/x: cannot be made (Not a directory)"),
        ("--duration 2", "--url nonsense: say http:// or https:// first, as in http://nonsense"),
        ("--url http://127.0.0.1:9 --duration 2", "--url http://127.0.0.1:9: nothing answers there"),
        ("--trace one.csv --rate 3", "--rate 3.0: not with --trace, whose arrivals are played"),
        ("--trace one.csv --shape gamma", "--shape gamma: not with --trace"),
        ("--oops", "unknown argument '--oops'"),
        ("--name a/b", "--name 'a/b': it names files, so it must be a word without /"),
        ("--vocabulary 9-3", "--vocabulary '9-3': expected LOW-HIGH token ids"),
    ],
)
def test_bench(
    arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n")
    assert main(["bench", "--url", "nonsense", *arguments.split()]) == 2
    assert says in capsys.readouterr().err


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no results there (No such file or directory)" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text('{"policies"')
    assert main(["report", str(tmp_path)]) == 2
    assert "summary.json: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--policies stock,fifo", "--policy fifo: unknown policy 'fifo'"),
        ("--arm ours=andes:--policy-option=horizn=3", "horizn"),
        ("--policies stock --policy-option slice=1", "policy stock has no options"),
        ("--policies ,", "names none"),
        ("--arm ours", "expected NAME=POLICY"),
        ("--arm a=andes --arm a=fcfs", "--arm 'a=fcfs': two arms have this name"),
        ("--arm a/b=andes", "--arm 'a/b=andes': the name is one of files: a word without /"),
        ("--repeats 0", "--repeats must be >= 1, got 0"),
        ("--model nowhere", "--model nowhere: no such directory"),
        ("--policies andes,forced --rate -1", "--rate must be > 0, got -1.0"),
    ],
)
def test_compare(
    arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (earlier := tmp_path / "out" / "summary.json").parent.mkdir()
    earlier.write_text("{}")
    out = ("--out", str(earlier.parent), "--force")
    assert main(["compare", "--model", str(tmp_path), *out, *arguments.split()]) == 2
    assert says in capsys.readouterr().err
    assert earlier.exists(), "what is refused costs no earlier results"
    assert not list(tmp_path.glob("out/engine-*"))


def test_report_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text('{"policies": {}}')
    assert main(["report", str(tmp_path)]) == 2
    assert "summary.json: not a summary (it needs workload, engine and policies)" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text('{"policies": {"a": {}}, "workload": {}, "engine": {}}')
    (tmp_path / "samples-a-1.json").write_text("[")
    assert main(["report", str(tmp_path)]) == 2
    assert "samples-a-1.json: not JSON" in capsys.readouterr().err
    (tmp_path / "records-a-1.jsonl.gz").write_bytes(b"oops")
    assert main(["report", str(tmp_path)]) == 2
    assert "records-a-1.jsonl.gz: cannot be read" in capsys.readouterr().err
