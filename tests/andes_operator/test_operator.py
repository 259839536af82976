"""The operator as a process, under exactly its role, on a real API server with real controllers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.control_plane import ApiError, ControlPlane, until
from opentelemetry.trace import NoOpTracer
from plane import RBAC, Gateway, Moody, Node, Operator, Proxy, World, node_role, operator_kubeconfig, running

from andes_operator.class_publisher import ClassPublisher
from andes_operator.cluster import Cluster, connect
from andes_operator.controller import Controller
from andes_operator.gateways import Gateways
from andes_operator.prediction import Inquiry, predict
from andes_operator.predictor import Predictor
from andes_operator.reconcile import Reconciler
from andes_operator.telemetry import OperatorMetrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FAST = {
    "tickSeconds": 1, "windowSeconds": 10, "coldStartSeconds": 5,
    "scaleDown": {"stabilizationWindowSeconds": 4, "periodSeconds": 1, "idleSeconds": 4},
}  # fmt: skip
SHORT_LEASE = {"lease-seconds": "10"}
WATCH_BOUND_S = 60.0
"""Far more than it takes, on a slow machine too, and less than it would by what kopf does unasked."""
BUSY_RPS = 60.0
"""More than one simulated H100 can serve at 500 prompt and 100 output tokens."""
BUSY_STAY_S = 4.5
"""What an answer takes where two simulated H100 share that: with less, the engines would tell that there is less load."""
_numbers = itertools.count(1)


NO_TOKEN = {"automountServiceAccountToken": False}
"""A pod that wants one is refused until its account has one, and the controller that makes them can be a minute late."""


class Site:
    """A namespace with a role, a gateway, a Deployment of engines, and QoETargets."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.namespace = plane, f"site-{next(_numbers)}"
        plane("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.core, self.apps = f"/api/v1/namespaces/{self.namespace}", f"/apis/apps/v1/namespaces/{self.namespace}"
        self.own = f"/apis/andes.dev/v1alpha1/namespaces/{self.namespace}"
        until("the namespace's account", lambda: plane("GET", f"{self.core}/serviceaccounts/default"))
        scales = (("apps", "deployments"), ("apps", "statefulsets"), ("parts.example", "gangs"))
        self.kubeconfig = operator_kubeconfig(plane, self.namespace, scales)
        self.world = World(engines=self.engine_names)
        self.gateway = Gateway(self.world)
        self.gateway.start()
        self.log = folder / f"{self.namespace}.log"
        self._serve_gateway()

    def operator(self, **more: str) -> Operator:
        return Operator(self.kubeconfig, self.namespace, self.log, **more)

    def _serve_gateway(self) -> None:
        labels = {"app": "gateway"}
        container = {"name": "g", "image": "g", "ports": [{"name": "http", "containerPort": self.gateway.port}]}
        self.plane("POST", f"{self.core}/pods", {
            "metadata": {"name": "gateway-0", "labels": labels, "annotations": {"test/ip": "127.0.0.1"}},
            "spec": {**NO_TOKEN, "containers": [container]},
        })  # fmt: skip
        self.plane("POST", f"{self.core}/services", {
            "metadata": {"name": "gateway"},
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        })  # fmt: skip
        until("the gateway runs", lambda: "podIP" in self.plane("GET", f"{self.core}/pods/gateway-0")["status"])

    def deploy(self, replicas: int = 1, ready: int | None = None, *, name: str = "engine", **pod: Any) -> None:
        """Engines, of which ``ready`` will be so; pod: more fields of their pods."""
        labels = {"app": "engine", "of": name}
        self.plane("POST", f"{self.apps}/deployments", {
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {**NO_TOKEN, "containers": [{"name": "e", "image": "e"}], **pod},
                },
            },
        })  # fmt: skip
        expected = len(self.engine_names()) + (replicas if ready is None else ready)
        until("the engines are ready", lambda: len(self.engine_names()) >= expected)

    def pods(self) -> list[dict[str, Any]]:
        return self.plane.items(f"{self.core}/pods?labelSelector=app%3Dengine")

    def engine_names(self) -> list[str]:
        """As the gateway calls them."""
        there = [p for p in self.pods() if "deletionTimestamp" not in p["metadata"]]
        return [f"{p['status']['podIP']}:8000" for p in there if "podIP" in p["status"]]

    def replicas(self, name: str = "engine") -> int:
        return int(self.plane("GET", f"{self.apps}/deployments/{name}")["spec"]["replicas"])

    def aim(self, name: str = "chat", **spec: Any) -> None:
        """A QoETarget on the Deployment ``engine``, with these fields."""
        whole = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
            "objectives": [{"statistic": "ShareAbove", "threshold": 0.95, "value": 0.95}],
            "maxReplicas": 6,
            "demand": {"gateway": {"service": "gateway", "port": "http"}},
            "whatIf": {"profile": "h100-llama-3.1-8b"},
            "behavior": FAST,
            **spec,
        }
        body = {"apiVersion": "andes.dev/v1alpha1", "kind": "QoETarget", "metadata": {"name": name}, "spec": whole}
        self.plane("POST", f"{self.own}/qoetargets", body)

    def edit(self, name: str = "chat", **spec: Any) -> dict[str, Any]:
        return self.plane("PATCH", f"{self.own}/qoetargets/{name}", {"spec": spec})

    def target(self, name: str = "chat") -> dict[str, Any]:
        return self.plane("GET", f"{self.own}/qoetargets/{name}")

    def status(self, name: str = "chat") -> dict[str, Any]:
        return dict(self.target(name).get("status") or {})

    def condition(self, kind: str, name: str = "chat") -> tuple[str, str]:
        """(status, reason)."""
        for condition in self.status(name).get("conditions") or []:
            if condition["type"] == kind:
                return condition["status"], condition["reason"]
        return "", ""

    def events(self) -> set[str]:
        return {event["reason"] for event in self.plane.items(f"{self.core}/events")}

    def later(self, name: str = "chat", ticks: int = 3) -> dict[str, Any]:
        """The status after some more reconciles."""
        seen: set[str] = set()

        def enough() -> bool:
            seen.add(self.status(name).get("observedAt", ""))
            return len(seen) > ticks

        until(f"{ticks} more reconciles of {name}", enough)
        return self.status(name)


