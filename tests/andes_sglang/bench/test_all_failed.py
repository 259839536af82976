"""The exit status of ``andes compare`` says where there is nothing to compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from andes_sglang.cli import main

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

LOAD = ["--shape", "poisson", "--rate", "5", "--duration", "2", "--prompt", "400", "--output", "5", "--seed", "1"]


@pytest.mark.parametrize(("context", "status", "failed"), [("300", 1, True), ("600", 0, False)])
def test_a_policy_none_of_whose_requests_is_answered(
    context: str, status: int, failed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two that are run, on simulated engines; the table is there all the same."""
    (tmp_path / "config.json").write_text("{}")
    out = tmp_path / "out"
    arms = ["--policies", "andes", "--arm", f"short=fcfs:--context-length {context}"]
    command = ["compare", "--model", str(tmp_path), *arms, *LOAD, "--out", str(out), "--engine", "sim"]
    assert main(command) == status
    policies = json.loads((out / "summary.json").read_text())["policies"]
    assert {name: found["failed"] > 0 for name, found in policies.items()} == {"andes": False, "short": failed}
    assert ("short: 7 failed: HTTP 400" in capsys.readouterr().out) is failed
