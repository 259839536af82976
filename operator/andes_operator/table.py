"""The two numbers of the fluid model for one kind of engines and requests: :func:`tabulate`, pure, and seconds of CPU;
:class:`Tables` keeps them for all targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from andes_operator.demand import ExpectedDemand, Lengths
from andes_operator.gateway_report import NamedPolicy
from andes_operator.spec import ClassObjective, TargetSpec
from andes_operator.whatif import goals_of
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.routing import QoE, RoutingPolicy
from andes_sglang.sim.buffer import Buffer, buffer
from andes_sglang.sim.engine import EngineModel

__all__ = ["MIN_REQUESTS", "Asked", "Table", "TableKind", "Tables", "near", "tabulate"]

MIN_REQUESTS = 100
"""Fewer say too little of lengths."""
MAX_REQUESTS = 1000
"""A sample; more change nothing but the time that it takes."""
KEPT_S = 600.0
"""Seconds for which a table is kept, whatever moves."""
MAX_TABLES = 1000
"""Kept at once, those that were used last: as many kinds of engines and requests as an operator may meet."""
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


def near(tables: Iterable[Table], lengths: Lengths) -> Table | None:
    """The first of ``tables`` that was made for such requests."""
    return next((table for table in tables if not lengths.moved(table.lengths)), None)


@dataclass(frozen=True, slots=True)
class TableKind:
    """What a table depends on beside the requests, the same for all targets that may share one. engine: its sizes in
    steps; surge_steps: until help is there, in steps."""

    engine: EngineModel
    policy: NamedPolicy
    routing_policy: NamedPolicy
    objectives: tuple[ClassObjective, ...]
    margin: float
    surge_steps: int


@dataclass(slots=True)
class Asked:
    """A table that a target has asked for. table: None while it is made; failed_s: when that failed, Unix seconds."""

    kind: TableKind
    lengths: Lengths
    table: Table | None = None
    failed_s: float | None = None

    @property
    def pending(self) -> bool:
        return self.table is None and self.failed_s is None


class Tables:
    """What targets have asked for: one computation for all of one kind whose lengths are within a fifth of each other."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []

    def find(self, kind: TableKind, lengths: Lengths, now_s: float) -> Asked | None:
        """What was asked for such engines and requests: made, being made, or failed not long ago; None: :meth:`ask`."""
        for asked in self._asked:
            made_for = asked.table.lengths if asked.table is not None else asked.lengths
            if asked.kind != kind or lengths.moved(made_for):
                continue
            self._asked.remove(asked)
            if asked.failed_s is not None and now_s - asked.failed_s >= KEPT_S:
                return None
            self._asked.append(asked)
            return asked
        return None

    def ask(self, kind: TableKind, lengths: Lengths) -> Asked:
        """To be filled in."""
        self._asked = [*self._asked[1 - MAX_TABLES :], Asked(kind, lengths)]
        return self._asked[-1]

    def forget(self, asked: Asked) -> None:
        """It will not be filled in."""
        self._asked = [other for other in self._asked if other is not asked]


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
    lengths = demand.lengths(spec.objectives)
    return Table(found._replace(seconds=MAX_PUT_OFF * found.seconds), lengths, at_s)
