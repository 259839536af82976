"""Settings: from arguments, the environment (``ANDES_GATEWAY_*``) or a YAML file; every fault is named at once.

:class:`GatewaySettings` is the one place where a setting has its name, default, range and help: the command line, the
environment and the table of docs/gateway.md derive from it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings import PydanticBaseSettingsSource as Source

from andes_api.addresses import origin, otlp_fault, server
from andes_api.classes import (
    BatchSettings,
    ClassName,
    ClassSettings,
    Count,
    ModelSettings,
    Seconds,
    TenantSettings,
    UpstreamAddress,
    option_values,
    over_built_in,
)  # fmt: skip
from andes_api.directories import directory_fault
from andes_api.ladders import Ladders
from andes_api.ladders import faults as ladder_faults
from andes_api.models import ANY
from andes_api.tools import ToolSettings, tool_faults
from andes_sglang.routing import current_name, find_routing_policy, make_routing_policy
from andes_sglang.setting_faults import sentences

__all__ = [
    "OFFLINE",
    "PREFIX",
    "ClassSettings",
    "GatewaySettings",
    "GatewaySettingsError",
    "ModelSettings",
    "TenantSettings",
    "load",
    "with_classes",
]

PREFIX = "ANDES_GATEWAY_"
OFFLINE = "offline"
"""The class of a batch's requests."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class GatewaySettingsError(ValueError):
    """What is wrong with the settings, one line per fault: field, fault, value."""


def _routing_policy(name: str) -> str:
    name = current_name(name)
    find_routing_policy(name)
    return name


class GatewaySettings(BaseSettings):
    """Everything the gateway can be told. Raises :class:`pydantic.ValidationError`; :func:`load` says it in sentences."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    # Engines
    upstreams: tuple[UpstreamAddress, ...] = Field(
        (),
        description="engines: `http://HOST:PORT`, `https://HOST` or `dns://NAME:PORT`; their models are what they announce",
    )
    models: dict[str, ModelSettings] = Field({}, description="models: engines of their own, and limits; see above")
    model_aliases: dict[str, str] = Field(
        {}, description="other names of models and adapters; `*`: every name that is none"
    )
    ladders: Ladders = Field({}, description="models that stand in for one another, by the name asked for; see above")
    upstream_api_key: SecretStr | None = Field(None, description="sent to engines; a caller's key never is")
    dns_server: Annotated[str, AfterValidator(server)] | None = Field(
        None,
        description="`IP:PORT` of the server to ask for `dns://` names, such as Consul's; none: the system's resolver",
    )
    dns_interval_s: Seconds = Field(5.0, description="seconds between look-ups of `dns://` names")
    health_path: Annotated[str, Field(pattern="^/")] = Field(
        "/health", description="path that says whether an engine is up"
    )
    health_interval_s: Seconds = Field(5.0, description="seconds between health checks")
    load_interval_s: Seconds = Field(1.0, description="seconds between questions for an engine's load (`/v1/loads`)")
    connect_timeout_s: Seconds = Field(5.0, description="seconds to connect to an engine")
    stream_idle_s: Seconds = Field(
        300.0, description="seconds without a token after which an engine's stream is given up"
    )
    answer_timeout_s: Seconds = Field(3600.0, description="seconds for an answer that is not streamed")
    retries: Annotated[int, Field(ge=0)] = Field(2, description="tries on other engines after a failure")
    resume: bool = Field(True, description="continue a cut stream on another engine where the text determines the rest")
    hold_s: NotNegative = Field(60.0, description="seconds that a request waits while no engine is there")
    max_held: Annotated[int, Field(ge=0)] = Field(256, description="requests that wait so at a time")
    breaker_failures: Count = Field(3, description="failures in a row after which an engine rests")
    breaker_cooldown_s: Seconds = Field(2.0, description="seconds of the first rest; doubles up to 60")
    forward_expectations: bool = Field(
        True, description="send `custom_params.qoe` to engines; off for engines that refuse it"
    )
    count_tokens: Literal["usage", "events"] = Field(
        "usage", description="count tokens by continuous usage, or one per event"
    )

    # Routing and admission
    policy: Annotated[str, AfterValidator(_routing_policy)] = Field(
        "qoe", description="routing policy: a name of the table above, an entry point, or `package.module:Class`"
    )
    policy_options: Annotated[dict[str, Any], BeforeValidator(option_values)] = Field(
        {}, description="options of the routing policy"
    )
    ladder_policy: Annotated[str, AfterValidator(_routing_policy)] = Field(
        "value", description="routing policy over all rungs of a ladder"
    )
    ladder_policy_options: Annotated[dict[str, Any], BeforeValidator(option_values)] = Field(
        {}, description="options of that"
    )
    horizon_s: Seconds = Field(60.0, description="seconds over which QoE is projected")
    bounded_load: Annotated[float, Field(ge=1)] = Field(
        1.25, description="ratio to the mean load up to which `prefix` keeps a prompt at its replica"
    )
    admission: bool = Field(True, description="refuse by forecast")
    max_streams: Count = Field(4096, description="open streams of this gateway")
    max_streams_per_replica: Count = Field(1024, description="open streams of this gateway per engine")

    # Readers and callers
    classes: Annotated[dict[ClassName, ClassSettings], BeforeValidator(over_built_in)] = Field(
        {}, validate_default=True, description="classes of readers over the built-in ones, field by field"
    )
    classes_file: Path | None = Field(None, description="YAML file of classes over these, read again when it changes")
    default_class: str = Field("reading", description="class of requests that name none")
    service_tiers: dict[str, str] = Field(
        {"flex": "offline", "priority": "priority", "fast": "priority", "scale": "priority"},
        description="class of each `service_tier`",
    )
    tenants: tuple[TenantSettings, ...] = Field(
        (), description="callers; with any, every request needs one of their keys"
    )
    trust_anonymous: bool = Field(True, description="whether what requests without a key say of their readers counts")
    batches: BatchSettings = Field(
        BatchSettings(),
        description="the batch API: `directory` turns it on; `max_requests`, `max_file_bytes`, `file_days`, `batch_days`, "
        "`per_engine` and `limits` bound it (see above)",
    )
    media_hosts: tuple[str, ...] = Field(
        (), description="hosts that images may come from; none: any public one; private addresses never"
    )
    refused_fields: frozenset[str] = Field(
        frozenset(
            {
                "bootstrap_host",
                "bootstrap_port",
                "bootstrap_room",
                "custom_logit_processor",
                "data_parallel_rank",
                "disagg_prefill_dp_rank",
                "routed_dp_rank",
            }
        ),
        description="request fields that are refused because they steer the engine",
    )

    # Tools
    tools: dict[str, ToolSettings] = Field(
        {}, description="tools that run here when a request says `x-andes-tools: run`; see [tools](tools.md)"
    )
    tool_rounds: Annotated[int, Field(ge=2)] = Field(
        8, description="requests to engines that one answer with tools makes; in the last the model calls no more"
    )
    max_tool_processes: Count = Field(32, description="tools that run at a time; further calls wait")

    # This server
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] = Field(
        "gateway", description="this gateway's name among its replicas"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="port to listen on; 0: any free one")
    page: bool | None = Field(None, description="serve the live page at `/`; none: on loopback only")
    try_page: bool | None = Field(
        None, description="serve a page to try prompts on at `/try`; none: to clients on this machine only"
    )
    cors_origins: tuple[Annotated[str, AfterValidator(origin)], ...] = Field(
        (), description="origins whose pages may call this from a browser, such as `https://chat.example`; `*`: all"
    )
    admin_key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of the key that drains engines; none: from loopback only"
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="processes that serve this port together, one a core; several need Linux"
    )
    max_body_bytes: Count = Field(8 << 20, description="bytes of a request's body")
    max_header_bytes: Count = Field(32 << 10, description="bytes of a request's headers")
    head_timeout_s: Seconds = Field(20.0, description="seconds for a request's head to arrive, from the connection on")
    body_timeout_s: Seconds = Field(60.0, description="seconds for a request's body to arrive")
    send_buffer_bytes: Count = Field(64 << 10, description="bytes buffered in the kernel for a slow reader")
    keepalive_s: NotNegative = Field(
        15.0, description="seconds of silence after which a stream gets an SSE comment; 0: never"
    )
    client_idle_s: Seconds = Field(120.0, description="seconds after which a client that takes nothing is dropped")
    drain_s: Seconds = Field(600.0, description="seconds that open streams have after SIGTERM")
    pace_interval_s: Seconds = Field(0.05, description="seconds of tokens that a paced stream releases together")
    demand_records: Count = Field(20_000, description="requests kept for `/fleet/demand`")
    otlp_endpoint: str | None = Field(
        None, description="`http://HOST:4318` or `grpc://HOST:4317` that traces and metrics go to by OTLP"
    )
    access_log: bool = Field(True, description="one line of JSON per request on standard output")

    @field_validator("workers")
    @classmethod
    def _can_share_a_port(cls, workers: int) -> int:
        if workers > 1 and sys.platform != "linux":
            raise ValueError(f"several share a port on Linux only, got {workers}")
        return workers

    @model_validator(mode="after")
    def _names_exist(self) -> GatewaySettings:
        faults = self._model_faults() + self._upstream_faults() + self._tenant_faults() + tool_faults(self.tools)
        faults += self._ladder_faults(self.classes)
        if self.default_class not in self.classes:
            faults.append(f"default_class: no class {self.default_class!r}")
        faults += [f"service_tiers.{t}: no class {c!r}" for t, c in self.service_tiers.items() if c not in self.classes]
        if self.otlp_endpoint is not None and (fault := otlp_fault(self.otlp_endpoint)):
            faults.append(f"otlp_endpoint: {fault}")
        faults += self._policy_faults() + self._batch_faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _policy_faults(self) -> list[str]:
        faults = []
        for field, name, options in (
            ("policy", self.policy, self.routing_options), ("ladder_policy", self.ladder_policy, self.ladder_options)
        ):  # fmt: skip
            try:
                make_routing_policy(name, **options)
            except ValueError as error:
                faults.append(f"{field}: {error}")
        return faults

    def _tenant_faults(self) -> list[str]:
        names = [tenant.name for tenant in self.tenants]
        faults = [f"tenants: {name!r} appears twice" for name in {n for n in names if names.count(n) > 1}]
        for tenant in self.tenants:
            faults += [f"tenants.{tenant.name}: no class {c!r}" for c in tenant.classes if c not in self.classes]
            faults += [f"tenants.{tenant.name}: no tool {t!r}" for t in tenant.tools if t not in self.tools]
        return faults

    def _model_faults(self) -> list[str]:
        faults = [f"models: {name!r} is no name" for name in self.models if not name or name == ANY]
        faults += [f"model_aliases: {name!r} is a model" for name in self.model_aliases if name in self.models]
        for name, model in self.models.items():
            faults += [f"models.{name}.classes: no class {c!r}" for c in model.classes if c not in self.classes]
            faults += [
                f"tenants.{tenant.name}: none of its classes is one of models.{name}.classes"
                for tenant in self.tenants
                if model.classes and tenant.classes and not {*model.classes} & {*tenant.classes}
            ]
        return faults

    def _ladder_faults(self, classes: Mapping[str, ClassSettings]) -> list[str]:
        announced = bool(self.upstreams)
        return list(ladder_faults(self.ladders, self.models, self.model_aliases, classes, announced=announced))

    def _batch_faults(self) -> list[str]:
        if self.batches.directory is None:
            inert = [f"batches.{name}" for name in sorted(self.batches.model_fields_set - {"directory"})]
            inert += [f"tenants.{tenant.name}.batches" for tenant in self.tenants if tenant.batches is not None]
            return [f"{name}: goes with batches.directory, which turns the batch API on" for name in inert]
        faults = []
        if not (OFFLINE in self.classes and self.classes[OFFLINE].yields):
            faults.append(f"batches: they run as class {OFFLINE!r}, which has to be there and to yield")
        if fault := directory_fault(self.batches.directory):
            faults.append(f"batches.directory: {fault}")
        return faults

    def _upstream_faults(self) -> list[str]:
        own = [url for model in self.models.values() for url in model.upstreams]
        if not (own or self.upstreams):
            return ["upstreams: no engine; name one, or models.NAME.upstreams"]
        return [f"models: {url} is listed twice" for url in {*own} if own.count(url) > 1 or url in self.upstreams]

    @property
    def upstreams_by_model(self) -> dict[str, str | None]:
        """Every address, and the model that its engines have by these settings."""
        owned = {url: name for name, model in self.models.items() for url in model.upstreams}
        return {**dict.fromkeys(self.upstreams), **owned}

    @property
    def routing_options(self) -> dict[str, Any]:
        """Options of the routing policy: what ``policy_options`` says over the settings for all policies."""
        return {**self._common_options(self.policy), **self.policy_options}

    @property
    def ladder_options(self) -> dict[str, Any]:
        """The same of the routing policy over the rungs of a ladder."""
        return {**self._common_options(self.ladder_policy), **self.ladder_policy_options}

    def _common_options(self, policy: str) -> dict[str, Any]:
        given: dict[str, dict[str, Any]] = {
            "qoe": {"horizon_s": self.horizon_s},
            "value": {"horizon_s": self.horizon_s, "pace_margin": 1.0},  # costs are fitted to what streams get
            "prefix": {"bound": self.bounded_load},
        }
        return given.get(policy, {})

    @property
    def loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def show_page(self) -> bool:
        return self.loopback if self.page is None else self.page

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Source, env_settings: Source, *_: Source, **__: Source
    ) -> tuple[Source, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load(file: Path | None = None, **arguments: Any) -> GatewaySettings:
    """Arguments before environment before ``file``. Raises :class:`GatewaySettingsError` naming every fault."""
    unknown = [
        name for name in os.environ
        if name.startswith(PREFIX) and name[len(PREFIX) :].lower().split("__")[0] not in GatewaySettings.model_fields
    ]  # fmt: skip
    faults = [f"{name}: no such setting" for name in sorted(unknown)]
    if file is not None:
        _mapping(file)

    class FromFile(GatewaySettings):
        model_config = SettingsConfigDict(yaml_file=file)

    try:
        settings = FromFile(**arguments)
    except ValidationError as error:
        faults += sentences(error)
    except ValueError as error:  # a value in the environment that is no JSON
        field = re.search(r'field "(\w+)"', str(error))
        faults.append(f"{PREFIX}{field[1].upper()}: expected JSON" if field else str(error))
    if faults:
        raise GatewaySettingsError("\n".join(faults))
    return GatewaySettings.model_construct(settings.model_fields_set, **dict(settings))  # of a class that has a name


def with_classes(settings: GatewaySettings, file: Path) -> GatewaySettings:
    """``settings`` with what ``file`` says (``classes: {name: fields}``) over its classes, field by field. Raises
    :class:`GatewaySettingsError` naming every fault."""
    content = _mapping(file)
    given = content.get("classes") or {}
    if content.keys() - {"classes"} or not isinstance(given, dict):
        raise GatewaySettingsError(f"{file}: expected classes: {{name: fields}} and nothing else")
    classes: dict[str, Any] = {name: cls.model_dump() for name, cls in settings.classes.items()}
    for name, fields in given.items():
        classes[name] = {**classes.get(name, {}), **fields} if isinstance(fields, dict) else fields
    try:
        changed = TypeAdapter(dict[ClassName, ClassSettings]).validate_python(classes)
    except ValidationError as error:
        raise GatewaySettingsError("\n".join(f"{file}: classes.{fault}" for fault in sentences(error))) from None
    if faults := settings._ladder_faults(changed):
        raise GatewaySettingsError("\n".join(f"{file}: {fault}" for fault in faults))
    return settings.model_copy(update={"classes": changed})


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise GatewaySettingsError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise GatewaySettingsError(f"{file}: expected a mapping of settings, got {type(content).__name__}")
    return content or {}
