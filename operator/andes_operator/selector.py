"""Label selectors as the API server writes them in ``status.selector`` of a scale: :func:`matches`. Pure.

``app=engine,tier in (a,b),zone!=x,!old,gpu``; the grammar is that of ``k8s.io/apimachinery/pkg/labels``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

__all__ = ["SelectorError", "matches"]

_TERM = re.compile(r"\s*(?:(?P<name>[^\s=!,()]+)\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
                   r"|(?P<key>[^\s=!,()]+)\s*(?P<sign>==|=|!=)\s*(?P<value>[^\s=!,()]*)"
                   r"|(?P<absent>!)?\s*(?P<present>[^\s=!,()]+))\s*(?:,|$)")  # fmt: skip


class SelectorError(ValueError):
    """Not a label selector."""


class _Requirement(NamedTuple):
    """values: one of which the label has (none of which, where negated); None: any."""

    label: str
    values: frozenset[str] | None
    negated: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        there = labels.get(self.label)
        if self.values is None:
            return (there is None) is self.negated
        return (there in self.values) is not self.negated


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether a pod with ``labels`` is selected. Raises :class:`SelectorError`."""
    return all(requirement.holds(labels) for requirement in _parse(selector))


@lru_cache(maxsize=1024)
def _parse(selector: str) -> tuple[_Requirement, ...]:
    found, at = [], 0
    while at < len(selector):
        term = _TERM.match(selector, at)
        if term is None:
            raise SelectorError(f"not a label selector: {selector}")
        at = term.end()
        if term["set"]:
            values = frozenset(value.strip() for value in term["values"].split(","))
            found.append(_Requirement(term["name"], values, term["set"] == "notin"))
        elif term["sign"]:
            found.append(_Requirement(term["key"], frozenset({term["value"]}), term["sign"] == "!="))
        else:
            found.append(_Requirement(term["present"], None, term["absent"] is not None))
    return tuple(found)
