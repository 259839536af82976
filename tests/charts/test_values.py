"""Values as people write them: names that look like numbers, text with signs of YAML's, numbers as text, labels and flags that are
the chart's own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import chart
import pytest
import yaml
from helm_python.errors import HelmError
from test_chart import EVERYTHING, check

from andes_api.settings import GatewaySettings

ODD = ["1", "1e3", "0x1f", "true", "no", "2026-11-28", "null", "1_000"]
"""Names that Kubernetes takes and YAML reads as something else."""
NAMED = [
    "gateway.tenants.existingSecret", "gateway.tenants.key", "gateway.adminKey.existingSecret", "gateway.batches.existingClaim",
    "gateway.batches.storageClass", "gateway.serviceAccount.name", "gateway.priorityClassName", "gateway.ingress.className",
    "gateway.ingress.tlsSecret", "gateway.ingress.host", "gateway.route.host", "engine.apiKeySecret", "engine.apiKeySecretKey",
    "engine.model.existingClaim", "engine.model.huggingFaceSecret", "engine.model.huggingFaceSecretKey",
    "engine.runtimeClassName", "engine.cache.existingClaim", "engine.cache.claim.storageClass",
    "engine.inferencePool.endpointPicker.name", "operator.serviceAccount.name", "operator.priorityClassName", "nameOverride",
    "test.apiKeySecret", "engine.policy", "engine.model.servedName", "engine.group.exclusiveTopology",
]  # fmt: skip
SWITCHES = ("ingress", "route", "batches")


def args(values: dict[str, Any], component: str = "engine") -> list[str]:
    (made,) = chart.objects(values)[f"{component}-deployment.yaml"]
    return list(made["spec"]["template"]["spec"]["containers"][0]["args"])


def env(values: dict[str, Any], component: str) -> list[dict[str, Any]]:
    (made,) = chart.objects(values)[f"{component}-deployment.yaml"]
    return list(made["spec"]["template"]["spec"]["containers"][0]["env"])


@pytest.mark.parametrize("odd", ODD)
def test_names_that_look_like_something_else_stay_names(odd: str) -> None:
    """Also of namespace and release."""
    on: dict[str, Any] = {f"gateway.{switch}.enabled": True for switch in SWITCHES}
    on |= {"engine.inferencePool.enabled": True, "engine.cache.claim.enabled": True}
    named: dict[str, Any] = {path: odd.lower().replace("_", "-") for path in NAMED}
    chosen: dict[str, Any] = {**EVERYTHING, **on, **named, "engine.policyOptions": {}}
    for more in ({}, {"engine.cache.existingClaim": ""}, {"gateway.adminKey.existingSecret": ""}):
        found = chart.objects({**chosen, **more}, name=named["nameOverride"], namespace=named["nameOverride"])
        for rendered in (o for each in found.values() for o in each):
            check(rendered)
            assert isinstance(rendered["metadata"].get("namespace", ""), str)
            assert all(isinstance(value, str) for value in rendered["metadata"]["labels"].values())


TEXTS = ["a: b", "a #b", "*a", "{a}", "- a", "'", '"', "@a", "%a", "a, b", "~", "yes", "1e3"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_in_flags_stays_as_it_is(text: str) -> None:
    own = {"engine.policy": "my.package:Policy", "engine.policyOptions": {"mode": text}}
    assert f"--policy-option=mode={text}" in args(own)
    assert f"--policy={text}" in args({"engine.policy": text})
    profile = {"engine.kind": "sim", "engine.profile": "mine", "profiles": {"mine": "[engine]"}}
    assert "--profile=mine" in args(profile)
    collector = f"http://collector:4318/{text}"
    assert f"--otlp-traces-endpoint={collector}/v1/traces" in args({"otel.endpoint": collector})
    assert f"--otlp-endpoint={collector}" in args({"otel.endpoint": collector}, "operator")
    assert text in args({"engine.args": ["--tokenizer-path", text]})


def test_numbers_and_switches_as_text_are_what_the_gateway_reads(tmp_path: Path) -> None:
    """As ``--set-string`` gives them."""

    def as_text(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: as_text(one) for name, one in value.items()}
        if isinstance(value, list):
            return [as_text(one) for one in value]
        if isinstance(value, bool):
            return str(value).lower()
        return str(value) if isinstance(value, int | float) else value

    given = GatewaySettings(
        upstreams=("http://engine:30000",), models={"70b": {"max_streams": 500}}, batches={"directory": tmp_path},
        ladders={"chat": [{"model": "70b", "quality": 1}, {"model": "8b", "quality": 0.86}]},
    )  # fmt: skip
    settings = given.model_dump(mode="json")
    for own in ("upstreams", "host", "port", "drain_s", "workers", "classes_file", "otlp_endpoint"):
        del settings[own]
    text = as_text({name: value for name, value in settings.items() if name != "policy_options"})
    (config,) = chart.objects({"gateway.settings": text})["gateway-config.yaml"]
    read, said = GatewaySettings(**yaml.safe_load(config["data"]["gateway.yaml"])).model_dump(), given.model_dump()
    assert {name: read[name] for name in text} == {name: said[name] for name in text}


@pytest.mark.parametrize(
    "settings", [{"hold_s": "long"}, {"hold_s": ""}, {"max_streams": "1.5"}, {"models": {"a": {"max_streams": "many"}}}]
)
def test_text_that_is_no_number_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match="/gateway/settings/"):
        chart.render({"gateway.settings": settings})


def test_the_operators_variables_are_replaced_by_ones_own() -> None:
    own = [{"name": "ANDES_ADMIN_KEY", "value": "mine"}, {"name": "MORE", "value": "1"}]
    found = env({"operator.extraEnv": own, "profiles": {"mine": "[engine]"}}, "operator")
    assert [e for e in found if e["name"] == "ANDES_ADMIN_KEY"] == own[:1]
    assert {e["name"] for e in found} == {"POD_NAME", "POD_NAMESPACE", "ANDES_ADMIN_KEY", "ANDES_PROFILES", "MORE"}
    assert len({e["name"] for e in found}) == len(found)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels: the chart sets app.kubernetes.io/name itself"),
        ({"commonLabels": {"app.kubernetes.io/part-of": "x"}}, "commonLabels: the chart sets app.kubernetes.io/part-of"),
        ({"commonLabels": {"helm.sh/chart": "x"}}, "commonLabels: the chart sets helm.sh/chart"),
        ({"gateway.podLabels": {"app.kubernetes.io/instance": "x"}}, "gateway.podLabels: the chart sets app.k"),
        ({"operator.podLabels": {"app.kubernetes.io/component": "x"}}, "operator.podLabels: the chart sets app.k"),
        (
            {"models": [{"name": "a", "engine": {"podLabels": {"app.kubernetes.io/component": "x"}}}]},
            "engine.podLabels: the chart sets app.kubernetes.io/component itself",
        ),
        ({"engine.model.existingClaim": "c"}, "engine.model.name is meta-llama/.*, which would be downloaded: with"),
        (
            {"engine.model": {"existingClaim": "c", "mountPath": "/m/", "name": "/models/llama"}},
            "it is a folder below /m/",
        ),
        ({"models": [{"name": "a", "engine": {"model": {"existingClaim": "c"}}}]}, "models: a: engine.model.name is"),
        (
            {"gateway.autoscaling.enabled": True, "gateway.resources": {"requests": {"cpu": None}}},
            "gateway.autoscaling.enabled: the container gateway has no resources.requests.cpu",
        ),
        (
            {"gateway.autoscaling.enabled": True, "gateway.sidecars": [{"name": "log", "image": "x", "resources": {"requests": None}}]},
            "gateway.autoscaling.enabled: the container log has no resources.requests.cpu",
        ),
        ({"operator.args": ["--port=9090"]}, "operator.args: the chart sets --port itself$"),
        ({"operator.args": ["--namespace", "a"]}, "the chart sets --namespace itself; see operator.namespaces"),
        ({"operator.args": ["--otlp-endpoint=http://c"]}, "the chart sets --otlp-endpoint itself; see otel.endpoint"),
        (
            {"models": [
                {"name": "a", "engine": {"model": {"name": "org/a", "servedName": "chat"}}},
                {"name": "b", "engine": {"lora": {"adapters": [{"name": "chat", "path": "org/chat"}]}}},
            ]},
            "models: b: engine.lora.adapters: chat is the name of the model of a",
        ),
    ],
)  # fmt: skip
def test_what_would_not_find_its_pods_or_be_found_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=said):
        chart.render(values)


@pytest.mark.parametrize("name", ["/m", "/m/llama", "/m/a/b"])
def test_a_model_in_a_claim_is_a_folder_there(name: str) -> None:
    for mount in ("/m", "/m/"):
        assert chart.render({"engine.model": {"existingClaim": "c", "mountPath": mount, "name": name}})


def test_what_runs_beside_an_autoscaled_gateway_asks_for_cpu() -> None:
    sidecar = {"name": "log", "image": "x", "resources": {"limits": {"cpu": "1"}}}
    assert chart.render({"gateway.autoscaling.enabled": True, "gateway.sidecars": [sidecar]})
    assert chart.render({"gateway.sidecars": [{"name": "log", "image": "x"}]}), "without an autoscaler it need not"


def test_models_may_have_adapters_of_one_name() -> None:
    adapters = {"lora": {"adapters": [{"name": "sql", "path": "org/sql"}]}}
    assert chart.render({"models": [{"name": "a", "engine": adapters}, {"name": "b", "engine": adapters}]})


def test_labels_of_ones_own_are_on_every_object() -> None:
    values = {**EVERYTHING, "gateway.podLabels": {"app.kubernetes.io/version": "mine"}}
    found = [o for each in chart.objects(values).values() for o in each]
    assert all(o["metadata"]["labels"]["team"] == "chat" for o in found)


def test_engines_may_be_replaced_one_after_the_other() -> None:
    """The API server refuses ``rollingUpdate`` beside ``Recreate``."""
    (made,) = chart.objects({"engine.strategy": {"type": "Recreate"}})["engine-deployment.yaml"]
    assert made["spec"]["strategy"] == {"type": "Recreate"}


def test_the_lease_is_where_the_operators_flags_say() -> None:
    def lease(*flags: str) -> tuple[list[str], list[str]]:
        found = chart.objects({"operator.args": list(flags), "operator.namespaces": ["a"]})
        roles = [o for o in found["operator-rbac.yaml"] if o["metadata"]["name"].endswith("-lease")]
        leases = [o["metadata"]["name"] for o in found["operator-state.yaml"] if o["kind"] == "Lease"]
        return [o["metadata"]["namespace"] for o in roles], leases

    assert lease() == (["chat", "chat"], ["andes-operator"])
    assert lease("--lease=mine") == (["chat", "chat"], ["mine"])
    alerts = {"monitoring.prometheusRule.enabled": True}
    idle = "AndesOperatorIdle"
    assert idle in chart.render(alerts)["prometheusrule.yaml"]
    waits = {**alerts, "operator.args": ["--lease-namespace=shared"]}
    assert idle not in chart.render(waits)["prometheusrule.yaml"], "one of two that share a lease waits, as it should"
    shared = lease("--lease-namespace", "shared")
    assert shared == (["shared", "shared"], []), "two releases would both have it"


@pytest.mark.parametrize("component", ["gateway", "engine", "operator"])
def test_each_component_takes_volumes_variables_and_probes(component: str) -> None:
    """A certificate of one's own, tools of the gateway, a probe for slow nodes."""
    own = {
        f"{component}.extraVolumes": [{"name": "own", "configMap": {"name": "own"}}],
        f"{component}.extraVolumeMounts": [{"name": "own", "mountPath": "/own", "readOnly": True}],
        f"{component}.envFrom": [{"secretRef": {"name": "proxy"}}],
        f"{component}.probes.startup": {"failureThreshold": 777},
    }
    (made,) = chart.objects(own)[f"{component}-deployment.yaml"]
    spec = made["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert own[f"{component}.extraVolumes"][0] in spec["volumes"]
    assert own[f"{component}.extraVolumeMounts"][0] in container["volumeMounts"]
    assert container["envFrom"] == own[f"{component}.envFrom"]
    assert container["startupProbe"]["failureThreshold"] == 777
    assert container["startupProbe"]["httpGet"], "the rest of it stays"


@pytest.mark.parametrize("share", [0.5, 0.95, 0.999, 0.9999, 0.99999])
def test_an_alert_fires_beyond_the_share_that_is_allowed(share: float) -> None:
    found = chart.objects({"monitoring.prometheusRule.enabled": True, "monitoring.prometheusRule.share": share})
    (rules,) = (group["rules"] for group in found["prometheusrule.yaml"][0]["spec"]["groups"])
    (alert,) = [rule for rule in rules if rule["alert"] == "AndesQoEBelowTarget"]
    assert float(alert["expr"].rsplit(">", 1)[1]) == pytest.approx(1 - share, rel=1e-4)
    assert float(alert["annotations"]["description"].split()[-2]) == pytest.approx(100 * (1 - share), rel=1e-4)


def test_names_are_looked_up_where_openshift_has_them() -> None:
    """A policy sees connections as they arrive at the pods of the cluster's DNS."""

    def ports(**more: Any) -> set[int]:
        found = chart.objects({"networkPolicy.enabled": True, **more})["networkpolicy.yaml"]
        return {p["port"] for o in found for p in o["spec"]["egress"][0]["ports"]}

    assert ports() == {53}
    assert ports(**{"openshift.enabled": True}) == {53, 5353}


def test_the_test_runs_where_gateways_run() -> None:
    values = {"gateway.nodeSelector": {"pool": "web"}, "gateway.tolerations": [{"key": "web", "operator": "Exists"}]}
    (pod,) = chart.objects(values)["tests-stream.yaml"]
    assert pod["spec"]["nodeSelector"] == {"pool": "web"}
    assert pod["spec"]["tolerations"] == [{"key": "web", "operator": "Exists"}]


class Refusing(BaseHTTPRequestHandler):
    """A gateway that says ``status``."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else self.status)
        self.end_headers()
        self.wfile.write(b'{"error": {"message": "who are you?"}}')

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def refusing(status: int) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), type("Refusing", (Refusing,), {"status": status}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def smoke(url: str) -> subprocess.CompletedProcess[str]:
    script = str(chart.CHART / "files" / "smoke.py")
    return subprocess.run([sys.executable, script, url], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "hint"), [(401, "test.apiKeySecret"), (403, "may not"), (503, "engine"), (404, "")])
def test_helm_test_says_in_words_what_is_wrong(status: int, hint: str) -> None:
    with refusing(status) as url:
        done = smoke(url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"/v1/models: HTTP {status}")
    assert hint in done.stderr
    assert "who are you?" in done.stderr
    assert "Traceback" not in done.stderr


def test_helm_test_says_that_no_gateway_answers() -> None:
    with refusing(200) as url:
        pass
    done = smoke(url)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stderr.startswith(f"/readyz: the gateway {url} does not answer")
