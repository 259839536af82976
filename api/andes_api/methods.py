"""What every path answers besides its own methods: HEAD where there is GET, OPTIONS everywhere, and what there is to a caller
who asks for something else."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from andes_api.errors import ApiError

__all__ = ["Methods", "nothing_there"]


class Methods:
    """Middleware before ``routes``. A slash at the end is none of the path: Starlette would redirect, behind TLS to http."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"].endswith("/"):
                scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # uvicorn keeps the body back
            elif scope["method"] == "OPTIONS" and (allowed := _allowed(self._routes, scope["path"])):
                await Response(status_code=204, headers={"allow": allowed})(scope, receive, send)
                return
        await self._app(scope, receive, send)


def nothing_there(error: HTTPException, path: str, routes: Iterable[BaseRoute]) -> ApiError:
    """The error for a path, or a method at one, that is not among ``routes``."""
    status, message = error.status_code, str(error.detail)
    if status == 404:
        known = sorted({route.path for route in routes if isinstance(route, Route)})
        message = f"nothing at {path[:100]!r}; there is {', '.join(known)}"
    elif status == 405:
        message = f"{path[:100]!r} takes {_allowed(routes, path)} only"
    return ApiError(status, message, code="not_found" if status == 404 else None, reason="http", retry=False)


def _allowed(routes: Iterable[BaseRoute], path: str) -> str:
    """Methods that ``path`` takes, as the ``allow`` header lists them; empty for an unknown path."""
    found = {
        method
        for route in routes
        if isinstance(route, Route) and route.path_regex.match(path)
        for method in route.methods or ()
    }
    if "GET" in found:
        found.add("HEAD")
    return ", ".join(sorted(found | {"OPTIONS"})) if found else ""
