"""The one interface of every policy, and the rules that all of them keep.

A policy never exceeds the KV pool or the batch bound, decides the same from the same state, leaves no room idle that
a waiting request could use, and starves nobody without bound unless its documentation says so.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from andes_sglang.state import Decision, SchedulerState

__all__ = ["SchedulingPolicy"]


@runtime_checkable
class SchedulingPolicy(Protocol):
    """``decide`` is pure: no clock, no randomness, no memory between calls other than the policy's configuration."""

    name: str

    def decide(self, state: SchedulerState) -> Decision:
        """What to preempt, resume and admit before the next iteration."""
        ...
