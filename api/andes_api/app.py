"""The gateway as an ASGI application: the sum of its settings."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import aiohttp
import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from andes_api.errors import ApiError
from andes_api.expectations import key_matches, resolve, tenant_of
from andes_api.gateway import Gateway
from andes_api.media import check_media
from andes_api.methods import Methods, nothing_there
from andes_api.pages import add_pages
from andes_api.request_body import read_json
from andes_api.schema import CHAT, COMPLETION, ERROR
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_sglang import __version__
from andes_sglang.sketch import Sketch

__all__ = ["create_app"]

MODELS_TIMEOUT_S = 10.0
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
    app.add_middleware(Methods, routes=app.router.routes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["*"],
        )  # fmt: skip
    _add_errors(app)
    _add_inference(app, gateway)
    _add_fleet(app, gateway)
    _add_health(app, gateway)
    add_pages(app, gateway)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        fault = nothing_there(error, request.url.path, app.router.routes)
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
        expectation = resolve(headers, body, tenant, settings)
        stream = gateway.new_stream(body, expectation, tenant, _known_id(headers), chat=chat)
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
        tenant_of(request.headers, settings)
        return await _models(gateway)

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str, request: Request) -> Response:
        tenant_of(request.headers, settings)
        answer = await _models(gateway)
        found = [m for m in orjson.loads(bytes(answer.body)).get("data", ()) if m.get("id") == name]
        if not found:
            raise ApiError(404, f"no model {name[:100]!r}", param="model", code="model_not_found", reason="model")
        return JSONResponse(found[0])


def _known_id(headers: Mapping[str, str]) -> dict[str, str]:
    """The caller's headers, without a request id that could not be sent on."""
    known = dict(headers)
    if not _REQUEST_ID.fullmatch(known.get("x-request-id", "")):
        known.pop("x-request-id", None)
    return known


async def _models(gateway: Gateway) -> Response:
    """The answer of the first replica that gives one; with none, for instance scaled to zero, the last that was given."""
    timeout, upstreams = aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S), gateway.upstreams
    for replica in upstreams.accepting(time.monotonic()):
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with upstreams.session.get(
                replica.url + "/v1/models", timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status == 200:
                    upstreams.models = await answer.read()
                    break
    if upstreams.models is not None:
        return Response(upstreams.models, media_type="application/json")
    raise ApiError(503, "no engine answers", "service_unavailable_error", reason="no_replica", retry_after_s=5.0)


def _add_fleet(app: FastAPI, gateway: Gateway) -> None:
    name = gateway.settings.name

    @app.get("/fleet/demand", summary="Recent requests, in order of arrival")
    async def demand(since: Annotated[float, Query(allow_inf_nan=False)] = 0.0) -> Response:
        """Requests that arrived after `since` (Unix seconds). Concatenate those of several gateways. `held`: requests that
        wait for an engine now."""
        gateway.update_open_records()
        records = [record.to_dict() for record in gateway.demand.since(since)]
        return _json({
            "gateway": name, "now_s": time.time(), "held": gateway.held,
            "complete_since_s": gateway.demand.complete_since_s, "records": records,
        })  # fmt: skip

    @app.get("/fleet/qoe", summary="Distribution of QoE per class")
    async def qoe(window_s: Annotated[float, Query(gt=0, le=3600)] = 300.0) -> Response:
        """QoE of the streams that ended in the window, and of those open now. Merge several gateways by adding `counts`
        and `total`; the figures beside them are for reading only."""
        now_s = time.monotonic()
        ended = gateway.qoe.of(now_s, window_s)
        running: dict[str, Sketch] = {}
        for stream in gateway.open:
            if (score := stream.score(now_s)) is not None:
                running.setdefault(stream.expectation.class_name, Sketch()).add(score)
        return _json({
            "gateway": name,
            "now_s": time.time(),
            "window_s": window_s,
            "classes": {cls: sketch.to_dict() for cls, sketch in ended.items()},
            "running": {cls: sketch.to_dict() for cls, sketch in running.items()},
            "all": Sketch.merged(ended.values()).to_dict(),
        })  # fmt: skip

    @app.get("/fleet/replicas", summary="The engines and what they hold")
    async def replicas() -> Response:
        now_s = time.monotonic()
        return _json({
            "gateway": name,
            "policy": gateway.settings.policy,  # deprecated: the name alone
            "routing": {"name": gateway.settings.policy, "options": gateway.settings.routing_options},
            "held": gateway.held,
            "replicas": [replica.describe(now_s) for replica in gateway.upstreams.replicas.values()],
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
    async def metrics(request: Request) -> Response:
        """In Prometheus' text format, or OpenMetrics where the scraper accepts it."""
        gateway.count_replicas()
        content, kind = gateway.metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
