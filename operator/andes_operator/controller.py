"""The controller: keeps one task per QoETarget that reconciles it, waits as long as the result says, and reconciles again.

:meth:`Controller.changed` and :meth:`Controller.classes_changed` tell it what a watch has seen; :meth:`Controller.resync`
lists everything once a minute, so that a watch that has failed delays what is new by a minute and loses nothing. Knows
nothing of kopf or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from andes_operator import names
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.reconcile import Key, Result
from andes_operator.spread import until_turn_s
from andes_operator.telemetry import OperatorMetrics

__all__ = ["Controller"]

log = logging.getLogger(__name__)

RESYNC_S = 60.0
RESYNC_RETRY_S = 2.0
"""Seconds until a first list is tried again: nothing is reconciled before it."""
STUCK_S = 300.0
"""Seconds after which a reconcile or a resync counts as hanging: more than all time limits in one add up to."""
MAX_BACKOFF_S = 60.0
CLASSES_RETRY_S = 5.0


@dataclass(slots=True)
class _Work:
    """One target's task. generation: of its spec when it was last told of; wake: set to reconcile now; since_s: monotonic
    time when the running reconcile began, None: none runs."""

    task: asyncio.Task[None]
    generation: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    since_s: float | None = None


class Controller:
    """reconcile: of one target, or of another kind by its ``plural``; publish_classes: of one namespace, None: of none.
    leading: set while the lease is held."""

    def __init__(
        self,
        cluster: Cluster,
        reconcile: Callable[[Key], Awaitable[Result]],
        publish_classes: Callable[[str], Awaitable[None]] | None = None,
        *,
        metrics: OperatorMetrics,
        plural: str = names.TARGETS,
        namespaces: Sequence[str] = (),
        resync_s: float = RESYNC_S,
    ) -> None:
        self._cluster, self._reconcile, self._publish_classes = cluster, reconcile, publish_classes
        self._metrics, self._resync_s, self._plural = metrics, resync_s, plural
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._targets: dict[Key, _Work] = {}
        self._classes: dict[str, asyncio.Event] = {}
        self._publishing: dict[str, asyncio.Task[None]] = {}
        self._stopped = False
        self.leading = False
        self.synced = False
        """Whether everything was listed once."""
        self._resync_began_s: float | None = None

    # Events

    def changed(self, key: Key, generation: int) -> None:
        """A target exists. A new one is reconciled, and one whose spec has changed; other changes are the operator's own."""
        if self._stopped:  # a watch ends a little later: the lease may be another's by then
            return
        known = self._targets.get(key)
        if known is None or known.task.done():
            self._targets[key] = _Work(asyncio.create_task(self._run(key), name="/".join(key)), generation)
            self._count()
        elif known.generation != generation:
            self._cluster.forget_list(self._plural, key[0])
            known.generation = generation
            known.wake.set()

    def _count(self) -> None:
        if self._plural == names.TARGETS:
            self._metrics.targets.set(len(self._targets))

    def wake(self, key: Key) -> None:
        """Reconcile it now, if it is known."""
        if key in self._targets:
            self._targets[key].wake.set()

    def deleted(self, key: Key) -> None:
        """A target was deleted: reconciling it ends its task. One of the same name may follow, of any generation."""
        if key in self._targets:
            self._cluster.forget_list(self._plural, key[0])
            self._targets[key].generation = 0
            self._targets[key].wake.set()

    def classes_changed(self, namespace: str) -> None:
        if self._stopped or self._publish_classes is None:
            return
        if namespace not in self._publishing:
            self._classes[namespace] = asyncio.Event()
            self._publishing[namespace] = asyncio.create_task(self._publish(namespace))
        self._classes[namespace].set()

    # Tasks

    async def _run(self, key: Key) -> None:
        """Reconcile until the target is gone; after a failure with exponential backoff. Ends with :meth:`stop` also where a
        library has taken the cancellation for a time-out of its own."""
        work, failures = self._targets[key], 0
        try:
            while not self._stopped:
                work.wake.clear()
                work.since_s = time.monotonic()
                try:
                    delay_s, failures = (await self._reconcile(key)).requeue_after_s, 0
                except Exception as error:
                    failures += 1
                    delay_s = min(MAX_BACKOFF_S, 2.0**failures)
                    self._log_failure(key, error, delay_s)
                finally:
                    work.since_s = None
                if self._stopped:
                    return
                if delay_s is None:
                    if work.wake.is_set():  # created again meanwhile
                        continue
                    return
                with contextlib.suppress(TimeoutError):
                    delay_s = until_turn_s("/".join(key), time.monotonic(), delay_s)
                    await asyncio.wait_for(work.wake.wait(), delay_s)
        finally:
            if self._targets.get(key) is work:
                del self._targets[key]
                self._count()

    def _log_failure(self, key: Key, error: Exception, delay_s: float) -> None:
        expected = isinstance(error, ClusterError)
        self._metrics.count_failure("api" if expected else "unexpected")
        log.warning(
            "reconcile of %s/%s failed: %s; again in %.0f s", *key, error, delay_s, exc_info=None if expected else error
        )

    async def _publish(self, namespace: str) -> None:
        while not self._stopped:
            await self._classes[namespace].wait()
            self._classes[namespace].clear()
            try:
                if self._publish_classes is not None:
                    await self._publish_classes(namespace)
            except Exception as error:
                expected = isinstance(error, ClusterError)
                log.warning(
                    "QoEClasses of %s were not published: %s", namespace, error, exc_info=None if expected else error
                )
                await asyncio.sleep(CLASSES_RETRY_S)
                self._classes[namespace].set()

    async def resync(self) -> None:
        """Until cancelled: list everything, and tell the controller of it."""
        while True:
            self._resync_began_s = time.monotonic()
            try:
                await self._list()
                self.synced = True
            except ClusterError as error:
                log.warning("resync failed: %s", error)
            await asyncio.sleep(self._resync_s if self.synced else RESYNC_RETRY_S)

    async def _list(self) -> None:
        with_classes = set(self._publishing)  # also where the last class was deleted
        for namespace in self._namespaces:
            for found in await self._all(namespace):
                metadata = found["metadata"]
                self.changed((metadata["namespace"], metadata["name"]), metadata["generation"])
            for found in await self._cluster.list_all(names.CLASSES, namespace) if self._publish_classes else ():
                with_classes.add(found["metadata"]["namespace"])
        for namespace in with_classes:
            self.classes_changed(namespace)

    async def _all(self, namespace: str | None) -> list[dict[str, Any]]:
        """None of a kind besides QoETargets whose CRD is not installed."""
        try:
            return await self._cluster.list_all(self._plural, namespace)
        except ClusterError as error:
            if error.status != 404 or self._plural == names.TARGETS:
                raise
            return []

    async def stop(self) -> None:
        """End all tasks, and begin no more."""
        self._stopped = True
        tasks = [*(work.task for work in self._targets.values()), *self._publishing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Health

    def stuck(self) -> str | None:
        """What hangs, so that only a restart helps: a reconcile or a resync. An API server that does not answer is no such
        case: every request ends."""
        now_s = time.monotonic()
        for key, work in self._targets.items():
            if work.since_s is not None and now_s - work.since_s > STUCK_S:
                return f"reconcile of {key[0]}/{key[1]} is stuck for {now_s - work.since_s:.0f} s"
        began_s = self._resync_began_s
        if began_s is not None and now_s - began_s > self._resync_s + STUCK_S:
            return f"resync is stuck: none began for {now_s - began_s:.0f} s"
        return None
