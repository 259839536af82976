"""The status of a QoETarget in Kubernetes' conventions. Pure: what was observed and decided goes in, the status comes out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from andes_operator.decide import ScaleDecision, blind, shortfall, unmeasured, unseen
from andes_operator.forecast import DemandForecast
from andes_operator.names import Condition, Mode, Reason
from andes_operator.observe import Observation
from andes_operator.sizing import Headroom
from andes_operator.spec import ClassObjective, TargetSpec
from andes_operator.whatif import Prediction

__all__ = ["Finding", "acted_on", "conditions", "invalid_status", "ready", "status", "timestamp", "unix_s"]

Finding = tuple[Condition, bool | None, str, str]
"""Type, whether it holds (None: unknown), reason, message."""

ACTED_ON = (
    "observedGeneration", "operator", "reason", "replicas", "readyReplicas", "startingReplicas", "failingReplicas",
    "recommendedReplicas", "bounds", "paused", "pool", "coldStartSeconds",
)  # fmt: skip
_STATUS = {True: "True", False: "False", None: "Unknown"}
_BAD_IF_TRUE = (Condition.CONFLICT, Condition.ENGINES_FAILING)
_FAILURES = (Reason.PREDICTION_FAILED, Reason.INVALID_SPEC, Reason.NO_POOL)
"""Reasons that make a target not ready, whatever the condition says."""
_UNSEEN = (Reason.CLASS_UNSEEN, Reason.METRIC_UNSEEN)
"""Reasons for which it makes it unknown whether a target is ready."""


def timestamp(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix_s(stamp: str | None) -> float | None:
    """Inverse of :func:`timestamp`; None for what is none."""
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return None


def conditions(
    findings: Sequence[Finding], old: Sequence[Mapping[str, Any]], generation: int, now_s: float
) -> list[dict[str, Any]]:
    """Findings as conditions; ``lastTransitionTime`` moves only when the status does. Other types stay as they are."""
    before = {c["type"]: c for c in old}
    made: dict[str, dict[str, Any]] = {str(c["type"]): dict(c) for c in old}
    for kind, holds, reason, message in findings:
        was = before.get(kind, {})
        same = was.get("status") == _STATUS[holds]
        made[kind] = {
            "type": str(kind),
            "status": _STATUS[holds],
            "reason": str(reason),
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": was["lastTransitionTime"] if same else timestamp(now_s),
        }
    return list(made.values())


def ready(findings: Sequence[Finding]) -> Finding:
    """The summary: False with the first finding that is wrong, in order of severity, else Unknown, else True."""
    for kind, holds, reason, message in findings:
        if holds is (kind in _BAD_IF_TRUE) or reason in _FAILURES:
            return Condition.READY, False, reason, message
    for kind, holds, reason, message in findings:
        if holds is None and (kind in (Condition.TARGET_FOUND, Condition.OBSERVED) or reason in _UNSEEN):
            return Condition.READY, None, reason, message
    return (
        Condition.READY,
        True,
        "AsExpected",
        "data is complete, and the objectives are met or replicas are being added",
    )


def findings(
    spec: TargetSpec, seen: Observation, decision: ScaleDecision, conflict: str | None, classes: Collection[str] = ()
) -> list[Finding]:
    """Of a target whose scale was read, the most severe first. classes: names of the namespace's QoEClasses."""
    return [
        _conflict(spec, conflict),
        (Condition.TARGET_FOUND, True, "Found", f"{spec.ref} has a scale"),
        _observed(seen),
        _engines_failing(seen),
        _schedulable(seen),
        _met(spec, seen, classes),
        _attainable(spec, decision),
    ]


def _conflict(spec: TargetSpec, conflict: str | None) -> Finding:
    if conflict is not None:
        return Condition.CONFLICT, True, "OtherWriter", conflict
    if spec.paused:
        return Condition.CONFLICT, False, Reason.PAUSED, f"{spec.paused}; no scale is written"
    if spec.no_pool:
        return Condition.CONFLICT, False, Reason.NO_POOL, "no QoEPool names it; no scale is written"
    if spec.mode is Mode.ADVISORY:
        return Condition.CONFLICT, False, "Advisory", "mode Advisory writes no scale"
    return Condition.CONFLICT, False, "SoleWriter", f"nothing else scales {spec.ref}"


def _observed(seen: Observation) -> Finding:
    if seen.fault is not None:
        return Condition.OBSERVED, False, seen.fault.reason, seen.fault.message
    return Condition.OBSERVED, True, "Complete", "all gateways have answered"


def _engines_failing(seen: Observation) -> Finding:
    failures = [f for f in seen.pods.failures if f.reason is Reason.ENGINES_FAILING]
    if failures:
        return Condition.ENGINES_FAILING, True, Reason.ENGINES_FAILING, "; ".join(map(str, failures))
    return Condition.ENGINES_FAILING, False, "AsExpected", "all engines are ready or starting"


