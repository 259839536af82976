"""Rooms and doors: who may import whom, and what the pure rooms must not touch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = [ROOT / "andes_sglang" / name for name in ("qoe.py", "state.py", "latency.py")]
PURE += sorted((ROOT / "andes_sglang" / "policy").glob("*.py"))
IMPURE = {"time", "random", "os", "sys", "pathlib", "datetime", "io", "socket", "subprocess", "threading", "logging"}


@pytest.mark.timeout(120)
def test_the_doors_between_rooms() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", PURE, ids=lambda p: p.name)
def test_pure_rooms_read_no_clock_chance_environment_or_file(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.split(".")[0] for name in names} & IMPURE, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "input", "exec", "eval"}, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert not (node.attr == "random" and isinstance(node.value, ast.Name)), f"{path.name}:{node.lineno}"


def test_closures_are_exact_and_name_no_host() -> None:
    for name in ("cpu.txt", "gpu.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==[A-Za-z0-9.+!]+( ; .*)?", line), f"{name}: {line}"


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())  # type: ignore[index]
    explained = set(re.findall(r"^([a-z-]+):.*## ", text, re.M))
    assert phony == explained
