"""Every setting described from its one definition: the flags of the command line and the table of docs/gateway.md."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, SecretStr

from andes_api.settings import PREFIX, GatewaySettings

__all__ = ["SettingReference", "references", "settings_table"]

_BOUNDS = {"gt": "> {:g}", "ge": ">= {:g}", "le": "<= {:g}"}


class SettingReference(NamedTuple):
    """default, values: as text; values: what is allowed beyond the type. as_json: given as JSON on the command line and in
    the environment. secret: not to be given on a command line, where every process can read it."""

    name: str
    default: str
    values: str
    description: str
    as_json: bool
    secret: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def references() -> list[SettingReference]:
    """Every setting, in the order of :class:`GatewaySettings`."""
    found = []
    for name, field in GatewaySettings.model_fields.items():
        value = () if field.is_required() else field.default
        found.append(
            SettingReference(
                name=name,
                default="" if field.is_required() else _default(value),
                values=_values(field.annotation, field.metadata),
                description=field.description or "",
                as_json=isinstance(value, dict | tuple | frozenset | BaseModel),
                secret=SecretStr in get_args(field.annotation),
            )
        )
    return found


def _default(value: Any) -> str:
    if value is None or value in ({}, (), frozenset()) or isinstance(value, BaseModel):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | frozenset):
        return json.dumps(value if isinstance(value, dict) else sorted(value), separators=(", ", ": "))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(get_args(annotation))
    if annotation is bool:
        return "true or false"
    said = [
        text.format(getattr(constraint, name))
        for constraint in metadata
        for name, text in _BOUNDS.items()
        if getattr(constraint, name, None) is not None
    ]
    return ", ".join(said)


def settings_table() -> str:
    """The table of docs/gateway.md."""
    rows = ["| setting | default | allowed | |", "|---|---|---|---|"]
    for setting in references():
        default = f"`{setting.default}`" if setting.default else ""
        rows.append(f"| `{setting.name}` | {default} | {setting.values} | {setting.description} |")
    return "\n".join(rows) + "\n"
