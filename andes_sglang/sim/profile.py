"""Profiles: what one pair of hardware and model costs and holds, as data. One TOML file each, with its source.

A file has ``hardware``, ``model``, ``source``, optionally ``price_per_hour`` and ``start_s``, a table ``[engine]`` (fields of
:class:`~andes_sglang.sim.engine.EngineModel`) and either ``[costs]``, measured (:class:`~andes_sglang.sim.engine.Costs`), or
``[roofline]``, derived (:class:`~andes_sglang.sim.roofline.Roofline`), which gives the sizes that ``[engine]`` leaves out;
and where it has a draft model ``[speculation]`` (:class:`~andes_sglang.speculation.Speculation`), where its host copies are
coded ``[codec]`` (:class:`~andes_sglang.kv_codecs.prices.CodecPrice`).
Those of your own go by name too, before those of the package, from the folder that $ANDES_PROFILES names.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from andes_sglang.kv_codecs.prices import CodecPrice
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.roofline import Roofline
from andes_sglang.speculation import Speculation

__all__ = ["FOLDER_VARIABLE", "Profile", "ProfileError", "dump", "load", "names"]

T = TypeVar("T")
_SIZES = ("kv_capacity_tokens", "host_capacity_tokens", "host_tokens_per_s", "kv_token_bytes", "devices")
"""Fields of the engine that a roofline gives."""
_PACKAGED = files("andes_sglang.sim") / "profiles"
FOLDER_VARIABLE = "ANDES_PROFILES"


class ProfileError(ValueError):
    """A profile that cannot be read or makes no sense; the text names file, field and value."""


@dataclass(frozen=True, slots=True)
class Profile:
    """``engine`` serves ``model`` on ``hardware``; source: where the figures come from. start_s: cold start of a
    replica, up to its first request. price_per_hour: of one replica, in any one currency; None where it is not given.
    roofline: what ``engine`` is derived from; None: it was measured."""

    name: str
    hardware: str
    model: str
    source: str
    engine: EngineModel
    start_s: float = 60.0
    price_per_hour: float | None = None
    roofline: Roofline | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ValueError(f"start_s must be a number of seconds >= 0, got {self.start_s!r}")
        if self.price_per_hour is not None and not (math.isfinite(self.price_per_hour) and self.price_per_hour > 0):
            raise ValueError(f"price_per_hour must be > 0, got {self.price_per_hour!r}")

    def on(self, devices: int) -> EngineModel | None:
        """The engine over ``devices`` tensor-parallel ranks; None where that cannot be said: it was measured on another
        number, or the model does not fit. What drafts cost is known of the profile's own number only."""
        if devices == self.engine.devices:
            return self.engine
        try:
            derived = None if self.roofline is None else replace(self.roofline, devices=devices)
        except ValueError:
            return None
        if derived is None:
            return None
        sizes = {size: getattr(derived, size) for size in _SIZES}
        return replace(self.engine, costs=derived.costs(), speculation=None, **sizes)


def names() -> list[str]:
    """Profiles that come with the package, and those of $ANDES_PROFILES."""
    return sorted(_found())


def _found() -> dict[str, Traversable]:
    own = os.environ.get(FOLDER_VARIABLE)
    folders: list[Traversable] = [_PACKAGED, *([Path(own)] if own and Path(own).is_dir() else [])]
    return {p.name.removesuffix(".toml"): p for folder in folders for p in folder.iterdir() if p.name.endswith(".toml")}


def load(name: str) -> Profile:
    """The profile in the file ``name`` (ending in ``.toml``), or called ``name``. Raises :class:`ProfileError`."""
    path = Path(name) if name.endswith(".toml") else None
    source = path or _found().get(name)
    if source is None:
        raise ProfileError(f"profile {name!r}: not known; give a .toml file or one of {', '.join(names())}")
    try:
        table = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"profile {name}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {name}: no TOML ({error})") from None
    try:
        return _profile(path.stem if path else name, table)
    except ValueError as error:
        raise ProfileError(f"profile {name}: {error}") from None


def _profile(name: str, table: dict[str, Any]) -> Profile:
    engine = table.pop("engine", None)
    derived = table.pop("roofline", None)
    measured = table.pop("costs", None)
    if (derived is None) == (measured is None):
        raise ValueError("needs one of the tables [costs] and [roofline]")
    drafts, codec = table.pop("speculation", None), table.pop("codec", None)
    if not isinstance(engine, dict):
        raise ValueError(f"needs a table [engine], got {engine!r}")
    given: dict[str, Any] = {
        "speculation": None if drafts is None else _read(Speculation, drafts, "speculation."),
        "codec": None if codec is None else _read(CodecPrice, codec, "codec."),
    }
    roofline: Roofline | None = None
    if derived is not None:
        roofline = _read(Roofline, derived, "roofline.")
        given |= {size: getattr(roofline, size) for size in _SIZES if size not in engine}
        given["costs"] = roofline.costs()
    else:
        given["costs"] = _read(Costs, measured, "costs.")
    whole = _read(EngineModel, engine, "engine.", **given)
    return _read(Profile, table, "", name=name, engine=whole, roofline=roofline)


def _read(kind: type[T], table: Any, where: str, **given: Any) -> T:
    """A dataclass from a table; every complaint begins with the field's full name."""
    if not isinstance(table, dict):
        raise ValueError(f"{where.rstrip('.')} must be a table, got {table!r}")
    hints = typing.get_type_hints(kind)
    wanted = {field.name: field for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    for name in table:
        if name not in wanted:
            raise ValueError(f"{where}{name}: unknown field (value {table[name]!r})")
    for name, field in wanted.items():
        if name not in table and field.default is MISSING:
            raise ValueError(f"{where}{name}: missing")
    values = {name: _value(hints[name], value, where + name) for name, value in table.items()}
    try:
        return kind(**values, **given)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _value(kind: Any, value: Any, field: str) -> Any:
    if isinstance(kind, types.UnionType):
        kind = kind.__args__[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = [member.value for member in kind]
        if value not in known:
            raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r}")
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        called = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[kind]
        raise ValueError(f"{field} must be {called}, got {value!r}")
    return value


def dump(profile: Profile) -> str:
    """The file of a measured profile: what :func:`load` reads back as an equal one."""
    head = {f.name: getattr(profile, f.name) for f in fields(Profile) if f.name not in ("name", "engine", "roofline")}
    tables = "costs", "speculation", "codec"
    engine = {f.name: getattr(profile.engine, f.name) for f in fields(EngineModel) if f.name not in tables}
    lines = [*_lines(head), "\n[engine]", *_lines(engine)]
    for name in tables:
        if (table := getattr(profile.engine, name)) is not None:
            lines += [f"\n[{name}]", *_lines({f.name: getattr(table, f.name) for f in fields(table)})]
    return "\n".join([*lines, ""])


def _lines(table: Mapping[str, Any]) -> list[str]:
    plain = {k: v.value if isinstance(v, Enum) else v for k, v in table.items() if v is not None}
    return [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
