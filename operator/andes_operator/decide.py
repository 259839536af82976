"""How many replicas, and why. Pure: the same target, observation, prediction and memory give the same decision.

Up on the largest ask at once; down one step at a time, after stabilisation, when every signal agrees and the what-if says
that one fewer would still do. Without trustworthy data the scale is held, within the bounds that the target sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from andes_operator.names import Mode, Reason
from andes_operator.observe import Observation
from andes_operator.spec import Objective, TargetSpec
from andes_operator.whatif import Prediction

__all__ = ["Ask", "Change", "Decision", "Memory", "decide", "shortfall"]

MIN_STREAMS = 10
"""Fewer streams than this say nothing about a fleet's QoE."""
FLOOR_GROWTH = 1.25
"""How much the reactive floor adds at a time."""
TICKS_OF_QUEUE = 3


@dataclass(frozen=True, slots=True)
class Ask:
    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Change:
    at_s: float
    delta: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What a tick leaves for the next; kept in the resource's status, so that a restart continues where it was.

    at_s: of the last tick. since_s: trustworthy data without a gap from then on. settled_s: no pod was starting from then
    on. asks: those that can still matter. changes: of the last minutes, by whomever. queue: streams waiting, last ticks.
    replica_s, baseline_s: replica-seconds that ran, draining ones included, and that the baseline would have run.
    """

    at_s: float | None = None
    replicas: int | None = None
    since_s: float | None = None
    settled_s: float | None = None
    asks: tuple[Ask, ...] = ()
    changes: tuple[Change, ...] = ()
    queue: tuple[int, ...] = ()
    replica_s: float = 0.0
    baseline_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "at": self.at_s,
            "replicas": self.replicas,
            "since": self.since_s,
            "settled": self.settled_s,
            "asks": [{"at": ask.at_s, "replicas": ask.replicas} for ask in self.asks],
            "changes": [{"at": change.at_s, "delta": change.delta} for change in self.changes],
            "queue": list(self.queue),
            "replicaSeconds": self.replica_s,
            "baselineSeconds": self.baseline_s,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Memory:
        """Back from :meth:`to_dict`; nothing remembered where there is nothing. Raises ``ValueError`` where it is not
        one."""
        if not data:
            return cls()
        try:
            return cls(
                at_s=data.get("at"),
                replicas=data.get("replicas"),
                since_s=data.get("since"),
                settled_s=data.get("settled"),
                asks=tuple(Ask(float(a["at"]), int(a["replicas"])) for a in data.get("asks") or ()),
                changes=tuple(Change(float(c["at"]), int(c["delta"])) for c in data.get("changes") or ()),
                queue=tuple(int(n) for n in data.get("queue") or ()),
                replica_s=float(data.get("replicaSeconds") or 0.0),
                baseline_s=float(data.get("baselineSeconds") or 0.0),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"status.memory: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Decision:
    """replicas: to be set (Auto) or recommended (Advisory). attainable: False where even the most replicas would miss the
    objective, None where nothing is predicted. failed: why nothing could be. The message is a sentence for people."""

    replicas: int
    reason: Reason
    message: str
    memory: Memory
    attainable: bool | None = None
    failed: str = ""


def decide(
    spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory, failed: str = ""
) -> Decision:
    """The next number of replicas. predicted: for the demand at the time when a pod started now would serve; None: there
    is no prediction, and then nothing goes; ``failed`` says why where one was asked for."""
    return replace(_decide(spec, seen, predicted, _remember(spec, seen, memory), failed), failed=failed)


def _decide(spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory, failed: str) -> Decision:
    current = seen.pods.wanted
    bounded = spec.clamp(current)
    attainable = None if predicted is None or current == 0 else predicted.least is not None

    def say(replicas: int, reason: Reason, message: str, *, asked: int | None = None) -> Decision:
        kept = memory if asked is None else _ask(spec, memory, Ask(seen.now_s, asked))
        return Decision(replicas, reason, message, kept, attainable)

    if seen.fault is not None:
        held = replace(memory, since_s=None, queue=())
        message = f"{seen.fault.message}: held at {bounded}"
        return Decision(bounded, seen.fault.reason, message, held, attainable)
    if current == 0 and bounded == 0:
        return _from_zero(spec, seen, predicted, memory)
    if bounded != current:
        bound = "minReplicas" if bounded > current else "maxReplicas"
        return say(bounded, Reason.BOUNDS, f"{current} replicas are outside {bound} {bounded}", asked=bounded)

    ask, reason, message = _largest_ask(spec, seen, predicted, memory, failed)
    memory = _ask(spec, memory, Ask(seen.now_s, ask))
    lowest = min(a.replicas for a in memory.asks if a.at_s >= seen.now_s - spec.behavior.up_stabilization_s)
    if lowest > current:
        allowed = _rate_limited(spec, seen, memory, lowest)
        if allowed > current:
            short = f"; {allowed} for now, at most {spec.behavior.up_step} more a minute" if allowed < ask else ""
            return say(allowed, reason, message + short)
        return say(current, Reason.STABILIZING, f"{message}; but {spec.behavior.up_step} more a minute is the limit")
    if ask > current:
        return say(
            current, Reason.STABILIZING, f"{message}; not yet for the {spec.behavior.up_stabilization_s:g} s set"
        )
    return _downwards(spec, seen, predicted, memory, say_steady=message)


def shortfall(spec: TargetSpec, seen: Observation) -> tuple[Objective, float] | None:
    """The objective that is missed by most, and its value, over the streams that ended in the window and the open ones;
    None where all are met or too few streams tell."""
    qoe = seen.qoe
    missed = []
    for objective in spec.objectives:
        value = objective.among(qoe)
        if value is not None and value < objective.value and _streams(objective, seen) >= MIN_STREAMS:
            missed.append((value - objective.value, objective, value))
    if not missed:
        return None
    _, objective, value = min(missed, key=lambda m: m[0])
    return objective, value


def _streams(objective: Objective, seen: Observation) -> int:
    return sum(sketch.count for name, sketch in seen.qoe.items() if objective.class_name in ("*", name))


def _largest_ask(
    spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory, failed: str
) -> tuple[int, Reason, str]:
    """The what-if's ask against the reactive floor's."""
    current = seen.pods.wanted
    if predicted is None:
        why = f" ({failed})" if failed else ""
        model = (current, Reason.NO_PREDICTION, f"there is no prediction{why}: {current} replicas until there is")
    elif predicted.least is None:
        model = (
            spec.max_replicas, Reason.FORECAST,
            f"{predicted.demand}: even {spec.max_replicas} replicas are predicted to give "
            f"{predicted.sentence(spec.max_replicas)}",
        )  # fmt: skip
    else:
        least = spec.clamp(predicted.least)
        model = (
            least, Reason.FORECAST if least > current else Reason.STEADY,
            f"{predicted.demand}: {least} replicas are predicted to give "
            f"{predicted.sentence(least)}",
        )  # fmt: skip
    floor = _floor(spec, seen, memory)
    return max(model, floor, key=lambda ask: ask[0]) if floor else model


def _floor(spec: TargetSpec, seen: Observation, memory: Memory) -> tuple[int, Reason, str] | None:
    """More than there is, when what is seen is worse than what was predicted and no help is on its way."""
    if seen.pods.starting:
        return None
    current = seen.pods.wanted
    more = spec.clamp(max(current + 1, math.ceil(current * FLOOR_GROWTH)))
    if _queue_grows(seen, memory):
        return more, Reason.QUEUE_GROWING, f"{seen.waiting} streams wait for their first token, and they grow"
    missed = shortfall(spec, seen)
    settled = memory.settled_s is not None and seen.now_s - memory.settled_s >= spec.behavior.window_s
    if missed and settled:
        objective, value = missed
        return more, Reason.QOE_BELOW_TARGET, f"the {objective} is {value:.3f}, below {objective.value:g}"
    return None


def _queue_grows(seen: Observation, memory: Memory) -> bool:
    queue = memory.queue
    rising = len(queue) == TICKS_OF_QUEUE and all(a < b for a, b in itertools.pairwise(queue))
    return rising and queue[-1] >= seen.pods.ready + TICKS_OF_QUEUE


def _from_zero(spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory) -> Decision:
    gone_s = max((c.at_s for c in memory.changes if c.delta < 0), default=seen.now_s - spec.behavior.idle_s)
    if seen.open_streams or seen.waiting or seen.now_s - seen.idle_s > gone_s:
        wanted = spec.clamp(max(1, (predicted.least or spec.max_replicas) if predicted else 1))
        memory = _ask(spec, memory, Ask(seen.now_s, wanted))
        return Decision(wanted, Reason.FIRST_REQUEST, "a request has come: back from zero replicas", memory)
    return Decision(0, Reason.IDLE, "nobody asks: no replicas", _ask(spec, memory, Ask(seen.now_s, 0)))


def _downwards(
    spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory, say_steady: str
) -> Decision:
    """One fewer, where every signal agrees."""
    current, behavior = seen.pods.wanted, spec.behavior
    attainable = None if predicted is None else predicted.least is not None

    def stay(reason: Reason, message: str) -> Decision:
        return Decision(current, reason, message, memory, attainable)

    highest = max(a.replicas for a in memory.asks if a.at_s >= seen.now_s - behavior.down_stabilization_s)
    idle = spec.min_replicas == 0 and not seen.open_streams and seen.idle_s >= behavior.idle_s
    if predicted is None:
        return stay(Reason.NO_PREDICTION, say_steady)
    if current <= spec.min_replicas or (highest >= current and not (idle and current == 1)):
        return stay(Reason.STEADY if predicted.least == current else Reason.STABILIZING, say_steady)
    observed_s = 0.0 if memory.since_s is None else seen.now_s - memory.since_s
    wait_s = max(behavior.down_stabilization_s, behavior.idle_s if current == 1 else 0.0) - observed_s
    last_down_s = max((c.at_s for c in memory.changes if c.delta < 0), default=-math.inf)
    missed = shortfall(spec, seen)
    if wait_s > 0:
        return stay(Reason.STABILIZING, f"{highest} would do; {wait_s:.0f} s more of data before anything goes")
    if seen.now_s - last_down_s < behavior.down_period_s:
        return stay(Reason.STABILIZING, f"{highest} would do; one went {seen.now_s - last_down_s:.0f} s ago")
    if seen.pods.starting or seen.pods.there > current:
        return stay(Reason.STABILIZING, f"{highest} would do; pods are still starting or going")
    if missed:
        return stay(Reason.QOE_BELOW_TARGET, f"{highest} would do, but the {missed[0]} is {missed[1]:.3f}")
    if _queue_grows(seen, memory):
        return stay(Reason.QUEUE_GROWING, f"{highest} would do, but {seen.waiting} streams wait and they grow")
    if current == 1:
        return Decision(0, Reason.IDLE, f"nobody has asked for {seen.idle_s:.0f} s", memory, attainable)
    fewer = max(1, spec.min_replicas, current - 1 if spec.mode is Mode.AUTO else highest)
    if not predicted.meets(fewer):
        return stay(Reason.STEADY, f"{fewer} replicas are predicted to give {predicted.sentence(fewer)}: not enough")
    message = f"{predicted.demand}: {fewer} replicas still give {predicted.sentence(fewer)}"
    return Decision(fewer, Reason.SURPLUS, message, memory, attainable)


def _remember(spec: TargetSpec, seen: Observation, memory: Memory) -> Memory:
    """The memory with this tick's observation in it."""
    now_s, wanted = seen.now_s, seen.pods.wanted
    elapsed_s = 0.0 if memory.at_s is None else max(0.0, now_s - memory.at_s)
    moved = memory.replicas is not None and wanted != memory.replicas
    changes = tuple(c for c in memory.changes if c.at_s >= now_s - max(60.0, spec.behavior.down_period_s))
    last_down = [c for c in memory.changes if c.delta < 0][-1:]
    if moved:
        changes += (Change(now_s, wanted - (memory.replicas or 0)),)
    elif wanted == 0 and not changes:
        changes = tuple(last_down)  # what came after it is what wakes us
    settled_s = None if seen.pods.starting else (memory.settled_s if memory.settled_s is not None else now_s)
    return replace(
        memory,
        at_s=now_s,
        replicas=wanted,
        since_s=memory.since_s if memory.since_s is not None else now_s,
        settled_s=settled_s,
        changes=changes,
        queue=(seen.waiting,) if moved else (*memory.queue, seen.waiting)[-TICKS_OF_QUEUE:],
        replica_s=memory.replica_s + elapsed_s * (seen.pods.there + seen.pods.going),
        baseline_s=memory.baseline_s + elapsed_s * spec.baseline_replicas,
    )


def _ask(spec: TargetSpec, memory: Memory, ask: Ask) -> Memory:
    """Add an ask, keep those that can still be the highest or lowest of their window: each later one dominated is gone."""
    behavior = spec.behavior
    kept: list[Ask] = [ask]
    high = low = ask.replicas
    for old in reversed(memory.asks):
        highest = old.replicas > high and old.at_s >= ask.at_s - behavior.down_stabilization_s
        lowest = old.replicas < low and old.at_s >= ask.at_s - behavior.up_stabilization_s
        if highest or lowest:
            kept.append(old)
            high, low = max(high, old.replicas), min(low, old.replicas)
    return replace(memory, asks=tuple(reversed(kept)))


def _rate_limited(spec: TargetSpec, seen: Observation, memory: Memory, wanted: int) -> int:
    if spec.behavior.up_step is None:
        return wanted
    added = sum(c.delta for c in memory.changes if c.delta > 0 and c.at_s > seen.now_s - 60.0)
    return min(wanted, seen.pods.wanted + max(0, spec.behavior.up_step - added))
