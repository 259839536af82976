"""How many replicas, and why: :func:`decide` is pure, the same arguments give the same :class:`ScaleDecision`.

Up: to the largest ask, at once (or as fast as ``scaleUp`` allows), but to no more than can be placed. Down: pods that never
served first and all at once; then a quarter of the replicas at a time, after stabilisation, when every signal agrees and
the what-if predicts that the fewer still meet the objectives. Without trustworthy data the scale is held, within the bounds
of the target.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from andes_operator.deadline import Deadlines, book
from andes_operator.memory import QUEUE_LENGTHS, RATE_PERIOD_S, Ask, Memory
from andes_operator.names import ALL_CLASSES, Metric, Mode, Reason
from andes_operator.observe import Observation
from andes_operator.sizing import Headroom
from andes_operator.spec import ClassObjective, Figures, TargetSpec
from andes_operator.whatif import Prediction

__all__ = ["Failure", "ScaleDecision", "blind", "decide", "shortfall", "unmeasured", "unseen"]

MIN_STREAMS = 10
"""Streams; of fewer, one bad stream moves a share by more than the usual distance to its objective."""
FLOOR_GROWTH = 1.25
"""Factor by which the reactive floor raises the replicas each time: a tenth too few is made up in one step, half in four."""

DOWN_STEP = 0.25
"""Share of the replicas, one at least, that one step down removes: one at a time, a fleet of twelve takes five minutes after
a crowd, which costs 8 % (simulated)."""


class Failure(NamedTuple):
    """Why there is no prediction."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    """replicas: to be set (Auto) or recommended (Advisory). message: one sentence for ``kubectl get -o wide``.

    memory: for the next reconcile. attainable: whether ``maxReplicas`` is predicted to meet the objectives; None: nothing is
    predicted. failure: why the what-if could not be asked; None: it was, or did not need to be.
    """

    replicas: int
    reason: Reason
    message: str
    memory: Memory
    attainable: bool | None = None
    failure: Failure | None = None


class Candidate(NamedTuple):
    """A number of replicas that one signal asks for."""

    replicas: int
    reason: Reason
    message: str


def decide(
    spec: TargetSpec,
    seen: Observation,
    predicted: Prediction | None,
    memory: Memory,
    failure: Failure | None = None,
    *,
    headroom: Headroom | None = None,
    cold_s: float = 0.0,
    offline_tps: float | None = None,
    tabulating: bool = False,
) -> ScaleDecision:
    """The next number of replicas.

    cold_s: until a replica that is started now serves. offline_tps: tokens/s of one without readers, by the simulator.
    headroom: what survives until help is there, which is asked for where it is known; else what the what-if finds.
    tabulating: what survives is being worked out; until it is known, no reserve is given away.
    predicted: the what-if for the demand at the time when a pod started now would serve; None: there is none, and then no
    replica is removed. failure: why there is none.
    """
    before_s, memory = memory.at_s, memory.observe(spec, seen)
    memory = book(memory, seen, before_s, offline_tps)
    deadlines = Deadlines(seen, memory, cold_s, offline_tps)
    current, bounded = seen.pods.wanted, spec.clamp(seen.pods.wanted)
    if seen.fault is not None:
        message = f"{seen.fault.message}: held at {bounded}"
        decision = ScaleDecision(bounded, seen.fault.reason, message, memory.distrust())
    elif current == 0 == bounded:
        return replace(_at_zero(spec, seen, predicted, memory, deadlines), failure=failure)
    elif bounded != current:
        bound = "minReplicas" if bounded > current else "maxReplicas"
        message = f"{current} replicas are outside {bound} {bounded}" + (
            f" ({spec.bounds_why})" if spec.bounds_why else ""
        )
        memory = memory.ask(spec.behavior, Ask(seen.now_s, bounded))
        decision = ScaleDecision(bounded, Reason.BOUNDS, message, memory)
    else:
        asks = [_model(spec, seen, predicted, failure, headroom), _reactive_floor(spec, seen, memory)]
        ask = max((ask for ask in asks if ask is not None), key=lambda ask: ask.replicas)
        idle = _is_idle(spec, seen, memory)
        ask, beside = _with_offline(spec, deadlines, ask, idle=idle)
        memory = replace(memory, slack=replace(memory.slack, added=beside))
        decision = _within_bounds(spec, seen, predicted, memory, ask, idle=idle and not beside)
        if tabulating and decision.reason in (Reason.SURPLUS, Reason.NOT_NEEDED):
            message = f"{decision.message}; but what survives a surge is being tabulated"
            decision = ScaleDecision(current, Reason.STABILIZING, message, decision.memory)
    attainable = None if predicted is None or current == 0 else predicted.fewest is not None
    return replace(decision, attainable=attainable, failure=failure)


def shortfall(objectives: tuple[ClassObjective, ...], figures: Figures) -> tuple[ClassObjective, float] | None:
    """The objective that is missed by most, and its value, by what readers got; None where all are met or too few streams
    tell."""
    missed = []
    for objective in objectives:
        value = objective.evaluate(figures)
        if value is not None and not objective.objective.met(value) and objective.sketch(figures).count >= MIN_STREAMS:
            missed.append((objective.objective.margin(value), objective, value))
    if not missed:
        return None
    _, objective, value = min(missed, key=lambda m: m[0])
    return objective, value


def unseen(objectives: tuple[ClassObjective, ...], seen: Observation) -> list[ClassObjective]:
    """The objectives whose class no request of the record has, nor a stream."""
    there = (
        {request.class_name for request in seen.recent if not request.yields} | seen.ended.keys() | seen.running.keys()
    )
    return [o for o in objectives if o.class_name not in there | {ALL_CLASSES}]


def unmeasured(objectives: tuple[ClassObjective, ...], seen: Observation) -> str | None:
    """What is wrong where streams are scored and an objective is about what the gateways do not report; None: nothing is."""
    figures = seen.figures
    lacking = sorted({str(o.metric) for o in objectives if not figures[o.metric]})
    if not figures[Metric.QOE] or not lacking:
        return None
    return (
        f"the gateways report no {' and no '.join(lacking)}: they are of an earlier release, or have just been replaced"
    )


def blind(objectives: tuple[ClassObjective, ...], seen: Observation) -> str | None:
    """What is wrong where requests come and no objective sees any of them: a class may be misspelt. None: nothing is."""
    if all(not seen.figures[o.metric] for o in objectives) and (lacking := unmeasured(objectives, seen)) is not None:
        return lacking
    names, readers = (
        {o.class_name for o in unseen(objectives, seen)},
        {r.class_name for r in seen.recent if not r.yields},
    )
    if not readers or len(names) < len({o.class_name for o in objectives}):
        return None
    there = ", ".join(sorted(readers))
    return (
        f"no request is of class {', '.join(sorted(names))}, which the objectives are about; requests come of {there}"
    )


def _is_idle(spec: TargetSpec, seen: Observation, memory: Memory) -> bool:
    """Whether no reader has been there for so long that the last replica may go."""
    idle_s = seen.now_s - (memory.idle_since_s if memory.idle_since_s is not None else seen.now_s)
    return not seen.open_streams and idle_s >= spec.behavior.idle_s


def _with_offline(spec: TargetSpec, deadlines: Deadlines, ask: Candidate, *, idle: bool) -> tuple[Candidate, int]:
    """``ask``, which is of readers, with the replicas beside it that a deadline takes, and their number. Where there is no
    prediction the readers' own are those that are not there for a deadline."""
    readers = ask.replicas
    if ask.reason is Reason.NO_PREDICTION:
        readers = max(spec.min_replicas, readers - deadlines.memory.slack.added)
    if idle and spec.min_replicas == 0:
        readers = 0
    beside = deadlines.beside(readers)
    wanted = spec.clamp(readers + beside)
    if not beside or wanted <= ask.replicas:
        return ask, beside
    limited = f"; maxReplicas is {wanted}" if wanted < readers + beside else ""
    return Candidate(wanted, Reason.OFFLINE_DEADLINE, deadlines.describe(beside, readers) + limited), beside


