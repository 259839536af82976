"""Pages for people: ``/``, what the fleet does, and ``/try``, to type into and watch a paced answer; with the summary that
the first is made from."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from andes_api.errors import ApiError
from andes_api.gateway import Gateway
from andes_api.history import Kind, Tally
from andes_api.merged import merged_kinds, merged_replicas
from andes_api.query import ONLY_KNOWN

__all__ = ["add_pages"]

WINDOWS_S = (300.0, 3600.0)
_SECURITY = {
    "content-security-policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def add_pages(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings
    gateway.siblings.answers("summary", functools.partial(_part, gateway))

    @app.get("/fleet/summary", dependencies=ONLY_KNOWN, summary="What a person wants to see at a glance")
    async def glance() -> Response:
        """Now, the last five minutes and the last hour, by model and class, and the engines with the wait that a new stream
        of usual length would have there. For programs there are `/fleet/qoe` and `/fleet/demand`."""
        return JSONResponse(_summary(gateway, await gateway.siblings.all("summary")))

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


@dataclass(frozen=True)
class _Part:
    """Of one worker. open: scores of its streams. ended: by window; minutes: by when they began, clock seconds."""

    held: int
    open: dict[Kind, list[float]]
    ended: dict[float, dict[Kind, Tally]]
    minutes: dict[float, Tally]
    replicas: list[dict[str, Any]]


def _part(gateway: Gateway) -> _Part:
    now_s = time.monotonic()
    running: dict[Kind, list[float]] = {}
    for stream in gateway.open:
        running.setdefault(stream.kind, [])
        if (score := stream.score(now_s)) is not None:
            running[stream.kind].append(score)
    history = gateway.history
    ended = {window_s: history.of(now_s, window_s) for window_s in WINDOWS_S}
    return _Part(gateway.held, running, ended, history.minutes(now_s), gateway.describe_replicas(now_s))


def _summary(gateway: Gateway, parts: Sequence[_Part]) -> dict[str, Any]:
    """As in ``/fleet/summary``."""
    now_s, classes = time.monotonic(), gateway.settings.classes
    running = merged_kinds((part.open for part in parts), lambda lists: [score for one in lists for score in one])
    minutes = merged_kinds((part.minutes for part in parts), Tally.merged)
    return {
        "gateway": gateway.settings.name,
        "now_s": time.time(),
        "draining": gateway.draining,
        "policy": gateway.settings.policy,
        "held": sum(part.held for part in parts),
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
        "windows": [
            {"window_s": window_s, "kinds": _kinds(part.ended[window_s] for part in parts)} for window_s in WINDOWS_S
        ],
        "minutes": [{"ago_s": round(now_s - s), **tally.to_dict()} for s, tally in sorted(minutes.items())],
        "replicas": merged_replicas([part.replicas for part in parts]),
    }


def _kinds(ended: Iterable[dict[Kind, Tally]]) -> list[dict[str, Any]]:
    merged = sorted(merged_kinds(ended, Tally.merged).items())
    return [{"model": model, "class": cls, **tally.to_dict()} for (model, cls), tally in merged]


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(files("andes_api").joinpath(name).read_text(), headers=_SECURITY)


def _from_here(request: Request) -> bool:
    try:
        return request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        return False
