"""Work without a reader: in no signal of readers, no replica before its deadline takes one, and what the slack was worth."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import plane
import pytest
from cases import SPEC, predicted, request_at, seen

from andes_operator.decide import ScaleDecision, decide
from andes_operator.demand import expected_demand
from andes_operator.gateway_report import FleetReplica, GatewayReport, ObservedRequest
from andes_operator.gateways import Gateways
from andes_operator.memory import Memory
from andes_operator.names import Reason
from andes_operator.observe import DataFault, PodCounts, merge
from andes_operator.offline import MARGIN, OfflineWork, PendingBatch, Slack, replicas_for
from andes_operator.pool import part
from andes_operator.prediction import offline_tps
from andes_operator.spec import TargetSpec
from andes_operator.status import status, timestamp
from andes_sglang.sketch import Sketch

NOW_S, HOUR_S, COLD_S, TICK_S = 1_000_000.0, 3600.0, 120.0, 15.0
TPS = 1000.0
"""Of a replica without readers."""


def needed(*work: tuple[float, float], slack_tps: float = 0.0, added: int = 0, cold_s: float = COLD_S) -> int:
    """work: hours to the deadline, and hours of a replica that it takes with the margin."""
    batches = [PendingBatch(NOW_S + hours * HOUR_S, took * HOUR_S * TPS / (1 + MARGIN), 1) for hours, took in work]
    return replicas_for(batches, NOW_S, slack_tps, TPS, cold_s=cold_s, added=added)


def test_what_the_slack_does_in_time_takes_no_replica() -> None:
    assert needed((10.0, 9.9), slack_tps=TPS) == 0
    assert needed((10.0, 5.0), (20.0, 19.0), slack_tps=TPS) == 0
    assert needed() == 0


@pytest.mark.parametrize(
    ("hours", "replicas"), [(20.0, 0), (4.0, 0), (3.4, 0), (3.3, 1), (3.0, 1), (1.6, 1), (1.57, 2), (1.03, 3)]
)
def test_a_replica_is_added_at_the_last_moment_and_then_as_many_as_it_takes(hours: float, replicas: int) -> None:
    assert needed((hours, 3.0), cold_s=0.0) == replicas


def test_all_deadlines_count_and_those_before_them() -> None:
    assert needed((1.0, 2.0), (10.0, 2.0)) == 2
    assert needed((1.0, 0.5), (2.0, 3.5)) == 2, "four hours' work until the second"


def test_what_was_added_stays_to_the_end_and_no_longer() -> None:
    assert needed((10.0, 3.0), added=0) == 0
    assert needed((10.0, 3.0), added=1) == 1, "no cold start is paid twice"
    assert needed((10.0, 3.0), added=4) == 1
    assert needed((10.0, 12.0), added=1) == 1, "two hours of another's ten: that one begins later"
    assert needed((10.0, 19.5), added=1) == 2
    assert needed((0.01, 0.001), added=2) == 1
    assert needed((10.0, 3.0), added=2, slack_tps=TPS) == 0


def test_a_replica_that_would_come_too_late_is_not_started() -> None:
    late = COLD_S / HOUR_S
    assert needed((late, 5.0)) == 0
    assert needed((late, 5.0), added=2) == 2
    assert needed((-1.0, 5.0)) == 0
    assert needed((1.0, 0.95), cold_s=0.0) == 1
    assert needed((1.0, 0.5), cold_s=0.45 * HOUR_S) == 1, "the cold start is of the time that is left"


def offline(*batches: PendingBatch, tps: float = 0.0, measured_s: float = 300.0) -> OfflineWork:
    return OfflineWork(batches, tps, measured_s)


class Fleet:
    """Replicas of which readers need ``readers``, and leave over ``slack_tps`` on each; a batch due in ``hours`` that takes
    ``took`` replica-hours."""

    def __init__(self, spec: TargetSpec, readers: int, slack_tps: float, hours: float, took: float) -> None:
        self.spec, self.readers, self.slack_tps = spec, readers, slack_tps
        self.now_s, self.deadline_s = NOW_S, NOW_S + hours * HOUR_S
        self.left = took * HOUR_S * TPS
        self.memory, self.replicas = Memory(), readers
        self.starting: list[float] = []
        self.extra_s = 0.0
        self.first_s: float | None = None
        self.rate_tps = 0.0

    def step(self) -> ScaleDecision:
        self.now_s += TICK_S
        self.starting = [at_s for at_s in self.starting if at_s > self.now_s]
        ready = self.replicas - len(self.starting)
        extra = max(0, ready - self.readers)
        tps = min(ready, self.readers) * self.slack_tps + extra * TPS
        self.left = max(0.0, self.left - tps * TICK_S)
        self.extra_s += TICK_S * max(0, self.replicas - self.readers)
        self.rate_tps += 0.05 * (tps - self.rate_tps)  # as measured over five minutes
        measured_s = min(300.0, self.now_s - NOW_S) if self.replicas else 0.0
        batches = (PendingBatch(self.deadline_s, self.left, 1),) if self.left else ()
        work = offline(*batches, tps=self.rate_tps, measured_s=measured_s)
        idle: dict[str, Any] = {} if self.readers else {"open_streams": 0, "recent": (), "rate_rps": 0.0}
        look = seen(self.now_s, self.replicas, ready=ready, offline=work, **idle)
        made = decide(
            self.spec, look, predicted(max(1, self.readers)), self.memory, cold_s=COLD_S, offline_tps=TPS / 0.8
        )
        self.memory = Memory.from_dict(json.loads(json.dumps(made.memory.to_dict())))
        if made.replicas > self.replicas and self.first_s is None:
            self.first_s = self.now_s
        self.starting += [self.now_s + COLD_S] * (made.replicas - self.replicas)
        self.starting = self.starting[: max(0, made.replicas)]
        self.replicas = made.replicas
        return made

    def run(self) -> list[Reason]:
        reasons = []
        while self.now_s < self.deadline_s and self.left:
            reasons.append(self.step().reason)
        return reasons


@pytest.mark.parametrize(
    ("readers", "slack_tps", "hours", "took"),
    [
        (4, 200.0, 8.0, 5.0),
        (4, 200.0, 8.0, 8.0),
        (4, 200.0, 8.0, 20.0),
        (2, 0.0, 6.0, 4.0),
        (0, 0.0, 6.0, 2.0),
        (0, 0.0, 2.0, 6.0),
    ],
)
def test_a_deadline_is_made_with_about_the_replica_hours_that_it_takes(
    readers: int, slack_tps: float, hours: float, took: float
) -> None:
    fleet = Fleet(replace(SPEC, min_replicas=0, max_replicas=20), readers, slack_tps, hours, took)
    reasons = fleet.run()
    assert not fleet.left, "made"
    beyond_s = max(0.0, took - readers * slack_tps / TPS * hours) * HOUR_S
    if not beyond_s:
        assert fleet.extra_s == 0.0
        assert Reason.OFFLINE_DEADLINE not in reasons
        return
    assert Reason.OFFLINE_DEADLINE in reasons
    most_s = (1.35 if readers else 1.25) * took * HOUR_S - readers * slack_tps / TPS * hours * HOUR_S + 10 * COLD_S
    assert beyond_s * 0.8 <= fleet.extra_s <= most_s
    if beyond_s < 0.7 * hours * HOUR_S:  # less than one replica's time: it is begun late
        assert fleet.first_s is not None
        assert fleet.first_s - NOW_S > 0.15 * hours * HOUR_S


def test_what_readers_ask_for_goes_before_and_pods_go_whatever_batches_they_run() -> None:
    far = offline(PendingBatch(NOW_S + 20 * HOUR_S, HOUR_S * TPS, 9), tps=6 * 300.0)
    memory = Memory(since_s=NOW_S - 900, settled_s=NOW_S - 900, at_s=NOW_S - 15, replicas=6)
    for work in (OfflineWork(), far):
        made = decide(SPEC, seen(NOW_S, 6, offline=work), predicted(3), memory, cold_s=COLD_S, offline_tps=TPS)
        assert (made.replicas, made.reason) == (5, Reason.SURPLUS)
    near = offline(PendingBatch(NOW_S + HOUR_S, 10 * HOUR_S * TPS, 9), tps=6 * 300.0)
    made = decide(SPEC, seen(NOW_S, 6, offline=near), predicted(3), memory, cold_s=COLD_S, offline_tps=TPS / 0.8)
    assert made.reason is Reason.OFFLINE_DEADLINE
    assert (
        made.message == "batches of 3.6e+07 tokens, the first due in 3600 s, take 10 replicas beside the 3 of readers"
    )
    few = decide(replace(SPEC, max_replicas=8), seen(NOW_S, 6, offline=near), predicted(3), memory, cold_s=COLD_S)
    assert few.message.endswith("; maxReplicas is 8")
    assert decide(SPEC, seen(NOW_S, 6, offline=near), predicted(19), memory, cold_s=COLD_S).replicas == 20


def test_until_the_slack_is_measured_a_far_deadline_waits() -> None:
    batch = PendingBatch(NOW_S + 10 * HOUR_S, 30 * HOUR_S * TPS, 9)
    for measured_s, more in ((60.0, False), (300.0, True)):
        work = offline(batch, measured_s=measured_s)
        made = decide(SPEC, seen(NOW_S, 3, offline=work), predicted(3), Memory(), cold_s=COLD_S, offline_tps=TPS)
        assert (made.replicas > 3) is more


def test_without_a_prediction_nothing_is_added_twice() -> None:
    work = offline(PendingBatch(NOW_S + HOUR_S, 2.0 * HOUR_S * TPS / 1.1, 9))
    memory = Memory(slack=Slack(added=2, replica_tps=TPS))
    for _ in range(3):
        made = decide(SPEC, seen(NOW_S, 5, ready=3, offline=work), None, memory, cold_s=COLD_S, offline_tps=TPS / 0.8)
        memory = made.memory
        assert (made.replicas, memory.slack.added) == (5, 2)


def test_the_slack_is_booked_and_told() -> None:
    memory = Memory(at_s=NOW_S - 100.0, replicas=4)
    memory = replace(memory, ledger=replace(memory.ledger, work_s=0.5))
    work = offline(PendingBatch(NOW_S + HOUR_S, 5e5, 7), PendingBatch(NOW_S + 60, 1e5, 2), tps=600.0)
    look = seen(NOW_S, 4, rate_rps=4.0, offline=work)
    made = decide(SPEC, look, predicted(4), memory, cold_s=COLD_S, offline_tps=TPS / 0.8)
    slack = made.memory.slack
    assert (slack.filled_s, slack.idle_s) == pytest.approx((100.0 * 600.0 / 1000.0, 100.0 * (4 - 4.0 * 0.5)))
    told = _status(look, made, replace(SPEC, gpus_per_replica=8.0))["slack"]
    assert told == {
        "filled": "30 %", "gpuHours": f"{60.0 * 8 / 3600:.2f}", "replicas": slack.added, "pendingRequests": 9,
        "pendingTokens": 600_000, "tokensPerSecond": 600.0, "earliestDeadline": timestamp(NOW_S + 60),
    }  # fmt: skip
    nothing = decide(SPEC, seen(NOW_S, 4), predicted(4), Memory())
    assert _status(seen(NOW_S, 4), nothing, SPEC)["slack"] == {
        "filled": None, "gpuHours": "0.00", "replicas": 0, "pendingRequests": 0, "pendingTokens": 0, "tokensPerSecond": 0.0,
        "earliestDeadline": None,
    }  # fmt: skip


@pytest.mark.parametrize("reason", [Reason.DATA_MISSING, Reason.DATA_STALE, Reason.DATA_CONTRADICTORY])
def test_nothing_is_booked_of_data_that_may_be_wrong(reason: Reason) -> None:
    """Neither what was filled nor the rate of a replica; what comes after the fault counts from its end."""
    before = Memory(at_s=NOW_S - 100.0, replicas=4, slack=Slack(50.0, 20.0, 20.0, replica_tps=TPS))
    before = replace(before, ledger=replace(before.ledger, work_s=0.5))
    work = offline(PendingBatch(NOW_S + HOUR_S, 5e5, 7), tps=9e6)
    look = seen(NOW_S, 4, rate_rps=4.0, offline=work, fault=DataFault(reason, "gateway b did not answer"))
    held = decide(SPEC, look, predicted(4), before, cold_s=COLD_S).memory
    assert held.slack == before.slack
    look = seen(NOW_S + 10.0, 4, rate_rps=4.0, offline=replace(work, tokens_per_s=600.0))
    slack = decide(SPEC, look, predicted(4), held, cold_s=COLD_S).memory.slack
    assert slack.worth_s - before.slack.worth_s == pytest.approx(10.0 * 600.0 / 1000.0, rel=1e-3)


def _status(look: Any, made: ScaleDecision, spec: TargetSpec) -> dict[str, Any]:
    return status(
        spec, look, made, expected=None, predicted=None, conflict=None, cold_start_s=None, old={}, generation=1
    )


def test_a_replica_does_as_much_as_it_was_seen_to_or_as_the_simulator_says() -> None:
    slack = Slack()
    assert (slack.rate_tps(None), slack.rate_tps(1000.0)) == (500.0, 800.0)
    batch = PendingBatch(NOW_S, 1.0, 1)
    slack = slack.enter(offline(batch, tps=4000.0, measured_s=60.0), 10.0, 2, None, None)
    assert slack.replica_tps is None, "not believed yet"
    slack = slack.enter(offline(batch, tps=4000.0), 10.0, 2, None, None)
    assert slack.rate_tps(1000.0) == 2000.0
    slack = slack.enter(offline(batch, tps=100.0), 86_400.0, 2, None, None)
    assert slack.rate_tps(None) == pytest.approx(2000.0 / 2.718, rel=1e-3), "it fades in a day"
    assert Slack.from_dict(slack.to_dict()).added == 0


def test_the_simulator_knows_what_a_replica_of_the_profile_does() -> None:
    tps = offline_tps(SPEC, seen(NOW_S, 1, offline=offline(PendingBatch(NOW_S, 600_000.0, 1000))))
    assert tps is not None
    assert 2_000 < tps < 50_000, "8B on an H100, 300 tokens in and out"
    assert offline_tps(SPEC, seen(NOW_S, 1)) is None
    assert (
        offline_tps(replace(SPEC, profile="none"), seen(NOW_S, 1, offline=offline(PendingBatch(NOW_S, 1.0, 1)))) is None
    )


# In no signal of readers


def report(**more: Any) -> GatewayReport:
    given: dict[str, Any] = {"ended": {}, "running": {}, "requests": (), "replicas": ()}
    return GatewayReport("a", NOW_S, NOW_S, NOW_S - 600, **{**given, **more})


def test_offline_work_is_in_no_signal_of_readers() -> None:
    """Whatever of it the engines hold, the operator sees the same readers."""
    readers = tuple(ObservedRequest(NOW_S - 60 + i, "reading", 100, 50, True) for i in range(30))
    engines = tuple(FleetReplica(f"10.0.0.{i}:80", True, False, 3, 1, 0, requests=3, offline=0) for i in range(2))
    bad = Sketch()
    bad.add(0.0)
    flex = tuple(ObservedRequest(NOW_S - 30 + i, "offline", 900, 900, False, yields=True) for i in range(20))
    busy = tuple(replace(e, offline=40, requests=43) for e in engines)
    alone = merge([report(requests=readers, replicas=engines)], PodCounts(2, 2, 2), NOW_S, 120.0)
    beside = merge(
        [report(requests=readers + flex, replicas=busy, ended={"offline": bad}, running={"offline": bad})],
        PodCounts(2, 2, 2), NOW_S, 120.0,
    )  # fmt: skip
    for name in (
        "rate_rps",
        "open_streams",
        "engine_requests",
        "waiting",
        "reader_arrivals_s",
        "figures",
        "fault",
        "streams_by_replica",
    ):
        assert getattr(alone, name) == getattr(beside, name), name
    asked = [expected_demand(SPEC, look, 4.0, {}, seed=1) for look in (alone, beside)]
    assert asked[0] == asked[1]


def test_requests_that_yield_at_another_gateway_are_none_of_a_stranger() -> None:
    one = report(replicas=(FleetReplica("10.0.0.1:80", True, False, 0, 0, 0, offline=30),))
    other = report(replicas=(FleetReplica("10.0.0.1:80", True, False, 0, 0, 30, offline=0),))
    assert merge([one, other], PodCounts(1, 1, 1), NOW_S, 120.0).fault is None


def test_gateways_without_batches_say_nothing_and_others_are_added_up() -> None:
    demand, qoe = {"now_s": NOW_S, "records": []}, {"now_s": NOW_S, "classes": {}, "running": {}}

    def parse(batches: Any) -> GatewayReport:
        return GatewayReport.parse(
            "a", demand, qoe, {"replicas": []}, since_s=NOW_S - 600, received_s=NOW_S, batches=batches
        )

    assert parse(None).offline == OfflineWork()
    said = {"batches": [{"deadline_s": 5.0, "tokens": 100, "requests": 2, "id": "b", "models": ["m"], "running": 1}],
            "done": {"m": {"tokens": 7, "tokens_per_s": 2.5, "measured_s": 60.0}}}  # fmt: skip
    told = parse(said)
    assert told.offline == OfflineWork((PendingBatch(5.0, 100.0, 2),), 2.5, 60.0)
    both = merge([told, told], PodCounts(1, 1, 0), NOW_S, 120.0).offline
    assert (both.tokens, both.requests, both.tokens_per_s, both.earliest_s) == (200.0, 4, 5.0, 5.0)
    (half,) = part([told], frozenset(), 0.5)
    assert (half.offline.tokens, half.offline.tokens_per_s) == (50.0, 1.25)
    with pytest.raises(ValueError, match="gateway a: expected a number >= 0"):
        parse({**said, "batches": [{"deadline_s": -1, "tokens": 1, "requests": 1}]})


def test_a_request_that_waits_brings_a_fleet_back_from_zero_and_a_far_batch_does_not() -> None:
    spec = replace(SPEC, min_replicas=0)
    quiet: dict[str, Any] = {"recent": (), "open_streams": 0, "rate_rps": 0.0}
    far = offline(PendingBatch(NOW_S + 9 * HOUR_S, HOUR_S * TPS, 5))
    assert (
        decide(spec, seen(NOW_S, 0, offline=far, **quiet), None, Memory(), cold_s=COLD_S, offline_tps=TPS).replicas == 0
    )
    flex = replace(request_at(NOW_S - 1), class_name="offline", yields=True)
    assert decide(spec, seen(NOW_S, 0, **{**quiet, "recent": (flex,)}), None, Memory()).reason is Reason.FIRST_REQUEST
    due = offline(PendingBatch(NOW_S + HOUR_S, 1.8 * HOUR_S * TPS, 5))
    made = decide(spec, seen(NOW_S, 0, offline=due, **quiet), None, Memory(), cold_s=COLD_S, offline_tps=TPS / 0.8)
    assert (made.replicas, made.reason, made.memory.slack.added) == (2, Reason.OFFLINE_DEADLINE, 2)


@pytest.mark.server
def test_a_gateway_of_an_earlier_release_has_no_batches() -> None:
    gateway = plane.Gateway(plane.World())
    gateway.start()

    async def ask() -> Any:
        gateways = Gateways()
        try:
            return await gateways._report(f"127.0.0.1:{gateway.port}", 0.0, 120.0)
        finally:
            await gateways.close()

    try:
        found = asyncio.run(ask())
    finally:
        gateway.stop()
    assert isinstance(found, GatewayReport), found
    assert found.offline == OfflineWork()
