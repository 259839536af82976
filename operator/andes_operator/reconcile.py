"""One reconcile of one QoETarget, read top to bottom: observe, predict, decide, apply, report.

What lasts is in the resource's status (:mod:`andes_operator.memory`): a restarted operator continues from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry import trace

from andes_operator import classes, names
from andes_operator.cluster import Cluster, ClusterError, Scale
from andes_operator.decide import Failure, ScaleDecision, decide
from andes_operator.drain import Drainer
from andes_operator.explain import explain
from andes_operator.forecast import DemandForecast
from andes_operator.gateways import Gateways
from andes_operator.names import Condition, Mode, Reason
from andes_operator.nodes import Nodes
from andes_operator.observer import LIST_TTL_S, Observer, ReconcileContext
from andes_operator.pooling import ask, in_pool, pool_part, pooled
from andes_operator.prediction import Inquiry, check_options, cold_start_s, offline_tps, table_kind
from andes_operator.predictor import PredictionError
from andes_operator.report import Reporter
from andes_operator.sizing import MIN_KNOWN_S, Headroom, headroom, known_s
from andes_operator.spec import SpecError, TargetSpec, parse
from andes_operator.state import STATUS_S, LastPrediction, TargetState, TargetStates
from andes_operator.status import status, unix_s
from andes_operator.table import MIN_REQUESTS, Asked, Table, Tables
from andes_operator.telemetry import OperatorMetrics
from andes_operator.whatif import Prediction
from andes_sglang.expectations import ReaderExpectation

__all__ = ["Key", "ReconcileContext", "Reconciler", "Result"]

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name."""
Predict = Callable[[Inquiry], Awaitable[tuple[DemandForecast, Prediction]]]
MakeTable = Callable[[Inquiry], Awaitable[Table]]

AT_ZERO_S = 2.0
"""Seconds until the next reconcile of a target without replicas: part of what the first reader waits for."""
FIRST_STATUS_S = 2.0
"""Seconds that the first status of a target waits for a prediction; the next reconcile has it."""
CHANGED_S = 1.0
"""Seconds until the next reconcile where the resource or its scale changed during this one, or its prediction was
not waited for."""
REPEATED = 3
"""Failures in a row after which the status tells: one or two are an API server that restarts."""
INVALID_S = 60.0
"""Seconds until the next reconcile of a target that cannot be reconciled before it or a role is changed; an edit of the
target does not wait for it."""
RIVAL_TICKS, MIN_RIVAL_TICK_S = 3.0, 5.0
"""Intervals, of this many seconds at least, for which another operator's status counts as fresh."""


@dataclass(frozen=True, slots=True)
class Result:
    """requeue_after_s: seconds until the next reconcile; None: never, the target is gone."""

    requeue_after_s: float | None


