"""Thoughts that are not shown, in the simulated engine: what readers got, and what the policy is told of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from andes_sglang.policy import SchedulingPolicy, make_policy
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.gateway_view import GatewayView
from andes_sglang.sim.replica import Replica, simulate
from andes_sglang.state import Decision, SchedulerState
from andes_sglang.workload import draw_shape

SMALL = EngineModel(Costs(0.006, 0.0022, 3e-7, 0.005, 75e-6), 2500, overlap=Overlap.SYNC)
WORKLOAD = draw_shape("burst", rate_rps=3.0, duration_s=25.0, prompt="50-300", output="60-120", seed=3, thought="1-120")
SPECS = WORKLOAD.with_readers(3, ttft_s=1.0, tds=None, population="reading").requests


class Watching:
    """andes, and what it was told of each reader beside the tokens generated, at every decision."""

    name = "watching"

    def __init__(self) -> None:
        self.inner: SchedulingPolicy = make_policy("andes")
        self.seen: list[tuple[int, float, float, float, float, float]] = []

    def decide(self, state: SchedulerState) -> Decision:
        t, r = state.requests, state.requests.readers
        columns = (t.output_tokens, r.start_s, r.delivered, r.end_s, r.lateness_s)
        numbers = [int(rid[1:]) for rid in t.rids]
        self.seen += [(n, *row) for n, row in zip(numbers, np.stack(columns).T.tolist(), strict=True)]
        return self.inner.decide(state)


def played(specs: tuple[RequestSpec, ...], policy: SchedulingPolicy | None) -> list[RequestRecord]:
    return sorted(simulate(SMALL, policy, specs), key=lambda record: record.index)


def test_the_policy_sees_what_is_shown_and_a_clock_that_waits_for_the_thought() -> None:
    policy = Watching()
    records = played(SPECS, policy)
    assert sum(record.preemptions or 0 for record in records) > 20
    phases = set()
    for number, generated, start_s, delivered, end_s, lateness_s in policy.seen[::17]:
        spec, times_s = SPECS[number], records[number].token_times_s
        phases.add((generated >= spec.reason_tokens, delivered > 0))
        assert delivered == max(0, generated - spec.reason_tokens)
        assert start_s == pytest.approx(spec.arrival_s + 1.0 + min(generated, spec.reason_tokens) / 25.0)
        reader = ReaderStream(spec.arrival_s, spec.target)
        reader.think(spec.reason_tokens)
        for at_s in times_s[: int(delivered)]:
            reader.deliver(float(at_s))
        assert (end_s, lateness_s) == pytest.approx((reader.end_s, reader.lateness_s), abs=1e-9)
    assert phases == {(False, False), (True, False), (True, True)}


def test_only_what_is_shown_is_scored() -> None:
    shown = played(tuple(replace(spec, reason_tokens=0) for spec in SPECS), None)
    for spec, record, whole in zip(SPECS, played(SPECS, None), shown, strict=True):
        assert record.token_times_s.tolist() == whole.token_times_s[spec.reason_tokens :].tolist()
        assert (record.output_tokens, record.reason_tokens) == (spec.output_tokens, spec.reason_tokens)
        later = QoETarget(1.0 + spec.reason_tokens / 25.0, spec.target.tds)
        assert record.qoe == pytest.approx(replace(whole, deliveries=record.deliveries, ttft_target_s=later.ttft_s).qoe)
        assert record.reader().final_qoe() == pytest.approx(record.qoe)


def test_an_answer_that_never_leaves_the_thought_scores_nothing() -> None:
    (record,) = played((RequestSpec(0.0, 50, 30, reason_tokens=30),), make_policy("andes"))
    assert (record.qoe, len(record.deliveries)) == (0.0, 0)
    assert record.ttft_s == record.end_s > 0.0


def test_a_gateway_sees_the_same_of_its_readers() -> None:
    replica = Replica(SMALL, make_policy("andes"))
    view = GatewayView(replica)
    for at_s, thought in ((0.0, 400), (0.1, 5)):
        replica.advance(at_s)
        view.sent(replica.submit(RequestSpec(at_s, 50, 500, QoETarget(1.0, 4.0), reason_tokens=thought)))
    replica.advance(1.0)
    view.at(1.0, RequestSpec(1.0, 10, 10))
    thinking, shown = (replica.generated(job) for job in replica.running)
    readers = view._open.readers
    assert readers.delivered.tolist() == [0.0, shown - 5]
    assert readers.start_s.tolist() == pytest.approx([1.0 + thinking / 25.0, 1.1 + 5 / 25.0])
