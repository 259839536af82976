"""Recorded runs of the real engine, simulated again request by request: docs/benchmarks/fidelity.md."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORDED = ROOT / "tests" / "fixtures" / "fidelity"
WORKLOADS = {"burst", "long-context", "offload", "overloaded", "unloaded"}


def fidelity(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "fidelity.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_readers_get_what_the_simulator_says() -> None:
    """Mean QoE within 0.03, TTFT p90 within 15 % or 0.15 s, tokens/s within 5 %, and the policies in the same order."""
    done = fidelity()
    assert done.returncode == 0, done.stdout + done.stderr
    compared = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    assert {
        ("offload", "offload"),
        *((workload, arm) for workload in WORKLOADS for arm in ("stock", "andes")),
    } <= compared


@pytest.mark.timeout(300)
def test_the_first_half_of_stocks_run_foretells_both_arms() -> None:
    done = fidelity("--first-half", *(str(RECORDED / name) for name in ("burst", "offload", "overloaded", "unloaded")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_another_engine_would_be_told(tmp_path: Path) -> None:
    """The same requests on an engine with less memory than the recorded one."""
    run = tmp_path / "burst"
    shutil.copytree(RECORDED / "burst", run)
    summary = run / "summary.json"
    summary.write_text(summary.read_text().replace('"8192"', '"5000"'))
    done = fidelity(str(run))
    assert done.returncode == 1
    assert "burst stock: mean QoE" in done.stdout
