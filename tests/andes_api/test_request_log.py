"""Every request has an id and a record: in metrics, access log and traces, also when it is refused before it is understood."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import time
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.server

ASK: dict[str, Any] = {"model": "m", "prompt": "say", "max_tokens": 2}
TENANT = {"name": "acme", "key_sha256": hashlib.sha256(b"key").hexdigest()}
KEY = {"authorization": "Bearer key"}
JSON = {"content-type": "application/json"}
REFUSALS: dict[str, tuple[int, dict[str, Any]]] = {
    "no key": (401, {"json": ASK, "headers": {"authorization": ""}}),
    "no json": (400, {"content": b"{", "headers": JSON}),
    "no object": (400, {"content": b"[]", "headers": JSON}),
    "kind": (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
    "long": (413, {"json": {**ASK, "prompt": "x" * 3000}}),
    "header": (400, {"json": ASK, "headers": {"x-andes-tds": "fast"}}),
    "field": (400, {"json": {**ASK, "bootstrap_host": "x"}}),
    "path": (404, {"json": ASK, "path": "/v1/nothing"}),
    "method": (405, {"json": ASK, "path": "/v1/models"}),
}


def lines(log: pytest.LogCaptureFixture, count: int = 0) -> list[dict[str, Any]]:
    """The access log, once it has ``count`` lines: they are written after the answer."""
    deadline_s = time.monotonic() + 60
    while True:
        found = [json.loads(r.getMessage()) for r in list(log.records) if r.name == "andes.access"]
        if len(found) >= count or time.monotonic() > deadline_s:
            return found
        time.sleep(0.01)


def requests(server: Any, outcome: str) -> float:
    """How many have ended so without having become a stream."""
    label = f'andes_gateway_requests_total{{class="",model="",outcome="{outcome}"}} '
    found = [line for line in httpx.get(server.url + "/metrics").text.splitlines() if line.startswith(label)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.fixture
def backend(make_backend: Any) -> Any:
    return make_backend()


def test_a_refusal_is_on_record(faulty: Any, gateway: Any, backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = gateway(faulty().url, tenants=[TENANT], max_body_bytes=2000, access_log=True, otlp_endpoint=backend.url)
    with caplog.at_level(logging.INFO, "andes.access"):
        for number, (name, (status, asked)) in enumerate(REFUSALS.items(), 1):
            asked = dict(asked)
            headers = {**KEY, "x-request-id": f"id-{status}", **asked.pop("headers", {})}
            answer = httpx.post(server.url + asked.pop("path", "/v1/completions"), headers=headers, **asked)
            assert answer.status_code == status, name
            assert answer.headers["x-request-id"] == f"id-{status}", name
            assert answer.json()["error"]["message"], name
            line = lines(caplog, number)[-1]
            assert (line["request_id"], line["status"], line["outcome"]) == (f"id-{status}", status, "error"), name
            assert line["reason"] == answer.headers["x-andes-reason"], name
    assert len(lines(caplog)) == len(REFUSALS)
    assert requests(server, "error") == len(REFUSALS)
    for provider in server.app.state.gateway.telemetry._otlp._providers:
        assert provider.force_flush(60_000)
    told = [backend.said(span) for span in backend.spans]
    assert [about["http.response.status_code"] for about in told] == [status for status, _ in REFUSALS.values()]
    assert all(about["error.type"] == str(about["http.response.status_code"]) for about in told)
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in backend.spans)


def test_answers_about_the_gateway_have_an_id_and_are_not_on_record(
    faulty: Any, gateway: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = gateway(faulty().url, access_log=True)
    with caplog.at_level(logging.INFO, "andes.access"):
        for path in ("/livez", "/readyz", "/metrics", "/fleet/replicas", "/openapi.json"):
            answer = httpx.get(server.url + path, headers={"x-request-id": "a b"})
            assert answer.status_code == 200
            assert len(answer.headers["x-request-id"]) == 32, "what was given could not be passed on"
        assert not lines(caplog)
        assert httpx.get(server.url + "/fleet/qoe?window_s=none").status_code == 400
        assert httpx.get(server.url + "/v1/models").status_code == 200
        answer = httpx.post(server.url + "/v1/completions", json=ASK, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (200, ["mine"])
        told = lines(caplog, 3)
    said = [(line.get("path", ""), line["status"], line["outcome"]) for line in told]
    assert said == [("/fleet/qoe", 400, "error"), ("/v1/models", 200, "done"), ("/v1/completions", 200, "done")]
    assert requests(server, "done") == 1


def test_what_is_no_http_is_counted_too(faulty: Any, gateway: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = gateway(faulty().url, access_log=True)
    with caplog.at_level(logging.INFO, "andes.access"):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"no http at all\r\n\r\n")
            said = sock.makefile("rb").read().decode()
        assert said.startswith("HTTP/1.1 400")
        (line,) = lines(caplog, 1)
    assert f"x-request-id: {line['request_id']}" in said
    assert (line["status"], line["outcome"]) == (400, "error")
    assert requests(server, "error") == 1


def test_a_client_that_leaves_while_it_sends_is_on_record(faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url)
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    deadline_s = time.monotonic() + 60
    while not requests(server, "abandoned") and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert requests(server, "abandoned") == 1


def test_a_fault_of_ours_is_an_error_that_clients_read(
    faulty: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = gateway(faulty().url)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server.app.state.gateway, "route_of", fail)
    answer = httpx.post(server.url + "/v1/completions", json=ASK, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert "mine" in answer.json()["error"]["message"]
    deadline_s = time.monotonic() + 60
    while not requests(server, "failed") and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert requests(server, "failed") == 1
    assert "request mine failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
