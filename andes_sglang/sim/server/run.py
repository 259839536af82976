"""The server process: sockets, signals and the clock."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from andes_sglang.metrics import EngineMetrics, PrometheusEngineMetrics
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.server.app import ServerInfo, build_app
from andes_sglang.sim.server.live import LiveReplica
from andes_sglang.sim.server.metrics import Exposition, Gauges, SGLangObserver
from andes_sglang.sim.server.spans import OtlpSpans, Spans

__all__ = ["run"]


LEAVE_S = 2
"""Seconds for readers to take the error that ends their stream, once it has been told twice to stop."""


class _DrainingServer(uvicorn.Server):
    """Told to stop, it takes nothing new, finishes what has begun, then exits; told again, it ends every stream with an
    error; told a third time, it exits as it is."""

    def __init__(self, config: uvicorn.Config, live: LiveReplica) -> None:
        super().__init__(config)
        self._live = live
        self.clock: asyncio.Task[None] | None = None
        self._told = 0

    async def startup(self, *arguments: Any, **more: Any) -> None:
        self.clock = asyncio.create_task(self._live.run())
        await super().startup(*arguments, **more)

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002
        self._live.draining = True
        self._told += 1
        if self._told > 2 or (self._told > 1 and self.should_exit):
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._told > 1:
            self.config.timeout_graceful_shutdown = LEAVE_S
            self._live.stop()
        if self.clock is not None and self.clock.done():
            self._live.abort_matching()
            self.should_exit = True
        if self._live.draining and not self._live.open_answers:
            self.should_exit = True
        return await super().on_tick(counter)


async def _serve(
    bound: Any, info: ServerInfo, engine: EngineModel, policy: SchedulingPolicy | None, *, greeting: str,
    traces_url: str | None, **pace: Any,
) -> None:  # fmt: skip
    registry = CollectorRegistry()
    metrics = EngineMetrics() if policy is None else PrometheusEngineMetrics(registry)
    observer = SGLangObserver(info.model, registry)
    spans = OtlpSpans(traces_url, info.model) if traces_url else Spans()
    live = LiveReplica(engine, policy, metrics=metrics, observer=observer, spans=spans, **pace)
    Gauges(live, info.model, registry)
    if policy is not None:
        metrics.in_charge(policy.name)
    app = build_app(live, info, Exposition(live, registry))
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=75, backlog=4096,
    )  # fmt: skip
    server = _DrainingServer(config, live)
    bound.listen(4096)
    print(greeting, flush=True)
    try:
        await server.serve([bound])
    finally:
        await asyncio.to_thread(spans.stop)
    if server.clock is not None and server.clock.done():
        await server.clock


def run(*arguments: Any, **more: Any) -> None:
    """Serve until told to stop; an error of the policy or the replica ends it too, and is raised."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(*arguments, **more))
