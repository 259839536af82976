"""The gateway before a real SGLang engine on the CPU: passed through untouched, continued without a seam, in one trace."""

from __future__ import annotations

import importlib.util
import json
import os
import socketserver
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import create_connection
from threading import Thread
from typing import Any
from unittest import mock

import httpx
import openai
import pytest

from andes_sglang.bench.engine import Engine, read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ASK: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Say it."}],
    "max_tokens": 24,
    "temperature": 0,
}
FLAGS = (
    "--served-model-name",
    "m",
    "--max-total-tokens",
    "4096",
    "--max-running-requests",
    "8",
    "--enable-metrics",
    "--tool-call-parser",
    "pythonic",
    "--constrained-json-disable-any-whitespace",
)
TRACES = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None


@pytest.fixture(scope="module")
def backend(make_backend: Any) -> Any:
    return make_backend()


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, backend: Any) -> Iterator[Engine]:
    with traced(tiny_model, "andes", backend, tmp_path_factory.mktemp("sglang") / "log") as engine:
        yield engine


@contextmanager
def traced(model: Path, policy: str, backend: Any, log: Path, *flags: str) -> Iterator[Engine]:
    """An engine whose spans go to ``backend``."""
    traces = ("--enable-trace", "--otlp-traces-endpoint", f"{backend.url}/v1/traces") if TRACES else ()
    with (
        mock.patch.dict(os.environ, {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}),
        Engine(model, policy, (*FLAGS, *traces, *flags), log=log) as engine,
    ):
        yield engine


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key="sk-any", max_retries=0, timeout=120)


def events(answer: str) -> list[Any]:
    return [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]