@pytest.fixture
def site(plane: ControlPlane, node: Node, tmp_path: Path) -> Iterator[Site]:
    made = Site(plane, tmp_path)
    yield made
    made.gateway.stop()
    with contextlib.suppress(ApiError):
        plane("DELETE", f"/api/v1/namespaces/{made.namespace}")
        for kind in ("clusterroles", "clusterrolebindings"):
            plane("DELETE", f"{RBAC}/{kind}/{node_role(made.namespace)}")


def get(operator: Operator, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}{path}", timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_a_surge_and_its_end(site: Site) -> None:
    site.deploy()
    site.world.rate_rps, site.world.stay_s = BUSY_RPS, BUSY_STAY_S
    site.aim()
    collector = f"http://127.0.0.1:{site.gateway.port}"
    with running(site.operator(**{"otlp-endpoint": collector})) as operator:
        until("readiness", lambda: get(operator, "/readyz")[0] == 200)
        until("more engines", lambda: site.replicas() >= 2)
        most = site.replicas()
        until("the status says so", lambda: site.status().get("readyReplicas") == site.status()["replicas"] == most)
        predicted = ("Steady", "Stabilizing", "Forecast")  # on a slow machine the what-if fails now and then
        status = until("a prediction", lambda: (found := site.status())["reason"] in predicted and found)
        assert status["demand"]["requestsPerSecond"] == pytest.approx(BUSY_RPS, rel=0.15)
        assert status["objectives"][0]["current"] == 1.0
        assert status["objectives"][0]["predicted"] >= 0.95
        assert status["summary"] == "1.000/0.95"
        assert site.condition("Ready") == ("True", "AsExpected")
        assert {c["type"] for c in status["conditions"]} == {
            "Ready", "DataAvailable", "TargetFound", "ObjectiveMet", "Attainable", "Conflict", "Schedulable",
            "EnginesFailing"}  # fmt: skip
        assert "replicas are predicted to give QoE share(0.95)" in status["message"]
        site.world.rate_rps = 0.5
        until("one engine", lambda: site.replicas() == 1)
        until("the event", lambda: {"ScaledUp", "ScaledDown"} <= site.events())
        metrics = get(operator, "/metrics")[1]
        assert f'andes_operator_recommended_replicas{{namespace="{site.namespace}",target="chat"}}' in metrics
        assert 'andes_operator_scale_changes_total{direction="up",reason="Forecast"}' in metrics
        assert get(operator, "/livez") == (200, "ok")
        until(
            "spans",
            lambda: {"andes.reconcile", "andes.observe", "andes.what_if", "andes.scale"} <= site.world.spans.keys(),
        )
        assert site.world.spans["andes.reconcile"]["andes.target"] == "chat"
        assert site.world.spans["andes.reconcile"]["andes.reason"]
        head, row = site.plane.kubectl("-n", site.namespace, "get", "qt").splitlines()[:2]
        assert dict(zip(head.split(), row.split()))["QOE"] == "1.000/0.95"
    assert " 403" not in operator.said()
    assert "forbidden" not in operator.said()
    assert operator.process.returncode == 0


def test_first_tokens_that_come_late_bring_replicas_though_qoe_is_met(site: Site) -> None:
    site.deploy(replicas=2)
    site.world.ttft_s = 5.0
    ttft = {"metric": "TTFT", "statistic": "Percentile", "percentile": 95, "seconds": 2}
    site.aim(objectives=[{"statistic": "Mean", "value": 0.9}, ttft], maxReplicas=5)
    with running(site.operator()) as operator:
        until("more replicas", lambda: site.replicas() > 2)
        status = site.status()
        until("it is said", lambda: site.condition("ObjectiveMet") == ("False", "BelowTarget"))
        mean, late = status["objectives"]
        assert (mean["metric"], mean["met"], late["metric"], late["met"]) == ("QoE", "True", "TTFT", "False")
        assert status["summary"].endswith("s/2 s")
        shown = f'objective_seconds{{class="*",kind="target",metric="TTFT",namespace="{site.namespace}",percentile="95",target="chat"}} 2.0'
        until("a metric to alert on", lambda: shown in get(operator, "/metrics")[1])
        site.world.ttft_s = 0.5
        until("it is met", lambda: site.condition("ObjectiveMet") == ("True", "Met"))


