"""What the command line refuses, and what a request may say about its reader."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from andes_sglang import expectations
from andes_sglang.adapter.options import ENVIRONMENT, Options
from andes_sglang.bench.engine import Engine, EngineError, read_metrics
from andes_sglang.qoe import QoETarget


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "andes_sglang.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_mistakes_are_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = str(tmp_path)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        offload = ("--model", model, "--preemption-mode", "offload")
        for arguments, says in (
            (("--model", model, "--policy", "magic"), "unknown policy 'magic'"),
            (("--model", model, "--policy-option", "horizon_s=-1"), "horizon_s must be > 0"),
            (("--model", model, "--policy-option", "oops"), "expected NAME=VALUE"),
            (("--model", model, "--default-tds", "0"), "--default-tds: tds must be"),
            (("--model", str(tmp_path / "none")), "no such directory"),
            (("--model", str(tmp_path.parent)), "it has no config.json"),
            (("--model", model, "--host-kv-gib", "1"), "--host-kv-gib 1.0: goes with --preemption-mode offload"),
            (
                ("--model", model, "--offload-without", "overlap"),
                "--offload-without overlap: goes with --preemption-mode",
            ),
            ((*offload, "--offload-without", "luck"), "invalid choice: 'luck'"),
            ((*offload, "--host-kv-gib", "99999"), "--host-kv-gib 99999: must be > 0 and at most"),
            ((*offload, "--host-kv-gib", "0"), "--host-kv-gib 0: must be > 0"),
            ((*offload, "--policy", "stock"), "policy stock preempts nobody"),
            (
                ("--model", model, "--policy", "forced", "--policy-option", "mode=offload"),
                "needs --preemption-mode offload",
            ),
            (("--model", model, "--port", port), f"--port {port}: cannot listen there"),
        ):
            done = serve(*arguments)
            assert done.returncode == 2, done
            assert says in done.stderr
            assert "Traceback" not in done.stderr


def test_options_travel_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options("andes", {"stall_bound_s": 30.0}, 2.0, 5.0, "offload", 1.5, "overlap")
    monkeypatch.setenv(ENVIRONMENT, options.to_env())
    assert Options.from_env() == options
    monkeypatch.delenv(ENVIRONMENT)
    assert Options.from_env().policy is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"qoe": 3}, "custom_params.qoe must be an object"),
        ({"qoe": {"tds": 0}}, "custom_params.qoe.tds must be .* got 0"),
        ({"qoe": {"ttft": "1"}}, "custom_params.qoe.ttft must be .* got '1'"),
        ({"qoe": {"speed": 3}}, "custom_params.qoe.speed: unknown field"),
    ],
)
def test_malformed_expectations(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expectations.parse(value, QoETarget())


def test_expectations_fall_back_field_by_field() -> None:
    default = QoETarget(1.5, 4.0)
    assert expectations.parse(None, default) == default
    assert expectations.parse({"other": 1}, default) == default
    assert expectations.parse({"qoe": {"tds": 9}}, default) == QoETarget(1.5, 9)


@pytest.fixture(scope="module")
def andes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = ("--enable-metrics", "--max-total-tokens", "4096")
    with Engine(tiny_model, "andes", flags, log=tmp_path_factory.mktemp("andes") / "log") as engine:
        yield engine


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_a_real_server_refuses_malformed_expectations_with_400(andes: Engine) -> None:
    for path, body in (
        ("/v1/completions", {"model": "m", "prompt": [5, 6], "stream": True}),
        ("/v1/completions", {"model": "m", "prompt": [5, 6]}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "an"}]}),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            andes.post(path, {**body, "max_tokens": 4, "custom_params": {"qoe": {"tds": -4}}})
        assert caught.value.code == 400
        assert "custom_params.qoe.tds" in json.loads(caught.value.read())["message"]


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_a_real_server_tells_who_is_in_charge(andes: Engine) -> None:
    body = {"model": "m", "prompt": [5, 6], "max_tokens": 6, "ignore_eos": True}
    andes.post("/v1/completions", {**body, "custom_params": {"qoe": {"ttft": 1, "tds": 4}}})
    andes.check_policy()
    found = read_metrics(andes.url)
    assert found['andes_policy_info{policy="andes"}'] == 1.0
    assert found["andes_decision_seconds_count"] >= 1
    assert found["andes_request_qoe_count"] >= 1
    assert {f'andes_requests{{state="{s}"}}' for s in ("running", "parked", "released", "waiting")} <= set(found)


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_a_seam_that_moved_ends_the_server(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start-up hook of Python pretends that SGLang changed a signature in every process of the server."""
    (tmp_path / "sitecustomize.py").write_text(
        "from andes_sglang.adapter import seams\n"
        "seams.SEAMS['sglang.srt.mem_cache.common.release_kv_cache'] = ('req', 'cache')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(EngineError) as caught, Engine(tiny_model, "andes", log=tmp_path / "log"):
        pass
    assert "seam sglang.srt.mem_cache.common.release_kv_cache takes (req, tree_cache, is_insert)" in str(caught.value)
