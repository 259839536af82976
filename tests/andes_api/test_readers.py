"""Readers who cannot follow, over real sockets: the gateway knows how far they are, the engine waits for them."""

from __future__ import annotations

import array
import fcntl
import json
import re
import socket
import termios
import time
from typing import Any

import httpx
import pytest

from andes_api.connection import ACKNOWLEDGED_IS_KNOWN
from andes_api.receipt import Receipt
from andes_sglang.bench.engine import read_metrics
from benchmarks.waiting import until

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not ACKNOWLEDGED_IS_KNOWN, reason="what is acknowledged is known on Linux only"),
]
BODY: dict[str, Any] = {"model": "simulated", "prompt": "Tell me more.", "max_tokens": 60, "stream": True}
PARKED = 'andes_requests{state="parked"}'


class SlowReader:
    """A client with a small buffer, on a connection of its own, that reads when it is told to."""

    def __init__(self, port: int, max_tokens: int, **headers: str) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.settimeout(120)
        self.socket.connect(("127.0.0.1", port))
        body = json.dumps({**BODY, "max_tokens": max_tokens}).encode()
        head = {"host": "x", "content-type": "application/json", "content-length": str(len(body)), **headers}
        lines = ["POST /v1/completions HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + body)
        self.got = b""

    def read(self, size: int = 65536) -> bytes:
        data = self.socket.recv(size)
        self.got += data
        return data

    def read_what_is_there(self) -> None:
        """As much as this machine's kernel has for it now."""
        count = array.array("i", [0])
        fcntl.ioctl(self.socket.fileno(), termios.FIONREAD, count)
        there = len(self.got) + count[0]
        while len(self.got) < there:
            self.read(there - len(self.got))

    def read_to_end(self) -> None:
        while b"[DONE]" not in self.got and self.read():
            pass

    @property
    def events(self) -> list[dict[str, Any]]:
        """Those that are complete."""
        said = re.sub(rb"\r\n[0-9a-f]+\r\n|\r\n\r\n", b"\r\n", self.got)
        return [json.loads(event) for event in re.findall(rb"data: (\{.*\})\n\n", said)]

    @property
    def tokens(self) -> int:
        return sum(bool(event["choices"]) for event in self.events)

    @property
    def text(self) -> str:
        return "".join(event["choices"][0]["text"] for event in self.events if event["choices"])


def only_receipt(server: Any) -> Receipt:
    (stream,) = server.gateway.open
    receipt: Receipt = stream.receipt
    return receipt


def test_a_reader_who_stops_is_known_and_waited_for(simulated: Any, gateway: Any) -> None:
    """Its answer would take a minute; the engine pauses after some seconds of reading. Nothing depends on which."""
    engine = simulated("--speed", "0.3")
    server = gateway(engine.url, client_idle_s=600.0, keepalive_s=1.0)
    whole = httpx.post(server.url + "/v1/completions", json={**BODY, "stream": False, "max_tokens": 100}, timeout=120)
    slow = SlowReader(server.port, 3000, **{"x-andes-ttft-ms": "0", "x-andes-tds": "10"})
    slow.read(1)
    until(lambda: read_metrics(engine.url).get(PARKED) == 1.0)
    receipt = only_receipt(server)
    assert receipt.behind
    written = receipt.written_bytes
    until(lambda: receipt.written_bytes > written)  # comments go on
    assert "andes_gateway_readers_behind 1.0" in httpx.get(server.url + "/metrics").text
    quick = httpx.post(server.url + "/v1/completions", json=BODY, headers={"x-andes-report": "usage"}, timeout=120).text
    others = json.loads(quick.split("data: ")[-2])["usage"]["andes"]
    assert (others["tokens"], others["behind_s"]) == (60, 0.0)
    assert others["qoe"] == others["served_qoe"]
    said = receipt.reader.delivered
    slow.read_what_is_there()
    assert abs(said - slow.tokens) <= 3
    assert receipt.reader.qoe_at(time.monotonic()) < receipt.written.qoe_at(time.monotonic())
    while slow.tokens < 120:
        slow.read()
    assert slow.text.startswith(whole.json()["choices"][0]["text"])
    assert read_metrics(engine.url)['andes_preemptions_total{mode="park",reason="reader"}'] >= 1
    slow.socket.close()
    until(lambda: not server.gateway.open)
    until(lambda: read_metrics(engine.url)[PARKED] == 0.0)
    until(lambda: read_metrics(engine.url)["andes_request_qoe_count"] == 3.0)
    assert read_metrics(engine.url)["andes_request_qoe_sum"] > 2.8, (
        "of three: what its reader could not receive is no fault"
    )


def test_what_a_slow_reader_got_is_said_when_it_has_got_it(faulty: Any, gateway: Any) -> None:
    """The engine, which knows nothing of readers, was done long before: the gateway holds all of it, whatever the kernel takes."""
    upstream = faulty()
    upstream.words = 200
    server = gateway(upstream.url, model_aliases={"*": "m"})
    slow = SlowReader(server.port, 150, **{"x-andes-report": "usage", "x-andes-ttft-ms": "0", "x-andes-tds": "50"})
    slow.read(1)
    until(lambda: any(s.receipt.behind and s.tokens == 150 for s in list(server.gateway.open)))
    slow.read_to_end()
    report = slow.events[-1]["usage"]["andes"]
    assert report["tokens"] == 150
    assert report["behind_s"] > 0
    assert report["qoe"] < report["served_qoe"]
    until(lambda: not server.gateway.open)
    assert "andes_gateway_slow_readers_total 1.0" in httpx.get(server.url + "/metrics").text


def test_one_that_takes_nothing_more_is_dropped(simulated: Any, gateway: Any) -> None:
    """The engine pauses long before any buffer is full, so that nothing but the acknowledgements tells."""
    engine = simulated("--speed", "0.3")
    server = gateway(engine.url, client_idle_s=6.0, keepalive_s=0.5)
    slow = SlowReader(server.port, 3000, **{"x-andes-ttft-ms": "0", "x-andes-tds": "10"})
    slow.read(1)
    until(lambda: read_metrics(engine.url).get(PARKED) == 1.0)
    until(lambda: not server.gateway.open)
    until(lambda: read_metrics(engine.url)[PARKED] == 0.0)


def test_only_who_has_opened_a_stream_may_report_of_it(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 3
    keys = {"a": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",  # of "test"
            "b": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"}  # of "test2"  # fmt: skip
    tenants = [{"name": name, "key_sha256": key} for name, key in keys.items()]
    server = gateway(upstream.url, tenants=tenants, model_aliases={"*": "m"})
    own, other = ({"authorization": f"Bearer {key}"} for key in ("test", "test2"))

    def say(stream: str, headers: dict[str, str], **report: Any) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/streams/{stream}/reader", json=report, headers=headers)

    with httpx.stream("POST", server.url + "/v1/completions", json={**BODY, "max_tokens": 9}, headers=own) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        assert upstream.stalled.wait(60)
        stream = answer.headers["x-andes-stream"]
        assert say(stream, own, tokens=2, visible=False, at_s=3.5).status_code == 204
        wrong = say(stream, own, tokens="many")
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")
        assert "got 'many'" in wrong.text
        foreign, unknown = say(stream, other, tokens=2), say("0" * 32, own, tokens=2)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json() == unknown.json()
        assert stream not in foreign.text
        assert say(stream, {}, tokens=2).status_code == 401
        receipt = only_receipt(server)
        until(lambda: receipt.told_tokens == 2)
        assert say(stream, own, characters=6, visible=True).status_code == 204
        upstream.release.set()
        assert b"[DONE]" in b"".join(chunks)
    until(lambda: not server.gateway.open)
    assert say(stream, own, tokens=2).status_code == 404
    open_to_all = gateway(upstream.url, model_aliases={"*": "m"})
    upstream.release.clear()
    with httpx.stream("POST", open_to_all.url + "/v1/completions", json=BODY, headers={"x-api-key": "mine"}) as answer:
        stream, server = answer.headers["x-andes-stream"], open_to_all
        assert say(stream, {"x-api-key": "theirs"}, tokens=2).status_code == 404
        assert say(stream, {"x-api-key": "mine"}, tokens=2).status_code == 204
        upstream.release.set()
