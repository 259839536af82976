"""``andes gateway``."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path
from typing import Any

from andes_api.server import serve
from andes_api.settings import SettingsError, load

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Serve with what the command line, the environment and ``--config`` say. Raises :class:`SettingsError`."""
    given: dict[str, Any] = {
        name: getattr(args, name) for name in ("host", "port", "policy", "otlp_endpoint", "name") if getattr(args, name)
    }
    if args.upstream:
        given["upstreams"] = args.upstream
    settings = load(Path(args.config) if args.config else None, **given)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(f"host {settings.host}, port {settings.port}: {error.strerror}") from None
    return serve(settings)
