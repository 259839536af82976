"""One look at one QoETarget: gather, predict, decide, write. What lasts is in the status: a restart goes on from there."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from opentelemetry import trace

from andes_operator import classes, names, victims
from andes_operator.cluster import Cluster, ClusterError, Scale
from andes_operator.decide import Decision, Memory, decide
from andes_operator.demand import Reader
from andes_operator.forecast import Forecast, History
from andes_operator.gateways import Answers, Gateways
from andes_operator.names import Condition, Mode
from andes_operator.observe import Observation, merge
from andes_operator.simulated import Inquiry, PredictionError, Predictor, cold_start_s
from andes_operator.spec import ScaleTargetRef, SpecError, TargetSpec, parse
from andes_operator.status import Finding, conditions, status, timestamp
from andes_operator.telemetry import Metrics
from andes_operator.whatif import Prediction

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

AT_ZERO_S = 2.0
REUSE_S, REUSE_SHARE = 60.0, 0.05
AGAIN_S = 1.0
WRONG_S = 60.0
UNDRAIN_AFTER_S = 60.0
LIST_TTL_S = 5.0

Resource = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prediction, and what it was asked for: it holds for a minute while demand stays the same but for its noise."""

    generation: int
    rate_rps: float
    expected: Forecast
    predicted: Prediction

    def answers(self, look: _Look) -> bool:
        count = max(1.0, self.rate_rps * look.spec.behavior.window_s)
        near = max(REUSE_SHARE, count**-0.5) * self.rate_rps
        same = self.generation == look.target["metadata"]["generation"]
        fresh = look.seen.now_s - self.predicted.at_s < REUSE_S
        if not same or not fresh or abs(look.seen.rate_rps - self.rate_rps) > near:
            return False
        load_factor = self.predicted.load_factor_by(look.seen, look.spec.behavior.window_s)
        return abs(load_factor / self.predicted.load_factor - 1.0) <= REUSE_SHARE


