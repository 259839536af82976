"""Every example runs by itself, with public names only, and prints what its page promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import andes_client
import andes_sglang

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.py"))
PRINTS = {
    "chat_in_terminal.py": (r"\[QoE [01]\.\d\d: first text after \d+\.\d\d s, .*, 40 tokens\]",),
    "compare_policies.py": (r"andes +0\.\d+", r"mine +0\.\d+"),
    "langchain_callback.py": (r"\[QoE [01]\.\d\d: first text after \d+\.\d\d s, .*, 40 tokens\]",),
    "plan_fleet.py": ("stock needs [1-9]", "andes needs [1-9]"),
    "read_trace.py": ("row 1, field tds: expected a number, got 'fast'", r"andes  mean QoE 0\.\d+"),
    "route_streams.py": (r"two-choices +mean QoE 0\.\d+", r"qoe +mean QoE 0\.\d+"),
    "serve_an_application.py": (r"event: text", r"event: experience\ndata: QoE [01]\.\d\d"),
    "score_stream.py": ("stalls: 1, 0.40 s in all", "QoE: 0.955"),
    "stream_through_gateway.py": (r"QoE of the class reading: mean [01]\.\d+ over 1 stream",),
}
"""What the output must hold; a further example must only run."""
UNTIL_STOPPED = {"serve_a_page.py"}
"""In test_browser_page.py."""
SERVERS = {"chat_in_terminal.py", "langchain_callback.py", "serve_an_application.py", "stream_through_gateway.py"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[pytest.mark.server] if p.name in SERVERS else [])
        for p in FILES
        if p.name not in UNTIL_STOPPED
    ],
    ids=lambda p: p.name,
)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for expected in PRINTS.get(path.name, ()):
        assert re.search(expected, done.stdout), done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_it_uses_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("andes"):
            assert node.module in ("andes_sglang", "andes_sglang.conformance", "andes_client")
            for package in (andes_sglang, andes_client):
                if node.module == package.__name__:
                    assert {alias.name for alias in node.names} <= {*package.__all__}


def test_the_page_names_every_example() -> None:
    named = re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "examples" / "README.md").read_text(), re.M)
    assert sorted(named) == [path.name for path in FILES]
