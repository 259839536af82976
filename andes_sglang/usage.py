"""What a wrong command line raises: apart, so that ``andes`` imports nothing else before it can answer Ctrl-C."""

from __future__ import annotations

__all__ = ["UsageError"]


class UsageError(Exception):
    """A wrong flag or value; the text names flag, value and what to do."""
