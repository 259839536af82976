"""What an answer has to say for a page of another origin to read it, where no middleware says it."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["cors_headers"]


def cors_headers(origin: str | None, allowed: Collection[str]) -> dict[str, str]:
    """Headers for a page of ``origin``, None for another kind of client; nothing where it is not ``allowed``."""
    if "*" in allowed:
        return {"access-control-allow-origin": "*", "access-control-expose-headers": "*"}
    if origin is None or origin not in allowed:
        return {}
    return {"access-control-allow-origin": origin, "access-control-expose-headers": "*", "vary": "Origin"}
