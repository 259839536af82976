"""``/v1/files`` and ``/v1/batches``, as OpenAI's clients call them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, Response

from andes_api.batches.files import no_file
from andes_api.batches.lines import ENDPOINTS, deadline_s
from andes_api.batches.service import Batches
from andes_api.batches.store import shown
from andes_api.batches.upload import Upload, receive_upload
from andes_api.errors import ApiError
from andes_api.expectations import tenant_of
from andes_api.request_body import read_json
from andes_api.schema import required_body
from andes_api.settings import GatewaySettings, TenantSettings

__all__ = ["add_batches"]

MIN_KEPT_S, MAX_KEPT_S = 3600, 2_592_000
"""Seconds that a file may be kept for: OpenAI's bounds."""
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""Of ``metadata``: OpenAI's bounds."""
_FORM = required_body(
    {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
    "multipart/form-data",
    required=["file", "purpose"],
)
_BATCH = required_body(
    {
        "input_file_id": {"type": "string"},
        "endpoint": {"enum": [*ENDPOINTS]},
        "completion_window": {"type": "string"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    required=["input_file_id", "endpoint", "completion_window"],
)
After = Annotated[str | None, Query(max_length=100)]


def add_batches(app: FastAPI, settings: GatewaySettings, batches: Batches | None) -> None:
    """The endpoints; without ``batches`` they say how to turn them on."""

    def caller(request: Request) -> tuple[Batches, TenantSettings | None]:
        tenant = tenant_of(request.headers, settings)
        if batches is None:
            raise ApiError(
                404, "this gateway has no batch API: batches.directory, which all gateways share, turns it on",
                code="batches_off", reason="batches", retry=False,
            )  # fmt: skip
        return batches, tenant

    _add_files(app, settings, caller)
    _add_batches(app, settings, caller)


Caller = Callable[[Request], tuple[Batches, TenantSettings | None]]


def _add_files(app: FastAPI, settings: GatewaySettings, caller: Caller) -> None:
    @app.post("/v1/files", summary="Upload the requests of a batch", openapi_extra=_FORM)
    async def upload(request: Request) -> Response:
        batches, tenant = caller(request)
        came = await receive_upload(request, batches.files.incoming, settings)
        try:
            return _json(shown(await asyncio.to_thread(_keep, batches, tenant, came)))
        finally:
            await asyncio.to_thread(came.discard)

    @app.get("/v1/files", summary="Files")
    async def files(
        request: Request,
        purpose: After = None,
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        batches, tenant = caller(request)
        found = await asyncio.to_thread(batches.files.of, _name(tenant))
        found = [said for said in found if purpose in (None, said["purpose"])]
        return _page(found if order == "asc" else found[::-1], after, limit)

    @app.get("/v1/files/{file_id}", summary="One file")
    async def file(file_id: str, request: Request) -> Response:
        batches, tenant = caller(request)
        return _json(shown(await asyncio.to_thread(batches.files.get, file_id, _name(tenant))))

    @app.get("/v1/files/{file_id}/content", summary="What is in a file")
    async def content(file_id: str, request: Request) -> Response:
        batches, tenant = caller(request)
        said = await asyncio.to_thread(batches.files.get, file_id, _name(tenant))
        path = batches.files.path(file_id)
        if not path.exists():
            raise no_file(file_id)
        return FileResponse(path, media_type="application/jsonl", filename=said["filename"])

    @app.delete("/v1/files/{file_id}", summary="Delete a file")
    async def delete(file_id: str, request: Request) -> Response:
        batches, tenant = caller(request)
        await asyncio.to_thread(batches.delete_file, file_id, _name(tenant))
        return _json({"id": file_id, "object": "file", "deleted": True})


def _add_batches(app: FastAPI, settings: GatewaySettings, caller: Caller) -> None:
    @app.post("/v1/batches", summary="Run the requests of a file", openapi_extra=_BATCH)
    async def create(request: Request) -> Response:
        batches, tenant = caller(request)
        body = await read_json(request, settings)
        return _json(shown(await asyncio.to_thread(batches.create, tenant, **_asked(body))))

    @app.get("/v1/batches", summary="Batches")
    async def listed(
        request: Request, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Response:
        batches, tenant = caller(request)
        return _page(await asyncio.to_thread(batches.store.of, _name(tenant)), after, limit)

    @app.get("/v1/batches/{batch_id}", summary="One batch")
    async def retrieve(batch_id: str, request: Request) -> Response:
        batches, tenant = caller(request)
        return _json(shown(await asyncio.to_thread(batches.get, batch_id, _name(tenant))))

    @app.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch")
    async def cancel(batch_id: str, request: Request) -> Response:
        batches, tenant = caller(request)
        batch = await asyncio.to_thread(batches.cancel, batch_id, _name(tenant))
        return _json(shown(batch))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _name(tenant: TenantSettings | None) -> str | None:
    return tenant.name if tenant is not None else None


def _page(found: Sequence[Mapping[str, Any]], after: str | None, limit: int) -> Response:
    """Those after the one with the id ``after``, ``limit`` at most."""
    if after is not None:
        ids = [said["id"] for said in found]
        if after not in ids:
            raise ApiError(400, f"after: nothing has the id {after!r}", param="after", reason="page", retry=False)
        found = found[ids.index(after) + 1 :]
    data = [shown(said) for said in found[:limit]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return _json({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(found) > limit})


def _keep(batches: Batches, tenant: TenantSettings | None, came: Upload) -> dict[str, Any]:
    purpose = came.fields.get("purpose")
    if purpose != "batch":
        raise _wrong("purpose", purpose, "batch: other files are of no use here")
    if came.path is None:
        raise _wrong("file", None, "a file of lines, each a request in JSON")
    seconds = _kept_s(came.fields.get("expires_after[anchor]"), came.fields.get("expires_after[seconds]"))
    return batches.add_file(tenant, came.path, came.name, seconds)


def _kept_s(anchor: Any, seconds: Any, field: str = "expires_after") -> float | None:
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise _wrong(f"{field}.anchor", anchor, "created_at")
    text = str(seconds)
    if not (text.isascii() and text.isdigit() and len(text) < 9 and MIN_KEPT_S <= int(text) <= MAX_KEPT_S):
        raise _wrong(f"{field}.seconds", seconds, f"a whole number from {MIN_KEPT_S} to {MAX_KEPT_S}")
    return float(text)


def _asked(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch is to be. Raises a 400."""
    file_id, endpoint = body.get("input_file_id"), body.get("endpoint")
    if not isinstance(file_id, str):
        raise _wrong("input_file_id", file_id, "the id of a file of purpose batch")
    if endpoint not in ENDPOINTS:
        raise _wrong("endpoint", endpoint, f"one of: {', '.join(ENDPOINTS)}")
    window = body.get("completion_window")
    expires_at_s = deadline_s(window, time.time())
    kept = body.get("output_expires_after")
    if kept is not None and not isinstance(kept, dict):
        raise _wrong("output_expires_after", kept, "an object with anchor and seconds")
    kept = kept or {}
    return {
        "input_file_id": file_id,
        "endpoint": endpoint,
        "completion_window": window,
        "expires_at": int(expires_at_s),
        "metadata": _metadata(body.get("metadata")),
        "output_kept_s": _kept_s(kept.get("anchor"), kept.get("seconds"), "output_expires_after"),
    }


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    pairs = given.items() if isinstance(given, dict) else [(None, None)]
    sound = all(isinstance(v, str) and len(k or "") <= MAX_KEY and len(v) <= MAX_VALUE for k, v in pairs)
    if not sound or len(pairs) > MAX_PAIRS:
        expected = f"at most {MAX_PAIRS} texts of at most {MAX_VALUE} characters, by names of at most {MAX_KEY}"
        raise _wrong("metadata", given, expected)
    return dict(given)


def _wrong(name: str, value: object, expected: str) -> ApiError:
    shown_value = "nothing" if value is None else repr(str(value)[:100])
    message = f"{name}: expected {expected}; got {shown_value}"
    return ApiError(400, message, param=name, reason="batch", retry=False)
