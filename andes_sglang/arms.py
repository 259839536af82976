"""The arms of a comparison, as the command line names them: each a policy, and flags for its engine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Arm", "parse_arms", "policy_options"]


_ARM = re.compile(r"(?P<name>[^=]+)=(?P<policy>[^:]+(:[A-Za-z_][^:]*)?)(:(?P<flags>.*))?", re.DOTALL)
"""Flags begin with a dash and the class of ``package.module:Class`` does not."""


@dataclass(frozen=True, slots=True)
class Arm:
    """policy: ``stock`` or a policy, by name or as ``package.module:Class``. flags: of its engine."""

    policy: str
    flags: tuple[str, ...] = ()


def parse_arms(policies: str, arms: Sequence[str]) -> dict[str, Arm]:
    """By name: a comma-separated list of policies, then each ``NAME=POLICY[:FLAGS]``. Raises ``ValueError``."""
    parsed = {name: Arm(name) for name in policies.split(",") if name}
    named: set[str] = set()
    for text in arms:
        arm = _ARM.fullmatch(text)
        if arm is None:
            raise ValueError(f"--arm {text!r}: expected NAME=POLICY or NAME=POLICY:FLAGS")
        if arm["name"] in named or "/" in arm["name"]:
            what = "two arms have this name" if arm["name"] in named else "the name is one of files: a word without /"
            raise ValueError(f"--arm {text!r}: {what}")
        named.add(arm["name"])
        parsed[arm["name"]] = Arm(arm["policy"], tuple((arm["flags"] or "").split()))
    if not parsed:
        raise ValueError(f"--policies {policies!r}: names none")
    return parsed


def policy_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["name=value"]`` as a mapping for ``make_policy``: numbers, true, false, null, otherwise text. Raises
    ``ValueError``."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--policy-option {pair!r}: expected NAME=VALUE")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            options[name.replace("-", "_")] = value
    return options