def _at_zero(
    spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory, deadlines: Deadlines
) -> ScaleDecision:
    """From no replicas: up when a stream waits, a request came after the last replica went, or a deadline takes it."""
    beside = deadlines.beside(0)
    memory = replace(memory, slack=replace(memory.slack, added=beside))
    gone_s = memory.last_down_s if memory.last_down_s is not None else seen.now_s - spec.behavior.idle_s
    came = seen.last_arrival_s is not None and seen.last_arrival_s > gone_s
    if came or seen.open_streams or seen.waiting:
        wanted = spec.clamp(max(1, (predicted.fewest or spec.max_replicas) if predicted else 1))
        reason, message = Reason.FIRST_REQUEST, "a request has come: back from zero replicas"
    elif beside:
        wanted = spec.clamp(beside)
        reason, message = Reason.OFFLINE_DEADLINE, deadlines.describe(beside, 0)
    else:
        wanted, reason, message = 0, Reason.IDLE, "no requests: no replicas"
    return ScaleDecision(wanted, reason, message, memory.ask(spec.behavior, Ask(seen.now_s, wanted)))


def _within_bounds(
    spec: TargetSpec, seen: Observation, predicted: Prediction | None, memory: Memory, ask: Candidate, *, idle: bool
) -> ScaleDecision:
    """Up on the largest ask that was stable, else down where everything agrees, else stay. ask: the largest; the model's
    where the floor's is equal. idle: nothing needs even the last replica."""
    current, behavior = seen.pods.wanted, spec.behavior
    wish, ask = ask, _placeable(spec, seen, ask)
    memory = memory.ask(behavior, Ask(seen.now_s, ask.replicas))
    stable = memory.lowest_ask(seen.now_s - behavior.up_stabilization_s)
    returned = _return(spec, seen, ask, memory)
    if returned is not None:
        return returned
    if stable > current:
        return _up(spec, seen, ask, stable, memory)
    if ask.replicas > current:
        message = f"{ask.message}; asked for less than {behavior.up_stabilization_s:g} s"
        return ScaleDecision(current, Reason.STABILIZING, message, memory)
    if predicted is None or (ask is not wish and ask.replicas == current):
        return ScaleDecision(current, ask.reason, ask.message, memory)
    return _down(spec, seen, predicted, memory, ask, idle=idle)