def _schedulable(seen: Observation) -> Finding:
    failures = [f for f in seen.pods.failures if f.reason is not Reason.ENGINES_FAILING]
    if failures:
        return Condition.SCHEDULABLE, False, failures[0].reason, "; ".join(map(str, failures))
    return Condition.SCHEDULABLE, True, "AsExpected", "all engines have a node, or may get one"


def _met(spec: TargetSpec, seen: Observation, classes: Collection[str]) -> Finding:
    if seen.fault is not None:
        return Condition.MET, None, seen.fault.reason, seen.fault.message
    missed = shortfall(spec.objectives, seen.figures)
    if missed is not None:
        objective, value = missed
        return Condition.MET, False, "BelowTarget", objective.missed(value)
    lacking = unmeasured(spec.objectives, seen)
    if lacking is not None:
        return Condition.MET, None, Reason.METRIC_UNSEEN, lacking
    unaimed = blind(spec.objectives, seen) or _unknown_class(spec, seen, classes)
    if unaimed is not None:
        return Condition.MET, None, Reason.CLASS_UNSEEN, unaimed
    if not any(seen.figures.values()):
        return Condition.MET, None, "NoStreams", "no streams in the window"
    return Condition.MET, True, "Met", "what readers got meets the objectives"


def _unknown_class(spec: TargetSpec, seen: Observation, classes: Collection[str]) -> str | None:
    """What is wrong where requests come, and an objective is about a class that is none of the QoEClasses; None: nothing is,
    or there are none to compare with."""
    names = sorted({o.class_name for o in unseen(spec.objectives, seen)} - set(classes))
    if not (names and classes and seen.recent):
        return None
    return f"no request is of class {', '.join(names)}, and no QoEClass has that name; there are {', '.join(sorted(classes))}"


def _attainable(spec: TargetSpec, decision: ScaleDecision) -> Finding:
    if decision.attainable:
        message = f"at most {spec.max_replicas} replicas are predicted to meet the objectives"
        return Condition.ATTAINABLE, True, "Predicted", message
    if decision.attainable is False:
        return Condition.ATTAINABLE, False, "MaxReplicas", decision.message
    if decision.failure is not None:
        return Condition.ATTAINABLE, None, decision.failure.reason, decision.failure.message
    return Condition.ATTAINABLE, None, Reason.NO_PREDICTION, decision.message


def status(
    spec: TargetSpec,
    seen: Observation,
    decision: ScaleDecision,
    *,
    expected: DemandForecast | None,
    predicted: Prediction | None,
    conflict: str | None,
    cold_start_s: float | None,
    classes: Collection[str] = (),
    operator: str = "",
    model: str | None = None,
    share: float | None = None,
    headroom: Headroom | None = None,
    pool: Mapping[str, Any] | None = None,
    old: Mapping[str, Any],
    generation: int,
) -> dict[str, Any]:
    """The whole status after a reconcile. conflict: message about another writer of the scale. cold_start_s: as learned from
    the pods. classes: names of the namespace's QoEClasses. operator: whose status this is.
    model, share: whose demand this is, and how much of it is this pool's; None: not known. headroom: what
    the replicas survive; None: not known. pool: of a member, what its QoEPool asks for. old: the status before."""
    found = findings(spec, seen, decision, conflict, classes)
    objectives = [_objective(o, i, seen, decision, predicted) for i, o in enumerate(spec.objectives)]
    memory, gpus = decision.memory, spec.gpus_per_replica
    return {
        "observedGeneration": generation,
        "observedAt": timestamp(seen.now_s),
        "operator": operator,
        "summary": summary(spec, seen),
        "reason": str(decision.reason),
        "message": "; ".join(filter(None, (decision.message, spec.paused))),
        "replicas": seen.pods.existing,
        "readyReplicas": seen.pods.ready,
        "startingReplicas": seen.pods.starting,
        "failingReplicas": seen.pods.failing,
        "recommendedReplicas": decision.replicas,
        "bounds": {"minReplicas": spec.min_replicas, "maxReplicas": spec.max_replicas, "why": spec.bounds_why or None},
        "paused": spec.paused or None,
        "demand": _demand(seen, expected, predicted)
        | {"model": model, "share": None if share is None else round(share, 3)},
        "objectives": objectives,
        "headroom": None if headroom is None else _headroom(headroom),
        "timeToBreach": None if headroom is None or headroom.sized.breach_s is None else round(headroom.sized.breach_s),
        "gpuHours": f"{memory.replica_s * gpus / 3600.0:.2f}",
        "gpuHoursSaved": f"{(memory.baseline_s - memory.replica_s) * gpus / 3600.0:.2f}",
        "slack": _slack(seen, decision, gpus),
        "pool": pool,
        "coldStartSeconds": None if cold_start_s is None else round(cold_start_s, 1),
        "memory": memory.to_dict(),
        "conditions": conditions([*found, ready(found)], old.get("conditions") or [], generation, seen.now_s),
    }


