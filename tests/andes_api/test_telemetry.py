"""Traces and metrics as a backend receives them: from the real SDK's exporter, directly and through a real collector."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from andes_api import names
from andes_sglang.bench.engine import read_metrics
from andes_sglang.bench.ports import free_port

pytestmark = pytest.mark.server

ASK: dict[str, Any] = {
    "model": "m", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 6, "temperature": 0.5, "stream": True,
}  # fmt: skip
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
KUBE = Path(__file__).parents[3] / "shared" / "kube"
SERVER, CLIENT = 2, 3


@pytest.fixture(scope="session")
def otelcol(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real OpenTelemetry collector."""
    found = os.environ.get("OTELCOL") or shutil.which("otelcol")
    if found:
        return found
    if not (KUBE / "unpack.sh").exists():
        pytest.skip("NO COLLECTOR: set OTELCOL to an OpenTelemetry collector to test through a real one")
    directory = subprocess.run([KUBE / "unpack.sh"], capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(directory) / "otelcol")


@pytest.fixture(params=["directly", "by gRPC", "through a collector"])
def backend(request: pytest.FixtureRequest, make_backend: Any, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """What receives in the end, and the address to send to."""
    backend = make_backend()
    if request.param == "directly":
        yield backend, backend.url
        return
    if request.param == "by gRPC":
        for url in backend.over_grpc():
            yield backend, url
        return
    binary, port = request.getfixturevalue("otelcol"), free_port()
    config = tmp_path / "otelcol.yaml"
    config.write_text(f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{otlphttp: {{endpoint: "{backend.url}", sending_queue: {{enabled: false}}}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [otlphttp]}}
    metrics: {{receivers: [otlp], exporters: [otlphttp]}}
""")
    log = (tmp_path / "otelcol.log").open("w+")
    process = subprocess.Popen([binary, "--config", str(config)], stdout=log, stderr=subprocess.STDOUT)
    deadline_s = time.monotonic() + 100
    while "Everything is ready" not in (tmp_path / "otelcol.log").read_text():
        assert process.poll() is None, (tmp_path / "otelcol.log").read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    yield backend, f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)
    log.close()


Start = Callable[..., Any]


def flush(server: Any) -> None:
    for provider in server.app.state.gateway.telemetry._otlp._providers:
        assert provider.force_flush(60_000)


@pytest.mark.timeout(300)
def test_a_request_is_one_trace(backend: tuple[Any, str], faulty: Start, gateway: Start) -> None:
    received, endpoint = backend
    upstream = faulty()
    server = gateway(upstream.url, otlp_endpoint=endpoint)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x", "x-andes-tds": "9"}
    answer = httpx.post(server.url + "/v1/chat/completions", json=ASK, headers=headers)
    assert answer.status_code == 200
    flush(server)
    outer, inner = sorted(received.spans, key=lambda s: s.kind)
    assert received.services == {"andes-gateway"}
    assert (outer.kind, outer.name, outer.parent_span_id.hex()) == (SERVER, "POST /v1/chat/completions", PARENT)
    assert (inner.kind, inner.name, inner.parent_span_id) == (CLIENT, "chat m", outer.span_id)
    assert {s.trace_id.hex() for s in received.spans} == {TRACE}
    assert upstream.headers[0]["traceparent"] == f"00-{TRACE}-{inner.span_id.hex()}-01"
    assert upstream.headers[0]["tracestate"] == "vendor=x"
    assert (
        outer.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano <= outer.end_time_unix_nano
    )
    about = received.said(inner)
    port = int(upstream.url.rpartition(":")[2])
    assert 0.0 < about.pop(names.TIME_TO_FIRST_CHUNK) < 10.0
    assert about.pop(names.RESPONSE_ID).startswith("id-")
    assert about == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "sglang", "gen_ai.request.model": "m",
        "gen_ai.request.stream": True, "gen_ai.request.max_tokens": 6, "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "m", "gen_ai.response.finish_reasons": ["length"], "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 6, "server.address": "127.0.0.1", "server.port": port,
    }  # fmt: skip
    about = received.said(outer)
    assert 0.9 < about["andes.qoe"] <= 1.0
    assert (about["andes.class"], about["andes.expected.tds"], about["andes.outcome"]) == ("reading", 9.0, "done")
    assert about["http.response.status_code"] == 200
    assert b"secret" not in received.raw
    found = {metric.name: metric for metric in received.metrics}
    ttft = found["gen_ai.server.time_to_first_token"]
    assert (ttft.unit, list(ttft.histogram.data_points[0].explicit_bounds)) == ("s", list(names.TTFT_BUCKETS))
    assert received.said(ttft.histogram.data_points[0])["gen_ai.request.model"] == "m"
    assert {n: found[n].histogram.data_points[0].count for n in found} == {
        "gen_ai.server.time_to_first_token": 1, "gen_ai.server.time_per_output_token": 1,
        "gen_ai.server.request.duration": 1, "andes.request.qoe": 1,
    }  # fmt: skip


def events(span: Any) -> list[str]:
    return [event.name for event in span.events]


@pytest.mark.parametrize("backend", ["directly"], indirect=True)
def test_what_went_wrong_is_in_the_trace(backend: tuple[Any, str], faulty: Start, gateway: Start) -> None:
    received, endpoint = backend
    bad, good = faulty(), faulty()
    server = gateway(bad.url, good.url, policy="round_robin", otlp_endpoint=endpoint)
    bad.fault, bad.after, bad.strike = "die", 3, Event()
    with httpx.stream("POST", server.url + "/v1/completions", json={**ASK, "prompt": "x", "temperature": 0}) as answer:
        content = ""
        for part in answer.iter_text():
            content += part
            if "w2 x" in content:
                bad.strike.set()
    bad.fault = "hang up"
    for _ in range(2):
        assert httpx.post(server.url + "/v1/chat/completions", json=ASK).status_code == 200
    refused = httpx.post(
        server.url + "/v1/chat/completions", json={**ASK, "model": ["no", "name"]}, headers={"x-andes-tds": "x"}
    )
    assert refused.status_code == 400
    flush(server)
    outer = [span for span in received.spans if span.kind == SERVER and span.name != "POST"]
    assert [events(span) for span in outer][:1] == [["andes.resume"]]
    assert [event for span in outer for event in events(span)].count("andes.retry") == 1
    failed = [span for span in received.spans if span.kind == CLIENT and span.status.code == 2]
    assert {received.said(span)["error.type"] for span in failed} == {"connection"}
    assert len(failed) == 2
    assert sorted(received.said(span)["andes.attempts"] for span in outer) == [1, 2, 2]
    (unread,) = (span for span in received.spans if span.name == "POST")
    assert received.said(unread) | {"http.response.status_code": 400, "error.type": "400"} == received.said(unread)
    bad.fault = good.fault = "404"
    assert httpx.post(server.url + "/v1/chat/completions", json=ASK).status_code == 404
    flush(server)
    failed = [span for span in received.spans if span.kind == CLIENT and span.status.code == 2]
    assert [received.said(span)["error.type"] for span in failed[-2:]] == ["404", "404"]


@pytest.mark.parametrize("backend", ["directly"], indirect=True)
def test_a_stall_is_in_the_trace_and_a_refusal_has_its_reason(
    backend: tuple[Any, str], faulty: Start, gateway: Start
) -> None:
    received, endpoint = backend
    upstream = faulty()
    upstream.gap_s = 0.05
    server = gateway(upstream.url, otlp_endpoint=endpoint)
    httpx.post(
        server.url + "/v1/completions",
        json={**ASK, "prompt": "x"},
        headers={"x-andes-tds": "100", "x-andes-ttft-ms": "0"},
    )
    server.app.state.gateway.draining = True
    assert httpx.post(server.url + "/v1/completions", json=ASK).status_code == 503
    flush(server)
    served, refused = (span for span in received.spans if span.kind == SERVER)
    assert events(served).count("andes.stall") >= 2
    assert received.said(served)["andes.stalls"] == events(served).count("andes.stall")
    assert received.said(refused)["andes.reason"] == "draining"
    assert received.said(refused)["error.type"] == "503"
    assert received.said(refused)["andes.qoe"] == 0.0


@pytest.mark.parametrize("backend", ["directly", "through a collector"], indirect=True)
@pytest.mark.timeout(300)
def test_preemptions_are_in_the_engines_spans(backend: tuple[Any, str], simulated: Start, gateway: Start) -> None:
    """More readers than slots, who take turns by time slices: each trace tells whose turn it was not."""
    received, endpoint = backend
    traces = ("--enable-trace", "--otlp-traces-endpoint", f"{endpoint}/v1/traces")
    slices = ("--max-running-requests", "2", "--policy-option", "slice_tokens=10")
    engine = simulated(*slices, *traces, policy="round_robin")
    server = gateway(engine.url, otlp_endpoint=endpoint, admission=False)
    body = {**ASK, "model": "simulated", "max_tokens": 150, "ignore_eos": True}

    def ask(tds: int) -> int:
        path, headers = server.url + "/v1/chat/completions", {"x-andes-tds": str(tds)}
        return httpx.post(path, json=body, headers=headers, timeout=120).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [4] * 8)) == [200] * 8
    counted = sum(n for name, n in read_metrics(engine.url).items() if name.startswith("andes_preemptions_total"))
    assert counted > 0
    flush(server)
    engine.stop()  # sends what is left
    clients = {span.span_id: span for span in received.spans if span.kind == CLIENT}
    served = [span for span in received.spans if span.name.startswith("Req ")]
    assert len(served) == len(clients) == 8
    assert {span.parent_span_id for span in served} == set(clients)
    assert all(span.trace_id == clients[span.parent_span_id].trace_id for span in served)
    assert sum(received.said(span)["andes.preemptions"] for span in served) == counted
    for span in served:
        told = received.said(span)
        assert told["gen_ai.usage.output_tokens"] == 150
        assert 0.0 < told["andes.qoe"] <= 1.0
        assert ("andes.preempted" in events(span)) == (told["andes.preemptions"] > 0)
        assert events(span) == ["andes.preempted", "andes.resumed"] * (len(span.events) // 2)
        modes = {received.said(event)["andes.preemption.mode"] for event in span.events[::2]}
        assert modes <= {"park", "release", "retracted"}


def test_without_an_endpoint_the_trace_passes_through(faulty: Start, gateway: Start) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
    httpx.post(server.url + "/v1/chat/completions", json=ASK, headers=headers)
    assert {k: upstream.headers[0][k] for k in headers} == headers


def test_a_backend_that_is_down_harms_nobody(faulty: Start, gateway: Start) -> None:
    server = gateway(faulty().url, otlp_endpoint="http://127.0.0.1:9")
    for _ in range(3):
        assert httpx.post(server.url + "/v1/chat/completions", json=ASK).text.endswith("data: [DONE]\n\n")
