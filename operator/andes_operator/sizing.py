"""The fleet that survives what may come, of one target: :func:`headroom` puts what was seen and learned into the fluid model.

:mod:`andes_operator.headroom` holds the model; here are its inputs, and what it says in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from andes_operator.growth import GrowthHistory
from andes_operator.headroom import Growth, Load, Sized, load, size
from andes_operator.ledger import MINUTE_S, Ledger
from andes_operator.memory import Change
from andes_operator.observe import Observation
from andes_operator.spec import TargetSpec
from andes_sglang.sim.buffer import Buffer

__all__ = ["MIN_KNOWN_S", "Headroom", "headroom", "known_s", "ready_at_s"]

MIN_KNOWN_S = 600.0
"""Seconds of demand before it is acted on: the first minutes read high."""
LATE_STARTS = 2.0
"""Cold starts after which a pod that has not come is not counted on."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Of ``sized.replicas``: what they survive. growth, load, buffer: assumed, seen and tabulated."""

    sized: Sized
    growth: Growth
    load: Load
    buffer: Buffer

    @property
    def replicas(self) -> int:
        return self.sized.replicas

    @property
    def times(self) -> float:
        """The surge that is prepared for, over the slow base."""
        return self.sized.surge / self.load.base if self.load.base > 0 else self.growth.surge

    @property
    def due_s(self) -> float | None:
        """Seconds until the next order would have to be made if the surge came now; None: not within two cold starts."""
        breach_s = self.sized.breach_s
        return None if breach_s is None else max(0.0, breach_s - self.sized.horizon_s)

    def __str__(self) -> str:
        replicas, horizon_s = self.replicas, self.sized.horizon_s
        what = f"{self.times:.1f} x {_shown(self.load.base)} busy"
        if self.sized.breach_s is not None and self.sized.breach_s <= horizon_s:
            noticed = f"would be noticed in {self.sized.breach_s:.0f} s"
            return f"{replicas} replicas: {what} {noticed}, help takes {horizon_s:.0f} s"
        due_s = self.due_s
        later = "no order would be due" if due_s is None else f"the next order would be due in {due_s:.0f} s"
        return f"{replicas} replicas: survive {what} for {horizon_s:.0f} s; {later}"


def _shown(busy: float) -> str:
    """A small service is not idle."""
    return f"{busy:.1f}" if busy >= 1.0 or not busy else f"{busy:.2g}"


def headroom(
    spec: TargetSpec, seen: Observation, ledger: Ledger, growth: GrowthHistory, buffer: Buffer | None, *, cold_s: float,
    orders: Sequence[Change] = (), expected_rps: float = 0.0,
) -> Headroom | None:  # fmt: skip
    """None where too little is known: no table, no length of a request, or not ten minutes of demand.

    orders: changes of the scale, the latest last: when pods that start now were ordered. expected_rps: by the season.
    """
    work_s = ledger.work_s
    if buffer is None or not work_s or not buffer.rho or known_s(seen, ledger) < MIN_KNOWN_S:
        return None
    now = load(
        seen.reader_arrivals_s, ledger.minutes_rps, seen.now_s, since_s=seen.complete_since_s, work_s=work_s,
        backlog_s=ledger.backlog_s,
    )  # fmt: skip
    may = growth.growth()
    sized = size(
        now, may, ready_at_s(seen, orders, cold_s), buffer, cold_s=cold_s, tick_s=spec.behavior.tick_s,
        work_s=work_s, max_replicas=spec.max_replicas, expected=expected_rps * work_s,
    )  # fmt: skip
    return Headroom(sized, may, now, buffer)


def known_s(seen: Observation, ledger: Ledger) -> float:
    """Seconds of demand that are known."""
    return max(seen.now_s - seen.complete_since_s, MINUTE_S * len(ledger.minutes_rps))


def ready_at_s(seen: Observation, orders: Sequence[Change], cold_s: float) -> list[float]:
    """Seconds from now until each replica serves that is ready or starting. One whose cold start is over may come at any
    time, until ``LATE_STARTS`` of them have passed; then it is not counted on."""
    ages = [seen.now_s - order.at_s for order in reversed(orders) for _ in range(max(0, order.delta))]
    ages += [0.0] * max(0, seen.pods.starting - len(ages))
    starting = [
        cold_s - age if age < cold_s else 0.5 * (age - cold_s)
        for age in ages[: seen.pods.starting]
        if age <= LATE_STARTS * cold_s
    ]
    return [0.0] * seen.pods.ready + starting
