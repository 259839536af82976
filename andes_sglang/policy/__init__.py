"""Scheduling policies by name. A policy is pure: the same state gives the same decision.

``make_policy("andes", {"horizon_s": 30})`` makes one; docs/policies.md tells how to write one.
"""

from __future__ import annotations

from andes_sglang.policy.base import PolicyError, SchedulingPolicy
from andes_sglang.policy.checked import answer_lengths, ask, try_out
from andes_sglang.policy.options import PolicyOptions, option
from andes_sglang.policy.packer import Displacement, pack
from andes_sglang.policy.registry import (
    CLAIRVOYANT,
    POLICIES,
    check_policy,
    effective_options,
    find_policy,
    make,
    make_policy,
)

__all__ = [
    "CLAIRVOYANT", "POLICIES", "Displacement", "PolicyError", "PolicyOptions", "SchedulingPolicy", "answer_lengths",
    "ask", "check_policy", "effective_options", "find_policy", "make", "make_policy", "option", "pack", "try_out",
]  # fmt: skip
