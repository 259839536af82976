"""Scheduling policies by name. A policy is pure: the same state gives the same decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from andes_sglang.policy.andes import Andes
from andes_sglang.policy.andes_v1 import AndesV1
from andes_sglang.policy.andes_v2 import AndesV2
from andes_sglang.policy.base import SchedulingPolicy
from andes_sglang.policy.clairvoyant import Clairvoyant
from andes_sglang.policy.fcfs import Fcfs
from andes_sglang.policy.lifo import Lifo
from andes_sglang.policy.lqsf import LeastQoESlackFirst
from andes_sglang.policy.round_robin import RoundRobin
from andes_sglang.policy.sarathi import Sarathi
from andes_sglang.policy.srpt import Srpt
from andes_sglang.policy.tokenflow import TokenFlow

__all__ = ["CLAIRVOYANT", "POLICIES", "SchedulingPolicy", "make"]

CLAIRVOYANT: dict[str, Callable[..., SchedulingPolicy]] = {policy.name: policy for policy in (Srpt, Clairvoyant)}
"""Those that must be told ``output_tokens``, final lengths by request id: in a simulation only."""

POLICIES: dict[str, Callable[..., SchedulingPolicy]] = {
    policy.name: policy
    for policy in (Fcfs, Lifo, RoundRobin, LeastQoESlackFirst, Andes, AndesV1, AndesV2, Sarathi, TokenFlow)
}


def make(name: str, **options: Any) -> SchedulingPolicy:
    """The policy called ``name`` with its options. Raises ``ValueError`` naming an unknown policy or option."""
    factory = POLICIES.get(name) or CLAIRVOYANT.get(name)
    if factory is None:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(sorted({**POLICIES, **CLAIRVOYANT}))}")
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(f"policy {name!r}: {error}") from None
