"""A fleet of replicas in virtual time: routing, autoscaling, start-up and draining.

The routing policy is the gateway's own and sees what a gateway would see; an autoscaler sees the fleet itself. A replica in
which no request begins or ends is not advanced, so an arrival costs what it changes and not the size of the fleet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol

from andes_sglang.admission import Admission, Refusal, Wish
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.routing import LeastLoad, RoutingPolicy, ordered
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.gateway_view import GatewayView, incoming_stream
from andes_sglang.sim.replica import Replica
from andes_sglang.stream_forecast import forecast_stream

__all__ = ["Autoscaler", "Fleet", "simulate_fleet"]

Policy = Callable[[], SchedulingPolicy | None]
HORIZON_S = 60.0
"""Seconds over which admission forecasts QoE; a gateway's setting of that name."""


class Autoscaler(Protocol):
    """Asked every ``interval_s`` how many replicas there should be; those starting count as there."""

    interval_s: float

    def desired_replicas(self, fleet: Fleet) -> int: ...


class Fleet:
    """``replicas`` of ``engine`` at the start, or one of each of ``engines``, each under a policy of its own. Records go to
    ``sink``. An autoscaler adds replicas of ``engine``, and takes away those while there are any.

    Submit requests in order of arrival; :meth:`advance` without an end serves all of them to the end. start_s: cold start,
    from the decision to add a replica to its first request. A replica that is no longer wanted gets no new request and goes
    when its last one has finished: those still starting first, then the one with the fewest requests. wish: of every reader's
    class; with it a request may be refused, as a gateway refuses it.
    replica_s: replica-seconds paid for, starting and draining included. Raises ``ValueError`` naming field and value.
    """

    def __init__(
        self,
        engine: EngineModel,
        policy: Policy = lambda: None,
        *,
        replicas: int = 1,
        engines: Sequence[EngineModel] = (),
        routing_policy: RoutingPolicy | None = None,
        autoscaler: Autoscaler | None = None,
        start_s: float = 0.0,
        decision_interval_s: float = 0.0,
        wish: Wish | None = None,
        sink: Callable[[RequestRecord], None] = lambda _record: None,
    ) -> None:
        if replicas < 1:
            raise ValueError(f"replicas must be >= 1, got {replicas!r}")
        if not start_s >= 0:
            raise ValueError(f"start_s must be >= 0 seconds, got {start_s!r}")
        self.engine, self.policy, self.sink = engine, policy, sink
        self.routing_policy = routing_policy or LeastLoad()
        self.autoscaler, self.start_s = autoscaler, start_s
        self.decision_interval_s = decision_interval_s
        self.wish, self._admission = wish, Admission()
        self.now_s = 0.0
        self.started = 0
        self.most = 0
        self.serving: list[Replica] = []
        self.starting: deque[tuple[float, Replica]] = deque()
        self.draining: list[Replica] = []
        self._paid_s = 0.0
        self._since: dict[Replica, float] = {}
        self._views: dict[Replica, GatewayView] = {}
        self.submitted = 0
        self._next_tick_s = autoscaler.interval_s if autoscaler else math.inf
        for model in engines or [engine] * replicas:
            self.serving.append(self._new(model))

    @property
    def replicas(self) -> list[Replica]:
        """Those that serve and those that drain."""
        return self.serving + self.draining

    @property
    def open_requests(self) -> int:
        return sum(r.open_requests for r in self.replicas)

    @property
    def replica_s(self) -> float:
        return self._paid_s + sum(max(0.0, self.now_s - since) for since in self._since.values())

    def submit(self, spec: RequestSpec, ticket: Hashable | None = None) -> Refusal | None:
        """A request arrives, no earlier than the one before. One that is refused is on record, and told when a place is kept
        for its ``ticket``. Raises :class:`~andes_sglang.sim.replica.RefusedError` for one that no replica can hold."""
        self.advance(spec.arrival_s)
        chosen = self._route(spec, [r for r in self.serving if r.fits(spec)] or self.serving)
        chosen.advance(spec.arrival_s)
        index, self.submitted = self.submitted, self.submitted + 1
        if self.wish is not None and (refusal := self._refusal(spec, chosen, index, ticket)):
            self._done(_refused(spec, index, refusal))
            return refusal
        self._views[chosen].sent(chosen.submit(spec, index=index))
        return None

    def _refusal(self, spec: RequestSpec, replica: Replica, index: int, ticket: Hashable | None) -> Refusal | None:
        now_s, seen = spec.arrival_s, self._views[replica]
        seen.offered(now_s)
        view, new = seen.at(now_s, spec), incoming_stream(spec, index)
        if not view.load or self.wish is None:
            return None
        expected = forecast_stream(new, view, now_s, HORIZON_S)
        return self._admission.refuse(new, expected, view, self.wish, now_s, ticket=ticket)

    def _route(self, spec: RequestSpec, replicas: list[Replica]) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        views = {replica.name: replica for replica in (self._views[replica] for replica in replicas)}
        new = incoming_stream(spec, self.submitted)
        shown = [view.at(spec.arrival_s, spec) for view in views.values()]
        order = ordered(self.routing_policy, new, shown, spec.arrival_s)
        return views[order[0].name].replica

    def advance(self, until_s: float = math.inf) -> None:
        """Serve until ``until_s``; without it, until no request is left."""
        while self._next_tick_s <= until_s and (until_s < math.inf or self.open_requests):
            self._serve(self._next_tick_s)
            self._scale()
        self._serve(until_s)
        if until_s == math.inf:
            self.now_s = max([self.now_s, *(r.now_s for r in self.replicas)])

    def _serve(self, until_s: float) -> None:
        while self.starting and self.starting[0][0] <= until_s:
            self.serving.append(self.starting.popleft()[1])
        for replica in self.replicas:
            if replica.quiet_until_s < until_s:
                replica.advance(until_s)
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)
        for replica in [r for r in self.draining if not r.open_requests]:
            self.draining.remove(replica)
            self._pay(replica, replica.now_s)

    def _scale(self) -> None:
        self._next_tick_s += self.autoscaler.interval_s if self.autoscaler else math.inf
        wanted = max(1, self.autoscaler.desired_replicas(self)) if self.autoscaler else len(self.serving)
        have = len(self.serving) + len(self.starting)
        for _ in range(have, wanted):
            self.starting.append((self.now_s + self.start_s, self._new(self.engine)))
        for _ in range(wanted, have):
            if self.starting:
                self._pay(self.starting.pop()[1], self.now_s)
            else:
                least = min(self.serving, key=lambda r: (r.engine != self.engine, r.open_requests))
                self.serving.remove(least)
                least.advance(self.now_s)
                self.draining.append(least)

    def _new(self, engine: EngineModel) -> Replica:
        replica = Replica(
            engine,
            self.policy(),
            sink=self._done,
            index=self.started,
            decision_interval_s=self.decision_interval_s,
        )
        self.started += 1
        self._since[replica] = self.now_s
        self._views[replica] = GatewayView(replica)
        self.most = max(self.most, len(self._since))
        return replica

    def _done(self, record: RequestRecord) -> None:
        self.sink(record)

    def _pay(self, replica: Replica, until_s: float) -> None:
        self._paid_s += max(0.0, until_s - self._since.pop(replica))
        del self._views[replica]


def _refused(spec: RequestSpec, index: int, refusal: Refusal) -> RequestRecord:
    at_s, target = spec.arrival_s, spec.target
    return RequestRecord(
        index, at_s, at_s, spec.prompt_tokens, 0, target.ttft_s, target.tds, end_s=at_s, error=f"429 {refusal.reason}",
        think_tds=target.think_tds, reader_class=spec.reader_class, tenant=spec.tenant, yields=spec.yields,
    )  # fmt: skip


def simulate_fleet(fleet: Fleet, requests: Iterable[RequestSpec]) -> Iterator[RequestRecord]:
    """Records of ``requests`` (in order of arrival) as they finish; memory does not grow with their number."""
    done: deque[RequestRecord] = deque()
    fleet.sink = done.append
    for spec in requests:
        fleet.submit(spec)
        while done:
            yield done.popleft()
    fleet.advance()
    yield from done