def _model(
    spec: TargetSpec,
    seen: Observation,
    predicted: Prediction | None,
    failure: Failure | None,
    headroom: Headroom | None,
) -> Candidate:
    """What survives where that is known; else what the what-if finds."""
    current = seen.pods.wanted
    if headroom is not None:
        model = Candidate(spec.clamp(headroom.replicas), Reason.HEADROOM, str(headroom))
    elif predicted is None:
        why = f" ({failure.message})" if failure else ""
        message = f"there is no prediction{why}: {current} replicas until there is"
        model = Candidate(current, Reason.NO_PREDICTION, message)
    elif predicted.fewest is None:
        values = predicted.describe(spec.max_replicas)
        message = f"{predicted.demand}: even {spec.max_replicas} replicas are predicted to give {values}"
        model = Candidate(spec.max_replicas, Reason.FORECAST, message)
    else:
        fewest = spec.clamp(predicted.fewest)
        message = f"{predicted.demand}: {fewest} replicas are predicted to give {predicted.describe(fewest)}"
        model = Candidate(fewest, Reason.FORECAST, message)
    return model


def _placeable(spec: TargetSpec, seen: Observation, ask: Candidate) -> Candidate:
    """As much of an ask for more as can be had."""
    placeable = seen.pods.placeable
    if placeable is None or ask.replicas <= (most := max(spec.clamp(placeable), seen.pods.ready)):
        return ask
    failure = seen.pods.failures[0]
    message = f"{ask.message}; {most} for now, which is one more than can be had: {failure}"
    return Candidate(most, failure.reason, message)


def _return(spec: TargetSpec, seen: Observation, ask: Candidate, memory: Memory) -> ScaleDecision | None:
    """Give back pods that never served, and all at once: those that fail, and those that start and are not needed any more
    since the stabilisation window began. None where there are none, or where others would be removed before them."""
    current, failing = seen.pods.wanted, min(seen.pods.failing, seen.pods.returnable)
    if seen.pods.existing > current:  # some are already to go
        return None
    needed = max(ask.replicas, spec.min_replicas)
    keep = max(needed, current - failing)
    if keep < current:
        failure = seen.pods.failures[0]
        why = "" if str(failure) in ask.message else f": {failure}"
        return ScaleDecision(keep, failure.reason, f"{ask.message}; {current - keep} given back{why}", memory)
    window_s = spec.behavior.down_stabilization_s
    if memory.since_s is None or seen.now_s - memory.since_s < window_s or blind(spec.objectives, seen):
        return None
    keep = max(needed, memory.highest_ask(seen.now_s - window_s), current - seen.pods.returnable)
    if keep >= current:
        return None
    message = f"{ask.message}; {current - keep} that start are not needed any more"
    return ScaleDecision(keep, Reason.NOT_NEEDED, message, memory)


def _reactive_floor(spec: TargetSpec, seen: Observation, memory: Memory) -> Candidate | None:
    """More than the current replicas, when readers get less than the objectives and no pod is starting; None otherwise. A
    pod that has lost its readiness, or will not come, is none that starts."""
    if seen.pods.starting:
        return None
    current = seen.pods.wanted
    more = spec.clamp(max(current + 1, math.ceil(current * FLOOR_GROWTH)))
    if _queue_grows(seen, memory):
        message = f"{seen.waiting} streams wait for their first token, and their number grows"
        return Candidate(more, Reason.QUEUE_GROWING, message)
    missed = shortfall(spec.objectives, seen.figures)
    settled = memory.settled_s is not None and seen.now_s - memory.settled_s >= spec.behavior.window_s
    if missed and settled:
        objective, value = missed
        return Candidate(more, Reason.QOE_BELOW_TARGET, objective.missed(value))
    return None


