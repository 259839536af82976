"""Limits of the house that no linter of ours checks: complexity, length, docstrings, plain words.

``PRESENT`` is how many exceptions there still are of each kind; it may only shrink.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("andes_sglang", "api/andes_api", "operator/andes_operator", "clients/python/andes_client")
PRODUCT = [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "standins" not in path.parts
]
PROSE = [
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "Makefile",
        "charts/**/*",
        "docs/**/*.md",
        "clients/**/*",
        "examples/**/*",
        "requirements/*.in",
        "tools/**/*",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.suffix
    in {".md", ".yaml", ".json", ".tpl", ".txt", ".py", ".sh", ".toml", ".in", ".mjs", ".mts", ".html", ""}
    and path.is_file()
    if not {"decisions", "__pycache__"} & set(path.parts) and path.name != "LICENSE"
]
MAX_COMPLEXITY = 15
MAX_LINES = 400
MAX_POSITIONAL = 5
WORDS = re.compile(r"\b(whoever|somebody|nobody|everybody|anew)\b", re.I)
PRESENT = {"complexity": 0, "positional": 0, "lines": 0, "docstring": 0, "words": 0}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, Function, bool]]:
    """Every function that is not inside another: its qualified name, itself, and whether it is bound (self, cls)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
            yield f"{owner}{node.name}", node, bool(owner) and not static
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{owner}{node.name}.")
        else:
            yield from functions(node, owner)


def complexity(function: ast.AST) -> int:
    """Cyclomatic complexity as radon counts it: branches, loops, handlers, boolean operators, comprehensions and their
    conditions, assertions; functions inside count with it."""
    branches = (
        ast.If,
        ast.IfExp,
        ast.For,
        ast.AsyncFor,
        ast.While,
        ast.ExceptHandler,
        ast.Assert,
        ast.match_case,
        ast.Lambda,
    )
    found = 1
    for node in ast.walk(function):
        if isinstance(node, branches) or (isinstance(node, Function) and node is not function):
            found += 1
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            found += 1 + len(node.ifs)
    return found


def faults(source: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a Python file of the product: (kind, what)."""
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree) or ""
    if not docstring:
        yield "docstring", "the module has none"
    if (lines := len(source.splitlines())) > MAX_LINES and f"{MAX_LINES} lines" not in docstring:
        yield "lines", f"{lines}, and the docstring does not say why there are over {MAX_LINES} lines"
    for name, function, bound in functions(tree):
        if (found := complexity(function)) > MAX_COMPLEXITY:
            yield "complexity", f"{name} has {found}"
        if (count := len(function.args.posonlyargs + function.args.args) - bound) > MAX_POSITIONAL:
            yield "positional", f"{name} takes {count} positional parameters"


def test_product_files_keep_the_limits() -> None:
    found = [(kind, f"{path}: {what}") for path in PRODUCT for kind, what in faults((ROOT / path).read_text())]
    for kind in ("complexity", "positional", "lines", "docstring"):
        these = [what for fault, what in found if fault == kind]
        assert len(these) <= PRESENT[kind], "\n".join(these)


def test_plain_words() -> None:
    said = [
        f"{path}:{number}: {line.strip()}"
        for path in sorted({*PRODUCT, *PROSE})
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if WORDS.search(line)
    ]
    assert len(said) <= PRESENT["words"], "\n".join(said)


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("x = 1", "docstring"),
        ('"""D."""\n' + "x = 1\n" * 400, "lines"),
        ('"""D."""\ndef f(a, b, c, d, e, g): ...', "positional"),
        ('"""D."""\nclass C:\n  def f(self, a, b, c, d, e, g): ...', "positional"),
        ('"""D."""\nclass C:\n  @staticmethod\n  def f(a, b, c, d, e, g): ...', "positional"),
        ('"""D."""\ndef f(a):\n' + "  if a: pass\n" * 15, "complexity"),
        ('"""D."""\nif x:\n  def f(a):\n    return [' + " and ".join("a" * 14) + " for a in a if a]", "complexity"),
    ],
)
def test_a_fault_is_found(planted: str, fault: str) -> None:
    assert [kind for kind, _ in faults(planted)] == [fault]


@pytest.mark.parametrize(
    "planted",
    [
        '"""Over 400 lines since it is a table."""\n' + "x = 1\n" * 400,
        '"""D."""\ndef f(a, b, c, d, e, *, g): ...',
        '"""D."""\nclass C:\n  def f(self, a, b, c, d, e): ...',
        '"""D."""\ndef f(a):\n' + "  if a: pass\n" * 14,
    ],
)
def test_what_is_within_the_limits_is_not_found(planted: str) -> None:
    assert list(faults(planted)) == []
