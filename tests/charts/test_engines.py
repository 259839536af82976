"""Engines of several pods, their caches and adapters, other ways to the gateway; and what is refused because it could only crash."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import chart
import promql_parser
import pytest
from helm_python.errors import HelmError

from andes_sglang.adapter import seams

GROUP = {"engine.group.size": 2, "engine.gpu.count": 8, "engine.args": ["--tp=16"]}
NODE = {"engine.cache.node.enabled": True}
INDEX = "leaderworkerset.sigs.k8s.io/worker-index"


def group(values: dict[str, Any] | None = None) -> dict[str, Any]:
    (found,) = chart.objects({**GROUP, **(values or {})})["engine-group.yaml"]
    return dict(found)


def spec_of(template: dict[str, Any]) -> dict[str, Any]:
    return dict(template["spec"])


def args(values: dict[str, Any] | None = None) -> list[str]:
    (made,) = chart.objects(values)["engine-deployment.yaml"]
    return list(made["spec"]["template"]["spec"]["containers"][0]["args"])


def test_an_engine_of_several_pods_is_one_group_whose_first_pod_serves() -> None:
    found = chart.objects(GROUP)
    assert "engine-deployment.yaml" not in found
    made = group()
    template = made["spec"]["leaderWorkerTemplate"]
    assert (made["apiVersion"], made["kind"]) == ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
    assert template["size"] == 2
    for pod in (template["leaderTemplate"], template["workerTemplate"]):
        container = pod["spec"]["containers"][0]
        ranks = {"--nnodes=2", "--node-rank=$(LWS_WORKER_INDEX)", "--dist-init-addr=$(LWS_LEADER_ADDRESS):20000"}
        assert ranks <= set(container["args"])
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    (service,) = found["engine-service.yaml"]
    assert service["spec"]["selector"][INDEX] == "0"
    name = service["metadata"]["name"]
    assert name != made["metadata"]["name"], "the controller makes a Service of the group's own name"
    assert f"dns://{name}.chat.svc:30000" in found["gateway-config.yaml"][0]["data"]["gateway.yaml"]


def test_the_pod_that_serves_drains_and_the_others_outlive_it_only_just() -> None:
    template = group({"engine.drainSeconds": 900})["spec"]["leaderWorkerTemplate"]
    leader, worker = spec_of(template["leaderTemplate"]), spec_of(template["workerTemplate"])
    assert leader["terminationGracePeriodSeconds"] >= 940
    assert "lifecycle" not in worker["containers"][0]
    assert worker["terminationGracePeriodSeconds"] == 30, "they go once it has gone"


def test_replicas_of_a_group_are_left_to_what_scales() -> None:
    assert "replicas" not in group()["spec"]
    made = group({"engine.replicas": 3})
    assert made["spec"]["replicas"] == 3
    assert made["metadata"]["annotations"] == {"andes.dev/replicas": "helm"}


def test_a_groups_rollout_is_that_of_the_values() -> None:
    made = group({"engine.strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}})
    assert made["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_target_in_the_notes_names_the_group_and_all_its_gpus() -> None:
    notes = chart.render(GROUP)["NOTES.txt"]
    assert "{apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: demo-andes-engine}" in notes
    assert "gpusPerReplica: 16" in notes


def test_ranks_reach_each_other_through_a_network_policy_and_nothing_else_does() -> None:
    found = {
        o["metadata"]["name"]: o["spec"]
        for o in chart.objects({**GROUP, "networkPolicy.enabled": True})["networkpolicy.yaml"]
    }
    policy = found["demo-andes-engine"]
    own = policy["podSelector"]
    assert {"from": [{"podSelector": own}]} in policy["ingress"]
    assert {"to": [{"podSelector": own}]} in policy["egress"]
    assert INDEX not in own["matchLabels"], "of all ranks"
    plain = chart.objects({"networkPolicy.enabled": True})["networkpolicy.yaml"]
    assert all("ports" in rule for o in plain for rule in o["spec"]["ingress"])


def test_a_simulated_engine_is_one_pod() -> None:
    found = chart.objects({**GROUP, "engine.kind": "sim", "engine.args": []})
    assert "engine-group.yaml" not in found
    assert found["engine-service.yaml"][0]["metadata"]["name"] == "demo-andes-engine"


def test_models_of_one_pod_and_of_several_go_together() -> None:
    models = [{"name": "small"}, {"name": "large", "engine": {"group": {"size": 2}, "args": ["--tp=2"]}}]
    found = chart.objects({"models": models})
    assert [o["metadata"]["name"] for o in found["engine-deployment.yaml"]] == ["demo-andes-engine-small"]
    assert [o["metadata"]["name"] for o in found["engine-group.yaml"]] == ["demo-andes-engine-large"]


# Caches


def test_a_claim_for_the_cache_is_kept_and_used() -> None:
    found = chart.objects({"engine.cache.claim.enabled": True})
    (claim,) = found["engine-cache.yaml"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (engine,) = found["engine-deployment.yaml"]
    volumes = {v["name"]: v for v in engine["spec"]["template"]["spec"]["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    own = chart.objects({"engine.cache.claim.enabled": True, "engine.cache.existingClaim": "mine"})
    assert "engine-cache.yaml" not in own


def test_a_nodes_cache_is_filled_before_an_engine_starts_there() -> None:
    values = {**NODE, "engine.model.huggingFaceSecret": "hf", "engine.nodeSelector": {"gpu": "h100"},
              "engine.lora.adapters": [{"name": "sql", "path": "team/sql"}]}  # fmt: skip
    found = chart.objects(values)
    (made,) = found["engine-cache.yaml"]
    spec = made["spec"]["template"]["spec"]
    (engine,) = found["engine-deployment.yaml"]
    pod = engine["spec"]["template"]["spec"]
    folder, download = spec["initContainers"]
    assert download["command"][-2:] == ["meta-llama/Llama-3.1-8B-Instruct", "team/sql"]
    path = {v["name"]: v["hostPath"]["path"] for p in (spec, pod) for v in p["volumes"] if "hostPath" in v}
    assert path == {"cache": "/var/lib/andes"}
    homes = [{e["name"]: e.get("value") for e in c["env"]}["HF_HOME"] for c in (download, pod["containers"][0])]
    assert len(set(homes)) == 1, "where one downloads to, the other looks"
    assert spec["nodeSelector"] == pod["nodeSelector"]
    assert spec["tolerations"] == pod["tolerations"]
    assert {c["image"] for c in (folder, download, *spec["containers"])} == {pod["containers"][0]["image"]}
    assert folder["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    for container in (download, *spec["containers"]):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_folder_is_given_to_users_of_any_number() -> None:
    user = {"podSecurityContext.runAsUser": 1000640000, "podSecurityContext.runAsGroup": 1000650000}
    (made,) = chart.objects({**NODE, **user})["engine-cache.yaml"]
    folder = made["spec"]["template"]["spec"]["initContainers"][0]
    assert folder["command"] == ["chown", "1000640000:1000650000", "/cache"]


def test_downloads_may_go_where_those_of_engines_may() -> None:
    mirror = {"to": [{"podSelector": {"matchLabels": {"app": "mirror"}}}], "ports": [{"port": 8080}]}
    values = {**NODE, "networkPolicy.enabled": True, "networkPolicy.egress.engine": [mirror]}
    policies = {o["metadata"]["name"]: o["spec"]["egress"] for o in chart.objects(values)["networkpolicy.yaml"]}
    for name in ("demo-andes-engine", "demo-andes-engine-cache"):
        assert mirror in policies[name], name


def test_what_is_a_folder_is_not_downloaded(tmp_path: Any) -> None:
    script = (chart.CHART / "files" / "preload.py").read_text()
    pytest.importorskip("huggingface_hub")

    def run(*names: str) -> subprocess.CompletedProcess[str]:
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
        return subprocess.run(
            [sys.executable, "-c", script, *names], capture_output=True, text=True, env=offline, check=False
        )

    assert run("/models/llama").returncode == 0
    failed = run("team/there-is-none")
    assert failed.returncode != 0
    assert "LocalEntryNotFoundError" in failed.stderr or "offline" in failed.stderr.lower()


# Adapters


def test_adapters_are_flags_of_both_kinds_of_engine() -> None:
    adapters = [{"name": "sql", "path": "team/sql"}, {"name": "tone", "path": "/models/tone"}]
    values = {"engine.lora.adapters": adapters, "engine.lora.perBatch": 2}
    flags = args(values)
    at = flags.index("--lora-paths")
    assert flags[at + 1 : at + 4] == ["sql=team/sql", "tone=/models/tone", "--max-loras-per-batch=2"]
    simulated = args({**values, "engine.kind": "sim"})
    at = simulated.index("--lora-paths")
    assert simulated[at + 3].startswith("--host"), "the list ends with the next flag"


@pytest.mark.parametrize("name", ["*best", "&sql", "a#b", "'quoted"])
def test_names_stay_as_they_are(name: str) -> None:
    model = {"engine.model.name": f"/models/{name}: v1", "engine.model.servedName": f"{name}: v1 #2"}
    values = {"engine.lora.adapters": [{"name": name, "path": f"/tones/{name}"}], **model}
    flags = args(values)
    assert flags[1:3] == [f"--model=/models/{name}: v1", f"--served-model-name={name}: v1 #2"]
    assert f"{name}=/tones/{name}" in flags
    assert f"--model={name}: v1 #2" in args({**values, "engine.kind": "sim"})


# Ways in


def test_a_pool_for_an_inference_gateway_has_the_engines_and_their_port() -> None:
    values = {"engine.inferencePool.enabled": True, "engine.inferencePool.endpointPicker.name": "picker"}
    (pool,) = chart.objects(values)["engine-inferencepool.yaml"]
    (engine,) = chart.objects(values)["engine-deployment.yaml"]
    template = engine["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert pool["spec"]["targetPorts"] == [{"number": template["spec"]["containers"][0]["ports"][0]["containerPort"]}]
    assert pool["spec"]["endpointPickerRef"] == {
        "name": "picker", "port": {"number": 9002}, "failureMode": "FailClose",
    }  # fmt: skip
    grouped = chart.objects({**GROUP, **values})["engine-inferencepool.yaml"]
    assert grouped[0]["spec"]["selector"]["matchLabels"][INDEX] == "0"


def test_a_route_leads_to_the_pool() -> None:
    values = {
        "engine.inferencePool.enabled": True, "engine.inferencePool.endpointPicker.name": "picker",
        "engine.inferencePool.parentRefs": [{"name": "inference"}],
    }  # fmt: skip
    pool, route = chart.objects(values)["engine-inferencepool.yaml"]
    (to,) = route["spec"]["rules"][0]["backendRefs"]
    assert (f"{to['group']}/v1", to["kind"], to["name"]) == (
        pool["apiVersion"], pool["kind"], pool["metadata"]["name"],
    )  # fmt: skip


def test_gateways_are_scaled_on_streams_by_keda_or_without() -> None:
    values = {"gateway.autoscaling.enabled": True, "gateway.autoscaling.targetStreams": 400}
    (hpa,) = chart.objects(values)["gateway-hpa.yaml"]
    assert [m["type"] for m in hpa["spec"]["metrics"]] == ["Resource", "Pods"]
    keda = {"gateway.autoscaling.keda.enabled": True, "gateway.autoscaling.keda.prometheus": "http://p:9090"}
    found = chart.objects({**values, **keda})
    assert "gateway-hpa.yaml" not in found, "two would fight"
    (scaled,) = found["gateway-scaledobject.yaml"]
    cpu, streams = scaled["spec"]["triggers"]
    assert cpu == {"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}
    assert streams["metadata"]["threshold"] == "400"
    assert streams["metadata"]["serverAddress"] == "http://p:9090"
    promql_parser.parse(streams["metadata"]["query"])
    assert hpa["spec"]["metrics"][1]["pods"]["metric"]["name"] in streams["metadata"]["query"]
    (deployment,) = found["gateway-deployment.yaml"]
    assert "replicas" not in deployment["spec"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_on_openshift_pods_name_no_user_and_a_route_leads_in() -> None:
    found = chart.objects({"openshift.enabled": True, "gateway.route.enabled": True})
    for path in ("gateway-deployment.yaml", "engine-deployment.yaml", "operator-deployment.yaml"):
        context = found[path][0]["spec"]["template"]["spec"]["securityContext"]
        assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, path
    assert found["tests-stream.yaml"][0]["spec"]["securityContext"] == context
    (route,) = found["gateway-route.yaml"]
    (service,) = found["gateway-service.yaml"]
    assert route["spec"]["to"]["name"] == service["metadata"]["name"]
    assert route["spec"]["port"]["targetPort"] == service["spec"]["ports"][0]["name"]
    assert route["metadata"]["annotations"] == {"haproxy.router.openshift.io/timeout": "600s"}


# What is refused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine.group.size": 2}, "engine.gpu.count is 1 on each of 2 pods, but its args use 1"),
        ({"engine.group.size": 2, "engine.args": ["--tp=3"]}, "on each of 2 pods, but its args use 3"),
        ({**GROUP, "engine.strategy.type": "Recreate"}, "engine.strategy.type is Recreate, but"),
        ({**GROUP, "fullnameOverride": "a" * 40}, "engine.group.size: pods of the name a+-engine would"),
        (
            {**GROUP, "engine.cache.claim.enabled": True, "engine.cache.claim.accessMode": "ReadWriteOnce"},
            "engine.cache.claim.accessMode is ReadWriteOnce, which one node mounts",
        ),
        ({**NODE, "models": [{"name": "a"}, {"name": "a-cache"}]}, "models: the name a-cache is that of a part of a"),
        ({**GROUP, "models": [{"name": "b-leaders"}, {"name": "b"}]}, "models: the name b-leaders is that of a part of b"),
        ({"engine.args": ["--nnodes=2"]}, "engine.args: the chart sets --nnodes itself; see engine.group.size"),
        ({**GROUP, "engine.args": ["--tp=16", "--dist-init-addr", "x:1"]}, "the chart sets --dist-init-addr itself"),
        ({"engine.args": ["--port=8000"]}, "engine.args: the chart sets --port itself$"),
        ({"engine.args": ["--model-path", "/m"]}, "the chart sets --model-path itself; see engine.model.name"),
        ({"engine.kind": "sim", "engine.args": ["--policy", "qoe"]}, "the chart sets --policy itself; see engine.policy"),
        ({"models": [{"name": "a", "engine": {"args": ["--host=::"]}}]}, "models: a: engine.args: the chart sets --host"),
        ({"engine.args": ["--pp-size=2"], "engine.gpu.count": 2}, "engine.args: --pp-size does not go with a policy"),
        ({"engine.args": ["--schedule-policy=lpm"]}, "--schedule-policy does not go with a policy"),
        ({"engine.policy": "stock", "engine.args": ["--preemption-mode=offload"]}, "policy stock preempts no request"),
        (
            {"engine.kind": "sim", "engine.policy": "stock", "engine.args": ["--preemption-mode", "offload"]},
            "engine.args: --preemption-mode offload: policy stock preempts no request; choose another engine.policy",
        ),
        (
            {"engine.lora.adapters": [{"name": "a", "path": "x/a"}, {"name": "a", "path": "x/b"}]},
            "engine.lora.adapters: the name a is there twice, or is the model's",
        ),
        (
            {"engine.model.servedName": "a", "engine.lora.adapters": [{"name": "a", "path": "x/a"}]},
            "engine.lora.adapters: the name a is",
        ),
        (
            {"engine.lora.adapters": [{"name": "a", "path": "x/a"}], "engine.args": ["--lora-paths", "b=x/b"]},
            "engine.args: --lora-paths would replace engine.lora.adapters",
        ),
        ({**NODE, "engine.cache.claim.enabled": True}, "engine.cache: node.enabled and a claim"),
        ({**NODE, "engine.cache.existingClaim": "c"}, "engine.cache: node.enabled and a claim"),
        ({**NODE, "openshift.enabled": True}, "engine.cache.node.enabled: the folder belongs to"),
        ({"engine.inferencePool.enabled": True}, "engine.inferencePool.endpointPicker.name: "),
        ({"gateway.autoscaling.keda.enabled": True}, "gateway.autoscaling.keda.enabled: needs gateway.autoscaling.enabled"),
        (
            {"gateway.autoscaling.enabled": True, "gateway.autoscaling.keda.enabled": True},
            "gateway.autoscaling.keda.enabled: needs keda.prometheus and targetStreams",
        ),
    ],
)  # fmt: skip
def test_what_could_only_crash_or_wait_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=said):
        chart.render(values)


@pytest.mark.parametrize(("field", "usual"), [(field, usual) for field, usual, _ in seams.REFUSED])
def test_what_the_plugin_refuses_at_its_start_the_chart_refuses_before(field: str, usual: Any) -> None:
    flag = f"--{field.replace('_', '-')}"
    given = [flag if usual is False else f"{flag}=2"]
    values = {"engine.args": given, "engine.gpu.count": 2 if field == "pp_size" else 1}
    with pytest.raises(HelmError, match=f"{flag} does not go with a policy"):
        chart.render(values)
    assert chart.render({**values, "engine.policy": "stock"})


@pytest.mark.parametrize(
    ("values", "api"),
    [
        (GROUP, "engine.group.size: this cluster has no leaderworkerset.x-k8s.io/v1"),
        (
            {"engine.inferencePool.enabled": True, "engine.inferencePool.endpointPicker.name": "p"},
            "engine.inferencePool.enabled: this cluster has no inference.networking.k8s.io/v1",
        ),
        (
            {"gateway.autoscaling.enabled": True, "gateway.autoscaling.keda.enabled": True},
            "gateway.autoscaling.keda.enabled: this cluster has no keda.sh/v1alpha1",
        ),
        ({"gateway.route.enabled": True}, "gateway.route.enabled: this cluster has no route.openshift.io/v1"),
    ],
)
def test_what_the_cluster_lacks_is_named(values: dict[str, Any], api: str) -> None:
    with pytest.raises(HelmError, match=api):
        chart.render(values, apis=[])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"engine.group.size": 0}, "/engine/group/size"),
        ({"engine.lora.adapters": [{"name": "a"}]}, "/engine/lora/adapters/0"),
        ({"engine.lora.adapters": [{"name": "a b", "path": "x"}]}, "/engine/lora/adapters/0/name"),
        ({"engine.cache.node.path": "models"}, "/engine/cache/node/path"),
        ({"engine.cache.claim.accessMode": "ReadOnlyMany"}, "/engine/cache/claim/accessMode"),
        ({"engine.inferencePool.endpointPicker.failureMode": "Open"}, "/endpointPicker/failureMode"),
        ({"gateway.autoscaling.targetStreams": 0}, "/gateway/autoscaling/targetStreams"),
        ({"gateway.autoscaling.keda.prometheus": "prometheus:9090"}, "/gateway/autoscaling/keda/prometheus"),
        ({"operator.nodes": "yes"}, "/operator/nodes"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        chart.render(values)