def _queue_grows(seen: Observation, memory: Memory) -> bool:
    """Longer at each of the last reconciles, and longer than a stream a replica by as many as there were reconciles."""
    queue = memory.queue
    growing = len(queue) == QUEUE_LENGTHS and all(a < b for a, b in itertools.pairwise(queue))
    return growing and queue[-1] >= seen.pods.ready + QUEUE_LENGTHS


def _up(spec: TargetSpec, seen: Observation, ask: Candidate, stable: int, memory: Memory) -> ScaleDecision:
    """To ``stable`` replicas, or as many of them as the rate limit allows now."""
    current, step = seen.pods.wanted, spec.behavior.up_step
    allowed = stable
    if step is not None:
        allowed = min(stable, current + max(0, step - memory.added(seen.now_s - RATE_PERIOD_S)))
    if allowed == current:
        message = f"{ask.message}; but maxReplicasPerMinute is {step}"
        return ScaleDecision(current, Reason.STABILIZING, message, memory)
    limited = f"; {allowed} now: maxReplicasPerMinute is {step}" if allowed < stable else ""
    return ScaleDecision(allowed, ask.reason, ask.message + limited, memory)


def _down(
    spec: TargetSpec, seen: Observation, predicted: Prediction, memory: Memory, ask: Candidate, *, idle: bool
) -> ScaleDecision:
    """A step fewer, unless something speaks against it."""
    current, behavior = seen.pods.wanted, spec.behavior
    highest = memory.highest_ask(seen.now_s - behavior.down_stabilization_s)
    idle = idle and current == 1
    if current <= spec.min_replicas or (highest >= current and not idle):
        survives = ask.reason is Reason.HEADROOM and ask.replicas == current
        reason = Reason.STEADY if survives or predicted.fewest == current else Reason.STABILIZING
        return ScaleDecision(current, reason, ask.message, memory)
    objection = _objection(spec, seen, memory)
    if objection is not None:
        reason, why = objection
        return ScaleDecision(current, reason, f"{highest} replicas would do, but {why}", memory)
    if current == 1:
        idle_s = seen.now_s - (memory.idle_since_s or seen.now_s)
        return ScaleDecision(0, Reason.IDLE, f"no request for {idle_s:.0f} s", memory)
    step = max(1, int(DOWN_STEP * current))
    fewer = max(1, spec.min_replicas, highest, 1 if spec.mode is Mode.ADVISORY else current - step)
    if not predicted.meets(fewer):
        message = f"{fewer} replicas are predicted to give {predicted.describe(fewer)}: not enough"
        return ScaleDecision(current, Reason.STEADY, message, memory)
    message = f"{predicted.demand}: {fewer} replicas still give {predicted.describe(fewer)}"
    return ScaleDecision(fewer, Reason.SURPLUS, message, memory)


def _objection(spec: TargetSpec, seen: Observation, memory: Memory) -> tuple[Reason, str] | None:
    """Why no replica may be removed now, whatever is predicted; None where one may. (While a queue grows the reactive floor
    asks for more.)"""
    current, behavior = seen.pods.wanted, spec.behavior
    unaimed = blind(spec.objectives, seen)
    if unaimed is not None:
        return Reason.CLASS_UNSEEN, unaimed
    observed_s = 0.0 if memory.since_s is None else seen.now_s - memory.since_s
    wait_s = max(behavior.down_stabilization_s, behavior.idle_s if current == 1 else 0.0) - observed_s
    if wait_s > 0:
        return Reason.STABILIZING, f"data is needed for {wait_s:.0f} s more before a replica is removed"
    if memory.last_down_s is not None and seen.now_s - memory.last_down_s < behavior.down_period_s:
        return Reason.STABILIZING, f"a replica was removed {seen.now_s - memory.last_down_s:.0f} s ago"
    if seen.pods.starting or seen.pods.existing > current:
        return Reason.STABILIZING, "pods are still starting or leaving"
    if seen.pods.unready:
        return Reason.STABILIZING, "a pod has lost its readiness"
    missed = shortfall(spec.objectives, seen.figures)
    if missed:
        return Reason.QOE_BELOW_TARGET, missed[0].missed(missed[1])
    return None
