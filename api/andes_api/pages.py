"""Pages for people: ``/``, what the fleet does, and ``/try``, to type into and watch a paced answer; with the summary that
the first is made from."""

from __future__ import annotations

import time
from importlib.resources import files
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from andes_api.errors import ApiError
from andes_api.gateway import Gateway
from andes_api.history import Kind, Tally

__all__ = ["add_pages", "summary"]

WINDOWS_S = (300.0, 3600.0)
_SECURITY = {
    "content-security-policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def add_pages(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings

    @app.get("/fleet/summary", summary="What a person wants to see at a glance")
    async def glance() -> Response:
        """Now, the last five minutes and the last hour, by model and class, and the engines with the wait that a new stream
        of usual length would have there. For programs there are `/fleet/qoe` and `/fleet/demand`."""
        return JSONResponse(summary(gateway, time.monotonic()))

    if settings.show_page:

        @app.get("/", include_in_schema=False)
        async def live() -> HTMLResponse:
            return _page("page.html")

    if settings.try_page is not False:

        @app.get("/try", include_in_schema=False)
        async def attempt(request: Request) -> HTMLResponse:
            if settings.try_page is None and not _from_here(request):
                raise ApiError(403, "this page is for clients on this machine; set try_page: true to show it to all",
                               "permission_error", reason="loopback", retry=False)  # fmt: skip
            return _page("try.html")


def summary(gateway: Gateway, now_s: float) -> dict[str, Any]:
    """As in ``/fleet/summary``; ``now_s``: seconds of the monotonic clock."""
    running: dict[Kind, list[float]] = {}
    for stream in gateway.open:
        running.setdefault(stream.kind, [])
        if (score := stream.score(now_s)) is not None:
            running[stream.kind].append(score)
    classes = gateway.settings.classes
    return {
        "gateway": gateway.settings.name,
        "now_s": time.time(),
        "draining": gateway.draining,
        "policy": gateway.settings.policy,
        "held": gateway.held,
        "classes": {name: {"ttft_s": cls.ttft_s, "tds": cls.tds, "pace": cls.pace} for name, cls in classes.items()},
        "default_class": gateway.settings.default_class,
        "open": [
            {
                "model": model,
                "class": cls,
                "streams": len(scores),
                "mean": sum(scores) / len(scores) if scores else None,
            }
            for (model, cls), scores in sorted(running.items())
        ],
        "windows": [{"window_s": window_s, "kinds": _kinds(gateway, now_s, window_s)} for window_s in WINDOWS_S],
        "minutes": [{"ago_s": round(ago_s), **tally.to_dict()} for ago_s, tally in gateway.history.minutes(now_s)],
        "replicas": gateway.describe_replicas(now_s),
    }


def _kinds(gateway: Gateway, now_s: float, window_s: float) -> list[dict[str, Any]]:
    ended: dict[Kind, Tally] = gateway.history.of(now_s, window_s)
    return [{"model": model, "class": cls, **tally.to_dict()} for (model, cls), tally in ended.items()]


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(files("andes_api").joinpath(name).read_text(), headers=_SECURITY)


def _from_here(request: Request) -> bool:
    try:
        return request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        return False
