"""What a kept result depends on: the source of the modules that it was computed with."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["source_of"]


def source_of(*modules: str, package: str, without: str = "") -> str:
    """The source of ``modules`` and of every module in ``package`` that they import, directly or not, as one text.

    A package's own ``__init__`` counts only where something is imported from it that is no module. without: a package that is
    left out.
    """
    found: dict[str, str] = {}
    left = list(modules)
    while left:
        module = left.pop()
        if module in found or not _within(module, package) or (without and _within(module, without)):
            continue
        found[module], imported = _read(module)
        left += [_module_of(*pair) for pair in imported if _within(pair[0], package)]
    return "".join(f"# {name}\n{found[name]}" for name in sorted(found))


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@cache
def _read(module: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The source of a module, and what it imports: ``(module, name)``, the name empty where the module itself is."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module}: no such module")
    source = Path(spec.origin).read_text()
    imported: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [(node.module, alias.name) for alias in node.names]
    return source, tuple(imported)


@cache
def _module_of(module: str, name: str) -> str:
    """``module.name`` if that is a module itself."""
    spec = find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"{module}.{name}" if name and is_package and find_spec(f"{module}.{name}") else module
