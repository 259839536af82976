"""When targets are reconciled, in simulated time; and what the probes say."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import simulated_time

from andes_operator import names
from andes_operator.cluster import ClusterError
from andes_operator.controller import MAX_BACKOFF_S, RESYNC_RETRY_S, RESYNC_S, STUCK_S, Controller
from andes_operator.health import serve_health
from andes_operator.reconcile import Key, Result
from andes_operator.telemetry import OperatorMetrics

CHAT = ("chat", "t")


class Lists:
    """What is listed: keys of targets and of classes."""

    def __init__(self) -> None:
        self.targets: list[Key] = []
        self.classes: list[Key] = []
        self.asked: list[str | None] = []
        self.error: Exception | None = None
        self.forgotten: list[tuple[str, str]] = []

    def forget_list(self, plural: str, namespace: str) -> None:
        self.forgotten.append((plural, namespace))

    async def list_all(self, plural: str, namespace: str | None) -> list[dict[str, Any]]:
        if self.error is not None:
            raise self.error
        if plural == names.TARGETS:
            self.asked.append(namespace)
        found = self.targets if plural == names.TARGETS else self.classes
        return [{"metadata": {"namespace": ns, "name": name, "generation": 1}} for ns, name in found]


class Log:
    """Reconciles and publishes by keeping when it was asked to. answer: of a reconcile, or an error that it raises."""

    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self.reconciled: list[tuple[float, Key]] = []
        self.published: list[tuple[float, str]] = []
        self.answer: Callable[[], float | None] = lambda: 10.0
        self.lists, self.metrics = Lists(), OperatorMetrics()
        self.controller = Controller(
            self.lists, self.reconcile, self.publish, metrics=self.metrics, namespaces=namespaces  # type: ignore[arg-type]
        )  # fmt: skip

    async def reconcile(self, key: Key) -> Result:
        self.reconciled.append((time.monotonic() - 1000.0, key))
        return Result(self.answer())

    async def publish(self, namespace: str) -> None:
        self.published.append((time.monotonic() - 1000.0, namespace))

    @property
    def times_s(self) -> list[float]:
        return [at_s for at_s, _ in self.reconciled]

    def metric(self, name: str, **labels: str) -> float | None:
        value = self.metrics.registry.get_sample_value(name, labels)
        return None if value is None else float(value)


def scenario(test: Callable[[Log], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """``test`` in simulated time; tasks are ended afterwards."""

    async def whole() -> None:
        log = Log()
        await test(log)
        await log.controller.stop()

    def run() -> None:
        simulated_time.run(whole())

    run.__name__ = test.__name__
    return run


@scenario
async def test_a_target_is_reconciled_at_once_and_as_often_as_the_result_says(log: Log) -> None:
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(46.0)
    first_s, *later_s = log.times_s
    assert 5.0 <= later_s[0] - first_s <= 15.0, "to its place in the interval"
    assert [b - a for a, b in itertools.pairwise(later_s)] == pytest.approx([10.0] * (len(later_s) - 1))
    assert len(later_s) >= 4
    assert {key for _, key in log.reconciled} == {CHAT}
    assert log.metric("andes_operator_targets") == 1.0


@scenario
async def test_targets_that_are_found_together_are_looked_at_one_after_another(log: Log) -> None:
    for n in range(200):
        log.controller.changed(("chat", f"t{n}"), 1)
    await asyncio.sleep(100.0)
    busiest = max(sum(1 for at_s in log.times_s if begin_s <= at_s < begin_s + 1.0) for begin_s in range(30, 90))
    assert busiest <= 40, "of 20 a second on average"


@scenario
async def test_an_edit_is_reconciled_at_once_and_the_operators_own_writes_are_not(log: Log) -> None:
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(1.0)
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(1.0)
    assert log.times_s == [0.0]
    log.controller.changed(CHAT, 2)
    await asyncio.sleep(1.0)
    assert log.times_s == [0.0, 2.0]
    assert log.lists.forgotten == [(names.TARGETS, "chat")], "what it reads then is not the list of before the edit"
    log.controller.changed(CHAT, 2)
    await asyncio.sleep(1.0)
    assert log.times_s == [0.0, 2.0]


@scenario
async def test_a_target_that_is_created_again_during_its_last_reconcile_is_reconciled(log: Log) -> None:
    def created_again() -> None:
        log.answer = lambda: 10.0
        log.controller.changed(CHAT, 1)  # the new one's generation begins at 1 too

    log.controller.changed(CHAT, 1)
    await asyncio.sleep(1.0)
    log.answer = created_again
    log.controller.deleted(CHAT)
    await asyncio.sleep(1.0)
    assert log.times_s == [0.0, 1.0, 1.0]
    assert log.metric("andes_operator_targets") == 1.0


@scenario
async def test_a_deleted_target_is_reconciled_once_more_and_forgotten(log: Log) -> None:
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(1.0)
    log.answer = lambda: None
    log.controller.deleted(CHAT)
    log.controller.deleted(("chat", "unknown"))
    await asyncio.sleep(100.0)
    assert log.times_s == [0.0, 1.0]
    assert log.metric("andes_operator_targets") == 0.0
    log.answer = lambda: 1000.0
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(1.0)
    assert log.times_s == [0.0, 1.0, 101.0], "created again"


@pytest.mark.parametrize(("error", "kind"), [(ClusterError(503, "away"), "api"), (RuntimeError("a bug"), "unexpected")])
def test_a_failed_reconcile_is_tried_again_later_and_later(error: Exception, kind: str) -> None:
    @scenario
    async def test(log: Log) -> None:
        def fail() -> float:
            raise error

        log.answer = fail
        log.controller.changed(CHAT, 1)
        await asyncio.sleep(300.0)
        gaps_s = [b - a for a, b in zip(log.times_s, log.times_s[1:])]
        for gap_s, expected_s in zip(gaps_s, (2, 4, 8, 16, 32, MAX_BACKOFF_S, MAX_BACKOFF_S)):
            assert 0.5 * expected_s <= gap_s <= 1.5 * expected_s
        count = len(log.reconciled)
        assert log.metric("andes_operator_reconcile_failures_total", kind=kind) == count
        assert log.metric("andes_operator_tick_failures_total", kind=kind) == count, "by its former name too"
        log.answer = lambda: 10.0
        log.controller.changed(CHAT, 2)
        await asyncio.sleep(15.1)
        assert len(log.reconciled) >= count + 2, "as often as ever once it works"
        count, log.answer = len(log.reconciled), fail
        await asyncio.sleep(10.0 + 3.1)
        first_s, second_s = log.times_s[count : count + 2]
        assert 1.0 <= second_s - first_s <= 3.0, "and backs off from the beginning"

    test()


@scenario
async def test_a_resync_finds_what_no_watch_has_told_of(log: Log) -> None:
    log.lists.targets, log.lists.classes = [CHAT, ("other", "u")], [("chat", "reading")]
    resyncing = asyncio.create_task(log.controller.resync())
    await asyncio.sleep(1.0)
    assert {key for _, key in log.reconciled} == {CHAT, ("other", "u")}
    assert log.published == [(0.0, "chat")]
    assert log.lists.asked == [None], "all namespaces at once"
    log.lists.targets.append(("chat", "new"))
    log.lists.classes.clear()
    await asyncio.sleep(RESYNC_S)
    assert ("chat", "new") in {key for _, key in log.reconciled}
    assert log.published == [(0.0, "chat"), (RESYNC_S, "chat")], "also where the last class was deleted"
    resyncing.cancel()


def test_a_resync_lists_the_namespaces_that_are_served() -> None:
    async def test() -> None:
        log = Log(("a", "b"))
        resyncing = asyncio.create_task(log.controller.resync())
        await asyncio.sleep(1.0)
        assert log.lists.asked == ["a", "b"]
        resyncing.cancel()

    simulated_time.run(test())


@scenario
async def test_a_first_resync_that_fails_is_tried_again_soon(log: Log) -> None:
    log.lists.error = ClusterError(0, "away")
    resyncing = asyncio.create_task(log.controller.resync())
    await asyncio.sleep(3 * RESYNC_RETRY_S)
    assert not log.controller.synced
    log.lists.error = None
    await asyncio.sleep(RESYNC_RETRY_S)
    assert log.controller.synced
    assert log.lists.asked == [None]
    resyncing.cancel()


@scenario
async def test_classes_are_published_again_when_that_failed(log: Log) -> None:
    failing = [ClusterError(0, "away"), KeyError("a bug")]
    publish = log.publish

    async def fail_once(namespace: str) -> None:
        await publish(namespace)
        if failing:
            raise failing.pop()

    log.controller._publish_classes = fail_once
    log.controller.classes_changed("chat")
    await asyncio.sleep(60.0)
    assert [namespace for _, namespace in log.published] == ["chat"] * 3


@scenario
async def test_what_a_watch_still_tells_after_the_end_begins_nothing(log: Log) -> None:
    await log.controller.stop()
    log.controller.changed(CHAT, 1)
    log.controller.classes_changed("chat")
    await asyncio.sleep(1.0)
    assert log.reconciled == log.published == []  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("end", [TimeoutError("no answer"), None])
def test_a_cancellation_that_a_library_takes_for_its_own_does_not_keep_it_from_ending(end: Exception | None) -> None:
    """As aiohttp does when its own limit ends in the same moment."""

    async def scenario() -> None:
        log = Log()

        async def stubborn(key: Key) -> Result:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000.0)
            if end is not None:
                raise end
            return Result(1000.0)

        log.controller._reconcile = stubborn
        log.controller.changed(CHAT, 1)
        await asyncio.sleep(1.0)
        async with asyncio.timeout(100.0):
            await log.controller.stop()

    simulated_time.run(scenario())


# Health


@scenario
async def test_a_reconcile_that_hangs_is_stuck(log: Log) -> None:
    async def hang(key: Key) -> Result:
        await asyncio.Event().wait()
        return Result(1.0)

    log.controller._reconcile = hang
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(STUCK_S)
    assert log.controller.stuck() is None
    await asyncio.sleep(1.0)
    assert log.controller.stuck() == f"reconcile of chat/t is stuck for {STUCK_S + 1:.0f} s"


@scenario
async def test_reconciles_that_fail_are_not_stuck(log: Log) -> None:
    def fail() -> float:
        raise ClusterError(0, "the API server is away")

    log.answer = fail
    log.controller.changed(CHAT, 1)
    await asyncio.sleep(10 * STUCK_S)
    assert log.controller.stuck() is None


@scenario
async def test_a_resync_that_hangs_is_stuck_and_waiting_for_the_lease_is_not(log: Log) -> None:
    await asyncio.sleep(10 * STUCK_S)
    assert log.controller.stuck() is None, "none was to begin yet"

    async def hang(plural: str, namespace: str | None) -> list[Any]:
        await asyncio.Event().wait()
        return []

    log.lists.list_all = hang  # type: ignore[method-assign]
    resyncing = asyncio.create_task(log.controller.resync())
    await asyncio.sleep(RESYNC_S + STUCK_S)
    assert log.controller.stuck() is None
    await asyncio.sleep(1.0)
    assert log.controller.stuck() == f"resync is stuck: none began for {RESYNC_S + STUCK_S + 1:.0f} s"
    resyncing.cancel()


def test_probes_say_what_the_controller_says() -> None:
    async def test() -> None:
        log = Log()
        async with (
            serve_health("127.0.0.1", 0, log.controller, log.metrics) as runner,
            aiohttp.ClientSession() as session,
        ):
            host, port = runner.addresses[0][:2]

            async def get(path: str) -> tuple[int, str]:
                async with session.get(f"http://{host}:{port}{path}") as answer:
                    return answer.status, await answer.text()

            assert await get("/readyz") == (200, "waiting for the lease")
            log.controller.leading = True
            assert await get("/readyz") == (503, "starting")
            log.controller.synced = True
            assert await get("/readyz") == (200, "ok")
            assert await get("/livez") == (200, "ok")
            log.controller.stuck = lambda: "reconcile of chat/t is stuck for 301 s"  # type: ignore[method-assign]
            assert await get("/livez") == (500, "reconcile of chat/t is stuck for 301 s")
            assert "andes_operator_targets 0.0" in (await get("/metrics"))[1]

    asyncio.run(test())
