"""Every endpoint of SGLang goes through, with the clients that people use, measured where a reader reads."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import openai
import pytest

from andes_api.demand import DemandRecord
from andes_api.endpoints import CHAT, MESSAGES, RESPONSES, at_path
from andes_api.engine_request import engine_request
from andes_api.errors import ApiError
from andes_api.expectations import resolve
from andes_api.media import check_media
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings
from andes_api.stored import StoredResponses
from andes_api.stream import Stream
from andes_api.typed_events import MessageEvents, ResponseEvents

anthropic = pytest.importorskip("anthropic")

SAID = "Tell me more."
MESSAGE: dict[str, Any] = {"model": "simulated", "max_tokens": 12, "messages": [{"role": "user", "content": SAID}]}
KEY = {"key_sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}  # of "key"
OPTIONS: dict[str, Any] = {"chat": True, "asked": {}, "usage": False}


def client(server: Any, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", **{"api_key": "any", "max_retries": 0, **more})


def anthropic_client(server: Any, **more: Any) -> Any:
    return anthropic.Anthropic(base_url=server.url, **{"api_key": "any", "max_retries": 0, **more})


def last_record(server: Any) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(server.url + "/fleet/demand").json()["records"][-1]
    return found


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


# The official clients


def test_responses(simulated: Any, gateway: Any) -> None:
    engine = simulated("--served-model-name", "simulated")
    server = gateway(engine.url)
    sdk = client(server)
    whole = sdk.responses.create(model="simulated", input=SAID, max_output_tokens=12)
    assert last_record(server)["output_tokens"] == 12
    with sdk.responses.stream(
        model="simulated", input=SAID, max_output_tokens=12, extra_headers={"x-andes-class": "code"}
    ) as stream:
        first, second, *_, last = stream
    assert [event.type for event in (first, second, last)] == [
        "response.created", "response.in_progress", "response.incomplete",
    ]  # fmt: skip
    streamed = last.response
    assert (streamed.status, streamed.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert streamed.output_text == whole.output_text
    assert whole.status == "incomplete"
    assert streamed.usage is not None
    assert streamed.usage.output_tokens == 12
    record = last_record(server)
    assert (record["class"], record["stream"], record["outcome"]) == ("code", True, "done")
    assert (record["output_tokens"], record["prompt_tokens"]) == (12, streamed.usage.input_tokens)
    assert record["ttft_s"] > 0
    assert record["qoe"] > 0.9
    with pytest.raises(openai.BadRequestError, match="x-andes-tds"):
        sdk.responses.create(model="simulated", input=SAID, extra_headers={"x-andes-tds": "fast"})
    with pytest.raises(openai.BadRequestError, match="input: expected text"):  # SGLang itself says 500
        sdk.responses.create(model="simulated", input=[])
    with pytest.raises(openai.NotFoundError):
        sdk.responses.create(model="other", input=SAID)


def test_messages(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated("--served-model-name", "simulated").url)
    sdk = anthropic_client(server)
    whole = sdk.messages.create(**MESSAGE)
    assert (whole.usage.output_tokens, whole.stop_reason, last_record(server)["output_tokens"]) == (
        12,
        "max_tokens",
        12,
    )
    with sdk.messages.stream(**MESSAGE, extra_headers={"x-andes-ttft-ms": "700"}) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == whole.content[0].text == streamed.content[0].text
    record = last_record(server)
    assert (record["stream"], record["outcome"], record["output_tokens"], record["ttft_target_s"]) == (
        True, "done", 12, 0.7,
    )  # fmt: skip
    assert record["prompt_tokens"] == streamed.usage.input_tokens
    assert record["qoe"] > 0.9
    assert (
        sdk.messages.count_tokens(model="simulated", messages=MESSAGE["messages"]).input_tokens
        == record["prompt_tokens"]
    )
    with pytest.raises(anthropic.NotFoundError, match="there are: simulated") as missing:
        sdk.messages.create(**{**MESSAGE, "model": "unknown"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as refused:  # the gateway's own
        sdk.messages.create(**MESSAGE, extra_headers={"x-andes-class": "none"})
    assert refused.value.body["type"] == "error"
    with pytest.raises(anthropic.BadRequestError) as refused:  # the engine's
        sdk.messages.create(**{**MESSAGE, "messages": []})
    assert refused.value.body == {
        "type": "error", "error": {"type": "invalid_request_error", "message": "Messages cannot be empty."},
    }  # fmt: skip


def test_anthropic_s_clients_send_their_key_in_a_header_of_their_own(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated().url, tenants=[{"name": "a", **KEY}])
    assert anthropic_client(server, api_key="key").messages.create(**MESSAGE).usage.output_tokens == 12
    with pytest.raises(anthropic.AuthenticationError) as refused:
        anthropic_client(server, api_key="other").messages.create(**MESSAGE)
    assert refused.value.body["error"]["type"] == "authentication_error"
    assert client(server, api_key="key").responses.create(model="simulated", input=SAID).output_text


def test_what_has_no_reader_goes_through(simulated: Any, gateway: Any) -> None:
    engine = simulated("--served-model-name", "simulated")
    server = gateway(engine.url)
    made = client(server).embeddings.create(model="simulated", input=[SAID, "Or less."], encoding_format="float")
    assert [len(one.embedding) for one in made.data] == [64, 64]
    bodies = {
        "/v1/score": {"model": "simulated", "query": "q", "items": ["a", "b"], "label_token_ids": [1, 2]},
        "/v1/rerank": {"query": "q", "documents": ["a", "b", "c"]},
        "/v1/tokenize": {"model": "simulated", "prompt": SAID},
        "/v1/detokenize": {"model": "simulated", "tokens": [5, 6]},
    }
    for path, body in bodies.items():
        direct, through = (httpx.post(url + path, json=body, timeout=60) for url in (engine.url, server.url))
        assert (through.status_code, through.json()) == (200, direct.json()), path
    assert all(r["qoe"] is None for r in httpx.get(server.url + "/fleet/demand").json()["records"])
    refused = httpx.post(server.url + "/v1/embeddings", json={"model": "simulated"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "input: field required")
    absent = httpx.post(server.url + "/v1/classify", json={"model": "simulated", "input": "x"})
    assert absent.status_code == 404, "this engine has no such endpoint"


def test_a_recording_goes_through_as_a_form(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    sound = bytes(range(256)) * 40
    sdk = client(server)
    text = sdk.audio.transcriptions.create(model="m", file=("a.wav", sound, "audio/wav"), language="en")
    assert text.text == "w0 x"
    form, kind = upstream.forms[-1]
    assert sound in form
    assert b'filename="a.wav"' in form
    assert b"audio/wav" in form
    assert kind.startswith("multipart/form-data")
    events = list(sdk.audio.transcriptions.create(model="m", file=("a.wav", sound), stream=True))
    assert len(events) > 4
    record = last_record(server)
    assert (record["stream"], record["outcome"], record["output_tokens"]) == (True, "done", 16)
    path = server.url + "/v1/audio/transcriptions"
    assert httpx.post(path, json={"model": "m"}).status_code == 415
    assert httpx.post(path, data={"model": "m", "stream": "perhaps"}, files={"file": sound}).status_code == 400
    assert httpx.post(path, data={"model": "n"}, files={"file": sound}).status_code == 404
    for odd in (b'name="a\x07"', b'name="file"; filename="a\x1b.wav"'):
        body = b"--x\r\ncontent-disposition: form-data; " + odd + b"\r\n\r\n1\r\n--x--\r\n"
        sent = httpx.post(path, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
        assert (sent.status_code, sent.json()["error"]["type"]) == (400, "invalid_request_error"), odd
    for options in ("abc", "{}"):  # no setting of ours in a form: the engine's to judge
        asked = {"model": "m", "stream": "true", "stream_options": options}
        assert "w15 x" in httpx.post(path, data=asked, files={"file": sound}).text
    latin = {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    body = b'--x\r\ncontent-disposition: form-data; name="language"\r\n\r\n\\ud800\r\n--x--\r\n'
    assert httpx.post(path, content=body, headers=latin).status_code == 415
    utf8 = {"content-type": 'Multipart/Form-Data; boundary=x; charset="UTF-8"'}
    assert httpx.post(path, content=body, headers=utf8).status_code == 200
    broken = httpx.post(path, content=b"nothing", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code in (400, 404)


def test_an_adapter_where_sglang_has_none(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated("--served-model-name", "big", "--lora-paths", "sql=/a").url)
    with pytest.raises(openai.BadRequestError, match="no LoRA adapters at /v1/responses"):
        client(server).responses.create(model="sql", input=SAID)
    assert anthropic_client(server).messages.create(**{**MESSAGE, "model": "sql"}).model == "big:sql"


def test_a_stored_response_is_found_where_it_is_kept(faulty: Any, gateway: Any) -> None:
    engines = [faulty(), faulty()]
    server, other = gateway(*(e.url for e in engines), policy="round_robin"), gateway(*(e.url for e in engines))
    sdk = client(server)
    for engine in engines:
        with sdk.responses.stream(model="m", input=SAID) as stream:
            kept = stream.get_final_response().id
        for _ in range(3):
            with sdk.responses.stream(model="m", input=SAID, previous_response_id=kept) as stream:
                assert stream.get_final_response().id == kept, "the engine that keeps it goes on"
        assert sdk.responses.retrieve(kept).id == client(other).responses.retrieve(kept).id == kept
        assert sdk.responses.cancel(kept).id == kept
        engine.healthy = False  # so that the other one answers next
        while httpx.get(server.url + "/readyz").json()["engines"] > 1:
            pass
    with pytest.raises(openai.NotFoundError, match="no response"):
        sdk.responses.retrieve("resp_1")


def test_a_stored_response_is_its_tenant_s(faulty: Any, gateway: Any) -> None:
    mine = {"name": "b", "key_sha256": hashlib.sha256(b"mine").hexdigest()}
    server = gateway(faulty().url, tenants=[{"name": "a", **KEY}, mine])
    with client(server, api_key="mine").responses.stream(model="m", input=SAID) as stream:
        kept = stream.get_final_response().id
    assert client(server, api_key="mine").responses.retrieve(kept).id == kept
    with pytest.raises(openai.NotFoundError):
        client(server, api_key="key").responses.retrieve(kept)
    with pytest.raises(openai.NotFoundError):
        client(server, api_key="key").responses.create(model="m", input=SAID, previous_response_id=kept)
    with pytest.raises(openai.NotFoundError):  # of before this gateway's start, or of another gateway's
        client(server, api_key="key").responses.create(model="m", input=SAID, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="request_id"):  # it would take the other's place
        client(server, api_key="key").responses.create(model="m", input=SAID, extra_body={"request_id": kept})
    with pytest.raises(openai.AuthenticationError):
        client(server, api_key="none").responses.retrieve(kept)


def test_what_is_remembered_of_responses_is_bounded() -> None:
    stored = StoredResponses()
    stored.add("r" * 128, "one", None)
    stored.add("r" * 129, "one", None)
    assert (stored.home("r" * 128, None), stored.home("r" * 129, None)) == ("one", None)


# When engines fail


@pytest.mark.parametrize("fault", ["hang up", "503"])
def test_another_engine_answers_what_has_not_begun(fault: str, faulty: Any, gateway: Any) -> None:
    bad, good = faulty(), faulty()
    bad.fault = fault
    server = gateway(bad.url, good.url, policy="round_robin", breaker_failures=1000)
    for _ in range(4):
        with anthropic_client(server).messages.stream(**{**MESSAGE, "model": "m"}) as stream:
            assert stream.get_final_message().usage.output_tokens == 12
        with client(server).responses.stream(model="m", input=SAID, max_output_tokens=12) as responses:
            assert responses.get_final_response().status == "completed"


def test_another_server_behind_an_engine_s_port_answers_nothing(faulty: Any, gateway: Any) -> None:
    """It says 200 to whatever it is asked: in one piece, too, that is no answer."""
    page, good = faulty(), faulty()
    page.fault = "no stream"
    server = gateway(page.url, good.url, policy="round_robin", breaker_failures=3)
    for _ in range(4):
        assert anthropic_client(server).messages.create(**{**MESSAGE, "model": "m"}).content[0].text == "w0 "
        assert client(server).responses.create(model="m", input=SAID).status == "completed"
        heard = client(server).audio.transcriptions.create(model="m", file=("a.wav", b"RIFF"))
        assert heard.text == "w0 x"
    replica = httpx.get(server.url + "/fleet/replicas").json()["replicas"][0]
    assert replica["breaker_open"]
    only = gateway(page.url)
    with pytest.raises(openai.InternalServerError, match=r"the engine failed \(garbage\)"):
        client(only).responses.create(model="m", input=SAID)


def test_a_stream_that_is_cut_ends_with_an_error_of_its_kind(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault, upstream.after = "die", 4
    server = gateway(upstream.url, breaker_failures=1000)
    asked = {**MESSAGE, "model": "m"}
    with (
        pytest.raises(anthropic.APIStatusError, match="the engine failed") as cut,
        anthropic_client(server).messages.stream(**asked) as stream,
    ):
        stream.until_done()
    assert cut.value.body["error"]["type"] == "api_error"
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(client(server).responses.create(model="m", input=SAID, stream=True))
    assert last_record(server)["outcome"] == "failed"
    assert last_record(server)["qoe"] == 0


def test_a_message_that_has_said_why_it_stops_is_complete(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault = "die at the end"
    server = gateway(upstream.url)
    with anthropic_client(server).messages.stream(**{**MESSAGE, "model": "m"}) as stream:
        assert stream.get_final_message().stop_reason == "max_tokens"
    assert last_record(server)["outcome"] == "done"


# Events


def test_events_of_responses_are_counted_and_held_until_the_first_piece() -> None:
    events = ResponseEvents(**OPTIONS)
    created, progress = event("response.created", response={"id": "r"}), event("response.in_progress", response={})
    assert events.feed(created + progress) == [(b"", 0), (b"", 0)]
    added, delta = event("response.output_item.added", item={}), event("response.output_text.delta", delta="a")
    assert events.feed(added) == [(b"", 0)]
    assert events.feed(delta[:20]) == []
    assert events.feed(delta[20:]) == [(created + progress + added + delta, 1)]
    assert events.feed(delta) == [(delta, 1)]
    assert events.feed(b": ping\n\n") == [(b": ping\n\n", 0)]
    assert not events.done
    usage = {"input_tokens": 7, "output_tokens": 4}
    end = event("response.completed", response={"status": "completed", "usage": usage})
    assert events.feed(end) == [(end, 2)], "what came beyond one token a piece"
    assert events.done
    assert (events.finish_reasons, events.usage) == ({0: "completed"}, usage)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (event("response.failed", response={"error": {"message": "gone"}}), "gone"),
        (event("response.failed", response={"status": "failed"}), "the response failed"),
        (event("error", message="gone", code="server_error"), "gone"),
        (event("error", error={"message": "gone"}), "gone"),
    ],
)
def test_a_response_that_fails(broken: bytes, said: str) -> None:
    events = ResponseEvents(**OPTIONS)
    events.feed(event("response.created", response={}))
    assert events.feed(broken) == [(b"", 0)]
    assert (events.error["message"], events.error_event) == (said, broken)


def test_events_of_messages_are_counted() -> None:
    events = MessageEvents(**OPTIONS)
    start = event("message_start", message={"id": "m", "usage": {"input_tokens": 7, "output_tokens": 0}})
    pieces = [
        event("content_block_delta", index=0, delta={"type": kind, name: "x"})
        for kind, name in (("text_delta", "text"), ("thinking_delta", "thinking"), ("input_json_delta", "partial_json"))
    ]
    empty = event("content_block_delta", index=0, delta={"type": "text_delta", "text": ""})
    signature = event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"})
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5})
    stop = event("message_stop")
    fed = events.feed(start + b"".join(pieces) + empty + signature + end + stop)
    assert [tokens for _, tokens in fed] == [0, 1, 1, 1, 0, 0, 2, 0]
    assert b"".join(one for one, _ in fed) == start + b"".join(pieces) + empty + signature + end + stop
    assert (events.done, events.finish_reasons, events.usage) == (
        True, {0: "end_turn"}, {"input_tokens": 7, "output_tokens": 5},
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "status"), [("overloaded_error", 503), ("invalid_request_error", 400), ("odd", 500)])
def test_an_error_in_a_message_says_whose_it_is(kind: str, status: int) -> None:
    events = MessageEvents(**OPTIONS)
    events.feed(event("error", error={"type": kind, "message": "no"}) + event("message_stop"))
    assert (events.error["code"], events.done) == (status, False)


@pytest.mark.parametrize("reader", [MessageEvents, ResponseEvents])
@pytest.mark.parametrize("broken", [b"event: x\ndata: {\n\n", b"data: [1]\n\n", b"event: x\ndata: 7\n\n"])
def test_what_is_no_event(reader: Any, broken: bytes) -> None:
    events = reader(**OPTIONS)
    events.feed(broken)
    assert events.garbage


@pytest.mark.parametrize(
    "odd", [b"data: {}\n\n", event("unheard.of"), event("response.completed"), event("message_delta")]
)
def test_an_event_of_another_shape_passes(odd: bytes) -> None:
    for reader in (MessageEvents(**OPTIONS), ResponseEvents(**OPTIONS)):
        fed = reader.feed(odd + event("content_block_delta", delta={"text": "x"}) + event("x.delta", delta="x"))
        assert b"".join(one for one, _ in fed).startswith(odd)


# What the engine gets


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/chat/completions", "/v1/embeddings"])
def test_an_engine_is_told_of_readers_where_there_are_any(path: str) -> None:
    settings, endpoint = GatewaySettings(upstreams=("http://engine:1",)), at_path(path)
    body: dict[str, Any] = {"model": "m", "input": "x", "stream": True, "custom_params": {"qoe": {"tds": 9}, "own": 1}}
    expectation = resolve({}, body, None, settings)
    record = DemandRecord(0.0, "reading", True, 1, expectation.reader)
    stream = Stream(endpoint, body, expectation, None, {}, 0.0, Prompt(body, endpoint.prompt), 1.0, record)
    sent = json.loads(bytes(engine_request(stream, body, settings, 0.25)))
    if endpoint.reader is None:
        assert sent == body
        return
    assert sent["custom_params"] == {"qoe": {"ttft": 0.75, "tds": 9}, "own": 1}
    assert ("stream_options" in sent) == (endpoint is CHAT), "the others know no such field"


# Errors and media


def test_errors_have_the_shape_of_their_endpoint() -> None:
    error = ApiError(429, "too much", "overloaded_error", code="overloaded")
    assert CHAT.error_body(429, error.body) == error.body
    assert MESSAGES.error_body(429, error.body) == {
        "type": "error", "error": {"type": "rate_limit_error", "message": "too much"},
    }  # fmt: skip
    sglang = b'{"object":"error","message":"no","type":"BadRequest","param":null,"code":400}'
    assert json.loads(MESSAGES.error_content(400, sglang))["error"] == {
        "type": "invalid_request_error",
        "message": "no",
    }
    own = b'{"type":"error","error":{"type":"api_error","message":"x"}}'
    assert json.loads(MESSAGES.error_content(500, own)) == json.loads(own)
    assert MESSAGES.error_content(502, b"<html>") == b"<html>"
    assert CHAT.error_event(429, error.body).startswith(b'data: {"error":{"message":"too much"')
    assert MESSAGES.error_event(429, error.body).startswith(b'event: error\ndata: {"type":"error"')
    assert json.loads(RESPONSES.error_event(429, error.body).partition(b"data: ")[2])["error"]["message"] == "too much"
    assert at_path("/v1/messages/batches").anthropic
    assert not at_path("/nothing").anthropic


PRIVATE = "http://169.254.169.254/x"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PRIVATE}]}]}, ("input",)),
        ({"input": [{"content": [{"type": "input_file", "file_url": PRIVATE}]}]}, ("input",)),
        ({"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": PRIVATE}}]}]}, ("messages",)),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{"source": {"url": PRIVATE}}]}]}]},
            ("messages",),
        ),
        ({"input": [{"text": "x", "image": "/etc/passwd"}]}, ("input",)),
        ({"documents": [[{"type": "video_url", "video_url": {"url": PRIVATE}}]]}, ("query", "documents")),
    ],
)
def test_no_dialect_sends_an_engine_inside(body: dict[str, Any], fields: tuple[str, ...]) -> None:
    with pytest.raises(ApiError, match="media"):
        check_media(body, (), fields)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "search_result", "source": "http://10.0.0.1/page", "title": "t", "content": []}],
        [{"type": "tool_use", "id": "a", "name": "look", "input": {"image_url": PRIVATE}}],
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}],
        [{"type": "text", "text": PRIVATE}],
    ],
)
def test_what_is_not_fetched_is_not_refused(content: Any) -> None:
    check_media({"messages": [{"role": "user", "content": content}]}, (), ("messages",))
