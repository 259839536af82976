"""Reconciles step by step, against an API server and gateways in memory; on real ones in test_operator."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest
from cases import predicted, sketch
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from andes_operator import names
from andes_operator.cluster import ClusterError, Scale
from andes_operator.demand import Lengths
from andes_operator.forecast import DemandForecast
from andes_operator.gateway_report import FleetReplica, GatewayReport, ObservedRequest
from andes_operator.gateways import Answers
from andes_operator.growth import GrowthHistory
from andes_operator.nodes import Nodes
from andes_operator.observer import LIST_TTL_S, MANY_TARGETS, MANY_TTL_S
from andes_operator.prediction import Inquiry
from andes_operator.predictor import PredictionError
from andes_operator.reconcile import AT_ZERO_S, CHANGED_S, INVALID_S, Reconciler, Result
from andes_operator.state import STATUS_S
from andes_operator.status import timestamp
from andes_operator.table import Table
from andes_operator.telemetry import OperatorMetrics
from andes_operator.victims import GOING_COST
from andes_operator.whatif import Prediction
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.sim.buffer import Buffer

NOW_S = 1_795_251_720.0  # 2026-11-21 09:02:00 UTC
KEY = ("chat", "t")
SPEC: dict[str, Any] = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
    "objectives": [{"statistic": "ShareAbove", "threshold": 0.95, "value": 0.95}],
    "maxReplicas": 20,
    "demand": {"gateway": {"service": "gateway"}},
    "whatIf": {"profile": "h100-llama-3.1-8b"},
}


def pod(number: int) -> dict[str, Any]:
    created, ready = "2026-11-21T08:00:00Z", "2026-11-21T08:00:40Z"
    return {
        "metadata": {"name": f"engine-{number}", "creationTimestamp": created},
        "spec": {"nodeName": f"node-{number}"},
        "status": {
            "phase": "Running", "podIP": f"10.0.0.{number}",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ready}],
        },
    }  # fmt: skip


class Site:
    """A target, its scale and pods, one gateway, and a what-if that says what ``fewest`` says; ``errors`` of requests by name.
    It is cluster, gateways and what-if at once, and keeps what was written in order."""

    def __init__(self, replicas: int = 2, **spec: Any) -> None:
        self.resource: dict[str, Any] | None = {
            "apiVersion": "andes.dev/v1alpha1", "kind": "QoETarget", "spec": {**SPEC, **spec},
            "metadata": {"namespace": "chat", "name": "t", "uid": "u", "generation": 1, "creationTimestamp": "x"},
        }  # fmt: skip
        self.replicas, self.version, self.now_s = replicas, 1, NOW_S
        self.fewest: int | None = 2
        self.selector = "app=engine"
        self.targets, self.shared, self.statuses = 1, 0, 0
        self.listed: list[dict[str, Any]] | None = None
        self.ages: dict[str, float] = {}
        self.models: tuple[str, ...] = ()
        self.flags: EngineFlags | None = None
        self.others: tuple[FleetReplica, ...] = ()
        self.asked: list[str | None] = []
        self.missing: tuple[str, ...] = ()
        self.hpas: list[dict[str, Any]] = []
        self.pools: list[dict[str, Any]] = []
        self.errors: dict[str, Exception] = {}
        self.meanwhile: Any = None
        self.inquiries: list[Inquiry] = []
        self.written: list[Any] = []
        self.maps: dict[str, dict[str, str]] = {}
        self.requests = 600  # two a second
        self.streams = [5] * 20
        self.metrics, self.nodes = OperatorMetrics(), Nodes()
        self.reconciler = Reconciler(
            self, self, self.predict, nodes=self.nodes,  # type: ignore[arg-type]
            metrics=self.metrics, tracer=NoOpTracer(), name="chat/andes-operator", clock=lambda: self.now_s,
        )  # fmt: skip

    def _check(self, request: str) -> None:
        if request in self.errors:
            raise self.errors[request]

    # Cluster

    async def get(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        self._check("get")
        if self.resource is None:
            raise ClusterError(404, "not found")
        return copy.deepcopy(self.resource)

    async def scale(self, ref: Any, namespace: str) -> Scale:
        self._check("scale")
        return Scale(self.replicas, self.selector, str(self.version))

    async def set_scale(self, ref: Any, namespace: str, replicas: int, resource_version: str) -> None:
        self._check("set_scale")
        if resource_version != str(self.version):
            raise ClusterError(409, "conflict")
        self.replicas, self.version = replicas, self.version + 1
        self.written.append(("scale", replicas))

    async def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        self._check("pods")
        return [pod(i) for i in range(self.replicas)]

    async def shared_pods(self, namespace: str, selector: str, ttl_s: float) -> list[dict[str, Any]]:
        self.shared += 1
        return await self.pods(namespace, selector)

    async def annotate_pod(self, namespace: str, name: str, annotations: dict[str, Any]) -> None:
        self._check("annotate")
        self.written.append((name, annotations))

    async def evict_pod(self, namespace: str, name: str) -> None:
        self._check("evict")
        self.written.append(("evict", name))

    async def autoscalers(self, namespace: str) -> list[dict[str, Any]]:
        return self.hpas

    async def list_all(self, plural: str, namespace: str | None, ttl_s: float = 0.0) -> list[dict[str, Any]]:
        self._check(plural)
        self.ages[plural] = ttl_s
        if plural == names.CLASSES:
            return [{"metadata": {"name": "reading"}, "spec": {"tokensPerSecond": 9, "weight": 2}}]
        if plural == names.POOLS:
            return self.pools
        if self.listed is not None:
            return self.listed
        return [] if self.resource is None else [self.resource] * self.targets

    async def patch_status(self, plural: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        self._check("status")
        self.statuses += 1
        if self.resource is not None:
            self.resource["status"] = {**self.resource.get("status", {}), **copy.deepcopy(status)}

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        return self.maps.get(name, {})

    async def write_config_map(self, namespace: str, name: str, data: dict[str, str], owner: Any = None) -> None:
        self.maps[name] = data

    async def event(self, about: Any, reason: str, message: str, *, warning: bool, now_s: float) -> None:
        self._check("event")
        self.written.append(("event", reason, warning))

    # Gateways

    async def ask(self, cluster: Any, namespace: str, spec: Any, now_s: float, model: str | None = None) -> Answers:
        self.asked.append(model)
        times_s = [self.now_s - 0.5 * i for i in reversed(range(self.requests))]
        requests = tuple(ObservedRequest(at_s, "reading", 100, 50, True) for at_s in times_s)
        own = self.models[0] if self.models else None
        replicas = tuple(
            FleetReplica(f"10.0.0.{i}:80", True, False, self.streams[i], 0, 0, model=own, flags=self.flags)
            for i in range(self.replicas)
        )
        replicas += self.others
        if model is not None:
            replicas = tuple(r for r in replicas if r.model == model)
            requests = requests[::2]
        report = GatewayReport(
            "g", self.now_s, self.now_s, self.now_s - 600, requests, {"reading": sketch(*[1.0] * 50)}, {}, replicas,
            models=self.models,
        )  # fmt: skip
        return Answers((report,), self.missing, (), ("10.0.1.1:80",))

    async def drain(self, addresses: Any, replica: str, *, drained: bool) -> list[str]:
        self.written.append(("drain", replica, drained))
        return ["gateway g: HTTP 401"]

    # What-if

    async def predict(self, inquiry: Inquiry) -> tuple[DemandForecast, Prediction]:
        self.inquiries.append(inquiry)
        if self.meanwhile is not None:
            self.meanwhile()
        self._check("predict")
        objectives = inquiry.spec.objectives
        found = replace(predicted(self.fewest), objectives=objectives, at_s=inquiry.seen.now_s)
        return DemandForecast(2.5, inquiry.horizon_s, "trend"), found

    # What tests ask

    def reconcile(self) -> Result:
        return asyncio.run(self.reconciler.reconcile(KEY))

    @property
    def status(self) -> dict[str, Any]:
        assert self.resource is not None
        return dict(self.resource.get("status", {}))

    def condition(self, kind: str) -> tuple[str, str]:
        return next(((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == kind), ("", ""))

    def metric(self, name: str, **labels: str) -> float | None:
        registry: CollectorRegistry = self.metrics.registry
        value = registry.get_sample_value(name, labels)
        return None if value is None else float(value)


def test_a_reconcile_scales_and_reports() -> None:
    site = Site()
    site.fewest = 4
    assert site.reconcile() == Result(15.0)
    assert site.written == [("scale", 4), ("event", "ScaledUp", False)]
    assert (site.status["reason"], site.status["recommendedReplicas"]) == ("Forecast", 4)
    assert site.status["demand"]["expectedRequestsPerSecond"] == 2.5
    assert site.status["coldStartSeconds"] == 40.0
    assert site.condition("Ready") == ("True", "AsExpected")
    assert "t-demand" in site.maps
    assert site.metric("andes_operator_reconciles_total", reason="Forecast") == 1.0
    assert site.metric("andes_operator_ticks_total", reason="Forecast") == 1.0, "by its former name too"
    assert site.metric("andes_operator_scale_changes_total", direction="up", reason="Forecast") == 1.0
    assert site.metric("andes_operator_recommended_replicas", namespace="chat", target="t") == 4.0


def test_the_what_if_is_asked_with_all_that_is_known() -> None:
    site = Site()
    site.reconcile()
    (inquiry,) = site.inquiries
    assert inquiry.seen.rate_rps == pytest.approx(2.0, rel=0.01)
    assert inquiry.since_s == NOW_S - 600
    assert inquiry.horizon_s == 40.0 + 15.0, "a cold start, and until the next reconcile"
    assert (inquiry.readers["reading"].target.tds, inquiry.readers["reading"].weight) == (9, 2)
    assert inquiry.last is None


def test_an_answer_is_used_again_and_then_corrected() -> None:
    site = Site()
    site.reconcile()
    site.now_s += 15.0
    site.reconcile()
    assert len(site.inquiries) == 1
    site.now_s += 60.0
    site.reconcile()
    assert len(site.inquiries) == 2
    assert site.inquiries[1].last is not None


def test_replicas_by_the_clock_are_there_whatever_demand_says() -> None:
    site = Site(schedule=[{"start": "0 9 * * 6", "end": "0 10 * * 6", "minReplicas": 7}])
    site.reconcile()
    assert site.written[0] == ("scale", 7)
    assert site.status["message"] == (
        '2 replicas are outside minReplicas 7 (at least 7: schedule "0 9 * * 6" to "0 10 * * 6" UTC)'
    )
    assert site.status["bounds"]["minReplicas"] == 7
    site.now_s += 3600.0
    site.reconcile()
    assert site.status["bounds"] == {"minReplicas": 1, "maxReplicas": 20, "why": None}


def test_no_more_is_asked_for_than_the_budget_buys() -> None:
    site = Site(budget={"gpus": 12}, gpusPerReplica=4)
    site.fewest = None
    site.reconcile()
    assert site.written[0] == ("scale", 3)
    assert site.condition("Attainable") == ("False", "MaxReplicas")
    assert site.status["bounds"]["why"] == "at most 3: budget of 12 GPUs"


def test_a_paused_member_holds_its_part_of_the_pool() -> None:
    site = Site(mode="Pooled", pause={"until": "2026-11-21T09:03:00Z"})
    site.fewest = 4
    site.pools = [{
        "metadata": {"name": "gpus", "creationTimestamp": "x"},
        "spec": {"budget": {"gpus": 8}, "members": [{"target": "t"}]},
        "status": {"members": [{"target": "t", "replicas": 2, "exact": False, "grant": 1, "reserved": 2}]},
    }]  # fmt: skip
    site.reconcile()
    assert site.written == []
    assert (site.status["pool"]["name"], site.status["pool"]["asks"], site.status["pool"]["grant"]) == ("gpus", None, 1)
    assert (site.status["recommendedReplicas"], site.condition("Conflict")) == (4, ("False", "Paused"))
    site.now_s += 120.0
    site.reconcile()
    assert (site.written, site.status["pool"]["asks"]) == ([], 4), "what it is given"


def test_a_paused_target_recommends_until_the_pause_ends() -> None:
    site = Site(pause={"until": "2026-11-21T09:03:00Z", "reason": "new drivers"})
    site.fewest = 4
    site.reconcile()
    assert (site.replicas, site.status["recommendedReplicas"]) == (2, 4)
    assert site.condition("Conflict") == ("False", "Paused")
    assert site.status["paused"] == "paused until 2026-11-21T09:03:00Z: new drivers"
    assert site.status["message"].endswith("; paused until 2026-11-21T09:03:00Z: new drivers")
    site.now_s += 60.0
    site.reconcile()
    assert site.replicas == 4
    assert site.status["paused"] is None


def test_a_target_that_is_gone_is_forgotten() -> None:
    site = Site()
    site.reconcile()
    site.resource = None
    assert site.reconcile() == Result(None)
    assert site.metric("andes_operator_recommended_replicas", namespace="chat", target="t") is None


def test_an_api_server_that_fails_is_the_callers_to_handle() -> None:
    for request in ("get", "scale", "pods", "set_scale", "status"):
        site = Site()
        site.fewest = 4
        site.errors[request] = ClusterError(503, "away")
        with pytest.raises(ClusterError):
            site.reconcile()


def test_many_targets_of_a_namespace_share_one_list_of_its_pods() -> None:
    site = Site()
    site.reconcile()
    assert site.shared == 0
    site.targets = 100
    site.reconcile()
    assert site.shared == 1
    assert site.status["readyReplicas"] == 2


def test_a_target_is_for_the_demand_of_its_engines_model() -> None:
    site = Site()
    site.models = ("llama", "qwen")
    site.others = (FleetReplica("10.0.9.9:80", True, False, 500, 90, 0, model="qwen"),)
    site.reconcile()
    assert site.asked == [None, "llama"]
    assert site.inquiries[0].seen.rate_rps == pytest.approx(1.0, rel=0.02), "half of it"
    assert site.inquiries[0].seen.open_streams == 10
    assert (site.status["demand"]["model"], site.status["demand"]["share"]) == ("llama", 1.0)
    site.reconcile()
    assert site.asked == [None, "llama", "llama"], "it is known from then on"
    site.models = ("mistral", "qwen")
    site.reconcile()
    assert site.asked[3:] == ["llama", None, "mistral"], "its engines have another one now"


def test_without_an_engine_the_model_is_remembered_or_has_to_be_named() -> None:
    site = Site(replicas=0, minReplicas=0)
    assert site.resource is not None
    site.models = ("llama", "qwen")
    site.reconcile()
    assert site.condition("DataAvailable") == ("False", "DataMissing")
    assert "demand.gateway.model" in site.status["message"]
    known = Site(replicas=0, minReplicas=0)
    assert known.resource is not None
    known.models, known.resource["status"] = site.models, {"demand": {"model": "llama"}}
    known.reconcile()
    assert known.asked == ["llama"]
    assert known.status["demand"]["model"] == "llama"


def test_a_model_that_is_named_goes_before_and_one_that_no_gateway_knows_is_said() -> None:
    site = Site(demand={"gateway": {"service": "gateway", "model": "llama"}})
    site.models = ("llama", "qwen")
    site.reconcile()
    assert site.asked == ["llama"]
    wrong = Site(replicas=3, demand={"gateway": {"service": "gateway", "model": "lama"}})
    wrong.models = ("llama", "qwen")
    wrong.reconcile()
    assert wrong.condition("DataAvailable") == ("False", "DataMissing")
    assert wrong.status["message"] == "no gateway knows the model lama; they know llama, qwen: held at 3"


def test_two_pools_of_one_model_share_its_demand() -> None:
    site = Site(replicas=2)
    site.models = ("llama",)
    site.others = (FleetReplica("10.0.9.9:80", True, False, 30, 8, 0, model="llama"),)
    site.reconcile()
    seen = site.inquiries[0].seen
    assert site.status["demand"]["share"] == 0.25, "ten of forty streams"
    assert seen.rate_rps == pytest.approx(0.25, rel=0.1), "a quarter of one a second"
    assert (seen.open_streams, seen.waiting) == (10, 0)


def test_an_error_that_repeats_reaches_status_and_events() -> None:
    for error in (ClusterError(503, "list the pods of chat: away"), ZeroDivisionError("x"), TypeError("'int' object")):
        site = Site()
        site.errors["pods"] = error
        for _ in range(2):
            with pytest.raises(type(error)):
                site.reconcile()
            assert site.status == {}, "one or two are an API server that restarts"
        with pytest.raises(type(error)):
            site.reconcile()
        assert site.condition("Ready") == ("False", "ReconcileFailed")
        assert site.written == [("event", "ReconcileFailed", True)]
        assert site.status["message"].startswith("3 reconciles in a row failed: ")
        assert "object" not in site.status["message"]
        site.errors.clear()
        site.reconcile()
        assert site.condition("Ready") == ("True", "AsExpected")


def test_a_scale_without_a_selector_is_named_and_nothing_is_done() -> None:
    site = Site(replicas=3)
    site.selector, site.fewest = "", 9
    assert site.reconcile() == Result(15.0)
    assert site.condition("TargetFound") == ("False", "NoSelector")
    assert site.condition("Ready") == ("False", "NoSelector")
    assert site.replicas == 3


def test_two_operators_that_serve_the_same_target_warn_and_one_works() -> None:
    site = Site()
    assert site.resource is not None
    other = {"operator": "team-b/andes-operator", "observedAt": "2026-11-21T09:01:50Z"}
    site.resource["status"], site.fewest = dict(other), 4
    assert site.reconcile() == Result(15.0)
    assert site.written == [("event", "OtherOperator", True)]
    assert (site.status, site.replicas) == (other, 2)
    site.reconcile()
    assert len(site.written) == 1, "said once"
    site.now_s += 45.0
    site.reconcile()
    assert site.replicas == 4, "the other has gone"
    assert site.status["operator"] == "chat/andes-operator"
    site.now_s += 15.0
    site.reconcile()
    assert ("event", "OtherOperator", True) not in site.written[1:], "its own status is no other's"


def test_of_two_operators_that_find_each_other_the_first_by_name_goes_on_first() -> None:
    for name, waits in (("team-b/andes-operator", False), ("a/andes-operator", True)):
        site = Site()
        assert site.resource is not None
        site.resource["status"] = {"operator": name, "observedAt": "2026-11-21T09:01:00Z"}
        site.reconcile()
        assert (site.status["operator"] == name) is waits


def test_what_cannot_be_used_in_the_spec_is_named() -> None:
    site = Site(minReplicas=30)
    assert site.reconcile() == Result(INVALID_S)
    assert site.condition("TargetFound") == ("Unknown", "InvalidSpec")
    assert site.condition("Ready") == ("False", "InvalidSpec")
    assert "spec.minReplicas 30" in site.status["message"]
    assert site.written == [("event", "InvalidSpec", True)]
    site.reconcile()
    assert len(site.written) == 1, "an event only when Ready changes"


@pytest.mark.parametrize(
    ("options", "named"),
    [({"no_such_option": 1}, "no_such_option"), ({"growth_tokens": "many"}, "growth_tokens"),
     ({"growth_tokens": True}, "growth_tokens"), ({"growth_tokens": [1]}, "growth_tokens must be a number"),
     ({"growth_tokens": None}, "growth_tokens must be a number"), ({"x": {"y": 1}}, 'got {"y": 1}')],
)  # fmt: skip
def test_policy_options_that_do_not_fit_are_named_and_reconciling_goes_on(options: dict[str, Any], named: str) -> None:
    site = Site(whatIf={"profile": "h100-llama-3.1-8b", "policy": "fcfs", "policyOptions": options})
    assert site.reconcile() == Result(15.0)
    assert site.condition("Ready") == ("False", "InvalidSpec")
    assert site.condition("Attainable") == ("Unknown", "InvalidSpec")
    assert site.status["reason"] == "NoPrediction"
    assert "spec.whatIf.policyOptions" in site.status["message"]
    assert named in site.status["message"]
    assert site.inquiries == []
    assert site.status["replicas"] == 2
    assert site.metric("andes_operator_reconcile_failures_total", kind="what_if") == 1.0


def test_a_prediction_that_fails_is_said_and_nothing_is_removed() -> None:
    site = Site(replicas=6)
    site.errors["predict"] = PredictionError("profile 'abacus': not known")
    assert site.reconcile() == Result(15.0)
    assert site.condition("Ready") == ("False", "PredictionFailed")
    assert "profile 'abacus': not known" in site.status["message"]
    assert site.replicas == 6


@pytest.mark.parametrize(("status", "condition"), [(404, ("False", "NotFound")), (403, ("False", "Forbidden"))])
def test_a_scale_that_cannot_be_read_is_said(status: int, condition: tuple[str, str]) -> None:
    site = Site()
    site.errors["scale"] = ClusterError(status, "no scale")
    assert site.reconcile() == Result(15.0)
    assert site.condition("TargetFound") == condition
    assert site.status["message"] == "no scale"


def test_a_right_that_is_missing_is_said() -> None:
    site = Site()
    site.errors["pods"] = ClusterError(403, "cannot list pods")
    assert site.reconcile() == Result(INVALID_S)
    assert site.condition("Ready") == ("False", "Forbidden")
    assert site.condition("DataAvailable") == ("Unknown", "Forbidden")


def test_without_data_nothing_is_predicted_and_the_scale_is_held() -> None:
    site = Site(replicas=3)
    site.missing = ("gateway g: timed out",)
    assert site.reconcile() == Result(15.0)
    assert (site.inquiries, site.replicas) == ([], 3)
    assert site.condition("DataAvailable") == ("False", "DataMissing")


def test_a_conflict_or_advice_writes_no_scale() -> None:
    for site in (Site(mode="Advisory"), Site()):
        site.fewest = 4
        ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}
        site.hpas = [{"metadata": {"name": "old"}, "spec": {"scaleTargetRef": ref}}]
        site.reconcile()
        assert site.replicas == 2
        assert site.status["recommendedReplicas"] == 4
    assert site.condition("Conflict") == ("True", "OtherWriter")


def test_an_edit_or_another_writer_meanwhile_drops_the_decision() -> None:
    def edit() -> None:
        assert site.resource is not None
        site.resource["metadata"]["generation"] += 1

    def write() -> None:
        site.replicas, site.version = 7, site.version + 1

    for meanwhile in (edit, write):
        site = Site()
        site.fewest, site.meanwhile = 4, meanwhile
        assert site.reconcile() == Result(CHANGED_S)
        assert ("scale", 4) not in site.written
        assert site.status == {}


STABLE = {"since": NOW_S - 1000, "settled": NOW_S - 1000, "replicas": 3, "asks": [{"at": NOW_S - 500, "replicas": 2}]}


def test_before_a_pod_is_removed_its_cost_is_told_and_it_is_drained() -> None:
    site = Site(replicas=3)
    assert site.resource is not None
    site.resource["status"] = {"memory": STABLE}
    site.streams = [9, 1, 5]
    site.reconcile()
    mark = {names.DRAINING: "2026-11-21T09:02:00Z"}
    assert site.written == [
        ("engine-0", {names.DELETION_COST: "9"}), ("engine-1", {names.DELETION_COST: "1"}),
        ("engine-2", {names.DELETION_COST: "5"}), ("engine-1", mark), ("drain", "10.0.0.1:80", True),
        ("scale", 2), ("event", "ScaledDown", False),
    ]  # fmt: skip


SPOT = [{"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}]


def going(number: int) -> dict[str, Any]:
    return {"metadata": {"name": f"node-{number}"}, "spec": {"taints": SPOT}}


def test_an_engine_whose_node_is_about_to_go_is_drained_and_replaced() -> None:
    site = Site()
    site.nodes.see(going(1))
    site.reconcile()
    assert site.written == [
        ("engine-1", {names.DRAINING: "2026-11-21T09:02:00Z"}), ("drain", "10.0.0.1:80", True), ("evict", "engine-1"),
        ("event", names.Reason.NODE_GOING, False),
    ]  # fmt: skip
    assert site.reconciler.on_node("node-1") == [KEY]
    assert site.reconciler.on_node("node-7") == []


def test_the_only_engine_serves_on_while_what_replaces_it_starts() -> None:
    site = Site(replicas=1)
    site.fewest = 1
    site.nodes.see(going(0))
    site.reconcile()
    assert ("evict", "engine-0") in site.written
    assert not [w for w in site.written if w[0] == "drain"]


@pytest.mark.parametrize("status", [0, 403, 404, 429, 500])
def test_an_eviction_that_is_not_possible_now_fails_nothing(status: int) -> None:
    """500: of a pod with two PodDisruptionBudgets."""
    site = Site(minReplicas=3)
    site.nodes.see(going(1))
    site.errors["evict"] = ClusterError(status, "evict pod engine-1: no")
    site.reconcile()
    assert ("drain", "10.0.0.1:80", True) in site.written
    assert ("scale", 3) in site.written, "what is decided is done"


@pytest.mark.parametrize("spec", [{"mode": "Advisory"}, {"pause": {"until": "2026-11-21T10:00:00Z"}}])
def test_advice_moves_no_engine(spec: dict[str, Any]) -> None:
    site = Site(**spec)
    site.nodes.see(going(1))
    site.reconcile()
    assert not [w for w in site.written if w[0] in ("evict", "drain")]


def test_what_stands_on_a_cordoned_node_is_removed_first_and_not_before() -> None:
    site = Site(replicas=3)
    assert site.resource is not None
    site.resource["status"] = {"memory": STABLE}
    site.streams = [9, 1, 5]
    site.nodes.see({"metadata": {"name": "node-0"}, "spec": {"unschedulable": True}})
    site.reconcile()
    assert ("drain", "10.0.0.0:80", True) in site.written
    assert ("evict", "engine-0") not in site.written
    assert ("engine-0", {names.DELETION_COST: str(GOING_COST)}) in site.written


def test_a_pod_that_has_gone_meanwhile_is_no_error() -> None:
    site = Site(replicas=3)
    assert site.resource is not None
    site.resource["status"] = {"memory": STABLE}
    site.errors["annotate"] = ClusterError(404, "gone")
    site.reconcile()
    assert site.replicas == 2


def test_without_replicas_a_reconcile_comes_soon() -> None:
    site = Site(replicas=0, minReplicas=0)
    site.requests = 0
    assert site.reconcile() == Result(AT_ZERO_S)
    assert site.inquiries == []
    assert site.status["reason"] == "Idle"


@pytest.mark.parametrize(
    "edited",
    [
        {"memory": {"at": "spoilt"}}, {"memory": {"asks": [{"at": 1, "replicas": float("inf")}]}}, {"memory": {"asks": [7]}},
        {"memory": {"at": 9e15, "since": 9e15, "asks": [{"at": 9e15, "replicas": 10_000}]}}, {"coldStartSeconds": -4e9},
        {"operator": "chat/andes-operator", "observedAt": "soon"}, {"conditions": []}, {"demand": {}, "objectives": []},
    ],
)  # fmt: skip
def test_a_status_that_was_edited_by_hand_stops_nothing(edited: dict[str, Any]) -> None:
    site = Site()
    assert site.resource is not None
    site.resource["status"], site.fewest = edited, 3
    assert site.reconcile() == Result(15.0)
    assert site.replicas == 3
    assert site.status["memory"]["since"] == NOW_S
    assert len(site.status["memory"]["asks"]) == 1


def test_an_event_that_cannot_be_created_is_no_failure() -> None:
    site = Site()
    site.fewest = 4
    site.errors["event"] = ClusterError(500, "no")
    assert site.reconcile() == Result(15.0)
    assert site.replicas == 4


def test_a_class_that_cannot_be_used_is_named() -> None:
    site = Site()

    async def classes(plural: str, namespace: str | None, ttl_s: float = 0.0) -> list[dict[str, Any]]:
        return [{"metadata": {"name": "reading"}, "spec": {"weight": -1}}] if plural == names.CLASSES else []

    site.list_all = classes  # type: ignore[method-assign]
    site.reconcile()
    assert site.condition("Attainable") == ("Unknown", "PredictionFailed")
    assert "weight" in site.status["message"]


def test_what_needs_no_prediction_waits_for_none() -> None:
    below = Site(1, minReplicas=3)
    below.reconcile()
    assert (below.replicas, below.status["reason"], below.inquiries) == (3, "Bounds", [])
    zero = Site(0, minReplicas=0)
    zero.requests = 1
    zero.reconcile()
    assert (zero.replicas, zero.status["reason"], zero.inquiries) == (1, "FirstRequest", [])


def test_a_first_status_does_not_wait_for_a_slow_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    released = asyncio.Event()

    async def slow(inquiry: Inquiry) -> tuple[DemandForecast, Prediction]:
        await released.wait()
        return await site.predict(inquiry)

    monkeypatch.setattr(site.reconciler, "_predict_demand", slow)
    monkeypatch.setattr("andes_operator.reconcile.FIRST_STATUS_S", 0.01)
    assert site.reconcile() == Result(CHANGED_S)
    assert (site.status["reason"], site.replicas) == ("NoPrediction", 2)
    assert site.condition("Ready")[0] == "True"
    released.set()
    site.fewest, site.now_s = 4, site.now_s + 1.0
    site.reconcile()
    assert site.replicas == 4


# Headroom

TABLE = Table(Buffer(1.1, 200.0), Lengths(100.0, 50.0, 4.5, 1.0, 50.0, 1.0), NOW_S)


class Tabulated(Site):
    """Its engines' table is made when it is asked for; ``tables`` of the inquiries."""

    def __init__(self, replicas: int = 2, **spec: Any) -> None:
        super().__init__(replicas, **spec)
        self.tables: list[Inquiry] = []
        self.broken: str | None = None
        self.requests, self.work_s, self.lengths = 1200, 2.0, TABLE.lengths  # two a second for ten minutes
        self.reconciler = Reconciler(
            self, self, self.predict, make_table=self.make_table,  # type: ignore[arg-type]
            metrics=self.metrics, tracer=NoOpTracer(), name="chat/andes-operator", clock=lambda: self.now_s,
        )  # fmt: skip

    async def predict(self, inquiry: Inquiry) -> tuple[DemandForecast, Prediction]:
        expected, found = await super().predict(inquiry)
        return expected, replace(found, work_s=self.work_s, lengths=self.lengths)

    async def make_table(self, inquiry: Inquiry) -> Table:
        self.tables.append(inquiry)
        if self.broken:
            raise PredictionError(self.broken)
        return replace(TABLE, lengths=self.lengths, at_s=inquiry.seen.now_s)

    def reconciles(self, count: int, every_s: float = 15.0) -> None:
        """In one loop, in which tables are made between reconciles."""

        async def scenario() -> None:
            for _ in range(count):
                await self.reconciler.reconcile(KEY)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.now_s += every_s

        asyncio.run(scenario())


