"""The chart as Helm renders it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import chart
import kubernetes_validate.utils
import pytest
import yaml
from helm_python.chart import lint
from helm_python.errors import HelmError

from andes_api.settings import GatewaySettings

KNOBS = list(chart.knobs())
KUBERNETES = ["1.29", "1.37"]
OTHERS = tuple(chart.EVERYTHING)
EVERYTHING = {
    "commonLabels": {"team": "chat"},
    "gateway.ingress.enabled": True,
    "gateway.ingress.tlsSecret": "tls",
    "gateway.autoscaling.enabled": True,
    "gateway.pdb.enabled": True,
    "gateway.tenants.existingSecret": "tenants",
    "engine.pdb.enabled": True,
    "engine.model.existingClaim": "models",
    "engine.model.name": "/models/llama",
    "engine.model.huggingFaceSecret": "hf",
    "engine.apiKeySecret": "key",
    "engine.policyOptions": {"stall_bound_s": 30},
    "monitoring.scrapeAnnotations": True,
    "monitoring.serviceMonitor.enabled": True,
    "monitoring.prometheusRule.enabled": True,
    "monitoring.dashboards.enabled": True,
    "networkPolicy.enabled": True,
    "otel.endpoint": "http://collector:4318",
    "test.apiKeySecret": "tester",
}


kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)  # megabytes


def every(values: dict[str, Any] | None = None, **options: Any) -> Iterator[dict[str, Any]]:
    for found in chart.objects(values, **options).values():
        yield from found


def one(kind: str, name: str, values: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    (found,) = [o for o in every(values, **options) if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
    return found


def pod_specs(values: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Specification of every pod, by the name of its owner."""
    return {
        o["metadata"]["name"]: o["spec"]["template"]["spec"] if o["kind"] == "Deployment" else o["spec"]
        for o in every(values)
        if o["kind"] in ("Deployment", "Pod")
    }


@pytest.mark.parametrize("values", [{}, EVERYTHING, {"engine.kind": "sim"}], ids=["defaults", "everything", "sim"])
def test_helm_has_nothing_to_say(values: dict[str, Any]) -> None:
    report = lint(chart.CHART, chart.nested(values), strict=True, kube_version="v1.33.0")
    # lint knows no API but Kubernetes' own, and says that the Prometheus operator is missing
    said = [m for m in report["messages"] if m["severity"] > 1 and "monitoring.coreos.com" not in m["error"]]
    assert not said


def test_what_is_made_from_the_values_is_up_to_date() -> None:
    for path, text in (chart.made() | chart.snapshots()).items():
        assert path.read_text() == text, f"{path.name}: run `make chart`, and read what it changes"


def test_every_value_has_a_comment_and_a_case() -> None:
    values = (chart.CHART / "values.yaml").read_text()
    paths = {".".join(path): comment for path, _, comment, _ in chart.leaves(values)}
    assert [path for path, comment in paths.items() if not comment] == []
    tried = {path for _, _, chosen in KNOBS for path in chosen}
    assert tried - paths.keys() == set()
    assert paths.keys() - tried == {"crds.enabled", "crds.keep"}  # in test_operator_files.py


@pytest.mark.parametrize(("given", "chosen"), [case[1:] for case in KNOBS], ids=[case[0] for case in KNOBS])
def test_every_value_changes_what_is_rendered_into_valid_objects(given: Any, chosen: Any) -> None:
    changed = chart.changes(given, chosen)
    assert changed
    for found in chart.parsed({path: after for path, (_, after) in changed.items()}).values():
        for rendered in found:
            check(rendered)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"engine.kind": "sim"}], ids=["defaults", "everything", "sim"])
def test_objects_are_valid(values: dict[str, Any], version: str) -> None:
    for rendered in every(values):
        check(rendered, version)


