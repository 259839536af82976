"""Which request of which batch goes to which engine, and what becomes of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import orjson

from andes_api.batches.lines import Line
from andes_api.batches.rate import OfflineRate
from andes_api.batches.work import BatchWork
from andes_api.connection import Connection
from andes_api.errors import ApiError
from andes_api.expectations import of_batch
from andes_api.gateway import Gateway
from andes_api.models import ModelRoute
from andes_api.settings import TenantSettings
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_sglang.expectations import KEY

__all__ = ["Dispatcher", "room"]

AHEAD = 8
"""One request more than an engine has room for, per as many: so that none waits for work, and none is queued deeply."""
MAX_ENGINE_ERRORS = 5
"""Answers of 500 or 501 after which a line is given up: it may be the line that an engine cannot do."""
_NOT_NOW = frozenset({408, 429, 499, 502, 503, 504})
"""Statuses of what is no answer to the request: it is tried again, without end."""
_OURS = ("stream", "stream_options", "service_tier")
"""Fields that the gateway sets itself."""
_FAULT = {"error": {"message": "the gateway failed with this line; its log tells", "type": "server_error"}}
_log = logging.getLogger("andes")


def room(replica: Upstream, per_engine: int) -> int:
    """How many requests of batches ``replica`` may get: up to what it runs at a time and a few more, beside what it has.
    None before it has been asked how much that is."""
    if not replica.asked_load:
        return 0
    slots = replica.slots + max(1, replica.slots // AHEAD)
    return max(0, min(per_engine - len(replica.offline), slots - replica.held))


class _Answer:
    """What a request would have got on a connection that stays open."""

    def __init__(self) -> None:
        self.status = 0
        self.content = b""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.content += message.get("body", b"")

    async def receive(self) -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}


class Dispatcher:
    """Of the batches in ``works``, by id. rates: by model, of what was done here."""

    def __init__(self, gateway: Gateway, per_engine: int, works: Mapping[str, BatchWork]) -> None:
        self._gateway, self._per_engine, self._works = gateway, per_engine, works
        self.rates: dict[str | None, OfflineRate] = defaultdict(OfflineRate)
        self._changed = asyncio.Event()
        self._errors: dict[tuple[str, int], int] = {}
        self._noted_s: float | None = None

    def wake(self) -> None:
        self._changed.set()

    async def wait(self, timeout_s: float) -> None:
        """Until something has changed, ``timeout_s`` at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        self._changed.clear()

    async def stop(self, work: BatchWork | None = None) -> None:
        """End the requests of ``work``, or of all: they are queued again."""
        works = [work] if work is not None else list(self._works.values())
        tasks = [task for some in works for task in some.running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def note_active(self, now_s: float) -> None:
        """Count the seconds since the last call for the models that have something to do."""
        active_s = 0.0 if self._noted_s is None else now_s - self._noted_s
        self._noted_s = now_s
        for model in {self.model_of(work, asked) for work in self._works.values() for asked in work.orders}:
            self.rates[model].add(now_s, active_s=active_s)

    def model_of(self, work: BatchWork, asked: Any) -> str | None:
        """The model that a request of ``work`` means, by its own name."""
        route = self._route(asked, self._gateway.tenant(work.batch["tenant"]))
        return route.model if route is not None else str(asked)

    def fill(self) -> None:
        """Give every engine as much as it has room for, one after the other, of the batch whose deadline comes first."""
        now_s = time.monotonic()
        works = sorted((w for w in self._works.values() if not w.ending), key=lambda work: work.expires_at_s)
        if not works:
            return
        replicas = self._gateway.upstreams.replicas.values()
        rooms = {
            r: n for r in replicas if r.accepts(now_s) and not r.is_full(now_s) and (n := room(r, self._per_engine))
        }
        while rooms:
            for replica in list(rooms):
                given = self._give_one(works, replica, now_s)
                rooms[replica] -= 1
                if not given or not rooms[replica]:
                    del rooms[replica]

    def _give_one(self, works: list[BatchWork], replica: Upstream, now_s: float) -> bool:
        for work in works:
            tenant = self._gateway.tenant(work.batch["tenant"])
            for model, order in work.orders.items():
                route = self._route(model, tenant) if order else None
                if route is None or not replica.serves(route):
                    continue
                line = order.take(replica.name, now_s)
                if line is not None:
                    return self._try_to_begin(work, line, replica, tenant, route)
        return False

    def _try_to_begin(
        self, work: BatchWork, line: Line, replica: Upstream, tenant: TenantSettings | None, route: ModelRoute
    ) -> bool:
        try:
            stream = self._stream_of(work, line, tenant, route)
        except Exception:  # its file cannot be read now: no line is lost by that
            _log.exception("batch %s, line %d", work.id, line.number)
            work.put_back(line, time.monotonic())
            return False
        self._begin(work, line, replica, stream)
        return True

    def _route(self, model: Any, tenant: TenantSettings | None) -> ModelRoute | None:
        """None where there is none now."""
        try:
            return self._gateway.route_of(model, tenant)
        except ApiError:
            return None

    def _stream_of(self, work: BatchWork, line: Line, tenant: TenantSettings | None, route: ModelRoute) -> Stream:
        body = {name: value for name, value in work.body_of(line).items() if name not in _OURS}
        if isinstance(body.get("custom_params"), dict):
            body["custom_params"] = {name: value for name, value in body["custom_params"].items() if name != KEY}
        return self._gateway.new_stream(
            body, of_batch(self._gateway.settings), tenant, {}, endpoint=work.endpoint, route=route, batched=True
        )

    def _begin(self, work: BatchWork, line: Line, replica: Upstream, stream: Stream) -> None:
        replica.opened(stream)  # at once, so that the next one sees it
        task = work.running[line] = asyncio.create_task(self._answer(work, line, replica, stream))

        def over(task: asyncio.Task[bool]) -> None:
            replica.left(stream)
            failed = not task.cancelled()
            if task.cancelled() or task.exception() is not None or not task.result():
                work.put_back(line, time.monotonic(), failed=failed)
            self.wake()

        task.add_done_callback(over)

    async def _answer(self, work: BatchWork, line: Line, replica: Upstream, stream: Stream) -> bool:
        """Whether the line is done."""
        got = _Answer()
        try:
            self._gateway.check_fatal(stream)
        except ApiError as error:
            self._gateway.refuse(stream, error)
            got.status, got.content = error.status, orjson.dumps(error.body)
            return self._settle(work, line, got, stream)
        try:
            await self._gateway.serve(stream, [replica], Connection(), got.receive, got.send)
            return self._settle(work, line, got, stream)
        except Exception:  # a fault of ours: it is on record, and the others go on
            _log.exception("batch %s, line %d", work.id, line.number)
            return self._give_up(work, line, 500, stream, None)

    def _settle(self, work: BatchWork, line: Line, got: _Answer, stream: Stream) -> bool:
        """Write the answer down, if it is one; False where the line is to be tried again."""
        try:
            body = orjson.loads(got.content)
        except orjson.JSONDecodeError:
            body = {"error": {"message": got.content[:1000].decode(errors="replace"), "type": "upstream_error"}}
        error = body.get("error") if isinstance(body, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if not got.status or (got.status in _NOT_NOW and code != "engine_died"):
            return False
        if code == "model_not_found":  # it was there when the batch began
            return False
        if got.status in (500, 501):
            return self._give_up(work, line, got.status, stream, body)
        tokens = work.settle(line, got.status, stream.request_id, body)
        self.rates[stream.route.model].add(time.monotonic(), tokens)
        return True

    def _give_up(self, work: BatchWork, line: Line, status: int, stream: Stream, body: Any) -> bool:
        """After a number of failures that may be the line's own."""
        key = work.id, line.number
        self._errors[key] = self._errors.get(key, 0) + 1
        if self._errors[key] < MAX_ENGINE_ERRORS:
            return False
        del self._errors[key]
        work.settle(line, status, stream.request_id, body or _FAULT)
        return True
