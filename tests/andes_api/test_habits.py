"""Habits of HTTP callers: other methods and paths, browsers, scrapers, tracing, misspelt headers, reports."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from andes_api.settings import GatewaySettings
from andes_api.telemetry import with_traceparent

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "x", "max_tokens": 3, "stream": True}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
INFERENCE = "/v1/chat/completions"
TRACE, SPAN = "463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312"


@pytest.fixture
def url(faulty: Any, gateway: Any, tmp_path: Path) -> str:
    return str(gateway(faulty().url, batches={"directory": tmp_path}).url)


def test_head_and_options_on_every_path(url: str) -> None:
    document = httpx.get(url + "/openapi.json").json()
    assert len(document["paths"]) > 9
    for path, operations in document["paths"].items():
        path = path.replace("{name}", "m").replace("{replica}", "none")
        path = re.sub(r"{\w+}", "no-such-id", path)
        head, options = httpx.head(url + path), httpx.options(url + path)
        assert (options.status_code, options.content) == (204, b"")
        assert {m.upper() for m in operations} <= set(options.headers["allow"].split(", "))
        assert head.content == b""
        found = 404 if "no-such-id" in path else 200
        assert head.status_code == (found if "get" in operations else 405), path
        if "get" in operations:
            assert int(head.headers["content-length"]) > 0
    assert httpx.head(url + "/nothing").status_code == httpx.options(url + "/nothing").status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/chat/completion", "/", "/v1/", "/v2/models", "/%2e%2e/etc/passwd", "//", "/fleet"]
)
def test_an_unknown_path_is_told_what_there_is(path: str, faulty: Any, gateway: Any) -> None:
    answer = httpx.post(gateway(faulty().url, page=False).url + path, json=BODY)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (404, "invalid_request_error", "not_found")
    assert INFERENCE in error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_a_wrong_method_is_told_the_right_ones(url: str) -> None:
    answer = httpx.get(url + INFERENCE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "OPTIONS, POST" in answer.json()["error"]["message"]
    assert httpx.delete(url + "/v1/models").json()["error"]["message"].endswith("takes GET, HEAD, OPTIONS only")


def test_pages_of_other_origins(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, cors_origins=["https://chat.example"])
    ours, other = {"origin": "https://chat.example"}, {"origin": "https://evil.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-andes-class"}
    asked = httpx.options(server.url + INFERENCE, headers={**ours, **asks})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    assert "x-andes-class" in asked.headers["access-control-allow-headers"]
    assert httpx.options(server.url + INFERENCE, headers={**other, **asks}).status_code == 400
    for path in (INFERENCE, "/nothing"):  # errors too can be read
        answer = httpx.post(server.url + path, json=CHAT, headers=ours)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert answer.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-origin" not in httpx.post(server.url + INFERENCE, json=CHAT, headers=other).headers
    closed, public = gateway(upstream.url), gateway(upstream.url, cors_origins=["*"], head_timeout_s=0.2)
    for origin, header in (("https://chat.example", "https://chat.example"), ("https://evil.example", None)):
        answer = httpx.get(server.url + "/livez", headers={"origin": origin, "x-long": "x" * 40_000})
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (431, header)
    server.gateway.siblings.answers("levels", lambda: 1 / 0)
    answer = httpx.get(server.url + "/metrics", headers=ours)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, "https://chat.example")
    with socket.create_connection(("127.0.0.1", public.port)) as late:
        late.sendall(b"GET /livez HTTP/1.1\r\nhos")
        assert b"access-control-allow-origin: *" in late.recv(4096).partition(b"\r\n\r\n")[0]
    assert "access-control-allow-origin" not in httpx.options(closed.url + INFERENCE, headers={**ours, **asks}).headers
    assert httpx.post(public.url + INFERENCE, json=CHAT, headers=other).headers["access-control-allow-origin"] == "*"
    drain = "/fleet/replicas/" + upstream.url.removeprefix("http://") + "/drain"
    assert httpx.post(public.url + drain, headers=other).status_code == 403  # no page drains


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://", "null", "https://a/b"])
def test_an_origin_is_no_address(origin: str) -> None:
    with pytest.raises(ValueError, match=r"scheme://host"):
        GatewaySettings(upstreams=("http://a:1",), cors_origins=(origin,))


@pytest.mark.parametrize(
    ("accept", "kind", "last"),
    [
        ("", "text/plain; version=0.0.4", "} "),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", "# EOF"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text",
            "# EOF",
        ),
        ("nonsense;;;version=x", "text/plain; version=0.0.4", ""),
        ("text/plain;version=1.x", "text/plain; version=0.0.4", ""),
        ("application/openmetrics-text;version=1.x", "application/openmetrics-text; version=1.0.0", "# EOF"),
        ("application/openmetrics-text;version=9", "application/openmetrics-text; version=1.0.0", "# EOF"),
    ],
)
def test_the_scraper_chooses_the_format(accept: str, kind: str, last: str, url: str) -> None:
    httpx.post(url + INFERENCE, json=CHAT)
    answer = httpx.get(url + "/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(kind)
    assert last in answer.text.splitlines()[-1]
    assert 'andes_gateway_requests_total{class="reading"' in answer.text


@pytest.mark.parametrize(
    ("headers", "flags"),
    [
        ({"b3": f"{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"}, "01"),
        ({"b3": f"{TRACE}-{SPAN}-0"}, "00"),
        ({"b3": f"{TRACE}-{SPAN}"}, "01"),
        ({"x-b3-traceid": TRACE.upper(), "x-b3-spanid": SPAN, "x-b3-sampled": "1"}, "01"),
        ({"x-b3-traceid": TRACE, "x-b3-spanid": SPAN}, "01"),
    ],
)
def test_b3_becomes_a_traceparent(headers: dict[str, str], flags: str, faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    httpx.post(gateway(upstream.url).url + INFERENCE, json=CHAT, headers=headers)
    assert upstream.headers[-1]["traceparent"] == f"00-{TRACE}-{SPAN}-{flags}"


def test_what_b3_does_not_say() -> None:
    assert with_traceparent({"b3": f"{TRACE[:16]}-{SPAN}-d"})["traceparent"] == f"00-{'0' * 16}{TRACE[:16]}-{SPAN}-01"
    for headers in ({}, {"b3": "0"}, {"b3": f"{TRACE}-{SPAN}-2"}, {"b3": "x" * 50}, {"x-b3-traceid": TRACE}):
        assert with_traceparent(headers) == headers
    assert with_traceparent({"traceparent": "0" * 600})["traceparent"] == ""
    both = {"traceparent": f"00-{TRACE}-{SPAN}-00", "b3": f"{TRACE}-{SPAN}-1"}
    assert with_traceparent(both) == both


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("x-andes-tsd", "x-andes-tds"),
        ("X-Andes-TTFT", "x-andes-ttft-ms"),
        ("x-andes_class", "x-andes-class"),
        ("andes-pace", "x-andes-pace"),
        ("x-andes-" + "y" * 5000, "x-andes-"),
    ],
)
def test_a_misspelt_header_is_named_with_the_nearest(name: str, near: str, faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    answer = httpx.post(gateway(upstream.url).url + INFERENCE, json=CHAT, headers={name: "5"})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert f"did you mean {near}" in error["message"]
    assert error["param"] == name.lower()[:100]
    assert not upstream.bodies
    untrusting = gateway(upstream.url, trust_anonymous=False)  # what it says of its reader does not count anyway
    assert httpx.post(untrusting.url + INFERENCE, json=CHAT, headers={name: "5"}).status_code == 200


def test_a_header_that_comes_twice_is_refused(url: str) -> None:
    for twice in ("x-andes-tds", "X-Andes-Report"):
        refused = httpx.post(url + INFERENCE, json=CHAT, headers=[(twice, "5"), (twice.upper(), "7")])
        assert refused.status_code == 400
        assert f"{twice.lower()}: given more than once" in refused.json()["error"]["message"]


def test_a_slash_at_the_end_is_none_of_the_path(url: str) -> None:
    """A redirection would send clients behind TLS to http."""
    assert httpx.post(url + INFERENCE + "/", json=CHAT).status_code == 200
    assert httpx.get(url + "/v1/models/").json()["object"] == "list"
    assert httpx.get(url + "/fleet/qoe/").status_code == 200
    assert httpx.get(url + "/v1/models/m/").json()["id"] == "m"
    assert httpx.get(url + "/nosuch/").status_code == 404
    assert httpx.put(url + INFERENCE + "/").headers["allow"] == "POST"
    assert httpx.options(url + INFERENCE + "/").headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("path", "param", "said"),
    [
        ("/fleet/qoe?windw_s=60", "windw_s", "windw_s: no such query parameter; /fleet/qoe takes window_s, model"),
        ("/fleet/qoe?window_s=60&Model=m", "Model", "Model: no such query parameter; /fleet/qoe takes window_s, model"),
        ("/fleet/demand?until=3", "until", "until: no such query parameter; /fleet/demand takes since, model"),
        ("/fleet/batches?since=3", "since", "since: no such query parameter; /fleet/batches takes model"),
        ("/fleet/summary?model=m", "model", "model: no such query parameter; /fleet/summary takes none"),
        ("/fleet/qoe?window_s=5000", None, "query.window_s: Input should be less than or equal to 3600 (got '5000')"),
        ("/fleet/demand?since=now", None, "query.since: Input should be a valid number, unable to parse string as a number "
                                          "(got 'now')"),
    ],
)  # fmt: skip
def test_a_parameter_that_would_be_ignored_or_cannot_be_read_is_named(
    path: str, param: str | None, said: str, url: str
) -> None:
    refused = httpx.get(url + path)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["message"]) == (400, param, said)
    assert httpx.get(url + path.partition("?")[0]).status_code == 200


def test_draining_takes_drained_alone(url: str) -> None:
    refused = httpx.post(url + "/fleet/replicas/none/drain?drain=false")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].endswith("/fleet/replicas/none/drain takes drained")


def test_a_clamped_value_is_said(url: str) -> None:
    def clamped(body: dict[str, Any] | None = None, **headers: str) -> str | None:
        return httpx.post(url + INFERENCE, json={**CHAT, **(body or {})}, headers=headers).headers.get(
            "x-andes-clamped"
        )

    assert clamped(**{"x-andes-tds": "500", "x-andes-ttft-ms": "50"}) == "ttft-ms=50;holds=100, tds=500;holds=200"
    qoe = {"custom_params": {"qoe": {"weight": 3, "tokens": 90}}, "max_tokens": 7}
    assert clamped(qoe) == "weight=3;holds=1, expected-tokens=90;holds=7"
    assert clamped({"custom_params": {"qoe": {"yield": False}}, "service_tier": "flex"}) == "yield=?0;holds=?1"
    assert clamped({"custom_params": {"qoe": {"yield": True}}, "service_tier": "flex"}) is None
    assert clamped({"custom_params": {"qoe": {"yield": True}}}) is None
    assert clamped(**{"x-andes-tds": "200", "x-andes-class": "code"}) is None
    assert clamped() is None


def test_what_a_stream_got_is_told_to_the_caller_who_asks(url: str) -> None:
    sdk = openai.OpenAI(base_url=url + "/v1", api_key="sk-any", max_retries=0)
    headers = {"x-andes-report": "usage", "x-andes-tds": "8", "x-andes-ttft-ms": "60000"}
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = list(sdk.chat.completions.create(**CHAT, **options, extra_headers=headers))
        last = chunks[-1]
        assert last.usage is not None
        assert (last.choices, last.usage.completion_tokens, last.id) == ([], 3, chunks[0].id)
        assert sum(chunk.usage is not None for chunk in chunks) == 1
        told = last.usage.model_extra["andes"]  # type: ignore[index]
        assert told["qoe"] == 1.0
        assert 0 < told["ttft_s"] < 60
        assert (told["class"], told["tds"], told["ttft_target_s"]) == ("reading", 8.0, 60.0)
        assert {"stalls", "stall_s", "longest_stall_s"} <= told.keys()
    raw = httpx.post(url + INFERENCE, json=CHAT, headers=headers).text
    assert raw.endswith("\n\ndata: [DONE]\n\n")
    assert raw.count("[DONE]") == 1
    assert "usage" not in httpx.post(url + "/v1/completions", json=CHAT | {"prompt": "x"}).text.replace(
        '"usage":null', ""
    )
    wrong = httpx.post(url + INFERENCE, json=CHAT, headers={"x-andes-report": "all"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-andes-report")


ASKED = {"x-andes-report": "usage", "x-andes-tds": "8", "x-andes-ttft-ms": "60000"}
ASKS = [{}, ASKED]


def test_the_report_of_responses_is_beside_their_usage(url: str) -> None:
    sdk = openai.OpenAI(base_url=url + "/v1", api_key="sk-any", max_retries=0)
    asked: dict[str, Any] = {"model": "m", "input": "hi"}
    plain, told = (list(sdk.responses.create(**asked, stream=True, extra_headers=headers)) for headers in ASKS)
    assert [event.type for event in told] == [event.type for event in plain], "the same events in the same order"
    assert [e.delta for e in told if e.type == "response.output_text.delta"] == [f"w{k} " for k in range(12)]
    usage = told[-1].response.usage  # type: ignore[union-attr]
    assert (usage.output_tokens, plain[-1].response.usage.output_tokens) == (12, 12)  # type: ignore[union-attr]
    assert "andes" not in plain[-1].response.usage.model_extra  # type: ignore[union-attr, operator]
    report = usage.model_extra["andes"]  # type: ignore[union-attr, index]
    assert (report["qoe"], report["tokens"], report["tds"], report["class"]) == (1.0, 12, 8.0, "reading")
    whole = sdk.responses.create(**asked, extra_headers=ASKED)
    assert (whole.output_text, whole.usage.output_tokens) == ("w0 ", 1)  # type: ignore[union-attr]
    report = whole.usage.model_extra["andes"]  # type: ignore[union-attr, index]
    assert (report["qoe"], report["ttft_s"], report["tokens"]) == (None, None, 1)


def test_the_report_of_messages_is_beside_their_usage(url: str) -> None:
    sdk = anthropic.Anthropic(base_url=url, api_key="sk-any", max_retries=0)
    asked: dict[str, Any] = {"model": "m", "max_tokens": 12, "messages": [{"role": "user", "content": "hi"}]}
    seen = []
    for headers in ASKS:
        with sdk.messages.stream(**asked, extra_headers=headers) as stream:
            seen.append([event.type for event in stream])
            message = stream.get_final_message()
    assert seen[0] == seen[1], "the same events in the same order"
    assert seen[1][-1] == "message_stop"
    assert message.content[0].text == "".join(f"w{k} " for k in range(12))  # type: ignore[union-attr]
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 12)
    raw = httpx.post(url + "/v1/messages", json={**asked, "stream": True}, headers=ASKED).text
    (last,) = (json.loads(e.partition("data: ")[2]) for e in raw.split("\n\n") if e.startswith("event: message_delta"))
    assert (last["usage"]["output_tokens"], last["usage"]["andes"]["tokens"]) == (12, 12)
    whole = sdk.messages.create(**asked, extra_headers=ASKED)
    assert whole.content[0].text == "w0 "  # type: ignore[union-attr]
    assert whole.usage.model_extra["andes"]["duration_s"] > 0  # type: ignore[index]


def test_the_report_of_an_answer_in_one_piece_is_beside_its_usage(url: str) -> None:
    sdk = openai.OpenAI(base_url=url + "/v1", api_key="sk-any", max_retries=0)
    chat = sdk.chat.completions.create(**{**CHAT, "stream": False}, extra_headers=ASKED)
    assert (chat.choices[0].message.content, chat.usage.completion_tokens) == ("w0 x", 1)
    report = chat.usage.model_extra["andes"]
    assert (report["tokens"], report["qoe"], report["class"]) == (1, None, "reading")
    completion = sdk.completions.create(model="m", prompt="hi", extra_headers=ASKED)
    assert completion.usage.model_extra["andes"]["tokens"] == 1  # type: ignore[union-attr, index]
    error = httpx.post(url + "/v1/completions", json={"model": "m"}, headers=ASKED)
    assert (error.status_code, "usage" in error.json()) == (400, False)
    refused = httpx.post(url + "/v1/embeddings", json={"model": "m", "input": "x"}, headers=ASKED)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-andes-report")


def test_the_report_of_a_stream_that_was_moved_or_paced(faulty: Any, gateway: Any) -> None:
    dying, sound = faulty(), faulty()
    dying.fault, dying.after = "die", 2
    body = {**BODY, "max_tokens": 6, "temperature": 0}
    server = gateway(dying.url, sound.url, policy="round_robin")
    moved = [report(server.url, body) for _ in range(2)]
    assert [usage["completion_tokens"] for usage in moved] == [6, 6]
    paced = report(server.url, {**body, "max_tokens": 3}, **{"x-andes-pace": "on", "x-andes-tds": "5"})
    assert (paced["completion_tokens"], paced["andes"]["tokens"]) == (3, 3)  # after the last token has gone out
    broken = gateway(dying.url, resume=False)
    text = httpx.post(broken.url + "/v1/completions", json=body, headers={"x-andes-report": "usage"}).text
    assert "error" in text.split("\n\n")[-2]
    assert "[DONE]" not in text


def report(url: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    text = httpx.post(
        url + "/v1/completions", json=body, headers={"x-andes-report": "usage", **headers}, timeout=60
    ).text
    *_, last, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    usage = json.loads(last.removeprefix("data: "))["usage"]
    assert isinstance(usage, dict)
    return usage