def acted_on(status: Mapping[str, Any]) -> dict[str, Any]:
    """What people, alerts and other controllers act on: a status without the figures that change at every reconcile."""
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions") or []}
    return _given({name: status.get(name) for name in ACTED_ON}) | {"conditions": conditions}


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls, which the API server takes for fields that are to go."""
    return {k: _given(v) if isinstance(v, Mapping) else v for k, v in fields.items() if v is not None}


def invalid_status(finding: Finding, old: Mapping[str, Any], generation: int, now_s: float) -> dict[str, Any]:
    """Of a target that cannot be observed: ``finding``, and all else unknown. The fields of the old status that are not here
    stay as they were."""
    _, _, reason, message = finding
    unknown = (
        Condition.OBSERVED, Condition.CONFLICT, Condition.ENGINES_FAILING, Condition.SCHEDULABLE, Condition.MET,
        Condition.ATTAINABLE,
    )  # fmt: skip
    found: list[Finding] = [finding]
    found += [(kind, None, reason, message) for kind in unknown if kind is not finding[0]]
    found.append((Condition.READY, False, reason, message))
    return {
        "observedGeneration": generation,
        "observedAt": timestamp(now_s),
        "reason": str(reason),
        "message": message,
        "conditions": conditions(found, old.get("conditions") or [], generation, now_s),
    }


def _demand(seen: Observation, expected: DemandForecast | None, predicted: Prediction | None) -> dict[str, Any]:
    return {
        "requestsPerSecond": round(seen.rate_rps, 3),
        "expectedRequestsPerSecond": round(expected.rate_rps, 3) if expected else None,
        "loadFactor": round(predicted.load_factor, 2) if predicted else None,
        "horizonSeconds": round(expected.horizon_s, 1) if expected else None,
        "forecast": expected.method if expected else None,
        "openStreams": seen.open_streams,
        "waitingStreams": seen.waiting,
    }


def _slack(seen: Observation, decision: ScaleDecision, gpus: float) -> dict[str, Any]:
    """What readers left over and what was made of it, and what is to be done."""
    slack, work = decision.memory.slack, seen.offline
    return {
        "filled": None if slack.filled is None else f"{100 * slack.filled:.0f} %",
        "gpuHours": f"{slack.worth_s * gpus / 3600.0:.2f}",
        "replicas": slack.added,
        "pendingRequests": work.requests,
        "pendingTokens": round(work.tokens),
        "tokensPerSecond": round(work.tokens_per_s, 1),
        "earliestDeadline": None if work.earliest_s is None else timestamp(work.earliest_s),
    }


def _headroom(headroom: Headroom) -> dict[str, Any]:
    return {
        "surge": round(headroom.times, 2),
        "seconds": round(headroom.sized.horizon_s),
        "replicas": headroom.replicas,
        "busyReplicas": round(headroom.load.base, 2),
        "growth": round(headroom.growth.surge, 2),
        "why": headroom.growth.why,
        "steadyLoad": round(headroom.buffer.rho, 3),
        "bufferSeconds": round(headroom.buffer.seconds),
        "backlogSeconds": round(headroom.load.backlog_s),
    }


def _objective(
    objective: ClassObjective, index: int, seen: Observation, decision: ScaleDecision, predicted: Prediction | None
) -> dict[str, Any]:
    values = predicted.at(decision.replicas) if predicted else None
    current, then = objective.evaluate(seen.figures), values[index] if values else None
    unknown = current is None or seen.fault is not None
    return {
        "class": objective.class_name,
        "metric": str(objective.metric),
        "statistic": str(objective.objective.statistic),
        "at": objective.objective.at,
        "target": objective.value,
        "met": _STATUS[None if unknown or current is None else objective.objective.met(current)],
        "current": None if current is None else round(current, 4),
        "predicted": None if then is None else round(then, 4),
        "streams": objective.sketch(seen.figures).count,
    }


def summary(spec: TargetSpec, seen: Observation) -> str:
    """Observed over objective, of the objective that is missed by most: the column QoE."""
    known = [(o, value) for o in spec.objectives if (value := o.evaluate(seen.figures)) is not None]
    if not known:
        return f"-/{spec.objectives[0].shown_target}"
    worst, value = min(known, key=lambda of: of[0].objective.margin(of[1]))
    return f"{worst.shown(value)}/{worst.shown_target}"
