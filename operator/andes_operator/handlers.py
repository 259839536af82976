"""kopf's part: it watches; what it sees starts, wakes and ends one task per QoETarget. No finalizers, no annotations.

The tasks read the resource afresh at every tick, and a sweep lists all resources once a minute: a watch that has died in
silence delays what is new by a minute and loses nothing. A watch that is open and brings nothing is opened anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import kopf

from andes_operator import names
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.reconcile import Reconciler
from andes_operator.telemetry import Metrics

__all__ = ["Work", "watch"]

log = logging.getLogger(__name__)

SWEEP_S = 60.0
STUCK_S = 300.0
LONGEST_BACKOFF_S = 60.0
WATCH_AGAIN_S = 5.0
CONNECT_TIMEOUT_S, LIST_TIMEOUT_S = 10.0, 30.0
Key = tuple[str, str]


class Work:
    """The tasks of all targets, and the sweep over them."""

    def __init__(
        self,
        cluster: Cluster,
        reconciler: Reconciler,
        metrics: Metrics,
        namespaces: Sequence[str],
        sweep_s: float = SWEEP_S,
    ) -> None:
        self._cluster, self._reconciler, self._metrics = cluster, reconciler, metrics
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._sweep_s = sweep_s
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._wakes: dict[Key, asyncio.Event] = {}
        self._generations: dict[Key, int] = {}
        self._ticking: dict[Key, float] = {}
        self._classes: dict[str, asyncio.Event] = {}
        self._publishing: dict[str, asyncio.Task[None]] = {}
        self.leading = False
        self.swept_s: float | None = None
        self.sweep_tried_s = time.monotonic()

    # What happened

    def target(self, namespace: str, name: str, generation: int) -> None:
        """A target is there. A new one is started; an edited one looks at once; a change of its status is our own."""
        key = namespace, name
        known = self._tasks.get(key)
        if known is None or known.done():
            self._wakes[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._run(key), name=f"{namespace}/{name}")
        elif self._generations.get(key) != generation:
            self._wakes[key].set()
        self._generations[key] = generation
        self._metrics.targets.set(len(self._tasks))

    def gone(self, namespace: str, name: str) -> None:
        """It was deleted: its task finds out at its next look, which is now."""
        if (namespace, name) in self._wakes:
            self._wakes[namespace, name].set()

    def classes_changed(self, namespace: str) -> None:
        if namespace not in self._publishing:
            self._classes[namespace] = asyncio.Event()
            self._publishing[namespace] = asyncio.create_task(self._publish(namespace))
        self._classes[namespace].set()

    # Tasks

    async def _run(self, key: Key) -> None:
        """Look, wait, look again: until the target is gone. A look that fails is repeated, later and later."""
        failures = 0
        wake = self._wakes[key]
        try:
            while True:
                wake.clear()
                self._ticking[key] = time.monotonic()
                try:
                    delay_s = await self._reconciler.tick(*key)
                    failures = 0
                except ClusterError as error:
                    failures += 1
                    delay_s = min(LONGEST_BACKOFF_S, 2.0**failures)
                    self._metrics.failures.labels("api").inc()
                    log.warning("%s/%s: %s; again in %.0f s", *key, error, delay_s)
                except Exception:
                    failures += 1
                    delay_s = min(LONGEST_BACKOFF_S, 2.0**failures)
                    self._metrics.failures.labels("unexpected").inc()
                    log.exception("%s/%s: again in %.0f s", *key, delay_s)
                finally:
                    self._ticking.pop(key, None)
                if delay_s is None:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), delay_s * random.uniform(0.95, 1.05))  # noqa: S311
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                for known in (self._tasks, self._wakes, self._generations):
                    known.pop(key, None)
                self._metrics.targets.set(len(self._tasks))

    async def _publish(self, namespace: str) -> None:
        while True:
            await self._classes[namespace].wait()
            self._classes[namespace].clear()
            try:
                await self._reconciler.publish_classes(namespace)
            except ClusterError as error:
                log.warning("classes of %s: %s", namespace, error)
                await asyncio.sleep(5.0)
                self._classes[namespace].set()

    async def sweep(self) -> None:
        """For ever: list everything and start what the watch has not told of."""
        while True:
            self.sweep_tried_s = time.monotonic()
            try:
                with_classes = set(self._publishing)  # and where the last one may have gone
                for namespace in self._namespaces:
                    for found in await self._cluster.list_all(names.TARGETS, namespace):
                        m = found["metadata"]
                        self.target(m["namespace"], m["name"], m["generation"])
                    for found in await self._cluster.list_all(names.CLASSES, namespace):
                        with_classes.add(found["metadata"]["namespace"])
                for namespace in with_classes:
                    self.classes_changed(namespace)
                self.swept_s = time.monotonic()
            except ClusterError as error:
                log.warning("sweep: %s", error)
            await asyncio.sleep(self._sweep_s if self.swept_s is not None else 2.0)

    async def known(self) -> None:
        """Wait until the API server knows our resources: kopf does not look for them again."""
        while True:
            try:
                if await self._cluster.serves(names.TARGETS, names.CLASSES):
                    return
            except ClusterError as error:
                log.warning("before the watch: %s; again in %.0f s", error, WATCH_AGAIN_S)
            await asyncio.sleep(WATCH_AGAIN_S)

    async def stop(self) -> None:
        tasks = [*self._tasks.values(), *self._publishing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Health

    def stuck(self) -> str | None:
        """What a restart would mend: a look or a sweep that does not end. An API server that is away is no such thing."""
        now_s = time.monotonic()
        for key, since_s in self._ticking.items():
            if now_s - since_s > STUCK_S:
                return f"the look at {key[0]}/{key[1]} takes {now_s - since_s:.0f} s"
        if now_s - self.sweep_tried_s > self._sweep_s + STUCK_S:
            return f"no sweep for {now_s - self.sweep_tried_s:.0f} s"
        return None


async def watch(work: Work, namespaces: Sequence[str], watch_s: int) -> None:
    """Watch QoETargets and QoEClasses, of the namespaces or of all where none is named, until cancelled. Each watch is opened
    anew after ``watch_s``, by the API server or, where that is not heard of any more, a quarter later by us.

    kopf runs in a thread and a loop of its own: there it leaves our signals alone, and where it fails (an API server that is
    starting answers 404 for a while) or hangs at its end, nothing else does. It is started again; the sweep bridges the gap.
    """
    await work.known()
    loop, stop = asyncio.get_running_loop(), threading.Event()
    threading.Thread(target=_watch, args=(work, namespaces, watch_s, loop, stop), name="watch", daemon=True).start()
    try:
        await asyncio.Event().wait()
    finally:
        stop.set()


def _watch(
    work: Work, namespaces: Sequence[str], watch_s: int, loop: asyncio.AbstractEventLoop, stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            kopf.run(
                registry=_registry(work, watch_s, loop), standalone=True, stop_flag=stop, clusterwide=not namespaces,
                namespaces=list(namespaces),
            )  # fmt: skip
        except Exception as error:
            log.warning("the watch has failed: %s; again in %.0f s", error, WATCH_AGAIN_S)
        stop.wait(WATCH_AGAIN_S)


def _registry(work: Work, watch_s: int, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.watching.server_timeout = watch_s
        settings.watching.client_timeout = settings.watching.inactivity_timeout = 1.25 * watch_s
        settings.networking.connect_timeout, settings.networking.request_timeout = CONNECT_TIMEOUT_S, LIST_TIMEOUT_S
        settings.networking.error_backoffs = itertools.repeat(WATCH_AGAIN_S)  # a watch that gave up would not come back
        settings.posting.enabled = False
        settings.scanning.disabled = True  # our CRDs are there before us; listing CRDs and namespaces takes more rights

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.TARGETS, registry=registry)
    async def target(event: kopf.RawEvent, meta: kopf.Meta, **_: Any) -> None:
        namespace, name = str(meta["namespace"]), str(meta["name"])
        if event["type"] == "DELETED":
            loop.call_soon_threadsafe(work.gone, namespace, name)
        else:
            loop.call_soon_threadsafe(work.target, namespace, name, int(meta["generation"]))

    @kopf.on.event(names.GROUP, names.VERSION, names.CLASSES, registry=registry)
    async def qoe_class(meta: kopf.Meta, **_: Any) -> None:
        loop.call_soon_threadsafe(work.classes_changed, str(meta["namespace"]))

    return registry
