"""The relay against engines that are scripts: what each rule does with what an engine says, without a socket or a clock.

``Session`` stands in for aiohttp's client session only; everything else is the gateway's own.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from andes_api import attempt
from andes_api.admission import no_replica
from andes_api.background import Background
from andes_api.connection import Connection
from andes_api.demand import DemandRecord
from andes_api.endpoints import CHAT
from andes_api.expectations import resolve
from andes_api.lateness import Lateness
from andes_api.metrics import GatewayMetrics
from andes_api.prompts import Prompt
from andes_api.relay import Relay, RelayContext
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_api.telemetry import Telemetry
from andes_api.upstream import Upstream
from andes_api.upstreams import Upstreams
from andes_sglang.resume import resumable

EVENTS = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}
HANG = object()
"""In a script: nothing more comes until the answer is closed."""


class Content:
    def __init__(self, script: list[Any]) -> None:
        self._script = list(script)
        self.closed = asyncio.Event()

    async def readany(self) -> bytes:
        if not self._script:
            return b""
        step = self._script.pop(0)
        if step is HANG:
            await self.closed.wait()
            raise aiohttp.ClientConnectionError("closed")
        if isinstance(step, Exception):
            raise copy.copy(step)  # whose traceback is not kept here
        assert isinstance(step, bytes)
        return step

    async def iter_any(self) -> AsyncIterator[bytes]:
        while part := await self.readany():
            yield part


class Answer:
    def __init__(self, script: list[Any], status: int = 200, headers: dict[str, str] = EVENTS) -> None:
        self.status, self.headers, self.script = status, headers, script

    async def __aenter__(self) -> Answer:
        if self.script and isinstance(self.script[0], Exception):
            raise self.script[0]
        if self.script and self.script[0] is HANG:
            await asyncio.Event().wait()
        self.content = Content(self.script)
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    def close(self) -> None:
        self.content.closed.set()


class Session:
    """Answers each request with the next of ``answers``."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def post(self, url: str, *, data: bytes, headers: dict[str, str], allow_redirects: bool) -> Answer:
        assert not allow_redirects
        assert headers["x-request-id"]
        self.sent.append((url, json.loads(data)))
        return self.answers.pop(0)


def chunk(
    text: str = "", tokens: int = 0, finish: str | None = None, id_: str = "one", role: str | None = None
) -> bytes:
    delta: dict[str, Any] = {"content": text} | ({"role": role} if role else {})
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": id_, "model": "m", "choices": [choice], "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
GREEDY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 9,
}


class Case:
    """One request through the relay; ``a`` is tried first, then ``b``, then ``c``."""

    def __init__(
        self,
        *answers: Answer,
        body: dict[str, Any] = GREEDY,
        headers: dict[str, str] | None = None,
        replicas: str = "abc",
        **settings: Any,
    ) -> None:
        self.settings = GatewaySettings(upstreams=[f"http://{name}:1" for name in "abc"], **settings)
        self.session = Session(*answers)
        self.metrics = GatewayMetrics()
        background = Background(self.metrics.task_failures)
        self.upstreams = Upstreams(self.settings, session=self.session, background=background)  # type: ignore[arg-type]
        for replica in self.upstreams.replicas.values():
            replica.drained = replica.name[0] not in (replicas or "abc")
        self.sent: list[dict[str, Any]] = []
        self.order = [self.replica(name) for name in replicas]
        for replica in self.upstreams.replicas.values():
            replica.offers = {}  # asked, and it says nothing of models
        expectation = resolve(headers or {}, body, None, self.settings)
        prompt, streams = Prompt(body, ("messages",)), body.get("stream") is True
        self.stream = Stream(
            CHAT, body, expectation, None, {}, time.monotonic(), prompt, prompt.tokens(4.0),
            DemandRecord(0.0, expectation.class_name, streams, 1, expectation.reader),
            log=[] if self.settings.resume and streams and resumable(body, True) else None,
        )  # fmt: skip
        self.relay: Relay | None = None
        self.place: Callable[[Stream], list[Upstream]] = lambda _stream: []

    def replica(self, name: str) -> Upstream:
        return self.upstreams.replicas[f"http://{name}:1"]

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def _wait_for_place(self, stream: Stream) -> list[Upstream]:
        return self.place(stream)

    def start(self) -> Relay:
        context = RelayContext(
            self.settings, self.upstreams, self.metrics, Telemetry(None, "test"), self._wait_for_place
        )
        self.relay = Relay(context, self.stream, self.order, self._send, Connection())
        return self.relay

    def run(self) -> Case:
        async def main() -> None:
            await asyncio.wait_for(self.start().run(), 5)

        asyncio.run(main())
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent[1:])

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [json.loads(e[6:]) for e in self.body.split(b"\n\n") if e.startswith(b"data: {")]

    @property
    def text(self) -> str:
        return "".join(c["delta"].get("content", "") for p in self.payloads for c in p.get("choices", ()))

    def count(self, name: str) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"andes_gateway_{name}_total"
        )