def check(rendered: dict[str, Any], version: str = KUBERNETES[-1]) -> None:
    if rendered["apiVersion"] not in OTHERS and rendered["kind"] != "CustomResourceDefinition":
        kubernetes_validate.validate(rendered, version, strict=True)
    labels = rendered["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "Helm"
    assert labels["helm.sh/chart"].startswith("andes-")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"engine.kind": "vllm"}, "/engine/kind"),
        ({"engine.replicas": -1}, "/engine/replicas"),
        ({"engine.gpu.count": 0}, "/engine/gpu/count"),
        ({"engine.args": "--tp=4"}, "/engine/args"),
        ({"engine.defaultTds": 0}, "/engine/defaultTds"),
        ({"engine.policyOptions": {"a": []}}, "/engine/policyOptions/a"),
        ({"gateway.replicas": "many"}, "/gateway/replicas"),
        ({"gateway.replica": 3}, "replica"),
        ({"gateway.upstreams": ["10.0.0.1"]}, "/gateway/upstreams/0"),
        ({"gateway.service.port": 0}, "/gateway/service/port"),
        ({"gateway.image.digest": "latest"}, "/gateway/image/digest"),
        ({"image.pullPolicy": "Sometimes"}, "/image/pullPolicy"),
        ({"monitoring.prometheusRule.qoe": 0.93}, "/monitoring/prometheusRule/qoe"),
        ({"operator.namespaces": ["Not_One"]}, "/operator/namespaces/0"),
        ({"otel.endpoint": "collector:4317"}, "/otel/endpoint"),
        ({"engines.replicas": 3}, "engines"),
        ({"models": [{"engine": {}}]}, "/models/0"),
        ({"models": [{"name": "Qwen"}]}, "/models/0/name"),
        ({"models": [{"name": "a", "engine": {"arg": []}}]}, "/models/0/engine"),
        ({"engine.sharedMemory": "8 GB"}, "/engine/sharedMemory"),
        ({"engine.cache.sizeLimit": "lots"}, "/engine/cache/sizeLimit"),
        ({"fullnameOverride": "Not_A_Name"}, "/fullnameOverride"),
        ({"gateway.httpRoute.parentRefs": []}, "/gateway/httpRoute/parentRefs"),
        ({"engine.cache.claim.size": "lots"}, "/engine/cache/claim/size"),
        ({"gateway.batches.size": "50 GB"}, "/gateway/batches/size"),
        ({"gateway.settings": {"hold": 300}}, "'hold' not allowed"),
        ({"gateway.settings": {"hold_s": "long"}}, "/gateway/settings/hold_s"),
        ({"gateway.settings": {"classes": {"reading": {"tfft_s": 1}}}}, "/gateway/settings/classes/reading"),
        ({"gateway.settings": {"tools": {"sql": {"timeout_s": 5}}}}, "/gateway/settings/tools/sql"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        chart.render(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine.enabled": False}, "gateway.upstreams: no engine"),
        ({"gateway.settings": {"drain_s": 5}}, "gateway.settings.drain_s"),
        (
            {"engine.gpu.count": 4},
            r"engine.gpu.count is 4, but its args use 1 \(--tp",
        ),
        ({"engine.args": ["--tp", "2"]}, "engine.gpu.count is 1, but its args use 2"),
        ({"engine.args": ["--tp-size=2", "--dp-size=2"], "engine.gpu.count": 2}, "its args use 4"),
        (
            {"models": [{"name": "a"}, {"name": "b", "engine": {"args": ["--tp=8"]}}]},
            "models: b: engine.gpu.count is 1, but its",
        ),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "models: the name a is there twice"),
        (
            {"monitoring.podMonitor.enabled": True, "monitoring.serviceMonitor.enabled": True},
            "monitoring.podMonitor.enabled and monitoring.serviceMonitor.enabled: every pod would be counted twice",
        ),
        (
            {"models": [{"name": "a"}, {"name": "b", "engine": {"apiKeySecret": "own"}}]},
            "models: b: engine.apiKeySecret is own, key key, but the gateway sends one key to all engines",
        ),
        (
            {"engine.apiKeySecret": "k", "models": [{"name": "a", "engine": {"apiKeySecretKey": "own"}}]},
            "models: a: engine.apiKeySecret is k, key own, but",
        ),
        ({"engine.args": ["--tp 4"], "engine.gpu.count": 4}, 'engine.args: "--tp 4" would be one argument'),
        (
            {"models": [{"name": "a", "engine": {"args": ["--enable-mixed-chunk --page-size=1"]}}]},
            "models: a: engine.args: .* would be one argument",
        ),
        ({"operator.args": ["--what-if-seconds 60"]}, "operator.args: .* would be one argument"),
        ({"operator.args": ["--what-if-second=60"]}, "there is no flag --what-if-second here; there are --help"),
        (
            {"engine.kind": "sim", "engine.args": ["--mem-fraction-static=0.9"]},
            "there is no flag --mem-fraction-static",
        ),
        ({"engine.kind": "sim", "engine.profile": "h200"}, "engine.profile: there is no h200; there are a100"),
        ({"profiles": {"mine": "mine.toml"}}, "profiles.mine is no profile"),
        ({"engine.policyOptions": {"stall_bond_s": 3}}, "policy andes has no option stall_bond_s; it has batch"),
        ({"engine.policy": "stock", "engine.policyOptions": {"a": 3}}, "policyOptions: policy stock has no options"),
        ({"engine.policy": "stock", "engine.args": ["--policy-option=a=3"]}, "policy stock has no options"),
        ({"engine.args": ["--preemption-mode", "park"]}, "--preemption-mode park: it is release or offload"),
        ({"engine.args": ["--host-kv-gib=8"]}, "--host-kv-gib goes with --preemption-mode=offload"),
        ({"engine.args": ["--offload-without", "overlap"]}, "--offload-without goes with --preemption-mode=offload"),
        ({"engine.args": ["--host-kv-codec=int8"]}, "--host-kv-codec: only the simulator has it"),
        ({"engine.args": ["--enable-prefill-delayer"]}, "--enable-prefill-delayer does not go with a policy"),
        ({"engine.args": ["--min-free-slots-delay=4"]}, "--min-free-slots-delay does not go with a policy"),
        *(
            ({"gateway.autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}, **more}, "minReplicas is 5")
            for more in (
                {},
                {"gateway.autoscaling.keda.enabled": True, "gateway.autoscaling.keda.prometheus": "http://p"},
            )
        ),
    ],
)
def test_what_could_only_crash_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=said):
        chart.render(values)


