"""Leader election: :func:`lead` works while this operator holds a Lease; a second operator waits for it.

The election is the Kubernetes client's (``kubernetes.aio.leaderelection``). Added here: every attempt has a time limit, work
ends before the lease can be another's, and the lease is released at the end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from andes_operator.explain import explain

__all__ = ["Election", "LeaseLostError", "ReleasableLease", "lead"]

log = logging.getLogger(__name__)

RETRY_SHARE, ATTEMPT_SHARE, DEADLINE_SHARE = 0.1, 0.2, 0.35
"""Shares of the lease's duration: between two attempts to renew; for one attempt; for all attempts after a renewal, the
last of which may begin at its end. From the write of the last renewal on, work has ended after at most ATTEMPT + RETRY +
DEADLINE + ATTEMPT + RETRY = 0.95 of the duration; a connection that falls silent costs one attempt of two."""

Work = Callable[[], Coroutine[Any, Any, None]]


class ReleasableLease(LeaseLock):  # type: ignore[misc]  # the client has no types
    """``ReleasableLease(name, namespace, identity, api)``: the client's lock on a Lease, which can also be given back."""

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """As the client's, which passes ``pretty=True`` and so fails its own validation (kubernetes 37.0.2)."""
        body = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, body)
        except client.ApiException as error:
            log.warning("lease %s was not created: %s", name, error.reason)
            return False
        return True

    def election_record(self, lease: client.V1Lease) -> LeaderElectionRecord:
        """As the client's, whose election takes a Lease without ``acquireTime`` at once, as if it had no holder: earlier
        releases write none, and may still hold it."""
        record = super().election_record(lease)
        if record.holder_identity not in (None, self.identity):
            record.acquire_time, record.renew_time = record.acquire_time or "", record.renew_time or ""
        return record

    async def release(self) -> None:
        """Let the next operator have it at once, where it is this one's."""
        found, record = await self.get(self.name, self.namespace)
        if found and record.holder_identity == self.identity:
            self.lease_reference.spec.holder_identity = None
            await self.api_instance.replace_namespaced_lease(self.name, self.namespace, self.lease_reference)


class LeaseLostError(RuntimeError):
    """The lease is another operator's, or could not be renewed in time."""


class Election(LeaderElection):  # type: ignore[misc]  # the client has no types
    """One candidate. duration_s: of the lease, at least 10."""

    def __init__(self, lock: BaseLock, duration_s: float, work: Work) -> None:
        super().__init__(Config(
            lock,
            lease_duration=math.ceil(duration_s),
            renew_deadline=DEADLINE_SHARE * duration_s,
            retry_period=max(1.0, RETRY_SHARE * duration_s),
            onstarted_leading=work,
            onstopped_leading=None,
        ))  # fmt: skip
        self._attempt_s = ATTEMPT_SHARE * duration_s
        self._limit_s = (RETRY_SHARE + DEADLINE_SHARE + 2 * ATTEMPT_SHARE) * duration_s
        self._renewed_s: float | None = None

    async def try_acquire_or_renew(self) -> bool:
        """One attempt. Raises :class:`LeaseLostError` for a lease that was held and is another's, or was not renewed in
        time by the monotonic clock (the client's deadline goes by the wall clock, which may be set)."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._attempt_s):
                succeeded = bool(await super().try_acquire_or_renew())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("lease %s: %s", self.election_config.lock.name, explain(error))
            succeeded = False
        if succeeded:
            self._renewed_s = began_s
        elif self._renewed_s is not None:
            holder = self.observed_record.holder_identity if self.observed_record else None
            if holder not in (None, self.election_config.lock.identity):
                raise LeaseLostError(f"lease {self.election_config.lock.name} is held by {holder}")
            if time.monotonic() - self._renewed_s > self._limit_s:
                raise LeaseLostError(f"lease {self.election_config.lock.name} could not be renewed")
        return succeeded


async def lead(lock: ReleasableLease, work: Work, duration_s: float) -> None:
    """Wait for the lease, run ``work`` while it is renewed, release it at the end of work or when cancelled. Raises
    :class:`LeaseLostError` after work was cancelled because the lease was lost."""
    election = Election(lock, duration_s, work)
    await election.acquire()
    log.info("holding lease %s/%s as %s", lock.namespace, lock.name, lock.identity)
    working, renewing = asyncio.create_task(work()), asyncio.create_task(election.renew_loop())
    try:
        await asyncio.wait([working, renewing], return_when=asyncio.FIRST_COMPLETED)
    finally:
        lost = renewing.done()
        working.cancel()
        renewing.cancel()
        ended = await asyncio.gather(working, renewing, return_exceptions=True)
        if not lost:
            await _release(lock, ATTEMPT_SHARE * duration_s)
    for error in ended:
        if isinstance(error, Exception):
            raise error
    if lost:
        raise LeaseLostError(f"lease {lock.name} could not be renewed in time")


async def _release(lock: ReleasableLease, timeout_s: float) -> None:
    """Best effort: it expires anyway."""
    try:
        async with asyncio.timeout(timeout_s):
            await lock.release()
    except (client.ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
        log.warning("lease %s was not released: %s", lock.name, explain(error))
