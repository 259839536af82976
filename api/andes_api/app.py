"""The gateway as an ASGI application: the sum of its settings."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from andes_api.batches.endpoints import add_batches
from andes_api.batches.service import Batches
from andes_api.board import Worker
from andes_api.connection import Connection
from andes_api.endpoints import CHAT, ENDPOINTS, RESPONSES, Endpoint, at_path
from andes_api.errors import ApiError
from andes_api.expectations import ResolvedExpectation, resolve, tenant_of
from andes_api.fleet import add_fleet, json_response
from andes_api.gateway import Gateway
from andes_api.kept import ask_for
from andes_api.methods import Methods, nothing_there
from andes_api.metrics import Levels
from andes_api.models import no_model
from andes_api.pages import add_pages
from andes_api.reader_report import ReaderReport
from andes_api.request_body import check_fields, read_form, read_json
from andes_api.request_log import RequestLog, request_of
from andes_api.schema import ERROR, OPERATIONS, READER_REPORT
from andes_api.settings import GatewaySettings, TenantSettings
from andes_api.stream import Stream
from andes_api.tools import asked_tools
from andes_api.upstream import Upstream
from andes_api.upstream_answer import as_openai_error
from andes_sglang import __version__
from andes_sglang.setting_faults import sentences

__all__ = ["create_app"]

INFERENCE_PATHS = frozenset(endpoint.path for endpoint in ENDPOINTS)


class _Inference:
    """Middleware just before the router, which takes a sixth of what an opening costs: what asks
    for inference goes straight to ``infer``. The routes are there for the API's description and for wrong methods."""

    def __init__(self, app: ASGIApp, infer: Callable[[Request], Awaitable[Response]]) -> None:
        self._app, self._infer = app, infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in INFERENCE_PATHS:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            answer = await self._infer(request)
        except ApiError as error:
            answer = _refusal(request, error)
        await answer(scope, receive, send)


class _Answer(Response):
    """The rest of the request is the gateway's own: it writes to the connection as events come."""

    def __init__(self, gateway: Gateway, stream: Stream, order: list[Upstream]) -> None:
        self.background = None
        self._gateway, self._stream, self._order = gateway, stream, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection.of(scope)
        await self._gateway.serve(self._stream, self._order, connection, receive, send)


