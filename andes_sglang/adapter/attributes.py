"""The names that instances of a class have, read from its source: what its methods assign to ``self`` is not to be seen on
the class itself, and an instance of SGLang's classes takes an engine to make."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator

__all__ = ["attributes_of"]


def attributes_of(cls: type) -> frozenset[str]:
    """Methods, fields, and what a method of ``cls`` or a base assigns to ``self``. Raises ``OSError`` without source."""
    names: set[str] = set()
    for base in cls.__mro__:
        names.update(vars(base), vars(base).get("__annotations__", ()))
        if base.__module__ != "builtins" and base.__flags__ & _HEAP_TYPE:
            names.update(_assigned(base.__module__, base.__qualname__))
    return frozenset(names)


_HEAP_TYPE = 1 << 9
"""Python's own flag (``Py_TPFLAGS_HEAPTYPE``) of classes that are written in Python."""


def _assigned(module: str, qualname: str) -> Iterator[str]:
    for node in ast.walk(_classes(module).get(qualname, ast.Module([], []))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@functools.cache
def _classes(module: str) -> dict[str, ast.AST]:
    source = inspect.getsource(sys.modules[module])
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
