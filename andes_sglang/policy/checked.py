"""The decision of a policy that is not ours, checked: what it gets wrong is said in one sentence that names the policy.

Our own are not looked at: :class:`andes_sglang.conformance.PolicyConformance` holds them to more than is checked here, and
a check costs time at every iteration of an engine. A live engine passes over names that it does not know; a simulation
says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from andes_sglang.latency import LatencyModel
from andes_sglang.lengths import AnswerLengths, Asked, EngineLengths
from andes_sglang.policy.base import PolicyError, SchedulingPolicy
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import (
    Decision,
    Phase,
    Preemption,
    PreemptionMode,
    RequestTable,
    RequestView,
    SchedulerState,
)

__all__ = ["answer_lengths", "ask", "try_out"]

OWN = "andes_sglang."
PREEMPTIBLE_PHASES = {
    PreemptionMode.PARK: (Phase.RUNNING,),
    PreemptionMode.RELEASE: (Phase.RUNNING, Phase.PARKED),
    PreemptionMode.OFFLOAD: (Phase.RUNNING, Phase.PARKED),
}


def ask(policy: SchedulingPolicy, state: SchedulerState) -> Decision:
    """``policy.decide(state)``. Raises :class:`PolicyError` where the policy is another package's and raises, returns no
    :class:`~andes_sglang.state.Decision`, or one that names what is not there or cannot be done."""
    if type(policy).__module__.startswith(OWN):
        return policy.decide(state)
    try:
        decision: object = policy.decide(state)
    except Exception as error:  # whatever another package's code raises
        raise PolicyError(f"policy {policy.name!r}: decide(state) raised {_place(error)}") from error
    if not isinstance(decision, Decision):
        raise _wrong(policy, f"returned {_shown(decision)}")
    if fault := _fault(decision, state.requests):
        raise _wrong(policy, fault)
    return decision


def try_out(policy: SchedulingPolicy) -> None:
    """Ask once, with one request that waits and one that runs, before anything is served. Raises :class:`PolicyError`, for
    one of our own too: its options may not fit together."""
    views = [
        RequestView("probe-waiting", Phase.WAITING, 0.0, ReaderStream(0.0, QoETarget()), 100),
        RequestView("probe-running", Phase.RUNNING, 0.0, ReaderStream(0.0, QoETarget()), 100, 10, kv_tokens=110),
    ]
    state = SchedulerState(10.0, RequestTable.of(views), kv_capacity_tokens=4096, max_running=1, latency=LatencyModel())
    try:
        answer_lengths(policy).expected_tokens(Asked(100))
        ask(policy, state)
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(f"policy {policy.name!r}: decide(state) raised {_place(error)}") from error


def answer_lengths(policy: SchedulingPolicy) -> AnswerLengths:
    """What foresees the lengths of answers on an engine under ``policy``, which has learned nothing yet. Raises
    :class:`PolicyError`, as what is returned does, where it is another package's and raises or says no length."""
    made: type[AnswerLengths] = getattr(policy, "answer_lengths", EngineLengths)
    return made() if made.__module__.startswith(OWN) else _TheirLengths(policy.name, made)


class _TheirLengths:
    """Those of another package's class ``made``."""

    def __init__(self, policy_name: str, made: type[AnswerLengths]) -> None:
        self._policy_name = policy_name
        self._lengths: AnswerLengths = self._call("answer_lengths()", made)

    def expected_tokens(self, asked: Asked) -> float:
        told: Any = self._call("expected_tokens(asked)", self._lengths.expected_tokens, asked)
        if not (isinstance(told, int | float | np.number) and 0 < float(told) < math.inf):
            raise PolicyError(
                f"policy {self._policy_name!r}: its expected_tokens(asked) returned {_shown(told)}; it must return a number "
                "of tokens > 0"
            )
        return float(told)

    def learn(self, asked: Asked, output_tokens: int, *, finished: bool) -> None:
        self._call("learn(asked, ...)", self._lengths.learn, asked, output_tokens, finished=finished)

    def _call(self, what: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        try:
            return call(*given, **named)
        except Exception as error:  # whatever another package's code raises
            raise PolicyError(f"policy {self._policy_name!r}: its {what} raised {_place(error)}") from error


def _wrong(policy: SchedulingPolicy, what: str) -> PolicyError:
    return PolicyError(
        f"policy {policy.name!r}: decide(state) {what}; it must return an andes_sglang.state.Decision: admit (requests that "
        "wait) and resume (parked ones) are tuples of request ids, preempt is a tuple of Preemption, and each request is "
        "named once (docs/policies.md)"
    )


def _fault(decision: Decision, t: RequestTable) -> str | None:
    """What is wrong with ``decision``; None: nothing that can be seen without carrying it out."""
    return _wrong_type(decision) or _wrong_name(decision, t)


def _wrong_type(decision: Decision) -> str | None:
    for name, kind in (("admit", str), ("resume", str), ("preempt", Preemption)):
        named = getattr(decision, name)
        if not isinstance(named, list | tuple):
            return f"returned {name}={_shown(named)}"
        if other := [entry for entry in named if not isinstance(entry, kind)]:
            return f"returned {name} with {_shown(other[0])} in it, not a {kind.__name__}"
    if other := [p.mode for p in decision.preempt if not isinstance(p.mode, PreemptionMode)]:
        return f"returned preempt with mode {_shown(other[0])}, not a PreemptionMode"
    return None


def _wrong_name(decision: Decision, t: RequestTable) -> str | None:
    row = {rid: k for k, rid in enumerate(t.rids)}
    seen: set[str] = set()
    for name, rid, phases in _wishes(decision):
        if rid not in row:
            return f"named the request {rid!r} in {name}, which is not in state.requests.rids"
        if rid in seen:
            return f"named the request {rid!r} twice"
        seen.add(rid)
        if t.phase[row[rid]] not in phases:
            return f"named the request {rid!r} in {name}, which is {Phase(int(t.phase[row[rid]])).name}"
        if name == "preempt" and not t.preemptible[row[rid]]:
            return f"named the request {rid!r} in preempt, which is not preemptible"
    return None


def _wishes(decision: Decision) -> Iterator[tuple[str, str, tuple[Phase, ...]]]:
    """Where each request is named, and the phases in which it can be."""
    yield from (("admit", rid, (Phase.WAITING,)) for rid in decision.admit)
    yield from (("resume", rid, (Phase.PARKED,)) for rid in decision.resume)
    yield from (("preempt", p.rid, PREEMPTIBLE_PHASES[p.mode]) for p in decision.preempt)


def _shown(value: Any) -> str:
    """A value with its type, short enough for a line."""
    text = repr(value)
    return text if value is None else f"{text[:60]}{'...' * (len(text) > 60)} (a {type(value).__name__})"


def _place(error: Exception) -> str:
    """What was raised, and the line of the policy that did."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return what if last is None else f"{what} ({last.tb_frame.f_code.co_filename}, line {last.tb_lineno})"
