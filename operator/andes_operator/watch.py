"""kopf's part: :func:`watch` tells the controller which QoETargets and QoEClasses are new, changed or deleted, and which
nodes are about to go.

kopf runs in a thread with an event loop of its own, and has no timers, daemons or finalizers here:
docs/decisions/2026-11-27-kopf-only-watches.md says why, with measurements.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf

from andes_operator import names
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.controller import Controller

__all__ = ["watch"]

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Seconds between two attempts to watch: what a restarting API server takes, a few times over."""
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 10.0, 30.0
SILENCE = 1.25
"""Ratio to the time after which the API server ends a watch; one that is still open then has lost its connection."""


OnNode = Callable[[Mapping[str, Any], bool], None]
"""What is told of a node: its JSON, and whether it was deleted."""


async def watch(
    controller: Controller, cluster: Cluster, on_node: OnNode, *, namespaces: Sequence[str], watch_s: int
) -> None:
    """Until cancelled. on_node: called where the right to watch nodes is there. namespaces: to watch; empty: all. watch_s:
    seconds after which a watch is opened again."""
    await _served(cluster)
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                nodes = asyncio.run_coroutine_threadsafe(_may_watch_nodes(cluster), loop).result(REQUEST_TIMEOUT_S)
                registry = _handlers(controller, loop, watch_s, on_node if nodes else None)
                kopf.run(
                    registry=registry,
                    standalone=True,
                    stop_flag=stop,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                )
            except Exception as error:
                log.warning("the watch failed: %s; again in %.0f s", error, RETRY_S)
            stop.wait(RETRY_S)

    threading.Thread(target=run, name="watch", daemon=True).start()
    try:
        await asyncio.Event().wait()
    finally:
        stop.set()


async def _served(cluster: Cluster) -> None:
    """Wait until the API server serves the CRDs: kopf looks for them only once."""
    while True:
        try:
            if await cluster.serves(names.TARGETS, names.CLASSES):
                return
            log.warning("the CRDs are not served yet; again in %.0f s", RETRY_S)
        except ClusterError as error:
            log.warning("the CRDs are not served yet: %s; again in %.0f s", error, RETRY_S)
        await asyncio.sleep(RETRY_S)


async def _may_watch_nodes(cluster: Cluster) -> bool:
    """Without the right, kopf would give up all watches. One that may not even ask has none."""
    try:
        allowed = await cluster.may("list", names.NODES) and await cluster.may("watch", names.NODES)
    except ClusterError as error:
        if error.status != 403:
            raise
        allowed = False
    if not allowed:
        log.info("nodes are not watched, for want of the right to: engines stay where they are until their node goes")
    return allowed


def _handlers(
    controller: Controller, loop: asyncio.AbstractEventLoop, watch_s: int, on_node: OnNode | None
) -> kopf.OperatorRegistry:
    """kopf's handlers. They hand over in ``loop``."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.watching.server_timeout = watch_s
        settings.watching.client_timeout = settings.watching.inactivity_timeout = SILENCE * watch_s
        settings.networking.connect_timeout, settings.networking.request_timeout = CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S
        settings.networking.error_backoffs = itertools.repeat(RETRY_S)  # by default it gives up after nine attempts
        settings.posting.enabled = False
        settings.scanning.disabled = True  # listing CRDs and namespaces would take cluster-wide rights

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.TARGETS, registry=registry)
    async def target(event: kopf.RawEvent, meta: kopf.Meta, **_: Any) -> None:
        key = str(meta["namespace"]), str(meta["name"])
        if event["type"] == "DELETED":
            loop.call_soon_threadsafe(controller.deleted, key)
        else:
            loop.call_soon_threadsafe(controller.changed, key, int(meta["generation"]))

    @kopf.on.event(names.GROUP, names.VERSION, names.CLASSES, registry=registry)
    async def qoe_class(meta: kopf.Meta, **_: Any) -> None:
        loop.call_soon_threadsafe(controller.classes_changed, str(meta["namespace"]))

    if on_node is not None:

        @kopf.on.event("v1", names.NODES, registry=registry)
        async def node(event: kopf.RawEvent, **_: Any) -> None:
            loop.call_soon_threadsafe(on_node, event["object"], event["type"] == "DELETED")

    return registry
