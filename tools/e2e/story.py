"""The whole story on a control plane: install, calm, a surge, QoE dips, the operator scales up, QoE recovers, calm, it scales
down, an upgrade under traffic, to zero and back on the first request, uninstall. Every step waits for what is to happen,
however long a busy machine takes."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord
from e2e.control_plane import ROOT, ApiError, ControlPlane, until
from e2e.node import Node
from e2e.traffic import Traffic

__all__ = ["OBJECTIVE", "Outcome", "tell"]

CHART = ROOT / "charts" / "andes"
NAMESPACE, RELEASE = "stage", "demo"
READER = QoETarget(ttft_s=1.5, tds=4.8)
PROMPT_TOKENS, OUTPUT_TOKENS = 20, 30
CALM_RPS, SURGE_RPS = 0.4, 4.0
CALM_READERS = 5
OBJECTIVE = 0.9
MAX_REPLICAS = 6
PATIENCE_S = 1500.0  # for what hangs: a step takes up to a minute on two cores
PROFILE = """\
hardware = "an engine so slow that a request a second is all it can do"
model = "none"
source = "made up, for the end-to-end test"
start_s = 5

[engine]
kv_capacity_tokens = 4096
max_running = 4
chunk_tokens = 512

[costs]
decode_fixed_s = 0.1
decode_request_s = 0.0
decode_context_s = 0.0
prefill_fixed_s = 0.04
prefill_token_s = 5e-4
"""
VALUES: dict[str, Any] = {
    "image": {"registry": "registry.example.com/team"},
    "crds": {"keep": False},
    "profiles": {"slow": PROFILE},
    "engine": {"kind": "sim", "profile": "slow", "drainSeconds": 120, "preStopSeconds": 3},
    "gateway": {
        "replicas": 2, "drainSeconds": 120, "preStopSeconds": 8, "service": {"port": 8080},
        "settings": {"dns_interval_s": 1.0, "health_interval_s": 1.0, "hold_s": PATIENCE_S},
    },
    "operator": {"namespaces": [NAMESPACE], "args": ["--host=0.0.0.0"]},
}  # fmt: skip
UPGRADED: dict[str, Any] = {
    **VALUES,
    "engine": {**VALUES["engine"], "policy": "lqsf"},
    "gateway": {**VALUES["gateway"], "settings": {**VALUES["gateway"]["settings"], "policy": "least_load"}},
}
IMAGES = {name: [sys.executable, "-m", "andes_sglang.cli"] for name in ("andes-gateway", "andes-operator")}
CLASS = {"ttftSeconds": READER.ttft_s, "tokensPerSecond": READER.tds, "shedBelow": 0}
EXPECTED = ("x-andes-ttft-ms", "x-andes-tds")
CLASS_HEADERS = (f"{READER.ttft_s * 1000:g}", f"{READER.tds:g}")
TARGET: dict[str, Any] = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{RELEASE}-andes-engine"},
    "objectives": [{"class": "reading", "statistic": "Mean", "value": OBJECTIVE}],
    "minReplicas": 1,
    "maxReplicas": MAX_REPLICAS,
    "demand": {"gateway": {"service": f"{RELEASE}-andes-gateway"}},
    "whatIf": {"profile": "slow"},
    "behavior": {
        "tickSeconds": 1, "windowSeconds": 10,
        "scaleDown": {"stabilizationWindowSeconds": 6, "periodSeconds": 2, "idleSeconds": 6},
    },
}  # fmt: skip
CORE, APPS = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/apps/v1/namespaces/{NAMESPACE}"
GROUP_VERSION = "andes.dev/v1alpha1"
OWN = f"/apis/{GROUP_VERSION}/namespaces/{NAMESPACE}"


@dataclass
class Outcome:
    """What happened. Times in seconds since ``origin_s`` (Unix).

    steps: (when, what happened). samples: once a second, what the QoETarget's status says. events: the QoETarget's (reason,
    message). promised: (ms to the first token, tokens/s) that each gateway said it goes by, as they changed. policies: what
    engines ran before and after the upgrade. first_answer: the answer to the request that found no engine, as SSE. exits:
    how the process of each pod has ended. left, processes: what uninstalling left behind.
    """

    origin_s: float = field(default_factory=time.time)
    steps: list[tuple[float, str]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    records: list[RequestRecord] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    smoke: str = ""
    policies: tuple[set[str], set[str]] = (set(), set())
    promised: set[tuple[str, ...]] = field(default_factory=set)
    exits: dict[str, int | None] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    processes: list[str] = field(default_factory=list)
    gpu_hours_saved: str = ""
    first_answer: list[str] = field(default_factory=list)

    @property
    def cut(self) -> list[RequestRecord]:
        """Streams that did not get what they asked for."""
        return [r for r in self.records if r.error or sum(n for _, n in r.deliveries) != r.output_tokens]


def tell(plane: ControlPlane, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Raises ``AssertionError`` where something that has to happen does not."""
    outcome = Outcome()
    until("no pod is left of what ran here before", lambda: not plane.items("/api/v1/pods"), PATIENCE_S)
    with Node(plane, folder, IMAGES) as node:
        stage = _Stage(plane, node, outcome, say)
        stage.run()
    return outcome