@dataclass(slots=True)
class _Kept:
    """What is kept of one target between its looks; a restart finds it again in the cluster, or asks anew."""

    uid: str
    history: History = field(default_factory=History)
    history_read: bool = False
    cold_start_s: float | None = None
    asked: _Asked | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """What one tick has in its hands."""

    target: Resource
    kept: _Kept
    spec: TargetSpec
    scale: Scale
    pods: list[dict[str, Any]]
    answers: Answers
    seen: Observation

    @property
    def namespace(self) -> str:
        return str(self.target["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.target["metadata"]["name"])


class Reconciler:
    """Ticks of all targets."""

    def __init__(
        self,
        cluster: Cluster,
        gateways: Gateways,
        predictor: Predictor,
        metrics: Metrics,
        tracer: trace.Tracer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster, self._gateways, self._predictor = cluster, gateways, predictor
        self._metrics, self._tracer, self._clock = metrics, tracer, clock
        self._kept: dict[tuple[str, str], _Kept] = {}

    async def tick(self, namespace: str, name: str) -> float | None:
        """Look at a target, write what follows; seconds until the next look, None when the target is gone. Raises
        :class:`~andes_operator.cluster.ClusterError` where the API server fails."""
        started = time.perf_counter()
        try:
            target = await self._cluster.get(names.TARGETS, namespace, name)
        except ClusterError as error:
            if error.status != 404:
                raise
            self._metrics.forget(namespace, name)
            self._kept.pop((namespace, name), None)
            return None
        with self._tracer.start_as_current_span("andes.tick") as span:
            span.set_attributes({"k8s.namespace.name": namespace, "andes.target": name})
            try:
                delay_s = await self._tick(target, span)
            except ClusterError as error:
                if error.status != 403:
                    raise
                await self._say_wrong(target, (Condition.OBSERVED, None, "Forbidden", str(error)))
                delay_s = WRONG_S
            finally:
                self._metrics.tick_s.observe(time.perf_counter() - started)
        return delay_s

    async def _tick(self, target: Resource, span: trace.Span) -> float:
        namespace = target["metadata"]["namespace"]
        try:
            spec = parse(target.get("spec") or {})
        except (SpecError, ValueError) as error:
            await self._say_wrong(target, (Condition.TARGET_FOUND, None, "InvalidSpec", str(error)))
            return WRONG_S
        try:
            scale = await self._cluster.scale(spec.ref, namespace)
        except ClusterError as error:
            if error.status not in (403, 404):
                raise
            reason = "NotFound" if error.status == 404 else "Forbidden"
            await self._say_wrong(target, (Condition.TARGET_FOUND, False, reason, str(error)))
            return spec.behavior.tick_s
        conflict = await self._conflict(target, spec)
        look = await self._look(target, spec, scale)
        memory = _memory(target)
        predicted: Prediction | None = None
        expected: Forecast | None = None
        failed = ""
        if look.seen.fault is None:
            try:
                expected, predicted = await self._predict(look, memory)
            except PredictionError as error:
                failed = str(error)
        as_told = replace(spec, mode=Mode.ADVISORY) if conflict else spec
        decision = decide(as_told, look.seen, predicted, memory, failed)
        span.set_attributes({
            "andes.reason": str(decision.reason), "andes.message": decision.message,
            "andes.replicas.current": look.scale.wanted, "andes.replicas.wanted": decision.replicas,
            "andes.demand.requests_per_second": look.seen.rate_rps,
        })  # fmt: skip
        self._metrics.ticks.labels(str(decision.reason)).inc()
        if spec.mode is Mode.AUTO and conflict is None:
            await self._undrain(look)
            if decision.replicas != scale.wanted and not await self._apply(look, decision):
                return AGAIN_S
        await self._write_status(look, decision, expected, predicted, conflict)
        at_zero = decision.replicas == 0 and spec.min_replicas == 0
        return min(AT_ZERO_S, spec.behavior.tick_s) if at_zero else spec.behavior.tick_s

    # Gather

    async def _look(self, target: Resource, spec: TargetSpec, scale: Scale) -> _Look:
        namespace = target["metadata"]["namespace"]
        now_s = self._clock()
        window_s = spec.behavior.window_s
        with self._tracer.start_as_current_span("andes.observe"):
            pods = await self._cluster.pods(namespace, scale.selector)
            answers = await self._gateways.ask(self._cluster, namespace, spec, now_s)
        kept = self._keep(target)
        learned = victims.cold_start_s(pods)
        if learned is not None:
            kept.cold_start_s = learned
        seen = merge(
            answers.reports, victims.count(pods, scale.wanted), self._clock(), window_s, answers.missing, answers.broken
        )
        return _Look(target, kept, spec, scale, pods, answers, seen)

    def _keep(self, target: Resource) -> _Kept:
        key, uid = (target["metadata"]["namespace"], target["metadata"]["name"]), target["metadata"]["uid"]
        if key not in self._kept or self._kept[key].uid != uid:
            self._kept[key] = _Kept(uid, cold_start_s=(target.get("status") or {}).get("coldStartSeconds"))
        return self._kept[key]

    async def _conflict(self, target: Resource, spec: TargetSpec) -> str | None:
        """Who else writes this scale: an HPA, or a QoETarget that was there before. Advice conflicts with nobody."""
        if spec.mode is not Mode.AUTO:
            return None
        namespace, metadata = target["metadata"]["namespace"], target["metadata"]
        for hpa in await self._cluster.autoscalers(namespace):
            if _refers(hpa["spec"]["scaleTargetRef"], spec.ref):
                return f"HorizontalPodAutoscaler {hpa['metadata']['name']} scales {spec.ref} too: remove one of them"
        mine = (metadata["creationTimestamp"], metadata["name"])
        for other in await self._cluster.list_all(names.TARGETS, namespace, LIST_TTL_S):
            ref = (other.get("spec") or {}).get("scaleTargetRef") or {}
            theirs = (other["metadata"]["creationTimestamp"], other["metadata"]["name"])
            if _refers(ref, spec.ref) and theirs < mine and other["spec"].get("mode", Mode.AUTO) == Mode.AUTO:
                return f"QoETarget {other['metadata']['name']} scales {spec.ref} already: remove one of them"
        return None

    # Predict

    async def _predict(self, look: _Look, memory: Memory) -> tuple[Forecast | None, Prediction | None]:
        """Raises :class:`PredictionError`."""
        spec, seen = look.spec, look.seen
        if seen.pods.wanted == 0 and not seen.recent:
            return None, None
        history = await self._remembered(look, memory)
        asked = look.kept.asked
        if asked is not None and asked.answers(look):
            return asked.expected, asked.predicted
        started = time.perf_counter()
        with self._tracer.start_as_current_span("andes.what_if") as span:
            try:
                horizon_s = cold_start_s(spec, look.kept.cold_start_s) + spec.behavior.tick_s
                since_s = max([seen.now_s - spec.behavior.history_s, *(r.demand_since_s for r in look.answers.reports)])
                readers = await self._readers(look.namespace)
                last = asked.predicted if asked is not None else None
                inquiry = Inquiry(spec, seen, since_s, horizon_s, history, readers, last)
                expected, predicted = await self._predictor(inquiry)
            except (PredictionError, ValueError) as error:
                self._metrics.failures.labels("what_if").inc()
                span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
                log.warning("%s/%s: no prediction: %s", look.namespace, look.name, error)
                raise PredictionError(str(error)) from None
            finally:
                self._metrics.what_if_s.observe(time.perf_counter() - started)
            span.set_attributes({
                "andes.forecast": expected.method, "andes.demand.expected": expected.rate_rps,
                "andes.replicas.least": predicted.least if predicted.least is not None else -1,
            })  # fmt: skip
        generation = look.target["metadata"]["generation"]
        look.kept.asked = _Asked(generation, seen.rate_rps, expected, predicted)
        return expected, predicted

    async def _remembered(self, look: _Look, memory: Memory) -> History:
        """The history of this target's demand, with what was just seen; kept in a ConfigMap that goes with the target."""
        kept, config_map = look.kept, f"{look.name}-demand"
        if not kept.history_read:
            text = (await self._cluster.config_map(look.namespace, config_map)).get(names.HISTORY_KEY)
            with contextlib.suppress(ValueError):
                kept.history = History.from_json(text) if text else History()
            kept.history_read = True
        history = kept.history
        elapsed_s = look.seen.now_s - (memory.at_s or look.seen.now_s - look.spec.behavior.tick_s)
        if history.add(look.seen.now_s, look.seen.rate_rps, min(60.0, max(0.1, elapsed_s))):
            data = {names.HISTORY_KEY: history.to_json()}
            await self._cluster.write_config_map(look.namespace, config_map, data, look.target)
        return history

    async def _readers(self, namespace: str) -> dict[str, Reader]:
        found = await self._cluster.list_all(names.CLASSES, namespace, LIST_TTL_S)
        return {c["metadata"]["name"]: classes.reader(c.get("spec") or {}) for c in found}

    # Write

    async def _apply(self, look: _Look, decision: Decision) -> bool:
        """Set the scale; False when something has changed meanwhile and the decision no longer counts."""
        spec, fewer = look.spec, look.scale.wanted - decision.replicas
        with self._tracer.start_as_current_span("andes.scale"):
            current = await self._cluster.get(names.TARGETS, look.namespace, look.name)
            if current["metadata"]["generation"] != look.target["metadata"]["generation"]:
                return False
            if fewer > 0:
                await self._prepare(look, fewer)
            try:
                await self._cluster.set_scale(spec.ref, look.namespace, decision.replicas, look.scale.resource_version)
            except ClusterError as error:
                if error.status == 409:
                    return False
                raise
        direction = "down" if fewer > 0 else "up"
        self._metrics.scaled.labels(direction, str(decision.reason)).inc()
        message = f"{look.scale.wanted} to {decision.replicas} replicas: {decision.message}"
        log.info("%s/%s: %s", look.namespace, look.name, message)
        await self._event(look.target, f"Scaled{direction.title()}", message, warning=False)
        return True

    async def _prepare(self, look: _Look, fewer: int) -> None:
        """Tell the API server who goes first, and the gateways to send nothing more there."""
        cost = victims.costs(look.pods, look.seen.streams_by_replica)
        for pod in look.pods:
            wanted = cost.get(pod["metadata"]["name"])
            if wanted is not None and victims.deletion_cost(pod) != str(wanted):
                await self._annotate(look, pod, {names.DELETION_COST: str(wanted)})
        for victim in victims.victims(look.spec.ref.kind, look.pods, cost, fewer):
            replica = victims.replica_of(victim, look.seen.streams_by_replica)
            if replica is not None:
                await self._annotate(look, victim, {names.DRAINING: timestamp(self._clock())})
                for failed in await self._gateways.drain(look.answers.addresses, replica, drained=True):
                    log.warning("%s/%s: %s", look.namespace, look.name, failed)

    async def _undrain(self, look: _Look) -> None:
        """Give work again to engines that were to go and have stayed: a write that failed, or a change of mind."""
        for pod in victims.to_undrain(look.pods, look.scale.wanted, self._clock(), UNDRAIN_AFTER_S):
            replica = victims.replica_of(pod, look.seen.streams_by_replica)
            if replica is not None:
                await self._gateways.drain(look.answers.addresses, replica, drained=False)
            await self._annotate(look, pod, {names.DRAINING: None})

    async def _annotate(self, look: _Look, pod: Resource, annotations: Mapping[str, str | None]) -> None:
        try:
            await self._cluster.annotate_pod(look.namespace, pod["metadata"]["name"], annotations)
        except ClusterError as error:
            if error.status != 404:
                raise

    async def _write_status(
        self,
        look: _Look,
        decision: Decision,
        expected: Forecast | None,
        predicted: Prediction | None,
        conflict: str | None,
    ) -> None:
        old = look.target.get("status") or {}
        made = status(
            look.spec, look.seen, decision, expected, predicted, conflict,
            look.kept.cold_start_s, old, look.target["metadata"]["generation"],
        )  # fmt: skip
        await self._patch_status(look.target, made)

    async def _say_wrong(self, target: Resource, finding: Finding) -> None:
        """There is nothing to observe: only conditions change, the rest of the status stays as it was."""
        old = target.get("status") or {}
        generation = target["metadata"]["generation"]
        unknown = (Condition.OBSERVED, Condition.CONFLICT, Condition.MET, Condition.ATTAINABLE)
        found = [finding, *((kind, None, finding[2], finding[3]) for kind in unknown)]
        found += [(Condition.READY, False, finding[2], finding[3])]
        made: dict[str, Any] = {
            "observedGeneration": generation,
            "observedAt": timestamp(self._clock()),
            "reason": finding[2],
            "message": finding[3],
            "conditions": conditions(found, old.get("conditions") or [], generation, self._clock()),
        }
        self._metrics.ticks.labels(finding[2]).inc()
        await self._patch_status(target, made)

    async def _patch_status(self, target: Resource, made: Mapping[str, Any]) -> None:
        metadata = target["metadata"]
        self._metrics.observe(metadata["namespace"], metadata["name"], made)
        try:
            await self._cluster.patch_status(names.TARGETS, metadata["namespace"], metadata["name"], made)
        except ClusterError as error:
            if error.status != 404:  # gone meanwhile: the next tick finds out
                raise
        was = _ready_status((target.get("status") or {}).get("conditions") or [])
        now = _ready_status(made["conditions"])
        if was != now and (was is not None or now == "False"):
            condition = next(c for c in made["conditions"] if c["type"] == Condition.READY)
            await self._event(target, condition["reason"], condition["message"], warning=now != "True")

    async def _event(self, target: Resource, reason: str, message: str, warning: bool) -> None:
        try:
            await self._cluster.event(target, reason, message, warning, self._clock())
        except ClusterError as error:  # an event is a courtesy
            log.warning("no event %s: %s", reason, error)

    # QoEClasses

    async def publish_classes(self, namespace: str) -> None:
        """All QoEClasses of a namespace as a ConfigMap for the gateway, and their status."""
        found = await self._cluster.list_all(names.CLASSES, namespace)
        text = classes.settings_yaml(found)
        held = await self._cluster.config_map(namespace, names.CLASSES_CONFIGMAP)
        if held.get(names.CLASSES_KEY) != text and (found or held):
            await self._cluster.write_config_map(namespace, names.CLASSES_CONFIGMAP, {names.CLASSES_KEY: text})
        for one in found:
            generation = one["metadata"]["generation"]
            old = one.get("status") or {}
            if old.get("observedGeneration") != generation:
                message = f"in ConfigMap {names.CLASSES_CONFIGMAP}, for the gateways"
                finding: Finding = (Condition.READY, True, "Published", message)
                made = conditions([finding], old.get("conditions") or [], generation, self._clock())
                body = {"observedGeneration": generation, "conditions": made}
                with contextlib.suppress(ClusterError):
                    await self._cluster.patch_status(names.CLASSES, namespace, one["metadata"]["name"], body)


def _memory(target: Resource) -> Memory:
    """From the status; a memory that somebody has spoilt is none."""
    try:
        return Memory.from_dict((target.get("status") or {}).get("memory"))
    except ValueError as error:
        log.warning("%s/%s: %s: starting anew", target["metadata"]["namespace"], target["metadata"]["name"], error)
        return Memory()


def _refers(ref: Mapping[str, Any], to: ScaleTargetRef) -> bool:
    """Whether it is the same object, in whatever version of its group."""
    group, wanted = str(ref.get("apiVersion", "")).rpartition("/")[0], to.api_version.rpartition("/")[0]
    return (group, ref.get("kind"), ref.get("name")) == (wanted, to.kind, to.name)


def _ready_status(found: list[Mapping[str, Any]]) -> str | None:
    return next((c["status"] for c in found if c["type"] == Condition.READY), None)
