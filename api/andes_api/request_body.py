"""A request's body: read within its limits of size and time, decompressed, parsed; every fault is an error that names it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from andes_api.endpoints import RESPONSES, Endpoint
from andes_api.errors import ApiError
from andes_api.media import check_media
from andes_api.schema import MAX_CHOICES
from andes_api.settings import GatewaySettings

__all__ = ["FormFile", "check_body", "check_fields", "parse_json", "read_form", "read_json"]

MAX_DEPTH = 128
"""Objects and arrays inside each other; JSON schemas of tools in use have less than 20, orjson writes 254."""
MAX_MEMBERS = 16
"""Streams behind each other in one compressed body; clients write one, and every further one costs a copy of the rest."""
_ENCODINGS = {"identity": 0, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""Of a body, with zlib's window bits."""
_CHARSETS = ("", "utf-8", "utf8", "us-ascii")


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file in a form. kind: its media type."""

    name: str
    kind: str
    content: bytes

    @classmethod
    def of(cls, upload: UploadFile) -> FormFile:
        return cls(upload.filename or "file", upload.content_type or "application/octet-stream", upload.file.read())


async def read_json(request: Request, settings: GatewaySettings) -> dict[str, Any]:
    """The JSON object that a request carries. Raises 400, 408, 413, 415, or 499 where its client has left."""
    kind, _, parameters = request.headers.get("content-type", "application/json").partition(";")
    if kind.strip().lower() != "application/json" or _charset(parameters) not in _CHARSETS:
        said = f"{kind};{parameters}" if parameters else kind
        raise _unsupported(f"content-type: expected application/json in UTF-8; got {said[:100]!r}")
    return parse_json(await _read(request, settings))


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises a 400 that says what is wrong."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is no JSON: {error}", retry=False) from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(body).__name__}", retry=False)
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH and _is_deep(body):
        raise ApiError(400, f"the body nests more than {MAX_DEPTH} objects and arrays", reason="depth", retry=False)
    check_body(body)
    return body


def check_fields(body: Mapping[str, Any], endpoint: Endpoint, settings: GatewaySettings) -> None:
    """Refuse what a request may not have here. Raises a 400."""
    refused = settings.refused_fields & body.keys()
    if refused:
        name = min(refused)
        raise ApiError(400, f"{name}: this field is not accepted here", param=name, reason="field", retry=False)
    check_media(body, settings.media_hosts, endpoint.prompt)
    if (
        endpoint is RESPONSES
        and body.get("input") == []
        and not (body.keys() & {"instructions", "previous_response_id"})
    ):
        raise _wrong("input", [], "text, or a list that is not empty")


async def read_form(request: Request, settings: GatewaySettings) -> dict[str, Any]:
    """The fields of a form with files: texts, :class:`FormFile`, a list where a name comes again; ``stream`` as true or
    false. Raises 400, 408, 413, 415, or 499 where its client has left."""
    kind = request.headers.get("content-type", "")
    media_type, parameters = parse_options_header(kind)
    charset = parameters.get(b"charset", b"").decode("latin-1").lower()
    if media_type != b"multipart/form-data" or charset not in _CHARSETS:
        raise _unsupported(f"content-type: expected multipart/form-data in UTF-8; got {kind[:100]!r}")
    content = await _read(request, settings)

    async def once() -> AsyncGenerator[bytes, None]:
        yield content

    try:
        form = await MultiPartParser(request.headers, once(), max_part_size=settings.max_body_bytes).parse()
    except (MultiPartException, ValueError, LookupError) as error:
        raise ApiError(400, f"the body is no form: {error}", retry=False) from None
    body: dict[str, Any] = {}
    for name, value in form.multi_items():
        part = value if isinstance(value, str) else FormFile.of(value)
        said = name if isinstance(part, str) else name + part.name + part.kind
        if not said.isprintable():
            raise ApiError(400, f"{name[:100]!r}: a form's names and media types are plain text", retry=False)
        body[name] = [*_as_list(body[name]), part] if name in body else part
    body["stream"] = _truth(body.get("stream", "false"))
    return body


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _truth(text: Any) -> bool:
    if text in ("true", "True", "1"):
        return True
    if text in ("false", "False", "0"):
        return False
    raise _wrong("stream", text, "true or false")


async def _read(request: Request, settings: GatewaySettings) -> bytes:
    """The body without its ``content-encoding``; one that we do not know is refused before any of it is asked for."""
    encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in _ENCODINGS:
        raise _unsupported(f"content-encoding: expected one of {', '.join(_ENCODINGS)}; got {encoding[:100]!r}")
    content = await _receive(request, settings)
    return content if encoding == "identity" else _decompressed(content, encoding, settings.max_body_bytes)


async def _receive(request: Request, settings: GatewaySettings) -> bytes:
    """The body as it came. One that announces more than ``max_body_bytes`` is refused before any of it is asked for."""
    content, most = bytearray(), settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise _too_long(most)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise _too_long(most)
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", reason="body") from None
    except ClientDisconnect:
        raise ApiError(499, "the client left before its body had come", reason="client_left") from None
    return bytes(content)


def _decompressed(content: bytes, encoding: str, most: int) -> bytes:
    """``content`` without its ``encoding``; no more than ``most`` bytes are ever made of it."""
    whole = b""
    try:
        for _ in range(MAX_MEMBERS):
            member = zlib.decompressobj(_ENCODINGS[encoding])
            whole += member.decompress(content, most + 1 - len(whole))
            if len(whole) > most:
                raise _too_long(most)
            if not member.eof:
                raise zlib.error("it ends early")
            content = member.unused_data
            if not content:
                return whole
        raise zlib.error(f"it has more than {MAX_MEMBERS} members")
    except zlib.error as error:
        raise ApiError(400, f"the body is no {encoding}: {error}", reason="encoding", retry=False) from None


def _is_deep(body: dict[str, Any]) -> bool:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inside = [part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer)]
        level = [part for part in inside if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def check_body(body: Mapping[str, Any]) -> None:
    """What the gateway itself relies on; all else is the engine's to judge."""
    if body.get("stream") is not None and not isinstance(body["stream"], bool):
        raise _wrong("stream", body["stream"], "true or false")
    n = body.get("n")
    if n is not None and not (isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MAX_CHOICES):
        raise _wrong("n", n, f"a whole number from 1 to {MAX_CHOICES}")
    if body.get("stream_options") is not None and not isinstance(body["stream_options"], dict):
        raise _wrong("stream_options", body["stream_options"], "an object")


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""


def _wrong(name: str, value: object, expected: str) -> ApiError:
    return ApiError(400, f"{name}: expected {expected}; got {str(value)[:100]!r}", param=name, retry=False)


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most} bytes", reason="body", retry=False)


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, reason="media_type", retry=False)
