"""What an address in the settings may be."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_address
from urllib.parse import urlsplit

from andes_sglang.telemetry import GRPC

__all__ = ["origin", "otlp_fault", "server"]


def origin(address: str) -> str:
    """An origin of pages, or ``*``. Raises ``ValueError``."""
    parts = urlsplit(address)
    exact = parts.scheme in ("http", "https") and parts.hostname and address == f"{parts.scheme}://{parts.netloc}"
    if address != "*" and not exact:
        raise ValueError(f"expected * or scheme://host[:port] without a path, got {address!r}")
    return address


def server(address: str) -> str:
    """A server of names. Raises ``ValueError``."""
    try:
        parts = urlsplit(f"dns://{address}")
        usable = parts.port != 0 and ip_address(parts.hostname or "")
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected IP or IP:PORT, got {address!r}")
    return address


def otlp_fault(endpoint: str) -> str:
    """What is wrong with an endpoint of OTLP; empty where nothing is."""
    if not urlsplit(endpoint).hostname or not endpoint.startswith(("http://", "https://", *GRPC)):
        return f"expected http://HOST:PORT or grpc://HOST:PORT, got {endpoint!r}"
    if endpoint.startswith(GRPC) and find_spec("grpc") is None:
        return (
            f"{endpoint!r} needs the package opentelemetry-exporter-otlp-proto-grpc: install it or use http://HOST:4318"
        )
    return ""
