"""Arguments that several commands read alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

__all__ = ["listed"]


def listed(known: Collection[str]) -> Callable[[str], list[str]]:
    """A type of ``argparse``: names of ``known`` with commas between them."""

    def read(text: str) -> list[str]:
        given = text.split(",")
        if wrong := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not known; choose of {', '.join(known)}")
        return given

    return read