def test_every_setting_of_the_gateway_is_allowed() -> None:
    """But for those that the chart sets itself."""
    given = GatewaySettings(
        upstreams=("http://engine:30000",),
        models={"70b": {"classes": ["reading"], "max_streams": 500}},
        ladders={"chat": [{"model": "70b", "quality": 1}, {"model": "8b", "quality": 0.86}]},
        tenants=[{"name": "web", "key_sha256": "0" * 64, "requests_per_minute": 60}],
        tools={"sql": {"command": ["sql.py"], "statements": "sql", "argument": "query"}},
        policy_options={"sacrifice_share": 0.1},
    )
    settings = given.model_dump(mode="json")
    for own in ("upstreams", "host", "port", "drain_s", "workers", "classes_file", "otlp_endpoint"):
        del settings[own]
    assert chart.render({"gateway.settings": settings})


@pytest.mark.parametrize(
    ("switch", "api"),
    [
        ("monitoring.serviceMonitor.enabled", "monitoring.coreos.com/v1"),
        ("monitoring.podMonitor.enabled", "monitoring.coreos.com/v1"),
        ("monitoring.prometheusRule.enabled", "monitoring.coreos.com/v1"),
        ("gateway.httpRoute.enabled", "gateway.networking.k8s.io/v1"),
    ],
)
def test_what_the_cluster_lacks_is_named(switch: str, api: str) -> None:
    with pytest.raises(HelmError, match=rf"{switch}: this cluster has no {api}"):
        chart.render({switch: True}, apis=[])


