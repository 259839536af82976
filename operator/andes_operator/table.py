"""The two numbers of the fluid model for one target's engines and requests: :func:`tabulate`. Pure, and seconds of CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from andes_operator.demand import ExpectedDemand, Lengths
from andes_operator.spec import TargetSpec
from andes_operator.whatif import goals_of
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.buffer import Buffer, buffer
from andes_sglang.sim.engine import EngineModel

__all__ = ["MIN_REQUESTS", "Table", "tabulate"]

MIN_REQUESTS = 100
"""Fewer say too little of lengths."""
MAX_REQUESTS = 1000
"""A sample; more change nothing but the time that it takes."""
KEPT_S = 600.0
"""Seconds for which a table is kept, whatever moves."""
MAX_PUT_OFF = 0.7
"""Of the seconds that a play finds; the fluid model spreads a backlog evenly, as a fleet does not."""


@dataclass(frozen=True, slots=True)
class Table:
    """buffer: as tabulated at ``at_s`` for requests of these ``lengths``."""

    buffer: Buffer
    lengths: Lengths
    at_s: float

    def holds(self, lengths: Lengths, now_s: float) -> bool:
        """Whether it still serves."""
        return now_s - self.at_s < KEPT_S or not lengths.moved(self.lengths)


def tabulate(
    spec: TargetSpec,
    demand: ExpectedDemand,
    engine: EngineModel,
    policy: Callable[[], SchedulingPolicy | None],
    *,
    routing_policy: Callable[[], RoutingPolicy] = QoE,
    surge_s: float,
    at_s: float = 0.0,
) -> Table:
    """For ``demand`` on ``engine`` under ``policy``; surge_s: until help is there. Raises ``ValueError`` without requests."""
    demand = demand.of_readers()
    names = sorted(set(demand.class_names))
    kinds = [names.index(name) for name in demand.class_names]
    found = buffer(
        engine, policy, demand.requests[:MAX_REQUESTS], goals_of(spec, names), kinds=kinds[:MAX_REQUESTS],
        routing_policy=routing_policy, surge_s=surge_s,
    )  # fmt: skip
    return Table(found._replace(seconds=MAX_PUT_OFF * found.seconds), demand.lengths, at_s)