def create_app(settings: GatewaySettings, worker: Worker | None = None) -> FastAPI:
    """A gateway with these settings, or one process of it; engines are looked for when it starts."""
    gateway = Gateway(settings, worker)
    batches = Batches.of(gateway)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        if batches is not None:
            batches.runner.start()
        yield
        if batches is not None:
            await batches.runner.stop()
        await gateway.stop()

    app = FastAPI(
        title="Andes gateway", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"4XX": ERROR, "5XX": ERROR},
    )  # fmt: skip
    app.state.gateway = gateway
    app.add_middleware(_Inference, infer=functools.partial(_infer, gateway))
    app.add_middleware(Methods, routes=app.router.routes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["*"],
        )  # fmt: skip
    app.add_middleware(RequestLog, gateway=gateway)
    _add_errors(app)
    _add_inference(app, gateway)
    add_batches(app, settings, batches)
    add_fleet(app, gateway, batches)
    _add_health(app, gateway)
    add_pages(app, gateway)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return _refusal(request, error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        fault = nothing_there(error, request.url.path, app.router.routes)
        body = at_path(request.url.path).error_body(error.status_code, fault.body)
        return JSONResponse(body, error.status_code, {**(error.headers or {}), **fault.headers})

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = ApiError(400, "; ".join(sentences(error)))
        return JSONResponse(fault.body, 400, fault.headers)


def _refusal(request: Request, error: ApiError) -> JSONResponse:
    body = at_path(request.scope["path"]).error_body(error.status, error.body)
    return JSONResponse(body, error.status, error.headers)


async def _infer(gateway: Gateway, request: Request) -> Response:
    """Answer a request for inference. Raises the error that refuses it."""
    endpoint = at_path(request.scope["path"])
    headers, settings = request.headers, gateway.settings  # classes may have changed
    tenant = tenant_of(headers, settings)
    body = await (read_form if endpoint.form else read_json)(request, settings)
    check_fields(body, endpoint, settings)
    gateway.upstreams.catalog.name_adapter(body)
    route = gateway.route_of(body.get("model"), tenant)
    expectation = resolve(headers, body, tenant, settings, settings.models.get(route.model or ""))
    _check_endpoint(endpoint, body, expectation, tenant)
    allowed = tenant.tools if tenant else ()
    tools = asked_tools(headers, body, settings.tools, allowed, chat=endpoint is CHAT)
    seen = request_of(request.scope)
    known = {**headers, "x-request-id": seen.request_id}
    stream = gateway.new_stream(body, expectation, tenant, known, endpoint=endpoint, route=route)
    stream.tools = tools
    seen.taken = True
    if stream.earlier_answer:
        await gateway.recall(stream.earlier_answer)
    try:
        order = gateway.admit(stream)
    except ApiError as error:
        gateway.refuse(stream, error)
        raise
    return _Answer(gateway, stream, order)


def _add_inference(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings

    async def infer(request: Request) -> Response:
        return await _infer(gateway, request)

    for endpoint in ENDPOINTS:
        app.add_api_route(
            endpoint.path, infer, methods=["POST"], summary=endpoint.summary, openapi_extra=OPERATIONS[endpoint.path],
            operation_id=endpoint.path.strip("/").replace("/", "_"),
        )  # fmt: skip

    @app.get("/v1/responses/{response_id}", summary="A response that its engine keeps")
    async def response(response_id: str, request: Request) -> Response:
        return await _stored(gateway, response_id, request)

    @app.post("/v1/responses/{response_id}/cancel", summary="Cancel a response in the background")
    async def cancel(response_id: str, request: Request) -> Response:
        return await _stored(gateway, response_id, request)

    @app.post(
        "/v1/streams/{stream_id}/reader", status_code=204, summary="What the reader of an open stream has been shown",
        openapi_extra=READER_REPORT, response_class=Response,
    )  # fmt: skip
    async def reader(stream_id: str, request: Request) -> Response:
        tenant_of(request.headers, gateway.settings)
        report = ReaderReport.of(await read_json(request, gateway.settings))
        await gateway.readers.report(stream_id, request.headers, report)
        return Response(status_code=204)

    @app.get("/v1/models", summary="Models that can be asked for")
    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": _models(gateway, tenant_of(request.headers, settings))})

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str, request: Request) -> Response:
        cards = {card["id"]: card for card in _models(gateway, tenant_of(request.headers, settings))}
        if name not in cards:
            raise no_model(name, list(cards))
        return json_response(cards[name])


def _check_endpoint(
    endpoint: Endpoint, body: Mapping[str, Any], expectation: ResolvedExpectation, tenant: TenantSettings | None
) -> None:
    """Refuse what has no place there, and an id of a response that may be another tenant's."""
    if endpoint is RESPONSES and tenant is not None and body.get("request_id") is not None:
        raise ApiError(
            400, "request_id: where there are tenants, engines name their responses themselves", param="request_id",
            reason="field", retry=False,
        )  # fmt: skip
    if expectation.report and not endpoint.reports:
        raise ApiError(
            400, f"x-andes-report: {endpoint.path} has no place for it", param="x-andes-report", reason="expectation",
            retry=False,
        )  # fmt: skip


async def _stored(gateway: Gateway, response_id: str, request: Request) -> Response:
    """The answer of the engine that keeps this response: the one that gave it, else, without tenants, any that knows it."""
    tenant, upstreams = tenant_of(request.headers, gateway.settings), gateway.upstreams
    await gateway.recall(response_id)
    home = gateway.stored.home(response_id, tenant.name if tenant else None)
    asked = [r for r in upstreams.replicas.values() if home in (r.name, None)]
    said = await ask_for(upstreams, asked, response_id, cancel=request.method == "POST")
    if said is None:
        raise ApiError(404, f"no response {response_id[:100]!r}", code="not_found", reason="response", retry=False)
    status, content = said
    if status == 200:
        return Response(content, media_type="application/json")
    return JSONResponse(as_openai_error(status, content), status)


def _models(gateway: Gateway, tenant: TenantSettings | None) -> list[Mapping[str, Any]]:
    """The models that this tenant may use, with their adapters and aliases. Raises a 503 while none is known."""
    cards = gateway.upstreams.catalog.cards()
    if not cards:
        raise ApiError(503, "no engine answers", "service_unavailable_error", reason="no_replica", retry_after_s=5.0)
    if tenant is None or not tenant.models:
        return cards
    return [card for card in cards if gateway.placement.may_ask(card["id"], tenant)]


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/livez", summary="Whether this process works")
    async def livez() -> Response:
        return json_response({"status": "ok"})

    @app.get("/readyz", summary="Whether requests should be sent here")
    async def readyz() -> Response:
        """Also without any engine: what comes is held until there is one, which its waiting may bring about."""
        if gateway.draining:
            raise ApiError(503, "draining", "service_unavailable_error", reason="draining", retry_after_s=1.0)
        failing = gateway.background.failing()
        if not gateway.is_swept():
            why = failing.get("sweep", "it hangs")
            message = f"streams are no longer watched: {why}"
            raise ApiError(503, message, "service_unavailable_error", reason="background", retry_after_s=1.0)
        engines = sum(bool(r.healthy) and not r.draining for r in gateway.upstreams.replicas.values())
        status = "degraded" if failing else "ok" if engines else "no engine"
        return json_response({"status": status, "engines": engines, "held": gateway.held, "failing": failing})

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics(request: Request) -> Response:
        """In Prometheus' text format, or OpenMetrics where the scraper accepts it."""
        levels = Levels.merged(await gateway.siblings.all("levels"))
        content, kind = gateway.metrics.exposition(request.headers.get("accept", ""), levels)
        return Response(content, headers={"content-type": kind})
