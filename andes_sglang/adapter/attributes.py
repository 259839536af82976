"""The names that instances of a class have, read from its methods' bytecode.

What they assign to ``self`` is not to be seen on the class itself, and an instance of SGLang's classes takes an engine to
make. The source says the same, in thirty times the time.
"""

from __future__ import annotations

import inspect
import opcode
from collections.abc import Iterator
from types import CodeType
from typing import Any

__all__ = ["attributes_of"]

_STORE_ATTR = opcode.opmap["STORE_ATTR"]
_EXTENDED_ARG = opcode.opmap["EXTENDED_ARG"]


def attributes_of(cls: type) -> frozenset[str]:
    """Methods, fields, and every attribute that a method of ``cls`` or of a base assigns."""
    names: set[str] = set()
    for base in cls.__mro__:
        names.update(vars(base), vars(base).get("__annotations__", ()))
        for member in vars(base).values():
            if (code := _code_of(member)) is not None:
                names.update(_assigned(code))
    return frozenset(names)


def _code_of(member: Any) -> CodeType | None:
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return code if isinstance(code, CodeType) else None


def _assigned(code: CodeType) -> Iterator[str]:
    raw, extended = code.co_code, 0
    for at in range(0, len(raw), 2):  # an instruction and its argument, a byte each
        argument = extended | raw[at + 1]
        if raw[at] == _STORE_ATTR:
            yield code.co_names[argument]
        extended = argument << 8 if raw[at] == _EXTENDED_ARG else 0
