"""What a stranger may do: limits, keys, addresses; what the document promises; what is never logged."""

from __future__ import annotations

import hashlib
import logging
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from andes_api.app import create_app
from andes_api.settings import GatewaySettings

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "my secret prompt", "max_tokens": 3, "stream": True}
KEY, OTHER = "sk-acme-123", "sk-other-456"


def tenant(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


def post(server: Any, body: Any = None, key: str = "", **headers: str) -> httpx.Response:
    if key:
        headers["authorization"] = f"Bearer {key}"
    return httpx.post(server.url + "/v1/completions", json=body or BODY, headers=headers)


def test_keys_and_the_limits_of_tenants(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    tenants = [tenant("acme", KEY, max_streams=1, classes=["code"]), tenant("other", OTHER, requests_per_minute=10)]
    server = gateway(upstream.url, tenants=tenants)
    assert post(server).status_code == 401
    assert post(server, key="sk-wrong").json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(server.url + "/v1/models").status_code == 401
    assert httpx.get(server.url + "/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    served = post(server, key=KEY)
    assert (served.status_code, served.headers["x-andes-class"]) == (200, "code")
    assert "authorization" not in upstream.headers[-1]
    upstream.fault, upstream.after = "stall", 1
    with httpx.stream("POST", server.url + "/v1/completions", json=BODY, headers={"authorization": f"Bearer {KEY}"}):
        assert upstream.stalled.wait(60)
        full = post(server, key=KEY)
        assert (full.status_code, full.headers["x-andes-reason"]) == (429, "tenant_streams")
        assert int(full.headers["retry-after"]) >= 1
        upstream.fault = None
        assert post(server, key=OTHER).status_code == 200  # the others do not notice
    fast = post(server, key=OTHER)
    assert (fast.status_code, fast.headers["x-andes-reason"]) == (429, "tenant_rate")
    assert 1 <= int(fast.headers["retry-after"]) <= 6


def test_the_key_for_engines_is_ours(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    assert post(gateway(upstream.url, upstream_api_key="sk-engine"), key="sk-mine").status_code == 200
    assert upstream.headers[-1]["authorization"] == "Bearer sk-engine"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"stream": 1}', "application/json", 400),
        (b'{"stream": "yes"}', "application/json", 400),
        (b'{"stream": true, "stream_options": 3}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"prompt": "' + b"x" * 5000 + b'"}', "application/json", 413),
    ],
)
def test_bodies_that_are_none(content: bytes, kind: str, status: int, faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, max_body_bytes=4096)
    answer = httpx.post(server.url + "/v1/chat/completions", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert answer.headers["x-andes-reason"]
    assert not upstream.bodies


def test_a_body_or_a_head_that_never_ends(faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url, max_header_bytes=4096, body_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(60)
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(60)
        client.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 8192 + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 431")
    assert httpx.get(server.url + "/livez").status_code == 200


def test_an_engine_is_sent_nowhere(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    content = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    chat = {"model": "http://127.0.0.1:1/", "messages": [{"role": "user", "content": content}]}
    answer = httpx.post(server.url + "/v1/chat/completions", json=chat)
    assert (answer.status_code, answer.headers["x-andes-reason"]) == (400, "media")
    for steers in ("custom_logit_processor", "bootstrap_host", "data_parallel_rank", "routed_dp_rank"):
        refused = httpx.post(server.url + "/v1/completions", json={**BODY, steers: 1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, steers)
    assert not upstream.bodies
    assert post(server, {**BODY, "model": "http://127.0.0.1:1/"}).status_code == 404  # only a name


def test_who_may_drain(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    path = "/fleet/replicas/" + upstream.url.removeprefix("http://") + "/drain"
    digest = hashlib.sha256(b"admin").hexdigest()
    keyed, local = gateway(upstream.url, admin_key_sha256=digest, hold_s=0), gateway(upstream.url)
    assert httpx.post(keyed.url + path).status_code == 401
    assert httpx.post(keyed.url + path, headers={"authorization": "Bearer admin"}).json()["draining"] is True
    assert post(keyed).headers["x-andes-reason"] == "no_replica"
    assert httpx.post(local.url + path, headers={"origin": "https://evil.example"}).status_code == 403
    assert httpx.post(local.url + path).status_code == 200
    assert httpx.post(local.url + "/fleet/replicas/none/drain").status_code == 404


def test_nothing_secret_is_logged(faulty: Any, gateway: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server = gateway(faulty().url, tenants=[tenant("acme", KEY)], upstream_api_key="sk-engine", access_log=True)
        assert post(server, key=KEY).status_code == 200
        assert post(server, key="sk-wrong").status_code == 401
        httpx.post(
            server.url + "/v1/completions",
            content=b'{"prompt": "my secret prompt',
            headers={"authorization": f"Bearer {KEY}"},
        )
    lines = [r.getMessage() for r in caplog.records if r.name == "andes.access"]
    assert len([line for line in lines if '"tenant": "acme"' in line]) == 1
    for secret in ("secret", "w0 ", KEY, "sk-wrong", "sk-engine"):
        assert not any(secret in r.getMessage() for r in caplog.records if r.name.startswith(("andes", "uvicorn")))
    assert "secret" not in httpx.get(server.url + "/fleet/demand").text
    assert "secret" not in httpx.get(server.url + "/metrics").text


def test_classes_change_while_it_runs(faulty: Any, gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    server = gateway(faulty().url, classes_file=str(file))

    def tds() -> str:
        return post(server).headers["x-andes-tds"]

    def becomes(value: str) -> bool:
        deadline_s = time.monotonic() + 60
        while tds() != value and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return tds() == value

    assert tds() == "4.8"
    file.write_text("classes: {reading: {tds: 6}}")
    assert becomes("6")
    file.write_text("classes: {reading: {tds: fast}}")
    server.app.state.gateway.reread_classes()
    assert tds() == "6"
    file.unlink()
    assert becomes("4.8")


def test_metrics_have_few_labels(faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url, model_aliases={"*": "m"})
    for k in range(30):
        post(server, {**BODY, "model": f"model-{k}", "user": f"user-{k}"}, **{"x-request-id": f"id-{k}"})
    text = httpx.get(server.url + "/metrics").text
    assert "model-3" not in text
    assert "user-3" not in text
    assert "id-3" not in text
    labels = {line.partition("{")[2].partition("=")[0] for line in text.splitlines() if "{" in line}
    assert labels <= {"class", "model", "outcome", "replica", "reason", "le", "state"}


def test_the_document_is_made_without_an_engine() -> None:
    document = create_app(GatewaySettings(upstreams=("http://127.0.0.1:9",))).openapi()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {p["name"] for p in chat["parameters"]} == {
        "x-andes-class",
        "x-andes-ttft-ms",
        "x-andes-tds",
        "x-andes-expected-tokens",
        "x-andes-pace",
        "x-andes-degrade",
        "x-andes-report",
        "x-andes-tools",
        "x-andes-reasoning",
        "x-andes-think-tds",
    }
