"""A simulated replica as a gateway would see it, and the gateway's routing policies in a simulated fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest

from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import IncomingStream, PrefixAffinity, ReplicaView, RoundRobinRouting
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.sim.fleet import Fleet, simulate_fleet
from andes_sglang.sim.gateway_view import MAX_READERS, GatewayView, incoming_stream
from andes_sglang.sim.replica import Replica

COSTS = Costs(
    decode_fixed_s=0.01, decode_request_s=0.002, decode_context_s=1e-5, prefill_fixed_s=0.02, prefill_token_s=1e-3
)
ENGINE = EngineModel(COSTS, kv_capacity_tokens=20_000, max_running=32, chunk_tokens=500)
READER = QoETarget(0.5, 5.0)
NOTHING = RequestSpec(0.0, 10, 1)


class Watched:
    """A replica with its view, and the times at which it sends tokens."""

    def __init__(self, engine: EngineModel = ENGINE, policy: str | None = None) -> None:
        self.records: list[RequestRecord] = []
        self.replica = Replica(engine, make(policy) if policy else None, sink=self.records.append, index=7)
        self.view = GatewayView(self.replica)

    def send(self, spec: RequestSpec) -> None:
        self.replica.advance(spec.arrival_s)
        self.view.sent(self.replica.submit(spec))


def test_a_view_has_what_the_gateway_counts_and_the_engine_tells() -> None:
    watched = Watched()
    watched.send(RequestSpec(0.0, 300, 400, READER, weight=2.5))
    watched.send(RequestSpec(0.1, 400, 400, READER))
    watched.replica.advance(3.0)
    watched.send(RequestSpec(3.0, 900, 10, QoETarget(1.0, 9.0)))
    view = watched.view.at(3.0, NOTHING)
    assert (view.name, view.streams, view.others, view.load) == ("7", 3, 0, 3)
    assert (view.prompt_tokens, view.pending_tokens) == (1600, 900)
    assert view.latency is COSTS
    assert view.context_tokens == watched.replica.kv_used_tokens > 700
    assert view.slots == min(32, int(20_000 / (view.context_tokens / 2)))
    assert view.open_streams.weights.tolist() == [2.5, 1.0, 1.0]
    assert view.open_streams.readers.delivered.tolist()[2] == 0.0
    assert view.open_streams.max_tds == 9.0


@pytest.mark.parametrize("policy", [None, "andes"])
def test_readers_are_as_if_each_token_had_been_counted_as_it_came(policy: str | None) -> None:
    """Also those who have just begun, and those who have run dry."""
    specs = [
        RequestSpec(0.2 * k, 100 + 50 * k, 60 + 20 * (k % 7), QoETarget(0.3, 5.0 if k % 2 else 30.0)) for k in range(24)
    ]
    watched = Watched(policy=policy)
    for spec in specs:
        watched.view.at(spec.arrival_s, spec)
        watched.send(spec)
    now_s = 6.0
    for at_s in (5.0, 5.49, now_s):  # no more than half a second apart, as arrivals are where routing matters
        watched.replica.advance(at_s)
        views = watched.view.at(at_s, NOTHING)
    jobs = list(watched.replica.by_rid.values())
    assert len(jobs) == len(views.open_streams) > 5
    sent = np.array([watched.replica.generated(job) for job in jobs])
    while watched.replica.open_requests:
        watched.replica.advance(watched.replica.now_s + 10.0)
    exact = []
    for job, tokens in zip(jobs, sent):
        record = next(r for r in watched.records if r.index == job.index)
        stream = ReaderStream(job.spec.arrival_s, job.spec.target)
        for at_s in list(record.token_times_s)[:tokens]:
            stream.deliver(float(at_s))
        exact.append(stream)
    true, seen = Readers.of(exact), views.open_streams.readers
    assert seen.delivered.tolist() == true.delivered.tolist()
    assert seen.start_s == pytest.approx(true.start_s)
    assert np.abs(seen.end_s - true.end_s).max() < 0.6, "no more than they are old"
    assert seen.qoe_at(now_s) == pytest.approx(true.qoe_at(now_s), abs=0.05)


def test_half_a_second_old_readers_are_brought_up_to_date() -> None:
    watched = Watched()
    watched.send(RequestSpec(0.0, 100, 300, READER))
    first = watched.view.at(1.0, NOTHING).open_streams.readers.delivered.copy()
    watched.replica.advance(1.6)
    assert watched.view.at(1.5, NOTHING).open_streams.readers.delivered == first
    assert watched.view.at(1.51, NOTHING).open_streams.readers.delivered > first


def test_what_has_ended_is_forgotten_and_a_crowd_is_sampled() -> None:
    watched = Watched()
    for k in range(3 * MAX_READERS):
        watched.send(RequestSpec(10.0 * k, 20, 2, READER))
    assert len(watched.view._jobs) <= MAX_READERS, "also where no policy ever asks"
    crowd = Watched()
    for _ in range(MAX_READERS + 6):
        crowd.send(RequestSpec(0.0, 20, 50, READER))
    assert len(crowd.view.at(0.1, NOTHING).open_streams) == (MAX_READERS + 6) // 2
    assert crowd.view.at(0.1, NOTHING).streams == MAX_READERS + 6


def test_prompts_that_begin_alike_are_told_by_blocks_or_session() -> None:
    def key(spec: RequestSpec, number: int = 0) -> int | str:
        return incoming_stream(spec, number).prefix_key

    shared = [RequestSpec(0.0, 2000, 1, blocks=blocks) for blocks in ((1, 2), (1, 3), (2, 1))]
    assert key(shared[0]) == key(shared[1], 9) != key(shared[2])
    turns = [RequestSpec(0.0, n, 1, session_id="chat") for n in (300, 900)]
    assert key(turns[0]) == key(turns[1]) == "chat"
    assert key(NOTHING, 1) != key(NOTHING, 2)
    new = incoming_stream(RequestSpec(0.0, 70, 1, READER, weight=3.0), 5)
    assert (new.prompt_tokens, new.target, new.weight) == (70, READER, 3.0)


def test_a_replica_has_probably_cached_what_it_was_sent() -> None:
    watched = Watched()
    watched.send(RequestSpec(0.0, 1200, 2, blocks=(1, 2)))
    watched.send(RequestSpec(0.0, 500, 2, session_id="chat"))
    hits = [
        watched.view.at(1.0, spec).hit_tokens
        for spec in (
            RequestSpec(1.0, 2000, 1, blocks=(1, 2, 3)), RequestSpec(1.0, 2000, 1, blocks=(9, 2)),
            RequestSpec(1.0, 900, 1, session_id="chat"), RequestSpec(1.0, 900, 1, session_id="other"),
            RequestSpec(1.0, 400, 1, blocks=(1,)), NOTHING,
        )
    ]  # fmt: skip
    assert hits == [1024, 0, 384, 0, 400, 0]


class Recorded:
    """Routes in turn, and keeps what it was shown."""

    name: ClassVar[str] = "recorded"

    def __init__(self) -> None:
        self.seen: list[tuple[IncomingStream, list[ReplicaView], float]] = []

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        self.seen.append((new, list(views), now_s))
        return list(views)[::-1]


def test_a_fleet_shows_its_replicas_to_the_policy_and_obeys() -> None:
    policy = Recorded()
    fleet = Fleet(ENGINE, replicas=3, routing_policy=policy)
    specs = [RequestSpec(0.1 * k, 50, 20, READER, weight=2.0) for k in range(4)]
    records = list(simulate_fleet(fleet, specs))
    assert {record.replica for record in records} == {2}
    assert [now_s for *_, now_s in policy.seen] == [spec.arrival_s for spec in specs]
    assert [[view.name for view in views] for _, views, _ in policy.seen] == [["0", "1", "2"]] * 4
    assert [views[2].load for _, views, _ in policy.seen] == [0, 1, 2, 3]
    assert policy.seen[0][0].weight == 2.0


def test_the_only_replica_that_fits_is_not_asked_about() -> None:
    small = EngineModel(COSTS, kv_capacity_tokens=300)
    policy = Recorded()
    fleet = Fleet(ENGINE, engines=[small, ENGINE, small], routing_policy=policy)
    assert [r.replica for r in simulate_fleet(fleet, [RequestSpec(0.0, 900, 5)])] == [1]
    assert policy.seen == []


def hit_share(policy: RoundRobinRouting | PrefixAffinity) -> float:
    specs = [RequestSpec(0.4 * k, 1100, 4, READER, blocks=(k % 5, 90 + k % 5)) for k in range(60)]
    records = list(simulate_fleet(Fleet(ENGINE, replicas=3, routing_policy=policy), specs))
    return sum(r.prefix_hit_tokens or 0 for r in records) / sum(r.prompt_tokens for r in records)


def test_prefix_affinity_can_be_simulated() -> None:
    assert hit_share(PrefixAffinity(bound=3.0)) > hit_share(RoundRobinRouting()) + 0.1
