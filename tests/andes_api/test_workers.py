"""A gateway of two processes on one port: it adds up, whichever process answers. Every test asks on connections of its own, which
the kernel spreads over the workers."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from andes_api.board import COUNTS_FOLDER, READY, Worker
from andes_api.settings import GatewaySettings, GatewaySettingsError, load
from andes_api.workers import _Supervisor
from benchmarks.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes share a port on Linux only")
KEY, FOREIGN, LIMITED, SLOW = ({"authorization": f"Bearer {key}"} for key in ("o", "f", "k", "s"))
ACME = {"name": "acme", "key_sha256": sha256(b"k").hexdigest(), "max_streams": 3, "output_tokens_per_minute": 10_000}
OTHER = {"name": "other", "key_sha256": sha256(b"o").hexdigest()}
ANOTHER = {"name": "another", "key_sha256": sha256(b"f").hexdigest()}
RARE = {"name": "rare", "key_sha256": sha256(b"s").hexdigest(), "requests_per_minute": 60}
WAIT_S = 120.0
TLS = ssl.create_default_context()  # once: a client makes its own otherwise


class Gateway:
    """``andes gateway --workers 2`` over two upstreams."""

    def __init__(self, folder: Path, *upstreams: Any, **settings: Any) -> None:
        self.upstreams = upstreams
        config = folder / "gateway.yaml"
        given = {"upstreams": [u.url for u in upstreams], "port": 0, "workers": 2, "drain_s": 60, **settings}
        config.write_text(json.dumps(given))
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "andes_sglang.cli", "gateway", "--config", str(config)], stdout=subprocess.DEVNULL,
                stderr=log,
            )  # fmt: skip
        line = self.wait_for("gateway listens on ")
        self.url = line.partition("listens on ")[2].split()[0]
        until(lambda: all(r["healthy"] for r in self.get("/fleet/replicas")["replicas"]))

    def wait_for(self, text: str) -> str:
        """The first line of the log with ``text``."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.log.read_text().splitlines() if text in line]
            assert self.process.poll() is None, self.log.read_text()
            return bool(found)

        until(look)
        return found[0]

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, headers=KEY, timeout=60, verify=TLS).json()

    def counts(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(self.url + "/metrics", timeout=60, verify=TLS).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    def ask(self, tokens: int = 3, headers: dict[str, str] = KEY, path: str = "/v1/chat/completions") -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": True}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60, verify=TLS)

    def has_ended(self, count: float) -> bool:
        """Whether that many requests have been put on record: a moment after their last byte, which another worker may not wait
        for."""
        return self.counts("andes_gateway_requests_total") >= count

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sorted(int(pid) for pid in children.split())

    def go_on(self) -> None:
        """Streams that stall end."""
        for upstream in self.upstreams:
            upstream.fault = None
            upstream.release.set()

    def end(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def gateway(lasting_faulty: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    upstreams = [lasting_faulty(), lasting_faulty()]
    found = Gateway(
        tmp_path_factory.mktemp("workers"), *upstreams, tenants=[ACME, OTHER, ANOTHER, RARE], policy="least_load"
    )
    yield found
    if found.process.poll() is None:
        assert found.end() == 0


@pytest.fixture
def streams() -> Iterator[Callable[..., list[httpx.Response]]]:
    """Opens streams that stall after three tokens, on connections of their own, until the test ends."""
    opened: list[Gateway] = []
    with ExitStack() as stack:

        def open_streams(gateway: Gateway, count: int, key: str) -> list[httpx.Response]:
            opened.append(gateway)
            for upstream in gateway.upstreams:
                upstream.release.clear()
                upstream.fault, upstream.after = "stall", 3
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "stream": True}
            found = []
            for _ in range(count):
                client = stack.enter_context(httpx.Client(timeout=60, verify=TLS))
                headers = {"authorization": f"Bearer {key}"}
                asked = client.stream("POST", gateway.url + "/v1/chat/completions", json=body, headers=headers)
                answer = stack.enter_context(asked)
                answer.rest = answer.iter_raw()  # type: ignore[attr-defined] - closes the answer when it is forgotten
                next(answer.rest)  # type: ignore[attr-defined]
                found.append(answer)
            return found

        yield open_streams
    for gateway in opened:
        gateway.go_on()
        if gateway.process.poll() is None:
            until(lambda gateway=gateway: gateway.counts("andes_gateway_streams") == 0)  # type: ignore[misc]


def test_figures_add_up_whichever_worker_answers(gateway: Gateway) -> None:
    before = len(gateway.get("/fleet/demand")["records"])
    counted = gateway.counts("andes_gateway_requests_total")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.ask(), range(32)))
    assert {a.status_code for a in answers} == {200}
    until(lambda: gateway.has_ended(counted + 32))
    for _ in range(8):  # on new connections, so that both are asked
        demand, qoe = gateway.get("/fleet/demand"), gateway.get("/fleet/qoe")
        assert len(demand["records"]) == before + 32
        arrivals = [record["arrival_s"] for record in demand["records"]]
        assert arrivals == sorted(arrivals)
        assert (demand["models"], demand["complete_since_s"]) == (["m"], None)
        assert qoe["all"]["count"] == qoe["models"]["m"]["all"]["count"] == before + 32
        assert qoe["ttft_s"]["all"]["count"] == qoe["models"]["m"]["stall_s"]["all"]["count"] == before + 32
        assert gateway.counts("andes_gateway_requests_total") == counted + 32
        assert gateway.counts("andes_gateway_time_to_first_token_seconds_count") == counted + 32
        replicas = gateway.get("/fleet/replicas")["replicas"]
        assert [r["name"] for r in replicas] == [u.url.removeprefix("http://") for u in gateway.upstreams]
        (kind,) = gateway.get("/fleet/summary")["windows"][0]["kinds"]
        assert kind["done"] == before + 32


