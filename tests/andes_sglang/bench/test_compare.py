"""``andes compare`` on real engines: what a researcher runs, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_two_policies_at_once_on_engines_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    load = [
        "--shape",
        "poisson",
        "--rate",
        "4",
        "--duration",
        "4",
        "--prompt",
        "20-40",
        "--output",
        "10-20",
        "--seed",
        "3",
    ]
    command = [sys.executable, "-m", "andes_sglang.cli", "compare", "--model", str(tiny_model), "--at-once", *load]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--max-total-tokens", "4096"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "summary.json").read_text())
    assert set(result["policies"]) == {"stock", "andes"}
    requests = {arm["requests"] for arm in result["policies"].values()}
    assert len(requests) == 1
    assert requests.pop() > 5
    assert all(arm["failed"] == 0 and 0 < arm["qoe"]["mean"] <= 1 for arm in result["policies"].values())
    assert result["policies"]["andes"]["preemptions_per_request"] == 0
    assert result["policies"]["stock"]["preemptions_per_request"] is None
    one, other = result["engine"]["cores"]
    if len(os.sched_getaffinity(0)) > 1:
        assert len(one) == len(other) >= 1
        assert not set(one) & set(other)
    report = (tmp_path / "report.html").read_text()
    assert "andes" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