def test_what_is_over_is_gone_at_once() -> None:
    """A stream that refers to itself waits for the collector, which then stops all others for tens of milliseconds."""
    cases = [
        Case(Answer([chunk("a", 1, "stop"), DONE])),
        Case(Answer([chunk("a", 1), ConnectionResetError()]), Answer([chunk("b", 1, "stop"), DONE])),
        Case(*[Answer([], status=500)] * 3, retries=2),
    ]
    gc.collect()
    gc.disable()
    try:
        for case in cases:
            case.run()
            relay, attempts = weakref.ref(case.relay), case.stream.attempts
            case.relay = None
            assert attempts
            assert relay() is None
    finally:
        gc.enable()


def test_events_pass_and_are_counted() -> None:
    case = Case(Answer([chunk("a", 1), chunk("bc", 3) + chunk("", 3, "stop"), DONE])).run()
    assert (case.status, case.text, case.stream.record.outcome) == (200, "abc", "done")
    assert (case.stream.tokens, case.stream.reader.delivered, case.stream.record.prompt_tokens) == (3, 3, 7)
    assert case.body.endswith(DONE)
    assert b"usage" not in case.body
    assert (case.headers["x-andes-class"], case.headers["content-type"]) == ("reading", "text/event-stream")
    assert case.sent[-1]["more_body"] is False
    url, sent = case.session.sent[0]
    assert url == "http://a:1/v1/chat/completions"
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert not case.replica("a").streams


def test_what_the_reader_expects_goes_to_the_engine_whole() -> None:
    body = {**GREEDY, "custom_params": {"other": 1, "qoe": {"tds": 9, "weight": 0.5, "yield": True, "tokens": 100}}}
    case = Case(Answer([chunk("a", 1, "stop"), DONE]), body=body, headers={"x-andes-ttft-ms": "3000"}).run()
    sent = case.session.sent[0][1]["custom_params"]
    assert sent["other"] == 1
    assert sent["qoe"].pop("ttft") == pytest.approx(3.0, abs=0.5)
    assert sent["qoe"] == {"tds": 9, "weight": 0.5, "yield": True, "tokens": 9}, "no more than max_tokens"


def test_the_engine_gets_what_is_left_of_the_readers_patience_and_answer() -> None:
    body = {**GREEDY, "custom_params": {"qoe": {"ttft": 10, "tokens": 9}}}
    case = Case(Answer([chunk("a", 4)]), Answer([chunk("b", 1, "stop"), DONE]), body=body)
    case.stream.arrival_s -= 4.0
    case.run()
    first, second = (sent["custom_params"]["qoe"] for _, sent in case.session.sent)
    assert first["ttft"] == pytest.approx(6.0, abs=0.5)
    assert (first["tokens"], second["tokens"]) == (9, 5)


def test_engines_that_refuse_expectations_get_none() -> None:
    case = Case(Answer([chunk("a", 1, "stop"), DONE]), forward_expectations=False, count_tokens="events").run()
    assert "custom_params" not in case.session.sent[0][1]
    assert "stream_options" not in case.session.sent[0][1]
    assert case.stream.tokens == 1


@pytest.mark.parametrize(
    "failure",
    [
        Answer([aiohttp.ServerDisconnectedError()]),
        Answer([b""]),
        Answer([b"<html>"], headers={"content-type": "text/html"}),
        Answer([b"data: nonsense\n\n"]),
        Answer([b'data: {"error":{"code":500}}\n\n']),
        Answer([b'{"error":{}}'], status=503, headers=JSON),
        Answer([b"gone"], status=500, headers={"content-type": "text/plain"}),
        Answer([DONE]),
        Answer([chunk("", 0, "abort"), DONE]),
        Answer([b'data: {"object":"error","message":"x","code":500}\n\n', DONE]),
    ],
    ids=[
        "disconnected",
        "nothing",
        "html",
        "garbage",
        "error event",
        "503",
        "500",
        "only the end",
        "aborted",
        "bare error",
    ],
)
def test_before_the_first_byte_another_replica_is_tried(failure: Answer) -> None:
    case = Case(failure, Answer([chunk("a", 1, "stop"), DONE])).run()
    assert (case.status, case.text, case.stream.record.outcome) == (200, "a", "done")
    assert [url[7] for url, _ in case.session.sent] == ["a", "b"]
    assert case.session.sent[0][1]["messages"] == case.session.sent[1][1]["messages"]
    assert (case.stream.attempts, case.count("retries"), case.count("resumes")) == (2, 1, 0)
    assert case.count("upstream_failures") == 1


