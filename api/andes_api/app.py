"""The gateway as an ASGI application: the sum of its settings."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from andes_api.errors import ApiError
from andes_api.expectations import key_matches, resolve, tenant_of
from andes_api.gateway import Gateway
from andes_api.media import check_media
from andes_api.models import ModelRoute, no_model
from andes_api.request_body import read_json
from andes_api.schema import CHAT, COMPLETION, ERROR
from andes_api.settings import GatewaySettings, TenantSettings
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_sglang import __version__
from andes_sglang.sketch import Sketch

__all__ = ["create_app"]

OneModel = Annotated[
    str | None, Query(description="one model, by its name in `/v1/models`; without adapters and aliases")
]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class _Answer(Response):
    """The rest of the request is the gateway's own: it writes to the connection as events come."""

    def __init__(self, gateway: Gateway, stream: Stream, order: list[Upstream]) -> None:
        self.background = None
        self._gateway, self._stream, self._order = gateway, stream, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await self._gateway.serve(self._stream, self._order, receive, send)


def create_app(settings: GatewaySettings) -> FastAPI:
    """A gateway with these settings; engines are looked for when it starts."""
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        yield
        await gateway.stop()

    app = FastAPI(
        title="Andes gateway", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"4XX": ERROR, "5XX": ERROR},
    )  # fmt: skip
    app.state.gateway = gateway
    _add_errors(app)
    _add_inference(app, gateway)
    _add_fleet(app, gateway)
    _add_health(app, gateway)
    if settings.show_page:
        page = files("andes_api").joinpath("page.html").read_text()

        @app.get("/", include_in_schema=False)
        async def live() -> HTMLResponse:
            return HTMLResponse(page)

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        fault = ApiError(error.status_code, str(error.detail), reason="http", retry=False)
        return JSONResponse(fault.body, error.status_code, {**(error.headers or {}), **fault.headers})

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(str(p) for p in f['loc'])}: {f['msg']}" for f in error.errors())
        fault = ApiError(400, faults)
        return JSONResponse(fault.body, 400, fault.headers)


def _add_inference(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings

    async def infer(request: Request, chat: bool) -> Response:
        headers, settings = request.headers, gateway.settings  # classes may have changed
        tenant = tenant_of(headers, settings)
        body = await read_json(request, settings)
        refused = settings.refused_fields & body.keys()
        if refused:
            name = min(refused)
            raise ApiError(400, f"{name}: this field is not accepted here", param=name, reason="field", retry=False)
        check_media(body, settings.media_hosts)
        route = gateway.route_of(body.get("model"), tenant)
        expectation = resolve(headers, body, tenant, settings, settings.models.get(route.model or ""))
        stream = gateway.new_stream(body, expectation, tenant, _known_id(headers), chat=chat, route=route)
        try:
            order = gateway.admit(stream)
        except ApiError as error:
            gateway.refuse(stream, error)
            raise
        return _Answer(gateway, stream, order)

    @app.post("/v1/chat/completions", openapi_extra=CHAT, summary="Answer a conversation")
    async def chat_completions(request: Request) -> Response:
        return await infer(request, chat=True)

    @app.post("/v1/completions", openapi_extra=COMPLETION, summary="Continue a prompt")
    async def completions(request: Request) -> Response:
        return await infer(request, chat=False)

    @app.get("/v1/models", summary="Models that can be asked for")
    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": _models(gateway, tenant_of(request.headers, settings))})

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str, request: Request) -> Response:
        cards = {card["id"]: card for card in _models(gateway, tenant_of(request.headers, settings))}
        if name not in cards:
            raise no_model(name, list(cards))
        return _json(cards[name])


def _known_id(headers: Mapping[str, str]) -> dict[str, str]:
    """The caller's headers, without a request id that could not be sent on."""
    known = dict(headers)
    if not _REQUEST_ID.fullmatch(known.get("x-request-id", "")):
        known.pop("x-request-id", None)
    return known


def _models(gateway: Gateway, tenant: TenantSettings | None) -> list[Mapping[str, Any]]:
    """The models that this tenant may use, with their adapters and aliases. Raises a 503 while none is known."""
    cards = gateway.upstreams.catalog.cards()
    if not cards:
        raise ApiError(503, "no engine answers", "service_unavailable_error", reason="no_replica", retry_after_s=5.0)
    if tenant is None or not tenant.models:
        return cards
    return [card for card in cards if gateway.upstreams.resolve(card["id"]).model in tenant.models]


