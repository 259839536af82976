"""Rooms and doors: who may import whom, and what the pure rooms must not touch."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from andes_sglang.policy import POLICIES

ROOT = Path(__file__).parent.parent
PURE = [ROOT / "andes_sglang" / name for name in ("qoe.py", "state.py", "latency.py", "protocol.py")]
PURE += [
    ROOT / "andes_sglang" / name for name in ("admission.py", "stream_forecast.py", "resume.py", "shown.py", "waits.py")
]
PURE += sorted((ROOT / "andes_sglang" / "routing").glob("*.py"))
PURE += sorted(
    set((ROOT / "andes_sglang" / "policy").glob("*.py")) - {ROOT / "andes_sglang" / "policy" / "registry.py"}
)
MAY_IMPORT = {"__future__", "abc", "andes_sglang", "bisect", "collections", "dataclasses", "enum", "functools", "heapq"}
MAY_IMPORT |= {"hashlib", "itertools", "json", "math", "numpy", "operator", "re", "typing", "warnings"}
MAY_NOT_CALL = {"open", "input", "print", "exec", "eval", "compile", "__import__"}
NUMPY_OUTSIDE = {"random", "load", "loadtxt", "genfromtxt", "fromfile", "memmap", "save", "savez", "savetxt"}


def impurities(source: str) -> list[str]:
    """Where this code could read a clock, chance, the environment or a file: an allow-list of imports, and names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module or 'andes_sglang'}.{alias.name}" for alias in node.names]
        else:
            modules = []
        for module in modules:
            top, *inside = module.split(".")
            if top not in MAY_IMPORT or (top == "numpy" and NUMPY_OUTSIDE & set(inside)):
                found.append(f"line {node.lineno}: imports {module}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAY_NOT_CALL:
            found.append(f"line {node.lineno}: calls {node.func.id}")
        if (
            isinstance(node, ast.Attribute)
            and node.attr in NUMPY_OUTSIDE
            and ast.unparse(node.value) in {"np", "numpy"}
        ):
            found.append(f"line {node.lineno}: numpy.{node.attr}")
    return found


def check_doors(tree: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", command], cwd=tree, capture_output=True, text=True, check=False)


@pytest.mark.timeout(60)
def test_the_doors_between_rooms() -> None:
    done = check_doors(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("where", "planted", "contract"),
    [
        ("sim/planted.py", "import torch", "SGLang and torch only in the adapter"),
        ("cli.py", "import sglang", "SGLang and torch only in the adapter"),
        ("metrics.py", "import torch", "SGLang and torch only in the adapter"),
        ("qoe.py", "import andes_sglang.policy", "The core's rooms"),
        ("bench/planted.py", "import andes_sglang.adapter", "The core's rooms"),
        ("corridor.py", "import math", "The core's rooms"),
    ],
)
def test_a_wrong_import_is_found(where: str, planted: str, contract: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "andes_sglang", tmp_path / "andes_sglang", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "andes_sglang" / where).open("a") as file:
        file.write(f"\n{planted}\n")
    done = check_doors(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    broken = f"{contract} BROKEN" in said
    assert broken or "corridor" in said, said


@pytest.mark.parametrize("path", PURE, ids=lambda p: p.name)
def test_pure_rooms_read_no_clock_chance_environment_or_file(path: Path) -> None:
    assert impurities(path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import time",
        "from os import environ",
        "def f():\n    from datetime import datetime",
        "import numpy.random",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.default_rng()",
        "import numpy as np\nnp.load('x')",
        "open('x')",
        "__import__('time')",
    ],
)
def test_an_impurity_is_found(planted: str) -> None:
    assert len(impurities(planted)) == 1


def test_closures_are_exact_and_name_no_host() -> None:
    for name in ("cpu.txt", "gpu.txt", "mutation.txt", "docs.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==[A-Za-z0-9.!]+( ; .*)?", line), f"{name}: {line}"


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", text, re.M)[1].replace("\\", "").split())  # type: ignore[index]
    explained = set(re.findall(r"^([a-z-]+):.*## ", text, re.M))
    assert phony == explained


def test_every_benchmark_that_is_a_command_has_a_make_target() -> None:
    commands = {p.name for p in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    assert commands == set(re.findall(r"benchmarks/(\w+\.py)", (ROOT / "Makefile").read_text()))


def test_the_readme_explains_every_policy() -> None:
    explained = re.findall(r"^\| `([a-z][a-z0-9_-]*)` \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(explained) == sorted({"stock", *POLICIES})
