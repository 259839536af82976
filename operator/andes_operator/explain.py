"""Errors in words for conditions and events: without names of Python's, without URLs, and never empty."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

import aiohttp

__all__ = ["SpecError", "explain", "required", "shown"]

URL = re.compile(r"https?://[^\s'\"),;]+")


_WORDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (TimeoutError, "no answer in time"),  # aiohttp's too
    ((aiohttp.ClientConnectorDNSError, socket.gaierror), "its name is not known"),
    ((aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError), "its certificate is not trusted"),
    (aiohttp.ServerDisconnectedError, "it closed the connection"),
    (aiohttp.ClientPayloadError, "its answer ended early"),
    ((aiohttp.ContentTypeError, json.JSONDecodeError), "its answer is not JSON"),
    (aiohttp.InvalidURL, "its address cannot be used"),
    ((TypeError, AttributeError, IndexError, OverflowError), "it has another form than expected"),
)
"""The first that fits."""


class SpecError(ValueError):
    """A field of the custom resource that cannot be used: field, value, what to do."""


def explain(error: BaseException) -> str:
    """Why a request failed or an answer cannot be read."""
    words = next((words for kinds, words in _WORDS if isinstance(error, kinds)), None)
    if words is not None:
        return words
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status}"
    if isinstance(error, KeyError):
        return f"{error.args[0] if error.args else 'a field'} is missing"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return URL.sub("its address", str(error)) or "it failed without saying why"


def shown(value: Any) -> str:
    """A value of the resource as it is written there."""
    return json.dumps(value, default=str)


def required(of: Mapping[str, Any], key: str, where: str = "spec") -> Any:
    """The field ``key`` of the resource's part ``of``. Raises :class:`SpecError` naming it."""
    if key not in of:
        raise SpecError(f"{where}.{key} is missing")
    return of[key]
