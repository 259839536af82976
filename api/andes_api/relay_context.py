"""What every relay needs of its gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from andes_api.fatal import FatalRequests
from andes_api.metrics import GatewayMetrics
from andes_api.models import ModelRoute
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_api.telemetry import Telemetry
from andes_api.tool_times import ToolTimes
from andes_api.upstream import Upstream
from andes_api.upstreams import Upstreams

__all__ = ["RelayContext"]


@dataclass(frozen=True)
class RelayContext:
    """wait_for_place: replicas for a stream once one accepts it, or the error that refuses it. place_elsewhere: those of a
    model that is none of those tried, and none that failed, which may answer in its place. tool_slots: of processes at a
    time. tool_times: of what runs here."""

    settings: GatewaySettings
    upstreams: Upstreams
    metrics: GatewayMetrics
    telemetry: Telemetry
    wait_for_place: Callable[[Stream], Awaitable[list[Upstream]]]
    place_elsewhere: Callable[[Stream, Collection[ModelRoute], Collection[Upstream]], list[Upstream]] = (
        lambda _stream, _tried, _failed: []
    )
    fatal: FatalRequests = field(default_factory=FatalRequests)
    tool_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    tool_times: ToolTimes = field(default_factory=ToolTimes)