@pytest.mark.parametrize(
    ("failure", "alone", "blamed"),
    [
        (Answer([aiohttp.ServerDisconnectedError()]), 1, 1),
        (Answer([b'{"error":{}}'], status=503, headers=JSON), 1, 1),
        (Answer([b'{"error":{}}'], status=500, headers=JSON), 0, 1),
        (Answer([b'{"error":{}}'], status=429, headers=JSON), 0, 0),
        (Answer([b"gone"], status=500, headers={"content-type": "text/plain"}), 1, 1),
        (Answer([b'data: {"error":{"code":500}}\n\n']), 0, 1),
        (Answer([b'{"detail":"x"}'], status=404, headers=JSON), 0, 3),
        (Answer([b'{"message":"x"}'], status=400, headers=JSON), 0, 1),
        (Answer([b'{"error":{"code":"model_not_found"}}'], status=404, headers=JSON), 0, 0),
        (Answer([DONE]), 0, 1),
    ],
    ids=["disconnected", "503", "500 said", "429", "500 unsaid", "error event", "404", "400", "model", "empty"],
)
def test_what_the_breaker_counts(failure: Answer, alone: int, blamed: int) -> None:
    """What only one replica refuses or fails is its own fault; what all do is the request's, but for broken connections."""
    case = Case(failure, replicas="a").run()
    assert case.replica("a").breaker.failures == alone
    case = Case(failure, Answer([chunk("a", 1, "stop"), DONE])).run()
    assert case.replica("a").breaker.failures == blamed
    assert case.replica("b").breaker.failures == 0
    assert (case.status, case.text) == (200, "a")
    case = Case(failure, failure, failure).run()
    assert [case.replica(name).breaker.failures for name in "ab"] == [alone, alone]


def test_an_unreachable_replica_is_down_until_a_probe_finds_it() -> None:
    refused = aiohttp.ClientConnectorError(
        aiohttp.client_reqrep.ConnectionKey("a", 1, False, True, None, None, None), OSError("refused")
    )
    case = Case(Answer([refused]), Answer([chunk("a", 1, "stop"), DONE])).run()
    assert (case.replica("a").healthy, case.replica("b").healthy) == (False, None)
    assert case.stream.record.outcome == "done"


def test_success_closes_the_breaker_and_warms_the_cache() -> None:
    body = {**GREEDY, "messages": [{"role": "user", "content": "x" * 2000}]}
    case = Case(Answer([chunk("a", 1, "stop"), DONE]), body=body)
    case.replica("a").breaker.failed(0.0)
    case.run()
    assert case.replica("a").breaker.failures == 0
    assert case.stream.prompt.share(case.replica("a").prefixes) > 0.7
    assert case.stream.prompt.share(case.replica("b").prefixes) == 0.0


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_request_error_is_passed_on_after_one_other_replica_agrees(status: int) -> None:
    error = {"error": {"message": "not so", "code": status}}
    refusal = Answer([json.dumps(error).encode()], status=status, headers={**JSON, "server": "x"})
    case = Case(refusal, refusal, refusal).run()
    assert (case.status, json.loads(case.body), case.stream.record.outcome) == (status, error, "error")
    assert "server" not in case.headers
    assert case.stream.attempts == 2
    assert case.count("upstream_failures") == 0
    assert not any(r.fault for r in case.upstreams.replicas.values())
    assert Case(refusal, replicas="a").run().status == status


def test_a_replica_that_refuses_what_another_answers_rests_with_its_reason() -> None:
    refusal = Answer([b'{"detail":"Not Found"}'], status=404, headers=JSON)
    case = Case(refusal, Answer([chunk("a", 1, "stop"), DONE])).run()
    said = case.replica("a").describe(time.monotonic())
    assert (said["healthy"], said["breaker_open"]) == (False, True)
    assert said["reason"] == "http_404 where another answers"
    assert case.count("upstream_failures") == 1
    case.replica("a").succeeded()
    assert case.replica("a").describe(time.monotonic())["reason"] is None


