"""What pydantic finds wrong with settings, in words that are not Python's."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

__all__ = ["sentences"]

LIST, MAPPING = "expected a list", "expected a mapping"
WORDS = {
    "missing": "is missing", "extra_forbidden": "there is no such setting", "too_short": "is empty", "tuple_type": LIST,
    "list_type": LIST, "set_type": LIST, "dict_type": MAPPING, "model_type": MAPPING, "model_attributes_type": MAPPING,
}  # fmt: skip
"""For a kind of fault, where pydantic's speak of Python."""


def sentences(error: ValidationError) -> list[str]:
    """One for each fault. A list that is short of what is wrong in it is no fault of its own."""
    faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors(include_url=False)]
    inside = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [_sentence(fault) for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]


def _sentence(fault: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    what = WORDS.get(fault["type"], str(fault["msg"]).removeprefix("Value error, "))
    given = fault.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float) and "key" not in where else ""
    return f"{where}: {what}{shown}" if where else what
