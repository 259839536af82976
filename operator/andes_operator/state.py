"""What is kept of a target between its reconciles, in memory: after a restart it is read from the cluster or made again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from andes_operator import names
from andes_operator.cluster import Cluster
from andes_operator.forecast import BIN_S, DemandForecast, DemandHistory
from andes_operator.growth import GrowthHistory
from andes_operator.observe import Observation
from andes_operator.pool import Share
from andes_operator.spec import TargetSpec
from andes_operator.spread import turns
from andes_operator.status import acted_on, unix_s
from andes_operator.supply import MAX_COLD_START_S, ColdStarts
from andes_operator.table import Table, TableKind
from andes_operator.whatif import Prediction

__all__ = ["STATUS_S", "LastPrediction", "TargetState", "TargetStates"]

REUSE_S, REUSE_SHARE = 60.0, 0.05
"""A prediction holds for these seconds, while demand and load factor change by at most this share."""
STATUS_S = 180.0
"""Seconds after which the status of a target among many is written though nothing has changed that is acted on, each target's
in its turn: a restarted operator loses so much of its memory at most."""
MIN_OBSERVED_S, MAX_OBSERVED_S = 0.1, 60.0
"""Seconds that a rate counts for in the history: two reconciles can follow each other at once, or after a long failure."""


@dataclass(frozen=True, slots=True)
class LastPrediction:
    """A prediction and the question that it answers. generation: of the target; rate_rps: observed."""

    generation: int
    rate_rps: float
    expected: DemandForecast
    predicted: Prediction

    def holds(self, generation: int, spec: TargetSpec, seen: Observation) -> bool:
        """Whether it answers the question of now too: of the same spec, within a minute, demand having changed by no more
        than its counting noise (or ``REUSE_SHARE``, if that is more) and the load factor by no more than ``REUSE_SHARE``."""
        count = max(1.0, self.rate_rps * spec.behavior.window_s)
        noise_rps = max(REUSE_SHARE, count**-0.5) * self.rate_rps
        if generation != self.generation or seen.now_s - self.predicted.at_s >= REUSE_S:
            return False
        if abs(seen.rate_rps - self.rate_rps) > noise_rps:
            return False
        load_factor = self.predicted.update_load_factor(seen, spec.behavior.window_s)
        return abs(load_factor / self.predicted.load_factor - 1.0) <= REUSE_SHARE


@dataclass(slots=True)
class TargetState:
    """uid: of the resource: one that was deleted and created again starts afresh. history: of its demand; None: not read yet;
    saved_s: when it was saved, Unix seconds; None: it is not. cold_starts: as learned from the pods. failures: of its
    reconciles, in a row. rival: another operator that reconciles it. model: that its engines announce; share: of the model's
    demand, this pool's. growth: of its demand, kept with the history. table: of what its engines carry and can put off, its
    own or another target's of the same ``table_kind``; tabulating: the task that makes one; awaits_table: there is none, and
    one is being made. nodes: names of its pods' nodes.
    shared: whether it is one of many, which are listed together. made: its status as of the last reconcile; written: as the
    API server has it."""

    uid: str
    history: DemandHistory | None = None
    saved_s: float | None = None
    cold_starts: ColdStarts = field(default_factory=ColdStarts)
    last: LastPrediction | None = None
    failures: int = 0
    rival: str | None = None
    model: str | None = None
    share: Share = field(default_factory=Share)
    growth: GrowthHistory = field(default_factory=GrowthHistory)
    table: Table | None = None
    table_kind: TableKind | None = None
    tabulating: asyncio.Task[None] | None = None
    awaits_table: bool = False
    nodes: frozenset[str] = frozenset()
    shared: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)

    def latest(self, target: Mapping[str, Any]) -> Mapping[str, Any]:
        """``target`` with what the last reconcile made of its status, unless a later one has been written since, or another
        operator has written one."""
        said = target.get("status") or {}
        if not self.made or str(said.get("observedAt", "")) > self.made["observedAt"]:
            return target
        if said.get("operator", self.made["operator"]) != self.made["operator"]:
            return target
        return {**target, "status": {**said, **self.made}}

    def is_due(self, status: Mapping[str, Any]) -> bool:
        """Whether a status that was made now is to be written: there is something new to act on, or its turn has come
        since the one that is there."""
        before_s, now_s = unix_s(self.written.get("observedAt")), unix_s(status["observedAt"])
        old = before_s is None or now_s is None or self._turn_came(before_s, now_s, STATUS_S)
        return old or acted_on(status) != acted_on(self.written)

    def _turn_came(self, before_s: float, now_s: float, interval_s: float) -> bool:
        return turns(self.uid, now_s, interval_s) > turns(self.uid, before_s, interval_s)

    async def add_demand(
        self, cluster: Cluster, target: Mapping[str, Any], seen: Observation, elapsed_s: float
    ) -> DemandHistory:
        """The history with the rate of the last ``elapsed_s``, read from and saved to the ConfigMap ``NAME-demand``, which is
        deleted with the target: once in the time of a bin, each target in its turn. An unreadable history is replaced."""
        namespace, name = target["metadata"]["namespace"], f"{target['metadata']['name']}-demand"
        if self.history is None:
            kept = await cluster.config_map(namespace, name)
            self.history = DemandHistory()
            with contextlib.suppress(ValueError):
                self.history = DemandHistory.from_json(kept.get(names.HISTORY_KEY) or "")
                self.saved_s = seen.now_s
            with contextlib.suppress(ValueError):
                self.growth = GrowthHistory.from_json(kept.get(names.GROWTH_KEY) or "")
        self.history.add(seen.now_s, seen.rate_rps, min(MAX_OBSERVED_S, max(MIN_OBSERVED_S, elapsed_s)))
        if self.saved_s is None or self._turn_came(self.saved_s, seen.now_s, BIN_S):
            data = {names.HISTORY_KEY: self.history.to_json(), names.GROWTH_KEY: self.growth.to_json()}
            await cluster.write_config_map(namespace, name, data, target)
            self.saved_s = seen.now_s
        return self.history


@dataclass(slots=True)
class TargetStates:
    """Of all targets, by namespace and name."""

    _states: dict[tuple[str, str], TargetState] = field(default_factory=dict)

    def of(self, target: Mapping[str, Any]) -> TargetState:
        """Of this target; a new one takes its cold start from the status."""
        metadata = target["metadata"]
        key = metadata["namespace"], metadata["name"]
        if key not in self._states or self._states[key].uid != metadata["uid"]:
            status = target.get("status") or {}
            learned_s, model = status.get("coldStartSeconds"), (status.get("demand") or {}).get("model")
            if (
                learned_s is not None and not 0 <= learned_s <= MAX_COLD_START_S
            ):  # edited by hand, or of an earlier release
                learned_s = None
            self._states[key] = TargetState(metadata["uid"], cold_starts=ColdStarts(learned_s), model=model)
        return self._states[key]

    def on_node(self, name: str) -> list[tuple[str, str]]:
        """Of which targets this node has pods."""
        return [key for key, state in self._states.items() if name in state.nodes]

    def forget(self, namespace: str, name: str) -> None:
        self._states.pop((namespace, name), None)
