"""What runs in the background fails out loud and starts again; what depends on it goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from andes_api import background
from andes_api.background import Background

BODY: dict[str, Any] = {"model": "m", "prompt": "say", "max_tokens": 6, "temperature": 0, "stream": True}


def count(tasks: Counter, name: str) -> float:
    return sum(
        s.value for f in tasks.collect() for s in f.samples if s.labels.get("task") == name and "total" in s.name
    )


def test_a_task_that_fails_starts_again_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RESTART_S", 0.0)
    failures, runs, done = Counter("f", "f", ["task"], registry=CollectorRegistry()), 0, asyncio.Event()

    async def task() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            raise KeyError("broken")
        done.set()
        await asyncio.Event().wait()

    async def main() -> None:
        tasks = Background(failures)
        tasks.start("probe", task)
        await asyncio.wait_for(done.wait(), 60)
        assert tasks.failing() == {"probe": "KeyError: 'broken'"}
        monkeypatch.setattr(background, "MEMORY_S", 0.0)
        assert tasks.failing() == {}
        await tasks.stop()

    with caplog.at_level(logging.ERROR, "andes"):
        asyncio.run(main())
    assert count(failures, "probe") == 3
    assert [r.message for r in caplog.records] == ["probe failed and is tried again: KeyError: 'broken'"]
    assert caplog.records[0].exc_info


def test_a_task_that_returns_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RESTART_S", 0.0)
    runs = asyncio.Semaphore(0)

    async def task() -> None:
        runs.release()

    async def main() -> None:
        tasks = Background(Counter("f", "f", ["task"], registry=CollectorRegistry()))
        tasks.start("sweep", task)
        for _ in range(3):
            await asyncio.wait_for(runs.acquire(), 60)
        await tasks.stop()

    asyncio.run(main())


@pytest.mark.server
@pytest.mark.parametrize(
    "content", [b"classes: {reading: {tds: 2024-13-45}}", b"classes: [", b"\xff", b"classes: {reading: {tds: fast}}"]
)
def test_classes_that_cannot_be_read_stop_no_idle_limit(
    content: bytes, faulty: Any, gateway: Any, tmp_path: Path
) -> None:
    silent, good = faulty(), faulty()
    silent.fault, silent.after = "stall", 2
    file = tmp_path / "classes.yaml"
    server = gateway(silent.url, good.url, policy="round_robin", stream_idle_s=0.5, classes_file=str(file))
    file.write_bytes(content)
    deadline_s = time.monotonic() + 60
    while "classes" not in httpx.get(server.url + "/readyz").json()["failing"] and time.monotonic() < deadline_s:
        time.sleep(0.02)
    ready = httpx.get(server.url + "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert list(ready.json()["failing"]) == ["classes"]
    answer = httpx.post(server.url + "/v1/completions", json=BODY, timeout=60)
    assert "w5 x" in answer.text
    assert 'andes_gateway_task_failures_total{task="classes"}' in httpx.get(server.url + "/metrics").text
    file.write_text("classes: {reading: {tds: 6}}")
    while server.app.state.gateway.settings.classes["reading"].tds != 6 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert server.app.state.gateway.settings.classes["reading"].tds == 6


@pytest.mark.server
def test_a_gateway_whose_streams_are_not_watched_is_not_ready(faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url)
    running = server.app.state.gateway
    running._relays[object()] = None  # a fault of ours
    deadline_s = time.monotonic() + 60
    while "sweep" not in running.background.failing() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert httpx.get(server.url + "/readyz").json()["status"] == "degraded"
    running._swept_s -= 60.0
    ready = httpx.get(server.url + "/readyz")
    assert (ready.status_code, ready.headers["x-andes-reason"]) == (503, "background")
    assert "AttributeError" in ready.json()["error"]["message"]
    running._relays.clear()
    while httpx.get(server.url + "/readyz").status_code != 200 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert httpx.get(server.url + "/readyz").status_code == 200


@pytest.mark.server
def test_a_probe_that_fails_goes_on(faulty: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = faulty()
    server = gateway(upstream.url, load_interval_s=0.05)
    replica = next(iter(server.app.state.gateway.upstreams.replicas.values()))

    def fail(_now_s: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(replica, "observe_pace", fail)
    deadline_s = time.monotonic() + 60
    while "probe" not in httpx.get(server.url + "/readyz").json()["failing"] and time.monotonic() < deadline_s:
        time.sleep(0.02)
    monkeypatch.undo()
    upstream.healthy = False
    while httpx.get(server.url + "/readyz").json()["engines"] and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert httpx.get(server.url + "/readyz").json()["engines"] == 0