def test_without_data_the_scale_is_held_and_it_says_so(site: Site) -> None:
    site.deploy(replicas=3)
    site.world.silent = True
    site.aim()
    with running(site.operator()) as operator:
        until("it says so", lambda: site.condition("DataAvailable") == ("False", "DataMissing"))
        assert "HTTP 503" in site.later()["message"]
        assert site.replicas() == 3
        assert site.condition("Ready") == ("False", "DataMissing")
        held = f'target_ready{{namespace="{site.namespace}",reason="DataMissing",target="chat"}} 0.0'
        until("a metric to alert on", lambda: held in get(operator, "/metrics")[1])
        site.world.silent, site.world.skew_s = False, 100.0
        until("a wrong clock", lambda: site.condition("DataAvailable") == ("False", "DataContradictory"))
        assert site.replicas() == 3
        site.world.skew_s = 0.0
        until("data again", lambda: site.condition("Ready") == ("True", "AsExpected"))
        site.plane("DELETE", f"{site.core}/services/gateway")
        until("no gateway", lambda: site.condition("DataAvailable") == ("False", "DataMissing"))


def test_what_cannot_be_placed_is_given_back_and_said_in_the_schedulers_words(site: Site, node: Node) -> None:
    node.room["gpu"] = 2
    site.deploy(replicas=5, ready=2, nodeSelector={"gpu": "yes"})
    site.world.rate_rps, site.world.stay_s = BUSY_RPS, BUSY_STAY_S
    site.aim(maxReplicas=5, behavior={**FAST, "coldStartSeconds": 2}, whatIf={"profile": "l4-llama-3.1-8b"})
    with running(site.operator()) as operator:
        until("it says so", lambda: site.condition("Schedulable") == ("False", "Unschedulable"))
        until("all but one are given back", lambda: site.replicas() == 3)
        status = site.later()
        assert (site.replicas(), status["readyReplicas"], status["failingReplicas"]) == (3, 2, 1)
        (said,) = (c["message"] for c in status["conditions"] if c["type"] == "Schedulable")
        assert "nodes are available" in said
        failing = f'andes_operator_engines{{namespace="{site.namespace}",state="failing",target="chat"}} 1.0'
        until("a metric to alert on", lambda: failing in get(operator, "/metrics")[1])
        node.room["gpu"] = 5
        until("all, now that there is room", lambda: site.replicas() == 5 == len(site.engine_names()))
        until("no fault", lambda: site.condition("Schedulable") == ("True", "AsExpected"))


def test_advice_moves_nothing(site: Site) -> None:
    site.deploy()
    site.world.rate_rps = BUSY_RPS
    site.aim(mode="Advisory")
    with running(site.operator()):
        until("advice", lambda: site.status().get("recommendedReplicas", 0) >= 2)
        site.later()
        assert site.replicas() == 1
        site.edit(mode="Auto")
        until("an edit counts at once", lambda: site.replicas() >= 2)


def test_an_autoscaler_on_the_same_deployment_is_a_conflict_and_no_fight(site: Site) -> None:
    site.deploy(replicas=2)
    site.world.rate_rps = BUSY_RPS
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}
    hpas = f"/apis/autoscaling/v1/namespaces/{site.namespace}/horizontalpodautoscalers"
    site.plane("POST", hpas, {
        "metadata": {"name": "old"}, "spec": {"scaleTargetRef": ref, "minReplicas": 2, "maxReplicas": 2}})  # fmt: skip
    site.aim(minReplicas=3)
    with running(site.operator()):
        until("conflict", lambda: site.condition("Conflict") == ("True", "OtherWriter"))
        assert "HorizontalPodAutoscaler old scales Deployment/engine too" in str(site.later()["conditions"])
        assert site.replicas() == 2
        assert site.condition("Ready") == ("False", "OtherWriter")
        site.edit(mode="Advisory")
        until("advice is no conflict", lambda: site.condition("Conflict") == ("False", "Advisory"))
        site.edit(mode="Auto")
        until("conflict again", lambda: site.condition("Conflict") == ("True", "OtherWriter"))
        site.plane("DELETE", f"{hpas}/old")
        until("peace", lambda: site.replicas() >= 3)
        until("no conflict", lambda: site.condition("Conflict") == ("False", "SoleWriter"))


