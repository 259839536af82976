"""``andes operator``: serve probes and metrics, wait for the lease, then reconcile until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Mapping
from typing import Any

from andes_operator import names
from andes_operator.class_publisher import ClassPublisher
from andes_operator.cluster import Cluster, ClusterError, connect
from andes_operator.controller import Controller
from andes_operator.gateways import Gateways
from andes_operator.health import ListenError, serve_health
from andes_operator.lease import LeaseLostError, ReleasableLease, lead
from andes_operator.nodes import Nodes
from andes_operator.pool_reconcile import PoolReconciler
from andes_operator.predictor import Predictor, Tabulator
from andes_operator.reconcile import Reconciler
from andes_operator.settings import OperatorSettings, OperatorSettingsError, add_arguments, load
from andes_operator.telemetry import OperatorMetrics, tracer
from andes_operator.watch import watch

__all__ = ["main", "run"]

log = logging.getLogger("andes_operator")

POOLS_RESYNC_S = 15.0
"""Seconds until a new QoEPool is found: there are few, and no watch of them."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="andes operator", description="Scale GPU pods on the QoE that readers get.", allow_abbrev=False
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it logs a line for every status that is written
    try:
        settings = load(args)
    except OperatorSettingsError as error:
        print(f"andes operator: {error}", file=sys.stderr)
        return 2
    return run(settings)


def run(settings: OperatorSettings) -> int:
    """Until SIGTERM or SIGINT: 0; 1 where the cluster could not be reached or the lease was lost."""
    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_operate(settings))
    except (ClusterError, LeaseLostError, ListenError) as error:
        log.error("%s", error)
        return 1
    return 0


async def _operate(settings: OperatorSettings) -> None:
    _cancel_on_signals()
    async with contextlib.AsyncExitStack() as stack:
        cluster = Cluster(await connect(), settings.identity)
        stack.push_async_callback(cluster.close)
        # The lease has connections of its own, so that slow requests of reconciles do not delay its renewal.
        lease_api = await connect()
        stack.push_async_callback(lease_api.close)
        gateways = Gateways(settings.admin_key.get_secret_value() if settings.admin_key else None)
        stack.push_async_callback(gateways.close)
        predictor = Predictor(settings.what_if_s)
        stack.callback(predictor.close)
        tabulator = Tabulator()
        stack.callback(tabulator.close)
        otlp = tracer(settings.otlp_endpoint, settings.identity)
        stack.callback(otlp.stop)
        metrics = OperatorMetrics()
        nodes = Nodes()
        reconciler = Reconciler(
            cluster,
            gateways,
            predictor,
            metrics=metrics,
            tracer=otlp.tracer,
            make_table=tabulator,
            nodes=nodes,
            name=f"{settings.lease_namespace}/{settings.lease}",
        )
        controller = Controller(
            cluster,
            reconciler.reconcile,
            ClassPublisher(cluster).publish,
            metrics=metrics,
            namespaces=settings.namespace,
            resync_s=settings.resync_s,
        )
        pools = Controller(
            cluster,
            PoolReconciler(cluster, controller.wake, metrics=metrics).reconcile,
            metrics=metrics,
            plural=names.POOLS,
            namespaces=settings.namespace,
            resync_s=min(POOLS_RESYNC_S, settings.resync_s),
        )

        def on_node(node: Mapping[str, Any], deleted: bool) -> None:
            if nodes.see(node, deleted=deleted):
                for key in reconciler.on_node(node["metadata"]["name"]):
                    controller.wake(key)

        await stack.enter_async_context(serve_health(settings.host, settings.port, controller, metrics))
        predictor.start()

        async def work() -> None:
            log.info("reconciling in %s", ", ".join(settings.namespace) or "all namespaces")
            controller.leading = True
            metrics.leading.set(1)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(controller.resync())
                    tasks.create_task(pools.resync())
                    tasks.create_task(watch(
                        controller, cluster, on_node, namespaces=settings.namespace, watch_s=settings.watch_s
                    ))  # fmt: skip
            finally:
                controller.leading = False
                metrics.leading.set(0)
                await pools.stop()
                await controller.stop()

        lease = ReleasableLease(settings.lease, settings.lease_namespace, settings.identity, lease_api)
        await lead(lease, work, settings.lease_s)


def _cancel_on_signals() -> None:
    """SIGTERM and SIGINT cancel the current task; everything is closed on its way out."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
