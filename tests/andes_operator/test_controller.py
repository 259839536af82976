"""What a liveness probe is for: work that hangs, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
import pytest
from andes_operator.handlers import Work

from andes_operator import handlers
from andes_operator.cli import _serve_health
from andes_operator.cluster import ClusterError
from andes_operator.telemetry import Metrics


class Hanging:
    """A reconciler whose look does not end, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.looking, self.error = asyncio.Event(), error

    async def tick(self, namespace: str, name: str) -> float:
        self.looking.set()
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()
        return 1.0


def livez(error: Exception | None, meanwhile: Callable[[Work], None] | None = None) -> tuple[int, str]:
    """What ``/livez`` says while a look at chat/t hangs, or has failed."""

    async def scenario() -> tuple[int, str]:
        reconciler, metrics = Hanging(error), Metrics()
        work = Work(None, reconciler, metrics, [])  # type: ignore[arg-type]
        runner = await _serve_health("127.0.0.1", 0, work, metrics)
        try:
            work.target("chat", "t", 1)
            await reconciler.looking.wait()
            if meanwhile is not None:
                meanwhile(work)
            host, port = runner.addresses[0][:2]
            url = f"http://{host}:{port}/livez"
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return answer.status, await answer.text()
        finally:
            await work.stop()
            await runner.cleanup()

    return asyncio.run(scenario())


def test_a_look_that_hangs_is_no_life(monkeypatch: pytest.MonkeyPatch) -> None:
    assert livez(None) == (200, "ok"), "it may take a while"
    monkeypatch.setattr(handlers, "STUCK_S", -1.0)
    status, said = livez(None)
    assert status == 500
    assert said.startswith("the look at chat/t takes")


def test_a_sweep_that_hangs_is_no_life() -> None:
    def long_ago(work: Work) -> None:
        work.sweep_tried_s -= handlers.SWEEP_S + handlers.STUCK_S + 1.0

    status, said = livez(None, long_ago)
    assert status == 500
    assert said.startswith("no sweep for")


@pytest.mark.parametrize("error", [ClusterError(0, "the API server is away"), RuntimeError("a bug")])
def test_a_look_that_fails_is_tried_again(error: Exception) -> None:
    assert livez(error) == (200, "ok")


def test_after_a_failure_come_more_looks_and_then_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "LONGEST_BACKOFF_S", 0.0)

    async def scenario() -> list[str]:
        looks: list[str] = []
        done = asyncio.Event()

        class Mending:
            async def tick(self, namespace: str, name: str) -> float | None:
                looks.append(name)
                if len(looks) < 4:
                    raise ClusterError(503, "not yet")
                done.set()
                return None

        work = Work(None, Mending(), Metrics(), [])  # type: ignore[arg-type]
        work.target("chat", "t", 1)
        await done.wait()
        await work.stop()
        return looks

    assert asyncio.run(scenario()) == ["t"] * 4