def test_of_two_targets_on_one_deployment_the_older_rules(site: Site) -> None:
    site.deploy()
    site.world.rate_rps = 0.5
    site.aim("a-first")
    with running(site.operator()):
        until("the first works", lambda: site.condition("Ready", "a-first")[0] == "True")
        site.aim("b-second", minReplicas=4)
        until("the second sees it", lambda: site.condition("Conflict", "b-second") == ("True", "OtherWriter"))
        site.later("b-second")
        assert site.replicas() == 1
        site.plane.kubectl("-n", site.namespace, "delete", "qt", "a-first")
        until("the second takes over", lambda: site.replicas() == 4)


def test_who_goes_is_who_has_least_to_lose(site: Site) -> None:
    site.deploy(replicas=3)
    site.world.rate_rps = 0.5
    quiet = site.engine_names()[1]
    site.world.streams = dict(zip(site.engine_names(), (9, 1, 5)))
    site.aim(minReplicas=2)
    with running(site.operator()):
        until("one fewer", lambda: site.replicas() == len(site.engine_names()) == 2)
        assert site.world.drained[0] == (quiet, True)
        note = "controller.kubernetes.io/pod-deletion-cost"
        costs = {f"{p['status']['podIP']}:8000": int(p["metadata"]["annotations"][note]) for p in site.pods()}
        assert {name: site.world.streams[name] for name in costs} == costs
        # The controllers of 1.20 do not know the cost: where they took another pod, ours works again.
        if quiet in site.engine_names():
            until("work again", lambda: (quiet, False) in site.world.drained)


def test_to_zero_and_back_on_the_first_request(site: Site) -> None:
    site.deploy(replicas=2)
    site.world.rate_rps, site.world.last_s = 0.5, 0.0
    site.aim(minReplicas=0)
    with running(site.operator()):
        until("none", lambda: site.replicas() == 0 and not site.pods())
        until("idle", lambda: site.status().get("reason") == "Idle")
        learned = site.later()["coldStartSeconds"]
    with running(site.operator()):
        assert site.later()["coldStartSeconds"] == learned, "a restart knows it, though there is no pod to learn from"
        site.world.last_s = None
        until("back", lambda: site.replicas() >= 1)
        assert site.status()["reason"] in ("FirstRequest", "Idle", "Forecast", "Steady")


def test_a_killed_operator_goes_on_where_it_was(site: Site) -> None:
    site.deploy(replicas=4)
    site.world.rate_rps = 0.5
    slow = {**FAST, "scaleDown": {"stabilizationWindowSeconds": 900, "periodSeconds": 1, "idleSeconds": 900}}
    site.aim(behavior=slow)
    operator = site.operator(**SHORT_LEASE)
    with running(operator):
        since = until("it remembers", lambda: site.status().get("memory", {}).get("since"))
        site.later()
        operator.kill()
    before = site.status()["memory"]
    with running(site.operator(**SHORT_LEASE)):
        after = site.later(ticks=2)["memory"]
        assert after["since"] == since, "stabilisation goes on"
        assert after["replicaSeconds"] > before["replicaSeconds"], "GPU-hours go on"
        site.edit(behavior={"scaleDown": {"stabilizationWindowSeconds": int(time.time() - since)}})
        until("and ends", lambda: site.replicas() < 4)


def test_what_is_gone_wrong_or_forbidden_is_said(site: Site) -> None:
    site.aim(scaleTargetRef={"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"})
    site.aim("kind", scaleTargetRef={"apiVersion": "apps/v1", "kind": "Rocket", "name": "x"})
    site.aim("role", scaleTargetRef={"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x"})
    site.aim("scale", scaleTargetRef={"apiVersion": "v1", "kind": "Service", "name": "gateway"})
    site.aim(
        "api", scaleTargetRef={"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "x"}
    )
    with running(site.operator()) as operator:
        until("not found", lambda: site.condition("TargetFound") == ("False", "NotFound"))
        until("no such kind", lambda: site.condition("TargetFound", "kind") == ("False", "NotFound"))
        assert "has no kind Rocket" in site.status("kind")["message"]
        until("no right", lambda: site.condition("TargetFound", "role") == ("False", "Forbidden"))
        until("no scale", lambda: "has no scale subresource" in site.status("scale").get("message", ""))
        until("no such API", lambda: site.condition("TargetFound", "api") == ("False", "NotFound"))
        assert site.status("api")["message"].startswith("this cluster has no API leaderworkerset.x-k8s.io/v1")
        site.deploy()
        until("found", lambda: site.condition("Ready") == ("True", "AsExpected"))
        site.plane("DELETE", f"{site.apps}/deployments/engine")
        until("gone", lambda: site.condition("TargetFound") == ("False", "NotFound"))
        site.plane.kubectl("-n", site.namespace, "delete", "qt", "--all")
        until("forgotten", lambda: "andes_operator_targets 0.0" in get(operator, "/metrics")[1])
        assert 'target="chat"' not in get(operator, "/metrics")[1]


def test_a_right_that_is_missing_is_said(site: Site) -> None:
    site.deploy()
    site.aim()
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{site.namespace}/roles/andes-operator"
    rules = site.plane("GET", path)["rules"]
    site.plane("PATCH", path, {"rules": [rule for rule in rules if "pods" not in rule["resources"]]})
    with running(site.operator()):
        until("it says so", lambda: site.condition("Ready") == ("False", "Forbidden"))
        assert "cannot list resource" in site.status()["message"]
        assert '"pods"' in site.status()["message"]


def test_an_unknown_profile_is_said_and_nothing_is_removed(site: Site) -> None:
    site.deploy(replicas=2)
    site.world.rate_rps = 0.5
    site.aim(whatIf={"profile": "abacus"})
    with running(site.operator()) as operator:
        until("no prediction", lambda: site.status().get("reason") == "NoPrediction")
        assert "profile 'abacus': not known" in site.later()["message"]
        assert site.condition("Ready") == ("False", "PredictionFailed")
        assert site.replicas() == 2
        assert "profile 'abacus': not known" in operator.said()


def test_policy_options_that_do_not_fit_are_named_and_reconciling_goes_on(site: Site) -> None:
    site.deploy(replicas=2)
    site.world.rate_rps = 0.5
    site.aim(whatIf={"profile": "h100-llama-3.1-8b", "policy": "fcfs", "policyOptions": {"growth_tokens": "many"}})
    with running(site.operator()):
        until("it says so", lambda: site.condition("Ready") == ("False", "InvalidSpec"))
        assert "growth_tokens" in site.later()["message"]
        site.edit(minReplicas=3)
        until("it is still reconciled", lambda: site.replicas() == 3)
        site.edit(whatIf={"policyOptions": {"growth_tokens": 32}})
        until("all is well", lambda: site.condition("Ready") == ("True", "AsExpected"))


def test_anything_with_a_scale_subresource(site: Site) -> None:
    gangs = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "gangs.parts.example"},
        "spec": {"group": "parts.example", "scope": "Namespaced", "names": {"kind": "Gang", "plural": "gangs"}, "versions": [{
            "name": "v1", "served": True, "storage": True,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            "subresources": {"scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                                       "labelSelectorPath": ".status.selector"}},
        }]},
    }  # fmt: skip
    site.plane.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(gangs))
    site.plane.serve("parts.example/v1")
    site.plane.wait_until_served("parts.example/v1")
    path = f"/apis/parts.example/v1/namespaces/{site.namespace}/gangs"
    until("gangs are served", lambda: "items" in site.plane("GET", path))
    gang = {"apiVersion": "parts.example/v1", "kind": "Gang", "metadata": {"name": "g"}, "spec": {"replicas": 1}}
    site.plane("POST", path, {**gang, "status": {"selector": "app=gang"}})
    site.aim(scaleTargetRef={"apiVersion": "parts.example/v1", "kind": "Gang", "name": "g"}, minReplicas=3)
    with running(site.operator()):
        until("three", lambda: site.plane("GET", f"{path}/g")["spec"]["replicas"] == 3)


