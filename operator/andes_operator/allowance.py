"""What a target is allowed besides its bounds: replicas by the clock (``schedule``), replicas that a ``budget`` buys, and a
``pause``. Pure: :meth:`Allowance.apply` turns the bounds that are written into those that hold at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from andes_operator.explain import SpecError, required, shown

__all__ = ["Allowance", "Bounds", "Budget", "Pause", "Period", "parse_allowance"]


SET_BACK_S = 7200.0
"""Seconds by which clocks are set back at most."""


@dataclass(frozen=True, slots=True)
class Period:
    """At least ``min_replicas`` from each time that ``start`` names until the next that ``end`` names.

    start, end: cron expressions of five fields. zone: IANA name of the time zone that they are in.
    """

    start: str
    end: str
    min_replicas: int
    zone: str = "UTC"

    def active(self, now_s: float) -> bool:
        """Whether the last start before ``now_s`` (Unix seconds) was after the last end."""
        return self._last_s(self.start, now_s) > self._last_s(self.end, now_s)

    def _last_s(self, cron: str, now_s: float) -> float:
        """When ``cron`` named a time last, Unix seconds. Looked for from later on: in the hour that a clock repeats when it
        is set back, what was half an hour ago may be later by the clock."""
        later = datetime.fromtimestamp(now_s + SET_BACK_S, ZoneInfo(self.zone)).replace(microsecond=0)
        return next(at_s for named in CronSim(cron, later, reverse=True) if (at_s := named.timestamp()) <= now_s)

    def __str__(self) -> str:
        return f'schedule "{self.start}" to "{self.end}" {self.zone}'


@dataclass(frozen=True, slots=True)
class Budget:
    """gpus: that may be held at once. per_hour: money for them in an hour, at gpu_price_per_hour each.
    None: no such limit."""

    gpus: float | None = None
    per_hour: float | None = None
    gpu_price_per_hour: float | None = None

    def replicas(self, gpus_per_replica: float) -> int:
        """How many it buys."""
        bought = math.inf if self.gpus is None else self.gpus
        if self.per_hour is not None and self.gpu_price_per_hour is not None:
            bought = min(bought, self.per_hour / self.gpu_price_per_hour)
        return int(bought / gpus_per_replica + 1e-9)

    def __str__(self) -> str:
        gpus = [] if self.gpus is None else [f"{self.gpus:g} GPUs"]
        money = [] if self.per_hour is None else [f"{self.per_hour:g} an hour at {self.gpu_price_per_hour:g} a GPU"]
        return f"budget of {' and '.join(gpus + money)}"


@dataclass(frozen=True, slots=True)
class Pause:
    """Writes no scale until ``until_s`` (Unix seconds)."""

    until_s: float
    reason: str = ""

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.until_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"paused until {until}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Replicas that a target may have at some time. why: what moved the bounds that are written; empty: nothing did.
    pause: the one that holds; None: none does."""

    minimum: int
    maximum: int
    why: str = ""
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class Allowance:
    schedule: tuple[Period, ...] = ()
    budget: Budget | None = None
    pause: Pause | None = None

    def apply(self, minimum: int, maximum: int, gpus_per_replica: float, now_s: float) -> Bounds:
        """The bounds at ``now_s`` (Unix seconds), given those that are written. A budget goes before a schedule."""
        why = []
        active = max(
            (p for p in self.schedule if p.active(now_s)), key=lambda period: period.min_replicas, default=None
        )
        if active is not None and active.min_replicas > minimum:
            minimum = active.min_replicas
            why.append(f"at least {minimum}: {active}")
        bought = maximum if self.budget is None else self.budget.replicas(gpus_per_replica)
        if bought < maximum:
            maximum, minimum = bought, min(minimum, bought)
            why.append(f"at most {maximum}: {self.budget}")
        paused = self.pause if self.pause is not None and now_s < self.pause.until_s else None
        return Bounds(minimum, maximum, "; ".join(why), paused)


def parse_allowance(spec: Mapping[str, Any], minimum: int, maximum: int, gpus_per_replica: float) -> Allowance:
    """Of a QoETarget's ``spec``. minimum, maximum: its bounds, in replicas. Raises
    :class:`~andes_operator.explain.SpecError` naming field and value."""
    periods = tuple(_period(p, f"spec.schedule[{i}]", maximum) for i, p in enumerate(spec.get("schedule") or ()))
    return Allowance(
        schedule=periods,
        budget=_budget(spec["budget"], minimum, gpus_per_replica) if spec.get("budget") is not None else None,
        pause=_pause(spec["pause"]) if spec.get("pause") is not None else None,
    )


def _period(of: Mapping[str, Any], where: str, maximum: int) -> Period:
    start, end = (str(required(of, name, where)) for name in ("start", "end"))
    replicas = int(required(of, "minReplicas", where))
    zone = str(of.get("timeZone", "UTC"))
    try:
        ZoneInfo(zone)
    except (KeyError, OSError, ValueError):
        raise SpecError(f"{where}.timeZone {shown(zone)} is not known: give a name like Europe/Berlin or UTC") from None
    for name, cron in (("start", start), ("end", end)):
        try:
            next(CronSim(cron, datetime.now(UTC), reverse=True))
        except (CronSimError, StopIteration) as error:
            why = str(error) or "it names no time"
            raise SpecError(
                f"{where}.{name} {shown(of[name])} is no cron expression of minute, hour, day, month and weekday: {why}"
            ) from None
    if start.split() == end.split():
        raise SpecError(
            f"{where}.start and end are both {shown(start)}: it would never begin; for ever is spec.minReplicas"
        )
    if not 0 <= replicas <= maximum:
        raise SpecError(f"{where}.minReplicas {replicas} must be between 0 and spec.maxReplicas {maximum}")
    return Period(start, end, replicas, zone)


def _budget(of: Mapping[str, Any], minimum: int, gpus_per_replica: float) -> Budget:
    values = {name: _positive(of, name, "spec.budget") for name in ("gpus", "perHour", "gpuPricePerHour")}
    if (values["perHour"] is None) != (values["gpuPricePerHour"] is None):
        raise SpecError("spec.budget: perHour and gpuPricePerHour belong together, give both or neither")
    if values["gpus"] is None and values["perHour"] is None:
        raise SpecError("spec.budget is empty: give gpus, or perHour with gpuPricePerHour")
    if gpus_per_replica <= 0:
        raise SpecError(f"spec.budget needs spec.gpusPerReplica above 0, got {gpus_per_replica:g}")
    budget = Budget(values["gpus"], values["perHour"], values["gpuPricePerHour"])
    bought = budget.replicas(gpus_per_replica)
    if bought < max(1, minimum):
        raise SpecError(
            f"spec.budget: a {budget} buys {bought} replicas of {gpus_per_replica:g} GPUs, "
            f"fewer than spec.minReplicas {minimum} and one; raise it or lower minReplicas"
        )
    return budget


def _pause(of: Mapping[str, Any]) -> Pause:
    given = required(of, "until", "spec.pause")
    try:
        said = datetime.fromisoformat(str(given))
        until = said.astimezone(UTC) if said.tzinfo is not None else None
    except (ValueError, OverflowError):  # the latter: the year 10000 there
        until = None
    if until is None:
        raise SpecError(f"spec.pause.until must be a time with its zone like 2026-12-01T06:00:00Z, got {shown(given)}")
    return Pause(until.timestamp(), str(of.get("reason", "")))


def _positive(of: Mapping[str, Any], name: str, where: str) -> float | None:
    if of.get(name) is None:
        return None
    value = float(of[name])
    if not (math.isfinite(value) and value > 0):
        raise SpecError(f"{where}.{name} must be above 0, got {shown(value)}")
    return value