def text(answer: str) -> str:
    choices = [choice for event in events(answer) for choice in event["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def whole(answer: str) -> dict[str, Any]:
    """What a stream says in all, however the engine grouped its tokens into events."""
    choices = [choice for event in events(answer) for choice in event["choices"]]
    return {
        "text": text(answer),
        "logprobs": [lp["token"] for c in choices for lp in (c.get("logprobs") or {}).get("content") or ()],
        "finish": [c["finish_reason"] for c in choices if c["finish_reason"]],
        "roles": [c["delta"]["role"] for c in choices if c.get("delta", {}).get("role")],
        "usage": events(answer)[-1].get("usage"),
        "with usage": {bool(event.get("usage")) for event in events(answer)[:-1]},
        "keys": {frozenset(event) | {"usage"} for event in events(answer)},
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": ["a"]},
        {"max_completion_tokens": 5, "max_tokens": None, "ignore_eos": True},
    ],
    ids=["plain", "usage", "continuous", "logprobs", "stop", "max_completion_tokens"],
)
def test_the_reader_gets_what_the_engine_says(more: dict[str, Any], engine: Engine, gateway: Any) -> None:
    server = gateway(engine.url)
    body = {**ASK, "stream": True, "ignore_eos": True, **more}
    direct, through = (
        httpx.post(url + "/v1/chat/completions", json=body, timeout=120) for url in (engine.url, server.url)
    )
    assert (direct.status_code, through.status_code) == (200, 200)
    assert through.text.endswith("data: [DONE]\n\n")
    assert whole(through.text) == whole(direct.text)
    unstreamed = {**body, "stream": False, "stream_options": None}
    direct, through = (
        httpx.post(url + "/v1/chat/completions", json=unstreamed, timeout=120).json()
        for url in (engine.url, server.url)
    )
    assert through["choices"] == direct["choices"]


def test_errors_are_the_engines_own(engine: Engine, gateway: Any) -> None:
    server = gateway(engine.url)
    with pytest.raises(openai.BadRequestError) as caught:
        client(server.url).chat.completions.create(**{**ASK, "max_tokens": 100_000})
    direct = httpx.post(engine.url + "/v1/chat/completions", json={**ASK, "max_tokens": 100_000}, timeout=120)
    assert caught.value.response.json() == {"error": direct.json()}, "as every client reads it"
    assert caught.value.body["message"] == direct.json()["message"]  # type: ignore[index]


def test_schemas_hold_and_tools_pass_untouched(engine: Engine, gateway: Any) -> None:
    """A model of random weights says what a grammar makes it say; its tool calls are the engine's business."""
    server = gateway(engine.url)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    answer = client(server.url).chat.completions.create(**{**ASK, "max_tokens": 100}, response_format=form)
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Rome", "Oslo")
    tools: Any = [{"type": "function", "function": {"name": "go", "description": "Go.", "parameters": schema}}]
    called = {"id": "c1", "type": "function", "function": {"name": "go", "arguments": '{"city": "Rome"}'}}
    talk = [*ASK["messages"], {"role": "assistant", "content": None, "tool_calls": [called]}]
    talk.append({"role": "tool", "tool_call_id": "c1", "content": "there"})
    asked: Any = {**ASK, "max_tokens": 60, "messages": talk, "tools": tools, "tool_choice": "required"}
    direct, through = (client(url).chat.completions.create(**asked) for url in (engine.url, server.url))
    assert through.choices == direct.choices
    parts = [list(client(url).chat.completions.create(**asked, stream=True)) for url in (engine.url, server.url)]
    said_direct, said_through = (
        [(d.role, d.content, d.tool_calls) for c in part for d in [c.choices[0].delta] if d.content or d.tool_calls]
        for part in parts
    )
    assert "".join(str(c) for _, c, _ in said_through) == "".join(str(c) for _, c, _ in said_direct)
    written_direct, written_through = (
        "".join(f"{c.function.name or ''}{c.function.arguments or ''}" for *_, calls in said for c in calls or ())
        for said in (said_direct, said_through)
    )
    assert written_through == written_direct != ""


def test_a_tool_runs_between_two_rounds_of_a_real_engine(engine: Engine, gateway: Any) -> None:
    """A model of random weights writes the one call that its grammar has; in the last round, where none is read, it is text."""
    program = """while read -r line; do case "$line" in *finish*) echo '{"result": "42"}'; exit;; esac; done"""
    server = gateway(engine.url, tools={"calc": {"command": ["sh", "-c", program]}}, tool_rounds=2)
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    functions: Any = [{"type": "function", "function": {"name": "calc", "parameters": schema}}]
    chunks = list(
        client(server.url).chat.completions.create(
            **{**ASK, "max_tokens": 90}, tools=functions, stream=True, extra_body={"regex": r'\[calc\(x="6\*7"\)\]'},
            extra_headers={"x-andes-tools": "run", "x-andes-report": "usage"},
        )
    )  # fmt: skip
    usage: Any = chunks[-1].usage
    (ran,) = usage.andes["tools"]
    assert (ran["name"], ran["round"], ran.get("error")) == ("calc", 1, None)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert not any(delta.tool_calls for delta in deltas)
    assert "".join(delta.content or "" for delta in deltas) == '[calc(x="6*7")]'
    assert len({chunk.id for chunk in chunks}) == 1
    assert usage.completion_tokens > usage.andes["tokens"] > 0, "the call is counted, and not shown"


def test_its_load_is_known(engine: Engine, gateway: Any) -> None:
    server = gateway(engine.url, load_interval_s=0.05)
    deadline_s = time.monotonic() + 60
    while True:
        (replica,) = httpx.get(server.url + "/fleet/replicas").json()["replicas"]
        if replica["slots"] == 8 or time.monotonic() > deadline_s:
            break
    assert replica["slots"] == 8
    before = read_metrics(engine.url).get("andes_request_qoe_count", 0.0)
    body = {"model": "m", "prompt": "x", "max_tokens": 8, "stream": True}
    patient = {"x-andes-ttft-ms": "60000"}  # no pause of a busy machine is too long
    answer = httpx.post(server.url + "/v1/completions", json=body, headers=patient, timeout=120)
    assert answer.status_code == 200
    record = httpx.get(server.url + "/fleet/demand").json()["records"][-1]
    assert record["outcome"] == "done"
    assert record["qoe"] > 0.9
    while read_metrics(engine.url).get("andes_request_qoe_count", 0.0) == before:
        assert time.monotonic() < deadline_s
    assert read_metrics(engine.url)["andes_request_qoe_count"] == before + 1


class Wire(socketserver.ThreadingTCPServer):
    """Forwards to an engine, remembers what was asked and drops the connection after ``events`` events of a stream."""

    daemon_threads = True

    def __init__(self, port: int, events: int = 1_000_000) -> None:
        self.asked = b""
        wire = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with create_connection(("127.0.0.1", port)) as engine, suppress(OSError):
                    Thread(target=self.forward, args=(engine,), daemon=True).start()
                    seen = 0
                    while data := engine.recv(65536):
                        self.request.sendall(data)
                        seen += data.count(b"data: {")
                        if seen >= events:
                            return

            def forward(self, engine: Any) -> None:
                with suppress(OSError):
                    while data := self.request.recv(65536):
                        wire.asked += data
                        engine.sendall(data)

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def body(self) -> dict[str, Any]:
        """The last that was asked with a body."""
        asked = self.asked.rpartition(b"POST ")[2].partition(b"\r\n\r\n")[2]
        return dict(json.JSONDecoder().raw_decode(asked.decode())[0])


@pytest.mark.parametrize("cut", [2, 6])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
def test_a_broken_stream_goes_on_from_what_was_delivered(cut: int, chat: bool, engine: Engine, gateway: Any) -> None:
    breaks, other = Wire(engine.port, cut), Wire(engine.port)
    server = gateway(breaks.url, other.url, policy="round_robin", health_interval_s=600, load_interval_s=600)
    body: dict[str, Any] = {**ASK, "max_tokens": 64, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    if not chat:
        body["prompt"] = "Say it once more."
        del body["messages"]
    path = "/v1/chat/completions" if chat else "/v1/completions"
    try:
        broken = httpx.post(server.url + path, json=body, timeout=120).text
        rest = other.body
        straight, continued = (httpx.post(engine.url + path, json=b, timeout=120).text for b in (body, rest))
    finally:
        breaks.shutdown()
        other.shutdown()
    assert "andes_gateway_resumes_total 1.0" in httpx.get(server.url + "/metrics").text
    said = rest["messages"][-1]["content"] if chat else rest["prompt"].removeprefix(body["prompt"])
    assert said
    assert text(straight).startswith(said)
    assert text(broken) == said + text(continued)
    got, wanted = whole(broken), whole(straight)
    assert {**got, "text": ""} == {**wanted, "text": ""}
    assert len({event["id"] for event in events(broken)}) == 1


@pytest.mark.skipif(not TRACES, reason="NO ENGINE SPANS: SGLang's tracing needs opentelemetry-exporter-otlp-proto-grpc")
def test_the_engines_spans_join_the_trace(engine: Engine, backend: Any, gateway: Any) -> None:
    server = gateway(engine.url, otlp_endpoint=backend.url)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert httpx.post(server.url + "/v1/chat/completions", json=ASK, headers=headers, timeout=120).status_code == 200
    for provider in server.app.state.gateway.telemetry._otlp._providers:
        provider.force_flush()
    deadline_s = time.monotonic() + 30

    def ours() -> list[Any]:
        return [span for span in backend.spans if span.trace_id.hex() == trace]

    def named(*parts: str) -> bool:
        return all(any(part in span.name for span in ours()) for part in parts)

    while not named("chat m", "Req") and time.monotonic() < deadline_s:
        time.sleep(0.05)
    client_span = next(span for span in ours() if span.name == "chat m")
    engine_span = next((span for span in ours() if "Req" in span.name), None)
    assert engine_span is not None, ({span.name for span in backend.spans}, backend.services, engine.tail())
    assert engine_span.parent_span_id == client_span.span_id


@pytest.mark.skipif(not TRACES, reason="NO ENGINE SPANS: SGLang's tracing needs opentelemetry-exporter-otlp-proto-grpc")
def test_preemptions_are_in_the_engines_spans(tiny_model: Path, tmp_path: Path, backend: Any, gateway: Any) -> None:
    """An engine that takes its request off every three tokens tells of each time in the request's trace."""
    flags = ("--policy-option", "mode=release", "--policy-option", "every_tokens=3")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with traced(tiny_model, "forced", backend, tmp_path / "log", *flags) as engine:
        server = gateway(engine.url, otlp_endpoint=backend.url)
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        body = {**ASK, "ignore_eos": True}
        assert (
            httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers, timeout=120).status_code == 200
        )
        counted = read_metrics(engine.url)['andes_preemptions_total{mode="release",reason="forced"}']
        assert counted >= 4

        def told(name: str) -> list[Any]:
            spans = [span for span in backend.spans if span.trace_id.hex() == trace]
            return [event for span in spans for event in span.events if event.name == name]

        deadline_s = time.monotonic() + 60
        while min(len(told(f"andes.{what}")) for what in ("preempted", "resumed")) < counted:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert len(told("andes.preempted")) == len(told("andes.resumed")) == counted
        assert {backend.said(event)["andes.preemption.mode"] for event in told("andes.preempted")} == {"release"}


def last_record(server: Any) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(server.url + "/fleet/demand").json()["records"][-1]
    return found


def test_responses_of_a_real_engine(engine: Engine, gateway: Any) -> None:
    server = gateway(engine.url, model_aliases={"gpt": "m"})
    ask: dict[str, Any] = {"model": "gpt", "input": "Say it.", "max_output_tokens": 24, "temperature": 0}
    whole = client(server.url).responses.create(**ask)
    assert last_record(server)["output_tokens"] > 0
    with client(server.url).responses.stream(**ask, extra_headers={"x-andes-tds": "20"}) as stream:
        first, *between, last = stream
    assert (first.type, last.type) == ("response.created", "response.incomplete"), "all that it may write is written"
    assert "response.output_text.delta" in {event.type for event in between}
    streamed = last.response
    assert (streamed.output_text, streamed.model) == (whole.output_text, "m")
    record = last_record(server)
    assert streamed.usage is not None
    assert (record["outcome"], record["tds"], record["output_tokens"]) == ("done", 20, streamed.usage.output_tokens)
    assert record["prompt_tokens"] == streamed.usage.input_tokens
    assert record["ttft_s"] > 0
    with pytest.raises(openai.BadRequestError, match="requires at least one tool"):  # the engine's own words
        client(server.url).responses.create(**ask, tool_choice="required")


def test_messages_of_a_real_engine(engine: Engine, gateway: Any) -> None:
    anthropic = pytest.importorskip("anthropic")
    server = gateway(engine.url)
    sdk = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=120)
    ask: dict[str, Any] = {
        "model": "m",
        "max_tokens": 24,
        "messages": ASK["messages"],
        "extra_body": {"temperature": 0},
    }
    whole = sdk.messages.create(**ask)
    with sdk.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == whole.content[0].text
    assert streamed.usage.output_tokens == whole.usage.output_tokens == last_record(server)["output_tokens"]
    assert last_record(server)["qoe"] is not None
    assert last_record(server)["prompt_tokens"] == whole.usage.input_tokens
    counted = sdk.messages.count_tokens(model="m", messages=ASK["messages"])
    assert counted.input_tokens == whole.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError) as refused:
        sdk.messages.create(**{**ask, "max_tokens": 0})
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(**{**ask, "model": "unknown"})


def test_a_real_engine_answers_in_one_piece_through_the_gateway(engine: Engine, gateway: Any) -> None:
    server = gateway(engine.url)
    bodies: dict[str, Any] = {
        "/v1/tokenize": {"model": "m", "prompt": "Say it."},
        "/v1/detokenize": {"model": "m", "tokens": [5, 6, 7]},
        "/v1/score": {"model": "m", "query": "Say", "items": [" it", " on"], "label_token_ids": [5, 6]},
        "/v1/embeddings": {"model": "m", "input": "x"},  # which this model has not
    }
    for path, body in bodies.items():
        direct, through = (httpx.post(url + path, json=body, timeout=120) for url in (engine.url, server.url))
        assert through.status_code == direct.status_code, (path, through.text)
        if path == "/v1/score":  # the same prompts in another batch differ by rounding
            for one, other in zip(through.json()["scores"], direct.json()["scores"], strict=True):
                assert one == pytest.approx(other, rel=1e-2)
        elif direct.status_code == 200:
            assert through.json() == direct.json(), path