def test_streams_are_spread_as_by_one(gateway: Gateway, streams: Any) -> None:
    streams(gateway, 8, "o")
    for _ in range(4):
        replicas = gateway.get("/fleet/replicas")["replicas"]
        assert [r["streams"] for r in replicas] == [4, 4], "each worker sees what the other has placed"
        assert gateway.counts("andes_gateway_streams") == 8
        assert gateway.counts("andes_gateway_replica_streams") == 8


def test_a_tenant_has_its_streams_once(gateway: Gateway, streams: Any) -> None:
    answers = streams(gateway, 8, "k")
    assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 5}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["x-andes-reason"] == "tenant_streams"


def test_a_tenant_has_its_requests_once(gateway: Gateway) -> None:
    began_s = time.monotonic()
    statuses = Counter(gateway.ask(1, SLOW).status_code for _ in range(20))
    more = int(time.monotonic() - began_s) + 1  # one a second comes back
    assert 6 <= statuses[200] <= 6 + more, "a burst of six, of both workers together"
    assert statuses[200] + statuses[429] == 20


def test_output_tokens_are_charged_once(gateway: Gateway) -> None:
    counted = gateway.counts("andes_gateway_requests_total")
    gateway.ask(2000, LIMITED)
    until(lambda: gateway.has_ended(counted + 1))
    left = {int(gateway.ask(1, LIMITED).headers["x-ratelimit-remaining-output-tokens"]) for _ in range(6)}
    assert max(left) < 10_000, "whichever worker has served them"


def test_an_engine_is_drained_by_all(gateway: Gateway) -> None:
    first, second = gateway.upstreams
    path = "/fleet/replicas/" + first.url.removeprefix("http://") + "/drain"
    assert httpx.post(gateway.url + path, verify=TLS).json()["draining"] is True
    asked = len(first.bodies), len(second.bodies)
    for _ in range(12):
        assert gateway.ask().status_code == 200
    assert (len(first.bodies) - asked[0], len(second.bodies) - asked[1]) == (0, 12)
    assert httpx.post(gateway.url + path, params={"drained": "false"}, verify=TLS).json()["draining"] is False
    assert httpx.post(gateway.url + "/fleet/replicas/none/drain", verify=TLS).status_code == 404


