"""Leader election in simulated time, with a lock in memory; on a real API server in test_operator."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine
from copy import copy
from datetime import UTC, datetime
from typing import Any

import pytest
import simulated_time
from kubernetes.aio.client import ApiException, V1Lease, V1LeaseSpec
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from andes_operator.lease import ATTEMPT_SHARE, RETRY_SHARE, LeaseLostError, ReleasableLease, lead

DURATION_S = 20.0


class Server:
    """The Lease. silent, refusing: requests hang or fail from then on."""

    def __init__(self) -> None:
        self.record: LeaderElectionRecord | None = None
        self.written_s = 0.0
        self.silent = self.refusing = False


class Lock(BaseLock):  # type: ignore[misc]
    def __init__(self, server: Server, identity: str) -> None:
        super().__init__("operator", "chat", identity)
        self.server = server

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        if self.server.silent:
            await asyncio.Event().wait()
        if self.server.refusing:
            raise OSError("connection refused")
        if self.server.record is None:
            return False, ApiException(status=404, body=json.dumps({"code": 404}))
        return True, copy(self.server.record)

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        return await self.update(name, namespace, election_record)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        self.server.record, self.server.written_s = updated_record, time.monotonic()
        return True

    async def release(self) -> None:
        found, record = await self.get(self.name, self.namespace)
        if found and record.holder_identity == self.identity:
            self.server.record = LeaderElectionRecord(None, None, None, None)


class Operator:
    """One that leads; keeps when it worked."""

    def __init__(self, server: Server, identity: str) -> None:
        self.began_s = self.ended_s = math.inf
        self.task = asyncio.create_task(lead(Lock(server, identity), self.work, DURATION_S))  # type: ignore[arg-type]

    async def work(self) -> None:
        self.began_s = time.monotonic()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended_s = time.monotonic()

    async def lost(self) -> str:
        with pytest.raises(LeaseLostError) as error:
            await self.task
        return str(error.value)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def scenario(test: Callable[[Server], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """``test`` in simulated time."""

    def run() -> None:
        simulated_time.run(test(Server()))

    run.__name__ = test.__name__
    return run


@scenario
async def test_one_works_and_the_other_waits_until_it_is_released(server: Server) -> None:
    first = Operator(server, "a")
    await asyncio.sleep(1.0)
    second = Operator(server, "b")
    await asyncio.sleep(10 * DURATION_S)
    assert (first.began_s, first.ended_s, second.began_s) == (1000.0, math.inf, math.inf)
    await first.stop()
    assert first.ended_s == time.monotonic()
    await asyncio.sleep(DURATION_S)
    assert second.began_s <= first.ended_s + RETRY_SHARE * DURATION_S, "at once"
    await second.stop()


@scenario
async def test_of_one_that_was_killed_the_lease_expires(server: Server) -> None:
    server.record = LeaderElectionRecord("killed", "20", "2026-11-27 08:00:00.5", "2026-11-27 08:00:00.5")
    second = Operator(server, "b")
    await asyncio.sleep(2 * DURATION_S)
    assert 1000.0 + DURATION_S <= second.began_s <= 1000.0 + (1 + RETRY_SHARE) * DURATION_S
    await second.stop()


def recorded(reader: str, holder: str | None) -> LeaderElectionRecord:
    """How ``reader`` reads a Lease without ``acquireTime``, as earlier releases write it."""
    spec = V1LeaseSpec(holder_identity=holder, lease_duration_seconds=20, renew_time=datetime(2026, 11, 27, tzinfo=UTC))
    return ReleasableLease("operator", "chat", reader, None).election_record(V1Lease(spec=spec))  # type: ignore[arg-type]


@pytest.mark.parametrize(("holder", "waits"), [("other", True), ("b", False), (None, False)])
def test_a_lease_without_all_times_is_held_by_its_holder(holder: str | None, waits: bool) -> None:
    async def test(server: Server) -> None:
        server.record = recorded("b", holder)
        second = Operator(server, "b")
        await asyncio.sleep(2 * DURATION_S)
        assert (second.began_s >= 1000.0 + DURATION_S) is waits
        await second.stop()

    simulated_time.run(test(Server()))


@scenario
async def test_a_lease_lasts_no_less_than_the_time_by_which_work_ends(server: Server) -> None:
    task = asyncio.create_task(lead(Lock(server, "a"), asyncio.Event().wait, 10.9))  # type: ignore[arg-type]
    await asyncio.sleep(1.0)
    assert server.record is not None
    assert server.record.lease_duration == "11"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("fault", ["silent", "refusing"])
def test_work_ends_before_the_lease_can_be_anothers(fault: str) -> None:
    async def test(server: Server) -> None:
        first = Operator(server, "a")
        await asyncio.sleep(3.3 * DURATION_S)
        setattr(server, fault, True)
        assert "could not be renewed" in await first.lost()
        assert 0.0 < first.ended_s - server.written_s < DURATION_S
        assert server.record is not None
        assert server.record.holder_identity == "a", "what is lost is not released"

    simulated_time.run(test(Server()))


@scenario
async def test_a_connection_that_falls_silent_for_one_attempt_loses_nothing(server: Server) -> None:
    first = Operator(server, "a")
    await asyncio.sleep(2.95 * DURATION_S)
    server.silent = True
    await asyncio.sleep((RETRY_SHARE + ATTEMPT_SHARE) * DURATION_S)
    server.silent = False
    await asyncio.sleep(10 * DURATION_S)
    assert first.ended_s == math.inf
    await first.stop()


@scenario
async def test_a_lease_that_is_anothers_is_lost_at_once(server: Server) -> None:
    first = Operator(server, "a")
    await asyncio.sleep(DURATION_S)
    server.record = LeaderElectionRecord("b", "20", "2026-11-27 08:00:00.5", "2026-11-27 08:00:00.5")
    assert await first.lost() == "lease operator is held by b"
    assert first.ended_s - 1000.0 <= (1 + 2 * RETRY_SHARE) * DURATION_S
    assert server.record.holder_identity == "b"


@scenario
async def test_work_that_fails_releases_the_lease_and_is_reported(server: Server) -> None:
    async def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await lead(Lock(server, "a"), fail, DURATION_S)  # type: ignore[arg-type]
    assert server.record is not None
    assert server.record.holder_identity is None


@scenario
async def test_a_lease_that_cannot_be_released_expires(server: Server) -> None:
    first = Operator(server, "a")
    await asyncio.sleep(DURATION_S)
    server.silent = True
    await first.stop()
    assert time.monotonic() - first.ended_s == ATTEMPT_SHARE * DURATION_S
