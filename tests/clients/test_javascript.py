"""The JavaScript client in Node: its pure part, and against a gateway with a simulated engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
MODULE = CLIENTS / "javascript"


def run_in_node(script: str, **environment: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("NO NODE: install node 20 or newer to test the JavaScript client")
    done = subprocess.run(
        [node, "--test-reporter=spec", str(Path(__file__).parent / script)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_keeps_the_rules_that_both_clients_share() -> None:
    run_in_node("reader.test.mjs")


@pytest.mark.server
def test_against_a_gateway(simulated: Any, gateway: Any) -> None:
    engine = simulated("--speed", "1")
    run_in_node(
        "gateway.test.mjs",
        GATEWAY=gateway(engine.url, retries=0),
        SMALL="5",
        SMALL_GATEWAY=gateway(engine.url, max_streams=5),
        ENGINE_PID=str(engine._process.pid),
    )


def test_it_needs_nothing_and_is_packed_whole() -> None:
    package = json.loads((MODULE / "package.json").read_text())
    assert "dependencies" not in package
    modules = {path.name: path.read_text() for path in MODULE.glob("*.m[jt]s")}
    assert set(package["files"]) == {*modules, "README.md"}
    for name, text in modules.items():
        assert {*re.findall(r'from "(.*)"', text)} <= {f"./{other}" for other in modules}, name
        assert len(text.splitlines()) <= 400, name
    assert (
        package["version"] == tomllib.loads((CLIENTS / "python" / "pyproject.toml").read_text())["project"]["version"]
    )


def test_the_types_name_what_there_is() -> None:
    """Every export of the module, and nothing else."""
    said = set(re.findall(r"^export (?:class|const|function) (\w+)", (MODULE / "andes-client.d.mts").read_text(), re.M))
    there = set()
    for name in ("andes-client.mjs", "reader.mjs"):
        for line in re.findall(r"^export (?:class|const|function) (.*)", (MODULE / name).read_text(), re.M):
            there |= set(re.findall(r"^(\w+)|, ([A-Z_]+) =", line)[0]) | set(re.findall(r", ([A-Z_]+) =", line))
    assert said == there - {""}
