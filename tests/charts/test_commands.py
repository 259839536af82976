"""What the containers run is what the programs take: their real settings and parsers, and a stream through real ones."""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chart
import pytest
import yaml

from andes_sglang.bench.ports import free_port


def absent(*modules: str) -> list[str]:
    def there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in modules if not there(name)]


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = absent(*modules)
    return pytest.mark.skipif(bool(missing), reason=f"NOT HERE: {', '.join(missing)}")


def container(component: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    (deployment,) = chart.objects(values)[f"{component}-deployment.yaml"]
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def gateway_settings(values: dict[str, Any] | None = None) -> str:
    (config,) = chart.objects(values)["gateway-config.yaml"]
    return str(config["data"]["gateway.yaml"])


@needs("andes_api")
def test_the_gateway_takes_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from andes_api.settings import load

    values = {
        "otel.endpoint": "http://collector:4318",
        "gateway.upstreams": ["http://10.0.0.1:30000"],
        "gateway.settings": {"policy": "prefix", "classes": {"reading": {"ttft_s": 2.0}}},
        "gateway.tenants.existingSecret": "tenants",
        "engine.apiKeySecret": "key",
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(gateway_settings(values))
    secrets = {
        "ANDES_GATEWAY_TENANTS": '[{"name": "web", "key_sha256": "%s"}]' % ("0" * 64),
        "ANDES_GATEWAY_ADMIN_KEY_SHA256": "1" * 64,
        "ANDES_GATEWAY_UPSTREAM_API_KEY": "key",
        "ANDES_GATEWAY_NAME": "demo-andes-gateway-6d5f7-abcde",
    }
    assert {variable["name"] for variable in container("gateway", values)["env"]} == secrets.keys()
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    settings = load(file)
    assert settings.upstreams == ("dns://demo-andes-engine.chat.svc:30000", "http://10.0.0.1:30000")
    assert settings.drain_s == 600
    mounts = {mount["mountPath"] for mount in container("gateway")["volumeMounts"]}
    assert str(settings.classes_file.parent) in mounts
    assert settings.port == container("gateway")["ports"][0]["containerPort"]
    assert [tenant.name for tenant in settings.tenants] == ["web"]


@needs("andes_operator")
def test_what_the_operator_writes_is_there_and_reaches_the_gateway() -> None:
    from andes_operator import names

    (deployment,) = chart.objects()["gateway-deployment.yaml"]
    (classes,) = [v for v in deployment["spec"]["template"]["spec"]["volumes"] if v["name"] == "classes"]
    assert classes["configMap"]["name"] == names.CLASSES_CONFIGMAP
    lease, written = chart.objects()["operator-state.yaml"]
    assert (lease["metadata"]["name"], written["metadata"]["name"]) == (names.OPERATOR, names.CLASSES_CONFIGMAP)
    assert yaml.safe_load(gateway_settings())["classes_file"].endswith(f"/{names.CLASSES_KEY}")


@needs("andes_operator")
def test_the_operator_takes_its_flags() -> None:
    from andes_operator.settings import add_arguments, load

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    made = container("operator", {"operator.namespaces": ["a", "b"], "otel.endpoint": "http://collector:4318"})
    settings = load(parser.parse_args(made["args"][1:]))
    assert settings.namespace == ("a", "b")
    assert settings.otlp_endpoint == "http://collector:4318"
    assert settings.port == made["ports"][0]["containerPort"]


def test_the_operator_reads_the_variables_it_is_given() -> None:
    package = chart.ROOT / "operator" / "andes_operator"
    if not package.exists():
        pytest.skip("NOT HERE: andes_operator")
    source = "".join(path.read_text() for path in package.glob("*.py"))
    for variable in container("operator")["env"]:
        assert f'"{variable["name"]}"' in source


@needs("andes_sglang.sim.server")
def test_the_simulated_engine_takes_its_flags() -> None:
    from andes_sglang.sim.server.serve import add_arguments

    parser = argparse.ArgumentParser()
    parser.add_argument("--engine")
    add_arguments(parser)
    adapters = [{"name": "sql", "path": "team/sql"}, {"name": "tone", "path": "/models/tone"}]
    values = {"engine.kind": "sim", "engine.policyOptions": {"stall_bound_s": 30}, "engine.lora.adapters": adapters}
    flags = container("engine", values)["args"]
    args = parser.parse_args(flags[1:])
    assert (args.port, args.profile, args.policy) == (30000, "h100-llama-3.1-8b", "andes")
    assert args.policy_option == ["stall_bound_s=30"]
    assert args.lora_paths == ["sql=team/sql", "tone=/models/tone"]


def test_profiles_of_ones_own_are_found_by_those_who_simulate() -> None:
    from andes_sglang.sim.profile import FOLDER_VARIABLE

    values = {"engine.kind": "sim", "profiles": {"mine": "[engine]\nchunk_tokens = 8"}}
    (config,) = chart.objects(values)["profiles.yaml"]
    assert config["data"] == {"mine.toml": "[engine]\nchunk_tokens = 8\n"}
    for component in ("engine", "operator"):
        found = container(component, values)
        folder = {variable["name"]: variable.get("value") for variable in found["env"]}[FOLDER_VARIABLE]
        assert folder in {mount["mountPath"] for mount in found["volumeMounts"]}


@needs("sglang")
@pytest.mark.engine  # none is started, but SGLang and torch are imported
def test_sglang_takes_the_flags_that_are_passed_on() -> None:
    """In a process of its own: SGLang changes the interpreter that imports it."""
    values = {
        "otel.endpoint": "http://collector:4318",
        "engine.apiKeySecret": "key",
        "engine.model.servedName": "llama",
        "engine.lora.adapters": [{"name": "sql", "path": "team/sql"}, {"name": "tone", "path": "/models/tone"}],
        "engine.lora.perBatch": 4,
    }
    ours = ("--model=", "--host=", "--port=", "--policy", "--default-")
    passed = [flag for flag in container("engine", values)["args"][1:] if not flag.startswith(ours)]
    assert len(passed) == 9
    (grouped,) = chart.objects({"engine.group.size": 2, "engine.args": ["--tp=2"]})["engine-group.yaml"]
    worker = grouped["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]["args"]
    passed += [
        flag.replace("$(LWS_WORKER_INDEX)", "1") for flag in worker if flag not in passed and flag.startswith("--n")
    ]
    from andes_sglang.adapter.launch import STANDINS

    script = (
        "import argparse, sys; from sglang.srt.server_args import ServerArgs; p = argparse.ArgumentParser();"
        "ServerArgs.add_cli_args(p); p.parse_args(['--model-path=m', *sys.argv[1:]])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(STANDINS)])}
    command = [sys.executable, "-c", script, *passed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@contextmanager
def running(arguments: list[str], health: str, **environment: str) -> Iterator[None]:
    """A program of ours as its container runs it, until it is told to stop; then it has to end well."""
    command = [sys.executable, "-m", "andes_sglang.cli", *arguments]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(health, timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) in (0, -signal.SIGTERM)


@needs("andes_api", "andes_sglang.sim.server")
@pytest.mark.server
@pytest.mark.parametrize("more", [[], ["--thought-tokens=200"]], ids=["answers", "thinks first"])
def test_helm_test_passes_before_what_the_chart_runs(more: list[str], tmp_path: Path) -> None:
    values = {"engine.kind": "sim", "gateway.drainSeconds": 5, "engine.args": ["--speed=10", *more]}
    engine, gateway = free_port(), free_port()
    flags = [
        {"--port=30000": f"--port={engine}", "--host=0.0.0.0": "--host=127.0.0.1"}.get(flag, flag)
        for flag in container("engine", values)["args"]
    ]
    settings = yaml.safe_load(gateway_settings(values))
    settings |= {"upstreams": [f"http://127.0.0.1:{engine}"], "port": gateway, "host": "127.0.0.1"}
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(settings))
    started = ["gateway", "--config", str(file)]
    assert container("gateway", values)["args"] == ["gateway", "--config", "/etc/andes/gateway.yaml"]
    key = hashlib.sha256(base64.b64encode(b"administrator")).hexdigest()
    with (
        running(flags, f"http://127.0.0.1:{engine}/health"),
        running(started, f"http://127.0.0.1:{gateway}/readyz", ANDES_GATEWAY_ADMIN_KEY_SHA256=key),
    ):
        (pod,) = chart.objects(values)["tests-stream.yaml"]
        program, option, script, _ = pod["spec"]["containers"][0]["command"]
        assert (program, option) == ("python", "-c")
        done = subprocess.run(
            [sys.executable, "-c", script, f"http://127.0.0.1:{gateway}"], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert re.match(r"h100-llama-3.1-8b|meta-llama", done.stdout)
