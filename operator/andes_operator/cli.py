"""``andes operator``: probes and metrics first, then the lease, then the work."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from aiohttp import web

from andes_operator import names
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.gateways import Gateways
from andes_operator.handlers import Work, watch
from andes_operator.lease import Lease, LeaseLostError
from andes_operator.reconcile import Reconciler
from andes_operator.simulated import Predictor
from andes_operator.telemetry import Metrics, tracer

__all__ = ["add_arguments", "main", "run"]

log = logging.getLogger("andes_operator")
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ListenError(RuntimeError):
    """Somebody else has the port of the probes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace", action="append", default=[], metavar="NS", help="serve this namespace; repeatable; default: all"
    )
    parser.add_argument("--host", default="0.0.0.0", help="where probes and metrics listen; default: %(default)s")  # noqa: S104
    parser.add_argument("--port", type=int, default=8080, help="of /livez, /readyz, /metrics; default: %(default)s")
    parser.add_argument(
        "--lease", default=names.OPERATOR, metavar="NAME", help="held while it works; default: %(default)s"
    )
    parser.add_argument("--lease-namespace", metavar="NS", help="default: the pod's, or default")
    parser.add_argument("--lease-seconds", type=float, default=15.0, help="default: %(default)g")
    parser.add_argument("--sweep-seconds", type=float, default=60.0, help="between full lists; default: %(default)g")
    parser.add_argument(
        "--watch-seconds",
        type=int,
        default=60,
        help="a watch is opened anew so often, a silent one a quarter later; default: %(default)d",
    )
    parser.add_argument("--otlp-endpoint", metavar="URL", default=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
                        help="where traces go (OTLP over HTTP); default: nowhere")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Work until told to stop: 0, or 1 where the cluster could not be reached or the lease was lost."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for every status that we write
    try:
        asyncio.run(_main(args))
    except (ClusterError, LeaseLostError, ListenError) as error:
        log.error("%s", error)
        return 1
    return 0


async def _main(args: argparse.Namespace) -> None:
    identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = await Cluster.connect(identity)
    # A client of its own: a connection that has fallen silent costs one renewal of the lease, not all of them.
    renewing = await Cluster.connect(identity, timeout_s=args.lease_seconds / 3)
    metrics = Metrics()
    otlp = tracer(args.otlp_endpoint, identity)
    gateways, predictor = Gateways(os.environ.get("ANDES_ADMIN_KEY")), Predictor()
    work = Work(
        cluster,
        Reconciler(cluster, gateways, predictor, metrics, otlp.tracer),
        metrics,
        args.namespace,
        args.sweep_seconds,
    )
    lease = Lease(
        renewing, args.lease_namespace or _own_namespace(), args.lease, identity,
        duration_s=args.lease_seconds, retry_s=args.lease_seconds / 5,
    )  # fmt: skip
    try:
        health = await _serve_health(args.host, args.port, work, metrics)
        predictor.start()
        try:
            await _lead(args, lease, work, stop, metrics)
        finally:
            await health.cleanup()
    finally:
        predictor.close()
        await gateways.close()
        await cluster.close()
        await renewing.close()
        otlp.stop()


async def _lead(args: argparse.Namespace, lease: Lease, work: Work, stop: asyncio.Event, metrics: Metrics) -> None:
    """Wait for the lease, work while it is held, give it back. Raises :class:`LeaseLostError`."""
    stopping = asyncio.ensure_future(stop.wait())
    acquiring = asyncio.ensure_future(_acquire(lease))
    await asyncio.wait([stopping, acquiring], return_when=asyncio.FIRST_COMPLETED)
    if not acquiring.done():
        acquiring.cancel()
        return
    work.leading = True
    metrics.leading.set(1)
    log.info("holding the lease: at work in %s", ", ".join(args.namespace) or "all namespaces")
    holding = asyncio.ensure_future(lease.hold())
    sweeping = asyncio.ensure_future(work.sweep())
    watching = asyncio.ensure_future(watch(work, args.namespace, args.watch_seconds))
    jobs = [holding, sweeping, watching]
    try:
        await asyncio.wait([stopping, *jobs], return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.leading = False
        metrics.leading.set(0)
        sweeping.cancel()
        watching.cancel()
        await work.stop()
        lost = holding.exception() if holding.done() and not holding.cancelled() else None
        holding.cancel()
        if lost is None:
            await lease.release()
    for job in jobs:
        if job.done() and not job.cancelled() and job.exception() is not None:
            raise job.exception()  # type: ignore[misc]


async def _acquire(lease: Lease) -> None:
    while True:
        try:
            return await lease.acquire()
        except ClusterError as error:
            log.warning("lease: %s", error)
            await asyncio.sleep(lease.retry_s)


async def _serve_health(host: str, port: int, work: Work, metrics: Metrics) -> web.AppRunner:
    async def livez(_: web.Request) -> web.Response:
        stuck = work.stuck()
        return web.Response(status=500 if stuck else 200, text=stuck or "ok")

    async def readyz(_: web.Request) -> web.Response:
        """Ready: at work and the resources were read, or waiting for the lease, which is all that a second one can do."""
        if not work.leading:
            return web.Response(text="waiting for the lease")
        ready = work.swept_s is not None
        return web.Response(status=200 if ready else 503, text="ok" if ready else "starting")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ListenError(f"--host {host}, --port {port}: {os.strerror(error.errno or 0)}") from None
    return runner


def _own_namespace() -> str:
    file = NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default"
    return os.environ.get("POD_NAMESPACE") or file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="andes operator", description="Scale GPU pods on the QoE that readers get.")
    add_arguments(parser)
    return run(parser.parse_args(argv))
