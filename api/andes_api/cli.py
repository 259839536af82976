"""``andes gateway``: its flags are the settings, each by its own name."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_api.reference import references
from andes_api.settings import GatewaySettingsError, load
from andes_sglang.flags import UsageError

__all__ = ["DESCRIPTION", "USER_ERRORS", "add_arguments", "run"]

DESCRIPTION = (
    "Serve OpenAI's API over engines, by the QoE of the readers. Flags come before ANDES_GATEWAY_NAME in the environment, "
    "that before --config. docs/gateway.md has all settings."
)
USER_ERRORS = (GatewaySettingsError, UsageError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting but secrets, which belong into the environment or a file."""
    parser.add_argument("--config", metavar="FILE", help="settings in YAML")
    parser.add_argument("--upstream", action="append", metavar="URL", help="one of `upstreams`; repeatable")
    for setting in references():
        if setting.secret:
            continue
        notes = [setting.description, setting.values, f"default: {setting.default}" if setting.default else ""]
        parser.add_argument(
            setting.flag,
            dest=setting.name,
            metavar="JSON" if setting.as_json else "VALUE",
            help="; ".join(note for note in notes if note).replace("%", "%%"),
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Serve with what the command line, the environment and ``--config`` say. Raises :class:`GatewaySettingsError` or
    :class:`UsageError`."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}")
    settings = load(Path(args.config) if args.config else None, **_given(args))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise GatewaySettingsError(f"host {settings.host}, port {settings.port}: {error.strerror}") from None
    from andes_api.uvicorn_internals import check_uvicorn  # not for --help

    check_uvicorn()
    if settings.workers > 1:
        from andes_api.workers import supervise

        return supervise(settings)
    from andes_api.server import serve

    return serve(settings)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings on the command line, for :func:`load` to check."""
    given: dict[str, Any] = {}
    for setting in references():
        text = getattr(args, setting.name, None)
        if not text:  # not given, or from a variable of a script that is not set
            continue
        try:
            given[setting.name] = json.loads(text) if setting.as_json else text
        except json.JSONDecodeError as error:
            raise UsageError(f"{setting.flag}: expected JSON, got {text!r} ({error})") from None
    if args.upstream:
        listed = given.get("upstreams", [])
        given["upstreams"] = [*(listed if isinstance(listed, list) else [listed]), *args.upstream]
    return given
