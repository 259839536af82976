"""Settings: from the environment (``ANDES_GATEWAY_*``), a YAML file, or arguments; every fault is named at once."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings import PydanticBaseSettingsSource as Source

from andes_sglang.qoe import QoETarget
from andes_sglang.routing import current_name, make_routing_policy

__all__ = ["ClassSettings", "Settings", "SettingsError", "TenantSettings", "load", "with_classes"]

PREFIX = "ANDES_GATEWAY_"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
ClassName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]


class SettingsError(ValueError):
    """What is wrong with the settings, one line per fault: field, fault, value."""


def _upstream(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{error} in {url!r}") from None
    if parts.scheme == "dns":
        if not parts.hostname or port is None:
            raise ValueError(f"expected dns://NAME:PORT, got {url!r}")
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected http://HOST:PORT, https://HOST or dns://NAME:PORT, got {url!r}")
    if parts.query or parts.fragment or parts.username:
        raise ValueError(f"an upstream is only an address, got {url!r}")
    return url.rstrip("/").removesuffix("/v1")


def _server(address: str) -> str:
    try:
        parts = urlsplit(f"dns://{address}")
        usable = parts.port != 0 and ip_address(parts.hostname or "")
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected IP or IP:PORT, got {address!r}")
    return address


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSettings(Strict):
    """A class of readers: what they expect, the bounds of what a request may ask, and what they are worth.

    ttft_s, tds: expected seconds to the first token and tokens/s. weight: value of their QoE relative to others.
    shed_below: a new stream whose predicted QoE is below this is refused rather than served badly. pace: release tokens
    at the reader's speed.
    """

    ttft_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    tds: Seconds = 4.8
    min_ttft_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    max_ttft_s: Seconds = 600.0
    min_tds: Seconds = 0.5
    max_tds: Seconds = 200.0
    weight: Seconds = 1.0
    shed_below: Annotated[float, Field(ge=0, le=1)] = 0.25
    pace: bool = False

    @model_validator(mode="after")
    def _in_bounds(self) -> ClassSettings:
        for tds in (self.min_tds, self.max_tds):
            QoETarget(self.max_ttft_s, tds)  # raises for bounds that a reader cannot have
        if not self.min_ttft_s <= self.ttft_s <= self.max_ttft_s:
            raise ValueError(f"ttft_s {self.ttft_s:g} is outside {self.min_ttft_s:g} to {self.max_ttft_s:g}")
        if not self.min_tds <= self.tds <= self.max_tds:
            raise ValueError(f"tds {self.tds:g} is outside {self.min_tds:g} to {self.max_tds:g}")
        return self

    def clamp(self, ttft_s: float, tds: float) -> QoETarget:
        return QoETarget(min(max(ttft_s, self.min_ttft_s), self.max_ttft_s), min(max(tds, self.min_tds), self.max_tds))


class TenantSettings(Strict):
    """Who calls. key_sha256: SHA-256 of the API key, in hex; the key itself is stored nowhere.

    classes: those it may use, the first being its default; empty: all. trusted: whether what it says its readers expect
    counts. max_streams, requests_per_minute: limits; null: none.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    classes: tuple[str, ...] = ()
    trusted: bool = True
    max_streams: Count | None = None
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None


_CLASSES: dict[str, dict[str, float]] = {
    "reading": {},
    "listening": {"tds": 3.3},
    "code": {"tds": 10.0},
    "agent": {"ttft_s": 2.0, "tds": 20.0},
    "batch": {"ttft_s": 30.0, "tds": 1.0, "weight": 0.2, "shed_below": 0.5},
    "priority": {"weight": 4.0, "shed_below": 0.0},
}


