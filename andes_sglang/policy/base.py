"""The one interface of every policy, and the rules that all of them keep.

A policy never exceeds the KV pool or the batch bound, decides the same from the same state, leaves no room idle that
a waiting request could use, and starves no request without bound unless its documentation says so.
:class:`andes_sglang.conformance.PolicyConformance` tests these.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from andes_sglang.state import Decision, SchedulerState

__all__ = ["PolicyError", "SchedulingPolicy"]


class PolicyError(RuntimeError):
    """A policy that raised, decided what cannot be, or left the engine idle; the text names the policy and what to do."""


@runtime_checkable
class SchedulingPolicy(Protocol):
    """``decide`` is pure: no clock, no randomness, no memory between calls other than the policy's configuration.

    Attributes that a class may have besides: ``options_type``, its :class:`~andes_sglang.policy.options.PolicyOptions`: it is
    then made with one as its only argument; ``uses_weight``: of two requests alike it serves the heavier first;
    ``may_starve``: it may let a request wait without bound; ``may_hold_back``: it may keep the batch smaller than the room;
    ``mixed_chunk``: it needs an engine with mixed chunked prefill; ``answer_lengths``, a class: how the engine foresees the
    lengths of answers that it shows in ``expected_tokens``, an :class:`~andes_sglang.lengths.AnswerLengths`.
    """

    name: str

    def decide(self, state: SchedulerState) -> Decision:
        """What to preempt, resume and admit before the next iteration."""
        ...
