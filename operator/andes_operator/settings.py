"""The operator's settings, written once: flags, environment and defaults all come from :class:`OperatorSettings`.

A flag is a field's name with dashes (``_s`` spelled ``-seconds``), its variable ``ANDES_OPERATOR_`` and the name in capitals.
Flags go before the environment.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from andes_operator import names
from andes_sglang.setting_faults import sentences

__all__ = ["OperatorSettings", "OperatorSettingsError", "add_arguments", "load"]

log = logging.getLogger(__name__)

PREFIX = "ANDES_OPERATOR_"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
MIN_LEASE_S = 10.0
"""Seconds; ``kubernetes.aio.leaderelection`` retries once a second at most, and the lease ten times in its duration."""
MAX_WHAT_IF_S = 200.0
"""Seconds; with 60 s of waiting for others still below the 300 s after which a reconcile counts as hanging."""
FLAGLESS = ("identity", "admin_key")
"""Not for a command line: from the pod's fields and a Secret."""
OLD_FLAGS = {"--sweep-seconds": "--resync-seconds"}
"""Former flags, accepted with a warning until the next release."""

SERVICE_LINK = re.compile(rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
"""Variables that Kubernetes sets in a pod for a Service called ``andes-operator``; so is ``.._PORT=tcp://HOST:PORT``."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OperatorSettingsError(ValueError):
    """What is wrong with the settings, one line per fault: field, fault, value."""


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default"


class OperatorSettings(BaseSettings):
    """Everything that the operator can be told; see docs/operator.md."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, populate_by_name=True
    )

    namespace: tuple[str, ...] = Field((), description="namespaces to serve; repeatable; default: all")
    host: str = Field("0.0.0.0", description="where /livez, /readyz and /metrics listen")  # noqa: S104
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="of /livez, /readyz and /metrics")
    lease: str = Field(names.OPERATOR, description="name of the Lease that is held while it works")
    lease_namespace: str = Field(
        default_factory=_own_namespace,
        description="of the Lease; default: the pod's",
        validation_alias=AliasChoices(f"{PREFIX}LEASE_NAMESPACE", "POD_NAMESPACE"),
    )
    lease_s: Annotated[float, Field(ge=MIN_LEASE_S, le=3600)] = Field(
        15.0,
        description="seconds after which another operator takes a lease that is not renewed; the same for all of them",
    )
    resync_s: Seconds = Field(60.0, description="seconds between two full lists")
    watch_s: Annotated[int, Field(gt=0)] = Field(
        60, description="seconds after which a watch is opened again; a silent one after a quarter more"
    )
    what_if_s: Annotated[float, Field(gt=0, le=MAX_WHAT_IF_S)] = Field(
        30.0, description="seconds for one what-if, after which it is ended: more on slow CPUs"
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL that traces go to (OTLP over HTTP); default: nowhere",
        validation_alias=AliasChoices(f"{PREFIX}OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    identity: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="of this operator, in lease and events",
        validation_alias=AliasChoices(f"{PREFIX}IDENTITY", "POD_NAME"),
    )
    admin_key: SecretStr | None = Field(
        None,
        description="the gateways' administrator key, for draining engines there",
        validation_alias=AliasChoices(f"{PREFIX}ADMIN_KEY", "ANDES_ADMIN_KEY"),
    )


def _flag(name: str) -> str:
    return "--" + (f"{name.removesuffix('_s')}_seconds" if name.endswith("_s") else name).replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field; what is not given is not in the namespace."""
    for name, field in OperatorSettings.model_fields.items():
        if name in FLAGLESS:
            continue
        shown = "" if field.default_factory or field.default in (None, ()) else f"; default: {field.default}"
        action = "append" if name == "namespace" else "store"
        parser.add_argument(
            _flag(name), dest=name, action=action, default=argparse.SUPPRESS, help=f"{field.description}{shown}",
            metavar="NS" if "namespace" in name else name.rpartition("_")[2].upper() if not name.endswith("_s") else "S",
        )  # fmt: skip
    for old, new in OLD_FLAGS.items():
        name = new.removeprefix("--").replace("-seconds", "_s").replace("-", "_")
        parser.add_argument(old, dest=f"old {name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def load(args: argparse.Namespace) -> OperatorSettings:
    """From the arguments of :func:`add_arguments` and the environment. Raises :class:`OperatorSettingsError` naming every
    fault."""
    given: dict[str, Any] = {}
    for name, value in vars(args).items():
        if name.startswith("old "):
            new = name.removeprefix("old ")
            log.warning("a former flag is used, which will be removed: use %s", _flag(new))
            given.setdefault(new, value)
        elif name in OperatorSettings.model_fields:
            given[name] = value
    for variable in [name for name, value in os.environ.items() if _is_service_link(name, value)]:
        del os.environ[variable]
    unknown = [
        variable for variable in os.environ
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX).lower() not in OperatorSettings.model_fields
    ]  # fmt: skip
    faults = [f"{variable}: no such setting" for variable in sorted(unknown)]
    try:
        settings = OperatorSettings(**given)
    except ValidationError as error:
        faults += sentences(error, _name)
    except ValueError:  # of the only field whose variable is JSON
        variable = f"{PREFIX}NAMESPACE"
        faults.append(f'{variable}: expected a JSON list such as ["chat"], got {os.environ.get(variable)!r}')
    if faults:
        raise OperatorSettingsError("\n".join(faults))
    return settings


def _is_service_link(name: str, value: str) -> bool:
    return bool(SERVICE_LINK.fullmatch(name) or (name.startswith(PREFIX) and name.endswith("PORT") and "://" in value))


def _name(place: tuple[int | str, ...]) -> str:
    """Of the setting at ``place`` of the fields, as it is given."""
    field = str(place[0])
    return _flag(field) if field in OperatorSettings.model_fields and field not in FLAGLESS else field
