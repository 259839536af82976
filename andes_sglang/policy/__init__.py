"""Scheduling policies by name. A policy is pure: the same state gives the same decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from andes_sglang.policy.andes import Andes
from andes_sglang.policy.base import SchedulingPolicy
from andes_sglang.policy.fcfs import Fcfs
from andes_sglang.policy.lifo import Lifo
from andes_sglang.policy.lqsf import LeastQoESlackFirst
from andes_sglang.policy.round_robin import RoundRobin

__all__ = ["POLICIES", "SchedulingPolicy", "make"]

POLICIES: dict[str, Callable[..., SchedulingPolicy]] = {
    policy.name: policy for policy in (Fcfs, Lifo, RoundRobin, LeastQoESlackFirst, Andes)
}


def make(name: str, **options: Any) -> SchedulingPolicy:
    """The policy called ``name`` with its options. Raises ``ValueError`` naming an unknown policy or option."""
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(sorted(POLICIES))}")
    try:
        return POLICIES[name](**options)
    except TypeError as error:
        raise ValueError(f"policy {name!r}: {error}") from None
