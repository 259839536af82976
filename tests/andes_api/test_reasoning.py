"""Thoughts that a reader is not shown, on their way through the gateway: passed on, not read, told apart."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from andes_api.errors import ApiError
from andes_api.expectations import resolve
from andes_api.settings import GatewaySettings
from andes_api.sse import EventStream
from andes_api.typed_events import MessageEvents, ResponseEvents

ASK = {"model": "simulated", "stream": True, "temperature": 0}
CHAT = {**ASK, "messages": [{"role": "user", "content": "Why?"}]}
THOUGHT, SAID = {"reasoning_content": "hm", "content": None}, {"reasoning_content": None, "content": "so"}


def chat_event(delta: dict[str, Any], tokens: int, thought: int) -> bytes:
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "reasoning_tokens": thought}
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}], "usage": usage}).encode() + b"\n\n"


def typed_event(**payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def counted(stream: EventStream, *events: bytes) -> list[tuple[int, int]]:
    """Tokens shown by each event, and thought until then."""
    return [(sum(tokens for _, tokens in stream.feed(event)), stream.thought) for event in events]


def test_the_tokens_of_a_thought_are_counted_apart() -> None:
    events = (chat_event(THOUGHT, 3, 3), chat_event(THOUGHT, 7, 7), chat_event(SAID, 10, 9), chat_event(SAID, 12, 9))
    hiding = EventStream(chat=True, asked={}, usage=True, hides=True)
    assert counted(hiding, *events) == [(0, 3), (0, 7), (1, 9), (2, 9)]
    assert hiding.said == 12, "a thought is a sign of life"
    assert counted(EventStream(chat=True, asked={}, usage=True), *events) == [(3, 0), (4, 0), (3, 0), (2, 0)]


def test_what_is_shown_counts_whatever_the_engine_takes_for_a_thought() -> None:
    """Its latch is set at the first token, and may never be released."""
    stream = EventStream(chat=True, asked={}, usage=True, hides=True)
    assert counted(stream, chat_event(SAID, 1, 1), chat_event(SAID, 2, 2)) == [(1, 0), (1, 0)]
    assert counted(stream, chat_event(SAID, 9, 9)) == [(7, 0)]


def test_without_counts_an_event_is_a_token() -> None:
    stream = EventStream(chat=True, asked={}, usage=False, hides=True)
    assert counted(stream, *(chat_event(delta, 9, 9) for delta in (THOUGHT, THOUGHT, SAID))) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("reader", "thought", "said", "end"),
    [
        (
            ResponseEvents, {"type": "response.reasoning_text.delta", "delta": "hm"},
            {"type": "response.output_text.delta", "delta": "so"},
            {"type": "response.completed", "response": {"usage": {
                "output_tokens": 20, "output_tokens_details": {"reasoning_tokens": 15}}}},
        ),
        (
            MessageEvents, {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "so"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}},
        ),
    ],
    ids=["responses", "messages"],
)  # fmt: skip
def test_typed_events_too(reader: type[EventStream], thought: Any, said: Any, end: Any) -> None:
    """At the end comes what the engine has counted beyond the events: by its own account, or in proportion."""
    stream = reader(chat=False, asked={}, usage=False, hides=True)
    events = [typed_event(**one) for one in (thought, thought, thought, said, end)]
    assert counted(stream, *events) == [(0, 1), (0, 2), (0, 3), (1, 3), (4, 15)]
    assert sum(new for new, _ in counted(reader(chat=False, asked={}, usage=False), *events)) == 20


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-andes-reasoning": "visible"}, "x-andes-reasoning: expected hidden or shown; got 'visible'"),
        ({"x-andes-think-tds": "fast"}, "x-andes-think-tds: expected a number > 0; got 'fast'"),
        ({"x-andes-think-tds": "0"}, "x-andes-think-tds: expected a number > 0; got '0'"),
    ],
)
def test_what_makes_no_sense_is_a_400(headers: dict[str, str], said: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(headers, {}, None, GatewaySettings(upstreams=("http://a:1",)))
    assert (caught.value.status, caught.value.message) == (400, said)


def test_headers_come_before_the_body_and_the_body_before_the_class() -> None:
    settings = GatewaySettings(
        upstreams=("http://a:1",), classes={"reading": {"reasoning": "shown", "think_tds": None}}
    )
    said = resolve({}, {}, None, settings)
    assert (said.reader.reasoning, said.target.start_s(0.0, 50)) == ("shown", 1.0)
    assert said.headers()["x-andes-reasoning"] == "shown"
    body = {"custom_params": {"qoe": {"reasoning": "hidden", "think_tds": 50}}}
    said = resolve({}, body, None, settings)
    assert (said.reader.hides_reasoning, said.target.start_s(0.0, 50)) == (True, 2.0)
    headers = {"x-andes-reasoning": "shown", "x-andes-think-tds": "100"}
    said = resolve(headers, body, None, settings)
    assert (said.reader.reasoning, said.target.start_s(0.0, 50)) == ("shown", 1.5)


def lines(server: Any, path: str, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    answer = httpx.post(server.url + path, json=body, headers=headers, timeout=120)
    assert answer.status_code == 200
    assert float(answer.headers["x-andes-wait-ms"]) >= 0
    said = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in said]


@pytest.mark.server
def test_every_endpoint_tells_what_was_read_and_what_was_thought(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated("--thought-tokens", "400", "--answer-tokens", "400").url, access_log=False)
    budget = {"custom_params": {"thinking_budget": 30, "qoe": {"tds": 200}}}
    report = lines(server, "/v1/chat/completions", {**CHAT, "max_tokens": 50, **budget}, **{"x-andes-report": "usage"})
    seen = report[-1]["usage"]["andes"]
    assert (seen["tokens"], seen["thought_tokens"]) == (20, 30)
    assert 0 < seen["thinking_s"] <= seen["ttft_s"]
    lines(server, "/v1/responses", {**ASK, "input": "Why?", "max_output_tokens": 50, **budget})
    lines(server, "/v1/messages", {**CHAT, "max_tokens": 50, **budget})
    lines(server, "/v1/chat/completions", {**CHAT, "max_tokens": 50, **budget}, **{"x-andes-reasoning": "shown"})
    whole = {**CHAT, "max_tokens": 50, **budget, "separate_reasoning": False}
    lines(server, "/v1/chat/completions", whole)
    lines(server, "/v1/chat/completions", {**CHAT, "max_tokens": 20, **budget}, **{"x-andes-pace": "on"})
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    told = [(r["output_tokens"], r["reason_tokens"], r["thinking_s"] is not None) for r in records]
    of_messages = told.pop(2)  # its events are no tokens and its usage does not tell thoughts apart
    assert told == [(50, 30, True)] * 2 + [(50, 0, False)] * 2 + [(20, 20, False)]
    assert (of_messages[0], 0 < of_messages[1] < 50, of_messages[2]) == (50, True, True)
    assert [r["qoe"] == 0.0 for r in records] == [False] * 5 + [True], "a thought without an answer is nothing to read"
    figures, kind = httpx.get(server.url + "/metrics").text, '{class="reading",model="simulated"}'
    thought = sum(r["reason_tokens"] for r in records)
    assert f"andes_gateway_thought_tokens_total{kind} {thought}.0" in figures
    assert f"andes_gateway_tokens_total{kind} {270 - thought}.0" in figures
    assert f"andes_gateway_thinking_seconds_count{kind} 3.0" in figures
    assert sum(float(n) for n in re.findall(r"^andes_gateway_wait_forecasts_total{.*} (.*)", figures, re.M)) == 6


@pytest.mark.server
def test_a_thought_that_breaks_off_is_thought_again_elsewhere(simulated: Any, gateway: Any) -> None:
    thinks = ("--thought-tokens", "4000", "--answer-tokens", "40")
    slow, other = simulated(*thinks, "--speed", "0.02"), simulated(*thinks)
    server = gateway(slow.url, other.url, policy="round_robin")
    body = {**CHAT, "max_tokens": 320, "custom_params": {"thinking_budget": 300}}
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=120) as answer:
        rows = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {"))
        first = next(row for row in rows if row["choices"][0]["delta"].get("reasoning_content"))
        slow.process.kill()  # it would think for a minute and a half
        rest = list(rows)
    assert {row["id"] for row in rest} == {first["id"]}
    said = "".join(row["choices"][0]["delta"].get("content") or "" for row in rest)
    again = lines(server, "/v1/chat/completions", body)
    assert said == "".join(row["choices"][0]["delta"].get("content") or "" for row in again)
    assert rest[-1]["choices"][0]["finish_reason"] == again[-1]["choices"][0]["finish_reason"]
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    assert [r["outcome"] for r in records] == ["done", "done"]
    assert "andes_gateway_resumes_total 1.0" in httpx.get(server.url + "/metrics").text