class Reconciler:
    """Of all targets. make_table: of the fluid model, None: without headroom. nodes: as a watch sees them, None: not at all.
    name: of this operator, the same after a restart. clock: Unix seconds."""

    def __init__(
        self,
        cluster: Cluster,
        gateways: Gateways,
        predict: Predict,
        *,
        metrics: OperatorMetrics,
        tracer: trace.Tracer,
        make_table: MakeTable | None = None,
        nodes: Nodes | None = None,
        name: str = names.OPERATOR,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster, self._gateways, self._predict_demand = cluster, gateways, predict
        self._make_table, self._tables = make_table, Tables()
        self._metrics, self._tracer, self._name, self._clock = metrics, tracer, name, clock
        self._observer = Observer(cluster, gateways, tracer=tracer, clock=clock)
        self._reporter, self._states = Reporter(cluster, metrics, clock), TargetStates()
        self._drainer = Drainer(cluster, gateways, nodes or Nodes(), clock)

    def on_node(self, name: str) -> list[Key]:
        """Targets that had pods on it at their last reconcile."""
        return self._states.on_node(name)

    async def reconcile(self, key: Key) -> Result:
        """Raises :class:`~andes_operator.cluster.ClusterError` where the API server fails."""
        started = time.perf_counter()
        try:
            target, shared = await self._observer.target(*key)
        except ClusterError as error:
            if error.status != 404:
                raise
            self._metrics.forget(*key)
            self._states.forget(*key)
            return Result(None)
        with self._tracer.start_as_current_span("andes.reconcile") as span:
            span.set_attributes({"k8s.namespace.name": key[0], "andes.target": key[1]})
            state = self._states.of(target)
            state.shared, state.written = shared, target.get("status") or {}
            try:
                result = await self._reconcile(state.latest(target) if shared else target, span)
            except Exception as error:
                if isinstance(error, ClusterError) and error.status == 403:
                    await self._reporter.invalid(target, (Condition.OBSERVED, None, "Forbidden", str(error)))
                    return Result(INVALID_S)
                state.failures += 1
                if state.failures >= REPEATED:
                    await self._report_failure(target, state, error)
                raise
            finally:
                self._metrics.time_reconcile(time.perf_counter() - started)
            state.failures = 0
            return result

    async def _report_failure(self, target: Mapping[str, Any], state: TargetState, error: Exception) -> None:
        """Best effort: where the API server fails, this may fail too."""
        message = f"{state.failures} reconciles in a row failed: {explain(error)}"
        with contextlib.suppress(ClusterError):
            await self._reporter.invalid(target, (Condition.OBSERVED, False, Reason.RECONCILE_FAILED, message))

    async def _reconcile(self, target: Mapping[str, Any], span: trace.Span) -> Result:
        try:
            spec = parse(target.get("spec") or {}).at(self._clock())
        except ValueError as error:
            await self._reporter.invalid(target, (Condition.TARGET_FOUND, None, Reason.INVALID_SPEC, str(error)))
            return Result(INVALID_S)
        rival = self._rival(target, spec)
        if rival is not None:
            await self._yield_to(rival, target)
            return Result(spec.behavior.tick_s)
        scale = await self._scale(target, spec)
        if scale is None:
            return Result(spec.behavior.tick_s)
        member = await self._observer.membership(target, spec)
        spec = in_pool(spec, member)
        whole = member is not None and member.shares
        context = await self._observer.observe(target, spec, scale, self._states.of(target), whole=whole)
        prediction, failure = await self._predict(context)
        context, found = self._size(context, prediction)
        decision = self._decide(context, prediction, failure, span, found)
        part = None
        if member is not None:
            asks = ask(spec, context.seen, decision, found, prediction, shares=whole)
            decision, part = pooled(spec, context.seen, decision, member), pool_part(member, asks, context.seen)
        if spec.mode is not Mode.ADVISORY and context.conflict is None and not await self._apply(context, decision):
            return Result(CHANGED_S)
        await self._report(context, decision, prediction, found, part)
        if decision.reason is Reason.NO_PREDICTION and failure is None:
            return Result(CHANGED_S)
        at_zero = decision.replicas == 0 and spec.min_replicas == 0
        return Result(min(AT_ZERO_S, spec.behavior.tick_s) if at_zero else spec.behavior.tick_s)

    async def _scale(self, target: Mapping[str, Any], spec: TargetSpec) -> Scale | None:
        """Of what is scaled; None where there is none that can be used, which is said."""
        try:
            scale = await self._cluster.scale(spec.ref, target["metadata"]["namespace"])
        except ClusterError as error:
            if error.status not in (403, 404):
                raise
            reason = "NotFound" if error.status == 404 else "Forbidden"
            await self._reporter.invalid(target, (Condition.TARGET_FOUND, False, reason, str(error)))
            return None
        if not scale.selector:
            said = f"the scale of {spec.ref} names no selector, so its pods are not known: add labelSelectorPath"
            await self._reporter.invalid(target, (Condition.TARGET_FOUND, False, Reason.NO_SELECTOR, said))
            return None
        return scale

    def _rival(self, target: Mapping[str, Any], spec: TargetSpec) -> str | None:
        """Another operator that has reconciled this target lately; None: there is none. Of two that find each other's
        status, the one whose name comes first waits half as long."""
        status = target.get("status") or {}
        other, at = status.get("operator"), unix_s(status.get("observedAt"))
        if not other or other == self._name or at is None:
            return None
        tick_s = max(spec.behavior.tick_s, STATUS_S if self._states.of(target).shared else MIN_RIVAL_TICK_S)
        fresh_s = RIVAL_TICKS * tick_s * (1 if self._name < other else 2)
        return str(other) if self._clock() - at < fresh_s else None

    async def _yield_to(self, rival: str, target: Mapping[str, Any]) -> None:
        """Leave the target to ``rival``, and say so once."""
        state, metadata = self._states.of(target), target["metadata"]
        self._metrics.count_reconcile(Reason.OTHER_OPERATOR)
        if state.rival != rival:
            state.rival = rival
            message = f"the operator {rival} reconciles it too, so {self._name} does not: give each its own namespaces"
            log.warning("%s/%s: %s", metadata["namespace"], metadata["name"], message)
            await self._reporter.event(target, Reason.OTHER_OPERATOR, message, warning=True)

    # Predict

    async def _predict(
        self, context: ReconcileContext
    ) -> tuple[tuple[DemandForecast, Prediction] | None, Failure | None]:
        """The forecast and what-if, or why there are none; neither where data is not trusted, or what is to be done does not
        depend on them: bounds that are left, a first request at no replicas."""
        spec, seen, state = context.spec, context.seen, context.state
        wanted = seen.pods.wanted
        if seen.fault is not None or wanted == 0 or spec.clamp(wanted) != wanted:
            return None, None
        before_s = context.memory.at_s if context.memory.at_s is not None else seen.now_s - spec.behavior.tick_s
        history = await state.add_demand(self._cluster, context.target, seen, seen.now_s - before_s)
        if state.last is not None and state.last.holds(context.generation, spec, seen):
            return (state.last.expected, state.last.predicted), None
        last = state.last.predicted if state.last is not None else None
        try:
            check_options(spec, seen)
            horizon_s = cold_start_s(spec, state.cold_starts.seconds) + spec.behavior.tick_s
            readers = await self._readers(context.key[0])
            inquiry = Inquiry(spec, seen, seen.complete_since_s, horizon_s, history, readers, last)
            first = not (context.target.get("status") or {}).get("observedAt")
            async with asyncio.timeout(FIRST_STATUS_S if first else None):
                expected, predicted = await self._timed_prediction(inquiry)
        except TimeoutError:
            return None, None
        except (PredictionError, ValueError) as error:
            reason = Reason.INVALID_SPEC if isinstance(error, SpecError) else Reason.PREDICTION_FAILED
            self._metrics.count_failure("what_if")
            log.warning("%s/%s: no prediction: %s", *context.key, error)
            return None, Failure(reason, str(error))
        state.last = LastPrediction(context.generation, seen.rate_rps, expected, predicted)
        return (expected, predicted), None

    async def _timed_prediction(self, inquiry: Inquiry) -> tuple[DemandForecast, Prediction]:
        started = time.perf_counter()
        with self._tracer.start_as_current_span("andes.what_if") as span:
            try:
                expected, predicted = await self._predict_demand(inquiry)
            finally:
                self._metrics.what_if_s.observe(time.perf_counter() - started)
            span.set_attributes({
                "andes.forecast": expected.method, "andes.demand.expected": expected.rate_rps,
                "andes.replicas.fewest": predicted.fewest if predicted.fewest is not None else -1,
            })  # fmt: skip
        return expected, predicted

    async def _readers(self, namespace: str) -> dict[str, ReaderExpectation]:
        found = await self._cluster.list_all(names.CLASSES, namespace, LIST_TTL_S)
        return {c["metadata"]["name"]: classes.reader(c.get("spec") or {}) for c in found}

    # Size

    def _size(
        self, context: ReconcileContext, prediction: tuple[DemandForecast, Prediction] | None
    ) -> tuple[ReconcileContext, Headroom | None]:
        """The fleet that survives a surge until help is there, by what is known: no table is waited for. Books what came."""
        spec, seen, state = context.spec, context.seen, context.state
        if seen.fault is not None:
            return context, None
        expected, predicted = prediction if prediction is not None else (None, None)
        cold_s, before = cold_start_s(spec, state.cold_starts.seconds), context.memory.ledger
        self._tabulate(context, predicted, cold_s + spec.behavior.tick_s)
        known = predicted is not None and known_s(seen, before) >= MIN_KNOWN_S
        buffer = state.table.buffer if state.table is not None else None
        ledger = before.enter(seen, predicted.work_s if predicted and known else None, buffer.rho if buffer else None)
        if ledger.minute != before.minute:
            state.growth.add(ledger.minute, ledger.minutes_rps)
        memory = replace(context.memory, ledger=ledger)
        season_rps = expected.rate_rps if expected is not None and expected.method == "seasonal" else 0.0
        found = headroom(
            spec, seen, ledger, state.growth, buffer, cold_s=cold_s, orders=memory.changes, expected_rps=season_rps
        )
        return replace(context, memory=memory), found

    def _tabulate(self, context: ReconcileContext, predicted: Prediction | None, surge_s: float) -> None:
        """Have a table made where there is none for these engines and lengths; it is there at one of the next reconciles."""
        seen, state = context.seen, context.state
        state.awaits_table = False
        if self._make_table is None or predicted is None or predicted.lengths is None:
            return
        if len(seen.reader_arrivals_s) < MIN_REQUESTS:
            return
        kind = table_kind(context.spec, seen, surge_s)
        if kind != state.table_kind:
            state.table, state.table_kind = None, kind
        if state.table is not None and state.table.holds(predicted.lengths, seen.now_s):
            return
        asked = self._tables.find(kind, predicted.lengths, seen.now_s)
        if asked is None and (state.tabulating is None or state.tabulating.done()):
            asked = self._tables.ask(kind, predicted.lengths)
            state.tabulating = asyncio.create_task(self._fill_in(asked, context, surge_s, self._make_table))
        if asked is not None and asked.table is not None:
            state.table = replace(asked.table, at_s=seen.now_s)
        state.awaits_table = state.table is None and (asked is None or asked.pending)

    async def _fill_in(self, asked: Asked, context: ReconcileContext, surge_s: float, make: MakeTable) -> None:
        """For this target and all others of the kind."""
        seen = context.seen
        try:
            readers = await self._readers(context.key[0])
            asked.table = await make(Inquiry(context.spec, seen, seen.complete_since_s, surge_s, readers=readers))
        except PredictionError as error:
            asked.failed_s = self._clock()
            self._metrics.count_failure("table")
            log.warning("%s/%s: no table: %s", *context.key, error)
        except BaseException as error:
            self._tables.forget(asked)
            if not isinstance(error, ClusterError):
                raise
            log.warning("%s/%s: no table was asked for: %s", *context.key, error)

    # Decide

    def _decide(
        self,
        context: ReconcileContext,
        prediction: tuple[DemandForecast, Prediction] | None,
        failure: Failure | None,
        span: trace.Span,
        found: Headroom | None,
    ) -> ScaleDecision:
        spec = replace(context.spec, mode=Mode.ADVISORY) if context.conflict else context.spec
        predicted = prediction[1] if prediction is not None else None
        cold_s = cold_start_s(spec, context.state.cold_starts.seconds) if context.seen.offline.batches else 0.0
        decision = decide(
            spec, context.seen, predicted, context.memory, failure, headroom=found, cold_s=cold_s,
            offline_tps=offline_tps(spec, context.seen), tabulating=context.state.awaits_table,
        )  # fmt: skip
        span.set_attributes({
            "andes.reason": str(decision.reason), "andes.message": decision.message,
            "andes.replicas.current": context.scale.wanted, "andes.replicas.wanted": decision.replicas,
            "andes.demand.requests_per_second": context.seen.rate_rps,
        })  # fmt: skip
        self._metrics.count_reconcile(str(decision.reason))
        return decision

    # Apply

    async def _apply(self, context: ReconcileContext, decision: ScaleDecision) -> bool:
        """Set the scale where it is another one; False where the target or its scale changed meanwhile, so that the decision
        is obsolete."""
        spec, (namespace, name), current = context.spec, context.key, context.scale.wanted
        streams, addresses = context.seen.streams_by_replica, context.answers.addresses
        await self._drainer.undrain(namespace, context.pods, current, streams=streams, addresses=addresses)
        for said in await self._drainer.move(namespace, context.pods, streams=streams, addresses=addresses):
            await self._reporter.event(context.target, Reason.NODE_GOING, said, warning=False)
        if decision.replicas == current:
            return True
        fewer = current - decision.replicas
        with self._tracer.start_as_current_span("andes.scale"):
            latest = await self._cluster.get(names.TARGETS, namespace, name)
            if latest["metadata"]["generation"] != context.generation:
                return False
            if fewer > 0:
                await self._drainer.prepare(
                    namespace, spec.ref.kind, context.pods, fewer, streams=streams, addresses=addresses
                )
            try:
                await self._cluster.set_scale(spec.ref, namespace, decision.replicas, context.scale.resource_version)
            except ClusterError as error:
                if error.status == 409:
                    return False
                raise
        direction = "down" if fewer > 0 else "up"
        self._metrics.scaled.labels(direction, str(decision.reason)).inc()
        message = f"{current} to {decision.replicas} replicas: {decision.message}"
        log.info("%s/%s: %s", namespace, name, message)
        await self._reporter.event(context.target, f"Scaled{direction.title()}", message, warning=False)
        return True

    # Report

    async def _report(
        self,
        context: ReconcileContext,
        decision: ScaleDecision,
        prediction: tuple[DemandForecast, Prediction] | None,
        found: Headroom | None,
        pool: Mapping[str, Any] | None = None,
    ) -> None:
        expected, predicted = prediction if prediction is not None else (None, None)
        made = status(
            context.spec, context.seen, decision, expected=expected, predicted=predicted, conflict=context.conflict,
            cold_start_s=context.state.cold_starts.seconds, classes=context.classes, operator=self._name,
            model=context.spec.demand.model or context.state.model, share=context.state.share.value, headroom=found,
            pool=pool, old=context.target.get("status") or {}, generation=context.generation,
        )  # fmt: skip
        state = context.state
        await self._reporter.status(context.target, made, written=not state.shared or state.is_due(made))
        state.made = made
