"""The search for the least fleet, what it promises, and what its users see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.cli import main
from andes_sglang.sim import profile
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.plan import capacity_rps, cheapest_mix, score_fleet, smallest_feasible
from andes_sglang.workload import SyntheticWorkload, readers_of

CPU = EngineModel(Costs(4e-3, 5e-4, 1.2e-6, 5e-3, 30e-6, 3e-3), 8192, 64, 8192, overlap=Overlap.SYNC)
READERS = readers_of("reading", tds=4.5)


def demand(rate: float, duration_s: float = 60.0, **more: Any) -> SyntheticWorkload:
    return SyntheticWorkload(
        "forecast", ((duration_s, rate),), "200-400", "150-250", more.pop("readers", READERS), **more
    )


@given(st.integers(1, 70), st.integers(-5, 100), st.integers(1, 12))
def test_least_is_the_least_wherever_it_begins(answer: int, guess: int, step: int) -> None:
    asked: list[int] = []

    def holds(n: int) -> bool:
        asked.append(n)
        return n >= answer

    assert smallest_feasible(holds, guess, 64, step) == (answer if answer <= 64 else None)
    assert len(asked) == len(set(asked)) <= 14


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.5, 5.0))
def test_the_cheapest_mix_is_the_cheapest_of_all(need: int, strength: int, price: float) -> None:
    """a counts ``strength`` of ``need``, b counts one."""

    def holds(a: int, b: int) -> bool:
        return a * strength + b >= need

    alone = -(-need // strength), need
    a, b = cheapest_mix(holds, alone, (price, 1.0))
    assert holds(a, b)
    every = [x * price + y for x in range(13) for y in range(13) if holds(x, y)]
    assert a * price + b == pytest.approx(min(every))


def test_capacity_is_about_what_a_flooded_engine_serves() -> None:
    scores, _ = score_fleet([CPU], lambda: None, demand(1000.0, 0.4))
    assert len(scores) > 300
    flooded = SyntheticWorkload("flood", ((0.01, 40_000.0),), "300", "200", READERS)
    from andes_sglang.sim.replica import simulate

    ends = sorted(r.end_s for r in simulate(CPU, None, flooded))
    served = 0.5 * len(ends) / (ends[len(ends) * 3 // 4] - ends[len(ends) // 4])
    assert capacity_rps(CPU, 300, 200) == pytest.approx(served, rel=0.3)


def plan(out: Path, *flags: str) -> dict[str, Any]:
    base = ("--profile", "cpu-tiny-llama", "--shape", "poisson", "--rate", "6", "--duration", "30", "--tds", "4.5")
    assert main(["plan", *base, "--seeds", "2", "--out", str(out), *flags]) == 0
    return dict(json.loads((out / "plan.json").read_text()))


def test_plan_finds_the_least_fleet_and_its_saving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = plan(tmp_path, "--policies", "stock,andes")
    stock, andes = result["plans"]
    for p in (stock, andes):
        assert np.mean(p["predicted"][str(p["replicas"])]["values"]) >= 0.95
        fewer = p["predicted"].get(str(p["replicas"] - 1))
        assert fewer is None or np.mean(fewer["values"]) < 0.95
    assert andes["replicas"] <= stock["replicas"]
    assert andes["saving_over_better_stock"] == pytest.approx(1 - andes["replicas"] / stock["replicas"])
    assert "seeds that hold" in capsys.readouterr().out
    page = (tmp_path / "plan.html").read_text()
    assert "SIMULATED" in page
    assert "<svg" in page
    assert "http" not in page


def test_mixes_cost_no_more_than_either_alone(tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text(profile.dump(profile.load("cpu-tiny-llama")).replace("8192", "3000", 1))
    result = plan(tmp_path, "--policies", "stock", "--profile", f"{small}@0.4", "--profile", "cpu-tiny-llama@1")
    alone = [p["price_per_hour"] for p in result["plans"] if p["price_per_hour"]]
    (mix,) = result["mixes"]
    assert mix["price_per_hour"] <= min(alone) + 1e-9
    assert np.mean(mix["values"]) >= 0.95


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--objective", "best"), "objective 'best': expected mean>=X"),
        (("--profile", "cpu-tiny-llama@cheap"), "expected NAME@PRICE"),
        (("--seeds", "0"), "--seeds must be >= 1, got 0"),
        (("--prompt", "9000"), "prompt_tokens 9000 with output_tokens"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    flags: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", "--profile", "cpu-tiny-llama", "--rate", "3", "--duration", "10"]
    assert main([*base, "--out", str(tmp_path), *flags]) == 2
    assert text in capsys.readouterr().err
