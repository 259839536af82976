"""``andes sweep`` is ``andes simulate`` at every point; ``diff`` and ``export`` read what it leaves."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andes_sglang import cli, export, results
from andes_sglang.diff import paired_difference
from andes_sglang.flags import UsageError
from andes_sglang.request import RequestRecord
from andes_sglang.sweep import parse_range
from benchmarks.processes import hear_ctrl_c

BASE = ("--profile", "cpu-tiny-llama", "--policies", "fcfs", "--rate", "1", "--duration", "20", "--tds", "4.5")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("load=0.5:0.9:0.2", ("0.5", "0.7", "0.9")),
        ("load=1:2:0.3", ("1", "1.3", "1.6", "1.9")),
        ("shape=burst,poisson", ("burst", "poisson")),
        ("prompt=200-400,p50=10", ("200-400", "p50=10")),
        ("seed=1:1:1", ("1",)),
        ("router=a.b:C,d:E", ("a.b:C", "d:E")),
    ],
)
def test_ranges(text: str, values: tuple[str, ...]) -> None:
    assert parse_range(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize(
    "text",
    [
        "load",
        "load=",
        "=1",
        "load=2:1:1",
        "load=1:2:0",
        "load=a:b:c",
        "load=1,1",
        "load=0:1:1e-9",
        "load=,",
        "load=1:2:inf",
    ],
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--over"):
        parse_range(text)


def test_every_point_is_what_simulate_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept, alone = tmp_path / "swept", tmp_path / "alone"
    assert cli.main(["sweep", *BASE, "--over", "rate=0.5,1", "--over", "max-running-requests=1,8", "--jobs", "2",
                     "--out", str(swept), "--json"]) == 0  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    written = json.loads((swept / "sweep.json").read_text())
    assert said == written
    assert [point["at"] for point in written["points"]] == [
        {"rate": rate, "max-running-requests": most} for rate in ("0.5", "1") for most in ("1", "8")
    ]
    assert cli.main(["simulate", *BASE, "--max-running-requests", "1", "--out", str(alone)]) == 0
    capsys.readouterr()
    expected = json.loads((alone / "summary.json").read_text())["policies"]["fcfs"]
    point = written["points"][2]
    assert point["policies"]["fcfs"]["qoe"] == expected["qoe"]
    assert json.loads((swept / point["directory"] / "summary.json").read_text())["policies"]["fcfs"] == expected
    page = (swept / "sweep.html").read_text()
    assert page.count("<svg") == 4 * 2, "four charts for each value of the second option"
    assert cli.main(["sweep", *BASE, "--over", "rate=1", "--out", str(swept)]) == 2, "holds results"
    assert cli.main(["sweep", *BASE, "--over", "rate=1", "--out", str(swept), "--force"]) == 0
    assert [path.name for path in (swept / "points").iterdir()] == ["rate=1"]


def test_an_option_of_a_policy_is_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = "cut=round_robin:--policy-option slice_tokens={q}"
    status = cli.main(["sweep", *BASE, "--arm", arm, "--over", "q=50,no", "--out", str(tmp_path / "o")])
    said = capsys.readouterr()
    assert status == 1, "one of two points failed"
    assert "q=no: policy round_robin: slice_tokens must be an integer" in said.err
    assert [p["at"]["q"] for p in json.loads((tmp_path / "o" / "sweep.json").read_text())["points"]] == ["50"]


def test_policies_and_routers_of_your_own_are_swept_and_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_text(
        "from andes_sglang.policy.fcfs import Fcfs\nfrom andes_sglang.routing import LeastLoad\n"
        "class Mine(Fcfs):\n    name = 'mine'\n"
        "class Lost(LeastLoad):\n    name = 'lost'\n    def order(self, new, views, now_s):\n        return None\n"
        "class Kept(LeastLoad):\n    name = 'kept'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ["--profile", "cpu-tiny-llama", "--policies", "theirs:Mine", "--limit", "20"]
    swept = [*mine, "--replicas", "2", "--over", "router=theirs:Kept,theirs:Lost", "--out", str(tmp_path / "s")]
    assert cli.main(["sweep", *swept]) == 1
    assert "router=theirs:Lost: routing policy 'lost': order() returned None" in capsys.readouterr().err
    plan = ["plan", *mine, "--router", "theirs:Kept", "--seeds", "1", "--max-replicas", "2", "--json"]
    assert cli.main([*plan, "--out", str(tmp_path / "p")]) == 0
    assert json.loads(capsys.readouterr().out)["router"] == "theirs:Kept"


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (["load"], "--over 'load': expected NAME=A,B,C"),
        (["rate=1", "rate=2"], "an option stands twice"),
        (
            [f"{name}=1:9000:1" for name in ("seed", "replicas", "limit")],
            "729000000000 points: expected at least 1 job",
        ),
        (["trace=a/b.csv,a_b.csv"], "--over: trace=a_b.csv is the directory of two points"),
        (["replicas=x"], "--over replicas=x: expected a whole number of --replicas"),
        (["load=0.5:1"], "--over load=0.5:1: expected a number of --load"),
        (["population=birds"], "--over population=birds: choose from"),
        (["out=a,b"], "--over out: --out takes no value of its own here"),
        (["force=1"], "--over force: --force takes no value of its own here"),
        (["nonsense=1"], "nonsense=1: unknown argument '--nonsense'"),
    ],
)
def test_what_cannot_be_swept_is_named(
    over: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for one in over for part in ("--over", one)]
    assert cli.main(["sweep", *BASE, *flags, "--out", str(tmp_path / "o")]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one workload, the second on an engine with less room, and one of another workload."""
    out = tmp_path_factory.mktemp("runs")
    busy = [*BASE[:4], "--rate", "1.6", "--duration", "60", "--tds", "4.5"]
    for name, more in (("a", []), ("same", []), ("small", ["--max-running-requests", "2"]), ("other", ["--seed", "9"])):
        assert cli.main(["simulate", *busy, *more, "--out", str(out / name)]) == 0
    return out


