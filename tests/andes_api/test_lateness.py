"""A process that did not listen learns nothing from silence: its own lateness is told apart from an engine's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from andes_api import lateness, upstreams
from andes_api.background import Background
from andes_api.lateness import Lateness
from andes_api.metrics import GatewayMetrics
from andes_api.settings import GatewaySettings
from andes_api.upstream import Upstream
from andes_api.upstreams import Upstreams

LATE_S = 0.6
PROBE_S = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "TICK_S", 0.01)
    monkeypatch.setattr(upstreams, "PROBE_TIMEOUT_S", PROBE_S)


def test_silence_counts_for_as_long_as_it_was_listened_to() -> None:
    told: list[float] = []

    async def main() -> None:
        clock = Lateness(told.append)
        clock.start()
        listened = clock.asked()
        time.sleep(LATE_S)
        await asyncio.sleep(0.02)
        assert not listened()
        assert clock.total_s == pytest.approx(sum(told))
        assert sum(told) > LATE_S - 0.02
        listened = clock.asked()
        await asyncio.sleep(0.02)
        while not listened():  # on a machine that is late itself
            await asyncio.sleep(0.01)
        clock.stop()

    asyncio.run(main())


class Engine:
    """Answers probes until it is told to be silent."""

    def __init__(self) -> None:
        self.silent = False
        self.asked = asyncio.Event()
        self.path = ""

    async def answer(self, request: web.Request) -> web.Response:
        if self.silent and request.path == self.path:
            self.asked.set()
            await asyncio.Event().wait()
        body = {"loads": []} if request.path == "/v1/loads" else {"object": "list", "data": []}
        return web.json_response(body)


def run(test: Callable[[Engine, Upstreams, Upstream], Awaitable[None]], path: str) -> None:
    async def main() -> None:
        engine = Engine()
        engine.path = path
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", engine.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        settings = GatewaySettings(upstreams=[f"http://127.0.0.1:{port}"], health_interval_s=0.1)
        background = Background(GatewayMetrics().task_failures)
        async with aiohttp.ClientSession() as session:
            fleet = Upstreams(settings, session=session, background=background)
            fleet.lateness.start()
            try:
                await test(engine, fleet, next(iter(fleet.replicas.values())))
            finally:
                fleet.lateness.stop()
                await background.stop()
        await runner.cleanup()

    asyncio.run(main())


async def stand_still(engine: Engine) -> None:
    """From when the engine has been asked, for longer than it has time to answer."""
    await engine.asked.wait()
    time.sleep(4 * PROBE_S)


def test_a_probe_that_timed_out_while_nobody_listened_says_nothing() -> None:
    async def test(engine: Engine, fleet: Upstreams, replica: Upstream) -> None:
        assert await fleet._health(replica)
        assert replica.healthy
        engine.silent = True
        probe = asyncio.create_task(fleet._health(replica))
        await stand_still(engine)
        assert not await probe
        assert (replica.healthy, replica.unanswered_since_s) == (True, None)

    run(test, "/health")


def test_a_question_for_load_that_timed_out_while_nobody_listened_says_nothing() -> None:
    async def test(engine: Engine, fleet: Upstreams, replica: Upstream) -> None:
        engine.silent = True
        probe = asyncio.create_task(fleet._load(replica))
        await stand_still(engine)
        assert await probe
        assert replica.unanswered_since_s is None

    run(test, "/v1/loads")


@pytest.mark.parametrize("path", ["/health", "/v1/loads"])
def test_an_engine_that_is_listened_to_and_says_nothing_is_down(path: str) -> None:
    async def test(engine: Engine, fleet: Upstreams, replica: Upstream) -> None:
        assert await fleet._health(replica)
        engine.silent = True
        while replica.unanswered_since_s is None:  # once, but on a machine that is late itself
            await (fleet._health(replica) if path == "/health" else fleet._load(replica))
        assert replica.healthy is (path != "/health")
        assert not replica.is_dead(replica.unanswered_since_s + 4.9)
        assert replica.is_dead(replica.unanswered_since_s + 5.0)

    run(test, path)


def test_time_in_which_nobody_listened_does_not_make_a_replica_dead() -> None:
    async def test(_: Engine, fleet: Upstreams, replica: Upstream) -> None:
        replica.unanswered_since_s = asked_s = time.monotonic() - 4.5
        time.sleep(LATE_S)
        await asyncio.sleep(0.02)
        assert replica.unanswered_since_s > asked_s + LATE_S - 0.02
        assert not replica.is_dead(asked_s + 5.0)

    run(test, "/health")
