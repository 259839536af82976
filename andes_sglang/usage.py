"""What a wrong command line raises, how help is written, and what becomes of output that cannot be written: apart, so that
``andes`` imports nothing else before it can answer Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Any, TextIO

__all__ = ["Help", "Output", "UsageError"]


class UsageError(Exception):
    """A wrong flag or value; the text names flag, value and what to do."""


class Help(argparse.HelpFormatter):
    """Says the default of every option that has one, unless its help does."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        has_one = action.option_strings and action.nargs != 0
        has_one = has_one and action.default not in (None, argparse.SUPPRESS, "") and action.default != []
        if not has_one or "default" in text.lower():
            return text
        return f"{text}; default: %(default)s" if text else "default: %(default)s"


class Output:
    """In the place of standard output, for as long as it is entered: what it cannot take (a full disk, a closed pipe, a
    descriptor that is not open) is passed over, so that a command still keeps its files. What comes later is tried again:
    under the log of a server a disk may have room again. ``error``: why, the first time; None: all is written."""

    def __init__(self) -> None:
        self._stream: TextIO | None = sys.stdout
        self.error: OSError | None = None

    def __enter__(self) -> Output:
        if self._stream is None:
            _take_standard_descriptors()
        sys.stdout = self
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        sys.stdout, real = self._stream, sys.__stdout__
        if self.error is not None and real is not None and self._stream is real:
            with open(os.devnull, "w") as nothing:  # where Python tries the rest at its end
                os.dup2(nothing.fileno(), real.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        if self._stream is None:
            self._fail(OSError(errno.EBADF, os.strerror(errno.EBADF)))
            return len(text)
        try:
            self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error = self.error or error


def _take_standard_descriptors() -> None:
    """Of those that are not open: a file or a socket that got one would be taken for standard output."""
    while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(taken)