def test_a_response_is_found_through_any_worker(gateway: Gateway) -> None:
    counted = gateway.counts("andes_gateway_requests_total")
    body = {"model": "m", "input": "hi", "stream": True}
    answer = httpx.post(gateway.url + "/v1/responses", json=body, headers=KEY, timeout=60, verify=TLS)
    until(lambda: gateway.has_ended(counted + 1))
    (response_id,) = {f"resp_{id(u)}" for u in gateway.upstreams if f"resp_{id(u)}" in answer.text}
    for _ in range(8):
        assert gateway.get(f"/v1/responses/{response_id}")["id"] == response_id
        foreign = httpx.get(f"{gateway.url}/v1/responses/{response_id}", headers=FOREIGN, verify=TLS)
        assert foreign.status_code == 404


def test_a_worker_that_dies_is_replaced_and_nothing_counts_backwards(gateway: Gateway, streams: Any) -> None:
    streams(gateway, 3, "k")
    counted = gateway.counts("andes_gateway_requests_total")
    path = "/fleet/replicas/" + gateway.upstreams[0].url.removeprefix("http://") + "/drain"
    httpx.post(gateway.url + path, verify=TLS)
    before = gateway.workers()
    for pid in before:  # one after the other, so that one always knows what is drained
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: pid not in gateway.workers() and len(gateway.workers()) == 2)  # type: ignore[misc]
        until(lambda pid=pid: gateway.log.read_text().count("is there again") == before.index(pid) + 1)  # type: ignore[misc]
    assert "has ended by signal 9; another takes its place" in gateway.log.read_text()
    assert gateway.counts("andes_gateway_requests_total") >= counted
    gateway.go_on()
    for _ in range(4):
        assert gateway.ask(3, LIMITED).status_code == 200, (
            "the streams of the dead are no longer held against their tenant"
        )
        assert gateway.get("/fleet/replicas")["replicas"][0]["draining"] is True
        assert gateway.get("/fleet/demand")["complete_since_s"] is not None
    httpx.post(gateway.url + path, params={"drained": "false"}, verify=TLS)


def test_sigterm_ends_all_once_streams_have_ended(faulty: Any, streams: Any, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, faulty(), faulty())
    opened = streams(gateway, 6, "o")
    gateway.process.send_signal(signal.SIGTERM)
    until(lambda: gateway.ask().headers.get("x-andes-reason") == "draining")
    assert {httpx.get(gateway.url + "/readyz", verify=TLS).status_code for _ in range(8)} == {503}, "all of them"
    gateway.go_on()
    for answer in opened:
        assert b"".join(answer.rest).endswith(b"data: [DONE]\n\n")
    assert gateway.process.wait(60) == 0
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(gateway.url.rpartition(":")[2])))


def test_a_worker_whose_supervisor_has_gone_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT_S)
    command = [sys.executable, "-m", "andes_api.worker"]
    with subprocess.Popen(command, stdin=theirs.fileno(), env={**os.environ, COUNTS_FOLDER: str(tmp_path)}) as process:
        theirs.close()
        settings = load(upstreams=["http://127.0.0.1:1"], workers=2, port=0)
        ours.sendall(pickle.dumps((settings, Worker(tmp_path, 2, 1))))
        assert ours.recv(1) == READY
        ours.close()
        assert process.wait(WAIT_S) == 0


def test_several_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(GatewaySettingsError, match="workers: several share a port on Linux only, got 2"):
        load(upstreams=["http://engine:1"], workers=2)
    assert load(upstreams=["http://engine:1"], workers=1).workers == 1
    assert type(load(upstreams=["http://engine:1"])) is GatewaySettings, "it can be sent to another process"


@pytest.mark.parametrize(("program", "status"), [("/bin/false", 1), ("/no/such/program", 1)])
def test_a_worker_that_never_asks_what_to_do_does_not_end_the_others(
    program: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is killed while it starts, or that there is no memory for."""

    async def run() -> int:
        return await _Supervisor(GatewaySettings(upstreams=("http://127.0.0.1:9",)), tmp_path)._one(Worker(tmp_path, 2))

    monkeypatch.setattr(sys, "executable", program)
    assert asyncio.run(run()) == status
