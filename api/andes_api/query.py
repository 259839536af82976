"""Query parameters that an endpoint does not know: refused, so that a wrong name is not taken for the default."""

from __future__ import annotations

from fastapi import Depends, Request

from andes_api.errors import ApiError

__all__ = ["ONLY_KNOWN"]


async def _only_known(request: Request) -> None:
    """Raises a 400 that names the parameter and those there are."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            message = f"{name[:100]}: no such query parameter; {request.url.path[:100]} {takes}"
            raise ApiError(400, message, param=name[:100], reason="query", retry=False)


ONLY_KNOWN = [Depends(_only_known)]
"""For ``dependencies`` of an endpoint."""
