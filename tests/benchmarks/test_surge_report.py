"""The tables of surges, from runs that were kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.surge_report import (
    KEDA,
    OURS,
    STATIC,
    Case,
    bars,
    everything,
    kept,
    latest,
    of_case,
    picture,
    record,
    recorded,
)
from benchmarks.surges import PAGES, RECORD

CASE = Case("l4", "flash", 300.0, 1)


def run(scheduler: str, arm: str, setting: float, hours: float, worst: float, **of: Any) -> dict[str, Any]:
    said = {"served": "l4", "shape": "flash", "cold_start_s": 300.0, "seed": 1, "set": [], "days": 0}
    return {
        "of": {**said, "scheduler": scheduler, "arm": arm, "setting": setting, **of}, "replica_hours": hours,
        "worst_mean": worst, "worst_share": worst, "most": 9, "timeline": [(0.0, 4), (60.0, 9), (120.0, 5)],
    }  # fmt: skip


RUNS = [
    run("stock", STATIC, 11, 9.0, 0.8, cold_start_s=60.0), run("stock", STATIC, 12, 10.0, 0.96, cold_start_s=60.0),
    run("stock", KEDA, 0.5, 8.0, 0.7), run("andes", STATIC, 7, 5.0, 0.97), run("andes", KEDA, 1.0, 7.0, 0.9),
    run("andes", OURS, 0, 6.0, 0.99), run("andes", OURS, 0, 5.5, 0.99, days=2), run("andes", OURS, 0, 4.0, 0.9, seed=2),
]  # fmt: skip


def test_ours_is_held_against_the_cheapest_that_hold() -> None:
    """-40 % of stock's static 12 (11 and KEDA do not hold), which has no cold start; +20 % of andes' static 7."""
    _, _, *lines = bars(RUNS)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    known = ["both", "static 12: 10.00", "-40%", "static 7: 5.00", "+20%", "none holds", "-"]
    assert cells[0] == ["l4", "flash", "300 s", "1", "none", "**6.00**", "0.990 / 0.990", *known]
    assert cells[1][4:6] == ["2 days", "**5.50**"]
    assert cells[2][7:] == ["no", *["not run", "-"] * 3], "another seed has rivals of its own"


def test_every_arm_is_shown_where_none_of_it_holds_too() -> None:
    lines = [line for line in everything(RUNS) if line.startswith(("| andes | KEDA", "| stock | KEDA"))]
    assert lines[0] == "| stock | KEDA 0.5 | 8.00 | 0.700 / 0.700 | no | 9 | 0.5 |"
    assert lines[1] == "| andes | KEDA 1 | 7.00 | 0.900 / 0.900 | no | 9 | 1 |"


def test_runs_are_read_without_tables_and_other_constants(tmp_path: Path) -> None:
    for name, said in (("a", RUNS[0]), ("b", run("andes", OURS, 0, 1.0, 1.0, set=["growth.CAP=2"])), ("tables_l4", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    assert kept(tmp_path) == [json.loads(json.dumps(RUNS[0]))]


def test_a_file_of_figures_keeps_what_is_not_run_again(tmp_path: Path) -> None:
    """A fixed fleet run with another cold start is the same run; figures that are not kept stay so until they are."""
    lost = run("stock", KEDA, 0.3, math.nan, math.nan)
    record(tmp_path / "runs.csv", latest([*RUNS, {**lost, "most": math.nan}]))
    again = [run("andes", OURS, 0, 6.12345, 0.9), run("stock", STATIC, 12, 11.0, 0.96, cold_start_s=600.0)]
    record(tmp_path / "runs.csv", latest([*recorded(tmp_path / "runs.csv"), *again]))
    found = recorded(tmp_path / "runs.csv")
    assert len(found) == len(RUNS) + 1
    _, _, *lines = bars(found)
    assert "| **6.12** | 0.900 / 0.900 | no | static 12: 11.00 | -44% |" in lines[0]
    assert "| stock | KEDA 0.5 | 8.00 | 0.700 / 0.700 | no | 9 | 0.3, 0.5 |" in list(everything(found))


def test_the_pages_say_what_the_file_of_figures_does() -> None:
    kept = recorded(RECORD)
    for page, lines in zip(PAGES, (bars(kept), everything(kept)), strict=True):
        assert "\n".join(lines).strip() in page.read_text()


def test_the_picture_has_demand_and_both_fleets() -> None:
    svg = picture(of_case(RUNS, CASE), ([0.0, 1.0, 2.0], [4.0, 9.0, 4.0]))
    drawn = ElementTree.fromstring(svg)  # noqa: S314
    names = [title.text or "" for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert names == ["demand", "stock, fixed fleet: 10.0 replica-hours", "andes, operator: 6.0 replica-hours"]
