"""The request that an engine gets: the client's own, with what its reader expects and what the gateway wants to know."""

from __future__ import annotations

from typing import Any

import orjson

from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_sglang.expectations import KEY, ReaderExpectation, to_custom_params
from andes_sglang.qoe import QoETarget

__all__ = ["engine_request", "remaining_expectation"]


def engine_request(stream: Stream, body: dict[str, Any], settings: GatewaySettings, now_s: float) -> bytes:
    """JSON for the engine at ``now_s`` (clock seconds). body: the client's request, or the rest of it."""
    more: dict[str, Any] = {}
    given = body.get("custom_params")
    others = {name: value for name, value in given.items() if name != KEY} if isinstance(given, dict) else {}
    if settings.forward_expectations:
        more["custom_params"] = others | to_custom_params(remaining_expectation(stream, now_s))
    elif isinstance(given, dict) and KEY in given:  # not what the caller says either: it is not clamped
        more["custom_params"] = others or None
    if stream.streams and settings.count_tokens == "usage":
        more["stream_options"] = {**stream.asked, "include_usage": True, "continuous_usage_stats": True}
    return orjson.dumps({**body, **more})


def remaining_expectation(stream: Stream, now_s: float) -> ReaderExpectation:
    """What the reader still expects: less the time and the tokens that it has had."""
    reader = stream.expectation.reader
    left_s = round(max(0.0, reader.target.ttft_s - (now_s - stream.arrival_s)), 2)
    tokens = reader.expected_tokens
    left_tokens = None if tokens is None else max(1, tokens - stream.tokens)
    return ReaderExpectation(QoETarget(left_s, reader.target.tds), reader.weight, reader.yields, left_tokens)
