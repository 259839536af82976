"""The request that an engine gets: the client's own, with what its reader expects and what the gateway wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from andes_api.request_body import FormFile
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_sglang.expectations import KEY, ReaderExpectation, to_custom_params

__all__ = ["engine_request", "remaining_expectation"]


def engine_request(
    stream: Stream, body: dict[str, Any], settings: GatewaySettings, now_s: float
) -> bytes | aiohttp.FormData:
    """What the engine gets at ``now_s`` (clock seconds), as JSON or as a form. body: the client's request, or the rest of
    it."""
    if stream.endpoint.form:
        return _form(body)
    if stream.endpoint.reader is None:
        return orjson.dumps(body)
    more: dict[str, Any] = {}
    given = body.get("custom_params")
    others = {name: value for name, value in given.items() if name != KEY} if isinstance(given, dict) else {}
    if settings.forward_expectations:
        more["custom_params"] = others | to_custom_params(remaining_expectation(stream, now_s))
    elif isinstance(given, dict) and KEY in given:  # not what the caller says either: it is not clamped
        more["custom_params"] = others or None
    if stream.streams and stream.endpoint.chunks and settings.count_tokens == "usage":
        more["stream_options"] = {**stream.asked, "include_usage": True, "continuous_usage_stats": True}
    return orjson.dumps({**body, **more})


def _form(body: Mapping[str, Any]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, given in body.items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, FormFile):
                form.add_field(name, value.content, filename=value.name, content_type=value.kind)
            else:
                form.add_field(name, str(value).lower() if isinstance(value, bool) else str(value))
    return form


def remaining_expectation(stream: Stream, now_s: float) -> ReaderExpectation:
    """What the reader still expects: less the time and the tokens that it has had."""
    reader = stream.expectation.reader
    left_s = round(max(0.0, reader.target.ttft_s - (now_s - stream.arrival_s)), 2)
    tokens = reader.expected_tokens
    left_tokens = None if tokens is None else max(1, tokens - stream.tokens)
    returns_s = stream.returns_s if stream.tools else reader.returns_s
    target = replace(reader.target, ttft_s=left_s)
    return replace(reader, target=target, expected_tokens=left_tokens, returns_s=returns_s)
