"""Pods as supply: what serves, what comes, and what will not come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from cases import SPEC, Run, pod, predicted, scores, seen

from andes_operator.decide import ScaleDecision, decide
from andes_operator.memory import Memory
from andes_operator.names import Reason
from andes_operator.observe import PodCounts, PodFailure
from andes_operator.supply import ColdStarts, Patience, count_pods, is_leaving, is_ready, was_ready
from andes_operator.victims import deletion_costs, victims

NINE_S = 1_795_251_600.0  # 2026-11-21 09:00:00 UTC
NO_GPU = "0/6 nodes are available: 6 Insufficient nvidia.com/gpu."
NO_CLAIM = 'persistentvolumeclaim "weights" not found'


def stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unplaced(number: int, words: str = NO_GPU, made_s: float = NINE_S, **more: Any) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words,
                 "lastTransitionTime": stamp(made_s)}  # fmt: skip
    metadata = {"name": f"pending-{number}", "uid": f"pending-{number}", "creationTimestamp": stamp(made_s), **more}
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Pending", "conditions": [condition]}}


def placed(
    number: int, *, ready: bool = True, changed_s: float = NINE_S + 40.0, made_s: float = NINE_S,
    state: dict[str, Any] | None = None, restarts: int = 0, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """On a node since ``made_s``; its readiness changed at ``changed_s``."""
    at = stamp(made_s)
    container = {"name": "engine", "state": state or {"running": {}}, "restartCount": restarts,
                 "lastState": {"terminated": {"exitCode": 137}} if restarts else {}}  # fmt: skip
    return {
        "metadata": {"name": f"engine-{number}", "uid": f"engine-{number}", "creationTimestamp": at, **more},
        "spec": {"nodeName": "node"},
        "status": {
            "phase": "Running", "podIP": f"10.0.0.{number}", "startTime": at, "containerStatuses": [container],
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at},
                           {"type": "Ready", "status": str(ready), "lastTransitionTime": stamp(changed_s)}],
        },
    }  # fmt: skip


def failing(number: int, reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    waiting = {"waiting": {"reason": reason, "message": message}}
    return placed(number, ready=False, changed_s=NINE_S, state=waiting, **more)


def count(pods: list[dict[str, Any]], wanted: int, after_s: float, kind: str = "Deployment", **more: Any) -> PodCounts:
    order = victims(kind, pods, deletion_costs(pods, {}), len(pods))
    return count_pods(pods, wanted, order, now_s=NINE_S + after_s, **more)


def fates(pods: list[dict[str, Any]], wanted: int, fewest: int, after_s: float, **more: Any) -> ScaleDecision:
    """What is decided where the what-if asks for ``fewest``."""
    counts = count(pods, wanted, after_s)
    fields = {name: getattr(counts, name) for name in ("unready", "unscheduled", "returnable", "failures")}
    look = seen(NINE_S + after_s, wanted, existing=counts.existing, ready=counts.ready, pods=fields, **more)
    return decide(SPEC, look, predicted(fewest), Memory())


# Pods that will not come


def test_what_cannot_be_placed_is_no_supply_and_given_back_at_once_but_for_one() -> None:
    """Six GPUs, ten asked for, four Unschedulable."""
    pods = [*(placed(i) for i in range(6)), *(unplaced(i) for i in range(4))]
    early, late = count(pods, 10, 600.0), count(pods, 10, 900.0)
    assert (early.starting, early.failures, early.unscheduled, early.holding) == (4, (), 4, 6)
    assert late.failures == (PodFailure(Reason.UNSCHEDULABLE, 4, NO_GPU),)
    assert (late.starting, late.failing, late.placeable, late.returnable) == (0, 4, 7, 4)
    decision = fates(pods, 10, 10, 900.0)
    assert (decision.replicas, decision.reason) == (7, Reason.UNSCHEDULABLE)
    assert NO_GPU in decision.message
    rest = fates(pods[:7], 7, 10, 915.0)
    assert (rest.replicas, rest.reason) == (7, Reason.UNSCHEDULABLE), "one more waits for room, and says so"
    assert fates(pods[:6], 6, 10, 915.0).replicas == 10, "there is room again"


def test_what_fails_does_not_freeze_the_way_down() -> None:
    pods = [*(placed(i) for i in range(6)), unplaced(0)]
    assert fates(pods, 7, 3, 900.0).replicas == 6, "the one that never served first"
    run = Run(6)
    stuck = {"pods": {"failures": (PodFailure(Reason.ENGINES_FAILING, 1, "CrashLoopBackOff"),)}}
    assert min(run.for_s(1200, predicted(3), ready=5, **stuck)) < 6


@pytest.mark.parametrize(
    ("pods", "reason", "words"),
    [
        ([failing(8, "CrashLoopBackOff", "back-off 5m0s restarting failed container"), failing(9, "CrashLoopBackOff")],
         Reason.ENGINES_FAILING, "CrashLoopBackOff: back-off 5m0s"),
        ([failing(8, "ImagePullBackOff", 'Back-off pulling image "engine:1"')], Reason.ENGINES_FAILING, "ImagePullBackOff"),
        ([failing(8, "CreateContainerConfigError", 'secret "token" not found')], Reason.ENGINES_FAILING, 'secret "token"'),
        ([placed(8, ready=False, changed_s=NINE_S, restarts=3)], Reason.ENGINES_FAILING, "restarted 3 times, exit code 137"),
        ([unplaced(8, NO_CLAIM)], Reason.UNSCHEDULABLE, NO_CLAIM),
    ],
)  # fmt: skip
def test_why_an_engine_fails_is_said_in_the_kubelets_and_schedulers_words(
    pods: list[dict[str, Any]], reason: Reason, words: str
) -> None:
    counts = count([placed(1), *pods], 1 + len(pods), 900.0)
    assert [f.reason for f in counts.failures] == [reason]
    assert counts.failing == len(pods)
    assert words in str(counts.failures[0])


def test_pods_that_are_never_created_are_missing() -> None:
    """A quota: the ReplicaSet may make six pods of ten."""
    pods = [placed(i) for i in range(6)]
    assert count(pods, 10, 900.0, short_since_s=NINE_S + 1.0).failures == ()
    counts = count(pods, 10, 900.0, short_since_s=NINE_S)
    assert (counts.failing, counts.failures[0].reason, counts.starting) == (4, Reason.NOT_CREATED, 0)
    assert (counts.placeable, counts.returnable, counts.holding) == (7, 4, 6)
    memory = Memory().observe(SPEC, seen(NINE_S, 10, existing=6))
    assert memory.observe(SPEC, seen(NINE_S + 15, 10, existing=6)).short_since_s == NINE_S
    assert memory.observe(SPEC, seen(NINE_S + 15, 10)).short_since_s is None


def test_a_pod_that_says_nothing_has_longer() -> None:
    quiet = [placed(1), placed(2, ready=False, changed_s=NINE_S)]
    assert count(quiet, 2, 1000.0).failing == 0
    assert count(quiet, 2, 3000.0).failures == (PodFailure(Reason.ENGINES_FAILING, 1, "not ready after 3000 s"),)
    pulling = [placed(1), failing(2, "ContainerCreating")]
    assert count(pulling, 2, 1000.0).failing == 0


def test_how_long_a_pod_may_take_is_a_multiple_of_the_cold_start() -> None:
    assert Patience.of(5.0, 40.0) == (15.0, 50.0), "as the target says"
    assert Patience.of(None, 40.0) == (300.0, 600.0), "what was learned begins when there is a node"
    assert Patience.of(None, 200.0) == (600.0, 2000.0)
    assert Patience.of(None, None) == Patience() == (900.0, 3000.0)
    late = placed(2, ready=False, changed_s=NINE_S + 800.0, made_s=NINE_S + 800.0)
    late["metadata"]["creationTimestamp"] = stamp(NINE_S)
    late["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ErrImagePull"}}
    assert count([placed(1), late], 2, 1000.0).failing == 0, "it counts from when it got a node"


def test_while_a_change_is_rolled_out_nothing_is_given_back() -> None:
    """A Deployment would take engines of the old template, which serve, in proportion."""
    old = [placed(i, labels={"pod-template-hash": "old"}) for i in range(8)]
    new = [failing(10 + i, "CrashLoopBackOff", labels={"pod-template-hash": "new"}) for i in range(2)]
    counts = count([*old, *new], 10, 900.0)
    assert (counts.failing, counts.returnable) == (2, 0)
    assert fates([*old, *new], 10, 10, 900.0).replicas == 10


def test_an_ordered_kind_gives_back_only_what_it_would_remove() -> None:
    first_fails = [failing(0, "CrashLoopBackOff"), placed(1), placed(2)]
    assert count(first_fails, 3, 900.0, kind="StatefulSet").returnable == 0
    last_fails = [placed(0), placed(1), failing(2, "CrashLoopBackOff")]
    assert count(last_fails, 3, 900.0, kind="StatefulSet").returnable == 1


def test_starting_pods_go_before_they_are_ready_once_they_are_not_needed() -> None:
    run = Run(4)
    run.for_s(330, predicted(4))
    assert run.step(predicted(9)).replicas == 9
    starting: dict[str, Any] = {"ready": 4, "pods": {"returnable": 5}}
    assert set(run.for_s(300, predicted(5), **starting)) == {9}, "not before the stabilisation window is over"
    decision = run.step(predicted(5), **starting)
    assert (decision.replicas, decision.reason) == (5, Reason.NOT_NEEDED)
    fresh = Run(9)
    assert fresh.step(predicted(5), **starting).replicas == 9, "nothing is known of what was asked before"


def test_gpu_hours_are_of_what_holds_a_gpu() -> None:
    memory = Memory().observe(SPEC, seen(NINE_S, 10))
    pods = [*(placed(i) for i in range(6)), *(unplaced(i) for i in range(4))]
    leaving = placed(7, deletionTimestamp=stamp(NINE_S))
    counts = count([*pods, leaving], 10, 10.0)
    fields = {"unscheduled": counts.unscheduled, "terminating": counts.terminating}
    assert memory.observe(SPEC, seen(NINE_S + 10, 10, pods=fields)).replica_s == 70.0


# Readiness that comes and goes


def test_one_unready_pod_does_not_switch_the_floor_off() -> None:
    lost = placed(3, ready=False, changed_s=NINE_S + 500.0)
    pods = [placed(1), placed(2), lost]
    counts = count(pods, 3, 520.0)
    assert (counts.ready, counts.unready, counts.starting, counts.failing, counts.returnable) == (2, 1, 0, 0, 0)
    run = Run(3)
    bad: dict[str, Any] = {"ended": scores(*[1.0] * 20, *[0.3] * 10), "ready": 2, "pods": {"unready": 1}}
    assert run.for_s(150, predicted(3), **bad)[-1] == 4, "after a window, as with all pods ready"


def test_while_a_pod_is_unready_none_is_removed() -> None:
    run = Run(4)
    assert set(run.for_s(600, predicted(2), ready=3, pods={"unready": 1})) == {4}


def test_a_pod_that_was_ready_and_will_not_be_again_fails_too() -> None:
    lost = failing(3, "CrashLoopBackOff")
    lost["status"]["conditions"][1]["lastTransitionTime"] = stamp(NINE_S + 5000.0)
    assert was_ready(lost)
    assert count([placed(1), lost], 2, 5100.0).unready == 1
    assert count([placed(1), lost], 2, 5900.0).failing == 1


# Cold starts


def test_flapping_readiness_teaches_no_cold_start() -> None:
    starts = ColdStarts()
    starts.observe([placed(1, ready=False, changed_s=NINE_S)])
    starts.observe([placed(1)])
    assert starts.seconds == 40.0
    starts.observe([placed(1, ready=False, changed_s=NINE_S + 9e4)])
    starts.observe([placed(1, changed_s=NINE_S + 2e5)])
    assert starts.seconds == 40.0
    restarted = ColdStarts(known_s=40.0)
    restarted.observe([placed(1, ready=False, changed_s=NINE_S + 9e4)])
    restarted.observe([placed(1, changed_s=NINE_S + 3000.0)])
    assert restarted.seconds == 40.0, "its first readiness was before this operator"


def test_what_was_ready_before_the_first_look_is_a_guess_and_bounded() -> None:
    starts = ColdStarts()
    starts.observe([placed(1, changed_s=NINE_S + 2e5)])
    assert starts.seconds is None, "two days are no cold start"
    starts.observe([placed(2, changed_s=NINE_S + 3000.0), placed(3, changed_s=NINE_S + 90.0)])
    assert starts.seconds == 90.0
    starts.observe([placed(4, ready=False, changed_s=NINE_S)])
    starts.observe([placed(4, changed_s=NINE_S + 70.0)])
    assert starts.seconds == 70.0, "what was seen goes before the guess"


def test_a_cold_start_is_the_median_of_the_last_ten_that_were_seen() -> None:
    starts = ColdStarts(known_s=500.0)
    for i in range(20):
        starts.observe([placed(i, ready=False, changed_s=NINE_S)])
        starts.observe([placed(i, changed_s=NINE_S + (50 if i < 10 else 30))])
    assert starts.seconds == 30.0
    starts.observe([])
    assert starts.seconds == 30.0, "pods that have gone still count"


def test_a_cold_start_begins_when_there_is_a_node_and_a_restart_teaches_none() -> None:
    starts = ColdStarts()
    waited = placed(1)
    waited["metadata"]["creationTimestamp"] = stamp(NINE_S - 3000.0)
    restarted = placed(2, restarts=2, changed_s=NINE_S + 1900)
    before = [placed(i, ready=False, changed_s=NINE_S) for i in (1, 2, 3)]
    starts.observe(before)
    starts.observe([waited, restarted, placed(3, changed_s=NINE_S - 3.0)])
    assert starts.seconds == 20.0, "the median of 40 and, by the clocks of two machines, 0"


# Rules at their bounds


def test_pending_pods_are_supply_on_its_way_and_leaving_ones_are_none() -> None:
    ended = pod("d", "10.0.0.4")
    ended["status"]["phase"] = "Failed"
    leaving = pod("c", "10.0.0.3", deletionTimestamp="2026-11-21T09:00:00Z")
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False), leaving, ended]
    assert count_pods(pods, 3) == PodCounts(3, 2, 1, terminating=1, returnable=1)
    assert count_pods(pods, 3).starting == 2


def test_a_terminating_or_ended_pod_is_not_ready() -> None:
    assert is_ready(pod("a"))
    assert not is_ready(pod("a", ready=False))
    assert not is_ready(pod("a", deletionTimestamp="2026-11-21T09:00:00Z"))
    for phase in ("Succeeded", "Failed"):
        ended = pod("a", deletionTimestamp="2026-11-21T09:00:00Z")
        ended["status"]["phase"] = phase
        assert is_leaving(ended)
        assert count_pods([ended], 0) == PodCounts(0, 0, 0, terminating=0)
    assert not is_ready({"metadata": {"name": "new"}})
    assert count_pods([{"metadata": {"name": "new"}}], 1) == PodCounts(1, 1, 0, unscheduled=1)