def test_without_a_table_the_what_if_decides_and_with_one_what_survives() -> None:
    site = Tabulated(4, behavior={"coldStartSeconds": 300})
    site.reconciles(1)
    assert site.status["headroom"] is None
    assert site.metric("andes_operator_busy_replicas", namespace="chat", target="t") is None
    assert site.status["reason"] == "Stabilizing"
    assert [inquiry.horizon_s for inquiry in site.tables] == [315.0]
    assert site.tables[0].readers["reading"].target.tds == 9
    site.reconciles(1)
    assert (site.status["reason"], site.replicas) == ("Headroom", 8)
    site.replicas = 7
    site.reconciles(1)
    assert (site.status["reason"], site.replicas) == ("Steady", 7)
    assert site.status["message"].startswith(
        "7 replicas: survive 3.0 x 4.0 busy for 315 s; the next order would be due in"
    )
    found = site.status["headroom"]
    assert (found["surge"], found["seconds"], found["busyReplicas"], found["growth"]) == (3.0, 315, 4.0, 3.0)
    assert (found["steadyLoad"], found["bufferSeconds"], found["why"]) == (
        1.1,
        200,
        "assumed: 0 of 24 hours of history",
    )
    assert site.status["timeToBreach"] > 315
    of = {"namespace": "chat", "target": "t"}
    assert site.metric("andes_operator_busy_replicas", **of) == 4.0
    assert site.metric("andes_operator_surge_ratio", **of) == 3.0
    assert site.metric("andes_operator_time_to_breach_seconds", **of) == site.status["timeToBreach"]
    for kind, hours in (("held", "gpuHours"), ("saved", "gpuHoursSaved")):
        assert site.metric("andes_operator_gpu_hours", kind=kind, **of) == float(site.status[hours])


