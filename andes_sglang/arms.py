"""The arms of a comparison, as the command line names them: each a policy, and flags for its engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Arm", "parse_arms", "policy_options"]


@dataclass(frozen=True, slots=True)
class Arm:
    policy: str
    flags: tuple[str, ...] = ()


def parse_arms(policies: str, arms: Sequence[str]) -> dict[str, Arm]:
    """By name: a comma-separated list of policies, then each ``NAME=POLICY[:FLAGS]``. Raises ``ValueError``."""
    parsed = {name: Arm(name) for name in policies.split(",") if name}
    for text in arms:
        name, equals, rest = text.partition("=")
        policy, _, flags = rest.partition(":")
        if not (name and equals and policy):
            raise ValueError(f"--arm {text!r}: expected NAME=POLICY or NAME=POLICY:FLAGS")
        parsed[name] = Arm(policy, tuple(flags.split()))
    if not parsed:
        raise ValueError(f"--policies {policies!r}: names none")
    return parsed


def policy_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["name=value"]`` as constructor arguments: numbers, true, false, null, otherwise text. Raises ``ValueError``."""
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