def _over_defaults(given: Any) -> Any:
    """Classes as given over the built-in ones, field by field; null takes one away."""
    if not isinstance(given, dict):
        return given
    classes: dict[str, Any] = {**_CLASSES}
    for name, fields in given.items():
        classes[name] = {**_CLASSES.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return {name: fields for name, fields in classes.items() if fields is not None}


class Settings(BaseSettings):
    """Everything the gateway can be told; see docs/gateway.md."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    # Engines
    upstreams: tuple[Annotated[str, AfterValidator(_upstream)], ...] = Field(min_length=1)
    upstream_api_key: SecretStr | None = None
    dns_server: Annotated[str, AfterValidator(_server)] | None = None
    dns_interval_s: Seconds = 5.0
    health_path: Annotated[str, Field(pattern="^/")] = "/health"
    health_interval_s: Seconds = 5.0
    load_interval_s: Seconds = 1.0
    connect_timeout_s: Seconds = 5.0
    stream_idle_s: Seconds = 300.0
    answer_timeout_s: Seconds = 3600.0
    retries: Annotated[int, Field(ge=0)] = 2
    resume: bool = True
    hold_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    max_held: Annotated[int, Field(ge=0)] = 256
    breaker_failures: Count = 3
    breaker_cooldown_s: Seconds = 2.0
    forward_expectations: bool = True
    count_tokens: Literal["usage", "events"] = "usage"

    # Routing and admission
    policy: Annotated[str, AfterValidator(current_name)] = "qoe"
    policy_options: dict[str, Any] = {}
    horizon_s: Seconds = 60.0
    bounded_load: Annotated[float, Field(ge=1)] = 1.25
    admission: bool = True
    max_streams: Count = 4096
    max_streams_per_replica: Count = 1024

    # Readers and callers
    classes: Annotated[dict[ClassName, ClassSettings], BeforeValidator(_over_defaults)] = Field(
        {}, validate_default=True
    )
    classes_file: Path | None = None
    default_class: str = "reading"
    service_tiers: dict[str, str] = {"flex": "batch", "priority": "priority", "fast": "priority", "scale": "priority"}
    tenants: tuple[TenantSettings, ...] = ()
    trust_anonymous: bool = True
    media_hosts: tuple[str, ...] = ()
    refused_fields: frozenset[str] = frozenset(
        {"bootstrap_host", "bootstrap_port", "bootstrap_room", "custom_logit_processor"}
    )

    # This server
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] = "gateway"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    page: bool | None = None
    admin_key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    max_body_bytes: Count = 8 << 20
    max_header_bytes: Count = 32 << 10
    body_timeout_s: Seconds = 60.0
    send_buffer_bytes: Count = 64 << 10
    client_idle_s: Seconds = 120.0
    drain_s: Seconds = 600.0
    pace_interval_s: Seconds = 0.05
    demand_records: Count = 20_000
    otlp_endpoint: str | None = None
    access_log: bool = True

    @model_validator(mode="after")
    def _names_exist(self) -> Settings:
        faults = []
        if self.default_class not in self.classes:
            faults.append(f"default_class: no class {self.default_class!r}")
        faults += [f"service_tiers.{t}: no class {c!r}" for t, c in self.service_tiers.items() if c not in self.classes]
        for tenant in self.tenants:
            faults += [f"tenants.{tenant.name}: no class {c!r}" for c in tenant.classes if c not in self.classes]
        names = [tenant.name for tenant in self.tenants]
        faults += [f"tenants: {name!r} appears twice" for name in {n for n in names if names.count(n) > 1}]
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            faults.append(f"otlp_endpoint: expected http://HOST:PORT, got {self.otlp_endpoint!r}")
        try:
            make_routing_policy(self.policy, **self.routing_options)
        except ValueError as error:
            faults.append(f"policy: {error}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def routing_options(self) -> dict[str, Any]:
        """Options of the routing policy: what ``policy_options`` says over the settings for all policies."""
        given: dict[str, dict[str, Any]] = {
            "qoe": {"horizon_s": self.horizon_s},
            "prefix": {"bound": self.bounded_load},
        }
        return {**given.get(self.policy, {}), **self.policy_options}

    @property
    def loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def show_page(self) -> bool:
        return self.loopback if self.page is None else self.page

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Source,
        env_settings: Source,
        dotenv_settings: Source,  # noqa: ARG003
        file_secret_settings: Source,  # noqa: ARG003
    ) -> tuple[Source, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load(file: Path | None = None, **arguments: Any) -> Settings:
    """Arguments before environment before ``file``. Raises :class:`SettingsError` naming every fault."""
    unknown = [
        name for name in os.environ
        if name.startswith(PREFIX) and name[len(PREFIX) :].lower().split("__")[0] not in Settings.model_fields
    ]  # fmt: skip
    faults = [f"{name}: no such setting" for name in sorted(unknown)]
    if file is not None:
        _mapping(file)

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=file)

    try:
        settings = FromFile(**arguments)
    except ValidationError as error:
        faults += [_sentence(dict(fault)) for fault in error.errors(include_url=False)]
    except ValueError as error:  # a value in the environment that is no JSON
        faults.append(str(error))
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def with_classes(settings: Settings, file: Path) -> Settings:
    """``settings`` with what ``file`` says (``classes: {name: fields}``) over its classes, field by field. Raises
    :class:`SettingsError` naming every fault."""
    content = _mapping(file)
    given = content.get("classes") or {}
    if content.keys() - {"classes"} or not isinstance(given, dict):
        raise SettingsError(f"{file}: expected classes: {{name: fields}} and nothing else")
    classes: dict[str, Any] = {name: cls.model_dump() for name, cls in settings.classes.items()}
    for name, fields in given.items():
        classes[name] = {**classes.get(name, {}), **fields} if isinstance(fields, dict) else fields
    try:
        return settings.model_copy(
            update={"classes": TypeAdapter(dict[ClassName, ClassSettings]).validate_python(classes)}
        )
    except ValidationError as error:
        faults = [_sentence(dict(fault)) for fault in error.errors(include_url=False)]
        raise SettingsError("\n".join(f"{file}: classes.{fault}" for fault in faults)) from None


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise SettingsError(f"{file}: expected a mapping of settings, got {type(content).__name__}")
    return content or {}


def _sentence(fault: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    what = str(fault["msg"]).removeprefix("Value error, ")
    given = fault.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float) and "key" not in where else ""
    return f"{where}: {what}{shown}" if where else what
