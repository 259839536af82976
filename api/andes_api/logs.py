"""Where a gateway's log goes."""

from __future__ import annotations

import logging
import sys

__all__ = ["log_to_streams"]


def log_to_streams() -> None:
    """The log goes to standard error, the access log to standard output."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    access = logging.getLogger("andes.access")
    access.propagate = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
