"""Where the arguments of a call may be cut: into statements of Python or SQL, or closed values. Pure.

Each splitter belongs to one call and is shown an argument's text as it grows; what it has looked at it does not look
at again, so that a long statement costs no more per token than a short one.
"""

from __future__ import annotations

import ast
import re
from typing import Protocol

__all__ = ["SPLITTERS", "PythonStatements", "Splitter", "SqlStatements"]


class Splitter(Protocol):
    """done: characters of the source that are in units."""

    done: int

    def units(self, source: str) -> list[str]:
        """The units that are whole now, after those that it has given before. ``source`` begins with what it was before."""


CONTINUES = ("elif", "else", "except", "finally")
"""Words that go on with the statement before them."""
RETRY_RATIO = 9 / 8
"""Text that does not parse is tried again once it is so much longer: a long string is not parsed at each of its lines."""
_LINE = re.compile(r"\n(?![ \t\r\n\f#])")
_WORD = re.compile(r"\w*")


class PythonStatements:
    """A statement is whole once the next one begins on a line of its own, not indented: an ``else`` might have followed."""

    def __init__(self, done: int = 0) -> None:
        self.done, self._seen, self._retry = done, done, 0

    def units(self, source: str) -> list[str]:
        last = None
        for line in _LINE.finditer(source, self._seen):
            word = _WORD.match(source, line.end())
            assert word is not None  # noqa: S101 - it matches nothing as well
            if line.end() == len(source):
                break
            if word.end() == len(source) and any(known.startswith(word[0]) for known in CONTINUES):
                break  # it may become one
            self._seen = line.end()
            if word[0] not in CONTINUES:
                last = line.end()
        if last is None or last - self.done < self._retry:
            return []
        unit = source[self.done : last]
        if not _is_whole(unit):
            self._retry = int(len(unit) * RETRY_RATIO)
            return []
        self.done, self._retry = last, 0
        return [unit]


def _is_whole(source: str) -> bool:
    try:
        return bool(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


_SQL = re.compile(
    r"""(?P<end>;)|'[^']*'|"[^"]*"|`[^`]*`|--[^\n]*\n|/\*[^*]*(?:\*(?!/)[^*]*)*\*/|(?P<open>['"`]|--|/\*|[-/]\Z)"""
)


class SqlStatements:
    """A statement ends with a semicolon outside quotes and comments; one is one unit."""

    def __init__(self, done: int = 0) -> None:
        self.done = self._seen = done

    def units(self, source: str) -> list[str]:
        found = []
        while (token := _SQL.search(source, self._seen)) is not None and token["open"] is None:
            self._seen = token.end()
            if token["end"]:
                found.append(source[self.done : self._seen])
                self.done = self._seen
        self._seen = len(source) if token is None else token.start()
        return found


SPLITTERS: dict[str, type[PythonStatements] | type[SqlStatements]] = {"python": PythonStatements, "sql": SqlStatements}
