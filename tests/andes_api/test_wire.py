"""HTTP as it comes over a socket: old clients, half requests, clients that leave, compressed bodies, the end of the process."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from andes_sglang.bench.ports import free_port
from benchmarks.waiting import until

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "x", "max_tokens": 3, "stream": True}
JSON = b"content-type: application/json\r\n"


@contextlib.contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(60)
        yield client


def until_closed(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def said(server: Any, request: bytes) -> bytes:
    with connected(server) as client:
        client.sendall(request)
        return until_closed(client)


def post(content: bytes, more: bytes = b"", version: bytes = b"1.1") -> bytes:
    length = b"" if b"content-length" in more else b"content-length: %d\r\n" % len(content)
    return b"POST /v1/completions HTTP/" + version + b"\r\nhost: x\r\n" + JSON + length + more + b"\r\n" + content


def error_of(answer: bytes) -> dict[str, Any]:
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: " in head
    error = json.loads(content)["error"]
    assert isinstance(error, dict)
    return error


def test_http_1_0_gets_no_chunks(faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url)
    answer = said(server, post(json.dumps(BODY).encode(), version=b"1.0"))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert content.startswith(b"data: {")
    assert content.endswith(b"data: [DONE]\n\n")
    whole = said(server, post(json.dumps({**BODY, "stream": False}).encode(), b"connection: keep-alive\r\n", b"1.0"))
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["choices"]
    assert b"HTTP/1.1 200" in said(server, b"GET /livez HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding: chunked" in said(server, post(json.dumps(BODY).encode(), b"connection: close\r\n"))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-ty", b"408"),
        (b"\r\n", b""),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /li", b"408"),  # the second request never ends
        (b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{", b""),  # a body that is never read
    ],
)
def test_sockets_that_say_nothing_or_half(sent: bytes, status: bytes, faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url, head_timeout_s=0.2)
    with connected(server) as client:
        client.sendall(sent)
        if sent.startswith((b"GET", b"POST /livez")):
            assert client.recv(12) == (b"HTTP/1.1 200" if b"GET" in sent else b"HTTP/1.1 405")
            client.sendall(b"{")  # goes on dripping
        last = until_closed(client)
    assert (b"HTTP/1.1 408" in last) == (status == b"408")
    if status:
        assert error_of(b"HTTP/1.1 408" + last.partition(b"HTTP/1.1 408")[2])["message"]
    until(lambda: not server.server_state.connections)


def test_a_slow_stream_is_no_half_request(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, head_timeout_s=0.2)
    upstream.gap_s = 0.3
    assert said(server, post(json.dumps(BODY).encode(), b"connection: close\r\n")).endswith(b"0\r\n\r\n")


def test_what_is_too_long_is_refused_before_it_is_sent(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    answer = said(server, post(b"", b"content-length: 30000000\r\nexpect: 100-continue\r\n"))
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert b"connection: close" in answer
    wrong = said(server, post(b"", b"content-length: 9\r\ncontent-encoding: br\r\nexpect: 100-continue\r\n"))
    assert wrong.startswith(b"HTTP/1.1 415"), wrong
    with connected(server) as client:
        content = json.dumps(BODY).encode()
        length = b"content-length: %d\r\nexpect: 100-continue\r\nconnection: close\r\n" % len(content)
        client.sendall(post(b"", length))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(content)
        assert until_closed(client).startswith(b"HTTP/1.1 200")
    assert len(upstream.bodies) == 1


def test_a_refusal_reaches_a_client_that_is_still_sending(faulty: Any, gateway: Any) -> None:
    """As nginx does, which makes a 502 of a connection that is closed while it sends."""
    server = gateway(faulty().url, head_timeout_s=1)
    headers = {"content-type": "application/json", "connection": "close"}
    for kind, status in (("application/json", 413), ("text/plain", 415)):
        answer = httpx.post(
            server.url + "/v1/completions",
            content=b"x" * 30_000_000,
            headers={**headers, "content-type": kind},
            timeout=60,
        )
        assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)
    for request in (
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 5_000_000 + b"\r\n\r\n",
        b"nonsense\r\n" * 500_000,
        b"POST /nothing HTTP/1.0\r\ncontent-length: 6000000\r\n\r\n" + b"z" * 6_000_000,
    ):
        answer = said(server, request)
        assert answer[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"HTTP/1.1 404"), answer[:100]
        assert error_of(answer)["message"]
    until(lambda: not server.server_state.connections)
    with connected(server) as client:  # it never stops sending
        client.sendall(post(b"", b"content-length: 900000000\r\nconnection: close\r\n"))
        with pytest.raises(ConnectionError):
            drip(client)
    until(lambda: not server.server_state.connections)


def drip(client: socket.socket) -> None:
    while True:
        client.sendall(b"x" * 100)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("gzip", lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:])),
    ],
)
def test_compressed_bodies(encoding: str, compress: Any, faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, max_body_bytes=10_000)
    headers = {"content-type": "application/json", "content-encoding": encoding}

    def status(content: bytes) -> int:
        return httpx.post(server.url + "/v1/completions", content=content, headers=headers).status_code

    assert status(compress(json.dumps(BODY).encode())) == 200
    assert upstream.bodies[-1]["prompt"] == "x"
    assert status(compress(json.dumps(BODY).encode())[:-9]) == 400
    assert status(b"no such thing") == 400
    assert status(compress(b"") * 20) == 400  # a copy of the rest for each of them
    assert status(b"") == 400
    assert status(compress(json.dumps({**BODY, "prompt": "x" * 200_000}).encode())) == 413  # a bomb
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize(
    "content",
    [
        b'{"messages":' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"prompt":"x","tools":' + b'[{"a":' * 100 + b"1" + b"}]" * 100 + b"}",
        b'{"prompt":' + b"[" * 100_000,
        b'{"prompt":"x","stream":true,"n":1000000000}',
        b'{"prompt":"x","stream":true,"n":0}',
        b'{"prompt":"x","stream":true,"n":true}',
        b'{"prompt":"x","stream":true,"n":1.5}',
        b'{"prompt":"x","seed":' + b"9" * 400 + b"}",
        b'{"prompt":"x","temperature":NaN}',
        b'{"prompt":"x","temperature":-Infinity}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\xff\xfe"}',
        b'\xef\xbb\xbf{"prompt":"x"}',
        b"",
        b'{"prompt":"x"}{}',
        b'{"prompt":"x","stream_options":[]}',
        b'{"prompt":"x","service_tier":{}}',
        b'{"prompt":"x","custom_params":{"qoe":{"tds":' + b"9" * 300 + b"}}}",
    ],
    ids=lambda content: content[:44].decode("latin-1"),
)
def test_small_inputs_that_are_wrong(content: bytes, faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    answer = httpx.post(
        gateway(upstream.url).url + "/v1/chat/completions",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert not upstream.bodies


def test_what_is_odd_but_sound_is_served(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    prompts = {"prompt": ["a"] * 5000, "n": 128, "stream": True, "custom_params": {"qoe": {"tds": 200}}}
    for content, kind in (
        (b'{"prompt":"first","prompt":"x","max_tokens":2}', "application/json"),
        (b'{"prompt":"x","seed":18446744073709551615}', "Application/JSON; charset=UTF-8"),
        (json.dumps(prompts).encode(), 'application/json;charset="utf-8"'),
    ):
        answer = httpx.post(server.url + "/v1/completions", content=content, headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
    assert upstream.bodies[0]["prompt"] == "x"  # the last one of a name, to us and to the engine
    wrong = httpx.post(
        server.url + "/v1/completions", content=content, headers={"content-type": "application/json; charset=utf-16"}
    )
    assert wrong.status_code == 415


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"BREW /pot HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        post(b"{}", b"transfer-encoding: chunked\r\n"),
        post(b"", b"content-length: 2\r\ncontent-length: 3\r\n"),
        post(b"", b"content-length: 99999999999999999999999\r\n"),
        b"GET /livez HTTP/1.1\r\nhost: x\r\nbad name: 1\r\n\r\n",
    ],
)
def test_what_is_no_http(sent: bytes, faulty: Any, gateway: Any) -> None:
    answer = said(gateway(faulty().url), sent)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "offer",
    [
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",  # curl, Java
        b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n",
        b"upgrade: TLS/1.0\r\nconnection: upgrade\r\n",
    ],
)
def test_an_offer_of_another_protocol_is_not_taken_up(offer: bytes, faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    content = json.dumps({**BODY, "prompt": "x" * 100_000}).encode()
    request = post(content, offer)
    cut = request.index(b"pgrade: ") + 4
    with connected(server) as client:
        for part in (request[:cut], request[cut:-50], request[-50:]):  # in pieces, and twice on one connection
            client.sendall(part)
            time.sleep(0.02)
        first = b""
        while not first.endswith(b"\r\n0\r\n\r\n"):
            first += client.recv(65536)
        client.sendall(post(json.dumps(BODY).encode(), b"connection: close\r\n"))
        second = until_closed(client)
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")
    assert [len(body["prompt"]) for body in upstream.bodies] == [100_000, 1]
    assert said(server, b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_nonsense_behind_a_request_does_not_cut_its_answer(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 1
    server = gateway(upstream.url)
    with connected(server) as client:
        client.sendall(post(json.dumps(BODY).encode()))
        assert upstream.stalled.wait(60)
        client.sendall(b"\x00\x01 nonsense\r\n\r\n")
        upstream.release.set()
        answer = until_closed(client)
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), answer
    assert answer.count(b"HTTP/1.1") == 1


def test_a_head_that_is_too_long_asks_for_nothing(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, max_header_bytes=4096)
    answer = said(server, post(json.dumps(BODY).encode(), b"x: " + b"y" * 8192 + b"\r\n"))
    assert answer.startswith(b"HTTP/1.1 431"), answer
    assert error_of(answer)["message"]
    assert not upstream.bodies


def test_a_client_that_leaves_while_it_uploads(faulty: Any, gateway: Any, caplog: pytest.LogCaptureFixture) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    tasks = server.server_state.tasks
    for content in (b"", b'{"prompt": "', b"x" * 100_000):
        with connected(server) as client:
            client.sendall(post(content, b"content-length: 1000000\r\n"))
            until(lambda: tasks)
        until(lambda: not tasks)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert httpx.get(server.url + "/livez").status_code == 200


@pytest.mark.parametrize("fault", ["302", "303", "307"])
def test_a_redirection_is_a_fault_of_the_engine(fault: str, faulty: Any, gateway: Any) -> None:
    wrong, sound = faulty(), faulty()
    wrong.fault = fault
    server = gateway(wrong.url, sound.url, policy="round_robin")
    for _ in range(2):
        assert httpx.post(server.url + "/v1/completions", json=BODY).status_code == 200
    alone = httpx.post(gateway(wrong.url, hold_s=0).url + "/v1/completions", json={**BODY, "stream": False})
    assert (alone.status_code, alone.headers["x-andes-reason"]) == (502, "upstream")
    assert f"http_{fault}" in alone.json()["error"]["message"]


@pytest.mark.parametrize(("streams", "status"), [(1, 0), (0, 0), (2, 1)], ids=["drained", "idle", "cut"])
def test_sigterm(streams: int, status: int, faulty: Any) -> None:
    """What is new gets a 503 as long as a stream is open; the exit status says whether all have ended."""
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 1
    port, drain_s = free_port(), "300" if status == 0 else "0.5"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "andes_sglang.cli", "gateway", "--upstream", upstream.url, "--port", str(port)]
    process = subprocess.Popen([*command, "--drain-s", drain_s], stderr=subprocess.PIPE, text=True)
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stderr is not None
        next(line for line in process.stderr if "listens" in line)
        until(lambda: httpx.get(url + "/readyz").json()["engines"] == 1)
        held = [stack.enter_context(httpx.stream("POST", url + "/v1/completions", json=BODY)) for _ in range(streams)]
        process.send_signal(signal.SIGTERM)
        if streams == 1:
            until(lambda: httpx.get(url + "/readyz").status_code == 503)
            refused = httpx.post(url + "/v1/completions", json=BODY)  # on a new connection
            assert (refused.status_code, refused.headers["x-andes-reason"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
            upstream.release.set()
            assert "[DONE]" in held[0].read().decode()
        for cut in held if status else ():
            assert "shutdown" in cut.read().decode().partition('"error"')[2]
        _, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "Traceback" not in err


def test_requests_behind_each_other_are_answered_in_turn(faulty: Any, gateway: Any) -> None:
    """The second is read while the first is being answered: its pieces stay its own."""
    server = gateway(faulty().url)
    first, second = (json.dumps({**BODY, "prompt": name}).encode() for name in "ab")
    answers = said(server, post(first) + post(second, b"connection: close\r\n")).split(b"HTTP/1.1 200")[1:]
    assert len(answers) == 2
    for answer in answers:
        assert answer.count(b"data: [DONE]\n\n") == 1
        assert answer.endswith(b"\r\n0\r\n\r\n")
