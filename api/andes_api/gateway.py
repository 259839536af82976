"""The gateway between start and stop: admission, placement, open streams and their records."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from andes_api import admission, names
from andes_api.background import Background
from andes_api.board import Board, Worker
from andes_api.capacity import Capacity
from andes_api.connection import Connection
from andes_api.demand import DemandLog, DemandRecord, QoEWindow
from andes_api.endpoints import CHAT, RESPONSES, Endpoint
from andes_api.errors import ApiError
from andes_api.expectations import ResolvedExpectation
from andes_api.fatal import MAX_DEATHS, FatalRequests
from andes_api.history import History
from andes_api.kept import BackgroundResponses
from andes_api.metrics import GatewayMetrics, Levels
from andes_api.models import ModelRoute
from andes_api.placement import Placement
from andes_api.prompts import Prompt
from andes_api.readers import Readers
from andes_api.relay import Relay, RelayContext
from andes_api.response import Send
from andes_api.settings import GatewaySettings, TenantSettings, with_classes
from andes_api.siblings import Siblings
from andes_api.stored import StoredResponses
from andes_api.stream import Stream
from andes_api.telemetry import Telemetry
from andes_api.unread import UnreadRequest
from andes_api.upstream import Upstream
from andes_api.upstreams import MAX_PROBE_INTERVAL_S, Upstreams
from andes_sglang.resume import resumable
from andes_sglang.stream_forecast import IncomingStream, forecast_stream

__all__ = ["Gateway"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
SWEEP_INTERVAL_S = 1.0
"""Seconds between checks for idle streams and changed classes; both limits are minutes."""
MAX_UNSWEPT_S = 30.0
"""Seconds without such a check after which this gateway is not ready: far more than a busy event loop needs."""
NO_ENGINE_RETRY_S = 5.0
"""Seconds after which a client tries again while no engine is there: one look-up of names."""
RECENT_REQUESTS, USUAL_PROMPT_TOKENS = 100, 300
"""Requests whose mean prompt is the usual one, and its tokens while there are none."""
_log = logging.getLogger("andes")
_access = logging.getLogger("andes.access")


class Gateway:
    """``new_stream``, then ``admit``, then ``serve`` or ``refuse``; all of it between ``start`` and ``stop``. worker: which
    of its processes this is; instance: its name apart from the others'."""

    def __init__(self, settings: GatewaySettings, worker: Worker | None = None) -> None:
        self.worker = worker = Worker() if worker is None else worker
        self.instance = settings.name if worker.folder is None else f"{settings.name}-{worker.number}"
        self.settings = self._configured = settings
        self._classes = b""
        self.metrics = GatewayMetrics(worker.folder)
        self.background = Background(self.metrics.task_failures)
        self.reread_classes()
        self.board = Board(worker, tenants=len(settings.tenants), models=len(settings.models))
        self.siblings = Siblings(worker)
        self.upstreams = Upstreams(settings, background=self.background, board=self.board)
        self.demand = DemandLog(settings.demand_records, time.time() if worker.replaces else None)
        self.qoe = QoEWindow()
        self.history = History()
        self.stored = StoredResponses()
        self.telemetry = Telemetry(settings.otlp_endpoint, self.instance)
        self.open: dict[Stream, asyncio.Task[None]] = {}
        self.capacity = Capacity(settings, self.board, self.open)
        self.placement = Placement(settings, self.upstreams, self.stored, self.capacity)
        self.draining = False
        self.waiting: set[Stream] = set()  # for an engine
        self._relays: dict[Stream, Relay] = {}
        self._fatal = FatalRequests(lambda key, until_s: self.siblings.tell("fatal", key, until_s))
        self._relay_context = RelayContext(
            settings,
            self.upstreams,
            self.metrics,
            self.telemetry,
            self.wait_for_place,
            self._place_elsewhere,
            self._fatal,
            tool_slots=asyncio.Semaphore(settings.max_tool_processes),
        )
        self.readers = Readers(self._relays, self.upstreams, self.siblings)
        self._unfinished = BackgroundResponses(self.upstreams, self._finish_late)
        self._swept_s = math.inf  # when streams were last looked at, clock seconds
        self.siblings.answers("fatal", self._fatal.learn)
        self.siblings.answers("stored", self.stored.find)
        self.siblings.answers("drained", lambda: self.upstreams.drained)
        self.siblings.answers("levels", self.levels)

    async def start(self) -> None:
        await self.siblings.start()
        for drained in await self.siblings.others("drained"):
            self.upstreams.drain_all(drained)
        await self.upstreams.start()
        self._swept_s = time.monotonic()
        self.background.start("sweep", self._sweep)
        self.background.start("readers", self.readers.watch)
        self.background.start("background responses", self._unfinished.run)

    async def stop(self) -> None:
        await self.background.stop()
        for task in self.open.values():
            task.cancel()
        await asyncio.gather(*self.open.values(), return_exceptions=True)
        await self.upstreams.stop()
        await self.siblings.stop()
        await asyncio.to_thread(self.telemetry.stop)

    def reread_classes(self) -> None:
        """Take over what ``classes_file`` says when it has changed; where it is wrong, the classes stay as they are."""
        self.background.step("classes", self._reread_classes)

    def _reread_classes(self) -> None:
        file = self._configured.classes_file
        try:
            content = file.read_bytes() if file is not None else b""
        except FileNotFoundError:
            content = b""
        if content != self._classes:
            self.settings = with_classes(self._configured, file) if file is not None and content else self._configured
            self._classes = content

    @property
    def held(self) -> int:
        """Requests that wait for an engine."""
        return len(self.waiting)

    @property
    def held_by_model(self) -> Counter[str | None]:
        return Counter(stream.record.model for stream in self.waiting)

    def levels(self) -> Levels:
        """What holds now of this worker, for metrics."""
        now_s, held = time.monotonic(), self.held_by_model
        return Levels(
            tasks=len(asyncio.all_tasks()),
            open=Counter((s.record.class_name, s.record.model or "") for s in self.open),
            held={model or "": held[model] for model in (None, *self.upstreams.catalog.models)},
            replicas={r.name: (r.accepts(now_s), len(r.streams)) for r in self.upstreams.replicas.values()},
            behind=self.readers.count_behind(),
        )

    # Admission and placement

    def new_stream(
        self,
        body: dict[str, Any],
        expectation: ResolvedExpectation,
        tenant: TenantSettings | None,
        headers: Mapping[str, str],
        *,
        endpoint: Endpoint,
        route: ModelRoute,
        batched: bool = False,
    ) -> Stream:
        """A stream for this request, on record but not admitted. Raises a 400."""
        prompt = Prompt(body, endpoint.prompt)
        prompt_tokens = max(1.0, prompt.tokens(self.upstreams.chars_per_token(route.model)))
        streams = body.get("stream") is True and endpoint.reader is not None
        record = DemandRecord(time.time(), expectation.class_name, streams, round(prompt_tokens), expectation.reader)
        can_resume = self.settings.resume and streams and endpoint.chunks and resumable(body, endpoint is CHAT)
        stream = Stream(
            endpoint, body, expectation, tenant, headers, time.monotonic(), prompt, prompt_tokens, record,
            log=[] if can_resume else None, batched=batched,
            expected_thought=self.upstreams.thought_tokens(route.model),
            expected_answer=self.upstreams.answer_tokens(route.model),
        )  # fmt: skip
        stream.routed(route)
        stream.span = self.telemetry.server_span(stream)
        if not batched:  # batches are no demand of callers; /fleet/batches tells of them
            self.demand.add(record)
        return stream

    def admit(self, stream: Stream) -> list[Upstream]:
        """As :meth:`Placement.place`, within the limits of this gateway and of the tenant."""
        if self.draining:
            raise admission.no_replica(NO_ENGINE_RETRY_S, draining=True)
        self.capacity.admit(stream, self.upstreams.replicas.values())
        self.check_fatal(stream)
        return self.placement.place(stream, stream.arrival_s)

    def check_fatal(self, stream: Stream) -> None:
        """Raise the 502 for a request that engines have died of."""
        if left_s := self._fatal.left_s(stream.body, stream.arrival_s):
            raise admission.fatal(MAX_DEATHS, left_s)

    def tenant(self, name: str | None) -> TenantSettings | None:
        return next((tenant for tenant in self.settings.tenants if tenant.name == name), None)

    def route_of(self, asked: Any, tenant: TenantSettings | None) -> ModelRoute:
        """What the ``model`` of this tenant's request means. Raises the error that refuses it."""
        return self.placement.route_of(asked, tenant)

    async def wait_for_place(self, stream: Stream) -> list[Upstream]:
        """As :meth:`Placement.place`, once an engine accepts streams. Raises a 503 when none does ``hold_s`` after the
        stream's arrival, or ``max_held`` others wait already."""
        held, until_s = self.held + int(self.board.waiting.others), stream.arrival_s + self.settings.hold_s
        if stream.batched or held >= self.settings.max_held:
            raise admission.no_replica(NO_ENGINE_RETRY_S, held=held)
        stream.span.add_event(names.EVENT_HELD)
        self.waiting.add(stream)
        self.board.waiting.set(self.held)
        try:
            while (now_s := time.monotonic()) < until_s and not self.draining:
                if order := self.placement.place(stream, now_s):
                    return order
                await self.upstreams.wait_for_change(min(MAX_PROBE_INTERVAL_S, until_s - now_s))
        finally:
            self.waiting.discard(stream)
            self.board.waiting.set(self.held)
            self.capacity.count()  # its model may be known now
        raise admission.no_replica(NO_ENGINE_RETRY_S, draining=self.draining)

    def _place_elsewhere(
        self, stream: Stream, tried: Collection[ModelRoute], failed: Collection[Upstream]
    ) -> list[Upstream]:
        """As :meth:`Placement.place_elsewhere`; the requests of batches stay where they are put."""
        order = [] if stream.batched else self.placement.place_elsewhere(stream, tried, failed, time.monotonic())
        self.capacity.count()
        return order

    async def recall(self, response_id: str) -> None:
        """Have :attr:`stored` know where a response is kept that went through another worker."""
        if self.stored.find(response_id) is None:
            for home in await self.siblings.others("stored", response_id):
                if home is not None:
                    self.stored.add(response_id, *home)

    # Open streams

    async def serve(
        self, stream: Stream, order: list[Upstream], connection: Connection, receive: Receive, send: Send
    ) -> None:
        """Answer on this connection until the last byte, or until the client has gone: then upstream is cancelled."""
        record = stream.record
        relay = self._relays[stream] = Relay(self._relay_context, stream, order, send, connection)
        self.readers.opened(relay)
        task = self.open[stream] = asyncio.create_task(relay.run())
        self.capacity.opened(stream)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if record.outcome != "open":  # the last byte is out; what follows is tidying up
                await asyncio.wait({task})
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
            del self.open[stream], self._relays[stream]
            self.readers.closed(relay)
            self.capacity.left(stream)
            if order:
                order[0].left(stream)
            fault = None if task.cancelled() else task.exception()
            if record.outcome == "open":
                record.outcome = "failed" if fault else "abandoned"
            self._finish(stream)
        if fault is not None:
            raise fault

    def refuse(self, stream: Stream, error: ApiError) -> None:
        """Put a refusal before it was served on record."""
        stream.shed(error)
        self._finish(stream)

    def note_unread(self, request: UnreadRequest) -> None:
        """Put a request on record that has not become a stream."""
        if not request.counts:
            return
        duration_s = time.monotonic() - request.began_s
        self.metrics.unread(request, duration_s)
        self.telemetry.unread(request, duration_s)
        if self.settings.access_log:
            _access.info("%s", json.dumps(request.line(duration_s)))

    def cut_streams(self) -> None:
        """End what is open with an error, at the end of the time for draining."""
        for relay in self._relays.values():
            relay.cut()

    async def _sweep(self) -> None:
        """Once a second: end what has been silent for too long, upstream or in the client; reread the classes."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.reread_classes()
            now_s = time.monotonic()
            for stream, relay in list(self._relays.items()):
                relay.end_silent_upstream(now_s)
                if relay.client_is_gone(now_s):
                    self.open[stream].cancel()
            self.capacity.settle(now_s)
            self._swept_s = now_s

    def is_swept(self) -> bool:
        """Whether silent streams are still found; without that no idle limit fires."""
        return time.monotonic() - self._swept_s < MAX_UNSWEPT_S

    # Records

    def describe_replicas(self, now_s: float) -> list[dict[str, Any]]:
        """Each replica with ``predicted_ttft_s``: seconds to the first token of a new stream as long as recent ones."""
        recent = [record.prompt_tokens for record in self.demand.last(RECENT_REQUESTS)] or [USUAL_PROMPT_TOKENS]
        reader, prompt = self.settings.classes[self.settings.default_class].expectation, Prompt({}, ())
        usual = IncomingStream(sum(recent) / len(recent), reader.target, reader.weight, prompt.key)
        described = []
        for replica in self.upstreams.replicas.values():
            view = replica.view(now_s, prompt, usual.prompt_tokens)
            ttft_s = forecast_stream(usual, view, now_s, self.settings.horizon_s).ttft_s
            described.append({**replica.describe(now_s), "predicted_ttft_s": round(ttft_s, 3)})
        return described

    def update_open_records(self) -> None:
        """Bring the records of open streams up to date."""
        now_s = time.monotonic()
        for stream in self.open:
            stream.record.output_tokens = stream.tokens
            stream.record.qoe = stream.score(now_s)

    def _finish_late(self, stream: Stream, output_tokens: int) -> None:
        """Count what an engine has written after its first answer."""
        stream.record.output_tokens = output_tokens
        self.capacity.charge_late(stream, output_tokens - stream.tokens, time.monotonic())
        self.metrics.tokens.labels(stream.record.class_name, stream.record.model or "").inc(
            output_tokens - stream.tokens
        )

    def _finish(self, stream: Stream) -> None:
        """Score, count and log a request that is over."""
        now_s = time.monotonic()
        record, cls = stream.record, stream.expectation.class_name
        record.output_tokens = stream.tokens
        record.qoe = stream.score(now_s)
        self.capacity.ended(stream, now_s)
        if stream.endpoint is RESPONSES and record.outcome == "done" and isinstance(stream.answer_id, str):
            self.stored.add(stream.answer_id, stream.replica, stream.tenant.name if stream.tenant else None)
            if stream.unfinished:
                self._unfinished.add(stream.answer_id, stream)
        if (served := stream.served(now_s)) is not None:
            self.qoe.add(now_s, record.model, cls, served)
        self.history.add(now_s, stream.kind, record.outcome, record.qoe, retries=stream.retries, moves=stream.moves)
        duration_s = now_s - stream.arrival_s
        self.metrics.ended(stream, duration_s)
        self.telemetry.ended(stream, duration_s)
        if self.settings.access_log:
            _access.info("%s", json.dumps(stream.line(duration_s)))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