def diff(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = cli.main(["diff", *flags, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_diff_tells_a_loss_from_noise(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, same = diff(capsys, str(runs / "a"), str(runs / "same"), "--max-loss", "0")
    assert status == 0
    assert same["changed"] == {}
    assert same["policies"]["fcfs"]["qoe_difference"]["mean"] == 0.0
    assert same["policies"]["fcfs"]["qoe_difference"]["noise"]
    status, less = diff(capsys, str(runs / "a"), str(runs / "small"), "--max-loss", "0.05")
    assert status == 1
    assert not less["policies"]["fcfs"]["qoe_difference"]["noise"]
    before, after = less["policies"]["fcfs"]["figures"]["QoE mean"]
    assert less["policies"]["fcfs"]["qoe_difference"]["mean"] == pytest.approx(after - before, abs=1e-3)
    assert less["changed"]["engine.flags"] == [[], ["--max-running-requests", "2"]]
    assert diff(capsys, str(runs / "small"), str(runs / "a"), "--max-loss", "0.05")[0] == 0, "a gain is no loss"


@pytest.mark.parametrize("loss", ["nan", "-0.01", "5"])
def test_a_loss_that_is_none_is_refused(loss: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``nan`` is less than nothing and more than nothing: every loss would pass."""
    assert cli.main(["diff", str(runs / "a"), str(runs / "small"), "--max-loss", loss]) == 2
    assert "--max-loss must be from 0 to 1" in capsys.readouterr().err


def test_other_requests_are_not_paired(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, other = diff(capsys, str(runs / "a"), str(runs / "other"))
    assert other["policies"]["fcfs"]["qoe_difference"] is None
    assert cli.main(["diff", str(runs / "a"), str(runs / "other")]) == 0
    assert "cannot be said request by request" in capsys.readouterr().out
    assert cli.main(["diff", str(runs / "a"), str(runs)]) == 2
    assert "no results there" in capsys.readouterr().err


def record(index: int, late_s: float) -> RequestRecord:
    return RequestRecord(index, float(index), float(index), 9, 3, 1.0, 5.0, [(index + late_s, 3)], index + late_s)


def test_a_policy_that_only_one_run_has_is_told_and_counts_as_lost(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = json.loads((runs / "a" / "summary.json").read_text())
    both["policies"]["andes"] = both["policies"]["fcfs"]
    (tmp_path / "summary.json").write_text(json.dumps(both))
    status, said = diff(capsys, str(tmp_path), str(runs / "a"), "--max-loss", "1")
    assert (status, said["only_in"]) == (1, {"a": ["andes"]})
    assert cli.main(["diff", str(runs / "a"), str(tmp_path), "--max-loss", "1"]) == 0
    assert "only in B, not compared: andes" in capsys.readouterr().out


def test_the_band_of_a_paired_difference_holds_the_truth() -> None:
    """Of 200 pairs of runs that differ by chance alone, about 95 % are called noise."""
    rng = np.random.default_rng(3)
    noise = 0
    for _ in range(200):
        late = rng.uniform(0.5, 6.0, (2, 80))
        one, other = ([record(k, float(s)) for k, s in enumerate(row)] for row in late)
        found = paired_difference([one], [other])
        assert found is not None
        noise += found.is_noise
    assert 180 <= noise <= 200
    assert paired_difference([[record(k, 1.0) for k in range(39)]], [[record(k, 1.0) for k in range(39)]]) is None


def test_requests_and_figures_are_tables(runs: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(runs / "a"), "--out", str(tmp_path)]) == 0
    with (tmp_path / "requests.csv").open() as text:
        rows = list(csv.DictReader(text))
    run = results.read(runs / "a")
    records = run.records["fcfs"]
    assert [int(row["index"]) for row in rows] == [r.index for r in records]
    assert [float(row["qoe"]) for row in rows] == [r.qoe for r in records]
    assert rows[0]["tenant"] == ""
    with (tmp_path / "figures.csv").open() as text:
        figures = {row["figure"]: float(row["value"]) for row in csv.DictReader(text)}
    assert figures["qoe.mean"] == run.summary["policies"]["fcfs"]["qoe"]["mean"]


def test_parquet_needs_pyarrow(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec("pyarrow") is not None
    assert cli.main(["export", str(runs / "a"), "--format", "parquet", "--out", str(tmp_path)]) == (0 if there else 2)
    if not there:
        assert "--format parquet needs pyarrow: install andes-sglang[parquet]" in capsys.readouterr().err
        return
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "requests.parquet")
    assert table.column("qoe").to_pylist() == [row["qoe"] for row in export.request_rows(results.read(runs / "a"))]


def test_charts_are_files_with_captions_that_say_how_they_were_made(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(runs / "a"), "--figures"]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert {file.name for file in files} >= {"overall-1.svg", "timeline-1.svg", "captions.md", "reader-1.svg"}
    for file in files:
        if file.suffix == ".svg":
            text = file.read_text()
            assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
            assert text.count("<svg") == 1
    captions = (runs / "a" / "figures" / "captions.md").read_text()
    assert captions.count("seed 1; andes ") == len(files) - 1
    assert "95 % confidence" in captions


@pytest.mark.parametrize(
    ("taken", "flags"), [("figures", ["--figures"]), ("report.html/x", []), ("figures/captions.md/x", ["--figures"])]
)
def test_what_cannot_be_written_is_a_sentence(
    taken: str, flags: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs / "a", out, ignore=shutil.ignore_patterns("figures", "report.html"))
    (out / taken).parent.mkdir(parents=True, exist_ok=True)
    (out / taken).write_text("a file where a folder should be, or in a folder where a file should be")
    assert cli.main(["report", str(out), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("andes report: ")
    assert str(out) in said


@contextlib.contextmanager
def long_sweep(out: Path) -> Iterator[subprocess.Popen[str]]:
    """With two points under way, each of which would take many minutes alone."""
    command = [
        str(Path(sys.executable).with_name("andes")),
        "sweep",
        *BASE[:4],
        "--duration",
        "100000",
        "--over",
        "rate=1:9:1",
    ]
    running = subprocess.Popen(
        [*command, "--jobs", "2", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        while len(list(out.glob("points/*/log.txt"))) < 2:
            assert running.poll() is None
            time.sleep(0.02)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def test_ctrl_c_ends_the_points_that_are_under_way_and_begins_no_other(tmp_path: Path) -> None:
    with long_sweep(tmp_path / "s") as running:
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all processes
        _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "interrupted: reporting the points that are done" in said
    assert "Traceback" not in said
    assert len(list((tmp_path / "s").glob("points/*"))) == 2


def test_a_sweep_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with long_sweep(tmp_path / "s") as running:
        running.kill()
        running.communicate(timeout=120)  # until the last process that holds its standard error has gone