def test_a_refusal_is_blamed_as_soon_as_another_replica_begins_to_answer() -> None:
    case = Case(Answer([b"{}"], status=405, headers=JSON), Answer([chunk("a", 1), HANG]))

    async def main() -> None:
        task = asyncio.create_task(case.start().run())
        while case.stream.tokens < 1:
            await asyncio.sleep(0)
        assert not case.replica("a").accepts(time.monotonic())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body"],"msg":"no"}]}', '[{"loc": ["body"], "msg": "no"}]'),
        (b'{"error":"gone"}', "gone"),
        (b"<h1>Bad</h1>", "<h1>Bad</h1>"),
        (b"", "the engine has answered 400 without a word"),
        (b"[" * 100_000, "[" * 1000),
    ],
    ids=["sglang", "fastapi", "validation", "text", "html", "nothing", "deep"],
)
def test_errors_of_engines_reach_every_client(content: bytes, message: str) -> None:
    """In the one shape that official clients read; without it the JavaScript one prints "400 status code (no body)"."""
    case = Case(Answer([content], status=400, headers=JSON), replicas="a").run()
    error = json.loads(case.body)["error"]
    assert error["message"] == message
    assert {"message", "type", "param", "code"} <= error.keys()
    assert (case.status, case.headers["content-type"]) == (400, "application/json")
    assert case.headers["x-request-id"] == case.stream.request_id


FULL_EVENT = b'data: {"error":{"object":"error","message":"The request queue is full.","type":"X","code":503}}\n\n'


@pytest.mark.parametrize(
    "full",
    [
        Answer([FULL_EVENT, DONE]),
        Answer([b'{"object":"error","message":"The request queue is full.","code":503}'], status=503, headers=JSON),
        Answer([b'{"detail":"The request is aborted by a higher priority request."}'], status=503, headers=JSON),
        Answer([b"slow down"], status=429, headers={"content-type": "text/plain"}),
        Answer([b"{}"], status=429, headers={**JSON, "retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Answer([b"{}"], status=429, headers={**JSON, "retry-after": "inf"}),
    ],
    ids=["event", "503", "priority", "429", "date", "never"],
)
def test_a_full_engine_is_not_a_broken_one(full: Answer) -> None:
    case = Case(full, full, full, retries=1).run()
    assert (case.status, case.headers["x-andes-reason"], case.stream.record.outcome) == (429, "engine_full", "shed")
    assert case.headers["retry-after"]
    assert json.loads(case.body)["error"]["code"] == "overloaded"
    assert [case.replica(name).breaker.failures for name in "abc"] == [0, 0, 0]
    assert (case.count("upstream_full"), case.count("upstream_failures")) == (3, 0), "who is full costs no retry"
    assert case.replica("a").describe(time.monotonic())["reason"] == "full"
    case = Case(full, full, Answer([chunk("a", 1, "stop"), DONE]), retries=0).run()
    assert (case.status, case.text) == (200, "a")


def test_an_answer_without_a_token_is_asked_for_once_more_and_believed_then() -> None:
    empty = Answer([chunk("", 0, "stop"), DONE])
    case = Case(empty, Answer([chunk("a", 1, "stop"), DONE])).run()
    assert (case.text, case.replica("a").fault) == ("a", "empty where another answers")
    case = Case(empty, empty, empty).run()
    assert (case.status, case.text, case.stream.attempts, case.stream.record.outcome) == (200, "", 2, "done")
    counted = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'
    case = Case(Answer([chunk("", 0, "stop"), counted, DONE])).run()
    assert (case.text, case.stream.attempts) == ("", 1), "a token that has no text"
    assert case.body.endswith(DONE)


@pytest.mark.parametrize(
    ("whole", "believed"),
    [
        ({}, False),
        ({"choices": []}, False),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, True),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}, False),
    ],
    ids=["object", "choices", "text", "aborted"],
)
def test_an_answer_in_one_piece_that_is_empty_is_asked_for_once_more(whole: dict[str, Any], believed: bool) -> None:
    body = {**GREEDY, "stream": False}
    empty = Answer([json.dumps(whole).encode()], headers=JSON)
    sound = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    case = Case(empty, Answer([json.dumps(sound).encode()], headers=JSON), body=body).run()
    assert json.loads(case.body) == sound
    assert case.replica("a").breaker.failures == 1
    assert Case(empty, empty, empty, body=body).run().status == (200 if believed else 502)


DEATHS = [Answer([aiohttp.ServerDisconnectedError()]), Answer([b""]), Answer([chunk(role="assistant"), b""])]


@pytest.mark.parametrize("death", DEATHS, ids=["no answer", "no event", "a role"])
def test_a_request_that_kills_its_engine_gets_one_other(death: Answer) -> None:
    case = Case(death, death, death, retries=9).run()
    assert (case.stream.attempts, case.stream.record.outcome) == (2, "failed")
    if case.status != 200:  # else the role has gone out, and the reason in the stream
        assert (case.status, case.headers["x-andes-reason"]) == (502, "engine_died")
        assert case.headers["x-should-retry"] == "false"
    assert "2 engines died" in case.body.decode()