def test_pods_meet_the_restricted_standard() -> None:
    for values in ({}, EVERYTHING, {"engine.kind": "sim"}):
        for name, spec in pod_specs(values).items():
            assert spec["securityContext"]["runAsNonRoot"], name
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "name"}
            assert all(volume.keys() <= allowed for volume in spec.get("volumes", ())), name
            assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
            for container in spec["containers"]:
                context = container["securityContext"]
                assert context["readOnlyRootFilesystem"], name
                assert context["allowPrivilegeEscalation"] is False, name
                assert context["capabilities"] == {"drop": ["ALL"]}, name
                assert container["resources"]["limits"]["memory"], name


def test_only_the_operator_has_a_token() -> None:
    tokens = {name: spec["automountServiceAccountToken"] for name, spec in pod_specs().items()}
    assert {name for name, token in tokens.items() if token} == {"demo-andes-operator"}
    assert all(o["automountServiceAccountToken"] is False for o in every() if o["kind"] == "ServiceAccount")


def test_no_pod_gets_variables_of_services() -> None:
    """A Service named andes-gateway would set ANDES_GATEWAY_PORT, which the gateway reads as its own setting."""
    assert all(spec["enableServiceLinks"] is False for spec in pod_specs().values())


@pytest.mark.parametrize("component", ["gateway", "engine"])
def test_the_grace_period_outlasts_drain_and_pre_stop(component: str) -> None:
    values = {f"{component}.drainSeconds": 900, f"{component}.preStopSeconds": 20}
    spec = pod_specs(values)[f"demo-andes-{component}"]
    assert spec["terminationGracePeriodSeconds"] >= 900 + 20 + 15
    assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]


def test_replicas_are_left_to_who_scales() -> None:
    assert "replicas" not in one("Deployment", "engine")["spec"]
    assert one("Deployment", "engine", {"engine.replicas": 0})["spec"]["replicas"] == 0
    assert "replicas" not in one("Deployment", "gateway", {"gateway.autoscaling.enabled": True})["spec"]


def test_an_upgrade_of_the_chart_does_not_restart_engines() -> None:
    labels = one("Deployment", "engine")["spec"]["template"]["metadata"]["labels"]
    assert set(labels) == {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}


def test_gpus_come_beside_the_other_resources() -> None:
    resources = pod_specs({"engine.gpu.count": 4, "engine.args": ["--tp=4"]})["demo-andes-engine"]["containers"][0][
        "resources"
    ]
    assert resources["limits"] == {"nvidia.com/gpu": "4", "memory": "48Gi"}
    assert resources["requests"] == {"nvidia.com/gpu": "4", "cpu": "4", "memory": "24Gi"}


def test_a_simulated_engine_asks_for_no_gpu() -> None:
    spec = pod_specs({"engine.kind": "sim", "engine.apiKeySecret": "key"})["demo-andes-engine"]
    assert "nvidia" not in json.dumps(spec)
    assert spec["containers"][0]["image"].startswith("andes-gateway:")


def test_ports_name_their_protocol() -> None:
    """Server-side apply needs it on older API servers."""
    for rendered in every(EVERYTHING):
        ports = rendered["spec"]["ports"] if rendered["kind"] == "Service" else []
        if rendered["kind"] == "Deployment":
            ports = [port for c in rendered["spec"]["template"]["spec"]["containers"] for port in c["ports"]]
        assert all(port["protocol"] == "TCP" for port in ports)


def test_long_names_stay_names() -> None:
    for rendered in every(EVERYTHING, name="r" * 53):
        assert len(rendered["metadata"]["name"]) <= 63


