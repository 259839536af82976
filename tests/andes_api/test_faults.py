"""What goes wrong upstream and in clients, over real HTTP: others do not notice, nothing leaks, errors are clean."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dns.rcode
import httpx
import pytest

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "say", "max_tokens": 6, "temperature": 0, "stream": True}
CHAT: dict[str, Any] = {
    "model": "m", "messages": [{"role": "user", "content": "say"}], "max_tokens": 6, "temperature": 0, "stream": True,
}  # fmt: skip
ANSWER = "".join(f"w{k} x" for k in range(6))


def stream(
    url: str, body: dict[str, Any] | None = None, *, strike: Any = None, **headers: str
) -> tuple[httpx.Response, list[Any]]:
    """The answer and its events as a client that expects only standard chunks reads them. ``strike``: an upstream that
    misbehaves after three words, to be told when they have been read."""
    body = body or BODY
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    content = ""
    if strike is not None:
        strike.strike = threading.Event()
    with httpx.stream("POST", url + path, json=body, headers=headers, timeout=60) as answer:
        for part in answer.iter_text():
            content += part
            if strike is not None and "w2 x" in content:
                strike.strike.set()
    events = [line[6:] for line in content.split("\n\n") if line.startswith("data: ")]
    whole = httpx.Response(answer.status_code, headers=answer.headers, content=content.encode())
    return whole, [event if event == "[DONE]" else json.loads(event) for event in events]


def text_of(events: list[Any]) -> str:
    choices = [c for e in events if e != "[DONE]" for c in e.get("choices", ())]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def idle(server: Any) -> bool:
    """Whether the gateway holds nothing any more: no stream, no relay, none at any replica."""
    gateway = server.app.state.gateway
    replicas = gateway.upstreams.replicas.values()
    return not gateway.open and not any(r.streams or r._decoding for r in replicas)


def becomes_idle(server: Any) -> bool:
    deadline_s = time.monotonic() + 60
    while not idle(server) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    return idle(server)


def last_record(server: Any) -> dict[str, Any]:
    return dict(httpx.get(server.url + "/fleet/demand").json()["records"][-1])


@pytest.mark.parametrize("fault", ["hang up", "503", "500", "die", "garbage", "error", "half", "no stream"])
def test_a_stream_that_has_not_begun_is_tried_elsewhere(fault: str, faulty: Any, gateway: Any) -> None:
    bad, good = faulty(), faulty()
    bad.fault = fault
    server = gateway(bad.url, good.url, policy="round_robin")
    for _ in range(4):
        answer, events = stream(server.url)
        assert answer.status_code == 200
        assert text_of(events) == ANSWER
        assert events[-1] == "[DONE]"
    assert bad.bodies
    assert becomes_idle(server)


@pytest.mark.parametrize("fault", ["die", "half", "garbage", "error"])
@pytest.mark.parametrize("body", [BODY, CHAT], ids=["completion", "chat"])
@pytest.mark.parametrize("pace", ["off", "on"])
def test_a_stream_that_has_begun_goes_on_elsewhere(
    fault: str, body: dict[str, Any], pace: str, faulty: Any, gateway: Any
) -> None:
    bad, good = faulty(), faulty()
    bad.fault, bad.after = fault, 3
    server = gateway(bad.url, good.url, policy="round_robin")
    asked = {**body, "stream_options": {"include_usage": True}}
    _, events = stream(server.url, asked, strike=bad, **{"x-andes-pace": pace, "x-andes-tds": "100"})
    assert text_of(events) == ANSWER
    assert len({e["id"] for e in events[:-1]}) == 1
    assert sum(bool(c.get("delta", {}).get("role")) for e in events[:-1] for c in e["choices"]) == ("messages" in body)
    assert events[-2]["usage"]["completion_tokens"] == 6
    assert good.bodies[0]["max_tokens"] == 3
    assert last_record(server)["outcome"] == "done"
    assert last_record(server)["output_tokens"] == 6
    assert becomes_idle(server)


@pytest.mark.parametrize(
    "unlike", [{"temperature": 0.7}, {"logprobs": 1}, {"regex": "w+"}, {"n": 2}], ids=lambda u: next(iter(u))
)
def test_a_stream_that_cannot_go_on_ends_with_an_error_in_the_stream(
    unlike: dict[str, Any], faulty: Any, gateway: Any
) -> None:
    bad, good = faulty(), faulty()
    bad.fault, bad.after = "die", 3
    server = gateway(bad.url, good.url, policy="round_robin")
    answer, events = stream(server.url, {**BODY, **unlike}, strike=bad)
    assert answer.status_code == 200
    assert text_of(events) == "w0 xw1 xw2 x"
    assert events[-1]["error"]["code"] == "upstream_error"
    assert not good.bodies
    assert last_record(server)["outcome"] == "failed"
    assert last_record(server)["qoe"] == 0.0


def test_only_one_engine_and_it_fails(faulty: Any, gateway: Any) -> None:
    bad = faulty()
    server = gateway(bad.url)
    bad.fault = "hang up"
    answer, _ = stream(server.url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert answer.headers["retry-after"] == "1"
    bad.fault = "500"
    answer, _ = stream(server.url)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "said so")
    assert becomes_idle(server)


def test_a_replica_that_fails_is_left_alone(faulty: Any, gateway: Any) -> None:
    bad, good = faulty(), faulty()
    bad.fault = "hang up"
    server = gateway(bad.url, good.url, policy="round_robin", breaker_failures=2, breaker_cooldown_s=600)
    for _ in range(10):
        assert stream(server.url)[0].status_code == 200
    assert len(bad.bodies) == 2
    metrics = httpx.get(server.url + "/metrics").text
    assert "andes_gateway_retries_total 2.0" in metrics


def test_a_silent_engine_is_given_up(faulty: Any, gateway: Any) -> None:
    silent, good = faulty(), faulty()
    silent.fault, silent.after = "stall", 2
    server = gateway(silent.url, good.url, policy="round_robin", stream_idle_s=0.5)
    _, events = stream(server.url)
    assert text_of(events) == ANSWER
    assert silent.cancelled.wait(60)
    assert becomes_idle(server)


def test_a_client_that_leaves_cancels_upstream_and_others_do_not_notice(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 2
    server = gateway(upstream.url)
    with httpx.stream("POST", server.url + "/v1/completions", json=BODY, timeout=60) as leaving:
        lines = leaving.iter_lines()
        assert next(lines).startswith("data: ")
        assert upstream.stalled.wait(60)
        upstream.fault = None
        assert text_of(stream(server.url)[1]) == ANSWER
    assert upstream.cancelled.wait(60)
    assert becomes_idle(server)
    outcomes = [r["outcome"] for r in httpx.get(server.url + "/fleet/demand").json()["records"]]
    assert outcomes == ["abandoned", "done"]


def test_a_slow_client_holds_back_its_own_engine_only(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.words = 20_000
    server = gateway(upstream.url, send_buffer_bytes=16_384)
    long = {**BODY, "max_tokens": 4000}  # 80 MB
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    content = json.dumps(long).encode()
    slow.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        + str(len(content)).encode() + b"\r\n\r\n" + content
    )  # fmt: skip
    assert slow.recv(100).startswith(b"HTTP/1.1 200")
    (relay,) = server.app.state.gateway._relays.values()
    before = -1
    while before != upstream.sent_bytes or not relay.writer.sending:  # until nothing moves any more
        before = upstream.sent_bytes
        time.sleep(0.3)
    assert upstream.sent_bytes < 12_000_000  # kernel buffers on loopback, not our memory
    assert text_of(stream(server.url, {**BODY, "max_tokens": 1})[1]).startswith("w0 ")
    slow.close()
    assert becomes_idle(server)


def test_a_client_that_never_reads_is_dropped(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.words = 20_000
    server = gateway(upstream.url, send_buffer_bytes=16_384, client_idle_s=0.5)
    content = json.dumps({**BODY, "max_tokens": 4000}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
            + str(len(content)).encode() + b"\r\n\r\n" + content
        )  # fmt: skip
        assert upstream.cancelled.wait(60)
        assert becomes_idle(server)
    assert last_record(server)["outcome"] == "abandoned"


def test_an_engine_that_drains_gets_nothing_new_and_keeps_what_it_has(faulty: Any, gateway: Any) -> None:
    leaving, staying = faulty(), faulty()
    leaving.fault, leaving.after = "stall", 2
    server = gateway(leaving.url, staying.url, policy="round_robin")
    with httpx.stream("POST", server.url + "/v1/completions", json=BODY, timeout=60) as held:
        assert leaving.stalled.wait(60)
        name = leaving.url.removeprefix("http://")
        assert httpx.post(f"{server.url}/fleet/replicas/{name}/drain").json()["draining"] is True
        for _ in range(4):
            assert stream(server.url)[0].status_code == 200
        assert (len(leaving.bodies), len(staying.bodies)) == (1, 4)
        leaving.release.set()
        assert text_of([json.loads(x[6:]) for x in held.iter_lines() if x.startswith("data: {")]) == ANSWER
    httpx.post(f"{server.url}/fleet/replicas/{name}/drain?drained=false")
    leaving.fault = None
    for _ in range(2):
        stream(server.url)
    assert len(leaving.bodies) == 2


def test_no_engine_at_all(gateway: Any) -> None:
    server = gateway("http://127.0.0.1:9", hold_s=0.2)
    for body in (BODY, {**BODY, "stream": False}):
        answer = httpx.post(server.url + "/v1/completions", json=body)
        assert answer.status_code == 503
        assert answer.headers["x-andes-reason"] == "no_replica"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert answer.elapsed.total_seconds() >= 0.2
        assert last_record(server)["outcome"] == "shed"
    assert last_record(server)["qoe"] is None
    ready = httpx.get(server.url + "/readyz")  # or else nobody would come, and no engine either
    assert (ready.status_code, ready.json()) == (200, {"status": "no engine", "engines": 0, "held": 0, "failing": {}})
    metrics = httpx.get(server.url + "/metrics").text
    assert 'andes_gateway_shed_total{class="reading",model="",reason="no_replica"} 2.0' in metrics
    assert becomes_idle(server)


def test_models_are_still_known_when_there_is_no_engine_left(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, health_interval_s=0.05)
    while not server.app.state.gateway.upstreams.catalog.models:  # it asks by itself
        time.sleep(0.01)
    upstream.healthy = False
    while httpx.get(server.url + "/readyz").json()["engines"]:
        time.sleep(0.01)
    assert [m["id"] for m in httpx.get(server.url + "/v1/models").json()["data"]] == ["m"]
    assert httpx.get(server.url + "/v1/models/m").json()["id"] == "m"
    assert httpx.get(server.url + "/v1/models/n").status_code == 404
    never = gateway("http://127.0.0.1:9")
    assert httpx.get(never.url + "/v1/models").status_code == 503


def test_only_so_many_wait_for_an_engine(gateway: Any) -> None:
    server = gateway("http://127.0.0.1:9", hold_s=60, max_held=2)
    held = server.app.state.gateway

    async def main() -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            ask = functools.partial(client.post, server.url + "/v1/completions", json=BODY)
            tasks = [asyncio.create_task(ask()) for _ in range(2)]
            while held.held < 2:
                await asyncio.sleep(0.01)
            refused = await ask()
            assert (refused.status_code, refused.headers["x-andes-reason"]) == (503, "no_replica")
            assert "2 requests already wait" in refused.json()["error"]["message"]
            tasks[0].cancel()  # its client goes
            while held.held > 1:
                await asyncio.sleep(0.01)
            held.draining = True  # as SIGTERM does
            told = await tasks[1]
            assert (told.status_code, told.headers["x-andes-reason"]) == (503, "draining")

    asyncio.run(main())
    outcomes = sorted(r["outcome"] for r in httpx.get(server.url + "/fleet/demand").json()["records"])
    assert outcomes == ["abandoned", "shed", "shed"]
    assert becomes_idle(server)


def test_a_gateway_that_shuts_down_finishes_its_streams(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 2
    server = gateway(upstream.url)
    with httpx.Client(timeout=60) as kept, httpx.stream(
        "POST", server.url + "/v1/completions", json=BODY, timeout=60
    ) as held:  # fmt: skip
        assert kept.get(server.url + "/readyz").status_code == 200
        assert upstream.stalled.wait(60)
        server.app.state.gateway.draining = True
        answer = kept.post(server.url + "/v1/completions", json=BODY)
        assert (answer.status_code, answer.headers["x-andes-reason"]) == (503, "draining")
        server.should_exit = True  # as SIGTERM does, after draining is set
        upstream.release.set()
        assert "[DONE]" in held.read().decode()


def test_a_name_is_looked_up_again(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    port = upstream.url.rpartition(":")[2]
    server = gateway(f"dns://localhost:{port}", dns_interval_s=0.1)
    answer, events = stream(server.url)
    assert answer.status_code == 200, answer.text
    assert text_of(events) == ANSWER
    upstreams = server.app.state.gateway.upstreams
    assert f"http://127.0.0.1:{port}" in upstreams.replicas
    upstreams._names = {"dns://name.invalid:80": None}  # resolves no more: keeps nothing of another name
    upstreams._resolved.clear()
    deadline_s = time.monotonic() + 60
    while upstreams.replicas and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not upstreams.replicas


def test_engines_come_and_go_behind_a_name(faulty: Any, gateway: Any, name_server: Any) -> None:
    one = faulty("127.0.0.1")
    port = int(one.url.rpartition(":")[2])
    two, three = faulty("127.0.0.2", port), faulty("127.0.0.3", port)
    name_server.addresses = ["127.0.0.1", "127.0.0.2"]
    server = gateway(
        f"dns://engines.test:{port}", dns_server=name_server.address, dns_interval_s=0.05, policy="round_robin"
    )

    def listed() -> set[str]:
        found = httpx.get(server.url + "/fleet/replicas").json()["replicas"]
        return {"http://" + r["name"] for r in found if not r["draining"]}

    def becomes(urls: set[str]) -> None:
        deadline_s = time.monotonic() + 60
        while listed() != urls and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert listed() == urls

    def asked_again() -> None:
        while name_server.asked.acquire(blocking=False):
            pass
        for _ in range(6):  # the first of these may have been answered before
            assert name_server.asked.acquire(timeout=60)

    assert listed() == {one.url, two.url}
    for _ in range(4):
        assert stream(server.url)[0].status_code == 200
    assert (len(one.bodies), len(two.bodies)) == (2, 2)
    name_server.addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    becomes({one.url, two.url, three.url})
    for _ in range(3):
        assert stream(server.url)[0].status_code == 200
    assert [len(u.bodies) for u in (one, two, three)] == [3, 3, 1]

    one.fault, one.after = "stall", 2
    with ThreadPoolExecutor() as pool:
        held = [pool.submit(stream, server.url) for _ in range(3)]
        assert one.stalled.wait(60)
        name_server.addresses = ["127.0.0.2", "127.0.0.3"]
        becomes({two.url, three.url})
        assert one.url in server.app.state.gateway.upstreams.replicas
        for _ in range(4):
            assert stream(server.url)[0].status_code == 200
        one.release.set()
        assert [text_of(events.result()[1]) for events in held] == [ANSWER] * 3
    assert len(one.bodies) == 4
    deadline_s = time.monotonic() + 60
    while one.url in server.app.state.gateway.upstreams.replicas and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert one.url not in server.app.state.gateway.upstreams.replicas

    name_server.rcode = dns.rcode.SERVFAIL
    asked_again()
    assert listed() == {two.url, three.url}
    name_server.rcode = dns.rcode.NXDOMAIN
    becomes(set())
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(stream, server.url)
        while httpx.get(server.url + "/readyz").json()["held"] != 1:
            assert not waiting.done()
        name_server.rcode, name_server.addresses = dns.rcode.NOERROR, ["127.0.0.3"]
        assert text_of(waiting.result()[1]) == ANSWER
    assert listed() == {three.url}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/v1/messages", "messages"),
        ("/v1/responses", "input"),
    ],
)
def test_a_fault_of_the_gateway_itself_is_said_in_a_stream_that_has_begun(
    path: str, field: str, faulty: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = CHAT["messages"] if field == "messages" else "say"
    body = {"model": "m", field: said, "max_tokens": 6, "stream": True}
    server = gateway(faulty().url)
    monkeypatch.setattr("andes_api.attempt.Attempt._write_end", lambda *_, **__: 1 / 0)
    answer = httpx.post(server.url + path, json=body, headers={"x-request-id": "mine"}, timeout=60)
    assert "w5 x" in answer.text or "w5 " in answer.text
    assert "a fault of the gateway; its log tells of mine" in answer.text.rpartition("data:")[2]
    assert "request mine failed" in caplog.text
    assert becomes_idle(server)


@pytest.mark.timeout(600)
def test_a_thousand_streams_at_once_leave_nothing_behind(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 1
    slow_machine = dict.fromkeys(("stream_idle_s", "health_interval_s", "load_interval_s", "connect_timeout_s"), 500)
    server = gateway(upstream.url, admission=False, **slow_machine)
    count = 1000

    async def one(client: httpx.AsyncClient) -> str:
        answer = await client.post(server.url + "/v1/completions", json={**BODY, "max_tokens": 3})
        return answer.text

    async def main() -> list[str]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(timeout=500, limits=limits) as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(count)]
            gateway_open = server.app.state.gateway.open
            while len(gateway_open) < count or not all(s.tokens for s in list(gateway_open)):
                await asyncio.sleep(0.02)
            upstream.release.set()
            return await asyncio.gather(*tasks)

    texts = asyncio.run(main())
    assert len(texts) == count
    assert all(t.endswith("data: [DONE]\n\n") and t.count("data: {") == 3 for t in texts)
    assert becomes_idle(server)
    figures = httpx.get(server.url + "/fleet/qoe").json()
    assert figures["all"]["count"] == count
    assert figures["running"] == {}