def test_a_table_is_made_once_and_again_for_other_engines_objectives_and_lengths() -> None:
    site = Tabulated(7, behavior={"coldStartSeconds": 300})
    site.reconciles(4)
    assert len(site.tables) == 1
    assert site.resource is not None
    site.resource["metadata"]["generation"] = 2
    site.reconciles(2)
    assert len(site.tables) == 1, "another generation, of which nothing matters to the engines"
    site.resource["metadata"]["generation"], site.resource["spec"]["objectives"][0]["value"] = 3, 0.9
    site.reconciles(1)
    assert len(site.tables) == 2
    site.now_s += 600.0
    site.reconciles(2)
    assert len(site.tables) == 2, "lengths are the same"


def test_a_table_that_cannot_be_made_leaves_the_what_if_and_is_not_asked_for_at_every_reconcile() -> None:
    site = Tabulated(2, behavior={"coldStartSeconds": 300})
    site.broken = "prompts do not fit"
    site.reconciles(5)
    assert len(site.tables) == 1
    assert (site.status["headroom"], site.status["reason"]) == (None, "Steady")
    assert site.metric("andes_operator_reconcile_failures_total", kind="table") == 1.0
    site.broken, site.now_s = None, site.now_s + 600.0
    site.reconciles(2)
    assert (len(site.tables), site.status["reason"]) == (2, "Headroom")


