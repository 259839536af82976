"""What a wrong command line raises, and how help is written: apart, so that ``andes`` imports nothing else before it can
answer Ctrl-C."""

from __future__ import annotations

import argparse

__all__ = ["Help", "UsageError"]


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
