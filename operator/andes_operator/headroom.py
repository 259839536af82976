"""What survives a surge until help is there: a fluid model of the fleet. Pure.

Demand is counted in *busy* replicas, seconds of one replica's work that arrive in a second. A replica carries ``rho`` of it
for ever; what it puts off is its *backlog*, and readers notice where that is more than ``buffer.seconds`` of what it
carries (:mod:`andes_sglang.sim.buffer`). :func:`path` says what may come, :func:`survives` when readers would notice, and
:func:`size` how many replicas that takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.sim.buffer import Buffer
from andes_sglang.sim.plan import smallest_feasible

__all__ = ["Growth", "Load", "Sized", "load", "path", "size", "survives"]

Array = npt.NDArray[np.float64]

STEP_S = 15.0
"""Seconds between two looks into the future; the default of ``tickSeconds``."""
BASE_BINS, BIN_MINUTES = 6, 5
"""The slow base is the median of so many bins of so many minutes: half an hour. Taken from the crest of a crowd instead, the
surge that is prepared for would order several times what the crowd needs."""
JUMP, JUMP_DEVIATIONS = 1.25, 2.0
"""Ratio of the last two minutes to the last five from which on, and standard deviations of counting from which on, a jump is
believed."""
LASTING_MINUTES, LASTING_QUANTILE = 10, 0.2
"""Minutes, and the quantiles of their rates, from below and from above, between which demand has lasted: neither a crowd of
seven minutes has, nor a lull."""
STEP_RATIO = 0.5
"""Of the squares that a line through the last minutes leaves; where two levels leave less, demand has stepped and is not
rising."""
MAX_TREND = 1.5
"""Ratio; a trend is followed to no more than this many times the present load: high load has not grown further in one of a
hundred five minutes of recorded services. A crowd's last minutes look like a trend, and twice the load orders what comes
after it has gone."""
GROWTH = 1.1
"""Ratio; the present load is taken to go on, a tenth higher."""
CENTRE_S = 150.0
"""Seconds from the middle of the five minutes that the present load is taken over to now."""
SETTLE_S = 150.0
"""Seconds after the arrival of help in which a backlog may last: to clear it at once costs many replicas for a short time."""
ORDER_LIMIT = 1.1
"""Ratio to what the present load, or the surge that is prepared for, needs: no order goes beyond."""


class Growth(NamedTuple):
    """By how much demand may grow while help is on its way. surge: times the slow base, or the present load where that is
    less; high: times the present load while it is above the base; cap: requests/s that are not exceeded, inf: nothing is
    known. why: in words."""

    surge: float
    high: float = GROWTH
    cap_rps: float = math.inf
    why: str = "assumed"


class Load(NamedTuple):
    """Demand in busy replicas. at: now, by the last five minutes, or two where it jumps; base: what has lasted; slope: a
    second, at least 0. backlog_s: replica-seconds of work that are put off."""

    at: float
    base: float
    slope: float
    backlog_s: float


@dataclass(frozen=True, slots=True)
class Sized:
    """replicas: the least fleet that survives, or what is ordered where the present one does not. breach_s: when readers of
    ``replicas`` would notice if the surge came now; None: not within two cold starts. surge: busy replicas that are
    prepared for; horizon_s: until help would be there."""

    replicas: int
    breach_s: float | None
    surge: float
    horizon_s: float


def load(
    arrivals_s: Sequence[float], minutes_rps: Sequence[float], now_s: float, *, since_s: float, work_s: float,
    backlog_s: float = 0.0,
) -> Load:  # fmt: skip
    """From arrivals (in order; complete since ``since_s``) and the rates of the last whole minutes, the latest last; work_s:
    of one request."""
    at_s = np.asarray(arrivals_s, dtype=np.float64)

    def count(seconds: float) -> tuple[float, float]:
        begin_s = max(now_s - seconds, since_s)
        return float(np.count_nonzero(at_s > begin_s)), max(1.0, now_s - begin_s)

    (five, five_s), (two, two_s) = count(300.0), count(120.0)
    rate, quick = five / five_s, two / two_s
    if quick > JUMP * rate and two > rate * two_s + JUMP_DEVIATIONS * math.sqrt(rate * two_s):
        rate = quick
    minutes = np.asarray(minutes_rps, dtype=np.float64)
    bins = [
        float(minutes[max(0, end - BIN_MINUTES) : end].mean())
        for end in range(len(minutes), BIN_MINUTES - 1, -BIN_MINUTES)[:BASE_BINS]
    ]
    base = five / five_s
    if len(bins) > 1:
        lasting = minutes[-LASTING_MINUTES:]
        least, most = np.quantile(lasting, (LASTING_QUANTILE, 1.0 - LASTING_QUANTILE))
        base = float(np.clip(np.median(bins), least, most))
    return Load(rate * work_s, base * work_s, max(0.0, _slope(minutes[-LASTING_MINUTES:])) * work_s, backlog_s)


def _slope(minutes: Array) -> float:
    """Theil and Sen's, of rates by minute, a second; 0 for fewer than five, and where they have stepped."""
    if len(minutes) < 5 or _stepped(minutes):
        return 0.0
    later, earlier = np.triu_indices(len(minutes), 1)[::-1]
    return float(np.median((minutes[later] - minutes[earlier]) / (60.0 * (later - earlier))))