def test_growth_is_learned_and_kept_with_the_history() -> None:
    site = Tabulated(7, behavior={"coldStartSeconds": 300})
    site.reconciles(50)
    kept = GrowthHistory.from_json(site.maps["t-demand"][names.GROWTH_KEY])
    assert kept.calm.total() > 0
    assert max(kept.peaks_rps.values()) == pytest.approx(2.0, rel=0.05)
    again = Tabulated(7, behavior={"coldStartSeconds": 300})
    again.maps = site.maps
    again.reconciles(1)
    assert again.reconciler._states.of(again.resource or {}).growth.calm.total() == kept.calm.total() + 1


def test_untrusted_data_books_nothing() -> None:
    site = Tabulated(7, behavior={"coldStartSeconds": 300})
    site.missing = ("gateway h does not answer",)
    site.reconciles(3)
    assert site.status["memory"]["ledger"]["requestsPerSecond"] == []
    assert site.tables == []


# One of many targets


def many(**spec: Any) -> Site:
    site = Site(**spec)
    site.targets, site.fewest = MANY_TARGETS, 2
    return site


def test_the_status_of_one_of_many_is_written_when_there_is_something_to_act_on() -> None:
    site = many()
    site.reconcile()
    assert site.statuses == 1
    for _ in range(4 * int(STATUS_S / 15.0)):
        site.now_s += 15.0
        site.reconcile()
    assert site.statuses == 5, "for the figures, once in STATUS_S"
    assert site.metric("andes_operator_recommended_replicas", namespace="chat", target="t") is not None
    site.missing = ("gateway g does not answer",)
    site.now_s += 15.0
    site.reconcile()
    assert site.condition("DataAvailable") == ("False", "DataMissing")
    assert site.statuses == 6, "at once"
    alone = Site()
    for _ in range(3):
        alone.reconcile()
        alone.now_s += 15.0
    assert alone.statuses == 3