def test_a_stateful_set_gives_up_its_highest_ordinal(site: Site) -> None:
    labels, path = {"app": "engine"}, f"{site.apps}/statefulsets/engine"
    site.plane("POST", f"{site.apps}/statefulsets", {
        "metadata": {"name": "engine"},
        "spec": {
            "replicas": 1, "serviceName": "engine", "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {**NO_TOKEN, "containers": [{"name": "e", "image": "e"}]}},
        },
    })  # fmt: skip
    until("an engine", site.engine_names)
    site.world.rate_rps = 0.5
    site.aim(scaleTargetRef={"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "engine"}, minReplicas=3)
    with running(site.operator()):
        until("three", lambda: site.status().get("readyReplicas") == 3)
        last = next(f"{p['status']['podIP']}:8000" for p in site.pods() if p["metadata"]["name"] == "engine-2")
        site.world.streams = {name: 5 * (name == last) for name in site.engine_names()}
        site.edit(minReplicas=2)
        until("two", lambda: site.plane("GET", path)["spec"]["replicas"] == 2)
        assert site.world.drained[0] == (last, True), "however many streams it has: it is the one that goes"


def test_two_targets_share_a_budget_and_what_is_worth_more_gets_more(site: Site) -> None:
    site.deploy()
    site.deploy(name="second")
    site.world.rate_rps = 0.5
    for target, name in (("chat", "engine"), ("code", "second")):
        ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        site.aim(target, scaleTargetRef=ref, mode="Pooled", minReplicas=2)

    def both() -> tuple[int, int]:
        found = site.replicas(), site.replicas("second")
        assert sum(found) <= 3
        return found

    with running(site.operator()) as operator:
        until("no pool yet", lambda: {site.condition("Conflict", t) for t in ("chat", "code")} == {("False", "NoPool")})
        assert both() == (1, 1), "it only recommends"
        members = [{"target": "chat"}, {"target": "code"}]
        site.plane("POST", f"{site.own}/qoepools", {
            "apiVersion": "andes.dev/v1alpha1", "kind": "QoEPool", "metadata": {"name": "gpus"},
            "spec": {"budget": {"gpus": 3}, "members": members}})  # fmt: skip
        until("all is given", lambda: sum(both()) == 3)
        pool = site.plane("GET", f"{site.own}/qoepools/gpus")["status"]
        assert {c["type"]: c["reason"] for c in pool["conditions"]} == {"Ready": "AsExpected", "Attainable": "Budget"}
        until(
            "it is said", lambda: "the QoEPool gpus gives" in site.status()["message"] + site.status("code")["message"]
        )
        members[1]["priority"] = 100
        site.plane("PATCH", f"{site.own}/qoepools/gpus", {"spec": {"members": members}})
        until("who is worth more has more", lambda: both() == (1, 2))
        held = f'pool_gpus{{namespace="{site.namespace}",pool="gpus"}} 3.0'
        until("a metric", lambda: held in get(operator, "/metrics")[1])
        site.plane("DELETE", f"{site.own}/qoepools/gpus")
        until("no pool any more", lambda: site.condition("Conflict") == ("False", "NoPool"))


SPOT = {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}


def where(site: Site) -> list[str]:
    """Nodes of the engines that stay."""
    return sorted(p["spec"].get("nodeName", "") for p in site.pods() if "deletionTimestamp" not in p["metadata"])


def test_engines_of_a_node_that_is_about_to_go_are_drained_and_replaced_at_once(site: Site, node: Node) -> None:
    """By the watch: the next reconcile would be minutes away."""
    site.deploy(replicas=2)
    with node.another("spot1"):
        site.plane("PATCH", f"{site.apps}/deployments/engine/scale", {"spec": {"replicas": 3}})
        until("the third engine runs", lambda: len(site.engine_names()) == 3)
        assert where(site) == ["node1", "node1", "spot1"]
        lost = next(p["status"]["podIP"] for p in site.pods() if p["spec"]["nodeName"] == "spot1")
        site.aim(minReplicas=3, behavior={**FAST, "tickSeconds": 300})
        with running(site.operator()):
            until("a first reconcile", lambda: site.status().get("observedAt"))
            node.name = "node1"
            noticed_s = time.monotonic()
            site.plane("PATCH", "/api/v1/nodes/spot1", {"spec": {"taints": [SPOT]}})
            until("the gateway is told", lambda: (f"{lost}:8000", True) in site.world.drained)
            print(f"drained {time.monotonic() - noticed_s:.1f} s after the taint")
            until("it is replaced elsewhere", lambda: where(site) == ["node1"] * 3)
            assert "NodeGoing" in site.events()
            assert time.monotonic() - noticed_s < 240, "no tick has passed"


def test_without_the_right_to_watch_nodes_it_works_and_says_so(site: Site) -> None:
    site.plane("DELETE", f"{RBAC}/clusterrolebindings/{node_role(site.namespace)}")
    site.deploy(replicas=2)
    site.world.rate_rps = 0.5
    site.aim()
    with running(site.operator()) as operator:
        until("one fewer", lambda: site.replicas() == 1)
        site.edit(minReplicas=2)
        until("the edit is seen", lambda: site.replicas() == 2)
    assert "nodes are not watched, for want of the right to" in operator.said()


def test_the_role_is_the_least_that_works(site: Site, node: Node) -> None:
    """All that the role allows is used, and nothing else is asked for: by what the API server's audit log says."""
    site.deploy(replicas=2)
    site.world.rate_rps = 0.5
    site.plane("POST", f"{site.own}/qoeclasses", {
        "apiVersion": "andes.dev/v1alpha1", "kind": "QoEClass", "metadata": {"name": "reading"}, "spec": {}})  # fmt: skip
    site.aim()
    site.plane("POST", f"{site.own}/qoepools", {
        "apiVersion": "andes.dev/v1alpha1", "kind": "QoEPool", "metadata": {"name": "gpus"},
        "spec": {"budget": {"gpus": 5}, "members": [{"target": "chat"}]}})  # fmt: skip
    role = site.plane("GET", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{site.namespace}/roles/andes-operator")
    allowed = {
        (group, resource, verb)
        for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
        if not resource.endswith("/scale") or resource == "deployments/scale"
    }  # fmt: skip
    allowed |= {("", "nodes", "list"), ("", "nodes", "watch")}
    account = f"system:serviceaccount:{site.namespace}:andes-operator"

    def used() -> set[tuple[str, str, str]]:
        """Without what every account may: to ask for its own rights."""
        return {asked[:3] for asked in site.plane.audited(account) if asked[1] != "selfsubjectaccessreviews"}

    with running(site.operator()), node.another("spot2"):
        until("one fewer", lambda: site.replicas() == 1)
        site.edit(minReplicas=2)
        until("one on the other node", lambda: "spot2" in where(site))
        node.name = "node1"
        site.plane("PATCH", "/api/v1/nodes/spot2", {"spec": {"taints": [SPOT]}})
        with contextlib.suppress(AssertionError):  # what is missing is said below
            until("all that is allowed is used", lambda: used() >= allowed)
    assert used() == allowed
    assert 403 not in {status for *_, status in site.plane.audited(account)}


def test_classes_reach_the_gateway_as_a_config_map(site: Site) -> None:
    body = {"apiVersion": "andes.dev/v1alpha1", "kind": "QoEClass", "metadata": {"name": "listening"},
            "spec": {"tokensPerSecond": 3.3, "weight": 2}}  # fmt: skip

    def published() -> str:
        return str(site.plane("GET", f"{site.core}/configmaps/andes-qoe-classes")["data"]["classes.yaml"])

    with running(site.operator()):
        site.plane("POST", f"{site.own}/qoeclasses", body)
        text = until("the map", published)
        assert "  listening:\n    ttft_s: 1\n    tds: 3.3\n" in text
        site.plane.kubectl(
            "-n", site.namespace, "patch", "qc", "listening", "--type=merge", "-p", '{"spec":{"weight":3}}'
        )
        until("the edit", lambda: "weight: 3" in published())
        until("ready", lambda: "True" in site.plane.kubectl("-n", site.namespace, "get", "qc"))


def test_the_second_operator_waits_and_takes_over(site: Site) -> None:
    site.deploy()
    site.world.rate_rps = 0.5
    site.aim()
    with running(site.operator(**SHORT_LEASE)) as first:
        until("the first works", lambda: site.condition("Ready")[0] == "True")
        with running(site.operator(**SHORT_LEASE)) as second:
            until("the second waits", lambda: get(second, "/readyz") == (200, "waiting for the lease"))
            site.later()
            assert "andes_operator_leading 0.0" in get(second, "/metrics")[1]
            first.kill()
            until("it takes over", lambda: "andes_operator_leading 1.0" in get(second, "/metrics")[1])
            site.edit(minReplicas=2)
            until("and works", lambda: site.replicas() == 2)


def test_an_api_server_that_goes_away_and_comes_back(site: Site) -> None:
    site.deploy()
    site.world.rate_rps = 0.5
    site.aim()
    with running(site.operator(**{"lease-seconds": "240"})) as operator:
        until("it works", lambda: site.condition("Ready")[0] == "True")
        again = site.plane.restart_api_server()
        try:
            until("it notices", lambda: "again in" in operator.said())
            assert get(operator, "/livez") == (200, "ok")
        finally:
            again()
        until("the API server is back", lambda: site.target())
        site.edit(minReplicas=2)
        until("and the operator with it", lambda: site.replicas() == 2)
        assert operator.process.poll() is None


def test_a_watch_that_is_open_and_silent_is_opened_again(site: Site) -> None:
    """No list is due for an hour, so only a watch can tell; no lease is lost by it either."""
    slow = {**FAST, "tickSeconds": 300}
    site.deploy()
    site.world.rate_rps = 0.5
    with Proxy(site.plane) as proxy:
        flags = {"watch-seconds": "4", "resync-seconds": "3600", "lease-seconds": "15"}
        kubeconfig = proxy.kubeconfig(site.kubeconfig)
        with running(Operator(kubeconfig, site.namespace, site.log, **flags)) as operator:
            until("it has listed all", lambda: get(operator, "/readyz") == (200, "ok"))
            site.aim("before", mode="Advisory", behavior=slow)
            until("the watch tells", lambda: site.condition("Ready", "before")[0] == "True")
            proxy.silence()
            edited = site.edit("before", minReplicas=2)["metadata"]["generation"]
            site.aim("later", mode="Advisory", behavior=slow)
            until("an edit counts", lambda: site.status("before")["observedGeneration"] == edited, WATCH_BOUND_S)
            until("a new one is reconciled", lambda: site.status("later"), WATCH_BOUND_S)
            assert "andes_operator_leading 1.0" in get(operator, "/metrics")[1]
    assert operator.process.returncode == 0


def test_what_the_api_server_puts_off_or_fails_is_asked_again(site: Site) -> None:
    """From the very start, then for reconciles and for the watch; no list is due for an hour, so only a watch can tell."""
    site.deploy()
    site.world.rate_rps = 0.5
    site.aim("always", mode="Advisory")
    with Moody(site.plane, mood=429) as moody:
        flags = {"watch-seconds": "2", "resync-seconds": "3600"}
        with running(Operator(moody.kubeconfig(site.kubeconfig), site.namespace, site.log, **flags)) as operator:
            until("it is put off while it starts", lambda: moody.told[429, False] >= 2)
            moody.mood = 0
            until("it works", lambda: site.condition("Ready", "always")[0] == "True")
            site.aim("first", mode="Advisory")
            until("the watch tells", lambda: site.status("first"))
            for mood in (429, 503, 410):
                others = moody.told[mood, False]
                moody.mood = mood
                until("the watch is told", lambda: moody.told[mood, True] >= 2)  # noqa: B023
                until("reconciles are told", lambda: mood == 410 or moody.told[mood, False] > others)  # noqa: B023
                moody.mood = 0
                site.aim(f"after-{mood}", mode="Advisory")
                until("the watch tells", lambda: site.status(f"after-{mood}"))  # noqa: B023
                site.later("always", ticks=1)
            assert get(operator, "/livez") == (200, "ok")
    assert operator.process.returncode == 0


def test_resources_that_come_after_the_operator_are_watched(site: Site) -> None:
    """As with a chart that brings both: kopf looks for them once. No list is due for an hour, so only a watch can tell."""
    site.deploy()
    site.world.rate_rps = 0.5
    with Moody(site.plane, mood=404, about="/apis/andes.dev") as moody:
        flags = {"resync-seconds": "3600"}
        with running(Operator(moody.kubeconfig(site.kubeconfig), site.namespace, site.log, **flags)) as operator:
            until("it waits for them", lambda: "the CRDs are not served yet" in operator.said())
            moody.mood = 0
            until("it has listed all", lambda: get(operator, "/readyz") == (200, "ok"))
            site.aim(mode="Advisory")
            until("the watch tells", lambda: site.status())


def reconcile_with(site: Site, meanwhile: Callable[[], None]) -> list[tuple[float | None, int]]:
    """Two reconciles in this process, under the role; ``meanwhile`` happens once, while the first one predicts.

    Of each, when it wants to be asked again, and the replicas that it left.
    """
    happening = [meanwhile]

    class Interrupted:
        async def __call__(self, inquiry: Inquiry) -> Any:
            found = predict(inquiry)
            while happening:
                await asyncio.to_thread(happening.pop())
            return found

    async def scenario() -> list[tuple[float | None, int]]:
        cluster, gateways = Cluster(await connect()), Gateways("secret")
        try:
            reconciler = Reconciler(cluster, gateways, Interrupted(), metrics=OperatorMetrics(), tracer=NoOpTracer())
            left = []
            for _ in range(2):
                result = await reconciler.reconcile((site.namespace, "chat"))
                left.append((result.requeue_after_s, await asyncio.to_thread(site.replicas)))
            return left
        finally:
            await gateways.close()
            await cluster.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("andes_operator.reconcile.FIRST_STATUS_S", None)  # a slow machine's first one would go without
        return asyncio.run(scenario())


def test_an_edit_in_mid_reconcile_drops_the_decision(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(site.kubeconfig))
    site.deploy()
    site.world.rate_rps = BUSY_RPS
    site.aim()
    left = reconcile_with(site, lambda: site.edit(maxReplicas=1) and None)
    assert left == [(1.0, 1), (FAST["tickSeconds"], 1)], "what was decided for the old resource was not written"
    assert site.status()["observedGeneration"] == site.target()["metadata"]["generation"]
    assert site.condition("Attainable") == ("False", "MaxReplicas")


def test_a_foreign_write_in_mid_reconcile_wins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(site.kubeconfig))
    site.deploy()
    site.world.rate_rps = BUSY_RPS
    site.aim()
    scale = f"{site.apps}/deployments/engine/scale"
    first, _ = reconcile_with(site, lambda: site.plane("PATCH", scale, {"spec": {"replicas": 6}}) and None)
    assert first == (1.0, 6), "the next reconcile is free to give back what has not started yet"


def test_a_target_deleted_in_mid_reconcile_is_no_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(site.kubeconfig))
    site.deploy()
    site.world.rate_rps = 0.5
    site.aim()
    path = f"{site.own}/qoetargets/chat"
    _, second = reconcile_with(site, lambda: site.plane("DELETE", path) and None)
    assert second == (None, 1)


def test_without_any_watch_the_resync_finds_what_is_new(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(site.kubeconfig))
    site.deploy()
    site.world.rate_rps = 0.5

    async def scenario() -> None:
        cluster, gateways, predictor, metrics = (
            Cluster(await connect()),
            Gateways(),
            Predictor(200.0),
            OperatorMetrics(),
        )
        reconciler = Reconciler(cluster, gateways, predictor, metrics=metrics, tracer=NoOpTracer())
        controller = Controller(
            cluster, reconciler.reconcile, ClassPublisher(cluster).publish,
            metrics=metrics, namespaces=[site.namespace], resync_s=1.0,
        )  # fmt: skip
        resyncing = asyncio.create_task(controller.resync())
        try:
            await asyncio.to_thread(site.aim)
            await asyncio.to_thread(until, "it is reconciled", lambda: site.condition("Ready")[0] == "True")
            assert controller.stuck() is None
        finally:
            resyncing.cancel()
            await controller.stop()
            predictor.close()
            await gateways.close()
            await cluster.close()

    asyncio.run(scenario())


@pytest.mark.timeout(1800)
def test_five_hundred_targets(site: Site) -> None:
    site.deploy()
    site.world.rate_rps = 0.5
    with running(site.operator()) as operator:
        for i in range(500):
            site.aim(f"t{i:03}", mode="Advisory", behavior={**FAST, "tickSeconds": 60})

        def reconciled() -> bool:
            items = site.plane.items(f"{site.own}/qoetargets")
            return all(item.get("status", {}).get("recommendedReplicas") == 1 for item in items)

        until("all have a recommendation", reconciled, timeout_s=900)
        assert get(operator, "/livez") == (200, "ok")
        assert "andes_operator_targets 500.0" in get(operator, "/metrics")[1]