def test_two_releases_share_no_name() -> None:
    """In a namespace one has the operator, in a cluster one has the CRDs."""
    second = {**EVERYTHING, "operator.enabled": False, "crds.enabled": False}
    one, two = every(EVERYTHING, name="one"), every(second, name="two")
    names = [{(o["kind"], o["metadata"]["name"]) for o in release} for release in (one, two)]
    assert names[0] & names[1] == set()


def test_services_and_policies_select_the_pods() -> None:
    pods = {
        o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"] for o in every() if o["kind"] == "Deployment"
    }
    for rendered in every(EVERYTHING):
        spec = rendered.get("spec", {})
        selector = {"Service": spec.get("selector"), "NetworkPolicy": spec.get("podSelector"),
                    "PodDisruptionBudget": spec.get("selector")}.get(rendered["kind"])  # fmt: skip
        if selector:
            wanted = selector.get("matchLabels", selector)
            selected = {name for name, labels in pods.items() if wanted.items() <= labels.items()}
            assert selected == {rendered["metadata"]["name"]}


def test_whoever_may_scrape_may_not_call() -> None:
    """Unless he is named: metrics and API share a port."""
    client = {"namespaceSelector": {"matchLabels": {"team": "web"}}}
    policy = one("NetworkPolicy", "gateway", {"networkPolicy.enabled": True, "networkPolicy.clients": [client]})
    (rule,) = policy["spec"]["ingress"]
    ours = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"][1:]]
    assert rule["from"][0] == client
    assert ours == ["operator", "test"]


def test_the_notes_say_when_engines_are_simulated() -> None:
    assert "SIMULATED" in chart.render({"engine.kind": "sim"})["NOTES.txt"]
    assert "SIMULATED" not in chart.render()["NOTES.txt"]


def test_the_admin_key_matches_its_hash() -> None:
    import hashlib

    secret = one("Secret", "admin")["stringData"]
    assert hashlib.sha256(secret["key"].encode()).hexdigest() == secret["sha256"]


def test_the_schema_accepts_the_defaults_and_a_parent_chart() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    chart.render({**{k: v for k, v in values.items() if v}, "global": {"any": "thing"}})


MODELS: dict[str, Any] = {"models": [
    {"name": "chat", "engine": {"replicas": 2}},
    {"name": "coder", "engine": {"model": {"name": "coder"}, "gpu": {"count": 2}, "args": ["--tp", "2"], "nodeSelector": {"gpu": "h100"}}},
]}  # fmt: skip