def test_one_of_many_goes_on_from_what_it_has_not_written() -> None:
    site, alone = many(), Site()
    for each in (site, alone):
        for _ in range(4):
            each.reconcile()
            each.now_s += 15.0
    said, (now, then) = alone.status, (s.reconciler._states.of(s.resource or {}).made for s in (site, alone))
    assert now["memory"] == then["memory"]
    assert now["gpuHours"] == then["gpuHours"] == said["gpuHours"]
    site.now_s = alone.now_s = alone.now_s + STATUS_S
    for each in (site, alone):
        each.reconcile()
    assert site.status["memory"] == alone.status["memory"]


def test_a_list_of_many_targets_is_used_for_longer() -> None:
    site = many()
    site.reconcile()
    assert site.ages[names.TARGETS] == MANY_TTL_S
    site.targets = 1
    site.reconcile()
    site.reconcile()
    assert site.ages[names.TARGETS] == LIST_TTL_S


def test_an_error_of_one_of_many_is_taken_back_when_it_is_over() -> None:
    site = many()
    site.reconcile()
    site.selector = ""
    site.now_s += 15.0
    site.reconcile()
    assert site.condition("TargetFound") == ("False", "NoSelector")
    site.selector = "app=engine"
    site.now_s += 15.0
    site.reconcile()
    assert site.condition("TargetFound") == ("True", "Found")