class _Stage:
    def __init__(self, plane: ControlPlane, node: Node, outcome: Outcome, say: Callable[[str], None]) -> None:
        self.plane, self.node, self.outcome, self._say = plane, node, outcome, say

    def run(self) -> None:
        plane, outcome = self.plane, self.outcome
        plane("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        until("the namespace's account", lambda: plane("GET", f"{CORE}/serviceaccounts/default"))
        before = until("everything can be listed", lambda: everything(plane))
        with plane.helm(NAMESPACE) as helm:
            self.install(helm)
            traffic = Traffic(self.gateways, PROMPT_TOKENS, OUTPUT_TOKENS, reader=READER, origin_s=outcome.origin_s)
            outcome.records = traffic.records
            with traffic, self.sampled(traffic):
                self.surge(traffic)
                self.upgrade(helm)
            self.to_zero_and_back()
            self.say(f"{len(outcome.records)} streams served, {len(outcome.cut)} cut")
            self.uninstall(helm)
        self.settled(before)

    def say(self, text: str) -> None:
        at_s = time.time() - self.outcome.origin_s
        self.outcome.steps.append((at_s, text))
        self._say(f"{at_s:6.1f} s  {text}")

    # Acts

    def install(self, helm: Any) -> None:
        self.say("helm install: two gateways, one simulated engine, the operator")
        helm.install(CHART, RELEASE, VALUES)
        self.plane.serve(GROUP_VERSION)
        self.plane.wait_until_served(GROUP_VERSION)
        parts = ("gateway", "engine", "operator")
        until("everything is available", lambda: all(map(self.available, parts)), PATIENCE_S)
        for kind in ("qoeclasses", "qoetargets"):
            until(f"{kind} are served", lambda kind=kind: "items" in self.plane("GET", f"{OWN}/{kind}"))  # type: ignore[misc]
        self.create("QoEClass", "reading", CLASS)
        self.create("QoETarget", "chat", TARGET)
        self.say("helm test")
        self.outcome.smoke = str(helm.test(RELEASE, timeout=int(PATIENCE_S))["release"]["status"])
        until("the class is published", lambda: "reading" in self.classes(), PATIENCE_S)
        until("the gateways go by the class", lambda: self.promised() == {CLASS_HEADERS}, PATIENCE_S)
        self.say("a QoEClass is made, and the running gateways go by it")

    def surge(self, traffic: Traffic) -> None:
        self.say(f"calm: {CALM_RPS:g} requests/s")
        traffic.rate_rps = CALM_RPS
        until("a few readers are served", lambda: len(traffic.records) >= CALM_READERS, PATIENCE_S)
        until("they get what they were promised", lambda: self.qoe() and self.condition("ObjectiveMet"), PATIENCE_S)
        self.say(f"a surge: {SURGE_RPS:g} requests/s, where an engine can serve about 1")
        traffic.rate_rps = SURGE_RPS
        until("more engines are wanted", lambda: self.status().get("recommendedReplicas", 0) > 1, PATIENCE_S)
        self.say(f"the operator wants {self.status()['recommendedReplicas']} engines: {self.status()['message']}")
        until("QoE dips", lambda: (self.qoe() or 1.0) < OBJECTIVE, PATIENCE_S)
        self.say(f"QoE has dipped to {self.qoe():.2f}")
        until("there are more engines", lambda: self.status().get("readyReplicas", 0) > 2, PATIENCE_S)
        self.say(f"{self.status()['readyReplicas']} engines serve")
        until("QoE recovers", lambda: (self.qoe() or 0.0) >= OBJECTIVE and self.condition("ObjectiveMet"), PATIENCE_S)
        self.say(f"QoE has recovered to {self.qoe():.2f}")
        self.say(f"calm again: {CALM_RPS:g} requests/s")
        traffic.rate_rps = CALM_RPS
        until("one engine is left", lambda: self.replicas() == 1 and len(self.pods("engine")) == 1, PATIENCE_S)
        self.say(f"one engine is left; GPU-hours saved so far: {self.status()['gpuHoursSaved']}")
        self.outcome.gpu_hours_saved = str(self.status()["gpuHoursSaved"])

    def upgrade(self, helm: Any) -> None:
        self.say("helm upgrade under traffic: another policy in engines and gateways")
        old = {pod["metadata"]["uid"] for part in ("engine", "gateway") for pod in self.pods(part)}
        policies = until("the engine tells its policy", self.policies, PATIENCE_S)
        helm.upgrade(CHART, RELEASE, UPGRADED)

        def rolled() -> bool:
            now = {pod["metadata"]["uid"] for part in ("engine", "gateway") for pod in self.pods(part)}
            return not now & old and all(self.available(part) for part in ("engine", "gateway"))

        until("all engines and gateways are new", rolled, PATIENCE_S)
        self.outcome.policies = policies, until("the engines tell their policy", self.policies, PATIENCE_S)
        self.say("all engines and gateways are new")

    def to_zero_and_back(self) -> None:
        self.say("no requests any more, and no engine has to stay")
        self.plane("PATCH", f"{OWN}/qoetargets/chat", {"spec": {"minReplicas": 0}})
        until("no engine is left", lambda: self.replicas() == 0 and not self.pods("engine"), PATIENCE_S)
        self.say("no engine is left; a request comes")
        _, self.outcome.first_answer = stream(f"http://{self.gateways()[0]}", OUTPUT_TOKENS)
        self.say("the gateway has held the request until an engine was there, and it is answered")

    def uninstall(self, helm: Any) -> None:
        self.outcome.events = [
            (event["reason"], event["message"]) for event in self.plane.items(f"{CORE}/events")
            if event["involvedObject"]["kind"] == "QoETarget"
        ]  # fmt: skip
        self.say("helm uninstall")
        helm.uninstall(RELEASE)
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        ours = {f"{kind}.andes.dev" for kind in ("qoetargets", "qoeclasses", "qoepools")}
        until("the CRDs are gone", lambda: not ours & {crd["metadata"]["name"] for crd in self.plane.items(crds)})
        self.plane.unserve(GROUP_VERSION)

    def settled(self, before: set[str]) -> None:
        """Wait for what controllers clear away, and note what they do not."""
        left: set[str] = set()

        def clean() -> bool:
            nonlocal left
            left = everything(self.plane) - before
            return not left and not self.node.pods

        try:
            until("everything is gone", clean, PATIENCE_S / 2)
        except AssertionError:
            self.outcome.left, self.outcome.processes = left, [pod.name for pod in self.node.pods.values()]
        self.outcome.exits = dict(self.node.exits)
        self.say(f"left behind: {sorted(left) or 'nothing'}")

    # What is seen

    @contextmanager
    def sampled(self, traffic: Traffic) -> Iterator[None]:
        """A sample of the QoETarget's status every second."""
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(1.0):
                try:
                    status, pods = self.status(), len(self.pods("engine"))
                except (ApiError, OSError):
                    continue
                self.outcome.samples.append({
                    "at_s": round(time.time() - traffic.origin_s, 2), "offered_rps": traffic.rate_rps,
                    "recommended": status.get("recommendedReplicas"), "ready": status.get("readyReplicas"), "pods": pods,
                    "qoe": self.qoe(status), "reason": status.get("reason"), "message": status.get("message"),
                })  # fmt: skip

        thread = threading.Thread(target=sample, name="samples")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def create(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": GROUP_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        plural = {"QoEClass": "qoeclasses", "QoETarget": "qoetargets"}[kind]
        self.plane("POST", f"{OWN}/{plural}", body)

    def gateways(self) -> list[str]:
        return [f"{ip}:8080" for ip in self.node.addresses(f"{RELEASE}-andes-gateway.{NAMESPACE}.svc")]

    def pods(self, part: str) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/instance%3D{RELEASE},app.kubernetes.io/component%3D{part}"
        return self.plane.items(f"{CORE}/pods?labelSelector={selector}")

    def promised(self) -> set[tuple[str, ...]]:
        """What readers are promised now, by each gateway's answer."""
        found = {
            tuple(stream(f"http://{gateway}", 1)[0].get(name, "") for name in EXPECTED) for gateway in self.gateways()
        }
        self.outcome.promised |= found
        return found

    def available(self, part: str) -> bool:
        found = self.plane("GET", f"{APPS}/deployments/{RELEASE}-andes-{part}")
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return False
        return bool(status.get("availableReplicas", 0) == status.get("updatedReplicas", 0) == wanted)

    def replicas(self) -> int:
        return int(self.plane("GET", f"{APPS}/deployments/{RELEASE}-andes-engine")["spec"]["replicas"])

    def status(self) -> dict[str, Any]:
        return dict(self.plane("GET", f"{OWN}/qoetargets/chat").get("status") or {})

    def qoe(self, status: dict[str, Any] | None = None) -> float | None:
        """What readers get, as the status says."""
        objectives = (self.status() if status is None else status).get("objectives") or [{}]
        current = objectives[0].get("current")
        return None if current is None else float(current)

    def condition(self, kind: str) -> bool:
        conditions = self.status().get("conditions") or []
        return any(c["type"] == kind and c["status"] == "True" for c in conditions)

    def classes(self) -> str:
        found = self.plane("GET", f"{CORE}/configmaps/andes-qoe-classes")
        return str((found.get("data") or {}).get("classes.yaml", ""))

    def policies(self) -> set[str]:
        """What the engines that serve say they run."""
        found = set()
        for address in self.node.addresses(f"{RELEASE}-andes-engine.{NAMESPACE}.svc"):
            with urllib.request.urlopen(f"http://{address}:30000/get_server_info", timeout=30) as answer:
                found.add(str(json.load(answer)["policy"]))
        return found


def stream(gateway: str, tokens: int) -> tuple[dict[str, str], list[str]]:
    """The headers (names in small letters) and events of one streamed answer."""
    body = {
        "model": "default",
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "Anybody?"}],
    }
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{gateway}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return headers, [line for line in answer.read().decode().splitlines() if line]


def everything(plane: ControlPlane) -> set[str]:
    """resource/namespace/name of every object there is, but events and what Kubernetes makes for itself."""
    found = set()
    paths = ["/api/v1", *(f"/apis/{g['preferredVersion']['groupVersion']}" for g in plane("GET", "/apis")["groups"])]
    for path in paths:
        try:
            resources = plane("GET", path)["resources"]
        except ApiError:  # a group without any CRD
            continue
        for resource in resources:
            if "list" in resource["verbs"] and resource["name"] not in ("events", "componentstatuses"):
                for item in plane("GET", f"{path}/{resource['name']}").get("items") or []:
                    metadata = item["metadata"]
                    name, namespace = metadata["name"], metadata.get("namespace", "")
                    if not (name.startswith(("kube-", "default-token-")) or namespace.startswith("kube-")):
                        found.add(f"{resource['name']}/{namespace}/{name}")
    return found
