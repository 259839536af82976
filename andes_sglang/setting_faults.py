"""What pydantic finds wrong with settings, or with what a request says, in words that are not Python's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = ["sentences"]

LIST, MAPPING = "expected a list", "expected a mapping"
WORDS = {
    "missing": "is missing", "extra_forbidden": "there is no such setting", "too_short": "is empty", "tuple_type": LIST,
    "list_type": LIST, "set_type": LIST, "dict_type": MAPPING, "model_type": MAPPING, "model_attributes_type": MAPPING,
}  # fmt: skip
"""For a kind of fault, where pydantic's speak of Python."""
SHOWN_CHARACTERS = 100
"""Of a value that is wrong."""
Place = tuple[int | str, ...]


class Faults(Protocol):
    """pydantic's ``ValidationError``, or FastAPI's of a request."""

    def errors(self) -> Iterable[Any]: ...


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


def sentences(error: Faults, name: Callable[[Place], str] = dotted) -> list[str]:
    """One for each fault: what ``name`` calls its place, what is wrong, the value unless it is a key. A list that is short of
    what is wrong in it is no fault of its own."""
    faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
    inside = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [_sentence(fault, name) for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]


def _sentence(fault: dict[str, Any], name: Callable[[Place], str]) -> str:
    where = name(fault["loc"]) if fault["loc"] else ""
    what = WORDS.get(fault["type"], str(fault["msg"]).removeprefix("Value error, "))
    given = fault.get("input")
    cut = given[:SHOWN_CHARACTERS] if isinstance(given, str) else given
    shown = f" (got {cut!r})" if isinstance(given, str | int | float) and "key" not in where.lower() else ""
    return f"{where}: {what}{shown}" if where else what
