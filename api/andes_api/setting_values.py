"""What values of the gateway's settings have to be like, where a type alone does not say it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from andes_sglang.routing import current_name, find_routing_policy
from andes_sglang.telemetry import GRPC

__all__ = ["option_values", "origin", "otlp_fault", "routing_policy", "server"]


def origin(origin: str) -> str:
    parts = urlsplit(origin)
    exact = parts.scheme in ("http", "https") and parts.hostname and origin == f"{parts.scheme}://{parts.netloc}"
    if origin != "*" and not exact:
        raise ValueError(f"expected * or scheme://host[:port] without a path, got {origin!r}")
    return origin


def server(address: str) -> str:
    try:
        parts = urlsplit(f"dns://{address}")
        usable = parts.port != 0 and ip_address(parts.hostname or "")
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected IP or IP:PORT, got {address!r}")
    return address


def otlp_fault(endpoint: str) -> str:
    if not urlsplit(endpoint).hostname or not endpoint.startswith(("http://", "https://", *GRPC)):
        return f"expected http://HOST:PORT or grpc://HOST:PORT, got {endpoint!r}"
    if endpoint.startswith(GRPC) and find_spec("grpc") is None:
        return (
            f"{endpoint!r} needs the package opentelemetry-exporter-otlp-proto-grpc: install it or use http://HOST:4318"
        )
    return ""


def option_values(options: Any) -> Any:
    """In the environment every option is text: as JSON where it is JSON."""
    if not isinstance(options, dict):
        return options
    return {name: _json(value) if isinstance(value, str) else value for name, value in options.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def routing_policy(name: str) -> str:
    name = current_name(name)
    find_routing_policy(name)
    return name
