"""The status as Kubernetes does it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_decide import SPEC, Run, predicted, scores, seen

from andes_operator.decide import decide
from andes_operator.forecast import DemandForecast
from andes_operator.memory import Memory
from andes_operator.names import Condition, Reason
from andes_operator.observe import DataFault, Observation
from andes_operator.status import conditions, status, timestamp

NOW_S = 1_795_251_720.0


def made(look: Observation, conflict: str | None = None, old: dict[str, object] | None = None) -> dict[str, object]:
    prediction = predicted(2)
    decision = decide(SPEC, look, prediction, Memory())
    return status(SPEC, look, decision, DemandForecast(6.0, 75.0, "trend"), prediction, conflict, 60.0, old or {}, 3)


def by_type(of: dict[str, object]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in of["conditions"]}  # type: ignore[attr-defined]


def test_all_is_well() -> None:
    look = seen(NOW_S, 2, ended=scores(*[1.0] * 20))
    found = made(look)
    assert by_type(found) == {
        "Conflict": ("False", "SoleWriter"), "TargetFound": ("True", "Found"), "DataAvailable": ("True", "Complete"),
        "ObjectiveMet": ("True", "Met"), "Attainable": ("True", "Predicted"), "Ready": ("True", "AsExpected"),
    }  # fmt: skip
    assert (found["observedGeneration"], found["summary"], found["recommendedReplicas"]) == (3, "1.000/0.95", 2)
    assert found["objectives"] == [
        {"class": "*", "statistic": "ShareAbove", "target": 0.95, "current": 1.0, "predicted": 1.0, "streams": 20}
    ]
    assert found["demand"]["forecast"] == "trend"  # type: ignore[index]


@pytest.mark.parametrize(
    ("more", "conflict", "ready"),
    [
        ({"fault": DataFault(Reason.DATA_STALE, "old")}, None, ("False", "DataStale")),
        ({"ended": scores(*[0.1] * 20)}, None, ("False", "BelowTarget")),
        ({}, "an HPA scales it too", ("False", "OtherWriter")),
        ({"fault": DataFault(Reason.DATA_STALE, "old")}, "an HPA", ("False", "OtherWriter")),
    ],
)  # fmt: skip
def test_ready_says_the_gravest(more: dict[str, object], conflict: str | None, ready: tuple[str, str]) -> None:
    found = by_type(made(seen(NOW_S, 2, **more), conflict))  # type: ignore[arg-type]
    assert found["Ready"] == ready
    if "fault" in more:
        assert found["ObjectiveMet"] == ("Unknown", "DataStale")


def test_what_even_the_most_replicas_cannot_do_is_said() -> None:
    look = seen(NOW_S, 2, ended=scores(*[1.0] * 20))
    decision = decide(SPEC, look, predicted(None), Memory())
    found = by_type(status(SPEC, look, decision, None, predicted(None), None, None, {}, 1))
    assert found["Attainable"] == ("False", "MaxReplicas")
    assert found["Ready"] == ("False", "MaxReplicas")


def test_what_cannot_be_predicted_is_not_ready() -> None:
    look = seen(NOW_S, 2, ended=scores(*[1.0] * 20))
    decision = decide(SPEC, look, None, Memory(), "profile 'abacus': not known")
    found = status(SPEC, look, decision, None, None, None, None, {}, 1)
    assert by_type(found)["Attainable"] == ("Unknown", "PredictionFailed")
    assert by_type(found)["Ready"] == ("False", "PredictionFailed")
    assert "profile 'abacus': not known" in str(found["message"])


def test_the_time_of_transition_moves_only_with_the_status() -> None:
    first = conditions([(Condition.READY, True, "A", "a")], [], 1, NOW_S)
    second = conditions([(Condition.READY, True, "B", "b")], first, 2, NOW_S + 60)
    third = conditions([(Condition.READY, False, "C", "c")], second, 3, NOW_S + 120)
    assert [c[0]["lastTransitionTime"] for c in (first, second, third)] == [
        timestamp(NOW_S), timestamp(NOW_S), timestamp(NOW_S + 120)]  # fmt: skip
    assert second[0]["reason"] == "B"
    others = [{"type": "Others", "status": "True", "lastTransitionTime": "x", "reason": "y"}]
    assert conditions([(Condition.READY, True, "A", "a")], others, 1, NOW_S)[0] == others[0]


def test_gpu_hours_and_what_was_saved() -> None:
    run = Run(6)
    run.for_s(3600 + 15, predicted(6))
    spec = replace(SPEC, gpus_per_replica=4.0)
    look = seen(run.now_s, 6)
    decision = decide(spec, look, predicted(6), run.memory)
    found = status(spec, look, decision, None, None, None, None, {}, 1)
    assert (found["gpuHours"], found["gpuHoursSaved"]) == ("24.00", "56.00")