def test_each_model_has_engines_and_a_service_and_the_gateway_knows_all() -> None:
    found = chart.objects(MODELS)
    engines = {o["metadata"]["name"]: o for o in found["engine-deployment.yaml"]}
    assert set(engines) == {"demo-andes-engine-chat", "demo-andes-engine-coder"}
    config = yaml.safe_load(found["gateway-config.yaml"][0]["data"]["gateway.yaml"])
    assert config["upstreams"] == [f"dns://{name}.chat.svc:30000" for name in engines]
    selectors = [tuple(sorted(o["spec"]["selector"]["matchLabels"].items())) for o in engines.values()]
    assert len(set(selectors)) == 2, "neither Deployment has the other's pods"
    services = {o["metadata"]["name"]: o["spec"]["selector"] for o in found["engine-service.yaml"]}
    for name, engine in engines.items():
        assert services[name].items() <= engine["spec"]["template"]["metadata"]["labels"].items()
    coder = engines["demo-andes-engine-coder"]["spec"]["template"]["spec"]
    assert coder["nodeSelector"] == {"gpu": "h100"}
    assert coder["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "--model=coder" in coder["containers"][0]["args"]
    chat = engines["demo-andes-engine-chat"]["spec"]
    assert chat["replicas"] == 2
    assert chat["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1", "as engine says"


def test_a_service_account_that_models_share_is_there_once() -> None:
    found = chart.objects({**MODELS, "engine.serviceAccount.name": "engines"})
    accounts = [o["metadata"]["name"] for o in found["serviceaccounts.yaml"]]
    assert sorted(accounts) == ["demo-andes-gateway", "demo-andes-operator", "engines"]
    for made in found["engine-deployment.yaml"]:
        assert made["spec"]["template"]["spec"]["serviceAccountName"] == "engines"


def test_a_model_without_a_key_goes_with_one_that_has_the_gateway_s() -> None:
    assert chart.render(
        {"engine.apiKeySecret": "k", "models": [{"name": "a", "engine": {"apiKeySecret": ""}}, {"name": "b"}]}
    )
    other = [{"name": "a", "engine": {"apiKeySecret": "own"}}]
    assert chart.render({"gateway.enabled": False, "models": other}), "whose gateway it is, is not known"


@pytest.mark.parametrize("kind", ["sglang", "sim"])
def test_the_startup_limit_holds_at_any_period(kind: str) -> None:
    values = {"engine.kind": kind, "engine.startupSeconds": 300, "engine.probes.startup": {"periodSeconds": 5}}
    (made,) = chart.objects(values)["engine-deployment.yaml"]
    probe = made["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 300


def test_one_model_is_called_as_ever() -> None:
    (engine,) = chart.objects()["engine-deployment.yaml"]
    assert engine["metadata"]["name"] == "demo-andes-engine"
    assert engine["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "engine"


def test_network_policies_let_the_gateway_reach_every_model() -> None:
    found = chart.objects({**MODELS, "networkPolicy.enabled": True})["networkpolicy.yaml"]
    policies = {o["metadata"]["name"].removeprefix("demo-andes-"): o["spec"] for o in found}
    assert set(policies) == {"gateway", "operator", "engine-chat", "engine-coder"}
    (to,) = [rule["to"] for rule in policies["gateway"]["egress"] if "to" in rule]
    assert {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in to} == {
        "engine-chat",
        "engine-coder",
    }


@pytest.mark.parametrize("component", ["gateway", "engine"])
def test_variables_of_one_s_own_replace_the_chart_s(component: str) -> None:
    name = {"gateway": "ANDES_GATEWAY_NAME", "engine": "HF_HOME"}[component]
    (made,) = chart.objects({f"{component}.extraEnv": [{"name": name, "value": "mine"}]})[
        f"{component}-deployment.yaml"
    ]
    env = made["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [e for e in env if e["name"] == name] == [{"name": name, "value": "mine"}]
    assert len({e["name"] for e in env}) == len(env) > 1


@pytest.mark.parametrize("component", ["gateway", "engine"])
def test_a_handler_of_one_s_own_replaces_the_chart_s(component: str) -> None:
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 3}
    (made,) = chart.objects({f"{component}.probes.readiness": probe})[f"{component}-deployment.yaml"]
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert container["readinessProbe"] == {**probe, "timeoutSeconds": 5, "failureThreshold": 3}
    assert "httpGet" in container["livenessProbe"], "the others stay"


@pytest.mark.parametrize(
    "args",
    [
        ["--tp=2"],
        ["--tp", "2"],
        ["--tensor-parallel-size=2"],
        ["--pp-size", "2"],
        ["--tp=2", "--dp-size=2", "--enable-dp-attention"],
        ["--config", "/models/engine.yaml"],
    ],
)
def test_gpus_that_the_flags_ask_for_are_accepted(args: list[str]) -> None:
    assert chart.render({"engine.args": args, "engine.gpu.count": 2, "engine.policy": "stock"})


@pytest.mark.parametrize("args", [["--tp=2"], ["--config", "/models/engine.yaml"]])
def test_a_simulated_engine_has_flags_of_its_own(args: list[str]) -> None:
    with pytest.raises(
        HelmError, match=f"there is no flag {args[0].partition('=')[0]} here; there are --answer-tokens"
    ):
        chart.render({"engine.args": args, "engine.kind": "sim"})
