"""Arguments that several commands read alike."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Collection, Sequence

__all__ = ["add_constants", "listed", "set_constants"]


def listed(known: Collection[str]) -> Callable[[str], list[str]]:
    """A type of ``argparse``: names of ``known`` with commas between them."""

    def read(text: str) -> list[str]:
        given = text.split(",")
        if wrong := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not known; choose of {', '.join(known)}")
        return given

    return read


def add_constants(parser: argparse.ArgumentParser) -> None:
    """The option ``--set``, which :func:`set_constants` carries out."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="MODULE.NAME=NUMBER",
        help="a constant of andes_operator, as table.MAX_PUT_OFF=1; repeat it",
    )  # fmt: skip


def set_constants(given: Sequence[str]) -> None:
    """Each ``MODULE.NAME=NUMBER`` of ``given``, in this process."""
    for constant in given:
        where, _, number = constant.partition("=")
        module, _, name = where.rpartition(".")
        of = importlib.import_module(f"andes_operator.{module}")
        setattr(of, name, type(getattr(of, name))(float(number)))