def _add_fleet(app: FastAPI, gateway: Gateway) -> None:
    name = gateway.settings.name

    @app.get("/fleet/demand", summary="Recent requests, in order of arrival")
    async def demand(since: Annotated[float, Query(allow_inf_nan=False)] = 0.0, model: OneModel = None) -> Response:
        """Requests that arrived after `since` (Unix seconds), of all models or of one. Concatenate those of several gateways.
        `held`: requests that wait for an engine now; `models`: those that this gateway knows."""
        gateway.update_open_records()
        records = [record.to_dict() for record in gateway.demand.since(since, model)]
        held = gateway.held_by_model
        return _json({
            "gateway": name, "now_s": time.time(), "models": gateway.upstreams.catalog.models,
            "held": gateway.held if model is None else held[model],
            "held_by_model": {known: held[known] for known in gateway.upstreams.catalog.models},
            "complete_since_s": gateway.demand.complete_since_s, "records": records,
        })  # fmt: skip

    @app.get("/fleet/qoe", summary="Distribution of QoE per class")
    async def qoe(window_s: Annotated[float, Query(gt=0, le=3600)] = 300.0, model: OneModel = None) -> Response:
        """QoE of the streams that ended in the window, and of those open now, of all models or of one; `models` has the same
        for each. Merge several gateways by adding `counts` and `total`; the figures beside them are for reading only."""
        now_s = time.monotonic()
        ended = gateway.qoe.of(now_s, window_s)
        running: dict[tuple[str | None, str], Sketch] = {}
        for stream in gateway.open:
            if (score := stream.score(now_s)) is not None:
                running.setdefault((stream.record.model, stream.record.class_name), Sketch()).add(score)
        known = gateway.upstreams.catalog.models
        return _json({
            "gateway": name,
            "now_s": time.time(),
            "window_s": window_s,
            **_by_class(ended, running, model),
            "models": {one: _by_class(ended, running, one) for one in known if model in (None, one)},
        })  # fmt: skip

    @app.get("/fleet/replicas", summary="The engines and what they hold")
    async def replicas(model: OneModel = None) -> Response:
        """All engines, or those of one model."""
        now_s = time.monotonic()
        held = gateway.held if model is None else gateway.held_by_model[model]
        listed = [r for r in gateway.upstreams.replicas.values() if model is None or r.serves(ModelRoute(model))]
        return _json({
            "gateway": name,
            "policy": gateway.settings.policy,  # deprecated: the name alone
            "routing": {"name": gateway.settings.policy, "options": gateway.settings.routing_options},
            "models": gateway.upstreams.catalog.models,
            "held": held,
            "replicas": [replica.describe(now_s) for replica in listed],
        })  # fmt: skip

    @app.post("/fleet/replicas/{replica}/drain", summary="Give an engine nothing new, or take that back")
    async def drain(replica: str, request: Request, drained: bool = True) -> Response:
        _administrator(request, gateway.settings)
        found = [r for r in gateway.upstreams.replicas.values() if r.name == replica]
        if not found:
            raise ApiError(404, f"no replica {replica[:100]!r}", reason="replica", retry=False)
        found[0].drained = drained
        gateway.upstreams.notify()
        gateway.count_replicas()
        return _json(found[0].describe(time.monotonic()))


def _by_class(
    ended: Mapping[tuple[str | None, str], Sketch], running: Mapping[tuple[str | None, str], Sketch], model: str | None
) -> dict[str, Any]:
    """Sketches per class of one model, or of all."""

    def of(kinds: Mapping[tuple[str | None, str], Sketch]) -> dict[str, Sketch]:
        chosen = {kind: sketch for kind, sketch in kinds.items() if model is None or kind[0] == model}
        classes = sorted({cls for _, cls in chosen})
        return {name: Sketch.merged(sketch for (_, cls), sketch in chosen.items() if cls == name) for name in classes}

    past = of(ended)
    return {
        "classes": {cls: sketch.to_dict() for cls, sketch in past.items()},
        "running": {cls: sketch.to_dict() for cls, sketch in of(running).items()},
        "all": Sketch.merged(past.values()).to_dict(),
    }


def _administrator(request: Request, settings: GatewaySettings) -> None:
    if settings.admin_key_sha256 is None:
        if settings.loopback and "origin" not in request.headers:  # no page of a browser
            return
        raise ApiError(403, "set admin_key_sha256 to use this from outside", "permission_error", reason="admin")
    key = request.headers.get("authorization", "").partition(" ")[2].strip()
    if not key_matches(key, settings.admin_key_sha256):
        raise ApiError(401, "no valid administrator's key", "authentication_error", reason="admin", retry=False)


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/livez", summary="Whether this process works")
    async def livez() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz", summary="Whether requests should be sent here")
    async def readyz() -> Response:
        """Also without any engine: what comes is held until there is one, which its waiting may bring about."""
        if gateway.draining:
            raise ApiError(503, "draining", "service_unavailable_error", reason="draining", retry_after_s=1.0)
        engines = sum(bool(r.healthy) and not r.draining for r in gateway.upstreams.replicas.values())
        return _json({"status": "ok" if engines else "no engine", "engines": engines, "held": gateway.held})

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        gateway.count_replicas()
        return Response(gateway.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