def test_another_operator_of_many_targets_is_given_as_long_as_it_may_be_silent() -> None:
    site = many()
    assert site.resource is not None
    site.resource["status"] = {"operator": "team-b/andes-operator", "observedAt": "2026-11-21T09:00:50Z"}
    site.reconcile()
    assert site.status["operator"] == "team-b/andes-operator", "70 s are no more than it may take"
    site.now_s += 3 * STATUS_S
    site.reconcile()
    assert site.status["operator"] == "chat/andes-operator"


def test_two_operators_of_many_targets_find_each_other_by_a_status_that_is_seen_late() -> None:
    site = many()
    for _ in range(2):
        site.reconcile()
        site.now_s += 15.0
    assert site.resource is not None
    between = timestamp(site.now_s - 20.0)
    site.resource["status"] = {**site.status, "operator": "team-b/andes-operator", "observedAt": between}
    statuses = site.statuses
    site.reconcile()
    assert ("event", names.Reason.OTHER_OPERATOR, True) in site.written
    assert site.statuses == statuses


def test_one_of_many_that_is_not_listed_is_looked_for_itself() -> None:
    site = many()
    site.reconcile()
    others = [{**(site.resource or {}), "metadata": {**(site.resource or {})["metadata"], "name": "u"}}] * MANY_TARGETS
    site.listed = others
    assert site.reconcile() == Result(15.0), "the list was older than it"
    site.resource = None
    assert site.reconcile() == Result(None)