def test_what_kills_in_the_middle_of_an_answer_gets_one_other_too() -> None:
    died = Answer([aiohttp.ServerDisconnectedError()])
    case = Case(Answer([chunk("a", 1), ConnectionResetError()]), died, died, retries=9).run()
    assert case.stream.attempts == 3, "the first of them gave a token"
    assert case.payloads[-1]["error"]["code"] == "engine_died"


def test_an_answer_in_one_piece_that_dies_late_has_not_killed_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    body, died = {**GREEDY, "stream": False}, Answer([aiohttp.ServerDisconnectedError()])
    assert Case(died, died, died, body=body, retries=9).run().stream.attempts == 2
    monkeypatch.setattr(attempt, "FIRST_TOKEN_MARGIN_S", 0.0)  # then it has probably had its first token
    case = Case(died, died, died, body=body, retries=9).run()
    assert (case.stream.attempts, case.status) == (3, 502)
    assert case.headers["x-andes-reason"] == "upstream"


def test_an_answer_in_one_piece_has_its_time_for_all_of_it() -> None:
    body, whole = {**GREEDY, "stream": False}, b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}'
    case = Case(Answer([b"{", HANG], headers=JSON), Answer([whole], headers=JSON), body=body, answer_timeout_s=0.05)
    assert json.loads(case.run().body) == json.loads(whole)
    assert (case.stream.attempts, case.replica("a").fault) == (2, "silent")


def test_an_error_that_never_ends_is_silence() -> None:
    case = Case(Answer([b"{", HANG], 500, JSON), Answer([chunk("a", 1, "stop"), DONE]), stream_idle_s=0.05).run()
    assert (case.text, case.replica("a").fault) == ("a", "silent")


def test_a_stream_is_ended_for_the_first_reason_only() -> None:
    """A timeout that has expired cannot be moved: trying it ended the search for silent streams."""
    case = Case(Answer([HANG]), Answer([chunk("a", 1, "stop"), DONE]))

    async def main() -> None:
        task = asyncio.create_task(case.start().run())
        while case.relay is None or case.relay._attempt is None or case.relay._attempt._timeout is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        first = case.relay._attempt
        first.end("dead")
        await asyncio.wait_for(task, 5)
        first.end("silent")
        case.relay.cut()  # too late

    asyncio.run(main())
    assert (case.text, case.replica("a").fault) == ("a", "dead")


def test_an_engine_that_cannot_be_reached_has_not_died_of_it() -> None:
    refused = aiohttp.ClientConnectorError(
        aiohttp.client_reqrep.ConnectionKey("a", 1, False, True, None, None, None), OSError("refused")
    )
    case = Case(Answer([refused]), Answer([refused]), Answer([chunk("a", 1, "stop"), DONE])).run()
    assert (case.text, case.stream.attempts) == ("a", 3)


@pytest.mark.parametrize("listened", [True, False])
def test_an_engine_that_we_were_too_late_to_reach_is_not_down(listened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lateness, "asked", lambda _self: lambda: listened)
    case = Case(Answer([aiohttp.ConnectionTimeoutError()]), Answer([chunk("a", 1, "stop"), DONE])).run()
    assert case.text == "a"
    assert (case.replica("a").healthy, case.replica("a").fault) == (
        (False, "unreachable") if listened else (None, None)
    )


def test_when_all_fail_the_last_one_that_spoke_is_quoted() -> None:
    said = Answer([b'{"error":{"message":"full"}}'], status=429, headers={**JSON, "retry-after": "7"})
    case = Case(Answer([b""]), said, replicas="ab", retries=1).run()
    assert (case.status, json.loads(case.body)["error"]["message"]) == (429, "full")
    assert case.headers["retry-after"] == "7"
    assert case.stream.record.outcome == "shed"


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_no_more_tries_than_retries_or_replicas(retries: int, attempts: int) -> None:
    case = Case(*[Answer([b"data: nonsense\n\n"]) for _ in range(9)], retries=retries).run()
    assert case.stream.attempts == attempts
    assert (case.status, case.stream.record.outcome) == (502, "failed")
    assert "garbage" in json.loads(case.body)["error"]["message"]


