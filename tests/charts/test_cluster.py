"""The chart on a real API server: install, upgrade, uninstall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chart
import pytest
from e2e.control_plane import ControlPlane, until
from helm_python.config import Config
from helm_python.errors import HelmError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

NAMESPACE = "chat"
KINDS = {
    "core": (f"/api/v1/namespaces/{NAMESPACE}", ["services", "configmaps", "secrets", "serviceaccounts"]),
    "apps": (f"/apis/apps/v1/namespaces/{NAMESPACE}", ["deployments"]),
    "networking": (f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}", ["ingresses", "networkpolicies"]),
    "roles": (f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}", ["roles", "rolebindings"]),
    "leases": (f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}", ["leases"]),
    "cluster": ("/apis/rbac.authorization.k8s.io/v1", ["clusterroles", "clusterrolebindings"]),
}
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MONITORING = "monitoring.coreos.com/v1"
MONITORS = f"/apis/{MONITORING}/namespaces/{NAMESPACE}"
WANTED = {
    "engine.kind": "sim",
    "gateway.ingress.enabled": True,
    "networkPolicy.enabled": True,
    "monitoring.dashboards.enabled": True,
    "crds.keep": False,
}
ENGINE = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/demo-andes-engine"
GATEWAY = ENGINE.replace("engine", "gateway")
KEDA = "keda.sh/v1alpha1"
ADMIN = f"/api/v1/namespaces/{NAMESPACE}/secrets/demo-andes-admin"


@pytest.fixture
def helm(control_plane: ControlPlane) -> Iterator[Config]:
    there = {namespace["metadata"]["name"] for namespace in control_plane("GET", "/api/v1/namespaces")["items"]}
    if NAMESPACE not in there:
        control_plane("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    with control_plane.helm(NAMESPACE) as config:
        yield config
        config.uninstall("demo", ignore_not_found=True)
    until(
        "its CRDs are gone",
        lambda: not any("andes.dev" in crd["metadata"]["name"] for crd in control_plane.items(CRDS)),
    )


def ours(control_plane: ControlPlane) -> set[str]:
    """kind/name of every object of the release that is there."""
    found = set()
    for folder, kinds in KINDS.values():
        for kind in kinds:
            items = control_plane("GET", f"{folder}/{kind}?labelSelector=app.kubernetes.io/instance=demo")["items"]
            found |= {f"{kind}/{item['metadata']['name']}" for item in items}
    return found


def test_replicas_that_are_no_longer_set_stay_as_they_are(control_plane: ControlPlane, helm: Config) -> None:
    """By three-way merge or server-side apply, a field that is left out is taken away, and the API server makes it 1."""

    def upgraded(**more: Any) -> int:
        helm.upgrade(chart.CHART, "demo", chart.nested({**WANTED, **more}))
        return int(control_plane("GET", ENGINE)["spec"]["replicas"])

    helm.install(chart.CHART, "demo", chart.nested({**WANTED, "engine.replicas": 4}))
    control_plane("PATCH", f"{ENGINE}/scale", {"spec": {"replicas": 10}})
    assert upgraded() == 10
    control_plane("PATCH", f"{ENGINE}/scale", {"spec": {"replicas": 7}})
    assert upgraded() == 7, "the revision before has set it too"
    assert upgraded(**{"engine.replicas": 3}) == 3


def test_gateways_stay_as_many_when_an_autoscaler_takes_over(control_plane: ControlPlane, helm: Config) -> None:
    """Their number is then no longer written, which would make it 1."""
    if not control_plane.serves(KEDA):
        control_plane("POST", CRDS, definition("ScaledObject", KEDA))
        control_plane.serve(KEDA)
        control_plane.wait_until_served(KEDA)
        folder = f"/apis/{KEDA}/namespaces/{NAMESPACE}/scaledobjects"
        until("its kind is served", lambda: "items" in control_plane("GET", folder))
    autoscaled = {
        "gateway.autoscaling.enabled": True, "gateway.autoscaling.targetStreams": 400,
        "gateway.autoscaling.keda.enabled": True, "gateway.autoscaling.keda.prometheus": "http://prometheus:9090",
    }  # fmt: skip
    helm.install(chart.CHART, "demo", chart.nested({**WANTED, "gateway.replicas": 5}))
    with control_plane.helm(NAMESPACE) as fresh:  # the first one remembers what the cluster had
        for replicas in (5, 8):
            control_plane("PATCH", f"{GATEWAY}/scale", {"spec": {"replicas": replicas}})
            fresh.upgrade(chart.CHART, "demo", chart.nested({**WANTED, **autoscaled}))
            assert control_plane("GET", GATEWAY)["spec"]["replicas"] == replicas
        fresh.upgrade(chart.CHART, "demo", chart.nested({**WANTED, "gateway.replicas": 3}))
        assert control_plane("GET", GATEWAY)["spec"]["replicas"] == 3
    control_plane("DELETE", f"{CRDS}/scaledobjects.keda.sh")
    control_plane.unserve(KEDA)


def test_probes_of_ones_own_come_and_go(control_plane: ControlPlane, helm: Config) -> None:
    """Server-side apply leaves what the API server has filled in (a scheme), and a handler with it, beside the new one."""
    own = {
        "engine.probes.liveness": {"exec": {"command": ["true"]}},
        "gateway.probes.readiness": {"tcpSocket": {"port": "http"}},
        "operator.probes.readiness": {"httpGet": {"path": "/livez", "port": "http"}},
    }
    helm.install(chart.CHART, "demo", chart.nested(WANTED))
    for values in ({**WANTED, **own}, {**WANTED, "operator.probes.readiness": {"exec": {"command": ["true"]}}}, WANTED):
        helm.upgrade(chart.CHART, "demo", chart.nested(values))
    (container,) = control_plane("GET", GATEWAY)["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_install_upgrade_uninstall(control_plane: ControlPlane, helm: Config) -> None:
    helm.install(chart.CHART, "demo", chart.nested(WANTED))
    installed = ours(control_plane)
    assert {f"deployments/demo-andes-{part}" for part in ("gateway", "engine", "operator")} <= installed
    key = control_plane("GET", ADMIN)["data"]["key"]

    patch = {"spec": {"replicas": 5}}
    control_plane("PATCH", f"{ENGINE}/scale", patch)
    helm.upgrade(chart.CHART, "demo", chart.nested({**WANTED, "engine.args": ["--speed=2"]}))
    engine = control_plane("GET", ENGINE)["spec"]
    assert "--speed=2" in engine["template"]["spec"]["containers"][0]["args"]
    assert engine["replicas"] == 5, "an upgrade took the replicas from whoever scales"
    assert control_plane("GET", ADMIN)["data"]["key"] == key, "an upgrade changed the key"
    assert ours(control_plane) == installed

    helm.rollback("demo")
    assert "--speed=2" not in control_plane("GET", ENGINE)["spec"]["template"]["spec"]["containers"][0]["args"]
    helm.uninstall("demo")
    assert ours(control_plane) == set()


def test_several_models_come_go_and_keep_their_replicas(control_plane: ControlPlane, helm: Config) -> None:
    def upgraded(*models: dict[str, Any]) -> dict[str, int]:
        helm.upgrade(chart.CHART, "demo", chart.nested({**WANTED, "models": list(models)}))
        found = control_plane("GET", ENGINE.rpartition("/")[0])["items"]
        replicas = {o["metadata"]["name"].removeprefix("demo-andes-"): o["spec"]["replicas"] for o in found}
        return {name: n for name, n in replicas.items() if name.startswith("engine")}

    helm.install(chart.CHART, "demo", chart.nested(WANTED))
    both = [{"name": "chat"}, {"name": "coder", "engine": {"replicas": 2, "model": {"name": "coder"}}}]
    assert upgraded(*both) == {"engine-chat": 1, "engine-coder": 2}, "and the engine of before is gone"
    for name in ("chat", "coder"):
        control_plane("PATCH", f"{ENGINE}-{name}/scale", {"spec": {"replicas": 5}})
    assert upgraded({"name": "chat"}, {"name": "coder"}) == {"engine-chat": 5, "engine-coder": 5}
    assert upgraded({"name": "coder"}) == {"engine-coder": 5}
    helm.rollback("demo")
    assert "deployments/demo-andes-engine-chat" in ours(control_plane)
    helm.uninstall("demo")
    assert ours(control_plane) == set()


@pytest.mark.parametrize(
    ("api", "switch"), [("policy/v1", "gateway.pdb.enabled"), ("autoscaling/v2", "gateway.autoscaling.enabled")]
)
def test_what_this_server_lacks_is_named(control_plane: ControlPlane, helm: Config, api: str, switch: str) -> None:
    if control_plane.serves(api):
        helm.install(chart.CHART, "demo", chart.nested({switch: True}), dry_run="server")
    else:
        with pytest.raises(HelmError, match=f"{switch}: this cluster has no {api}"):
            helm.install(chart.CHART, "demo", chart.nested({switch: True}), dry_run="server")


def test_monitors_come_once_the_cluster_knows_them(control_plane: ControlPlane, helm: Config) -> None:
    monitors = {"monitoring.serviceMonitor.enabled": True, "monitoring.prometheusRule.enabled": True}
    wanted = chart.nested({**monitors, "crds.keep": False})
    if not control_plane.serves(MONITORING):
        with pytest.raises(HelmError, match=f"this cluster has no {MONITORING}"):
            helm.install(chart.CHART, "demo", wanted)
        for kind in ("ServiceMonitor", "PrometheusRule"):
            control_plane("POST", CRDS, definition(kind))
        control_plane.serve(MONITORING)
        control_plane.wait_until_served(MONITORING)
        for kinds in ("servicemonitors", "prometheusrules"):
            until(f"{kinds} are known", lambda kinds=kinds: kinds in known(control_plane))
            until(f"{kinds} are served", lambda kinds=kinds: "items" in control_plane("GET", f"{MONITORS}/{kinds}"))
    with control_plane.helm(NAMESPACE) as fresh:  # the first one remembers what the cluster had
        fresh.install(chart.CHART, "demo", wanted)
    for kind in ("servicemonitors", "prometheusrules"):
        assert control_plane("GET", f"{MONITORS}/{kind}")["items"]


def known(control_plane: ControlPlane) -> set[str]:
    """What discovery tells of the monitors' group: one kind may be known before the other."""
    return {resource["name"] for resource in control_plane("GET", f"/apis/{MONITORING}")["resources"]}


def definition(kind: str, api: str = MONITORING) -> dict[str, Any]:
    plural, (group, version) = f"{kind.lower()}s", api.split("/")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }
