"""Policies by name: the built-in ones, installed packages' (entry-point group ``andes_sglang.policies``) and any class as
``package.module:Class``.

The one module of this package that is not pure: it imports third-party code and reads what is installed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from andes_sglang.policy.andes import Andes
from andes_sglang.policy.andes_v1 import AndesV1
from andes_sglang.policy.andes_v2 import AndesV2
from andes_sglang.policy.base import SchedulingPolicy
from andes_sglang.policy.clairvoyant import Clairvoyant
from andes_sglang.policy.fcfs import Fcfs
from andes_sglang.policy.lifo import Lifo
from andes_sglang.policy.lqsf import LeastQoESlackFirst
from andes_sglang.policy.options import PolicyOptions
from andes_sglang.policy.round_robin import RoundRobin
from andes_sglang.policy.sarathi import Sarathi
from andes_sglang.policy.srpt import Srpt
from andes_sglang.policy.tokenflow import TokenFlow

__all__ = ["CLAIRVOYANT", "ENTRY_POINTS", "POLICIES", "check_policy", "find_policy", "make", "make_policy"]

Factory = Callable[..., SchedulingPolicy]

ENTRY_POINTS = "andes_sglang.policies"
"""Entry-point group in which an installed package names its policies."""

CLAIRVOYANT: dict[str, Factory] = {policy.name: policy for policy in (Srpt, Clairvoyant)}
"""Those that must be given ``output_tokens``, final lengths by request id: in a simulation only."""

POLICIES: dict[str, Factory] = {
    policy.name: policy
    for policy in (Fcfs, Lifo, RoundRobin, LeastQoESlackFirst, Andes, AndesV1, AndesV2, Sarathi, TokenFlow)
}


def make_policy(
    name: str, options: Mapping[str, Any] | None = None, *, output_tokens: Mapping[str, int] | None = None
) -> SchedulingPolicy:
    """The policy ``name`` with its options, names and values as a command line or a custom resource has them.

    name: a built-in policy, an entry point, or ``package.module:Class``. output_tokens: final output length of every request
    by its id, for the policies of ``CLAIRVOYANT`` only. Raises ``ValueError`` naming the policy, and the option where one is
    wrong.
    """
    factory = find_policy(name)
    options = options or {}
    arguments: dict[str, Any] = {}
    if name in CLAIRVOYANT:
        if output_tokens is None:
            raise ValueError(f"policy {name!r} must be given the final lengths of answers: it is for simulations only")
        arguments["output_tokens"] = output_tokens
    elif output_tokens is not None:
        raise ValueError(f"policy {name!r} takes no output_tokens; these do: {', '.join(CLAIRVOYANT)}")
    declared = getattr(factory, "options_type", None)
    try:
        if declared is not None:
            policy = factory(declared.from_mapping(options), **arguments)
        else:
            policy = factory(**options, **arguments)
    except TypeError as error:
        raise ValueError(f"policy {name!r}: {error}") from None
    if not isinstance(policy, SchedulingPolicy) or not isinstance(policy.name, str):
        raise ValueError(f"policy {name!r}: {type(policy).__name__} is no policy: it needs a name and decide(state)")
    return policy


def check_policy(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise ``ValueError``, as :func:`make_policy` does, for a name or options that it would refuse."""
    make_policy(name, options, output_tokens={} if name in CLAIRVOYANT else None)


def make(name: str, **options: Any) -> SchedulingPolicy:
    """:func:`make_policy` with the options, and ``output_tokens``, as keyword arguments."""
    output_tokens = options.pop("output_tokens", None)
    return make_policy(name, options, output_tokens=output_tokens)


def find_policy(name: str) -> Factory:
    """What makes the policy ``name``: a class. Raises ``ValueError`` for a name that is not known, cannot be imported or is
    no policy."""
    factory = POLICIES.get(name) or CLAIRVOYANT.get(name)
    if factory is not None:
        return factory
    return _import_policy(name)


@cache
def _import_policy(name: str) -> Factory:
    found = _located(name)
    importlib.invalidate_caches()
    try:
        loaded = found.load()
    except AttributeError:
        raise ValueError(f"policy {name!r}: module {found.module} has no {found.attr}") from None
    except Exception as error:  # whatever a third party's module raises while it is imported
        raise ValueError(f"policy {name!r}: cannot import {found.module}: {type(error).__name__}: {error}") from error
    if not (inspect.isclass(loaded) and callable(getattr(loaded, "decide", None)) and hasattr(loaded, "name")):
        raise ValueError(f"policy {name!r}: {found.value} is no policy: it needs a class with a name and decide(state)")
    declared = getattr(loaded, "options_type", PolicyOptions)
    if not (inspect.isclass(declared) and issubclass(declared, PolicyOptions)):
        raise ValueError(f"policy {name!r}: options_type {declared!r} is not derived from PolicyOptions")
    factory: Any = loaded
    return cast("Factory", factory)


def _located(name: str) -> EntryPoint:
    module, colon, attribute = name.partition(":")
    if colon:
        if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
            raise ValueError(f"policy {name!r}: expected package.module:Class")
        return EntryPoint(name, name, ENTRY_POINTS)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        known = ", ".join(sorted({*POLICIES, *CLAIRVOYANT, *installed}))
        raise ValueError(f"unknown policy {name!r}; choose one of {known}, or package.module:Class")
    return installed[name]
