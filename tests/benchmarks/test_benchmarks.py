"""What the benchmarks share, and that each command says how it is used and refuses what it does not know."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from andes_sglang.arms import Arm
from andes_sglang.policy import CLAIRVOYANT
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from benchmarks import autoscaling, fidelity, second_device, simulated, tool_demo
from benchmarks.markdown import header, replace_table, row
from benchmarks.oracles import make_oracle
from benchmarks.processes import cpu_s, rss_mb
from benchmarks.settings import ARMS, SETTINGS, arms_for, best_arm
from benchmarks.sources import source_of

COMMANDS = [
    "admission", "answer_lengths", "api_load", "autoscaling", "fairness", "fidelity", "fluid", "gateway", "gateway_soak", "kv_codecs", "ladder", "latency_rivals", "llama_index", "malformed", "planner", "policy_decision", "pool", "rivals", "routing", "second_device", "sim_server", "simulated", "simulator_speed", "slack", "slack_day", "slack_engine", "slow_links", "slow_readers", "soak", "speculation", "surge_jobs", "surges", "tool_ahead", "tool_demo", "tool_overlap", "tool_parsing", "tool_real_text", "wait_play", "waits", "what_if",
]  # fmt: skip


def command(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The status with which ``python benchmarks/NAME.py ARGUMENTS`` exits."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    return ended.value.code


def test_every_benchmark_with_a_main_is_listed_here() -> None:
    folder = Path(autoscaling.__file__).parent
    assert sorted(COMMANDS) == sorted(f.stem for f in folder.glob("*.py") if "def main()" in f.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_says_how_it_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, monkeypatch, "--help") == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("admission", ("h200",), "setting 'h200': not known; choose of h100-chat"),
        ("autoscaling", ("--arms", "HPA"), "--arms: 'HPA' is not known; choose of static peak"),
        ("autoscaling", ("--traces", "day"), "--traces: 'day' is not known"),
        ("latency_rivals", (".", "--traces", "day"), "--traces: 'day' is not known"),
        ("latency_rivals", (".", "--loads", "2,1"), "--loads 2,1: must rise"),
        ("fidelity", ("--keep", "name"), "--keep name: goes with exactly one directory, got 0"),
        ("routing", ("5 alike",), "fleet '5 alike': not known; choose of 4 alike"),
        ("rivals", ("--chunks", "8"), "--chunks 8: goes with --bound or --no-later"),
        ("rivals", ("--policies", "stock", "--no-later", "andes"), "--no-later 'andes': is not among --policies"),
        ("second_device", ("--arms", "both"), "--arms: 'both' is not known; choose of alone, race, local, remote"),
        ("second_device", ("--model", "/nowhere"), "--model /nowhere: holds no model; `make small-model` makes one"),
        ("simulated", ("bars", "h200"), "setting 'h200': not known; choose of h100-chat"),
        ("fluid", ("--shapes", "flood"), "--shapes: 'flood' is not known; choose of flash, ramp"),
        (
            "kv_codecs",
            ("model", "/nowhere", "--out", "/nowhere"),
            "folder /nowhere: holds no model; `make small-model` makes",
        ),
        ("kv_codecs", ("model", "--batches", "3-11"), "--batches: must be A-B or A, from 1 to 10, got '3-11'"),
        ("kv_codecs", ("burst", "out/smollm2"), "out/smollm2: only the table model is of a model; burst is simulated"),
        ("pool", ("swap",), "TRACES: give the directory with the traces"),
        ("surges", ("--shapes", "flood"), "--shapes: 'flood' is not known; choose of flash, ramp"),
        ("surges", ("--arms", "HPA"), "--arms: 'HPA' is not known; choose of static, hindsight, HPA, KV, KEDA"),
        (
            "tool_real_text",
            ("--model", "/nowhere"),
            "--model: there is no model in /nowhere; `make small-model` makes one",
        ),
        ("wait_play", ("h200",), "setting 'h200': not known; choose of h100-chat"),
        ("waits", ("h200",), "setting 'h200': not known; choose of h100-chat"),
        ("what_if", ("--objective", "best"), "--objective: objective 'best': expected mean>=X"),
        ("what_if", ("--cases", "H200"), "--cases: 'H200' is not known"),
    ],
)
def test_what_a_benchmark_does_not_know_is_named(
    name: str,
    arguments: tuple[str, ...],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(name, monkeypatch, *arguments) == 2
    assert text in capsys.readouterr().err


def test_a_kept_run_depends_on_the_modules_that_it_imports_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "kept_package"
    (package / "inner").mkdir(parents=True)
    files = {
        "__init__.py": "INIT = 1", "inner/__init__.py": "from kept_package.inner.far import FAR", "inner/far.py": "FAR = 1",
        "begin.py": "import math\nfrom kept_package import near\nfrom kept_package.inner.by import BY",
        "near.py": "NEAR = 1", "inner/by.py": "BY = 1", "apart.py": "from kept_package.begin import near",
        "facade.py": "from kept_package.inner import FAR",
    }  # fmt: skip
    for name, text in files.items():
        (package / name).write_text(text + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = source_of("kept_package.begin", package="kept_package")
    assert [line for line in text.splitlines() if "1" in line] == ["BY = 1", "NEAR = 1"]
    assert "FAR = 1" in source_of("kept_package.facade", package="kept_package")
    assert "BY = 1" not in source_of("kept_package.begin", package="kept_package", without="kept_package.inner")


def test_a_table_replaces_the_one_between_its_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n<!-- b -->\nother\n<!-- end of b -->\n")
    replace_table(page, "a", "\n".join([*header("x", "y"), row(1, "two")]))
    assert page.read_text() == (
        "before\n<!-- a -->\n\n| x | y |\n|---|---|\n| 1 | two |\n\n<!-- end of a -->\nafter\n<!-- b -->\nother\n"
        "<!-- end of b -->\n"
    )
    with pytest.raises(SystemExit, match="has no <!-- c -->"):
        replace_table(page, "c", "")


def test_the_best_setting_is_the_cheapest_of_those_that_meet_the_objective_most_often() -> None:
    runs = [{"met": met, "replica_hours": hours} for met, hours in ((1.0, 5.0), (1.0, 4.0), (0.9, 2.0), (0.8, 1.0))]
    assert autoscaling.best(runs, 1.0) == runs[1]
    assert autoscaling.best(runs, 0.85) == runs[2]
    assert autoscaling.best(runs[2:], 1.0) == runs[2], "where none meets it, the one nearest to it"
    assert autoscaling.best([], 1.0) is None


def test_a_setting_is_run_with_host_memory_where_its_engine_has_any() -> None:
    assert best_arm("h100-chat") == "andes, mixed, host"
    assert SETTINGS["h100-long"].without == "lqsf"
    assert arms_for("h100-long", ["lqsf", "lifo"]) == ["lifo"]


@pytest.mark.filterwarnings("error::FutureWarning")
def test_every_arm_and_option_that_is_compared_is_one_of_today() -> None:
    engine = profiles.load("h100-llama-3.1-8b").engine
    for arm in [*ARMS.values(), *(Arm("andes", ("--policy-option", option)) for option in simulated.OPTIONS)]:
        if arm.policy not in CLAIRVOYANT:
            configure(engine, arm)
        else:
            assert make_oracle(arm.policy, [RequestSpec(0.0, 10, 20)]).name == arm.policy


def test_fidelity_marks_what_is_outside_the_tolerances() -> None:
    real = {"qoe": {"mean": 0.90}, "ttft_s": {"p90": 1.0}, "tokens_per_s": 100.0}
    near = {"qoe": {"mean": 0.92}, "ttft_s": {"p90": 1.14}, "tokens_per_s": 104.0}
    far = {"qoe": {"mean": 0.94}, "ttft_s": {"p90": 1.2}, "tokens_per_s": 90.0}
    assert fidelity.row_of("arm", real, near)[1] == []
    assert [text.split(":")[1].split()[0] for text in fidelity.row_of("arm", real, far)[1]] == [
        "mean",
        "TTFT",
        "tokens/s",
    ]
    short = {"ttft_s": {"p90": 0.1}}, {"ttft_s": {"p90": 0.2}}
    cells, outside = fidelity.row_of("arm", *short)
    assert not outside, "0.1 s is near enough, whatever share of 0.1 s it is"
    assert any(cell.endswith("~") for cell in cells)
    assert fidelity.order({"a": 0.9, "b": 0.8, "c": 0.899}) == {("a", "b"), ("c", "b")}


def test_the_demo_of_tools_draws_and_lists_what_was_measured() -> None:
    lazy = tool_demo.Run("SQL & more", "client", lazy=True, written_s=2.0, waited_s=2.0)
    pair = tool_demo.Pair(lazy, lazy._replace(lazy=False, waited_s=0.5))
    assert (pair.possible, pair.had) == (0.5, 0.375)
    assert tool_demo.table([pair]).endswith("| SQL & more | client | 4.0 | 2.5 | 50% | 38% | 75% |")
    drawn = ElementTree.fromstring(tool_demo.picture([pair]))  # noqa: S314
    bars = [bar for bar in drawn.iter("{http://www.w3.org/2000/svg}rect") if bar.get("height") == str(tool_demo.BAR)]
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert widths[0] == widths[1] == widths[2] == pytest.approx(4 * widths[3], abs=0.2)


def test_cpu_and_memory_of_a_process() -> None:
    before_s = cpu_s(os.getpid())
    sum(range(3_000_000))
    assert 0.0 < before_s <= cpu_s(os.getpid())
    assert 5.0 < rss_mb(os.getpid()) < 10_000.0


def test_a_table_of_races_counts_gaps_and_leaves_out_what_no_run_has() -> None:
    alone = second_device.cells("stock", "alone", [second_device.Got(1.0, 0.5)], 1.0, lag_s=0.0, tds=4.0)
    columns, _, line = second_device.table([alone]).splitlines()
    assert "hand-overs" not in columns
    assert "| stock | alone | 1 | 0 |" in line
    got = second_device.Got(0.5, 1.0, writers=["local", "remote"], gaps_s=[0.0, 0.24, 0.26], shown=9)
    raced = second_device.cells("stock", "remote", [got], 1.0, lag_s=0.0, tds=4.0)
    columns, _, *lines = second_device.table([alone, raced]).splitlines()
    told = dict(zip(columns.split(" | "), lines[1].split(" | "), strict=True))
    assert (told["hand-overs"], told["with a gap above 1/tds"], told["longest gap, s"]) == ("3", "1", "0.26")
    assert told["p99 less than alone"] == "50%"
