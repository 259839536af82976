"""Policies by name: the built-in ones, installed packages' (entry-point group ``andes_sglang.policies``) and any class as
``package.module:Class``.

The one module of this package that is not pure: finding a policy imports other packages and reads what is installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, cast

from andes_sglang.extensions import check_options, find_class
from andes_sglang.lengths import EngineLengths
from andes_sglang.policy.alise import Alise
from andes_sglang.policy.andes import Andes
from andes_sglang.policy.andes_v1 import AndesV1
from andes_sglang.policy.andes_v2 import AndesV2
from andes_sglang.policy.base import SchedulingPolicy
from andes_sglang.policy.clairvoyant import Clairvoyant
from andes_sglang.policy.fcfs import Fcfs
from andes_sglang.policy.lifo import Lifo
from andes_sglang.policy.lqsf import LeastQoESlackFirst
from andes_sglang.policy.ltr import LearningToRank
from andes_sglang.policy.options import PolicyOptions
from andes_sglang.policy.round_robin import RoundRobin
from andes_sglang.policy.sarathi import Sarathi
from andes_sglang.policy.srpt import Srpt
from andes_sglang.policy.tokenflow import TokenFlow

__all__ = [
    "CLAIRVOYANT",
    "ENTRY_POINTS",
    "POLICIES",
    "PolicyClass",
    "check_policy",
    "effective_options",
    "find_policy",
    "make",
    "make_policy",
]


class PolicyClass(Protocol):
    """What makes a policy: a class with a ``name``, as the metrics say it."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> SchedulingPolicy: ...


ENTRY_POINTS = "andes_sglang.policies"
"""Entry-point group in which an installed package names its policies."""

CLAIRVOYANT: dict[str, PolicyClass] = {policy.name: policy for policy in (Srpt, Clairvoyant)}
"""Those that must be given ``output_tokens``, final lengths by request id: in a simulation only."""

_BUILT_IN: tuple[PolicyClass, ...] = (
    Fcfs, Lifo, RoundRobin, LeastQoESlackFirst, Andes, AndesV1, AndesV2, Sarathi, TokenFlow, Alise, LearningToRank,
)  # fmt: skip

POLICIES: dict[str, PolicyClass] = {policy.name: policy for policy in _BUILT_IN}


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
            raise ValueError(
                f"policy {name!r} must be given the final lengths of answers: it is for simulations in Python only"
            )
        arguments["output_tokens"] = output_tokens
    elif output_tokens is not None:
        raise ValueError(f"policy {name!r} takes no output_tokens; these do: {', '.join(CLAIRVOYANT)}")
    declared = getattr(factory, "options_type", None)
    if declared is None:
        check_options(f"policy {name!r}", factory, options, given="--policy-option {}=VALUE")
    try:
        if declared is not None:
            return factory(declared.from_mapping(options), **arguments)
        return factory(**options, **arguments)
    except ValueError:
        raise
    except Exception as error:  # whatever another package's class raises
        given = f" with {', '.join(f'{option}={value!r}' for option, value in options.items())}" if options else ""
        raise ValueError(f"policy {name!r} cannot be made{given}: {type(error).__name__}: {error}") from error


def check_policy(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise ``ValueError``, as :func:`make_policy` does, for a name or options that it would refuse."""
    make_policy(name, options)


def effective_options(policy: SchedulingPolicy, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options ``given`` to ``policy`` for ``/server_info``, from which another process can make it: by their current
    names, with the values in effect."""
    options = getattr(policy, "options", None)
    if not isinstance(options, PolicyOptions):
        return dict(given)
    current = options.as_dict()
    renamed = {type(options).renamed.get(name, name): value for name, value in given.items()}
    return {name: current.get(name, value) for name, value in renamed.items()}


def make(name: str, **options: Any) -> SchedulingPolicy:
    """:func:`make_policy` with the options, and ``output_tokens``, as keyword arguments."""
    output_tokens = options.pop("output_tokens", None)
    return make_policy(name, options, output_tokens=output_tokens)


def find_policy(name: str) -> PolicyClass:
    """What makes the policy ``name``. Raises ``ValueError`` for one that is unknown, cannot be imported or is no policy."""
    found = find_class(name, {**POLICIES, **CLAIRVOYANT}, ENTRY_POINTS, "policy", unnamed=CLAIRVOYANT)
    if not (inspect.isclass(found) and callable(getattr(found, "decide", None)) and hasattr(found, "name")):
        raise ValueError(f"policy {name!r} is no policy: it needs a class with a name and decide(state)")
    if ":" not in name and found.name != name:
        raise ValueError(f"policy {name!r}: its class has the name {found.name!r}; entry point and class need the same")
    declared = getattr(found, "options_type", PolicyOptions)
    if not (inspect.isclass(declared) and issubclass(declared, PolicyOptions)):
        raise ValueError(f"policy {name!r}: options_type {declared!r} is not derived from PolicyOptions")
    lengths = getattr(found, "answer_lengths", EngineLengths)
    foresees = all(callable(getattr(lengths, method, None)) for method in ("expected_tokens", "learn"))
    if not (inspect.isclass(lengths) and foresees):
        raise ValueError(f"policy {name!r}: answer_lengths {lengths!r} is no class with expected_tokens and learn")
    return cast("PolicyClass", found)
