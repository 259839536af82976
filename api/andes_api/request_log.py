"""Every request has an id, which every answer says, and a record: also one that is refused before it is understood."""

from __future__ import annotations

import logging
import re
import uuid

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from andes_api.cors import cors_headers
from andes_api.errors import own_fault
from andes_api.gateway import Gateway
from andes_api.unread import UnreadRequest

__all__ = ["RequestLog", "request_of"]

_KEY = "andes.request"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_log = logging.getLogger("andes")


def request_of(scope: Scope) -> UnreadRequest:
    """What is on record of the request that ``scope`` (ASGI's) is about."""
    request: UnreadRequest = scope[_KEY]
    return request


class RequestLog:
    """Middleware around everything else."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope[_KEY] = request = UnreadRequest(request_id, scope["method"], scope["path"], headers)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                _note(request, message)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if request.status:  # too late for another answer
                raise
            _log.exception("request %s failed", request_id)
            fault = own_fault(request_id)
            said = {**fault.headers, **cors_headers(headers.get("origin"), self._gateway.settings.cors_origins)}
            answer = Response(orjson.dumps(fault.body), 500, said, "application/json")
            await answer(scope, receive, send_with_id)
        finally:
            if not request.taken:
                self._gateway.note_unread(request)


def _note(request: UnreadRequest, message: Message) -> None:
    """Read status and reason off the head of an answer, and have it say the request's id."""
    request.status = message["status"]
    headers = message["headers"] = list(message.get("headers", ()))
    said = {name.lower(): value for name, value in headers}
    request.reason = said[b"x-andes-reason"].decode("latin-1") if b"x-andes-reason" in said else None
    if b"x-request-id" not in said:
        headers.append((b"x-request-id", request.request_id.encode()))
