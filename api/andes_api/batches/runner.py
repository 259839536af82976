"""Which batches this gateway runs: takes those that nothing runs, and ends them when they are done, cancelled or over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from andes_api.batches.disk import unlock
from andes_api.batches.dispatch import Dispatcher
from andes_api.batches.files import DAY_S, FileStore
from andes_api.batches.peers import Peers
from andes_api.batches.store import FINAL, BatchStore
from andes_api.batches.work import BatchWork
from andes_api.classes import BatchSettings
from andes_api.errors import ApiError
from andes_api.gateway import Gateway
from andes_api.request_body import check_fields
from andes_api.settings import TenantSettings

__all__ = ["BatchRunner"]

SCAN_S = 2.0
"""Seconds between looks for batches that nothing runs."""
TICK_S = 0.5
"""Seconds between looks at what is running: engines' room, deadlines, cancellations."""
CLEAN_S = 3600.0
"""Seconds between removals of expired files, and of batches that ended long ago."""
_log = logging.getLogger("andes")


class BatchRunner:
    """Of one gateway, between ``start`` and ``stop``."""

    def __init__(
        self, gateway: Gateway, settings: BatchSettings, store: BatchStore, files: FileStore, peers: Peers
    ) -> None:
        self._gateway, self._settings = gateway, settings
        self._store, self._files, self._peers = store, files, peers
        self._works: dict[str, BatchWork] = {}
        self.dispatcher = Dispatcher(gateway, settings.per_engine, self._works)
        self._look = asyncio.Event()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._unreadable: dict[str, str] = {}  # why, by id
        self._clean_at_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._gateway.background.start("batches", self._claim_all)
        self._gateway.background.start("batch requests", self._work)

    async def stop(self) -> None:
        """Leave the batches to other gateways, or to this one's next start."""
        await asyncio.gather(*self._ending.values(), return_exceptions=True)
        await self.dispatcher.stop()
        for work in self._works.values():
            self._release(work)
        self._works.clear()
        await asyncio.to_thread(self._peers.leave)

    def look(self) -> None:
        """There is a batch to take, or one to cancel."""
        self._look.set()
        self.dispatcher.wake()

    def look_soon(self) -> None:
        """The same from another thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.look)

    @property
    def works(self) -> list[BatchWork]:
        return list(self._works.values())

    async def _claim_all(self) -> None:
        while True:
            self._look.clear()
            if not self._gateway.draining:
                for batch in await asyncio.to_thread(self._store.open):
                    if batch["id"] not in self._works:
                        await self._try_to_claim(batch["id"])
                await self._clean()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), SCAN_S)

    async def _try_to_claim(self, batch_id: str) -> None:
        """One that cannot be read keeps no other from being run."""
        try:
            await self._claim(batch_id)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if self._unreadable.get(batch_id) != text:  # once, not every two seconds
                _log.exception("batch %s cannot be taken up; it is tried again", batch_id)
            self._unreadable[batch_id] = text
        else:
            self._unreadable.pop(batch_id, None)

    async def _claim(self, batch_id: str) -> None:
        """Run this batch, unless another gateway does."""
        lock = await asyncio.to_thread(self._store.lock, batch_id)
        if lock is None:
            return
        try:
            batch = await asyncio.to_thread(self._store.read_own, batch_id)
            is_open = batch is not None and batch["status"] not in FINAL
            work = BatchWork(self._store, self._files, batch, lock) if batch is not None and is_open else None
        except BaseException:
            unlock(lock)
            raise
        if work is None:
            unlock(lock)
            return
        try:
            await self._load(work)
        except BaseException:
            work.release()
            raise
        self._works[batch_id] = work
        self.dispatcher.wake()

    async def _load(self, work: BatchWork) -> None:
        if work.batch["status"] == "finalizing":
            return
        name, tenant = work.batch["tenant"], self._gateway.tenant(work.batch["tenant"])
        if name is not None and tenant is None:
            work.fail("tenant_gone", f"there is no tenant {name} any more")
        else:
            await asyncio.to_thread(work.load, self._check_of(work, tenant), self._settings.max_requests)
        total = work.batch["request_counts"]["total"]
        _log.info("batch %s of %s: %d of %d requests to do", work.id, name, work.left, total)

    def _check_of(self, work: BatchWork, tenant: TenantSettings | None) -> Any:
        def check(body: Mapping[str, Any]) -> None:
            check_fields(body, work.endpoint, self._gateway.settings)
            if body.get("lora_path") is not None:
                raise ApiError(
                    400, "lora_path: in a batch the adapter is part of the model, MODEL:ADAPTER", param="lora_path"
                )
            self._gateway.route_of(body.get("model"), tenant)

        return check

    async def _clean(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._clean_at_s:
            self._clean_at_s = now_s + CLEAN_S
            reading = {str(batch["input_file_id"]) for batch in await asyncio.to_thread(self._store.open)}
            await asyncio.to_thread(self._files.remove_expired, reading)
            await asyncio.to_thread(self._store.remove_ended, time.time() - self._settings.batch_days * DAY_S)

    async def _work(self) -> None:
        next_s = 0.0
        while True:
            now_s = time.monotonic()
            if self._gateway.draining:
                await self.dispatcher.stop()
            else:
                if now_s >= next_s:
                    next_s = now_s + TICK_S
                    await self._tick()
                for work in self.works:
                    if work.is_done:
                        self._end(work, "completed")
                self.dispatcher.fill()
            await self.dispatcher.wait(TICK_S if self._works else SCAN_S)

    async def _tick(self) -> None:
        """Deadlines, cancellations, progress and what other gateways have."""
        for work in self.works:
            if self._store.cancelled_at_s(work.id) is not None:
                self._end(work, "cancelled")
            elif time.time() >= work.expires_at_s:
                self._end(work, "expired")
            elif not work.ending:
                await asyncio.to_thread(work.save_counts)
        self.dispatcher.note_active(time.monotonic())
        await asyncio.to_thread(self._peers.exchange, list(self._gateway.upstreams.replicas.values()))

    def _end(self, work: BatchWork, status: str) -> None:
        if not work.ending:
            work.ending = True
            self._ending[work.id] = asyncio.create_task(self._finish(work, status if work.good else "failed"))

    async def _finish(self, work: BatchWork, status: str) -> None:
        """Where that fails, the next look at the directory takes it up again."""
        try:
            await self.dispatcher.stop(work)
            await asyncio.to_thread(work.finish, status)
            _log.info("batch %s: %s, %s", work.id, work.batch["status"], work.batch["request_counts"])
        except Exception:
            _log.exception("batch %s could not be ended and is tried again", work.id)
        finally:
            del self._works[work.id], self._ending[work.id]
            self._release(work)

    @staticmethod
    def _release(work: BatchWork) -> None:
        try:
            work.release()
        except OSError as error:
            _log.error("batch %s: what was answered last may be lost: %s", work.id, error)
