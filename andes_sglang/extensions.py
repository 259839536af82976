"""Classes by name: the product's own, an installed package's (entry point), or ``package.module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Container, Mapping
from importlib.metadata import entry_points
from typing import Any

__all__ = ["check_options", "find_class"]


def find_class(name: str, own: Mapping[str, Any], group: str, noun: str, *, unnamed: Container[str] = ()) -> Any:
    """The class called ``name``: of ``own``, of the entry points of ``group``, or ``package.module:Class``.

    noun: what it is called in messages; unnamed: those of ``own`` that no message offers. Raises ``ValueError`` naming what
    is unknown or cannot be imported.
    """
    if name in own:
        return own[name]
    module, colon, attribute = name.partition(":")
    try:
        if colon:
            return getattr(importlib.import_module(module), attribute)
        found = list(entry_points(group=group, name=name))
        if found:
            return found[0].load()
    except Exception as error:  # whatever another package's module raises while it is imported
        raise ValueError(f"{noun} {name!r} cannot be loaded: {type(error).__name__}: {error}") from None
    known = sorted({*(one for one in own if one not in unnamed), *(point.name for point in entry_points(group=group))})
    raise ValueError(f"unknown {noun} {name!r}; choose one of {', '.join(known)}, or give package.module:Class")


def check_options(what: str, factory: Callable[..., Any], options: Mapping[str, Any], *, given: str) -> None:
    """Raise ``ValueError`` for an option that ``factory`` does not take, or lacks.

    what: what it makes, in messages; given: how an option is given, with ``{}`` for its name.
    """
    takes = inspect.signature(factory).parameters.values()
    known = [p.name for p in takes if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes)
    if (unknown := [option for option in options if option not in known]) and not open_ended:
        its = f"its options are {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{what}: unknown option {unknown[0]!r}; {its}")
    if missing := [p.name for p in takes if p.name in known and p.default is p.empty and p.name not in options]:
        raise ValueError(f"{what} needs the option {missing[0]!r}: {given.format(missing[0])}")