def _stepped(minutes: Array) -> bool:
    """Whether two levels fit far better than a line."""
    t = np.arange(len(minutes), dtype=np.float64)
    around = minutes - minutes.mean()
    line = float(around @ around) - float((t - t.mean()) @ around) ** 2 / float((t - t.mean()) @ (t - t.mean()))
    splits = (np.split(minutes, [k]) for k in range(1, len(minutes)))
    levels = min(float(((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) for a, b in splits)
    return levels < STEP_RATIO * line


def path(now: Load, growth: Growth, cap: float, horizon_s: float, expected: float = 0.0) -> Array:
    """Busy replicas in each ``STEP_S`` until ``horizon_s``: the highest of the trend, the surge and what is expected by the
    season (``expected``, from half of the horizon on). cap: busy replicas that a surge does not exceed."""
    t = np.arange(0.5 * STEP_S, horizon_s, STEP_S)
    lasting = GROWTH * now.at
    high = growth.high * now.at if now.at > JUMP * now.base else 0.0
    grown = max(growth.surge * min(now.at, now.base), GROWTH * now.base)  # what has ebbed grows from where it is
    surge = min(max(grown, high), max(cap, lasting))
    trend = np.minimum(now.at + now.slope * (t + CENTRE_S), MAX_TREND * now.at)
    season = np.where(t > 0.25 * horizon_s, expected, 0.0)
    return np.maximum(np.maximum(trend, season), max(surge, lasting))


def survives(
    path: Array, ready_at_s: Sequence[float], backlog_s: float, buffer: Buffer, *, since_s: float = 0.0,
    until_s: float = math.inf,
) -> float | None:  # fmt: skip
    """Seconds until readers of replicas that serve from ``ready_at_s`` on (seconds from now) would notice, looked for in
    ``since_s..until_s``; None: they do not."""
    ends_s = STEP_S * np.arange(1, len(path) + 1)
    serving = np.searchsorted(np.sort(ready_at_s), ends_s - STEP_S, side="right")
    carried = buffer.rho * serving
    grown = np.cumsum((path - carried) * STEP_S)
    backlog = backlog_s + grown
    backlog = backlog - np.minimum(0.0, np.minimum.accumulate(backlog))  # never below none
    noticed = (backlog > carried * buffer.seconds) & (ends_s > since_s) & (ends_s <= until_s + 1e-6)
    found = np.flatnonzero(noticed & (backlog > 1e-9))
    return float(ends_s[found[0]]) if len(found) else None


def size(
    now: Load, growth: Growth, ready_at_s: Sequence[float], buffer: Buffer, *, cold_s: float, tick_s: float,
    work_s: float, max_replicas: int, expected: float = 0.0,
) -> Sized:  # fmt: skip
    """How many replicas, where those that are there serve from ``ready_at_s`` on.

    Fewer, as long as they survive until help is there and carry the present load; more, all at once, where the present
    ones do not: the least that hold from ``SETTLE_S`` after their arrival on, but no more than ``ORDER_LIMIT`` times what is
    needed. At least what carries the slow base for ever: a fleet that lives on credit has nothing left for a step.
    """
    cap = growth.cap_rps * work_s
    horizon_s = cold_s + tick_s
    levels = path(now, growth, cap, 2.0 * cold_s + SETTLE_S + STEP_S, expected)
    ready, have = sorted(ready_at_s), len(ready_at_s)
    surge = float(levels.max())

    def breach_s(n: int) -> float | None:
        return survives(levels, ready[:n], now.backlog_s, buffer, until_s=horizon_s)

    def settled(n: int) -> bool:
        fleet = [*ready, *[cold_s] * (n - have)]
        since_s = cold_s + SETTLE_S
        return survives(levels, fleet, now.backlog_s, buffer, since_s=since_s, until_s=since_s + cold_s) is None

    floor = _enough(now.base, buffer)
    if have and breach_s(have) is None and have >= floor:
        fewest = smallest_feasible(lambda n: breach_s(n) is None, have, have) or have
        replicas = min(have, max(fewest, floor, _enough(now.at, buffer)))
    else:
        credit = horizon_s / (horizon_s + buffer.seconds)
        limit = math.ceil(ORDER_LIMIT * max(now.at, float(levels.max()) * credit) / buffer.rho)
        needed = smallest_feasible(settled, have + 1, max(have + 1, max_replicas)) or max_replicas
        replicas = max(have, floor, min(needed, limit))
    replicas = min(max(1, replicas), max_replicas)
    fleet = [*ready[:replicas], *[cold_s] * max(0, replicas - have)]
    return Sized(replicas, survives(levels, fleet, now.backlog_s, buffer), surge, horizon_s)


def _enough(load: float, buffer: Buffer) -> int:
    return math.ceil(load / buffer.rho - 1e-9)
