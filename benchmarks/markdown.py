"""Markdown tables of the pages in docs/benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Lines", "header", "replace_table", "row"]

Lines = Iterator[str]


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def header(*titles: str) -> Lines:
    yield row(*titles)
    yield "|" + "---|" * len(titles)


def replace_table(page: Path, name: str, text: str) -> None:
    """Put ``text`` into ``page``, between the comments ``<!-- NAME -->`` and ``<!-- end of NAME -->``. Exits where
    they are missing."""
    marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    old = page.read_text()
    if not marked.search(old):
        raise SystemExit(f"--page {page}: has no <!-- {name} --> ... <!-- end of {name} -->")
    page.write_text(marked.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", old))
