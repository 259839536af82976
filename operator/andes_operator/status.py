"""The status of a QoETarget, as Kubernetes does it. Pure: what was seen and decided goes in, the status comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from andes_operator.decide import Decision, shortfall
from andes_operator.forecast import Forecast
from andes_operator.names import ALL_CLASSES, Condition, Mode, Reason
from andes_operator.observe import Observation
from andes_operator.spec import Objective, TargetSpec
from andes_operator.whatif import Prediction

__all__ = ["Finding", "conditions", "ready", "status", "timestamp"]

Finding = tuple[Condition, bool | None, str, str]
"""Type, whether it is so (None: unknown), reason, message."""

_HELD = (Reason.DATA_MISSING, Reason.DATA_STALE, Reason.DATA_CONTRADICTORY)
_STATUS = {True: "True", False: "False", None: "Unknown"}


def timestamp(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def conditions(
    findings: Sequence[Finding], old: Sequence[Mapping[str, Any]], generation: int, now_s: float
) -> list[dict[str, Any]]:
    """Findings as conditions; the time of transition moves only when the status does. Others' conditions stay."""
    before = {c["type"]: c for c in old}
    made: dict[str, dict[str, Any]] = {str(c["type"]): dict(c) for c in old}
    for kind, is_so, reason, message in findings:
        was = before.get(kind, {})
        same = was.get("status") == _STATUS[is_so]
        made[kind] = {
            "type": str(kind),
            "status": _STATUS[is_so],
            "reason": str(reason),
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": was["lastTransitionTime"] if same else timestamp(now_s),
        }
    return list(made.values())


def ready(findings: Sequence[Finding]) -> Finding:
    """The summary: True when all is well, else what is wrong, the gravest first."""
    for kind, is_so, reason, message in findings:
        failed = is_so is False or reason == Reason.PREDICTION_FAILED
        if (is_so is True) if kind is Condition.CONFLICT else failed:
            return Condition.READY, False, reason, message
    for kind, is_so, reason, message in findings:
        if is_so is None and kind in (Condition.TARGET_FOUND, Condition.OBSERVED):
            return Condition.READY, None, reason, message
    return Condition.READY, True, "AsExpected", "data is at hand and the objectives are met or being worked on"


def findings(spec: TargetSpec, seen: Observation, decision: Decision, conflict: str | None) -> list[Finding]:
    """What is so with a target whose scale was read."""
    missed = shortfall(spec, seen)
    fault = seen.fault
    met: Finding
    if fault is not None:
        met = (Condition.MET, None, fault.reason, fault.message)
    elif missed is not None:
        objective, value = missed
        met = (Condition.MET, False, "BelowTarget", f"the {objective} is {value:.3f}, below {objective.value:g}")
    elif not seen.qoe:
        met = (Condition.MET, None, "NoStreams", "nobody has read anything in the window")
    else:
        met = (Condition.MET, True, "Met", "what readers get is what the objectives ask for")
    attainable: Finding = {
        True: (Condition.ATTAINABLE, True, "Predicted", f"at most {spec.max_replicas} replicas are predicted to do"),
        False: (Condition.ATTAINABLE, False, "MaxReplicas", decision.message),
        None: (Condition.ATTAINABLE, None, Reason.PREDICTION_FAILED, decision.failed) if decision.failed
        else (Condition.ATTAINABLE, None, Reason.NO_PREDICTION, decision.message),
    }[decision.attainable]  # fmt: skip
    alone = ("SoleWriter", "nobody else scales this") if spec.mode is Mode.AUTO else ("Advisory", "it writes nothing")
    writer: Finding = (Condition.CONFLICT, conflict is not None, *(("OtherWriter", conflict) if conflict else alone))
    return [
        writer,
        (Condition.TARGET_FOUND, True, "Found", f"{spec.ref} has a scale"),
        (Condition.OBSERVED, fault is None, fault.reason if fault else "Complete",
         fault.message if fault else "all gateways have answered"),
        met,
        attainable,
    ]  # fmt: skip


def status(
    spec: TargetSpec,
    seen: Observation,
    decision: Decision,
    expected: Forecast | None,
    predicted: Prediction | None,
    conflict: str | None,
    cold_start_s: float | None,
    old: Mapping[str, Any],
    generation: int,
) -> dict[str, Any]:
    """The whole status after a tick."""
    found = findings(spec, seen, decision, conflict)
    found.append(ready(found))
    objectives = [_objective(o, i, seen, decision, predicted) for i, o in enumerate(spec.objectives)]
    memory = decision.memory
    gpu_hours = memory.replica_s * spec.gpus_per_replica / 3600.0
    saved = (memory.baseline_s - memory.replica_s) * spec.gpus_per_replica / 3600.0
    return {
        "observedGeneration": generation,
        "observedAt": timestamp(seen.now_s),
        "summary": summary(objectives),
        "reason": str(decision.reason),
        "message": decision.message,
        "replicas": seen.pods.there,
        "readyReplicas": seen.pods.ready,
        "recommendedReplicas": decision.replicas,
        "demand": {
            "requestsPerSecond": round(seen.rate_rps, 3),
            "expectedRequestsPerSecond": round(expected.rate_rps, 3) if expected else None,
            "loadFactor": round(predicted.load_factor, 2) if predicted else None,
            "horizonSeconds": round(expected.horizon_s, 1) if expected else None,
            "forecast": expected.method if expected else None,
            "openStreams": seen.open_streams,
            "waitingStreams": seen.waiting,
        },
        "objectives": objectives,
        "gpuHours": f"{gpu_hours:.2f}",
        "gpuHoursSaved": f"{saved:.2f}",
        "coldStartSeconds": None if cold_start_s is None else round(cold_start_s, 1),
        "memory": memory.to_dict(),
        "conditions": conditions(found, old.get("conditions") or [], generation, seen.now_s),
    }


def _objective(
    objective: Objective, index: int, seen: Observation, decision: Decision, predicted: Prediction | None
) -> dict[str, Any]:
    qoe = seen.qoe
    values = predicted.at(decision.replicas) if predicted else None
    current, then = objective.among(qoe), values[index] if values else None
    streams = sum(s.count for name, s in qoe.items() if objective.class_name in (ALL_CLASSES, name))
    return {
        "class": objective.class_name,
        "statistic": str(objective.statistic),
        "target": objective.value,
        "current": None if current is None else round(current, 4),
        "predicted": None if then is None else round(then, 4),
        "streams": streams,
    }


def summary(objectives: Sequence[Mapping[str, Any]]) -> str:
    """For the column: what readers get over what they should, of the objective that is furthest behind."""
    known = [o for o in objectives if o["current"] is not None]
    if not known:
        return f"-/{objectives[0]['target']:g}"
    worst = min(known, key=lambda o: o["current"] - o["target"])
    return f"{worst['current']:.3f}/{worst['target']:g}"
