"""Options of policies: declared once, checked everywhere.

A policy declares a frozen dataclass derived from :class:`PolicyOptions`, one :func:`option` a field::

    @dataclass(frozen=True, kw_only=True)
    class MineOptions(PolicyOptions):
        policy = "mine"
        patience_s: float = option(30.0, "seconds", above=0, doc="longest wait that is not urgent", source="assumed")

The command line, a QoETarget, the simulator and ``/server_info`` all use :meth:`PolicyOptions.from_mapping` and
:meth:`PolicyOptions.as_dict`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_type_hints

__all__ = ["OptionInfo", "PolicyOptions", "growth_tokens", "option"]

_MAX_NUMBER = math.nextafter(math.inf, 0.0)
"""The largest finite float: JSON has integers beyond it."""


class OptionInfo(NamedTuple):
    """What is declared of one option. unit: of its values, "" for a count or a flag. source: where the default was measured,
    or the section of the paper that it comes from. above: exclusive lower bound; low and high: inclusive bounds. choices: of
    an option that is text."""

    unit: str
    doc: str
    source: str
    above: float | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self.choices
        return (
            (self.above is None or value > self.above)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )

    def allowed(self, kind: type, optional: bool) -> str:
        """In words, for messages and documentation: ``> 0 s``, ``an integer >= 1``."""
        if kind is bool:
            return "true or false"
        if kind is str:
            return f"one of {', '.join(self.choices)}"
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">", self.above), (">=", self.low), ("<=", self.high))
            if bound is not None
        ]
        unit = f"of {self.unit}" if self.unit and not bounds else self.unit
        number = "an integer" if kind is int else "" if bounds else "a number"
        return " ".join(filter(None, (number, " and ".join(bounds), unit, "or null" if optional else "")))


def option(
    default: Any,
    unit: str,
    *,
    doc: str,
    source: str,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a :class:`PolicyOptions`; the arguments are those of :class:`OptionInfo`."""
    return field(default=default, metadata={"option": OptionInfo(unit, doc, source, above, low, high, choices)})


def growth_tokens() -> Any:
    """The option of every policy that packs KV (:func:`~andes_sglang.policy.packer.pack`) and leaves room for what runs."""
    return option(
        16.0, "tokens", low=0, doc="KV kept free for each running request", source="the engine's reserve at admission"
    )


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """Options of one policy; derive from it. ``policy``: the policy's name, for messages. ``renamed``: old names of options
    that are still understood, with a warning. Construction raises ``ValueError`` for a value of the wrong type or outside
    its range."""

    policy: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for name, kind, optional, info in _declared(type(self)):
            object.__setattr__(self, name, self._checked(name, kind, optional, info))

    def _checked(self, name: str, kind: type, optional: bool, info: OptionInfo) -> Any:
        value = getattr(self, name)
        if value is None and optional:
            return None
        converted = _converted(value, kind)
        if converted is None or not info.allows(converted):
            raise ValueError(f"policy {self.policy}: {name} must be {info.allowed(kind, optional)}, got {value!r}")
        return converted

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """From names and values as a command line, a custom resource or ``/server_info`` has them. Raises ``ValueError``
        naming policy, option, value and what is allowed."""
        known = [f.name for f in fields(cls)]
        given: dict[str, Any] = {}
        for written, value in mapping.items():
            name = cls.renamed.get(written, written)
            if name not in known:
                allowed = f"its options are {', '.join(known)}" if known else "it has none"
                raise ValueError(f"policy {cls.policy}: unknown option {written!r} (value {value!r}); {allowed}")
            if name in given or (name != written and name in mapping):
                raise ValueError(f"policy {cls.policy}: {written!r} is the old name of {name!r}; give one of them")
            if name != written:
                _warn_renamed(cls.policy, written, name)
            given[name] = value
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """All options, as ``from_mapping`` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def describe(cls) -> list[tuple[str, str, Any, str, str]]:
        """Of each option: name, what is allowed, default, meaning, source."""
        default = cls()
        return [
            (name, info.allowed(kind, optional), getattr(default, name), info.doc, info.source)
            for name, kind, optional, info in _declared(cls)
        ]


def _declared(cls: type[PolicyOptions]) -> tuple[tuple[str, type, bool, OptionInfo], ...]:
    """Of each option of ``cls``: name, type, whether None is allowed, and what was declared."""
    hints = get_type_hints(cls)
    declared = []
    for f in fields(cls):
        kinds = get_args(hints[f.name]) or (hints[f.name],)
        kind = next(k for k in kinds if k is not type(None))
        declared.append((f.name, kind, type(None) in kinds, f.metadata["option"]))
    return tuple(declared)


def _converted(value: Any, kind: type) -> Any:
    """``value`` as ``kind``, or None where it is none: a boolean is no number, and a number is an integer when it is whole
    (JSON has one type of number)."""
    if kind in (bool, str):
        return value if isinstance(value, kind) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_NUMBER:
        return None
    if kind is int:
        return int(value) if value == int(value) else None
    return float(value)


@cache
def _warn_renamed(policy: str, old: str, new: str) -> None:
    """Once for each name in a process."""
    warnings.warn(
        f"policy {policy}: option {old!r} is now called {new!r}; the old name stops working in the next release",
        FutureWarning,
        stacklevel=2,
    )