def test_after_the_first_byte_the_stream_goes_on_elsewhere() -> None:
    other = [chunk("", 0, None, "two", "assistant"), chunk("c", 1, None, "two"), chunk("d", 2, "stop", "two"), DONE]
    case = Case(
        Answer([chunk("", 0, role="assistant"), chunk("a", 1), chunk("b", 2), ConnectionResetError()]), Answer(other)
    )
    case.run()
    assert (case.text, case.stream.record.outcome) == ("abcd", "done")
    assert {p["id"] for p in case.payloads} == {"one"}
    assert sum(bool(p["choices"][0]["delta"].get("role")) for p in case.payloads) == 1
    rest = case.session.sent[1][1]
    assert rest["messages"][-1] == {"role": "assistant", "content": "ab"}
    assert (rest["max_tokens"], rest["continue_final_message"]) == (7, True)
    assert (case.stream.tokens, case.count("resumes"), case.count("retries")) == (4, 1, 0)
    assert case.stream.record.prompt_tokens == 7, "as the first engine counted it"


def test_usage_of_a_continued_stream_is_of_the_whole() -> None:
    body = {**GREEDY, "stream_options": {"include_usage": True}}
    usage = b'data: {"id":"two","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}\n\n'
    case = Case(Answer([chunk("a", 2)]), Answer([chunk("b", 2, "stop", "two"), usage, DONE]), body=body).run()
    assert case.payloads[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


@pytest.mark.parametrize(
    "body", [{**GREEDY, "temperature": 0.7}, {**GREEDY, "tools": [{}]}, {**GREEDY, "logprobs": True}]
)
def test_what_the_text_does_not_determine_ends_with_an_error_event(body: dict[str, Any]) -> None:
    case = Case(Answer([chunk("a", 1), ConnectionResetError()]), body=body).run()
    assert case.text == "a"
    assert case.payloads[-1]["error"]["code"] == "upstream_error"
    assert not any(c.get("finish_reason") for p in case.payloads for c in p.get("choices", ()))
    assert DONE not in case.body
    assert case.stream.record.outcome == "failed"


@pytest.mark.parametrize("more", [{}, {"temperature": 0.7}, {"tools": [{}]}], ids=["greedy", "sampled", "tools"])
@pytest.mark.parametrize("cut", [ConnectionResetError(), b"", b"garbage\n\n", b'data: {"error":{"code":500}}\n\n'])
def test_an_answer_that_has_all_its_tokens_is_complete(cut: Any, more: dict[str, Any]) -> None:
    body = {**GREEDY, **more, "stream_options": {"include_usage": True}}
    case = Case(Answer([chunk("a", 9), cut]), body=body).run()
    assert (case.stream.attempts, case.stream.record.outcome, case.text) == (1, "done", "a")
    finish, usage = case.payloads[-2:]
    assert finish["choices"][0]["finish_reason"] == "length"
    assert usage["usage"] == {"prompt_tokens": 7, "total_tokens": 16, "completion_tokens": 9}
    assert {p["id"] for p in case.payloads} == {"one"}
    assert case.body.endswith(DONE)


@pytest.mark.parametrize(
    "cut",
    [
        b"", ConnectionResetError(), aiohttp.ClientPayloadError(), b"<html>\n\n", TimeoutError(),
        b'data: {"error":{"code":500}}\n\n', b'data: {"error":{"code":400}}\n\n', b"data: [DO",
    ],
    ids=["end", "reset", "payload", "garbage", "silence", "error", "refusal", "half"],
)  # fmt: skip
def test_a_cut_after_the_finish_reason_loses_nothing(cut: Any) -> None:
    case = Case(Answer([chunk("a", 1), chunk("b", 2, "stop"), cut])).run()
    assert (case.text, case.stream.record.outcome, case.stream.attempts) == ("ab", "done", 1)
    assert case.body.endswith(DONE)
    assert "error" not in case.payloads[-1]


@pytest.mark.parametrize("part", [b'data: {"id":"o', b"data: [DONE]", b"data: [DONE]\n"])
def test_a_cut_in_an_event_after_the_finish_reason_loses_nothing(part: bytes) -> None:
    case = Case(Answer([chunk("a", 1, "stop"), part, b""])).run()
    assert (case.text, case.stream.record.outcome, case.stream.attempts) == ("a", "done", 1)
    assert case.body.count(b"[DONE]") == 1
    assert case.body.endswith(b"}\n\n" + DONE)


def test_events_without_a_space_are_continued_too() -> None:
    tight = [event.replace(b"data: ", b"data:") for event in (chunk("a", 1), chunk("b", 2))]
    rest = chunk("c", 1, "stop", "two").replace(b"data: ", b"data:")
    case = Case(Answer([*tight, ConnectionResetError()]), Answer([rest, DONE])).run()
    assert case.session.sent[1][1]["messages"][-1] == {"role": "assistant", "content": "ab"}
    assert b'"two"' not in case.body, "it reads as the stream that it continues"


def test_a_comment_is_not_the_beginning_of_a_stream() -> None:
    rest = Answer([chunk("", role="assistant"), chunk("b", 1, "stop", "two"), DONE])
    case = Case(Answer([b": up\n\n", chunk("a", 1), ConnectionResetError()]), rest).run()
    assert [p["id"] for p in case.payloads] == ["one", "one"]
    rest = Answer([chunk("", role="assistant"), chunk("b", 1, "stop"), DONE])
    case = Case(Answer([b": up\n\n", ConnectionResetError()]), rest).run()
    assert [p["choices"][0]["delta"].get("role") for p in case.payloads] == ["assistant", None]


@pytest.mark.parametrize(("others", "sent"), [({"x": 1}, {"x": 1}), ({}, None)])
def test_no_expectation_reaches_an_engine_that_refuses_them(others: dict[str, Any], sent: Any) -> None:
    body = {**GREEDY, "custom_params": {**others, "qoe": {"weight": 1000}}}
    case = Case(Answer([chunk("a", 1, "stop"), DONE]), body=body, forward_expectations=False).run()
    assert case.session.sent[0][1]["custom_params"] == sent


@pytest.mark.parametrize("choice", ["7", '{"delta":"c"}'])
def test_a_continuation_of_another_shape_is_a_failure(choice: str) -> None:
    odd = f'data: {{"choices":[{choice}]}}\n\n'.encode()
    case = Case(Answer([chunk("a", 1), ConnectionResetError()]), Answer([odd]), replicas="ab").run()
    assert (case.stream.record.outcome, case.payloads[-1]["error"]["code"]) == ("failed", "upstream_error")


def test_several_answers_are_complete_when_all_have_finished() -> None:
    other = chunk("b", 1, "stop").replace(b'"index": 0', b'"index": 1')
    case = Case(Answer([chunk("a", 1, "stop"), b""]), body={**GREEDY, "n": 2}).run()
    assert case.stream.record.outcome == "failed"
    case = Case(Answer([chunk("a", 1, "stop") + other, b""]), body={**GREEDY, "n": 2}).run()
    assert (case.stream.record.outcome, case.body[-len(DONE) :]) == ("done", DONE)


def test_the_usage_of_a_cut_answer_is_not_missing() -> None:
    body = {**GREEDY, "stream_options": {"include_usage": True}}
    case = Case(Answer([chunk("a", 1), ConnectionResetError()]), Answer([chunk("b", 1, "stop"), b""]), body=body).run()
    assert case.payloads[-1]["usage"] == {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2}
    assert case.payloads[-1]["choices"] == []


def test_a_stop_string_across_the_move_ends_the_answer() -> None:
    body = {**GREEDY, "stop": ["STOP"], "stream_options": {"include_usage": True}}
    rest = Answer([chunk("OP and", 2, None, "two") + chunk(" more", 3, None, "two"), HANG])
    case = Case(Answer([chunk("it ST", 2), ConnectionResetError()]), rest, body=body).run()
    assert (case.text, case.stream.record.outcome) == ("it ST", "done")
    assert case.payloads[-2]["choices"][0]["finish_reason"] == "stop"
    assert case.payloads[-1]["usage"]["completion_tokens"] == 4
    assert case.body.endswith(DONE)


@pytest.mark.parametrize("more", [{"temperature": 0.7}, {"n": 2}, {"tools": [{}]}])
def test_what_has_given_no_more_than_a_role_is_asked_for_again(more: dict[str, Any]) -> None:
    role, rest = (
        chunk(role="assistant"),
        Answer([chunk(role="assistant", id_="two"), chunk("a", 1, "stop", "two"), DONE]),
    )
    case = Case(Answer([role, ConnectionResetError()]), rest, body={**GREEDY, **more}).run()
    assert (case.text, {p["id"] for p in case.payloads}) == ("a", {"one"})
    assert Case(Answer([role, DONE]), rest, body={**GREEDY, **more}).run().text == "a"
    assert case.session.sent[1][1]["messages"] == GREEDY["messages"]


def test_an_error_event_about_the_request_ends_the_stream() -> None:
    event = b'data: {"error":{"message":"bad image","code":400}}\n\n'
    case = Case(Answer([chunk("a", 1), event])).run()
    assert case.payloads[-1]["error"]["message"] == "bad image"
    assert (case.stream.record.outcome, case.stream.attempts) == ("error", 1)


def test_an_error_event_of_the_engine_is_quoted_when_nothing_else_is_left() -> None:
    event = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
    case = Case(Answer([chunk("a", 1), event]), body={**GREEDY, "temperature": 1}).run()
    assert case.payloads[-1]["error"]["message"] == "out of memory"
    assert case.stream.record.outcome == "failed"


def test_a_silent_engine_is_given_up_after_the_idle_limit() -> None:
    case = Case(Answer([chunk("a", 1), HANG]), Answer([chunk("b", 1, "stop"), DONE]), stream_idle_s=300.0)

    async def main() -> None:
        relay = case.start()
        task = asyncio.create_task(relay.run())
        while case.stream.tokens < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        now_s = time.monotonic()
        relay.end_silent_upstream(now_s + 299.0)
        await asyncio.sleep(0)
        assert case.stream.attempts == 1
        relay.end_silent_upstream(now_s + 301.0)
        await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert (case.text, case.stream.attempts, case.stream.record.outcome) == ("ab", 2, "done")


def test_an_answer_that_does_not_begin_is_given_up() -> None:
    case = Case(
        Answer([HANG]),
        Answer([b'{"choices":[{"message":{"content":"x"}}]}'], headers=JSON),
        body={**GREEDY, "stream": False},
        answer_timeout_s=0.01,
    )
    case.run()
    assert (case.stream.attempts, case.status, case.stream.record.outcome) == (2, 200, "done")


def test_an_answer_in_one_piece_is_counted() -> None:
    whole = {
        "id": "x",
        "model": "m",
        "usage": {"prompt_tokens": 11, "completion_tokens": 4},
        "choices": [{"finish_reason": "stop"}],
    }
    case = Case(Answer([json.dumps(whole).encode()], headers=JSON), body={**GREEDY, "stream": False}).run()
    assert (case.stream.tokens, case.stream.record.prompt_tokens, case.stream.record.outcome) == (4, 11, "done")
    assert case.headers["content-length"] == str(len(case.body))


def test_a_client_that_takes_nothing_is_gone_after_its_limit() -> None:
    case = Case(Answer([chunk("a", 1), chunk("b", 2, "stop"), DONE]), client_idle_s=120.0)
    blocked = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await blocked.wait()

    async def main() -> None:
        relay = case.start()
        relay.writer._send = send
        task = asyncio.create_task(relay.run())
        while not relay.writer.sending:
            await asyncio.sleep(0)
        now_s = time.monotonic()
        assert not relay.client_is_gone(now_s + 119.0)
        assert relay.client_is_gone(now_s + 121.0)
        relay.end_silent_upstream(now_s + 1e6)  # the engine is not to blame
        blocked.set()
        await asyncio.wait_for(task, 5)
        assert not relay.client_is_gone(now_s + 1e6), "nothing is being sent"

    asyncio.run(main())
    assert case.stream.attempts == 1


def test_without_an_engine_the_request_waits_for_one() -> None:
    case = Case(Answer([chunk("a", 1, "stop"), DONE]), replicas="")
    case.place = lambda _stream: [case.replica("c")]
    assert case.run().session.sent[0][0].startswith("http://c:1/")
    assert case.stream.record.outcome == "done"


def test_a_request_whose_only_engine_has_gone_waits_for_the_next() -> None:
    case = Case(Answer([b""]), Answer([chunk("a", 1, "stop"), DONE]), replicas="a")
    for replica in case.upstreams.replicas.values():
        replica.healthy = False
    case.place = lambda _stream: [case.replica("b")]
    assert case.run().stream.record.outcome == "done"
    assert case.session.sent[1][0].startswith("http://b:1/")


def test_when_no_engine_comes_the_request_is_refused() -> None:
    case = Case(replicas="")

    def refuse(_stream: Stream) -> list[Upstream]:
        raise no_replica(5.0)

    case.place = refuse
    case.run()
    assert (case.status, case.headers["x-andes-reason"], case.headers["retry-after"]) == (503, "no_replica", "5")
    assert (case.stream.record.outcome, case.stream.reason) == ("shed", "no_replica")


def test_a_paced_reader_gets_its_tokens_in_time_and_all_of_them() -> None:
    texts = [chunk(str(k), k + 1) for k in range(5)]
    case = Case(
        Answer([b"".join(texts), chunk("", 5, "stop"), DONE]), headers={"x-andes-pace": "on", "x-andes-tds": "200"}
    )
    case.run()
    assert (case.text, case.stream.reader.delivered, case.stream.record.outcome) == ("01234", 5, "done")


def test_a_report_comes_though_the_end_comes_by_itself() -> None:
    case = Case(Answer([chunk("a", 1), chunk("", 1, "stop"), DONE]), headers={"x-andes-report": "usage"}).run()
    assert (case.text, case.stream.record.outcome) == ("a", "done")
    assert case.body.count(DONE) == 1
    assert json.loads(case.body.split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]["andes"]["tokens"] == 1
